"""What the networks of generative tasks answer to: players that take turns, each with parameters and losses of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["Batch", "Players", "Rules", "Turn"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step learns from. Images that are made or should be made are shares of white: 0..1."""

    input: Tensor
    """What the generator takes: latents (N, Z, 1, 1), or images (N, C, H, W) preprocessed as the network's input says."""
    target: Tensor | None = None
    """(N, C', H', W') in 0..1: what it should make of the input; for ``generate``, real images; for translation without
    pairs, images of the other domain, which have nothing to do with the input's; None where there is nothing to show."""
    labels: Tensor | None = None
    """(N,) int64 classes of the real images, where the network is told classes; the latents end in the same, one-hot."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a run decided, the same for every step."""

    loss: str
    """One of the network's ``losses``."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Factors of single terms, by name, where a user wants others than the network's own."""
    perceptual: Callable[[Tensor, Tensor], Mapping[str, Tensor]] | None = None
    """Images (N, 3, H, W) in 0..1 and what they should be to ``content`` (and ``style``) losses, see
    :mod:`zoo.train.perceptual`; None where no term of the loss needs it."""
    augment: str = ""
    """Differentiable augmentation of what a discriminator sees: ``color,translation,cutout``, or empty."""
    freeze: int = 0
    """How many of a discriminator's layers, counted from the image, keep their weights (FreezeD, arXiv:2002.10964)."""

    def weight(self, term: str, usual: float) -> float:
        return self.weights.get(term, usual)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one player's turn gave."""

    losses: Mapping[str, Tensor]
    """By name of the term, weighted: their sum is what the player makes small."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """To be watched, not learnt from; of discriminators ``accuracy``: the share of real and made images told apart."""


class Players(nn.Module):
    """A generator, and whoever trains it. Subclass it; only ``generator`` is evaluated and exported.

    Called on an input it gives the generator's images, in 0..1.
    """

    generator: nn.Module
    """Batch input to (N, C, H, W) images in 0..1 (not clamped: values beyond are cut when pixels are made of them)."""
    players: tuple[str, ...] = ("generator",)
    """In the order in which they take turns within a step."""
    losses: tuple[str, ...] = ("l1",)
    """Names that a user may choose from, the usual one first."""
    optimizers: Mapping[str, Mapping[str, Any]] = {"generator": {"lr": 2e-4, "betas": (0.9, 0.999)}}
    """By player, arguments of torch's Adam, see :meth:`adam`."""
    schedule: str = "constant"
    """Of the learning rates over the run: ``constant``, ``linear`` (falls to 0 over the second half) or ``cosine``."""
    ema: float = 0.0
    """Usual decay of the averaged generator, 0: none."""
    needs: tuple[str, ...] = ()
    """What a run must provide: ``perceptual`` (a loss network), ``style`` (an image)."""
    unpaired: bool = False
    """Of translation: whether it learns from two sets of images without pairs."""
    patch: int = 0
    """Usual side of the squares that training images are cut into, in pixels of the input; 0: the input's own size."""
    decode: Mapping[str, Any] = {}
    """Settings of the task's numpy half that follow from the network: ``scale``, ``multiple``, …"""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.generator(x)
        return made

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A file's tensors under this network's names, without what it has no place for; what is not given may be
        missing (a critic that nobody published)."""
        return tensors

    def parts(self, player: str) -> list[nn.Module]:
        """The modules whose parameters the player moves."""
        return [self.get_submodule(player)]

    def adam(self, player: str, loss: str) -> Mapping[str, Any]:
        """Arguments of torch's Adam for a player under a loss."""
        return self.optimizers[player]

    def takes_turn(self, player: str, step: int, rules: Rules) -> bool:
        """Whether the player moves in this step (a critic may move more often than its generator)."""
        return True

    def needs_perceptual(self, loss: str) -> bool:
        """Whether a loss of that name has a term that looks through another network's eyes."""
        return "perceptual" in self.needs

    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        """One turn. ``shared`` lives for one step: what a player before computed (``shared["fake"]``)."""
        raise NotImplementedError
