"""The records of torchvision's detectors, of Faster R-CNN and of RT-DETRv2. Nothing heavy is imported."""

from __future__ import annotations

from zoo import Architecture, ImageInput, Spec

SSDLITE = Architecture(
    name="ssdlite",
    summary="SSDLite320 on MobileNetV3-Large, as torchvision builds it: small and quick",
    load="zoo_detect.torchvision_detectors:build_ssdlite",
    task="detect",
    input=ImageInput(height=320, width=320, resize="letterbox", mean=(0.5,) * 3, std=(0.5,) * 3),
    head=",".join(f"model.head.classification_head.module_list.{level}.1" for level in range(6)),
    license="Apache-2.0",
    paper="https://arxiv.org/abs/1801.04381",
    parameters=2_331_260,
    macs=423_305_024,
)

RETINANET = Architecture(
    name="retinanet",
    summary="RetinaNet on ResNet-50 with a feature pyramid, as torchvision builds it",
    load="zoo_detect.torchvision_detectors:build_retinanet",
    task="detect",
    input=ImageInput(height=512, width=512, resize="letterbox"),
    head="model.head.classification_head.cls_logits",
    backbone="model.backbone.body",
    license="Apache-2.0",
    paper="https://arxiv.org/abs/1708.02002",
    parameters=32_387_774,
    macs=52_839_342_080,
)

FCOS = Architecture(
    name="fcos",
    summary="FCOS on ResNet-50 with a feature pyramid, as torchvision builds it: no anchor shapes to choose",
    load="zoo_detect.torchvision_detectors:build_fcos",
    task="detect",
    input=ImageInput(height=512, width=512, resize="letterbox"),
    head="model.head.classification_head.cls_logits",
    backbone="model.backbone.body",
    license="Apache-2.0",
    paper="https://arxiv.org/abs/1904.01355",
    parameters=32_136_015,
    macs=51_444_002_816,
)

FASTER_RCNN = Architecture(
    name="faster-rcnn",
    summary="Faster R-CNN with a fixed number of proposals over any timm backbone (MobileNetV3-Large)",
    load="zoo_detect.faster_rcnn:build",
    task="detect",
    input=ImageInput(height=512, width=512, resize="letterbox"),
    head="classifier",
    decode={"rows": "chosen"},  # the proposals
    backbone="backbone.model",
    license="Apache-2.0",
    paper="https://arxiv.org/abs/1506.01497",
    parameters=7_189_070,
    macs=3_864_864_640,
)

RT_DETR = Architecture(
    name="rt-detrv2",
    summary="RT-DETRv2, which needs no suppression, over any timm backbone (MobileNetV3-Large); needs transformers",
    load="zoo_detect.detr:build",
    task="detect",
    input=ImageInput(height=512, width=512, resize="letterbox"),
    head="model.decoder.class_embed,model.enc_score_head",
    decode={"nms": False, "rows": "chosen"},  # the queries, each object by one of them
    backbone="model.backbone.model",
    license="Apache-2.0",
    paper="https://arxiv.org/abs/2407.17140",
    aliases=("rt-detr",),
    parameters=5_348_808,
    macs=3_233_944_448,
)

SPECS: tuple[Spec, ...] = (SSDLITE, RETINANET, FCOS, FASTER_RCNN, RT_DETR)
