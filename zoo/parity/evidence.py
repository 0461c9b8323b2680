"""Gathers what the gates judge: outputs over many images, seeded images of natural statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

__all__ = ["collect", "natural_images"]


def collect(
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]], batches: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """Run every (n, C, H, W) batch and join the outputs: by name, (N, …)."""
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for name, value in run(batch).items():
            parts.setdefault(name, []).append(np.asarray(value))
    return {name: np.concatenate(values) for name, values in parts.items()}


def natural_images(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> list[np.ndarray]:
    """``count`` images (H, W, C) uint8 whose power spectrum falls as 1/f^2, as that of photographs does
    (Field 1987, "Relations between the statistics of natural images"), with correlated colours.

    White noise would leave most activations of a trained network near zero; these do not.
    """
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    radius = np.sqrt(fy**2 + fx**2)
    radius[0, 0] = np.inf
    images = []
    for _ in range(count):
        planes = []
        for _ in range(channels + 1):
            spectrum = (rng.normal(size=radius.shape) + 1j * rng.normal(size=radius.shape)) / radius
            plane = np.fft.irfft2(spectrum, s=(height, width))
            planes.append(plane / plane.std())
        shared = planes.pop()
        stack = np.stack([0.85 * shared + 0.53 * plane for plane in planes], axis=2)
        level, contrast = rng.uniform(90, 165), rng.uniform(30, 70)
        images.append(np.clip(level + contrast * stack, 0, 255).round().astype(np.uint8))
    return images
