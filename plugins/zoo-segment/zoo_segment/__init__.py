"""Segmentation networks; the edge zoo finds them through ``zoo_segment.plugin``.

Every network maps (N, C, H, W) float32 to logits (N, K, H, W) at the input's own size, in training and in evaluation.

    unet-classic                          U-Net as published, in one file
    segnet, segnet-basic                  SegNet, with its pooling indices made of operators that TensorRT takes
    unet, unetplusplus, deeplabv3plus,    over any timm encoder that has a pyramid of feature maps:
    fpn, segformer                        ``encoder="mobilenetv2_100"`` is where they start
"""
