"""The automatic plan: it finds the layer that int8 ruins, keeps to the budget and to its own limits, and says what it did."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from zoo.artifacts import Artifact, Calibration
from zoo.builtin import CLASSIFY
from zoo.errors import ExportError
from zoo.parity.gates import compare
from zoo.runtime.ort import open_session
from zoo.runtime.tensorrt import api
from zoo.specs import ImageInput
from zoo.testing.signal import give_signal, probe
from zoo.train.classify import Deployable
from zoo_export.onnx_export import export
from zoo_export.precision import mixed
from zoo_export.precision.casts import HalfPrecision, twin
from zoo_export.precision.halves import prepare
from zoo_export.precision.int8_cpu import StaticInt8
from zoo_export.precision.int8_tensorrt import SymmetricInt8
from zoo_export.precision.keeping import Yardstick
from zoo_export.precision.layers import layer_precisions
from zoo_export.precision.mixed import COSTS, MixedPlan, without_idle_pairs

SPEC = ImageInput(height=24, width=24)
Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class Net(nn.Module):
    """The channels between two of its layers differ by a factor of 1000: poison for a range that they share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.block(3, 8)
        self.poison = self.block(8, 8)
        self.after = self.block(8, 8)
        self.wide = self.block(8, 32)
        self.last = self.block(32, 16, stride=2)
        self.head = nn.Linear(16, 5)

    @staticmethod
    def block(before: int, after: int, stride: int = 1) -> nn.Sequential:
        # the normalisation carries the signal on; the exporter folds it into the convolution
        return nn.Sequential(nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.wide(self.after(self.poison(self.stem(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    network = give_signal(Net(), SPEC)
    with torch.no_grad():
        scale = torch.logspace(0, 3, 8)
        network.poison[1].weight.mul_(scale)
        network.poison[1].bias.mul_(scale)
        network.after[0].weight.div_(scale.reshape(1, -1, 1, 1))
    source = Artifact(format="torch", precision="fp32", input=SPEC, task=CLASSIFY, module=Deployable(network).eval())
    return export(source, tmp_path_factory.mktemp("mixed") / "model.fp32.onnx", {})


HELD_OUT = probe(SPEC, 48, seed=7).numpy()


@pytest.fixture(scope="module")
def calibration(fp32: Artifact) -> Calibration:
    """Judged by how near the outputs come to the network's own: 1 for the same, 0 from a tenth of their spread on."""
    assert fp32.path is not None
    truth = open_session(fp32.path, threads=1).run(HELD_OUT)["logits"]

    def judge(run: Run) -> np.ndarray:
        error = np.sqrt(((run(HELD_OUT)["logits"] - truth) ** 2).mean(axis=1)) / (truth - truth.mean()).std()
        return np.asarray(np.clip(1 - 10 * error, 0, 1))

    return Calibration(
        tensors=probe(SPEC, 16).numpy(), source="16 made images", method="minmax", judge=judge, budget=0.2
    )


def tensorrt(**limits: Any) -> MixedPlan:
    return MixedPlan("tensorrt", SymmetricInt8(), HalfPrecision("fp16"), **limits)


def cpu(**limits: Any) -> MixedPlan:
    return MixedPlan("cpu", StaticInt8(), None, **limits)


def precisions(artifact: Artifact) -> dict[str, str]:
    """Block to precision, as the plan tells it."""
    return {entry["layer"].split(".")[1]: entry["precision"] for entry in artifact.notes["plan"]}


@pytest.mark.parametrize("plan", [tensorrt, cpu])
def test_the_poisoned_layer_is_found(
    plan: Callable[[], MixedPlan], fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    rest = "fp16" if plan is tensorrt else "fp32"
    artifact = plan()(fp32, tmp_path / "model.onnx", calibration)
    found = precisions(artifact)
    assert found["after"] == rest
    assert [found[name] for name in ("wide", "last")] == ["int8", "int8"]
    assert found["head"] == rest
    assert artifact.precision == "mixed"
    assert artifact.path is not None
    model = onnx.load(str(artifact.path))
    assert list(layer_precisions(model).values()) == [entry["precision"] for entry in artifact.notes["plan"]]
    notes = artifact.notes
    assert notes["score_before"] == 1
    assert notes["score_before"] - notes["score_after"] <= calibration.budget
    tried = notes["search"]["tried"]
    assert not tried[0]["holds"], "all in int8 holds: the network is no test"
    assert tried[0]["in_float"] == 0
    json.dumps(dict(notes), allow_nan=False)


def test_it_is_executed_and_judged_as_it_is_written(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    assert calibration.judge is not None
    gpu = tensorrt()(fp32, tmp_path / "gpu.onnx", calibration)
    host = cpu()(fp32, tmp_path / "cpu.onnx", calibration)
    assert twin(host) is None
    for artifact, file in ((gpu, twin(gpu)), (host, host.path)):
        assert file is not None
        score = float(calibration.judge(open_session(file, threads=1).run).mean())
        assert score == pytest.approx(artifact.notes["score_after"], abs=1e-3)
    assert host.path is not None
    kinds = {i.data_type for i in onnx.load(str(host.path)).graph.initializer}
    assert not kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def test_tensorrt_rtx_builds_the_plan(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    library = api.find("tensorrt-rtx")
    if library is None:
        pytest.skip("tensorrt-rtx is not installed: pip install tensorrt-rtx (Linux x86-64, Windows)")
    artifact = tensorrt()(fp32, tmp_path / "model.onnx", calibration)
    assert artifact.path is not None
    shapes = {"image": ((1, 3, 24, 24), (2, 3, 24, 24), (4, 3, 24, 24))}
    built = api.build(library, artifact.path.read_bytes(), profile=shapes)
    assert built, built.reason
    layers = built.verdict.layers
    assert layers["CONVOLUTION"] == {"HALF": 5}
    assert layers["MATRIX_MULTIPLY"] == {"HALF": 1}
    assert set(layers["DEQUANTIZE"]) == {"HALF"}
    # a weight each, and the data of each
    assert layers["DEQUANTIZE"]["HALF"] >= 2 * artifact.notes["layers"]["int8"]


def test_the_more_may_be_lost_the_less_it_costs(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    plan = tensorrt()
    costs = []
    for index, budget in enumerate((0.02, 0.2, 0.99)):
        artifact = plan(fp32, tmp_path / f"{index}.onnx", replace(calibration, budget=budget))
        assert artifact.notes["score_before"] - artifact.notes["score_after"] <= budget
        costs.append(artifact.notes["predicted_cost"]["of_fp32"])
    assert costs[0] > costs[1] > COSTS["tensorrt"]["int8"]
    assert costs[1] == costs[2], "the numeric gate's bound holds whatever the score may lose"


def test_the_predicted_cost_is_what_the_plan_adds_up_to(
    fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    notes = tensorrt()(fp32, tmp_path / "model.onnx", calibration).notes
    assert sum(entry["macs_share"] for entry in notes["plan"]) == pytest.approx(1, abs=1e-3)
    expected = sum(entry["macs_share"] * COSTS["tensorrt"][entry["precision"]] for entry in notes["plan"])
    assert notes["predicted_cost"]["of_fp32"] == pytest.approx(expected, rel=1e-3)
    assert notes["predicted_cost"]["of_fp16"] == pytest.approx(2 * expected, rel=1e-3)
    # stem, poison, after, wide: 24 x 24 positions; last: 12 x 12
    work = [576 * 27 * 8, 576 * 72 * 8, 576 * 72 * 8, 576 * 72 * 32, 144 * 288 * 16, 16 * 5]
    shares = [entry["macs_share"] for entry in notes["plan"]]
    assert shares == pytest.approx([w / sum(work) for w in work], rel=1e-3)


def test_two_searches_give_the_same_bytes(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    one = tensorrt()(fp32, tmp_path / "one.onnx", calibration)
    two = tensorrt()(fp32, tmp_path / "two.onnx", calibration)
    assert one.path is not None
    assert two.path is not None
    assert one.path.read_bytes() == two.path.read_bytes()


@pytest.mark.parametrize("limits", [{"seconds": 0.0}, {"evaluations": 1}])
def test_a_search_that_may_not_go_on_falls_back_to_half(
    limits: dict[str, Any], fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    artifact = tensorrt(**limits)(fp32, tmp_path / "model.onnx", calibration)
    assert artifact.notes["layers"] == {"fp16": 6}
    assert len(artifact.notes["search"]["tried"]) == 2
    assert artifact.notes["search"]["out_of_time"] is ("seconds" in limits)
    with pytest.raises(ExportError, match=r"no plan with an int8 layer .* allow more \(--budget\)"):
        cpu(**limits)(fp32, tmp_path / "cpu.onnx", calibration)
    assert not (tmp_path / "cpu.onnx").exists()


def test_without_a_judge_the_outputs_alone_decide(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    artifact = tensorrt()(fp32, tmp_path / "model.onnx", replace(calibration, judge=None))
    notes = artifact.notes
    assert notes["chosen_by"] == "the outputs' error alone"
    assert notes["score_before"] is notes["score_after"] is notes["budget"] is None
    assert notes["rms_share"] <= 0.5 * CLASSIFY.tolerances["int8"]["numbers_rms"]
    assert notes["int8_layers"] >= 2


def test_outputs_beyond_the_gate_are_not_judged_at_all(
    fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    """A judge that finds everything good does not let a plan through that the numeric gate would refuse."""
    artifact = tensorrt()(
        fp32, tmp_path / "x.onnx", replace(calibration, judge=lambda run: np.ones(4), tensors=calibration.tensors[:4])
    )
    for tried in artifact.notes["search"]["tried"]:
        assert tried["holds"] == (tried["rms_share"] <= CLASSIFY.tolerances["int8"]["numbers_rms"])
        assert (tried["score"] is None) == (not tried["holds"])
    assert not artifact.notes["search"]["tried"][0]["holds"]


def test_layers_that_a_person_names_stay_float32(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    plan = tensorrt()
    named = next(e["node"] for e in plan(fp32, tmp_path / "a.onnx", calibration).notes["plan"] if "wide" in e["layer"])
    artifact = plan(fp32, tmp_path / "b.onnx", replace(calibration, keep_float=(named,)))
    assert precisions(artifact)["wide"] == "fp32"
    assert artifact.notes["kept_float"][0] == {"why": "asked for", "nodes": 1, "layers": ["network.wide.0"]}


class Gated(nn.Module):
    """Gates between its layers, as squeeze-and-excitation has them: an int8 pass for CPUs quantises these too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Net.block(3, 8), Net.block(8, 8), Net.block(8, 8)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
            x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        return self.head(x.mean((2, 3)))


def test_nothing_is_quantised_between_layers_in_float(calibration: Calibration, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Deployable(give_signal(Gated(), SPEC)).eval()
    fp32 = export(
        Artifact(format="torch", precision="fp32", input=SPEC, task=CLASSIFY, module=network),
        tmp_path / "fp32.onnx",
        {},
    )
    assert fp32.path is not None
    original = onnx.load(str(fp32.path))
    first, second, third, _ = layer_precisions(original)
    convert = StaticInt8()
    made = convert(fp32, tmp_path / "int8.onnx", replace(calibration, keep_float=(first, second)))
    assert made.path is not None
    model = prepare(onnx.load(str(made.path)))

    def pairs(model: onnx.ModelProto) -> int:
        return sum(node.op_type == "QuantizeLinear" for node in model.graph.node)

    before = pairs(model)
    bare = without_idle_pairs(model)
    # what the third reads, and what it gives
    assert pairs(bare) == 2 < before
    assert layer_precisions(bare)[third] == "int8"
    yard = Yardstick.of(original, calibration.tensors)
    assert 0 < yard.worst(bare) < yard.worst(onnx.load(str(made.path)))
    whole = convert(fp32, tmp_path / "whole.onnx", calibration)
    assert whole.path is not None
    assert pairs(without_idle_pairs(prepare(onnx.load(str(whole.path))))) >= 4


class Offset(nn.Module):
    """What one layer adds the next takes off: fp16 has steps of 2 there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.offset = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 16, 3, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.offset(torch.relu(self.stem(x))) - 3000
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def test_where_even_fp16_is_too_coarse_layers_stay_float32(calibration: Calibration, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = give_signal(Offset(), SPEC)
    with torch.no_grad():
        network.offset.bias.add_(3000)
    source = Artifact(format="torch", precision="fp32", input=SPEC, task=CLASSIFY, module=Deployable(network).eval())
    fp32 = export(source, tmp_path / "model.fp32.onnx", {})
    assert fp32.path is not None
    truth = open_session(fp32.path, threads=1).run(HELD_OUT)["logits"]

    def judge(run: Run) -> np.ndarray:
        return np.full(4, float(compare(run(HELD_OUT)["logits"], truth)["rms_share"] < 0.002))

    artifact = tensorrt()(fp32, tmp_path / "model.onnx", replace(calibration, judge=judge, budget=0.1))
    found = precisions(artifact)
    assert found["offset"] == "fp32"
    assert "fp16" in found.values()
    assert "int8" not in found.values()
    assert artifact.notes["score_after"] == 1


def test_what_cannot_be_planned_gives_one_line(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    out = tmp_path / "x.onnx"
    calls = []

    def never(run: Run) -> np.ndarray:
        calls.append(1)
        return np.full(4, 1.0 if len(calls) == 1 else 0.25)

    with pytest.raises(ExportError, match=r"no plan below float32 .* 1 points .*the best lost 75.00.* ask for fp32"):
        tensorrt(evaluations=3)(fp32, out, replace(calibration, judge=never, budget=0.01))
    with pytest.raises(ExportError, match=r"a budget of 1\.5 is none"):
        tensorrt()(fp32, out, replace(calibration, budget=1.5))
    with pytest.raises(ExportError, match="needs calibration images"):
        tensorrt()(fp32, out, replace(calibration, tensors=calibration.tensors[:0]))
    with pytest.raises(ExportError, match="needs an ONNX file"):
        tensorrt()(replace(fp32, path=None), out, calibration)
    with pytest.raises(ExportError, match="no node is named 'nonsense'"):
        tensorrt()(fp32, out, replace(calibration, keep_float=("nonsense",)))
    assert not out.exists()


def test_the_registered_passes_are_these() -> None:
    assert mixed.convert_tensorrt.half is not None
    assert mixed.convert_tensorrt.half.precision == "fp16"
    assert mixed.convert_cpu.half is None
    assert isinstance(mixed.convert_tensorrt.integer, SymmetricInt8)
    assert isinstance(mixed.convert_cpu.integer, StaticInt8)
