"""``zoo export --trt`` as a person types it: linted, typed, built for real by TensorRT-RTX, or left to the device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from zoo.bundle import open_bundle
from zoo.runtime.tensorrt import api

Zoo = Callable[..., "subprocess.CompletedProcess[str]"]

needs_rtx = pytest.mark.skipif(
    api.find("tensorrt-rtx") is None,
    reason="needs TensorRT-RTX, whose parser and builder are asked: pip install tensorrt-rtx",
)


def zoo(*words: object, code: str = "") -> subprocess.CompletedProcess[str]:
    """``zoo`` in a process of its own; ``code`` is run before, to take something away."""
    start = f"{code}\nimport sys\nfrom zoo.cli import main\nsys.argv = ['zoo', *sys.argv[1:]]\nmain()"
    return subprocess.run([sys.executable, "-c", start, *(str(w) for w in words)], capture_output=True, text=True)


WITHOUT_LIBRARY = "import sys; sys.modules.update({'tensorrt': None, 'tensorrt_rtx': None})"


@pytest.fixture(scope="module")
def built(lenet_checkpoint: Path, grey_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if api.find("tensorrt-rtx") is None:
        pytest.skip("needs TensorRT-RTX: pip install tensorrt-rtx")
    out = tmp_path_factory.mktemp("trt") / "digits"
    words = [
        "export",
        lenet_checkpoint,
        "--to",
        "onnx,tensorrt",
        "--precision",
        "fp32,fp16,int8",
        "--data",
        grey_digits,
    ]
    done = zoo(*words, "--batch", "1:4:16", "--threads", 1, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TensorRT-RTX" in done.stderr
    assert "this CPU" in done.stderr
    return out


def test_one_bundle_holds_an_artefact_for_each_target(built: Path) -> None:
    with open_bundle(built) as bundle:
        assert bundle.check_files() == []
        artifacts = bundle.artifacts
        statements = bundle.manifest["parity"]["statements"]
    assert set(artifacts) == {"fp32", "fp16", "int8", "tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8"}
    assert artifacts["fp32"].status == "verified"
    assert any("executed the very graphs" in text for text in statements)
    for name, entry in artifacts.items():
        if not name.startswith("tensorrt"):
            assert not entry.build
            continue
        assert entry.status == "built", "nothing that did not run on a GPU is verified"
        assert entry.verified_on == ""
        assert entry.gates["latency"] == "not judged"
        assert {entry.gates[gate] for gate in ("numbers", "accuracy", "lint", "precision", "build")} == {"pass"}
        assert entry.build["profiles"] == {"image": [[1, 1, 28, 28], [4, 1, 28, 28], [16, 1, 28, 28]]}
        (engine,) = entry.build["engines"]
        assert engine["flavour"] == "tensorrt-rtx"
        assert engine["file"] == f"model.{entry.precision}.tensorrt-rtx.engine"
        assert not engine["gpu"]


def test_every_layer_says_what_it_was_asked_for_and_what_it_is(built: Path) -> None:
    with open_bundle(built) as bundle:
        for precision in ("fp32", "fp16", "int8"):
            layers = bundle.artifact(f"tensorrt-{precision}").notes["layers"]
            assert len(layers) == 5
            assert {x["requested"] for x in layers} == {precision}
            assert {x["built"] for x in layers} == {None}, "a CPU cannot look into an engine"
            assert sum(x["graph"] == precision for x in layers) >= 3
            assert all(x["module"] for x in layers)


def test_two_forms_of_int8_for_two_targets(built: Path) -> None:
    """CPUs take uint8 with a zero point; TensorRT takes symmetric int8 and no quantised bias."""
    with open_bundle(built) as bundle:
        cpu, gpu = (onnx.load(bundle.open_file(bundle.artifact(n).file)) for n in ("int8", "tensorrt-int8"))
        assert bundle.artifact("fp32").file == bundle.artifact("tensorrt-fp32").file, (
            "one file where one graph serves both"
        )
    kinds = {i.data_type for i in gpu.graph.initializer}
    assert onnx.TensorProto.UINT8 not in kinds
    assert onnx.TensorProto.INT32 not in {i.data_type for i in gpu.graph.initializer if "bias" in i.name}
    assert onnx.TensorProto.UINT8 in {i.data_type for i in cpu.graph.initializer}


def test_the_graph_runs_where_there_is_no_gpu(built: Path, grey_digits: Path) -> None:
    photo = next((grey_digits / "val").rglob("*.png"), None) or next(grey_digits.rglob("*.png"))
    done = zoo("run", built, photo, "--artifact", "tensorrt-fp16", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_defer_builds_nothing(lenet_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "deferred"
    words = ["export", lenet_checkpoint, "--trt", "--precision", "fp16", "--defer", "--out", out]
    done = zoo(*words, code=WITHOUT_LIBRARY)
    assert done.returncode == 0, done.stderr
    with open_bundle(out) as bundle:
        entry = bundle.artifact("tensorrt-fp16")
    assert entry.status == "prepared"
    assert entry.build["engines"] == []
    assert entry.gates["build"] == "not judged"
    assert entry.gates["lint"] == "pass"
    assert f"zoo build {out}" in done.stdout


def test_what_cannot_be_built_is_said_before_the_slow_work(lenet_checkpoint: Path, tmp_path: Path) -> None:
    code = WITHOUT_LIBRARY + "; import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    done = zoo("export", lenet_checkpoint, "--trt", "--out", tmp_path / "out", code=code)
    assert done.returncode == 2
    assert "pip install tensorrt" in done.stderr
    assert "--defer" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout.strip() == "False", "torch was imported before"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "tensorrt:7.2"], "not supported"),
        (["--to", "tensort"], "tensorrt"),
        (["--to", "tensorrt,tensorrt-rtx"], "once"),
        (["--trt", "--precision", "fp15"], "fp16"),
        (["--trt", "--batch", "8:4:1"], "rising"),
        (["--trt", "--batch", "many"], "least:usual:largest"),
        (["--trt", "--size", "64:32:128"], "rising"),
        (["--trt", "--size", "64:128"], "least:usual:largest"),
        (["--trt", "--calibrator", "magic"], "entropy"),
    ],
)
def test_what_is_misspelt_is_said_with_its_cure(words: list[str], said: str, tmp_path: Path) -> None:
    done = zoo("export", "lenet", "--weights", "none", "--defer", "--out", tmp_path / "out", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_range_of_sizes_is_for_segmenters(tmp_path: Path) -> None:
    done = zoo(
        "export", "lenet", "--weights", "none", "--trt", "--defer", "--size", "28:32:64", "--out", tmp_path / "out"
    )
    assert done.returncode == 2
    assert "segmenter" in done.stderr


@needs_rtx
def test_a_segmenter_takes_a_range_of_sizes(tmp_path: Path) -> None:
    out = tmp_path / "maps"
    words = ["--weights", "none", "--trt", "--precision", "fp32,fp16", "--size", "32:64:96", "--batch", "2"]
    done = zoo("export", "unet", "--option", "encoder=test_efficientnet", *words, "--threads", 1, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    with open_bundle(out) as bundle:
        assert bundle.input.shape[1:] == (64, 64)
        for entry in bundle.artifacts.values():
            assert entry.build["profiles"]["image"] == [[1, 3, 32, 32], [2, 3, 64, 64], [2, 3, 96, 96]]
            assert entry.status == "built"


@needs_rtx
def test_an_interrupted_build_leaves_the_old_bundle(lenet_checkpoint: Path, tmp_path: Path) -> None:
    """Ctrl-C while the engine is being built: 130, the bundle that was there stays as it was, and nothing lies beside it."""
    out = tmp_path / "out"
    done = zoo("export", lenet_checkpoint, "--trt", "--defer", "--out", out)
    assert done.returncode == 0, done.stderr
    before = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    slow = (
        "import time\nimport zoo.runtime.tensorrt.building as engines\n"
        "def build_engine(*a, **k):\n    print('BUILDING', flush=True)\n    time.sleep(60)\n"
        "engines.build_engine = build_engine"
    )
    start = f"{slow}\nimport sys\nfrom zoo.cli import main\nsys.argv = ['zoo', *sys.argv[1:]]\nmain()"
    words = ["export", str(lenet_checkpoint), "--trt", "--overwrite", "--out", str(out)]
    child = subprocess.Popen(
        [sys.executable, "-c", start, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that starts things in the background has Ctrl-C ignored in them
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert child.stdout is not None
    while "BUILDING" not in (line := child.stdout.readline()):
        assert line, child.stderr.read() if child.stderr else ""
    time.sleep(0.2)
    os.kill(child.pid, signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 130
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@needs_rtx
def test_what_onnx_runtime_does_not_execute_is_built_all_the_same(
    lenet_checkpoint: Path, grey_digits: Path, tmp_path: Path
) -> None:
    """bfloat16 has no kernels on the CPU, and Q/DQ beside half precision is optimised into another network there: both are
    judged by what computes the same, and the bundle's self-test holds on this machine."""
    out = tmp_path / "digits"
    words = ["export", lenet_checkpoint, "--trt", "--precision", "bf16,mixed", "--data", grey_digits, "--out", out]
    done = zoo(*words, "--threads", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    with open_bundle(out) as bundle:
        bf16, mixed = (bundle.artifact(f"tensorrt-{p}") for p in ("bf16", "mixed"))
    assert (bf16.status, mixed.status) == ("built", "built")
    assert sum(x["graph"] == "bf16" for x in bf16.notes["layers"]) >= 3
    assert {x["graph"] for x in mixed.notes["layers"]} <= {"int8", "fp16", "fp32"}
    assert mixed.notes["plan"]
    done = zoo("selftest", out)
    assert done.returncode == 0, done.stdout
    assert "nothing on this machine executes it" in done.stdout
    assert zoo("verify", out, "--data", grey_digits, "--artifact", "tensorrt-mixed").returncode == 0
