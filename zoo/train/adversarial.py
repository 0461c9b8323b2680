"""What two networks that train against each other need beside themselves: losses by name, the gradient penalty,
augmentation of what the discriminator sees, a memory of made images, and discriminators of which a part stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ZooError

__all__ = [
    "LOSSES",
    "DiffAugment",
    "ImagePool",
    "accuracy",
    "discriminator_loss",
    "freeze_layers",
    "generator_loss",
    "gradient_penalty",
    "still",
]

LOSSES = ("non-saturating", "original", "lsgan", "hinge", "wgan-gp")
"""Names of the losses. Discriminators give logits for all of them: no sigmoid at their end."""


def discriminator_loss(name: str, real: Tensor, fake: Tensor) -> Tensor:
    """What a discriminator makes small. ``real``, ``fake``: its logits, of any shape (of patches, of images); a scalar.

    With D the logits, s the sigmoid and means over all values:

    - ``original``, ``non-saturating``: -log s(D(real)) - log(1 - s(D(fake))) (Goodfellow et al. 2014, arXiv:1406.2661,
      equation 1), as softplus, which stays finite where the logarithm does not;
    - ``lsgan``: (D(real) - 1)^2 / 2 + D(fake)^2 / 2 (Mao et al. 2017, arXiv:1611.04076, equation 9);
    - ``hinge``: max(0, 1 - D(real)) + max(0, 1 + D(fake)) (Lim & Ye 2017, arXiv:1705.02894);
    - ``wgan-gp``: D(fake) - D(real); :func:`gradient_penalty` belongs to it (Gulrajani et al. 2017, arXiv:1704.00028).

    Raises ZooError: no loss of that name.
    """
    if name in ("original", "non-saturating"):
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if name == "lsgan":
        return 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()
    if name == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if name == "wgan-gp":
        return fake.mean() - real.mean()
    raise _unknown(name)


def generator_loss(name: str, fake: Tensor) -> Tensor:
    """What a generator makes small. ``fake``: the discriminator's logits for what it made; a scalar.

    - ``original``: log(1 - s(D(fake))), which has hardly a gradient while the discriminator wins;
    - ``non-saturating``: -log s(D(fake)), which has (both Goodfellow et al. 2014, section 3);
    - ``lsgan``: (D(fake) - 1)^2 / 2;
    - ``hinge``, ``wgan-gp``: -D(fake).

    Raises ZooError: no loss of that name.
    """
    if name == "original":
        return -F.softplus(fake).mean()
    if name == "non-saturating":
        return F.softplus(-fake).mean()
    if name == "lsgan":
        return 0.5 * (fake - 1).square().mean()
    if name in ("hinge", "wgan-gp"):
        return -fake.mean()
    raise _unknown(name)


def accuracy(real: Tensor, fake: Tensor, loss: str = "non-saturating") -> Tensor:
    """The share of logits on the right side, real and fake counted alike: a scalar in 0..1, 0.5 where it guesses.

    The border is 0; with ``lsgan``, whose logits aim at 1 and 0, it is 0.5; with ``wgan-gp``, whose logits have no zero,
    it is the middle of the two means. Raises ZooError: no loss of that name.
    """
    if loss not in LOSSES:
        raise _unknown(loss)
    real, fake = real.detach(), fake.detach()
    border: Tensor | float = {"lsgan": 0.5}.get(loss, 0.0)
    if loss == "wgan-gp":
        border = (real.mean() + fake.mean()) / 2
    right: Tensor = (real > border).float().mean() + (fake <= border).float().mean()
    return right / 2


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """How far the critic's slope is from 1 between real and made images: the mean of (|gradient| - 1)^2, a scalar.

    Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1, without its factor of 10. The slope is taken at one random
    point for each image, on the line from a made image to a real one; ``real`` and ``fake`` are (N, ...) of one shape.
    Differentiable in the critic's weights. The critic must judge each image by itself: with batch norm it does not.
    """
    share = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device, dtype=real.dtype)
    between = (share * real.detach() + (1 - share) * fake.detach()).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    steepness: Tensor = torch.linalg.vector_norm(slope.flatten(1), dim=1)
    return (steepness - 1).square().mean()


class DiffAugment:
    """Augmentation of what a discriminator sees, real and made, through which the generator still learns.

    Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", arXiv:2006.10738, appendix A. The
    policies, of which ``policy`` names some, comma-separated, in the order in which they are applied:

    - ``color``: brightness moved by up to a quarter of the range from black to white, saturation times 0..2,
      contrast times 0.5..1.5;
    - ``translation``: moved by up to an eighth of each side; what is uncovered is grey;
    - ``cutout``: a square of half the side, whose centre lies anywhere in the image, becomes grey.

    Called with (N, C, H, W) images in 0..1 it gives (N, C, H, W), not clamped. Each image has its own draws, from torch's
    generator. An empty policy changes nothing. Raises ZooError: no policy of that name.
    """

    def __init__(self, policy: str = "color,translation,cutout") -> None:
        names = [name.strip() for name in policy.split(",") if name.strip()]
        for name in names:
            if name not in _POLICIES:
                raise ZooError(
                    f"unknown differentiable augmentation '{name}': there are {', '.join(_POLICIES)}, comma-separated"
                )
        self.policy = ",".join(names)
        self.parts = [_POLICIES[name] for name in names]

    def __call__(self, images: Tensor) -> Tensor:
        for part in self.parts:
            images = part(images)
        return images

    def __bool__(self) -> bool:
        return bool(self.parts)


GREY = 0.5
"""What the paper's zeros are: its images lie in -1..1."""


