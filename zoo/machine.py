"""Facts about this machine, without numpy: what a figure must carry to mean anything, and what `zoo doctor` tells."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["cores", "cpu", "machine", "versions"]


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> tuple[str, frozenset[str]]:
    """The processor's name, and its instruction sets as Linux names them (none where the system is another)."""
    name, flags = "", frozenset[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if not name and key.strip().lower() in ("model name", "hardware"):
                name = value.strip()
            elif not flags and key.strip() in ("flags", "Features"):
                flags = frozenset(value.split())
    return name or platform.processor() or platform.machine(), flags


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the installed distributions among ``names``."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """What a figure must carry to mean anything: processor, cores, governor, system and versions. JSON-ready."""
    facts: dict[str, Any] = {
        "processor": cpu()[0],
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.exists():
        facts["governor"] = governor.read_text().strip()
    model = Path("/proc/device-tree/model")
    if model.exists():
        facts["board"] = model.read_text(errors="replace").strip("\0\n ")
    facts["versions"] = versions(("edgezoo", "numpy", "pillow", "onnxruntime", "torch", "onnx"))
    return facts
