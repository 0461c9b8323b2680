"""Gives a randomly initialised network signal, so that parity on it means something.

Fresh networks are blind: batch norms that pass nothing on, branches that start at zero, attention that is uniform. Scaling
a layer of such a network by 100 may change its output by nothing at all, and a comparison would pass it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ..inputs import preprocess_batch
from ..parity.evidence import made_images
from ..specs import ImageInput

__all__ = ["carries_signal", "give_signal", "probe"]

DEAD = 1e-3
"""A parameter whose every value is smaller than this is a branch switched off at the start (zero-init, LayerScale)."""


def probe(spec: ImageInput, count: int = 16, seed: int = 0) -> torch.Tensor:
    """(count, C, H, W) float32: seeded images of natural statistics, preprocessed as ``spec`` says."""
    images = made_images(spec, count, spec.height + 9, spec.width + 5, seed)
    return torch.from_numpy(preprocess_batch(images, spec))


def give_signal(network: nn.Module, spec: ImageInput, seed: int = 0) -> nn.Module:
    """Re-draw in place what initialisation leaves blind; returns the network, in eval mode.

    Gains and shifts of every normalisation are drawn anew, parameters that start at zero get small random values,
    and the running statistics of batch norms are taken from seeded images of natural statistics and then disturbed
    a little, so that no two of them are alike and none is the identity.
    """
    draw = np.random.default_rng(seed)

    def normal(like: torch.Tensor, scale: float, mean: float = 0.0) -> torch.Tensor:
        return torch.from_numpy(draw.normal(mean, scale, tuple(like.shape)).astype(np.float32)).to(like)

    network.eval()
    with torch.no_grad():
        for module, name, parameter in _own_parameters(network):
            if _is_norm(module) and name == "weight":
                parameter.copy_(normal(parameter, 0.15, 1.0).clamp_(0.5, 1.5))
            elif _is_norm(module) and name == "bias":
                parameter.copy_(normal(parameter, 0.2))
            elif float(parameter.abs().max()) < DEAD:
                # a vector that scales a branch (LayerScale, a residual gain) must let the branch through
                gain = parameter.ndim == 1 and name != "bias"
                parameter.copy_(normal(parameter, 0.1, 0.5 if gain else 0.0))
        norms = [
            m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
        ]
        if norms:
            _measure(network, norms, probe(spec, 16, seed))
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.add_(normal(norm.running_mean, 0.1) * norm.running_var.sqrt())
            norm.running_var.mul_(normal(norm.running_var, 0.1, 1.0).clamp_(0.7, 1.4)).add_(1e-5)
    return network.eval()


def carries_signal(outputs: np.ndarray) -> float:
    """How much of the outputs (N, C) depends on the image, 0..1: RMS about each class's mean / RMS about the overall mean."""
    across = outputs - outputs.mean(axis=0, keepdims=True)
    spread = outputs - outputs.mean()
    return float(np.sqrt((across**2).mean() / max(float((spread**2).mean()), 1e-30)))


def _own_parameters(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for _, module in sorted(network.named_modules()):
        for name, parameter in sorted(module.named_parameters(recurse=False)):
            yield module, name, parameter


def _is_norm(module: nn.Module) -> bool:
    # timm has norms of its own, which derive from these or are named after them
    return "norm" in type(module).__name__.lower()


def _measure(network: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm], images: torch.Tensor) -> None:
    """One pass with only the batch norms in training mode; momentum None makes the statistics those of this batch."""
    before = [(norm, norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        network(images)
    finally:
        for norm, momentum in before:
            norm.momentum = momentum
            norm.eval()
