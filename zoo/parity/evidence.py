"""Gathers what the gates judge: outputs over many images, seeded images of natural statistics, facts on the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["collect", "machine", "natural_images"]


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


def machine() -> dict[str, Any]:
    """What a figure must carry to mean anything: processor, cores, governor, system and versions. JSON-ready."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.exists():
        facts["governor"] = governor.read_text().strip()
    model = Path("/proc/device-tree/model")
    if model.exists():
        facts["board"] = model.read_text(errors="replace").strip("\0\n ")
    facts["versions"] = {
        name: importlib.metadata.version(name)
        for name in ("edgezoo", "numpy", "pillow", "onnxruntime", "torch", "onnx")
        if _installed(name)
    }
    return facts


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
