"""An engine at work: on the fake TensorRT, whose arithmetic is ONNX Runtime's, and on a real GPU where there is one.

On the fake these tests prove the zoo's half alone: names, shapes, buffers, order, threads, lifetimes.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from zoo.errors import BundleError, ZooError
from zoo.runtime.ort import open_session
from zoo.runtime.tensorrt import api
from zoo.runtime.tensorrt.cuda import Device, DeviceError
from zoo.runtime.tensorrt.engines import probe_rtx, probe_tensorrt
from zoo.runtime.tensorrt.session import TensorRTSession, load_engine

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
F = TensorProto.FLOAT
FIXED = ["batch", 3, 16, 16]
OPEN = ["batch", 3, "height", "width"]
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}
"""Of a real GPU; the fake computes with the same kernels as the reference."""


@dataclass
class Machine:
    """A library that runs here, and the model's way to an engine of it."""

    library: api.Library
    device: Device
    fake: Any
    """None on a real GPU."""

    def plan(self, model: onnx.ModelProto, shapes: Shapes | None = None) -> bytes:
        built = api.build(self.library, model.SerializeToString(), profile={"image": shapes} if shapes else None)
        assert built, built.reason
        return built.plan

    def open(self, model: onnx.ModelProto, shapes: Shapes | None = None, **options: Any) -> TensorRTSession:
        engine = load_engine(self.library, self.plan(model, shapes), self.device)
        return TensorRTSession(self.library, engine, self.device, **options)


@pytest.fixture
def fake(fake_tensorrt: Any) -> Iterator[Machine]:
    device = Device()
    yield Machine(api.need("tensorrt"), device, fake_tensorrt)
    device.close()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    if request.param == "fake":
        yield request.getfixturevalue("fake")
        return
    reasons = {"tensorrt": probe_tensorrt(), "tensorrt-rtx": probe_rtx()}
    flavour = next((name for name, reason in reasons.items() if not reason), "")
    if not flavour:
        pytest.skip(f"needs an NVIDIA GPU and TensorRT: {reasons['tensorrt']}")
    device = Device()
    yield Machine(api.need(flavour), device, None)
    device.close()


def network(
    shape: list[Any], *nodes: onnx.NodeProto, outputs: dict[str, int], **constants: np.ndarray
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", F, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def classifier(shape: list[Any] = FIXED) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return network(
        shape,
        helper.make_node("Conv", ["image", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "v"], ["logits"], name="fc", transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], name="soft", axis=1),
        outputs={"logits": F, "scores": F},
        w=rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        v=rng.normal(size=(5, 8)).astype(np.float32),
    )


def images(count: int, height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, height, width)).astype(np.float32)


def shapes(least: int, usual: int, largest: int, sizes: tuple[int, int, int] = (16, 16, 16)) -> Shapes:
    a, b, c = ((n, 3, s, s) for n, s in zip((least, usual, largest), sizes, strict=True))
    return a, b, c


def same(session: TensorRTSession, model: onnx.ModelProto, batch: np.ndarray) -> None:
    expected = open_session(model.SerializeToString(), threads=1).run(batch)
    found = session.run(batch)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, **TOLERANCE)


# -- on either


def test_it_says_what_it_is_and_takes(machine: Machine) -> None:
    with machine.open(classifier(), shapes(1, 2, 4)) as session:
        assert session.runtime == machine.library.flavour
        assert session.device == f"{machine.device.name} ({machine.library}, {machine.device.driver_version})"
        assert session.input_name == "image"
        assert session.output_names == ("logits", "scores")
        assert session.input_shape == (None, 3, 16, 16)
        assert session.profile == shapes(1, 2, 4)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_batch_of_the_profile(machine: Machine, count: int) -> None:
    with machine.open(classifier(), shapes(1, 2, 4)) as session:
        same(session, classifier(), images(count))


@pytest.mark.parametrize("count", [1, 5, 9, 11])
def test_more_are_split_and_fewer_are_filled_up(machine: Machine, count: int) -> None:
    with machine.open(classifier(), shapes(2, 4, 4)) as session:
        same(session, classifier(), images(count))


