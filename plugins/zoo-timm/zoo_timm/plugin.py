"""What zoo-timm registers: every timm classifier, from a data file. Imports neither timm nor torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from zoo import Architecture, ImageInput, Spec, Weights, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

FILE = os.path.join(os.path.dirname(__file__), "architectures.json")

ALIASES = {
    "resnet": "resnet50",
    "vgg": "vgg16_bn",
    "inception": "inception_v3",
    # version 2, because it keeps its accuracy in int8 where version 3 loses much of it
    "mobilenet": "mobilenetv2_100",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv3": "mobilenetv3_large_100",
    "efficientnet": "efficientnet_b0",
    "convnext": "convnext_tiny",
    "densenet": "densenet121",
    # the small one: an edge device is what this zoo is for
    "vit": "vit_small_patch16_224",
    "swin": "swin_tiny_patch4_window7_224",
}
"""Short names that users type, and the member of the family that each means."""

FAMILIES = {
    "beit_": ("BEiT", "2106.08254"),
    "beitv2": ("BEiT v2", "2208.06366"),
    "cait": ("CaiT", "2103.17239"),
    "coat": ("CoaT", "2104.06399"),
    "convit": ("ConViT", "2103.10697"),
    "convmixer": ("ConvMixer", "2201.09792"),
    "convnext_": ("ConvNeXt", "2201.03545"),
    "convnextv2": ("ConvNeXt V2", "2301.00808"),
    "crossvit": ("CrossViT", "2103.14899"),
    "cspdarknet": ("CSPNet", "1911.11929"),
    "cspresne": ("CSPNet", "1911.11929"),
    "davit": ("DaViT", "2204.03645"),
    "deit_": ("DeiT", "2012.12877"),
    "deit3": ("DeiT III", "2204.07118"),
    "densenet": ("DenseNet", "1608.06993"),
    "dla": ("Deep Layer Aggregation", "1707.06484"),
    "dm_nfnet": ("NFNet", "2102.06171"),
    "dpn": ("Dual Path Network", "1707.01629"),
    "edgenext": ("EdgeNeXt", "2206.10589"),
    "efficientformer_": ("EfficientFormer", "2206.01191"),
    "efficientformerv2": ("EfficientFormer V2", "2212.08059"),
    "efficientnet_": ("EfficientNet", "1905.11946"),
    "efficientnetv2": ("EfficientNetV2", "2104.00298"),
    "efficientvit": ("EfficientViT", "2205.14756"),
    "eva_": ("EVA", "2211.07636"),
    "eva02": ("EVA-02", "2303.11331"),
    "fasternet": ("FasterNet", "2303.03667"),
    "fastvit": ("FastViT", "2303.14189"),
    "fbnetc": ("FBNet", "1812.03443"),
    "focalnet": ("FocalNet", "2203.11926"),
    "ghostnet_": ("GhostNet", "1911.11907"),
    "ghostnetv2": ("GhostNetV2", "2211.12905"),
    "hardcorenas": ("HardCoRe-NAS", "2102.11646"),
    "hiera": ("Hiera", "2306.00989"),
    "hrnet": ("HRNet", "1908.07919"),
    "inception_next": ("InceptionNeXt", "2303.16900"),
    "inception_resnet_v2": ("Inception-ResNet", "1602.07261"),
    "inception_v3": ("Inception v3", "1512.00567"),
    "inception_v4": ("Inception v4", "1602.07261"),
    "legacy_se": ("Squeeze-and-Excitation network", "1709.01507"),
    "levit": ("LeViT", "2104.01136"),
    "mambaout": ("MambaOut", "2405.07992"),
    "maxvit": ("MaxViT", "2204.01697"),
    "mixer": ("MLP-Mixer", "2105.01601"),
    "mixnet": ("MixNet", "1907.09595"),
    "mnasnet": ("MnasNet", "1807.11626"),
    "mobilenetv1": ("MobileNet", "1704.04861"),
    "mobilenetv2": ("MobileNetV2", "1801.04381"),
    "mobilenetv3": ("MobileNetV3", "1905.02244"),
    "mobilenetv4": ("MobileNetV4", "2404.10518"),
    "mobileone": ("MobileOne", "2206.04040"),
    "mobilevit_": ("MobileViT", "2110.02178"),
    "mobilevitv2": ("MobileViT v2", "2206.02680"),
    "mvitv2": ("MViT v2", "2112.01526"),
    "nasnet": ("NASNet", "1707.07012"),
    "nf_": ("NF network", "2101.08692"),
    "nfnet": ("NFNet", "2102.06171"),
    "pit": ("PiT", "2103.16302"),
    "pnasnet": ("PNASNet", "1712.00559"),
    "poolformer": ("PoolFormer", "2111.11418"),
    "pvt_v2": ("PVT v2", "2106.13797"),
    "regnet": ("RegNet", "2003.13678"),
    "repghost": ("RepGhost", "2211.06088"),
    "repvgg": ("RepVGG", "2101.03697"),
    "repvit": ("RepViT", "2307.09283"),
    "res2ne": ("Res2Net", "1904.01169"),
    "resmlp": ("ResMLP", "2105.03404"),
    "resnest": ("ResNeSt", "2004.08955"),
    "resnet": ("ResNet", "1512.03385"),
    "resnetrs": ("ResNet-RS", "2103.07579"),
    "resnetv2": ("ResNet V2", "1603.05027"),
    "resnext": ("ResNeXt", "1611.05431"),
    "rexnet": ("ReXNet", "2007.00992"),
    "samvit": ("Segment Anything encoder", "2304.02643"),
    "seresnet": ("SE-ResNet", "1709.01507"),
    "seresnext": ("SE-ResNeXt", "1709.01507"),
    "skresne": ("Selective Kernel network", "1903.06586"),
    "starnet": ("StarNet", "2403.19967"),
    "swin_": ("Swin Transformer", "2103.14030"),
    "swinv2": ("Swin Transformer V2", "2111.09883"),
    "tf_efficientnet_": ("EfficientNet", "1905.11946"),
    "tf_efficientnetv2": ("EfficientNetV2", "2104.00298"),
    "tf_mixnet": ("MixNet", "1907.09595"),
    "tf_mobilenetv3": ("MobileNetV3", "1905.02244"),
    "tiny_vit": ("TinyViT", "2207.10666"),
    "tinynet": ("TinyNet", "2010.14819"),
    "tnt": ("Transformer in Transformer", "2103.00112"),
    "tresnet": ("TResNet", "2003.13630"),
    "twins": ("Twins", "2104.13840"),
    "vgg": ("VGG", "1409.1556"),
    "vit_": ("Vision Transformer", "2010.11929"),
    "volo": ("VOLO", "2106.13112"),
    "wide_resnet": ("Wide ResNet", "1605.07146"),
    "xception": ("Xception", "1610.02357"),
    "xcit": ("XCiT", "2106.09681"),
}
"""Beginning of the name: what it is called, and its paper on arXiv. The longest that fits counts."""


@hookimpl
def zoo_register() -> Iterable[Spec]:
    with open(FILE, encoding="utf-8") as file:
        return architectures(json.load(file))


@hookimpl
def zoo_open_weights(uri: str, cache: Path) -> Path | None:
    if uri.startswith("timm:"):
        from .weights import open_weights

        return open_weights(uri.removeprefix("timm:"), cache)
    return None


def architectures(data: dict[str, Any]) -> list[Architecture]:
    """The records of the data file that :mod:`zoo_timm.generate` writes."""
    inputs = [
        ImageInput(
            height=height,
            width=width,
            channels=channels,
            crop=crop,
            resize=resize,
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
        )
        for height, width, channels, crop, resize, interpolation, mean, std in data["inputs"]
    ]
    licenses, heads, modules = data["licenses"], data["heads"], data["modules"]
    label_sets = [f"zoo_timm.labels:{name.replace('-', '_')}" if name else "" for name in data["label_sets"]]
    short: dict[str, list[str]] = {}
    for alias, name in ALIASES.items():
        short.setdefault(name, []).append(alias)
    found = []
    for name, (module, head, recipe, parameters, macs, tags) in data["architectures"].items():
        title, paper = family(name)
        found.append(
            Architecture(
                name=name,
                summary=title or modules[module].replace("_", " "),
                load="zoo_timm.build:build",
                task="classify",
                input=inputs[recipe],
                head=heads[head],
                weights=tuple(
                    Weights(
                        name=tag,
                        uri=f"timm:{name}.{tag}",
                        input=inputs[own],
                        num_classes=classes,
                        labels=label_sets[labels],
                        license=licenses[license],
                    )
                    for tag, own, classes, license, labels in tags
                ),
                license="Apache-2.0",
                paper=paper,
                aliases=tuple(short.get(name, ())),
                options={"name": name},
                parameters=parameters,
                macs=macs,
            )
        )
    return found


_LONGEST = max(map(len, FAMILIES))


def family(name: str) -> tuple[str, str]:
    """(title, link to the paper) of an architecture by its name; two empty texts where the family is not known."""
    for length in range(min(len(name), _LONGEST), 2, -1):
        if name[:length] in FAMILIES:
            title, paper = FAMILIES[name[:length]]
            return title, f"https://arxiv.org/abs/{paper}"
    return "", ""
