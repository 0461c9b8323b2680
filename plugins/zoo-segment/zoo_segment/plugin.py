"""What zoo-segment registers. Records only: torch, timm and the decoders are imported when a network is built."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Architecture, ImageInput, Spec, Weights, hookimpl

INPUT = ImageInput(
    height=256,
    width=256,
    # the whole image is seen and nothing is distorted: shapes are what a segmenter goes by, and the frame beside the
    # image is void, neither learnt from nor counted
    resize="letterbox",
    # bicubic overshoots at edges, which is where masks are decided
    interpolation="bilinear",
)

# classes 0: an encoder's weights bring no head
ENCODER = Weights(
    name="imagenet-encoder",
    uri="timm:{encoder}",  # the encoder's first weights, under their own licence
    num_classes=0,
)
VGG16 = Weights(name="imagenet-encoder", uri="timm:vgg16_bn.tv_in1k", num_classes=0, license="bsd-3-clause")


def over_encoder(
    name: str, title: str, paper: str, parameters: int, macs: int, *, alias: str = "", license: str = "MIT"
) -> Architecture:
    """A decoder of segmentation-models-pytorch (``license``) over an encoder of timm."""
    return Architecture(
        name=name,
        summary=f"{title} over MobileNetV2, or over any timm encoder (option encoder)",
        load=f"zoo_segment.decoders:{name}",
        task="segment",
        input=INPUT,
        head="segmentation_head.0",
        backbone="encoder.model",
        weights=(ENCODER,),
        license=f"{license} AND Apache-2.0",
        paper=f"https://arxiv.org/abs/{paper}",
        aliases=(alias,) if alias else (),
        options={"encoder": "mobilenetv2_100"},
        parameters=parameters,
        macs=macs,
    )


SPECS = (
    Architecture(
        name="unet-classic",
        summary="U-Net as published, with padded convolutions: 31 M parameters, trained from nothing",
        load="zoo_segment.unet:build",
        task="segment",
        input=INPUT,
        head="head",
        license="Apache-2.0",
        paper="https://arxiv.org/abs/1505.04597",
        parameters=31_032_330,
        macs=48_205_135_872,
    ),
    Architecture(
        name="segnet",
        summary="SegNet: VGG16 and its mirror image, which upsamples by the pooling indices",
        load="zoo_segment.segnet:segnet",
        task="segment",
        input=INPUT,
        head="head",
        backbone="encoder",
        weights=(VGG16,),
        license="Apache-2.0",
        paper="https://arxiv.org/abs/1511.00561",
        parameters=29_445_066,
        macs=40_353_398_784,
    ),
    Architecture(
        name="segnet-basic",
        summary="SegNet-Basic: four encoders and four decoders of 64 channels, pooling indices",
        load="zoo_segment.segnet:segnet_basic",
        task="segment",
        input=INPUT,
        head="head",
        license="Apache-2.0",
        paper="https://arxiv.org/abs/1511.00561",
        parameters=1_416_010,
        macs=22_443_720_704,
    ),
    over_encoder("unet", "U-Net", "1505.04597", 4_006_250, 2_837_504_000),
    over_encoder("unetplusplus", "U-Net++", "1807.10165", 4_202_026, 3_934_576_640, alias="unet++"),
    over_encoder(
        "deeplabv3plus",
        "DeepLabV3+",
        "1802.02611",
        2_713_946,
        1_127_677_952,
        alias="deeplabv3+",
        license="MIT AND BSD-3-Clause",
    ),
    over_encoder("fpn", "Feature pyramid", "1612.03144", 3_558_666, 2_359_353_344),
    over_encoder("segformer", "SegFormer's decoder", "2105.15203", 2_268_682, 1_829_822_464),
)


@hookimpl
def zoo_register() -> Iterable[Spec]:
    return SPECS