def _color(images: Tensor) -> Tensor:
    """Brightness, then saturation about each pixel's mean, then contrast about each image's."""
    images = images + (_draw(images) - 0.5) * 0.5
    mean = images.mean(dim=1, keepdim=True)
    images = (images - mean) * (_draw(images) * 2) + mean
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (_draw(images) + 0.5) + mean


def _translation(images: Tensor) -> Tensor:
    count, _, height, width = images.shape
    rows = _positions(images, height, height // 8)  # (N, H): where each row of the result comes from
    columns = _positions(images, width, width // 8)
    top, left = height // 8, width // 8
    padded = F.pad(images, (left, left, top, top), value=GREY)
    each = torch.arange(count, device=images.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return moved.permute(0, 3, 1, 2)


def _positions(images: Tensor, side: int, reach: int) -> Tensor:
    first = torch.randint(0, 2 * reach + 1, (len(images), 1), device=images.device)
    return first + torch.arange(side, device=images.device)


def _cutout(images: Tensor) -> Tensor:
    count, _, height, width = images.shape
    inside = []
    for side in (height, width):
        size = (side + 1) // 2
        centre = torch.randint(0, side + 1, (count, 1), device=images.device)
        place = torch.arange(side, device=images.device) - centre + size // 2
        inside.append((place >= 0) & (place < size))  # (N, side)
    hole = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]  # (N, 1, H, W)
    return torch.where(hole, images.new_tensor(GREY), images)


def _draw(images: Tensor) -> Tensor:
    """(N, 1, 1, 1), even in 0..1."""
    return torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)


_POLICIES: dict[str, Callable[[Tensor], Tensor]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}


class ImagePool(nn.Module):
    """A memory of made images, so that a discriminator is not led by the latest alone.

    Shrivastava et al. 2017, arXiv:1612.07828, section 2.3, in the form that CycleGAN uses (Zhu et al. 2017,
    arXiv:1703.10593, section 4: 50 images). Until ``size`` images are there, each is kept and given back. From then on,
    each has an even chance to be given back itself, or to take the place of a kept one, which is given back instead.

    The images, ``images`` (kept, C, H, W), are no part of a network's weights; a run keeps them with its own state
    (:class:`zoo.train.match.Match`), so that a resumed one goes on with the same ones. Draws come from torch's generator on the CPU. ``size`` 0 gives
    back what comes.
    """

    images: Tensor

    def __init__(self, size: int = 50) -> None:
        super().__init__()
        if size < 0:
            raise ZooError(f"an image pool of {size}: its size is 0 or more")
        self.size = size
        self.register_buffer("images", torch.empty(0), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) made images to as many, without gradient. Images of another shape than the kept ones empty it."""
        if self.size == 0:
            return images.detach()
        if self.images.shape[1:] != images.shape[1:]:
            self.images = images.new_empty(0, *images.shape[1:])
        given = []
        for image in torch.split(images.detach(), 1):
            if len(self.images) < self.size:
                self.images = torch.cat([self.images.to(image), image])
                given.append(image)
            elif float(torch.rand(())) < 0.5:
                given.append(image)
            else:
                place = int(torch.randint(self.size, ()))
                given.append(self.images[place : place + 1].clone())
                self.images[place] = image[0]
        return torch.cat(given)


def freeze_layers(layers: Sequence[nn.Module], count: int) -> None:
    """The first ``count`` of a discriminator's ``layers``, which are in order from the image, keep their weights.

    Freeze the discriminator, Mo et al. 2020, arXiv:2002.10964: what it knows of edges and textures serves a new, small
    set too. Only takes gradients away, so it may be asked again at every step. Raises ZooError: a count that leaves
    nothing to train, or is negative.
    """
    if not 0 <= count < len(layers):
        raise ZooError(
            f"{count} frozen layers of a discriminator that has {len(layers)}: one at least must learn, "
            f"so 0 to {len(layers) - 1} can be frozen"
        )
    for layer in layers[:count]:
        layer.requires_grad_(False)


@contextmanager
def still(*modules: nn.Module) -> Iterator[None]:
    """Inside, gradients go through the modules but none is kept for their weights: it is another player's turn.

    What was computed inside may be differentiated after it."""
    moving = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)


def _unknown(name: str) -> ZooError:
    return ZooError(f"unknown adversarial loss '{name}': there are {', '.join(LOSSES)}")
