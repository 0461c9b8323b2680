"""zoo-gan keeps the contract that outsiders keep, by the same kit: small, and at small sizes."""

from typing import Any

import pytest
import torch
from torch import nn

from zoo.specs import Architecture
from zoo.testing import ArchitectureTests


class TestDCGAN(ArchitectureTests):
    name = "dcgan"
    size = 16
    options = {"width": 16}


class TestConditionalDCGAN(ArchitectureTests):
    """In int8 for TensorRT it is the growing layers alone: latents and classes are single pixels, whose layers that pass
    leaves in float as it does squeeze-and-excitation's, and the layer that paints is the last."""

    name = "dcgan-conditional"
    size = 16
    options = {"width": 16}


class TestSRResNet(ArchitectureTests):
    name = "srresnet"
    size = 21
    options = {"blocks": 2, "width": 16}


class TestSRGAN(ArchitectureTests):
    name = "srgan"
    size = 18
    options = {"blocks": 2, "width": 16, "critic_width": 8}


class TestESRGAN(ArchitectureTests):
    name = "esrgan"
    size = 16
    options = {"blocks": 1, "width": 16, "growth": 8, "critic_width": 8}
    change = 0.1  # twice a fifth of the branch is what it adds


class TestCARN(ArchitectureTests):
    name = "carn"
    size = 17


class TestCARNM(ArchitectureTests):
    name = "carn-m"
    size = 17


class TestInpaintGated(ArchitectureTests):
    name = "inpaint-gated"
    size = 64
    options = {"width": 8, "judge_width": 8}


class TestInpaintPartial(ArchitectureTests):
    name = "inpaint-partial"
    size = 64
    options = {"width": 8, "depth": 3}


class TestPix2Pix(ArchitectureTests):
    name = "pix2pix"
    size = 64
    options = {"width": 8, "depth": 4, "judge_width": 8}


class TestCycleGAN(ArchitectureTests):
    name = "cyclegan"
    size = 64
    options = {"width": 8, "blocks": 1, "judge_width": 8, "pool": 4}


class TestStyle(ArchitectureTests):
    name = "style"
    size = 32
    options = {"width": 8, "blocks": 1}


class TestSpandrel(ArchitectureTests):
    """A network that is recognised by its weights: those of a small Real-ESRGAN-compact one stand for a file."""

    name = "spandrel"
    size = 17

    def build(self, record: Architecture, classes: int, channels: int, **options: Any) -> nn.Module:
        if channels != 3:
            pytest.skip("a file's channels are its own")
        from spandrel.architectures import Compact

        torch.manual_seed(0)
        state = Compact.Compact(num_feat=16, num_conv=2, upscale=2).state_dict()
        return super().build(record, classes, channels, state=state, **options)
