"""Parity where the artefact runs: what a figure carries, who executed what, and what a machine leaves on record."""

from __future__ import annotations

import html
import html.parser
import importlib.util
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import zoo.lookup
from zoo.bundle import open_bundle
from zoo.cli import execute
from zoo.files import dump_json, sha256_file
from zoo.parity import Candidate, Finding, Reference, Samples
from zoo.parity.evidence import stand_in
from zoo.parity.gates import latency, told_latencies
from zoo.parity.report import STATUSES, ArtifactReport, Report, render
from zoo.parity.verify import verify_bundle
from zoo.runtime.ort import OrtSession, open_session
from zoo.runtime.tensorrt import cuda
from zoo.specs import Runtime

TENSORS = np.zeros((3, 3, 16, 16), np.float32)


# -- an artefact of another format, and who opens it -------------------------------------------------------------


def add_tensorrt(folder: Path, change: Callable[[onnx.ModelProto], None] | None = None) -> Path:
    """Give a bundle an artefact ``tensorrt-fp32``: the graph itself, or changed after its golden outputs were made."""
    graph = folder / "model.fp32.tensorrt.onnx"
    graph.write_bytes((folder / "model.fp32.onnx").read_bytes())
    manifest = json.loads((folder / "zoo.json").read_text())
    manifest["artifacts"].append(
        {
            "name": "tensorrt-fp32",
            "format": "tensorrt",
            "precision": "fp32",
            "file": graph.name,
            "status": "prepared",
            "build": {
                "profiles": {"image": [[1, 3, 16, 16], [1, 3, 16, 16], [8, 3, 16, 16]]},
                "flags": {"tf32": False},
            },
        }
    )
    with np.load(folder / "golden.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays |= {f"tensorrt-{name}": value for name, value in arrays.items() if name.startswith("fp32/")}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    (folder / "golden.npz").write_bytes(buffer.getvalue())
    for sample in manifest["golden"]["samples"]:
        sample["results"]["tensorrt-fp32"] = sample["results"]["fp32"]
    if change is not None:
        model = onnx.load(str(graph))
        change(model)
        onnx.save(model, str(graph))
    for name in ("golden.npz", graph.name):
        manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    dump_json(folder / "zoo.json", manifest)
    return folder


class Engine:
    """Stands for a library that builds engines: ONNX Runtime's arithmetic with a clock of its own and an own error."""

    runtime = "test-engine"
    device = "Test GPU (engine 1.0)"
    error = 0.0

    def __init__(self, session: OrtSession) -> None:
        self._session = session
        self.output_names = session.output_names
        self.input_shape = session.input_shape
        self.timed = 0

    def run(self, batch: np.ndarray, outputs: Any = None) -> dict[str, np.ndarray]:
        found = self._session.run(batch, outputs)
        noise = np.random.default_rng(0)
        return {k: v + noise.normal(size=v.shape).astype(v.dtype) * self.error * v.std() for k, v in found.items()}

    def time_ms(self, batch: np.ndarray) -> float:
        self.timed += 1
        return 0.125


def open_engine(model: Path | bytes, **options: Any) -> Engine:
    return Engine(open_session(model, threads=1))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    """A runtime for TensorRT's artefacts that is better than all others, for this test."""
    own = Runtime(
        name="test-engine", summary="", load="zoo_test_engine:open_engine", reads=("tensorrt",), priority=10_000
    )
    module = type(sys)("zoo_test_engine")
    module.open_engine = open_engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zoo_test_engine", module)
    monkeypatch.setattr(zoo.lookup, "SPECS", (own, *zoo.lookup.SPECS))
    monkeypatch.setattr(Engine, "error", 0.0)
    return Engine


def reported(folder: Path, name: str = "tensorrt-fp32", **options: Any) -> tuple[Report, ArtifactReport]:
    with open_bundle(folder) as bundle:
        report = verify_bundle(bundle, threads=1, **options)
    return report, next(a for a in report.artifacts if a.name == name)


def gate(artifact: ArtifactReport, name: str) -> Finding:
    return next(f for f in artifact.findings if f.gate == name)


# -- stand-ins ---------------------------------------------------------------------------------------------------


def test_onnx_runtime_in_tensorrts_place_is_told_as_that(tiny_bundle: Path) -> None:
    report, artifact = reported(add_tensorrt(tiny_bundle))
    said = "executed by ONNX Runtime on the CPU: numbers and accuracy of the graph; says nothing of an engine"
    assert artifact.stand_in == said
    assert f"tensorrt-fp32 was {said}." in report.statements
    assert artifact.status == "prepared"
    assert artifact.verified_on == ""
    found = gate(artifact, "latency")
    assert found.verdict == "not judged"
    assert said in found.message
    assert not found.figures, "the time of a stand-in is nobody's"
    assert gate(artifact, "numbers").verdict == "pass"
    page = render(report)
    assert "Executed by ONNX Runtime on the CPU" in page
    # the plain graph beside it is what it is
    _, plain = reported(tiny_bundle, "fp32")
    assert plain.stand_in == ""
    assert gate(plain, "latency").figures["candidate_ms"]["p50"] > 0


def test_who_stands_in_for_whom() -> None:
    class Session:
        def __init__(self, runtime: str, device: str) -> None:
            self.runtime, self.device = runtime, device

    cpu = Session("onnxruntime", "CPU (onnxruntime 1.32.0)")
    assert stand_in("onnx", cpu) == ""
    assert "ONNX Runtime on the CPU" in stand_in("tensorrt", cpu)
    assert "ONNX Runtime on the GPU" in stand_in("tensorrt", Session("onnxruntime-cuda", "CUDA (onnxruntime 1.32.0)"))
    assert stand_in("tensorrt", Session("onnxruntime-tensorrt", "Tensorrt (onnxruntime 1.32.0)")) == ""
    assert stand_in("tensorrt", Session("tensorrt", "NVIDIA L4 (TensorRT 10.3)")) == ""
    assert stand_in("npu", Session("vendor", "NPU")) == ""


def test_half_precision_on_a_cpu_is_told_to_be_none() -> None:
    cpu = open_session(onnx_of_one_relu())
    assert ", computed in float32; says nothing" in stand_in("tensorrt", cpu, "fp16")
    assert "computed in float32" not in stand_in("tensorrt", cpu, "int8")
    assert stand_in("onnx", cpu, "fp16") == ""


def onnx_of_one_relu() -> bytes:
    image, out = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3, 4, 4])
        for name in ("image", "out")
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["image"], ["out"])], "g", [image], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()  # type: ignore[no-any-return]


