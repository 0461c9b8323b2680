"""The whole way on a real NVIDIA GPU: build, prove, run, measure. Skipped with the reason where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo.runtime
from zoo.lookup import find
from zoo.parity.evidence import natural_images
from zoo.parity.golden import selftest
from zoo.runtime.choosing import why_not
from zoo.runtime.tensorrt import api, cuda
from zoo.runtime.tensorrt.building import build_engine
from zoo.runtime.tensorrt.cuda import Device
from zoo.runtime.tensorrt.session import TensorRTSession, load_engine
from zoo.specs import Runtime

pytestmark = pytest.mark.gpu

GPU_RUNTIMES = ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-cuda")


@pytest.fixture(params=GPU_RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := why_not(find(Runtime, name)):
        pytest.skip(f"{name}: {reason}")
    return name


def test_a_bundle_runs_as_it_does_on_the_cpu(runtime: str, tensorrt_bundle: Path) -> None:
    model = zoo.runtime.load(tensorrt_bundle, runtime=runtime, progress=print)
    assert model.session.runtime == runtime
    plain = zoo.runtime.load(tensorrt_bundle, runtime="onnxruntime")
    images = natural_images(11, 40, 40, seed=4)
    for ours, theirs in zip(model(images), plain(images), strict=True):
        assert ours.label == theirs.label
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)


def test_the_command_builds_and_the_selftest_passes(zoo: Callable[..., Any], tensorrt_bundle: Path) -> None:
    reasons = [why_not(find(Runtime, name)) for name in GPU_RUNTIMES[:2]]
    if all(reasons):
        pytest.skip(f"needs TensorRT: {reasons[0]}")
    rows = json.loads(zoo("build", tensorrt_bundle, "--json").stdout)["engines"]
    assert [row["origin"] for row in rows] == ["built"]
    assert all(selftest(tensorrt_bundle))


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "cuda-graph"])
def test_the_gpus_time_is_within_the_callers(tensorrt_bundle: Path, graph: bool) -> None:
    import time

    reasons = [why_not(find(Runtime, name)) for name in GPU_RUNTIMES[:2]]
    if all(reasons):
        pytest.skip(f"needs TensorRT: {reasons[0]}")
    session: Any = zoo.runtime.load(tensorrt_bundle, cuda_graph=graph).session
    batch = np.zeros((4, 3, 16, 16), np.float32)
    whole, spent = [], []
    for _ in range(50):
        started = time.perf_counter()
        spent.append(session.time_ms(batch))
        whole.append(1000 * (time.perf_counter() - started))
    assert 0 < np.median(spent) < np.median(whole)


def test_an_engine_of_the_cpus_builder_loads_on_an_rtx_gpu(tensorrt_bundle: Path, tmp_path: Path) -> None:
    if reason := cuda.probe() or why_not(find(Runtime, "tensorrt-rtx")):
        pytest.skip(reason)
    model = tensorrt_bundle / "model.fp32.tensorrt.onnx"
    profiles = {"image": [[1, 3, 16, 16], [1, 3, 16, 16], [4, 3, 16, 16]]}
    build_engine("tensorrt-rtx", model, tmp_path / "x.engine", profiles=profiles)
    library, device = api.need("tensorrt-rtx"), Device()
    with TensorRTSession(library, load_engine(library, tmp_path / "x.engine", device), device) as session:
        assert session.run(np.zeros((3, 3, 16, 16), np.float32))["logits"].shape == (3, 3)
