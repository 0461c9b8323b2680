"""Building in a process of its own: with the real TensorRT-RTX on the CPU, and, for what goes wrong, with the fake TensorRT."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from zoo.errors import ExportError, MissingPart, OutputError
from zoo.files import sha256_file
from zoo.runtime.tensorrt import building
from zoo.runtime.tensorrt.api import find
from zoo.runtime.tensorrt.building import build_engine

PROFILES = {"image": [[1, 3, 16, 16], [2, 3, 16, 16], [4, 3, 16, 16]]}
F = TensorProto.FLOAT


def conv(kind: int = F, channels: int = 8) -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(channels, 3, 3, 3))
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["y"], name="conv")],
        "conv",
        [helper.make_tensor_value_info("image", kind, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(weight.astype(dtype), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def model() -> bytes:
    return conv().SerializeToString()  # type: ignore[no-any-return]


@pytest.fixture
def rtx() -> None:
    if find("tensorrt-rtx") is None:
        pytest.skip("tensorrt-rtx is not installed: pip install tensorrt-rtx (Linux x86-64, Windows)")


# -- with the real TensorRT-RTX


def test_an_engine_and_what_is_known_of_it(rtx: None, tmp_path: Path) -> None:
    onnx.save(conv(), tmp_path / "model.onnx")
    ballast = bytearray(b"x") * (1 << 30)  # this process's own memory is not the builder's
    out = tmp_path / "new" / "model.engine"
    told: list[str] = []
    facts = build_engine("tensorrt-rtx", tmp_path / "model.onnx", out, profiles=PROFILES, progress=told.append)
    assert facts["bytes"] == out.stat().st_size > 1000
    assert facts["sha256"] == sha256_file(out)
    assert facts["flavour"] == "tensorrt-rtx"
    assert facts["version"].startswith("1.")
    assert facts["typed"] == [["conv", "CONVOLUTION", "FLOAT"]]
    assert 0 < facts["seconds"] < 60
    assert 10e6 < facts["peak_memory_bytes"] < len(ballast)
    assert told == ["TensorRT-RTX builds the engine; this may take minutes"]
    if not facts["gpu"]:
        assert facts["built_on"] == "CPU"
        assert facts["built_precisions"] is None, "no GPU could load it"
    assert [p.name for p in out.parent.iterdir()] == ["model.engine"]


def test_bytes_and_half_floats(rtx: None, tmp_path: Path) -> None:
    data = conv(TensorProto.FLOAT16).SerializeToString()
    facts = build_engine("tensorrt-rtx", data, tmp_path / "e", profiles=PROFILES, flags={"tf32": True})
    assert facts["typed"] == [["conv", "CONVOLUTION", "HALF"]]


@pytest.mark.parametrize(
    ("data", "profiles", "says"),
    [
        (b"", PROFILES, "TensorRT-RTX: the model is empty"),
        (b"not a network", PROFILES, "TensorRT-RTX: .*(parse|proto)"),
        (None, {}, r"input 'image' is \?x3x16x16: give its least, usual and largest shape"),
        (None, {"image": [[1, 3, 32, 32]] * 3}, "1x3x32x32 does not fit"),
        (None, {"photo": PROFILES["image"]}, "unknown input 'photo'"),
    ],
)
def test_a_refusal_is_one_line_and_what_was_there_stays(
    rtx: None, tmp_path: Path, model: bytes, data: bytes | None, profiles: Any, says: str
) -> None:
    out = tmp_path / "old.engine"
    out.write_bytes(b"old")
    with pytest.raises(ExportError, match=says) as caught:
        build_engine("tensorrt-rtx", model if data is None else data, out, profiles=profiles)
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_real_builder_without_memory_says_so(rtx: None, tmp_path: Path) -> None:
    """The child inherits a limit of its address space that a network of 64 MB does not fit into."""
    resource = pytest.importorskip("resource")
    onnx.save(conv(channels=600_000), tmp_path / "large.onnx")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    code = (
        "import resource, sys; from pathlib import Path; from zoo.runtime.tensorrt.building import build_engine\n"
        "resource.setrlimit(resource.RLIMIT_AS, (700 << 20, resource.RLIM_INFINITY))\n"
        f"build_engine('tensorrt-rtx', Path(sys.argv[1]), Path(sys.argv[2]), profiles={PROFILES!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large.onnx"), str(tmp_path / "e")], capture_output=True, text=True
    )
    assert resource.getrlimit(resource.RLIMIT_AS) == (soft, hard)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("zoo.errors.ExportError: TensorRT-RTX: ")
    assert "not enough memory to build" in last
    assert not (tmp_path / "e").exists()


# -- with the fake


def test_on_a_gpu_the_facts_name_it_and_the_inspector_is_read(fake_tensorrt: Any, tmp_path: Path, model: bytes) -> None:
    timings = tmp_path / "timings.cache"
    for turn in range(2):
        facts = build_engine("tensorrt", model, tmp_path / "e", profiles=PROFILES, timing_cache=timings)
        assert timings.read_bytes() == b"10.3.0" + (turn + 1) * b"+", "each build learns from the one before"
    assert facts["gpu"] == facts["built_on"] == "Fake GPU"
    assert facts["compute_capability"] == "8.7"
    assert facts["driver"].startswith("CUDA 12.6")
    assert facts["built_precisions"] == {"conv": "fp32"}
    assert facts["layer_counts"] == {"fp32": 1}


@pytest.mark.parametrize(("asked", "limit"), [(None, 1 << 28), (1 << 20, 1 << 20)])
def test_where_memory_is_shared_a_kernel_gets_a_part_of_it(
    fake_tensorrt: Any, tmp_path: Path, model: bytes, asked: int | None, limit: int
) -> None:
    """The fake GPU is integrated and has 1 GiB; the library's own default is all there is."""
    build_engine("tensorrt", model, tmp_path / "e", profiles=PROFILES, workspace_bytes=asked)
    header = (tmp_path / "e").read_bytes().removeprefix(b"FAKE ENGINE ").partition(b"\n")[0]
    assert json.loads(header)["workspace"] == limit