def unknown_layer(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "ConvOfTheFuture"


def test_a_graph_that_nothing_here_executes_is_not_judged(tiny_bundle: Path) -> None:
    report, artifact = reported(add_tensorrt(tiny_bundle, unknown_layer))
    assert report, [a.failures for a in report.failed]
    assert artifact.verdict == "not judged"
    assert artifact.status == "prepared"
    (statement,) = [s for s in report.statements if s.startswith("tensorrt-fp32")]
    assert "tensorrt and tensorrt-rtx and onnxruntime-tensorrt do not run here" in statement
    assert "ConvOfTheFuture" in statement


def test_nor_does_a_library_that_is_here_get_away_with_it(tiny_bundle: Path, engine: type[Engine]) -> None:
    report, artifact = reported(add_tensorrt(tiny_bundle, unknown_layer))
    assert not report
    assert artifact.verdict == "fail"
    assert [f.partition(":")[0] for f in artifact.failures] == ["open", "numbers"]


def test_bench_does_not_time_a_stand_in(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_tensorrt(tiny_bundle)
    assert execute(["bench", str(tiny_bundle), "--seconds", "0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {r["artifact"] for r in found["measurements"]} == {"fp32"}
    assert "says nothing of an engine" in found["runtimes"]["tensorrt-fp32"]["stand_in"]
    assert execute(["bench", str(tiny_bundle), "--seconds", "0.2", "--artifact", "tensorrt-fp32"]) == 0
    said = capsys.readouterr().out
    assert "not measured: executed by ONNX Runtime on the CPU" in said
    assert "p50" not in said


# -- engines -----------------------------------------------------------------------------------------------------


def test_an_engine_is_compared_with_its_graph_and_timed(tiny_bundle: Path, engine: type[Engine]) -> None:
    report, artifact = reported(add_tensorrt(tiny_bundle))
    assert artifact.runtime == "test-engine"
    assert artifact.stand_in == ""
    found = gate(artifact, "engine")
    assert found, found.message
    assert found.figures["rms_share"] == 0
    assert "CPU (onnxruntime" in found.figures["graph_device"]
    figures = gate(artifact, "latency").figures
    assert gate(artifact, "latency").verdict == "not judged"
    assert figures["device_ms"] == {"p50": 0.125, "p90": 0.125, "p99": 0.125}
    assert figures["candidate_device"] == "Test GPU (engine 1.0)"
    assert figures["reference_device"].endswith("artefact fp32")
    assert figures["warmup"] == 20
    assert figures["threads"] == 1
    assert figures["batch"] == 1
    assert figures["rounds"] >= 5
    assert "by the device's events" in gate(artifact, "latency").message
    assert "by its events" in render(report)


def test_an_engine_that_computes_something_else_is_the_engines_fault(tiny_bundle: Path, engine: type[Engine]) -> None:
    add_tensorrt(tiny_bundle)
    engine.error = 0.05
    _, artifact = reported(tiny_bundle)
    found = gate(artifact, "engine")
    assert found.verdict == "fail"
    assert "of its spread from CPU (onnxruntime" in found.message
    assert artifact.verdict == "fail"
    assert artifact.status == "built"


def test_a_graph_that_computes_something_else_is_not(tiny_bundle: Path, engine: type[Engine]) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(i for i in model.graph.initializer if i.name == "w1")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.3), "w1"))

    _, artifact = reported(add_tensorrt(tiny_bundle, change))
    assert gate(artifact, "engine").verdict == "pass"
    assert gate(artifact, "numbers").verdict == "fail"


def test_bench_tells_the_devices_own_time(
    tiny_bundle: Path, engine: type[Engine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["bench", str(add_tensorrt(tiny_bundle)), "--seconds", "0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(r["artifact"], r["what"]): r for r in found["measurements"]}
    assert rows["tensorrt-fp32", "the device alone"]["p50_ms"] == 0.125
    assert rows["tensorrt-fp32", "network"]["runtime"] == "test-engine"
    assert rows["tensorrt-fp32", "network"]["warmup"] == 20
    assert ("fp32", "the device alone") not in rows


@pytest.fixture
def fake_tensorrt(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A GPU and a TensorRT that are not NVIDIA's (tests/fakes); gives the folder where engines are kept."""
    file = Path(__file__).parents[1] / "fakes" / "pretending.py"
    spec = importlib.util.spec_from_file_location("zoo_tests_pretending", file)
    assert spec is not None and spec.loader is not None
    pretending = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pretending)
    driver = pretending.compile_driver(tmp_path_factory.mktemp("driver"))
    pretending.plug_in(monkeypatch, driver)
    pretending.install_tensorrt(monkeypatch, driver)
    monkeypatch.setattr("zoo.specs._importable", lambda name: importlib.util.find_spec(name) is not None)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    sys.modules.pop("tensorrt", None)
    cuda.driver.cache_clear()


def test_on_a_gpu_the_engine_is_what_is_judged(tiny_bundle: Path, fake_tensorrt: Path) -> None:
    report, artifact = reported(add_tensorrt(tiny_bundle))
    assert artifact.runtime == "tensorrt"
    assert "TensorRT 10.3.0" in artifact.device
    assert artifact.stand_in == "" and not report.statements[1:]
    assert gate(artifact, "engine"), gate(artifact, "engine").message
    assert gate(artifact, "latency").figures["device_ms"]["p50"] >= 0
    assert artifact.verdict == "not judged"  # accuracy was not: no data


def test_an_engine_that_fails_its_golden_vectors_is_not_replaced_in_silence(
    tiny_bundle: Path, fake_tensorrt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "wrong")
    report, artifact = reported(add_tensorrt(tiny_bundle))
    assert artifact.runtime == "onnxruntime"
    found = gate(artifact, "engine")
    assert found.verdict == "fail"
    assert "tensorrt works here, but onnxruntime took its place: " in found.message
    assert "golden" in found.message
    assert not report
    assert artifact.status == "prepared"


def test_bisecting_an_engine_leaves_no_engines(
    tiny_bundle: Path, fake_tensorrt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_tensorrt(tiny_bundle)
    line = ["verify", str(tiny_bundle), "--threads", "1", "--artifact", "tensorrt-fp32"]
    assert execute(line) == 0
    before = sorted(p for p in fake_tensorrt.rglob("*") if p.is_file())
    assert before, "the engine itself is kept"
    capsys.readouterr()
    assert execute([*line, "--bisect"]) == 0
    assert "goes with artefact fp32 through all" in capsys.readouterr().out
    assert sorted(p for p in fake_tensorrt.rglob("*") if p.is_file()) == before


# -- figures -----------------------------------------------------------------------------------------------------


def sleeper(seconds: float) -> Callable[[np.ndarray], None]:
    return lambda batch: time.sleep(seconds)


def named(name: str, seconds: float, precision: str = "fp32", **fields: Any) -> Candidate:
    return Candidate(
        name=name, precision=precision, outputs={}, call=sleeper(seconds), device=f"device of {name}", **fields
    )


def test_latencies_are_told_beside_fp32() -> None:
    told = told_latencies([named("int8", 0.001, "int8", threads=2), named("fp32", 0.003)], TENSORS)
    assert set(told) == {"int8", "fp32"}
    figures = told["int8"].figures
    assert 0.2 < figures["ratio_p50"] < 0.7
    assert figures["interval_95"][0] <= figures["ratio_p50"] <= figures["interval_95"][1]
    assert {"p50", "p90", "p99"} == set(figures["candidate_ms"])
    assert figures["threads"] == 2
    assert figures["warmup"] == 3
    assert "of artefact fp32" in told["int8"].message
    assert told["fp32"].figures["ratio_p50"] == 1.0
    assert all(f.verdict == "not judged" for f in told.values())


def test_nothing_to_time_is_nothing_told() -> None:
    lone = replace(named("tensorrt-fp16", 0.0), stand_in="executed by another")
    assert told_latencies([lone], TENSORS) == {}
    assert told_latencies([named("fp32", 0.0)], TENSORS[:0]) == {}
    found = latency(lone, Reference(name="r", outputs={}, call=sleeper(0.0)), samples())
    assert found.message == "latency was not judged: executed by another"


def samples() -> Samples:
    return Samples(task=None, half=None, labels=(), ids=(), targets=None, source="", tensors=TENSORS)  # type: ignore[arg-type]


def test_a_figure_carries_the_clocks_that_were_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    line = "NVIDIA L4, 570.86.15, 8.9, 23034 MiB, P0, 2040 MHz, 2040 MHz, 6251 MHz, 6251 MHz, 70.00 W, 72.00 W, 61"
    tool.write_text(f"#!/bin/sh\necho '{line}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    reference = Reference(name="PyTorch", outputs={}, call=sleeper(0.001), device="CPU")
    found = latency(named("fp32", 0.001, tolerances={"latency_ratio": 9.0}), reference, samples())
    assert found, found.message
    (gpu,) = found.figures["clocks"]["gpus"]
    assert gpu["sm_mhz"] == 2040
    assert gpu["power_w"] == 70.0


# -- what stays --------------------------------------------------------------------------------------------------


def finding(name: str, verdict: str = "pass", **figures: Any) -> Finding:
    return Finding(gate=name, verdict=verdict, message="-", figures=figures)


@pytest.mark.parametrize(
    ("findings", "stand_in", "status"),
    [
        ([finding("numbers"), finding("accuracy"), finding("latency", ms=1)], "", "verified"),
        ([finding("numbers"), finding("accuracy"), finding("latency", "not judged", ms=1)], "", "verified"),
        ([finding("numbers"), finding("accuracy"), finding("latency", "not judged")], "", "built"),
        ([finding("numbers"), finding("accuracy", "not judged"), finding("latency", ms=1)], "", "built"),
        ([finding("numbers"), finding("accuracy"), finding("latency", "inconclusive", ms=1)], "", "built"),
        ([finding("numbers"), finding("accuracy"), finding("latency", ms=1), finding("engine", "fail")], "", "built"),
        ([finding("numbers"), finding("accuracy"), finding("latency", ms=1), finding("x", "not judged")], "", "built"),
        ([finding("numbers"), finding("accuracy"), finding("latency", ms=1)], "executed by another", "prepared"),
    ],
)
def test_only_what_was_measured_on_its_own_runtime_is_verified(
    findings: list[Finding], stand_in: str, status: str
) -> None:
    artifact = ArtifactReport(
        name="a", precision="fp16", format="tensorrt", findings=findings, device="GPU", stand_in=stand_in
    )
    assert artifact.status == status
    assert artifact.verified_on == ("GPU" if status == "verified" else "")


def test_a_record_says_which_bundle_on_which_machine(
    tiny_bundle: Path, engine: type[Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_tensorrt(tiny_bundle)
    before = {p: p.read_bytes() for p in tiny_bundle.rglob("*") if p.is_file()}
    out = tmp_path / "records" / "here.json"
    out.parent.mkdir()
    assert execute(["verify", str(tiny_bundle), "--record", str(out), "--threads", "1"]) == 0
    assert f"record: {out}" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tiny_bundle.rglob("*") if p.is_file()} == before, "the bundle stays sealed"
    text = out.read_text()
    found = json.loads(text)
    assert found["record"] == "zoo verify" and found["schema"] == 1
    assert found["bundle"]["name"] == "tiny"
    assert found["bundle"]["files"]["tensorrt-fp32"] == sha256_file(tiny_bundle / "model.fp32.tensorrt.onnx")
    assert found["machine"]["processor"]
    by_name = {a["name"]: a for a in found["artifacts"]}
    assert by_name["tensorrt-fp32"]["device"] == "Test GPU (engine 1.0)"
    assert by_name["tensorrt-fp32"]["status"] == "built"  # accuracy was not judged: no data
    assert by_name["tensorrt-fp32"]["findings"][-1]["figures"]["candidate_ms"]["p50"] > 0
    assert str(tmp_path) not in text
    assert "data:image" not in text and "flips" not in found


def test_the_packed_bundle_has_the_same_identity(tiny_bundle: Path, tmp_path: Path) -> None:
    assert execute(["pack", str(tiny_bundle), "--out", str(tmp_path / "tiny.zoo")]) == 0
    folder, _ = reported(tiny_bundle, "fp32")
    packed, _ = reported(tmp_path / "tiny.zoo", "fp32")
    assert folder.bundle == packed.bundle
    assert len(folder.bundle["manifest_sha256"]) == 64


def test_it_needs_no_torch(tiny_bundle: Path) -> None:
    code = (
        "import sys; from zoo.bundle import open_bundle; from zoo.parity.verify import verify_bundle\n"
        f"report = verify_bundle(open_bundle({str(tiny_bundle)!r})); assert report, report.to_dict()\n"
        "print(sorted({'torch', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# -- the page ----------------------------------------------------------------------------------------------------

EVIL = "<script>alert('x')</script>\"&"


class Balance(html.parser.HTMLParser):
    """Elements that must be closed are, in their order; nothing that a report does not use is there."""

    OPEN = {"html", "meta", "tr", "td", "th", "img", "br", "line", "rect", "circle", "polyline"}
    KNOWN = OPEN | {
        "title", "style", "h1", "h2", "h3", "p", "table", "span", "details", "summary", "pre", "figure", "figcaption",
        "svg", "text", "div", "dl", "dt", "dd", "b",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.KNOWN, f"<{tag}> in the page"
        assert not any(name.startswith("on") for name, _ in attrs), attrs
        self.seen.add(tag)
        if tag not in self.OPEN:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.KNOWN

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.OPEN:
            assert self.stack and self.stack[-1] == tag, f"</{tag}> closes <{self.stack[-1:]}>"
            self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(**fields: Any) -> tuple[str, Balance]:
    artifact = ArtifactReport(
        **{"name": EVIL, "precision": "int8", "format": "tensorrt", "findings": [], "device": EVIL, **fields}
    )
    page = render(
        Report(
            subject=EVIL,
            reference=EVIL,
            samples=EVIL,
            artifacts=[artifact],
            machine={"gpus": [{"name": EVIL, "sm_mhz": 2040}], "versions": {"numpy": "2"}},
        )
    )
    assert "<script" not in page
    found = Balance()
    found.feed(page)
    found.close()
    assert found.stack == []
    return page, found


def test_the_words_for_the_state_are_explained() -> None:
    page, _ = page_of()
    for word, text in STATUSES.items():
        assert f"<dt>{word}</dt><dd>{html.escape(text)}</dd>" in page


def test_precision_layer_by_layer() -> None:
    layer = {"layer": f"node {EVIL}", "module": "features.0", "requested": "fp16", "graph": "fp16", "built": "fp16"}
    kept = {**layer, "module": "head", "graph": "fp32", "built": "fp32"}
    wider = {**layer, "module": "features.9", "parsed": "fp16", "built": "fp32"}
    page, found = page_of(notes={"layers": [layer, kept, wider]})
    said = " ".join(found.text)
    assert "Precision of the 3 layers: 2 fp32, 1 fp16; 2 are not what was asked for throughout" in said
    assert page.count("<tr class=off>") == 2
    assert {"requested", "graph", "parsed", "built"} <= set(found.text)
    # the parser shows what an int8 layer gives out, and of a mixed plan anything was asked
    int8 = {"layer": "a", "requested": "int8", "graph": "int8", "parsed": "fp32", "built": None}
    mixed = {"layer": "b", "requested": "mixed", "graph": "fp16", "parsed": "fp16", "built": None}
    page, found = page_of(notes={"layers": [int8, mixed]})
    assert "class=off>" not in page
    assert "<th>built" not in page


def test_a_mixed_plan() -> None:
    rows = [
        {"layer": "features.0", "precision": "fp16", "macs_share": 0.02, "sqnr_db": 11.5},
        {"layer": EVIL, "precision": "int8", "macs_share": 0.98, "sqnr_db": None},
    ]
    for plan in (rows, {"layers": rows, "evaluations": 14, "score": 0.731, "costs": {"int8": 1.0, "fp16": 2.0}}):
        page, found = page_of(notes={"plan": plan})
        assert "style='width:98.0%'" in page
        assert "11.5" in found.text
    assert "int8 1, fp16 2" in found.text


def test_lint_and_calibration() -> None:
    lint = [
        {
            "rule": "q-zero-point",
            "severity": "error",
            "node": "q1",
            "module": EVIL,
            "what": "w",
            "why": "y",
            "cure": "c",
        },
        {"rule": "int64", "severity": "info", "node": "cast", "module": "", "what": "w", "why": "y", "cure": "c"},
    ]
    concerns = [{"severity": "warning", "message": f"class {EVIL} is in no image"}]
    _, found = page_of(notes={"lint": lint, "calibration_concerns": concerns, "opset": 20})
    said = " ".join(found.text)
    assert "2 remarks of the linter, 1 errors" in said
    assert f"class {EVIL} is in no image" in said
    assert "q-zero-point" in said
    assert '"opset": 20' in said
    assert "calibration_concerns" not in said


def test_where_it_parts() -> None:
    layer = {"index": 0, "node": "n0", "module": EVIL, "operator": "Conv", "error": 0.01, "added": 0.004}
    layers = [layer, {**layer, "index": 1, "error": None, "added": None}, {**layer, "index": 2, "error": 0.0}]
    found = {"reference": EVIL, "message": EVIL, "bound": 0.25, "layers": layers, "worst": layers[:2]}
    page, seen = page_of(bisection=found)
    assert page.count("<circle") == 3
    assert "not finite" in page
    assert "polyline" in page
    assert "figcaption" in seen.seen


@pytest.mark.parametrize(
    "notes", [{"layers": "x", "plan": 3, "lint": {}}, {"layers": [1, None], "plan": {"layers": []}}]
)
def test_notes_of_another_shape_do_no_harm(notes: dict[str, Any]) -> None:
    page_of(notes=notes)


def test_runtimes_that_lost_are_told() -> None:
    _, found = page_of(lost={"tensorrt": f"no NVIDIA driver {EVIL}"})
    assert f"no NVIDIA driver {EVIL}" in " ".join(found.text)


def test_a_whole_report_is_well_formed(tiny_bundle: Path, tmp_path: Path, engine: type[Engine]) -> None:
    add_tensorrt(tiny_bundle)
    assert execute(["verify", str(tiny_bundle), "--out", str(tmp_path / "out"), "--bisect", "--threads", "1"]) == 0
    found = Balance()
    found.feed((tmp_path / "out" / "report.html").read_text())
    assert found.stack == []
    data = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert {a["name"]: bool(a["bisection"]) for a in data["artifacts"]} == {"fp32": False, "tensorrt-fp32": True}
