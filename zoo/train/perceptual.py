"""Losses that see through another network's eyes: content by its features, style by how these go together."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ..errors import CheckpointError, UnknownName, ZooError
from ..registry import get_registry
from ..specs import Architecture
from .weights import read_state

__all__ = ["Perceptual"]

RANDOM = "random"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Perceptual(nn.Module):
    """A frozen backbone of timm, and the distances between the features that it sees. Kept outside of what is trained.

    Content: the mean squared difference of the features in the middle of the network (Johnson et al. 2016,
    arXiv:1603.08155); style: that of their Gram matrices at every depth (Gatys et al. 2016, arXiv:1508.06576), each as a
    share of the style picture's own, so that neither backbone nor depth decides how much the loss weighs.
    """

    def __init__(self, backbone: str = "vgg16", weights: str = "") -> None:
        """``weights``: a file; ``random``: filters drawn once, which know edges and textures but no objects; empty: the
        backbone's own, as anybody's weights are fetched. Raises UnknownName, CheckpointError."""
        super().__init__()
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.backbone = timm.create_model(backbone, features_only=True, pretrained=False)
        except RuntimeError:
            raise UnknownName("backbone", backbone, timm.list_models()) from None
        if weights != RANDOM:
            self._load(backbone, weights)
        self.eval().requires_grad_(False)
        config = self.backbone.default_cfg or {}
        self.register_buffer("mean", torch.tensor(config.get("mean", MEAN)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.get("std", STD)).view(1, 3, 1, 1), persistent=False)
        self._style: list[Tensor] = []

    def _load(self, backbone: str, weights: str) -> None:
        path = Path(weights)
        if not weights:
            try:
                architecture = get_registry().get(Architecture, backbone)
                if not architecture.weights:
                    raise CheckpointError(f"{backbone} has no published weights")
                from ..download import cache_folder

                path = get_registry().open_weights(architecture.weights[0].uri, cache_folder())
            except ZooError as error:
                raise CheckpointError(
                    f"{error}; or give the network of the loss as --perceptual {backbone}:FILE"
                ) from None
        wanted = self.backbone.state_dict()
        # features_only writes stages_0. where the classifier has stages.0.
        found = {key.replace("_", "."): value for key, value in read_state(path).tensors.items()}
        state = {key: found[key.replace("_", ".")] for key in wanted if key.replace("_", ".") in found}
        missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
        if missing:
            raise CheckpointError(
                f"{path} does not fit {backbone}: {len(missing)} keys missing: {', '.join(missing[:3])}"
            )
        try:
            self.backbone.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit {backbone}: {str(error).splitlines()[-1].strip()}") from None

    def train(self, mode: bool = True) -> Perceptual:
        return super().train(False)  # its statistics are its own

    def set_style(self, picture: Tensor) -> None:
        """(1, 3, H, W) in 0..1: whose manner is wanted."""
        with torch.no_grad():
            self._style = [_gram(features) for features in self._features(picture)]

    def forward(self, made: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Two (N, C, H, W) in 0..1, C 1 or 3, to ``content`` and, where a style was set, ``style``: scalars."""
        with torch.autocast(made.device.type, enabled=False):
            ours = self._features(made)
            with torch.no_grad():
                theirs = self._features(target)
            at = len(ours) // 2
            found = {"content": (ours[at] - theirs[at]).square().mean() / theirs[at].square().mean().clamp(min=1e-8)}
            if self._style:
                parts = [
                    (_gram(mine) - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)
                    for mine, wanted in zip(ours, self._style, strict=True)
                ]
                found["style"] = torch.stack(parts).mean()
        return found

    def _features(self, images: Tensor) -> list[Tensor]:
        images = images.float().expand(-1, 3, -1, -1)
        found: list[Tensor] = self.backbone((images - self.get_buffer("mean")) / self.get_buffer("std"))
        return found


def _gram(features: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, C): how the channels go together, a mean over the pixels."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]
