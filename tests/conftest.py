"""What every test may use: the real data where it is at hand, one thread a test, and a registry that is its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Two xdist workers on two cores: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real images and weights that are not part of this repository. Skips where they are absent."""
    folder = Path(os.environ.get("ZOO_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"no test assets at {folder}: set ZOO_ASSETS")
    return folder


@pytest.fixture
def zoo() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line as a user does, in a process of its own; gives the finished process with its output."""

    def run(*args: object, check: int | None = 0, **kwargs: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *(str(a) for a in args)],
            capture_output=True,
            text=True,
            timeout=600,
            **kwargs,  # type: ignore[call-overload]
        )
        if check is not None:
            assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback (most recent call last)" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def _tiny_bundle_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle around a hand-written graph, made without torch: (N, 3, 16, 16) to three classes."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from zoo import __version__
    from zoo.files import dump_json, sha256_file
    from zoo.parity.evidence import natural_images
    from zoo.parity.golden import make_golden
    from zoo.runtime.ort import open_session
    from zoo.specs import ImageInput
    from zoo.tasks.classify import Classify

    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.normal(size=(6, 3, 3, 3)).astype(np.float32),
        "w1": (rng.normal(size=(3, 6)) * 2).astype(np.float32),
        "b1": rng.normal(size=(3,)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w0"], ["c"], strides=[2, 2]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w1", "b1"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("logits", "scores")],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    folder.mkdir()
    onnx.save(model, folder / "model.fp32.onnx")
    spec = ImageInput(height=16, width=16, crop=0.875)
    labels = ["ant", "bee", "cat"]
    images = [(f"image {i}", pixels) for i, pixels in enumerate(natural_images(3, 40, 31, seed=9))]
    golden = make_golden(folder, spec, images, {"fp32": open_session(folder / "model.fp32.onnx")}, Classify(), labels)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {
        "schema": 1,
        "name": "tiny",
        "made_by": f"edgezoo {__version__}",
        "task": "classify",
        "input": spec.to_dict(),
        "outputs": [{"name": n, "dtype": "float32", "shape": ["batch", 3]} for n in ("logits", "scores")],
        "labels": labels,
        "artifacts": [
            {"name": "fp32", "format": "onnx", "precision": "fp32", "file": "model.fp32.onnx", "status": "built"}
        ],
        "default": "fp32",
        "golden": golden,
        "files": {
            p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files
        },
    }
    dump_json(folder / "zoo.json", manifest)
    return folder


@pytest.fixture
def tiny_bundle(_tiny_bundle_made: Path, tmp_path: Path) -> Path:
    """A fresh copy of a small, good bundle folder: break it as you like."""
    return Path(shutil.copytree(_tiny_bundle_made, tmp_path / "tiny"))
