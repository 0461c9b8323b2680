"""What zoo-detect registers. Records only: torch is imported when a network is built."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Architecture, ImageInput, Spec, Weights, hookimpl

from . import more_records

GREY = (114, 114, 114)
"""What letterboxing paints beside the image, as the YOLO family has it since its third version."""


def _yolo(
    name: str,
    summary: str,
    *,
    backbone: str,
    size: int,
    width: int,
    depth: int,
    parameters: int,
    macs: int,
    aliases: tuple[str, ...] = (),
) -> Architecture:
    return Architecture(
        name=name,
        summary=summary,
        load="zoo_detect.yolo.network:build",
        task="detect",
        input=ImageInput(height=size, width=size, resize="letterbox", fill=GREY),
        head="head.classes",
        backbone="backbone.model",
        # classes 0: a backbone's weights bring no head
        weights=(Weights(name="imagenet-backbone", uri="timm:{backbone}", num_classes=0),),
        license="Apache-2.0",
        paper="https://arxiv.org/abs/1506.02640",
        aliases=aliases,
        options={"backbone": backbone, "width": width, "depth": depth},
        parameters=parameters,
        macs=macs,
    )


# All three backbones have ReLU or ReLU6 and no squeeze-and-excitation: what int8 and every accelerator do well.
YOLO = (
    # MobileNetV2: the smallest trunk whose ImageNet weights are at hand everywhere
    _yolo(
        "yolo-nano",
        "The zoo's own YOLO over MobileNetV2, 320 px: small boards",
        backbone="mobilenetv2_100",
        size=320,
        width=96,
        depth=1,
        parameters=2_032_830,
        macs=681_641_600,
        aliases=("yolo",),
    ),
    # MobileNetV4 was searched to be quick on CPUs, DSPs and GPUs alike
    _yolo(
        "yolo-small",
        "The zoo's own YOLO over MobileNetV4, 416 px: phones and small computers",
        backbone="mobilenetv4_conv_medium",
        size=416,
        width=96,
        depth=2,
        parameters=7_628_462,
        macs=3_194_629_984,
    ),
    # ResNet-50: dense convolutions, which GPUs fill their units with as they cannot with depthwise ones
    _yolo(
        "yolo-medium",
        "The zoo's own YOLO over ResNet-50, 640 px: GPUs",
        backbone="resnet50",
        size=640,
        width=128,
        depth=2,
        parameters=24_478_494,
        macs=35_282_483_200,
    ),
)

FASTESTDET = Architecture(
    name="fastestdet",
    summary="FastestDet, 352 px: a quarter of a million weights, trained on COCO",
    load="zoo_detect.fastestdet:build",
    task="detect",
    input=ImageInput(
        height=352,
        width=352,
        color="BGR",
        resize="squash",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
    head="detect_head.cls_layers.conv5x5.3,detect_head.cls_layers.conv5x5.4",
    weights=(
        Weights(
            name="coco",
            uri="https://raw.githubusercontent.com/dog-qiuqiu/FastestDet/97df0a850c4949dcd7d9abf9c539679eee6b6a90"
            "/weights/weight_AP05%3A0.253207_280-epoch.pth",
            num_classes=80,
            labels="zoo_detect.labels:coco80",
            license="BSD-3-Clause",
        ),
    ),
    license="Apache-2.0",
    paper="https://github.com/dog-qiuqiu/FastestDet",
    parameters=244_490,
    macs=121_491_744,
)


@hookimpl
def zoo_register() -> Iterable[Spec]:
    return (*YOLO, FASTESTDET, *more_records.SPECS)
