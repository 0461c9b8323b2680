"""What the machine is said to be, from the driver's own tools: a fake of each stands on PATH and is really run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo import machine

Tool = Callable[[str, str], None]

ALL = ",".join(machine._FIELDS)
"""What a present-day nvidia-smi is asked."""

DISCRETE = "NVIDIA GeForce RTX 4090, 570.86.15, 8.9, 24564 MiB, P2, 2520 MHz, 3105 MHz, 10251 MHz, 10501 MHz, 301.25 W, 450.00 W, 61\n"
SHARED = (
    "NVIDIA H100 80GB HBM3, 550.90.07, 9.0, 81559 MiB, P0, 1980 MHz, 1980 MHz, 2619 MHz, 2619 MHz, [N/A], [N/A], 34\n"
)
ORIN = "Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n"
L4T = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Writes an executable that is the only one of its name on PATH."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")

    def write(name: str, body: str) -> None:
        file = place / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)

    return write


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty file system in place of this machine's."""
    place = tmp_path / "root"
    place.mkdir()
    monkeypatch.setattr(machine, "ROOT", place)
    return place


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def smi(answers: dict[str, str], otherwise: str) -> str:
    """A nvidia-smi that answers the queries for these fields alone."""
    cases = "".join(f"  --query-gpu={fields})\n    printf '%s' '{text}' ;;\n" for fields, text in answers.items())
    return f"case \"$1\" in\n{cases}  *)\n    echo '{otherwise}'; exit 2 ;;\nesac"


def test_a_discrete_gpu(tool: Tool) -> None:
    tool("nvidia-smi", smi({ALL: DISCRETE}, "unexpected"))
    (gpu,) = machine.gpus()
    assert gpu == {
        "name": "NVIDIA GeForce RTX 4090",
        "driver": "570.86.15",
        "compute_capability": "8.9",
        "memory_mib": 24564,
        "pstate": "P2",
        "sm_mhz": 2520,
        "sm_max_mhz": 3105,
        "memory_mhz": 10251,
        "memory_max_mhz": 10501,
        "power_w": 301.25,
        "power_limit_w": 450.0,
        "temperature_c": 61,
    }


def test_what_the_driver_does_not_tell_is_left_out(tool: Tool) -> None:
    tool("nvidia-smi", smi({ALL: SHARED + DISCRETE}, "unexpected"))
    shared, discrete = machine.gpus()
    assert "power_w" not in shared and "power_limit_w" not in shared
    assert shared["sm_mhz"] == 1980
    assert discrete["power_limit_w"] == 450.0


def test_an_old_driver_that_does_not_know_a_field_answers_the_rest(tool: Tool) -> None:
    old = smi(
        {"name,driver_version,memory.total": "Tesla T4, 418.67, 15079 MiB\n"},
        'Field "compute_cap" is not a valid field to query.',
    )
    tool("nvidia-smi", old)
    assert machine.gpus() == [{"name": "Tesla T4", "driver": "418.67", "memory_mib": 15079}]


def test_a_driver_that_is_not_loaded_is_told_of(tool: Tool) -> None:
    fault = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver, sorry."
    tool("nvidia-smi", f"echo '{fault}'; exit 9")
    assert machine.gpus() == []
    assert machine.driver_fault() == fault
    tool("nvidia-smi", smi({ALL: DISCRETE}, "unexpected"))
    assert machine.driver_fault() == ""


@pytest.mark.parametrize(
    "body", ["exit 0", "printf '\\377\\376,\\n,,\\n'", "echo No devices were found; exit 6", "kill -9 $$"]
)
def test_rubbish_gives_nothing(body: str, tool: Tool) -> None:
    tool("nvidia-smi", body)
    assert machine.gpus() == []


def test_a_tool_that_hangs_is_not_waited_for(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "TIMEOUT_S", 0.2)
    tool("nvidia-smi", "exec sleep 60")
    began = time.perf_counter()
    assert machine.gpus() == []
    assert time.perf_counter() - began < 5


def test_a_file_that_is_no_program_gives_nothing(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "bin" / "nvidia-smi").write_bytes(b"\0\1\2")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    assert machine.gpus() == []


def test_without_any_tool(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []
    assert machine.jetson() == {}
    assert machine.clocks() == {}
    assert machine.driver_fault() == ""
    assert not {"gpus", "jetson", "governor", "board"} & set(machine.machine())


def test_a_jetson(tool: Tool, root: Path) -> None:
    gpu = "sys/class/devfreq/17000000.gpu"
    put(
        root,
        {
            "etc/nv_tegra_release": L4T,
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
            f"{gpu}/cur_freq": "1300500000\n",
            f"{gpu}/max_freq": "1301000000\n",
            "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        },
    )
    tool("nvidia-smi", smi({ALL: ORIN}, "unexpected"))
    tool("nvpmodel", "printf 'NV Power Mode: MAXN\\n0\\n'")
    tool("dpkg-query", "printf 'nvidia-jetpack 6.2+b77\\nlibnvinfer-bin 10.3.0.30-1+cuda12.5\\n'; exit 1")
    assert machine.jetson() == {
        "board": "NVIDIA Jetson AGX Orin Developer Kit",
        "l4t": "36.4.3",
        "jetpack": "6.2+b77",
        "tensorrt": "10.3.0.30-1+cuda12.5",
        "power_mode": "MAXN",
        "gpu_mhz": 1300,
        "gpu_max_mhz": 1301,
    }
    facts = machine.machine()
    assert facts["gpus"] == [{"name": "Orin (nvgpu)", "driver": "540.4.0"}]
    assert facts["jetson"]["power_mode"] == "MAXN"
    json.dumps(facts)
    # nvidia-smi of a Jetson tells no clocks: the kernel does
    assert machine.clocks() == {"gpus": [{"sm_mhz": 1300}], "power_mode": "MAXN", "governor": "schedutil"}


def test_an_older_jetson_without_packages_or_rights(tool: Tool, root: Path) -> None:
    put(
        root,
        {
            "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64\n",
            "sys/class/devfreq/57000000.gpu/cur_freq": "not a number\n",
        },
    )
    tool("nvpmodel", "echo 'NVPM ERROR: need root' >&2; exit 255")
    tool("dpkg-query", "exit 2")
    assert machine.jetson() == {"l4t": "32.7.1"}


def test_other_arm_boards_are_no_jetsons(tool: Tool, root: Path) -> None:
    put(root, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    tool("nvpmodel", "echo 'NV Power Mode: MAXN'")
    assert machine.jetson() == {}
    assert machine.machine()["board"] == "Raspberry Pi 5 Model B Rev 1.0"


def test_clocks_of_a_discrete_gpu(tool: Tool, root: Path) -> None:
    tool("nvidia-smi", smi({ALL: DISCRETE}, "unexpected"))
    (now,) = machine.clocks()["gpus"]
    assert now == {"sm_mhz": 2520, "memory_mhz": 10251, "power_w": 301.25, "temperature_c": 61, "pstate": "P2"}


def test_it_needs_no_numpy() -> None:
    code = (
        "import sys, zoo.machine as m; m.machine(); print([n for n in ('numpy', 'torch', 'onnx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"
