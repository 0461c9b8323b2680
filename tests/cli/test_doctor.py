"""`zoo doctor` on this machine, and on machines with something wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoo.cli import doctor
from zoo.registry import Registry
from zoo.specs import Exporter, Runtime

FAKES = Path(__file__).parents[1] / "fakes"


def test_on_this_machine(zoo) -> None:
    found = json.loads(zoo("doctor", "--json").stdout)
    assert {a["verb"] for a in found["abilities"]} >= {"train", "export", "run"}
    assert found["packages"]["numpy"]
    assert found["cpu"]["cores"] >= 1
    assert found["architectures"] > 1000
    text = zoo("doctor").stdout
    assert "with onnxruntime" in text
    assert "TensorRT-RTX engines" in text
    assert found["cpu"]["name"] in text


def test_mismatched_torch_and_torchvision() -> None:
    requires = ["numpy", "torch==2.15.0", "pillow"]
    good = {"torch": "2.15.0", "torchvision": "0.29.2"}
    assert doctor.mismatches(good, requires) == []
    (problem,) = doctor.mismatches({**good, "torch": "2.14.1"}, requires)
    assert "made for torch 2.15.0, but torch 2.14.1" in problem
    assert "pip install torch==2.15.0" in problem
    # a CPU-only torch beside the registry's torchvision installs without an error, and then its import dies
    (problem,) = doctor.mismatches({**good, "torch": "2.15.0+cpu"}, requires)
    assert "different builds" in problem
    assert doctor.mismatches({"torch": "2.15.0+cpu", "torchvision": "0.29.2+cpu"}, requires) == []
    assert doctor.mismatches({"torch": "2.15.0"}, requires) == []


def test_both_onnxruntimes() -> None:
    (problem,) = doctor.mismatches({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}, [])
    assert "overwrite each other" in problem


def test_what_is_missing_comes_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class plugin:
        @staticmethod
        def zoo_register():
            return [
                Exporter(
                    name="npu", summary="", load="a:b", reads="onnx", writes="npu", requires=("no_such_compiler",)
                ),
                Exporter(
                    name="rtx",
                    summary="",
                    load="a:b",
                    reads="onnx",
                    writes="rtx",
                    requires=("no_such_rtx",),
                    install="pip install rtx",
                ),
            ]

    registry = Registry(discover=False)
    registry.add("test", plugin)
    monkeypatch.setattr(doctor, "get_registry", lambda: registry)
    here = lambda names: {n: "1.0" for n in names if n not in ("torch", "lightning")}  # noqa: E731
    monkeypatch.setattr(doctor.machine, "versions", here)
    found = doctor.examine()
    by_what = {a["what"]: a for a in found["abilities"]}
    assert by_what["onnx to npu"]["usable"] is False
    assert by_what["onnx to npu"]["missing"] == ["no_such_compiler"]
    assert by_what["onnx to npu"]["install"] == "pip install no-such-compiler"
    assert by_what["onnx to rtx"]["install"] == "pip install rtx"
    assert by_what["fine-tune and evaluate"]["missing"] == ["torch", "lightning"]
    assert by_what["fine-tune and evaluate"]["install"] == "pip install 'edgezoo[train]'"
    (own,) = [a for what, a in by_what.items() if what.endswith(" with onnxruntime")]
    assert own["missing"] == [] and own["usable"] is True
    assert any("no plugin brings an architecture" in p for p in found["problems"])


def test_a_broken_plugin_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    class plugin:
        @staticmethod
        def zoo_register():
            raise RuntimeError("the licence server is down")

    registry = Registry(discover=False)
    registry.add("test", plugin)
    monkeypatch.setattr(doctor, "get_registry", lambda: registry)
    assert any("licence server is down" in p for p in doctor.examine()["problems"])


# -- GPUs and what runs on them ----------------------------------------------------------------------------------


def put_tool(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_a_gpu_is_told_with_its_driver(zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "NVIDIA L4, 570.86.15, 8.9, 23034 MiB, P8, 210 MHz, 2040 MHz, 405 MHz, 6251 MHz, 12.59 W, 72.00 W, 31"
    put_tool(tmp_path / "bin", "nvidia-smi", f"echo '{line}'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    said = zoo("doctor").stdout
    told = "NVIDIA L4, driver 570.86.15, 23034 MiB, compute capability 8.9, 210 of 2040 MHz, 72 W at most"
    assert f"GPU  {told}" in said


def test_a_driver_that_does_not_answer_is_told(zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."
    put_tool(tmp_path / "bin", "nvidia-smi", f"echo '{fault}'; exit 9")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert f"GPU  none seen: nvidia-smi says: {fault}" in zoo("doctor").stdout


def put_module(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, source: str) -> None:
    """In children, ``import NAME`` gives a module of this source; here it is only found."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))


PROBES = """
import os, sys, time

def fine(): return ""
def unfit(): return "no NPU is in this machine"
def broken(): raise OSError("libnpu.so.1: cannot open shared object file")
def noisy(): print("zoo: hello"); os.write(1, b"and more\\n"); return "nothing here"
def dies(): os.abort()
def hangs(): time.sleep(60)
"""


def test_runtimes_that_cannot_run_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_module(monkeypatch, tmp_path, "zoo_test_npu", PROBES)
    names = ("fine", "unfit", "broken", "noisy", "dies", "hangs", "nowhere", "unfit2")

    class plugin:
        @staticmethod
        def zoo_register():
            return [
                Runtime(name=n, summary="", load="a:b", reads=("npu",), probe=f"zoo_test_npu:{n.strip('2')}")
                for n in names
            ]

    registry = Registry(discover=False)
    registry.add("test", plugin)
    monkeypatch.setattr(doctor, "get_registry", lambda: registry)
    monkeypatch.setattr(doctor, "PATIENCE_S", 6.0)
    told = {a["what"]: (a["usable"], a["why"]) for a in doctor.examine()["abilities"]}
    assert told["npu with fine"] == (True, "")
    assert told["npu with unfit"] == (False, "no NPU is in this machine")
    assert told["npu with broken"] == (False, "asking failed: libnpu.so.1: cannot open shared object file")
    assert told["npu with noisy"] == (False, "nothing here")
    assert told["npu with dies"] == (False, "looking for it ends the process (exit code -6)")
    assert told["npu with hangs"] == (False, "looking for it did not end within 6 s")
    assert "has no attribute 'nowhere'" in told["npu with nowhere"][1]
    assert told["npu with unfit2"] == told["npu with unfit"]


def builder(flavour: str) -> str:
    return doctor.ask({flavour: doctor.BUILDERS[flavour]})[flavour]


def test_tensorrt_without_a_gpu_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    monkeypatch.delenv("FAKE_LIBCUDA", raising=False)
    assert builder("tensorrt") == "TensorRT 10.3.0 makes no builder: it needs an NVIDIA GPU and its driver"


def test_bindings_without_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
    put_module(monkeypatch, tmp_path, "tensorrt", source)
    assert "cannot be loaded (libnvinfer.so.10: cannot open shared object file)" in builder("tensorrt")


def test_tensorrt_rtx_builds_on_a_cpu() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert builder("tensorrt-rtx") == ""