def test_a_parser_that_crashes_takes_nobody_with_it(
    fake_tensorrt: Any, tmp_path: Path, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "crash")
    with pytest.raises(ExportError, match=r"TensorRT: the builder crashed on this graph \(SIGSEGV\): `zoo lint`"):
        build_engine("tensorrt", model, tmp_path / "e", profiles=PROFILES)
    assert list(tmp_path.iterdir()) == []


def test_a_builder_that_runs_out_of_memory_says_what_to_do(
    fake_tensorrt: Any, tmp_path: Path, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "full")
    with pytest.raises(
        ExportError, match=r"OutOfMemory: Requested size was .* bytes.*: not enough memory to build: close other"
    ):
        build_engine("tensorrt", model, tmp_path / "e", profiles=PROFILES)


def test_a_builder_that_is_killed_is_told_apart(
    fake_tensorrt: Any, tmp_path: Path, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Linux, where memory runs out."""
    monkeypatch.setenv("FAKE_TENSORRT", "slow")
    children: list[subprocess.Popen[bytes]] = []
    start = building._start

    def watched(errors: Any) -> subprocess.Popen[bytes]:
        children.append(start(errors))
        return children[-1]

    monkeypatch.setattr(building, "_start", watched)
    monkeypatch.setattr(building, "TOLD_EVERY_S", 0.3)
    told: list[str] = []

    def progress(line: str) -> None:
        told.append(line)
        if len(told) == 3:
            children[0].kill()

    with pytest.raises(ExportError, match=r"the builder was killed, .*memory runs out: not enough memory to build"):
        build_engine("tensorrt", model, tmp_path / "e", profiles=PROFILES, progress=progress)
    assert "TensorRT builds the engine, " in told[1]
    assert any("building engine, " in line and " of 100" in line for line in told)


def test_ctrl_c_ends_the_build_and_leaves_what_was_there(fake_tensorrt: Any, tmp_path: Path, model: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(model)
    out = tmp_path / "out" / "e"
    out.parent.mkdir()
    out.write_bytes(b"old")
    code = (
        "import sys; from pathlib import Path; from zoo.runtime.tensorrt.building import build_engine\n"
        f"build_engine('tensorrt', Path(sys.argv[1]), Path(sys.argv[2]), profiles={PROFILES!r}, progress=print)"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(tmp_path / "model.onnx"), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FAKE_TENSORRT": "slow"},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("TensorRT builds")
    builder = _child_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    assert out.read_bytes() == b"old"
    assert [p.name for p in out.parent.iterdir()] == ["e"]
    _gone(builder)


def test_a_builder_does_not_outlive_its_parent(fake_tensorrt: Any, tmp_path: Path, model: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(model)
    code = (
        "import sys; from pathlib import Path; from zoo.runtime.tensorrt.building import build_engine\n"
        f"build_engine('tensorrt', Path(sys.argv[1]), Path(sys.argv[2]), profiles={PROFILES!r}, progress=print)"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(tmp_path / "model.onnx"), str(tmp_path / "e")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "FAKE_TENSORRT": "silent", "FAKE_BUILDING": str(tmp_path / "building")},
    )
    assert process.stdout is not None
    process.stdout.readline()
    builder = _child_of(process.pid)
    while not (tmp_path / "building").exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    _gone(builder)


def _child_of(parent: int) -> int:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    if not path.exists():
        pytest.skip("this system does not tell whose child a process is")
    for _ in range(200):
        if children := path.read_text().split():
            return int(children[0])
        time.sleep(0.05)
    raise AssertionError("no builder was started")


def _gone(process: int) -> None:
    for _ in range(200):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError("the builder goes on")


# -- with neither


def test_a_library_that_is_absent_is_named_with_its_install_line(
    tmp_path: Path, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find("tensorrt") is not None:
        pytest.skip("tensorrt is installed")
    with pytest.raises(MissingPart, match="TensorRT is not installed: pip install tensorrt"):
        build_engine("tensorrt", model, tmp_path / "e", profiles=PROFILES)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="something else of that name is in the way"):
        build_engine("tensorrt-rtx", model, tmp_path / "file" / "e", profiles=PROFILES)
