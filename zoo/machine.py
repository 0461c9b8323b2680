"""Facts about this machine, without numpy: what a figure must carry to mean anything, and what `zoo doctor` tells."""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["clocks", "cores", "cpu", "driver_fault", "gpus", "jetson", "machine", "versions"]

TIMEOUT_S = 5.0
"""How long a tool of the driver may take to answer: it hangs where the GPU is wedged."""

ROOT = Path("/")
"""Where the system's files lie; tests put their own there."""

DISTRIBUTIONS = (
    "edgezoo", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "torch", "onnx", "tensorrt", "tensorrt-rtx",
)  # fmt: skip


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
    """What a figure must carry to mean anything: processor, cores, governor, GPUs with driver, clocks and power limit,
    a Jetson's release and power mode, system and versions. JSON-ready; what is not there is left out.

    Asks the driver's tools, so it may take some tenths of a second where there is a GPU.
    """
    facts: dict[str, Any] = {
        "processor": cpu()[0],
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    governor = _read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor:
        facts["governor"] = governor
    board = _read("proc/device-tree/model")
    if board:
        facts["board"] = board
    facts |= {key: value for key, value in (("gpus", gpus()), ("jetson", jetson())) if value}
    facts["versions"] = versions(DISTRIBUTIONS)
    return facts


def clocks() -> dict[str, Any]:
    """The clocks and the power mode at this moment, for a figure that was just measured: ``gpus`` (one object each, as
    far as known: ``sm_mhz``, ``memory_mhz``, ``power_w``, ``temperature_c``, ``pstate``), ``power_mode`` of a Jetson,
    ``governor`` of the CPU. Empty where nothing tells. JSON-ready.
    """
    moving = ("sm_mhz", "memory_mhz", "power_w", "temperature_c", "pstate")
    now = [{k: gpu[k] for k in moving if k in gpu} for gpu in gpus()]
    board = jetson()
    if "gpu_mhz" in board and not any("sm_mhz" in gpu for gpu in now):
        now = [{"sm_mhz": board["gpu_mhz"]}]
    found: dict[str, Any] = {"gpus": now} if any(now) else {}
    if "power_mode" in board:
        found["power_mode"] = board["power_mode"]
    governor = _read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {**found, "governor": governor} if governor else found


# -- NVIDIA's GPUs ---------------------------------------------------------------------------------------------

_FIELDS = {
    "name": "name",
    "driver_version": "driver",
    "compute_cap": "compute_capability",
    "memory.total": "memory_mib",
    "pstate": "pstate",
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "clocks.mem": "memory_mhz",
    "clocks.max.mem": "memory_max_mhz",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
}
"""What nvidia-smi is asked, and what it is called here."""
_ALWAYS = ("name", "driver_version", "memory.total")
"""What every version of it answers."""
_TEXTS = ("name", "driver", "compute_capability", "pstate")


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs that the driver's own tool reports; numbers have their unit in the name. What it does not know is
    left out ("[N/A]" of a Jetson's memory, of a shared card's power); empty where there is no tool or no answer.
    """
    for fields in (tuple(_FIELDS), _ALWAYS):  # one field that an old driver does not know, and it answers none
        said = _ask("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
        found = [_gpu(fields, row) for row in csv.reader(said.splitlines(), skipinitialspace=True)]
        if any(found):
            return [gpu for gpu in found if gpu]
    return []


def driver_fault() -> str:
    """What nvidia-smi complains of where it is there and names no GPU; empty where all is well, or nothing is there."""
    lines = [] if gpus() else _ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    return next((line.strip() for line in lines if line.strip()), "")


def _gpu(fields: Sequence[str], row: Sequence[str]) -> dict[str, Any]:
    """One line of nvidia-smi; empty where it is no such line but a complaint."""
    if len(row) != len(fields):
        return {}
    found: dict[str, Any] = {}
    for field, text in zip(fields, (cell.strip() for cell in row), strict=True):
        key = _FIELDS[field]
        if not text or text.startswith("[") or text in ("N/A", "ERR!"):
            continue
        if key in _TEXTS:
            found[key] = text
        elif number := re.match(r"-?\d+(\.\d+)?", text):
            found[key] = float(number[0]) if number[1] else int(number[0])
    return found if "name" in found else {}


# -- Jetson ----------------------------------------------------------------------------------------------------

_L4T = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_PACKAGES = {"nvidia-jetpack": "jetpack", "tensorrt": "tensorrt", "libnvinfer-bin": "tensorrt"}
"""Debian packages whose version is asked, and what it tells."""


def jetson() -> dict[str, Any]:
    """Of a Jetson: ``board``, ``l4t``, ``jetpack``, ``tensorrt``, ``power_mode``, ``gpu_mhz``, ``gpu_max_mhz``, as far
    as they can be told without being root; empty on every other machine.
    """
    release = _L4T.search(_read("etc/nv_tegra_release"))
    board = _read("proc/device-tree/model")
    if release is None and "jetson" not in board.lower():
        return {}
    found: dict[str, Any] = {"board": board} if board else {}
    if release is not None:
        found["l4t"] = f"{release[1]}.{release[2]}"
    for line in _ask("dpkg-query", "--show", "--showformat=${Package} ${Version}\\n", *_PACKAGES).splitlines():
        package, _, version = line.partition(" ")
        if package in _PACKAGES and version:
            found.setdefault(_PACKAGES[package], version.strip())
    mode = re.search(r"NV Power Mode:\s*(\S.*)", _ask("nvpmodel", "-q"))
    if mode:
        found["power_mode"] = mode[1].strip()
    for key, file in (("gpu_mhz", "cur_freq"), ("gpu_max_mhz", "max_freq")):
        hertz = _gpu_clock(file)
        if hertz:
            found[key] = round(hertz / 1e6)
    return found


def _gpu_clock(file: str) -> int:
    """Hertz, from the kernel's frequency scaling: the GPU is ``gpu`` or, in older releases, ``gv11b``, ``ga10b``, …"""
    folder = ROOT / "sys/class/devfreq"
    with contextlib.suppress(OSError):
        for device in sorted(folder.iterdir()):
            if re.search(r"gpu|g[amvp]\d\d", device.name):
                text = _read(f"sys/class/devfreq/{device.name}/{file}")
                if text.isdigit():
                    return int(text)
    return 0


# -- asking ----------------------------------------------------------------------------------------------------


def _read(path: str) -> str:
    """A small file of the system's, empty where there is none."""
    try:
        return (ROOT / path).read_text("utf-8", "replace").strip("\0\n ")
    except OSError:
        return ""


def _ask(tool: str, *arguments: str) -> str:
    """What a tool prints, empty where it is absent, hangs, or has nothing to say."""
    found = shutil.which(tool)
    if found is None:
        return ""
    try:
        done = subprocess.run(
            [found, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
