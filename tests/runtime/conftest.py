"""A GPU for tests: the fake one everywhere, the machine's own for tests marked ``gpu``."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from zoo import specs
from zoo.files import dump_json, sha256_file


def _load(path: Path) -> ModuleType:
    name = f"zoo_tests_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


pretending = _load(Path(__file__).parents[1] / "fakes" / "pretending.py")


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake CUDA driver, compiled."""
    return pretending.compile_driver(tmp_path_factory.mktemp("driver"))  # type: ignore[no-any-return]


@pytest.fixture
def fake_gpu(fake_driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """This process and its children see a fake GPU; at the end nothing may be left on it."""
    from zoo.runtime.tensorrt import cuda

    gpu = pretending.plug_in(monkeypatch, fake_driver)
    yield gpu
    gc.collect()
    assert gpu.live() == {}, "something was left on the GPU"
    cuda.driver.cache_clear()


@pytest.fixture
def fake_tensorrt(fake_gpu: Any, fake_driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A fake GPU, and the fake ``tensorrt`` 10.3.0 beside it."""
    pretending.install_tensorrt(monkeypatch, fake_driver)
    specs._importable.cache_clear()
    yield fake_gpu
    specs._importable.cache_clear()


PROFILES = {"image": [[1, 3, 16, 16], [2, 3, 16, 16], [4, 3, 16, 16]]}


@pytest.fixture
def tensorrt_bundle(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small bundle with its fp32 graph once more as a TensorRT artefact, which is the default; an empty cache."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    shutil.copy(tiny_bundle / "model.fp32.onnx", tiny_bundle / "model.fp32.tensorrt.onnx")
    with np.load(tiny_bundle / "golden.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays |= {name.replace("fp32/", "tensorrt-fp32/"): value for name, value in arrays.items() if "/" in name}
    np.savez_compressed(tiny_bundle / "golden.npz", **arrays)
    manifest = json.loads((tiny_bundle / "zoo.json").read_text())
    entry = {
        "name": "tensorrt-fp32",
        "format": "tensorrt",
        "precision": "fp32",
        "file": "model.fp32.tensorrt.onnx",
        "status": "prepared",
        "build": {"profiles": PROFILES, "flags": {"tf32": False}, "workspace_bytes": None, "engines": []},
    }
    manifest["artifacts"].append(entry)
    manifest["default"] = "tensorrt-fp32"
    for sample in manifest["golden"]["samples"]:
        sample["results"]["tensorrt-fp32"] = sample["results"]["fp32"]
    seal(tiny_bundle, manifest)
    return tiny_bundle


def seal(bundle: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the sizes and hashes of the files as they are now."""
    files = (p for p in sorted(bundle.rglob("*")) if p.is_file() and p.name != "zoo.json")
    manifest["files"] = {
        p.relative_to(bundle).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files
    }
    dump_json(bundle / "zoo.json", manifest)
