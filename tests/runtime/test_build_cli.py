"""``zoo build`` and ``zoo run`` as a user types them: on a fake GPU with a fake TensorRT, and where there is neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zoo.parity.evidence import natural_images
from zoo.runtime.tensorrt import cuda

Zoo = Callable[..., Any]

without_gpu = pytest.mark.skipif(not cuda.probe(), reason="this machine has an NVIDIA GPU")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(natural_images(1, 40, 50, seed=2)[0]).save(path)
    return path


def test_engines_are_built_proved_and_listed(
    fake_tensorrt: Any, zoo: Zoo, tensorrt_bundle: Path, tmp_path: Path
) -> None:
    done = zoo("build", tensorrt_bundle)
    assert "tensorrt-fp32: TensorRT builds the engine" in done.stderr
    header, _, row = done.stdout.splitlines()
    assert header.split() == [
        *("artefact", "library", "GPU", "from", "s", "MB", "layers", "golden", "vectors", "engine"),
    ]
    assert row.startswith("tensorrt-fp32  tensorrt 10.3.0  Fake GPU  built")
    assert "  2 fp32  pass  " in row
    engine = Path(row.split("  ")[-1].strip())
    assert engine.is_file()
    assert engine.parent == tmp_path / "cache" / "engines"
    again = json.loads(zoo("build", tensorrt_bundle, "--json").stdout)["engines"]
    assert [(r["artifact"], r["origin"], r["engine"]) for r in again] == [("tensorrt-fp32", "cache", str(engine))]
    assert again[0]["layers"] == {"fp32": 2}
    assert again[0]["driver"].startswith("CUDA 12.6")
    forced = json.loads(zoo("build", tensorrt_bundle, "--json", "--force", "--artifact", "tensorrt-fp32").stdout)
    assert forced["engines"][0]["origin"] == "built"


def test_an_engine_that_fails_the_golden_vectors_is_exit_code_2(
    fake_tensorrt: Any, zoo: Zoo, tensorrt_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "wrong")
    done = zoo("build", tensorrt_bundle, check=2)
    assert "FAIL" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(
        "zoo: error: the engine that TensorRT 10.3.0 built on Fake GPU is not"
    )
    rows = json.loads(zoo("build", tensorrt_bundle, "--json", check=2).stdout)["engines"]
    assert "it fails the golden vectors" in rows[0]["error"] or "failed on Fake GPU" in rows[0]["error"]


@without_gpu
def test_without_a_gpu_it_says_what_is_missing(zoo: Zoo, tensorrt_bundle: Path) -> None:
    done = zoo("build", tensorrt_bundle, check=2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("zoo: error: no engine can be built on this machine: no NVIDIA driver is installed")
    one = zoo("build", tensorrt_bundle, "--runtime", "tensorrt", check=2).stderr
    assert "pip install tensorrt (on a Jetson it comes with JetPack)" in one


def test_what_has_no_engines_is_refused(zoo: Zoo, tensorrt_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert (
        "artefact fp32 is onnx: only TensorRT artefacts"
        in zoo("build", tensorrt_bundle, "--artifact", "fp32", check=2).stderr
    )
    assert "has no artefact 'x': it has" in zoo("build", tensorrt_bundle, "--artifact", "x", check=2).stderr
    manifest = json.loads((tiny_bundle / "zoo.json").read_text())
    manifest["artifacts"], manifest["default"] = manifest["artifacts"][:1], "fp32"
    (tiny_bundle / "zoo.json").write_text(json.dumps(manifest))
    assert "has no TensorRT artefact: `zoo export" in zoo("build", tiny_bundle, check=2).stderr
    assert "no such file" in zoo("build", tmp_path / "none", check=2).stderr


def test_help_has_examples(zoo: Zoo) -> None:
    assert "zoo build photos.zoo --artifact tensorrt-fp16 --force" in zoo("build", "--help").stdout
    assert "Build a bundle's TensorRT engines on this device" in zoo("--help").stdout


def test_run_says_that_the_engine_ran(fake_tensorrt: Any, zoo: Zoo, tensorrt_bundle: Path, photo: Path) -> None:
    done = zoo("run", tensorrt_bundle, photo, "--json")
    assert "tensorrt-fp32 runs in tensorrt on Fake GPU (TensorRT 10.3.0, CUDA 12.6" in done.stderr
    answer = json.loads(done.stdout)
    assert answer["runtime"] == "tensorrt"
    assert "lost" not in answer
    plain = json.loads(zoo("run", tensorrt_bundle, photo, "--json", "--runtime", "onnxruntime").stdout)
    assert plain["runtime"] == "onnxruntime"
    assert plain["label"] == answer["label"]


def test_run_says_why_the_engine_did_not(
    fake_tensorrt: Any, zoo: Zoo, tensorrt_bundle: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "crash")
    done = zoo("run", tensorrt_bundle, photo, "--json")
    assert "tensorrt-fp32 runs in onnxruntime on CPU" in done.stderr
    assert "  not in tensorrt: TensorRT: the builder crashed on this graph (SIGSEGV)" in done.stderr
    answer = json.loads(done.stdout)
    assert answer["runtime"] == "onnxruntime"
    assert "crashed" in answer["lost"]["tensorrt"]
    insisted = zoo("run", tensorrt_bundle, photo, "--runtime", "tensorrt", check=2)
    assert insisted.stderr.splitlines()[-1].startswith(
        "zoo: error: TensorRT: the builder crashed on this graph (SIGSEGV)"
    )


@without_gpu
def test_run_without_a_gpu(zoo: Zoo, tensorrt_bundle: Path, photo: Path) -> None:
    done = zoo("run", tensorrt_bundle, photo)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("tensorrt-fp32 runs in onnxruntime on CPU (onnxruntime")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  not in tensorrt",
        "  not in tensorrt-rtx",
        "  not in onnxruntime-tensorrt",
        "  not in onnxruntime-cuda",
    ]
    refused = zoo("run", tensorrt_bundle, photo, "--runtime", "onnxruntime-cuda", check=2).stderr
    assert "runtime onnxruntime-cuda does not run on this machine: no NVIDIA driver is installed" in refused
    plain = zoo("run", tensorrt_bundle, photo, "--artifact", "fp32")
    assert plain.stderr == "", "an ONNX artefact runs where it always does: nothing to tell"


def test_the_selftest_replays_in_the_engine_and_tells_what_was_lost(
    fake_tensorrt: Any, zoo: Zoo, tensorrt_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = zoo("selftest", tensorrt_bundle)
    assert "Fake GPU (TensorRT 10.3.0" in done.stdout
    monkeypatch.setenv("FAKE_GPU_COUNT", "0")
    done = zoo("selftest", tensorrt_bundle, "--json")
    assert "tensorrt: not in tensorrt: the NVIDIA driver sees no GPU" in done.stderr
    assert json.loads(done.stdout)["lost"]["tensorrt"]["tensorrt"] == "the NVIDIA driver sees no GPU"