def test_a_graph_of_one_size_needs_no_profile(machine: Machine) -> None:
    model = classifier([2, 3, 16, 16])
    with machine.open(model) as session:
        assert session.input_shape == (2, 3, 16, 16)
        same(session, model, images(2))
    whole = classifier()
    with machine.open(model) as session:
        same(session, whole, images(5))


def test_height_and_width_may_be_open(machine: Machine) -> None:
    model = classifier(OPEN)
    with machine.open(model, shapes(1, 1, 2, (8, 16, 24))) as session:
        assert session.input_shape == (None, 3, None, None)
        for height, width in ((8, 8), (24, 9), (16, 16), (13, 24)):
            same(session, model, images(2, height, width))
        with pytest.raises(
            BundleError, match="input 'image' is 1x3x25x8; the engine was built for 1x3x8x8 to 2x3x24x24"
        ):
            session.run(images(1, 25, 8))
        with pytest.raises(BundleError, match="1x3x16;"):
            session.run(images(1)[..., 0])


def test_buffers_grow_and_shrink_without_a_trace(machine: Machine) -> None:
    model = classifier(OPEN)
    with machine.open(model, shapes(1, 1, 8, (8, 8, 32))) as session:
        for count, size in ((1, 8), (8, 32), (1, 32), (3, 9), (8, 8), (2, 31)):
            same(session, model, images(count, size, size, seed=size))


def test_results_belong_to_the_caller(machine: Machine) -> None:
    with machine.open(classifier(), shapes(1, 2, 4)) as session:
        first = session.run(images(2))
        kept = {name: value.copy() for name, value in first.items()}
        session.run(images(2, seed=1))
        for name, value in first.items():
            assert np.array_equal(value, kept[name])
            value[...] = 0  # writable, and nobody's but ours
        second = session.run(images(2))
        assert np.allclose(second["logits"], kept["logits"], **TOLERANCE)


def test_only_the_outputs_that_are_asked_for(machine: Machine) -> None:
    with machine.open(classifier(), shapes(1, 2, 4)) as session:
        assert list(session.run(images(1), ("scores",))) == ["scores"]
        with pytest.raises(ValueError, match="no output 'boxes': it has logits, scores"):
            session.run(images(1), ["boxes"])


@pytest.mark.parametrize(("kind", "dtype"), [("FLOAT16", np.float16), ("UINT8", np.uint8), ("INT64", np.int64)])
def test_outputs_keep_the_graphs_type(machine: Machine, kind: str, dtype: type) -> None:
    to = TensorProto.DataType.Value(kind)
    model = network(FIXED, helper.make_node("Cast", ["image"], ["y"], name="cast", to=to), outputs={"y": to})
    whole = np.arange(2 * 768).reshape(2, 3, 16, 16).astype(np.float32) % 200
    with machine.open(model, shapes(1, 2, 4)) as session:
        found = session.run(whole)["y"]
    assert found.dtype == dtype
    assert np.array_equal(found, whole.astype(dtype))


def test_threads_get_their_own_answers(machine: Machine) -> None:
    model = classifier()
    expected = open_session(model.SerializeToString(), threads=1)
    with machine.open(model, shapes(1, 2, 4), lanes=3) as session:
        wrong: list[object] = []

        def work(seed: int) -> None:
            try:
                for turn in range(10):
                    batch = images(1 + (seed + turn) % 5, seed=100 * seed + turn)
                    ours, theirs = session.run(batch)["logits"], expected.run(batch)["logits"]
                    if not np.allclose(ours, theirs, **TOLERANCE):
                        wrong.append(seed)
            except BaseException as error:
                wrong.append(error)

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong
        assert 1 <= session._made <= 3


def test_a_cuda_graph_gives_the_same(machine: Machine) -> None:
    model = classifier()
    with machine.open(model, shapes(1, 2, 4), cuda_graph=True) as session:
        assert "CUDA graph" in session.device
        for turn in range(4):
            for count in (1, 4, 2, 6):
                same(session, model, images(count, seed=turn))


