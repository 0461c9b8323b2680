"""What the networks of restoration share: one turn of the generator, one of its critic, and how foreign weights get in.

The losses are sums of named terms, joined by ``+`` in a loss's name: ``l1`` and ``mse`` of the pixels, ``perceptual``
(distance in another network's features, arXiv:1603.08155) and ``adversarial`` (the critic's opinion).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.train.adversarial import DiffAugment, accuracy, discriminator_loss, freeze_layers, generator_loss, still
from zoo.train.players import Batch, Players, Rules, Turn

__all__ = ["Judge", "Restorer", "need_scale", "without_prefix"]


class Judge(nn.Module):
    """A critic: (N, C, H, W) in 0..1 to logits, one an image or one a pixel, high where it takes them for real."""

    @property
    def layers(self) -> Sequence[nn.Module]:
        """From the image on, as far as freezing them is concerned."""
        raise NotImplementedError


class Restorer(Players):
    """A generator (N, C, H, W) to (N, C', H * scale, W * scale), trained on pairs; with a critic where one is given.

    ``multiple`` must divide H and W. The usual weight of each term of a loss is in ``usual``.
    """

    losses: tuple[str, ...] = ("l1", "mse", "l1+perceptual")
    usual: Mapping[str, float] = {"l1": 1.0, "mse": 1.0, "perceptual": 0.1, "adversarial": 1e-3}
    relativistic = False
    """Whether the critic compares real with made images (arXiv:1807.00734) rather than judging each alone."""

    def __init__(
        self, generator: nn.Module, *, scale: int, multiple: int = 1, discriminator: Judge | None = None
    ) -> None:
        super().__init__()
        self.generator = generator
        self.scale = scale
        self.decode: dict[str, Any] = {"scale": scale, "multiple": multiple}
        if discriminator is not None:
            self.discriminator = discriminator
            self.players = ("discriminator", "generator")

    def needs_perceptual(self, loss: str) -> bool:
        return "perceptual" in loss.split("+")

    def takes_turn(self, player: str, step: int, rules: Rules) -> bool:
        return player == "generator" or "adversarial" in rules.loss.split("+")

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors under this network's own names.

        Files in the wild hold a generator alone: its keys get ``generator.`` before them. Raises CheckpointError where
        the file is visibly of another scale. What is unknown keeps its name, for whoever compares the keys to refuse.
        """
        tensors = without_prefix(tensors)
        if any(key.startswith("generator.") for key in tensors):
            return tensors
        return {f"generator.{key}": value for key, value in self.translate(tensors).items()}

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A generator's tensors under the names that ``generator`` has; a network with foreign layouts says more."""
        return dict(tensors)

    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        target = batch.target
        if target is None:
            raise ZooError("restoration learns from pairs: give each damaged image the picture that it should become")
        need_scale(batch.input, target, self.scale)
        if "fake" not in shared:
            shared["fake"] = self.generator(batch.input)
        made: Tensor = shared["fake"]
        if player == "discriminator":
            return self._judge(made.detach(), target, rules)
        return self._restore(made, target, rules)

    def _restore(self, made: Tensor, target: Tensor, rules: Rules) -> Turn:
        parts: dict[str, Tensor] = {}
        for term in rules.loss.split("+"):
            if term == "l1":
                value = F.l1_loss(made, target)
            elif term == "mse":
                value = F.mse_loss(made, target)
            elif term == "perceptual":
                if rules.perceptual is None:
                    raise ZooError(f"loss {rules.loss} compares features: give a network to see them with")
                value = rules.perceptual(_colour(made), _colour(target))["content"]
            elif term == "adversarial":
                value = self._persuade(made, target, rules)
            else:
                raise ZooError(f"'{term}' is no term of a restoration's loss: use one of {', '.join(self.losses)}")
            parts[term] = rules.weight(term, self.usual[term]) * value
        return Turn(losses=parts)

    def _judge(self, made: Tensor, target: Tensor, rules: Rules) -> Turn:
        critic, augment = self.discriminator, DiffAugment(rules.augment)
        freeze_layers(list(critic.layers), rules.freeze)
        real, fake = critic(augment(target)), critic(augment(made))
        if self.relativistic:
            real, fake = real - fake.mean(), fake - real.mean()
        loss = discriminator_loss("non-saturating", real, fake)
        return Turn(losses={"adversarial": loss}, figures={"accuracy": accuracy(real, fake)})

    def _persuade(self, made: Tensor, target: Tensor, rules: Rules) -> Tensor:
        """How far the made images are from passing for real ones."""
        critic, augment = self.discriminator, DiffAugment(rules.augment)
        with still(critic):
            fake = critic(augment(made))
            if not self.relativistic:
                return generator_loss("non-saturating", fake)
            with torch.no_grad():
                real = critic(augment(target))
        # the real ones should look no more real than the made ones do (ESRGAN, equation 2)
        return discriminator_loss("non-saturating", fake - real.mean(), real - fake.mean())


def need_scale(low: Tensor, high: Tensor, scale: int) -> None:
    """Raises ZooError where ``high`` (N, C, H', W') is not ``scale`` times as large as ``low`` (N, C, H, W)."""
    wanted = (low.shape[2] * scale, low.shape[3] * scale)
    if tuple(high.shape[2:]) != wanted:
        (height, width), (above, wide) = low.shape[2:], high.shape[2:]
        fits = above // height if above % height == 0 and above * width == wide * height else 0
        cure = f"build it with scale={fits}" if fits else f"make the targets {wanted[0]}x{wanted[1]}"
        raise ZooError(
            f"the target of a {height}x{width} input is {above}x{wide}, and this network makes x{scale} of it: {cure}"
        )


def without_prefix(
    tensors: Mapping[str, Tensor], prefixes: tuple[str, ...] = ("module.", "netG.")
) -> dict[str, Tensor]:
    """The tensors without what DataParallel and trainers of pairs of networks put before every key."""
    found = dict(tensors)
    for prefix in prefixes:
        if found and all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def _colour(images: Tensor) -> Tensor:
    """Grey images as the three equal channels that networks of photos take."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
