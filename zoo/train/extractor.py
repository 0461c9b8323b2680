"""Images to features for the distances between sets: any image classifier of the zoo from a file, or random filters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckpointError, PluginError, UnknownName, ZooError
from ..files import sha256_file
from ..inputs import ImageInput, preprocess_batch
from ..registry import get_registry
from ..specs import Architecture, Weights
from .models import TENSORS, Model, find_checkpoint, open_model, task_of

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

    ``NAME`` may carry the tag of timm's weights (``mobilenetv2_100.ra_in1k``), and may be a checkpoint. Raises UnknownName,
    PluginError, CheckpointError (offline: give a file).
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
    source, _, file = name.partition(":")
    folder = find_checkpoint(source)
    tag = None
    if folder is None:
        architecture, tag = architecture_and_tag(source)
        source = architecture.name
    elif file:
        raise CheckpointError(f"{source} is a checkpoint and brings its own weights: leave out :{file}")
    task = task_of(source)
    if task != "classify":
        raise PluginError(f"{source} is for task {task}: features are those of an image classifier")
    if file == "none":
        raise CheckpointError(f"{name}: untrained weights are others each time: give a file, or `{RANDOM}` alone")
    recipe = tag.input if tag is not None else None
    try:
        model = open_model(
            source,
            weights=file or (tag.name if tag is not None else "pretrained"),
            size=(recipe.height, recipe.width) if recipe is not None else None,
        )
    except CheckpointError as error:
        if "--weights" not in str(error):
            raise
        wanted = name.partition(":")[0]
        raise CheckpointError(f"{reason(error)}: give the file of its weights with --features {wanted}:FILE") from None
    digest = sha256_file(folder / TENSORS) if folder is not None else model.provenance["weights"]["sha256"]
    squash = replace(recipe or model.input, resize="squash", crop=1.0)  # the rim of an image counts too
    return Extractor(
        f"{model.architecture.name} ({model.weights} weights, sha256 {digest[:8]})", _Features(model), squash
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
    """What a classifier's heads are given: (N, C, H, W) to (N, D)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.network
        self.seen: Tensor | None = None
        # timm says how several heads go together
        self.timm = type(model.network).__module__.startswith("timm.")
        if not self.timm:
            model.head.register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.seen = args[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.timm:
            network: Any = self.network
            found: Tensor = network.forward_head(network.forward_features(x), pre_logits=True)
        else:
            self.network(x)
            if self.seen is None:
                raise PluginError("the network does not call its head as a module: its features cannot be told")
            found, self.seen = self.seen, None
        return found.flatten(2).mean(dim=2) if found.ndim > 2 else found


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