def test_the_time_on_the_gpu_is_less_than_the_whole(machine: Machine) -> None:
    with machine.open(classifier(), shapes(1, 2, 4)) as session:
        batch = images(6)
        session.run(batch)
        started = time.perf_counter()
        spent = session.time_ms(batch)
        whole = 1000 * (time.perf_counter() - started)
        assert 0 < spent < whole


def test_an_engine_tells_the_precision_of_its_layers(machine: Machine) -> None:
    with machine.open(classifier(), shapes(1, 2, 4)) as session:
        layers = session.layers()
    if machine.library.flavour == "tensorrt":
        assert {x.precision for x in layers if x.weighted} == {"fp32"}


@pytest.mark.parametrize("plan", [b"", b"not an engine at all, but long enough to be looked at " * 20])
def test_what_is_no_engine_is_refused_in_one_line(machine: Machine, plan: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.engine"
    file.write_bytes(plan)
    for given in (plan, file):
        with pytest.raises(BundleError, match=f"does not load in {machine.library} on ") as caught:
            load_engine(machine.library, given, machine.device)
        assert "\n" not in str(caught.value)


# -- on the fake alone


def test_a_session_is_freed_by_close_and_with_its_last_reference(fake: Machine) -> None:
    before = fake.fake.live()
    session = fake.open(classifier(), shapes(1, 2, 4), cuda_graph=True)
    for _ in range(3):
        session.run(images(2))
        session.time_ms(images(4))
    live = fake.fake.live()
    assert live["device memory"] == 2 * 4, "two shapes: a context, an input and two outputs each"
    assert live["exec"] == 2
    assert live["event"] == 2
    session.close()
    assert fake.fake.live() == before
    with pytest.raises(ZooError, match="was closed"):
        session.run(images(1))
    session = fake.open(classifier(), shapes(1, 2, 4))
    session.run(images(2))
    del session
    gc.collect()
    assert fake.fake.live() == before


def test_calls_under_way_end_before_a_session_is_closed(fake: Machine) -> None:
    session = fake.open(classifier(), shapes(1, 2, 4))
    found: list[Any] = []

    def work() -> None:
        try:
            for _ in range(1000):
                found.append(session.run(images(4)))
        except ZooError as error:
            found.append(str(error))

    worker = threading.Thread(target=work)
    worker.start()
    while not found:
        time.sleep(0.001)
    session.close()
    worker.join()
    assert found[-1] == "the session was closed: load the bundle again"


def test_a_graph_is_recorded_once_a_shape_and_the_oldest_shape_goes(fake: Machine) -> None:
    with fake.open(classifier(), shapes(1, 2, 4), cuda_graph=True, lanes=2) as session:
        for count in (1, 1, 2, 2):
            session.run(images(count))
        assert fake.fake.live()["exec"] == 2
        for count in (3, 3, 3):
            same(session, classifier(), images(count))
        assert fake.fake.live()["exec"] == 2, "the third took the place of the first"


def test_a_network_that_cannot_be_captured_runs_without(fake: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "uncapturable")
    with fake.open(classifier(), shapes(1, 2, 4), cuda_graph=True) as session:
        for turn in range(3):
            same(session, classifier(), images(2, seed=turn))
        assert "no CUDA graph: " in session.device
        assert "exec" not in fake.fake.live()


def test_no_room_for_a_context_is_one_line(fake: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GPU_MEMORY", "1000")
    before = fake.fake.live()
    with pytest.raises(
        DeviceError, match=r"not enough memory on Fake GPU for an execution context .*: 0 of 0 MB"
    ) as caught:
        fake.open(classifier(), shapes(1, 2, 4))
    assert caught.value.out_of_memory
    gc.collect()
    assert fake.fake.live() == before


def test_no_room_for_a_large_batch_leaves_small_ones_running(fake: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake.open(classifier(OPEN), shapes(1, 1, 64, (16, 16, 64))) as session:
        session.run(images(1))
        monkeypatch.setenv("FAKE_GPU_MEMORY", "150000")
        with pytest.raises(DeviceError, match=r"not enough memory on Fake GPU for 3\.1 MB: "):
            session.run(images(64, 64, 64))
        same(session, classifier(OPEN), images(2))


def test_threads_share_as_many_contexts_as_there_is_room_for(fake: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake.open(classifier(), shapes(1, 2, 4), lanes=8) as session:
        session.run(images(4))
        monkeypatch.setenv("FAKE_GPU_MEMORY", str(2 * (1 << 16) + 40_000))
        wrong: list[object] = []

        def work() -> None:
            try:
                for _ in range(5):
                    session.run(images(4))
            except BaseException as error:
                wrong.append(error)

        workers = [threading.Thread(target=work) for _ in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong
        assert session._limit == 2


def test_a_failed_run_is_one_line_and_the_next_one_works(fake: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake.open(classifier(), shapes(1, 2, 4)) as session:
        monkeypatch.setenv("FAKE_TENSORRT", "fails")
        with pytest.raises(
            DeviceError, match=r"TensorRT 10\.3\.0 failed on Fake GPU: .*illegal memory access"
        ) as caught:
            session.run(images(1))
        assert "\n" not in str(caught.value)
        monkeypatch.setenv("FAKE_TENSORRT", "")
        fake.fake.fail_next("cuStreamSynchronize", 719)
        with pytest.raises(DeviceError, match="CUDA_ERROR_LAUNCH_FAILED"):
            session.run(images(1))
        same(session, classifier(), images(3))


def test_a_size_that_depends_on_the_image_is_refused_at_once(fake: Machine) -> None:
    model = network(FIXED, helper.make_node("NonZero", ["image"], ["y"], name="nz"), outputs={"y": TensorProto.INT64})
    before = fake.fake.live()
    with pytest.raises(BundleError, match="output 'y' has a size that depends on the image"):
        fake.open(model, shapes(1, 1, 1))
    gc.collect()
    assert fake.fake.live() == before


def test_an_output_without_a_batch_cannot_be_put_together(fake: Machine) -> None:
    node = helper.make_node("ReduceMean", ["image"], ["y"], name="mean", keepdims=0)
    with fake.open(network(FIXED, node, outputs={"y": F}), shapes(1, 1, 2)) as session:
        assert session.run(images(2))["y"].shape == ()
        with pytest.raises(BundleError, match=r"output 'y' has the shape \(\) for 2 images, so a batch of 3 cannot"):
            session.run(images(3))


def test_networks_of_several_inputs_and_of_other_types_are_refused(fake: Machine) -> None:
    two = helper.make_node("Add", ["image", "other"], ["y"], name="add")
    model = network(FIXED, two, outputs={"y": F})
    model.graph.input.append(helper.make_tensor_value_info("other", F, [1, 3, 16, 16]))
    with pytest.raises(BundleError, match=r"the engine has 2 inputs \(image, other\)"):
        fake.open(model, shapes(1, 1, 1))
    cast = helper.make_node("Cast", ["image"], ["y"], name="cast", to=TensorProto.BFLOAT16)
    with pytest.raises(BundleError, match="'y' of the engine is BF16, which numpy has no type for"):
        fake.open(network(FIXED, cast, outputs={"y": TensorProto.BFLOAT16}), shapes(1, 1, 1))


def test_engines_of_another_version_gpu_or_that_are_damaged_do_not_load(
    fake: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = fake.plan(classifier(), shapes(1, 2, 4))
    flipped = bytearray(plan)
    flipped[-20] ^= 1
    with pytest.raises(BundleError, match="SERIALIZATION_VERSION"):
        load_engine(fake.library, bytes(flipped), fake.device)
    with pytest.raises(BundleError, match=r"of version 10\.4\.0, this is 10\.3\.0"):
        load_engine(fake.library, plan.replace(b'"10.3.0"', b'"10.4.0"'), fake.device)
    monkeypatch.setenv("FAKE_GPU_NAME", "Another GPU")
    with pytest.raises(BundleError, match="incompatible device: Fake GPU"):
        load_engine(fake.library, plan, fake.device)
