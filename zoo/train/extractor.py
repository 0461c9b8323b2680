"""Images to features for the distances between sets: any image classifier of the zoo from a file, or random filters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PluginError, UnknownName, ZooError
from ..inputs import ImageInput, preprocess_batch
from ..registry import get_registry
from ..specs import Architecture, Weights
from .models import open_model

__all__ = ["Extractor", "architecture_and_tag", "open_extractor", "reason"]

BATCH = 64
RANDOM = "random"
RANDOM_SIDE = 64


class Extractor:
    """Images (H, W, C) uint8 to (N, D) float32 features; the same ones every time."""

    def __init__(self, name: str, network: nn.Module, spec: ImageInput) -> None:
        self.name = name
        """For reports: figures of different extractors cannot be compared."""
        self._network, self._spec = network.eval(), spec

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                batch = [_rgb(image) for image in images[start : start + BATCH]]
                parts.append(self._network(torch.from_numpy(preprocess_batch(batch, self._spec))).float().numpy())
        return np.concatenate(parts)


def open_extractor(name: str = RANDOM) -> Extractor:
    """``random``: filters drawn once, which tell blur, contrast and texture apart but know nothing of objects: a weak
    measure, and an honest one where no weights are at hand (Naeem et al. 2020, arXiv:2002.09797, find it usable off natural
    images). Otherwise an image classifier of the zoo, ``NAME`` or ``NAME:FILE`` with its weights: the features before its head.

    Raises UnknownName, CheckpointError (offline: give a file).
    """
    if name in ("", RANDOM):
        plain = ImageInput(
            height=RANDOM_SIDE,
            width=RANDOM_SIDE,
            resize="squash",
            interpolation="bicubic",
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        )
        return Extractor("random convolutions (seed 0)", _Random(), plain)
    architecture, _, file = name.partition(":")
    model = open_model(architecture, weights=file or "pretrained")
    if model.task.name != "classify":
        raise PluginError(f"{architecture} is for task {model.task.name}: features are those of an image classifier")
    squash = replace(model.input, resize="squash", crop=1.0)  # the rim of an image counts too
    return Extractor(
        f"{model.architecture.name} ({model.weights} weights)", _Features(model.network, model.head), squash
    )


def architecture_and_tag(name: str) -> tuple[Architecture, Weights | None]:
    """``mobilenetv2_100.ra_in1k``: the architecture, and those of its weights that the tag names; None without a tag.

    Raises UnknownName.
    """
    registry = get_registry()
    base, _, tag = name.partition(".")
    try:
        architecture = registry.get(Architecture, base)
    except UnknownName:
        return registry.get(Architecture, name), None
    found = next((weights for weights in architecture.weights if weights.name == tag), None)
    if tag and found is None:
        raise UnknownName(f"weights of {base}", tag, [weights.name for weights in architecture.weights])
    return architecture, found


def reason(error: ZooError) -> str:
    """What went wrong, without the cure: that of weights is ``--weights FILE``, which whoever asks for features has not."""
    return re.split(r": (?=[^:]*--weights)", str(error))[0]


def _rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) of grey or colour."""
    picture = Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image).convert("RGB")
    return np.asarray(picture)


class _Features(nn.Module):
    """What a classifier's head is given."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._seen: list[Tensor] = []
        head.register_forward_pre_hook(lambda module, args: self._seen.append(args[0]))

    def forward(self, x: Tensor) -> Tensor:
        self._seen.clear()
        self.network(x)
        return self._seen[0].flatten(2).mean(dim=2) if self._seen[0].ndim > 2 else self._seen[0]


class _Random(nn.Module):
    """Four strided convolutions with Gaussian filters; mean and deviation of each map at every depth."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        widths = (3, 32, 64, 64, 128)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5, generator=draw)
            nn.init.normal_(layer.bias, std=0.1, generator=draw)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            found += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
        return torch.cat(found, dim=1)
