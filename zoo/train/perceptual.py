"""Losses that see through another network's eyes: content by its features, style by how these go together."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from timm.layers import Format
from torch import Tensor, nn

from ..download import cache_folder
from ..errors import CheckpointError, UnknownName, ZooError
from ..registry import get_registry
from .extractor import architecture_and_tag, reason
from .weights import fit, read_state

__all__ = ["Perceptual"]

RANDOM = "random"
STYLE_DEPTHS = 4
"""Deeper ones see a whole patch at once, and hold it to where the style picture has its objects."""


class Perceptual(nn.Module):
    """A frozen backbone of timm, and the distances between the features that it sees. Kept outside of what is trained.

    Content: the mean squared difference of the features in the middle of the network, and at its second depth where a
    style is wanted too, which deeper features would leave too little of; style: that of the Gram matrices at the first
    four depths. In VGG-16 these are relu2_2 and relu1_2 to relu4_3, as Johnson et al. 2016, arXiv:1603.08155, have them.
    Each is a share of what is wanted, so that neither backbone nor depth decides how much the loss weighs.
    """

    def __init__(self, backbone: str = "vgg16", weights: str = "") -> None:
        """``backbone``: timm's name, also with a tag (``mobilenetv2_100.ra_in1k``). ``weights``: a file; ``random``: filters
        drawn once, which know edges and textures but no objects; empty: the backbone's own, as anybody's weights are fetched.

        Raises UnknownName, CheckpointError; ZooError for a network that does not show its features.
        """
        super().__init__()
        _check_name(backbone)
        self.name = backbone
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.backbone = timm.create_model(backbone, features_only=True, pretrained=False)
        except Exception as error:  # each family of timm refuses in its own way
            raise ZooError(
                f"timm's {backbone} does not show its features at several depths ({type(error).__name__}: {error}): "
                "give another network with --perceptual, as vgg16"
            ) from None
        if weights != RANDOM:
            self._load(weights)
        self.eval().requires_grad_(False)
        self._config = self.backbone.default_cfg
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(self._config[key]).view(1, 3, 1, 1), persistent=False)
        self._style: list[Tensor] = []

    def _load(self, weights: str) -> None:
        path = Path(weights) if weights else self._fetched()
        tops = {key.partition(".")[0] for key in self.backbone.state_dict()}
        # timm wraps what it does not take apart
        part = ".".join(("backbone", *tops)) if tops in ({"model"}, {"body"}) else "backbone"
        fit(self, read_state(path), head="", keep_head=False, channels=3, backbone=part)

    def _fetched(self) -> Path:
        try:
            architecture, tag = architecture_and_tag(self.name)
            published = tag or next(iter(architecture.weights), None)
            if published is None:
                raise CheckpointError(f"{self.name} has no published weights")
            return get_registry().open_weights(published.uri, cache_folder())
        except ZooError as error:
            raise CheckpointError(
                f"{reason(error)}: give the file of its weights with --perceptual {self.name}:FILE, "
                f"or untrained filters with --perceptual {self.name}:{RANDOM}"
            ) from None

    def train(self, mode: bool = True) -> Perceptual:
        return super().train(False)  # its statistics are its own

    def set_style(self, picture: Tensor) -> None:
        """(1, C, H, W) in 0..1, C 1 or 3: whose manner is wanted."""
        with torch.no_grad(), torch.autocast(picture.device.type, enabled=False):
            self._style = [_gram(features) for features in self._features(picture)[:STYLE_DEPTHS]]

    def forward(self, made: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Two (N, C, H, W) in 0..1, C 1 or 3, to ``content`` and, where a style was set, ``style``: scalars."""
        with torch.autocast(made.device.type, enabled=False):
            ours = self._features(made)
            with torch.no_grad():
                theirs = self._features(target)
            at = min(1, len(ours) - 1) if self._style else len(ours) // 2
            found = {"content": (ours[at] - theirs[at]).square().mean() / theirs[at].square().mean().clamp(min=1e-8)}
            if self._style:
                parts = [
                    (_gram(mine) - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)
                    for mine, wanted in zip(ours, self._style, strict=False)
                ]
                found["style"] = torch.stack(parts).mean()
        return found

    def _features(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W), C 1 or 3, to one (N, C', H', W') a depth. Raises ZooError for images that the backbone cannot see."""
        if images.shape[1] not in (1, 3):
            raise ZooError(f"images of {images.shape[1]} channels: a perceptual loss compares 1 or 3")
        images = images.float().expand(-1, 3, -1, -1)
        try:
            found: list[Tensor] = self.backbone((images - self.get_buffer("mean")) / self.get_buffer("std"))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:
            height, width = self._config["input_size"][-2:]
            takes = f"; it takes {width}x{height}" if self._config.get("fixed_input_size") else ""
            raise ZooError(
                f"{self.name} cannot see images of {images.shape[3]}x{images.shape[2]} pixels ({str(error).strip(' .')}{takes}): "
                "train on others with --patch or --size, or give another network with --perceptual"
            ) from error
        if getattr(self.backbone, "output_fmt", None) == Format.NHWC:
            found = [features.permute(0, 3, 1, 2) for features in found]
        return found


def _gram(features: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, C): how the channels go together, a mean over the pixels."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def _check_name(backbone: str) -> None:
    name, _, tag = backbone.partition(".")
    if not timm.is_model(name):
        raise UnknownName("backbone", name, timm.list_models())
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise UnknownName(f"weights of {name}", tag, tags)
