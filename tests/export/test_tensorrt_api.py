"""The layer that talks to NVIDIA's libraries: with the real TensorRT-RTX where it is installed, and where there is none.

The same tests are asked of the fake TensorRT that the runtime's tests stand on: that is what keeps its builder honest.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from zoo.errors import ExportError, MissingPart, UnknownName
from zoo.runtime.tensorrt import api
from zoo.runtime.tensorrt.api import Library, Verdict, build, find, need, parse

F, F16 = TensorProto.FLOAT, TensorProto.FLOAT16
KERNEL = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)


def model(*nodes: onnx.NodeProto, kind: int = F, batch: int | str = 1, **constants: np.ndarray) -> ModelProto:
    """(batch, 3, 8, 8) to whatever the last node gives, called y."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def conv(kind: int = F, batch: int | str = 1) -> ModelProto:
    weight = KERNEL.astype(np.float16 if kind == F16 else np.float32)
    return model(helper.make_node("Conv", ["x", "w"], ["y"], name="conv"), kind=kind, batch=batch, w=weight)


def det() -> ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="relu"), helper.make_node("Det", ["r"], ["y"], name="det")]
    return model(*nodes)


def pretending() -> ModuleType:
    name = "zoo_tests_pretending"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "fakes" / "pretending.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module", params=["rtx", "fake"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    if request.param == "rtx":
        found = find("tensorrt-rtx")
        if found is None:
            pytest.skip("tensorrt-rtx is not installed: pip install tensorrt-rtx (Linux x86-64, Windows)")
        yield found
        return
    fakes = pretending()
    driver = fakes.compile_driver(tmp_path_factory.mktemp("driver"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        fakes.install_tensorrt(monkeypatch, driver)
        yield need("tensorrt")


@pytest.fixture
def rtx(library: Library) -> Library:
    """For what only the real library can show."""
    if library.flavour != "tensorrt-rtx":
        pytest.skip("the fake is not made for this")
    return library


SHAPES = {"x": ((1, 3, 8, 8), (4, 3, 8, 8), (16, 3, 8, 8))}


# -- with the real library


def test_it_is_found_once_and_says_who_it_is(library: Library) -> None:
    assert find(library.flavour) is library is need(library.flavour)
    assert str(library).startswith(("TensorRT-RTX 1.", "TensorRT 10."))
    assert api.why_not(library.flavour) == ""


@pytest.mark.parametrize(("kind", "name"), [(F, "FLOAT"), (F16, "HALF")])
def test_a_good_graph_is_parsed_and_its_layers_counted(library: Library, kind: int, name: str) -> None:
    verdict = parse(library, conv(kind).SerializeToString())
    assert verdict
    assert verdict.complaints == ()
    assert verdict.layers["CONVOLUTION"] == {name: 1}
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


def test_a_refusal_names_the_node(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    graph = det()
    verdict = parse(library, graph.SerializeToString(), nodes=len(graph.graph.node))
    assert not verdict
    assert [(c.node, c.operator) for c in verdict.complaints] == [("det", "Det")]
    assert verdict.complaints[0].text == "the parser has no importer for this operator"
    assert verdict.refused == (1,)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    assert capfd.readouterr() == ("", "")


def test_what_the_library_prints_past_the_logger_stays_off_the_terminal(
    library: Library, capfd: pytest.CaptureFixture[str]
) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], name="cast", to=TensorProto.INT16)
    assert not parse(library, model(node).SerializeToString())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("data", [b"", b"not a network", conv().SerializeToString()[:100]])
def test_broken_bytes_are_refused_with_one_line(library: Library, data: bytes) -> None:
    verdict = parse(library, data)
    assert not verdict
    assert verdict.complaints
    assert all(c.text and "\n" not in c.text for c in verdict.complaints)


def test_warnings_are_kept(library: Library) -> None:
    zero, scale = np.uint8(0), np.float32(0.1)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dq"),
    ]
    verdict = parse(library, model(*nodes, s=np.asarray(scale), z=np.asarray(zero)).SerializeToString())
    assert verdict
    assert any("Defaulting to INT8" in text for text in verdict.warnings)
    assert not parse(library, conv().SerializeToString()).warnings, "those of one graph are not those of the next"


def test_an_engine_is_built(library: Library) -> None:
    built = build(library, conv().SerializeToString())
    assert built, built.reason
    assert len(built.plan) > KERNEL.nbytes, "it holds the weights"
    assert build(library, conv(batch="batch").SerializeToString(), profile=SHAPES)


def test_weights_in_another_file_are_found_by_the_path(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv(), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    assert build(library, path.read_bytes(), path)
    assert not parse(library, path.read_bytes())


def test_a_graph_that_parses_and_cannot_be_built_gives_a_reason(library: Library) -> None:
    node = helper.make_node("TopK", ["x", "k"], ["y", "i"], name="top", axis=1)
    wide = model(node, k=np.asarray([3841]))
    wide.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5000
    built = build(library, wide.SerializeToString())
    assert built.verdict
    assert not built
    assert "K exceeds the maximum value allowed (3840)" in built.reason
    refused = build(library, det().SerializeToString())
    assert not refused
    assert refused.reason == "the parser has no importer for this operator"


@pytest.mark.parametrize(
    ("profile", "error", "says"),
    [
        ({}, ExportError, r"input 'x' is \?x3x8x8: give its least, usual and largest shape"),
        ({"X": SHAPES["x"]}, UnknownName, "unknown input 'X': did you mean x|there are: x"),
        ({"x": ((4, 3, 8, 8), (1, 3, 8, 8), (16, 3, 8, 8))}, ExportError, "must rise"),
        ({"x": ((1, 3, 8, 9), (1, 3, 8, 9), (1, 3, 8, 9))}, ExportError, "1x3x8x9 does not fit"),
        ({"x": ((1, 3), (1, 3), (1, 3))}, ExportError, "1x3 does not fit"),
    ],
)
def test_a_wrong_profile_is_an_error_at_once(library: Library, profile: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        build(library, conv(batch="batch").SerializeToString(), profile=profile)
    assert build(library, conv().SerializeToString()), "and the library goes on working"


def test_a_build_tells_how_far_it_is(library: Library) -> None:
    told: list[tuple[str, int, int]] = []
    assert build(library, conv().SerializeToString(), progress=lambda *step: told.append(step))
    assert told
    assert all(phase and 0 <= done <= steps for phase, done, steps in told)
    assert any(done == steps for _, done, steps in told)


def test_the_settings_of_a_build_are_the_librarys(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is on in every library until it is told otherwise; the inspector is told names only."""
    trt, seen = library.trt, []
    configure = api._configure

    def settings(config: Any) -> tuple[Any, ...]:
        tf32 = config.get_flag(trt.BuilderFlag.TF32)
        return tf32, config.profiling_verbosity, config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)

    def watch(trt: Any, config: Any, *rest: Any) -> Any:
        before = settings(config)
        found = configure(trt, config, *rest)
        seen.append((before, settings(config)))
        return found

    monkeypatch.setattr(api, "_configure", watch)
    assert build(library, conv().SerializeToString(), workspace_bytes=1 << 26)
    assert build(library, conv().SerializeToString(), tf32=True)
    names, details = trt.ProfilingVerbosity.LAYER_NAMES_ONLY, trt.ProfilingVerbosity.DETAILED
    (before, first), (_, second) = seen
    assert before[:2] == (True, names)
    assert before[2] > 1 << 26
    assert first == (False, details, 1 << 26)
    assert second == (True, details, before[2])


def test_a_log_that_nobody_reads_does_not_grow(library: Library) -> None:
    severity = library.trt.ILogger.Severity
    for number in range(10_000):
        library._logger.log(severity.WARNING, f"warning {number}")
        library._logger.log(severity.VERBOSE, "never kept")
    library._logger.log(severity.ERROR, "Assertion failed: the last")
    assert len(library._log) <= api.KEPT + 1
    assert library.last_error() == "the last"
    with library.listening() as heard:
        for number in range(1000):
            library._logger.log(severity.WARNING, f"warning {number}")
    assert len(heard) == 1000, "while somebody reads, all is kept"


def test_rubbish_is_no_engine(library: Library, tmp_path: Path) -> None:
    """The real library needs a GPU for more than this: it says why not in its log. Mapped files are taken as bytes are."""
    runtime = library.runtime()
    assert runtime is not None
    assert runtime is library.runtime()
    (tmp_path / "x.engine").write_bytes(b"rubbish " * 50)
    with (tmp_path / "x.engine").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for data in (b"rubbish " * 50, mapped):
            with library.listening() as heard:
                assert runtime.deserialize_cuda_engine(data) is None
            assert any("ERROR" in severity and "magicTag" in text for severity, text in heard)


def test_threads_do_not_hear_each_other(library: Library) -> None:
    graphs = [det(), conv(), conv(F16), det()] * 4
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda g: parse(library, g.SerializeToString()), graphs))
    assert [bool(v) for v in verdicts] == [False, True, True, False] * 4
    assert threading.active_count() >= 1


# -- what the code is written around, so that a version that mends it is noticed


def test_the_builder_returns_none_and_raises_nothing(library: Library) -> None:
    with library.listening() as heard:
        builder = library.builder()
        assert builder is not None
        network = library.network(builder)
        parser = library.parser(network)
        assert parser.parse(conv(batch="batch").SerializeToString())
        assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert any("no optimization profile" in text for _, text in heard)


def test_the_parser_takes_empty_bytes(library: Library) -> None:
    with library.listening():
        builder = library.builder()
        assert builder is not None
        network = library.network(builder)
        assert library.parser(network).parse(b"")
        assert network is not None
        assert network.num_layers == 0


def test_the_layout_of_a_recurrent_layer_is_ignored(rtx: Library) -> None:
    """Rule rnn-layout: (batch 1, sequence 6) is read as (sequence 1, batch 6)."""
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=(1, 5, k)).astype(np.float32) for n, k in (("w", 4), ("r", 5))}
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"], name="rnn", hidden_size=5, layout=1)
    made = model(node, **weights)
    made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", F, [1, 6, 4]))
    with rtx.listening():
        builder = rtx.builder()
        assert builder is not None
        network = rtx.network(builder)
        parser = rtx.parser(network)
        assert parser.parse(made.SerializeToString())
        assert network is not None
        shape = tuple(network.get_output(0).shape)
    assert shape == (1, 1, 6, 5), "ONNX says (1, 6, 1, 5)"


# -- without it


def test_an_absent_library_is_none_and_needing_it_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_found", {})
    monkeypatch.setattr(api, "MODULES", {"tensorrt": "no_such_module", "tensorrt-rtx": "no_such_module_either"})
    assert find("tensorrt") is None
    assert api.why_not("tensorrt").startswith("TensorRT is not installed: pip install tensorrt")
    with pytest.raises(MissingPart, match="TensorRT-RTX is not installed: pip install tensorrt-rtx"):
        need("tensorrt-rtx")


def test_bindings_without_their_library_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "half_there.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(api, "_found", {})
    monkeypatch.setattr(api, "MODULES", {"tensorrt": "half_there"})
    assert "cannot be loaded (libnvinfer.so.10: cannot open" in api.why_not("tensorrt")


@pytest.mark.parametrize("library", ["rtx"], indirect=True)
def test_every_name_of_the_fake_is_one_of_the_real_library(library: Library) -> None:
    path = Path(__file__).parents[1] / "fakes" / "tensorrt.py"
    spec = importlib.util.spec_from_file_location("a_fake_tensorrt", path)
    assert spec is not None
    assert spec.loader is not None
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    public = {
        name: value
        for name, value in vars(fake).items()
        if isinstance(value, type) and value.__module__ == fake.__name__
    }
    compared = 0
    for name, kind in {n: k for n, k in public.items() if not n.startswith("_")}.items():
        real = getattr(library.trt, name)
        names = {n for n in vars(kind) if not n.startswith("_")} | set(getattr(kind, "__members__", ()))
        if name == "IBuilderConfig":
            names |= {"profiling_verbosity", "progress_monitor"}
        if name == "EngineInspector":
            names |= {"execution_context"}
        assert names <= set(dir(real)), (name, names - set(dir(real)))
        compared += len(names)
    assert compared > 60


class _Logger:
    pass


class _Nothing:
    """A builder of a library that gives None at each step."""

    def __init__(self, *_: object) -> None:
        pass

    def create_network(self, flags: int) -> None:
        return None


def _raises(*_: object) -> None:
    raise TypeError("pybind11::init(): factory function returned nullptr")


@pytest.mark.parametrize(
    ("builder", "says"), [(_raises, "makes no builder here: it needs an NVIDIA GPU"), (_Nothing, "made no network")]
)
def test_a_library_that_gives_nothing_gives_a_reason(builder: Any, says: str) -> None:
    """As ``tensorrt`` does on a machine without a GPU, where it cannot be installed for this test."""
    module = ModuleType("tensorrt")
    module.__version__ = "10.3.0"  # type: ignore[attr-defined]
    module.ILogger, module.Builder = _Logger, builder  # type: ignore[attr-defined]
    found = Library("tensorrt", module)
    verdict = parse(found, conv().SerializeToString())
    assert not verdict
    assert says in verdict.complaints[0].text
    built = build(found, conv().SerializeToString())
    assert not built
    assert says in built.reason
