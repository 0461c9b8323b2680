"""`zoo doctor` on this machine, and on machines with something wrong."""

from __future__ import annotations

import json

import pytest

from zoo.cli import doctor
from zoo.registry import Registry
from zoo.specs import Exporter


def test_on_this_machine(zoo) -> None:
    found = json.loads(zoo("doctor", "--json").stdout)
    assert {a["verb"] for a in found["abilities"]} >= {"train", "export", "run"}
    assert found["packages"]["numpy"]
    assert found["cpu"]["cores"] >= 1
    assert found["architectures"] > 1000
    text = zoo("doctor").stdout
    assert "onnx with onnxruntime" in text
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
    assert by_what["onnx to npu"]["missing"] == ["no_such_compiler"]
    assert by_what["onnx to npu"]["install"] == "pip install no-such-compiler"
    assert by_what["onnx to rtx"]["install"] == "pip install rtx"
    assert by_what["fine-tune and evaluate"]["missing"] == ["torch", "lightning"]
    assert by_what["fine-tune and evaluate"]["install"] == "pip install 'edgezoo[train]'"
    assert by_what["onnx with onnxruntime"]["missing"] == []
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
