"""Static int8: the form that CPUs are fast at, the classifier in float, and the layers that hurt found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from zoo.artifacts import Artifact, Calibration
from zoo.builtin import CLASSIFY
from zoo.errors import ExportError
from zoo.parity.gates import compare
from zoo.runtime.ort import open_session
from zoo.specs import ImageInput
from zoo.testing.signal import give_signal, probe
from zoo.train.classify import Deployable
from zoo_export.onnx_export import export
from zoo_export.precision import int8_cpu
from zoo_export.precision.int8_cpu import StaticInt8

SPEC = ImageInput(height=24, width=24)


class Net(nn.Module):
    """A residual network whose second convolution has one channel 300 times the others': poison for one range."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.poison = nn.Conv2d(8, 8, 3, padding=1)
        self.after = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 16, 3, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.after(self.poison(x)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    network = give_signal(Net(), SPEC)
    with torch.no_grad():
        # one channel goes out 300 times as strong, and the next layer all but ignores it
        network.poison.weight[0] *= 300
        network.after.weight[:, 0] /= 300
    module = Deployable(network).eval()
    source = Artifact(format="torch", precision="fp32", input=SPEC, task=CLASSIFY, module=module)
    return export(source, tmp_path_factory.mktemp("int8") / "model.fp32.onnx", {})


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration(tensors=probe(SPEC, 32).numpy(), source="32 made images")


def error(fp32: Artifact, int8_artifact: Artifact) -> float:
    tensors = probe(SPEC, 16, seed=9).numpy()
    assert fp32.path is not None
    assert int8_artifact.path is not None
    theirs = open_session(fp32.path, threads=1).run(tensors)["logits"]
    ours = open_session(int8_artifact.path, threads=1).run(tensors)["logits"]
    return float(compare(ours, theirs)["rms_share"])


def test_the_scheme_is_u8s8_per_channel(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    artifact = StaticInt8()(fp32, tmp_path / "model.int8_cpu.onnx", calibration)
    model = onnx.load(str(artifact.path))
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    constants = {i.name: i for i in model.graph.initializer}
    maker = {o: n for n in model.graph.node for o in n.output}
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    assert len(convolutions) == 4
    for node in convolutions:
        activation, weight = maker[node.input[0]], maker[node.input[1]]
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert constants[activation.input[2]].data_type == TensorProto.UINT8
        assert constants[weight.input[0]].data_type == TensorProto.INT8
        scales = numpy_helper.to_array(constants[weight.input[1]])
        assert scales.shape == (constants[weight.input[0]].dims[0],), "one scale per output channel"
        assert not numpy_helper.to_array(constants[weight.input[2]]).any(), "weights are symmetric"
    zero_points = [numpy_helper.to_array(constants[maker[n.input[0]].input[2]]).item() for n in convolutions]
    assert any(zero_points), "activations are asymmetric"


def test_the_classifier_and_what_follows_stay_in_float(
    fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    artifact = StaticInt8()(fp32, tmp_path / "model.int8_cpu.onnx", calibration)
    model = onnx.load(str(artifact.path))
    head = next(n for n in model.graph.node if n.op_type == "Gemm")
    weights = next(i for i in model.graph.initializer if i.name == head.input[1])
    assert weights.data_type == TensorProto.FLOAT
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    assert softmax.input[0] == "logits"
    assert [o.name for o in model.graph.output] == ["logits", "scores"]
    assert artifact.notes["float_layers"] == ["network.head"]
    assert artifact.notes["int8_layers"] == 4
    assert artifact.notes["calibration_images"] == 32
    assert artifact.notes["calibration_source"] == "32 made images"


def test_two_conversions_give_the_same_bytes(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    one = StaticInt8()(fp32, tmp_path / "one.onnx", calibration)
    two = StaticInt8()(fp32, tmp_path / "two.onnx", calibration)
    assert one.path is not None
    assert two.path is not None
    assert one.path.read_bytes() == two.path.read_bytes()
    assert fp32.path is not None
    assert one.path.stat().st_size < fp32.path.stat().st_size


def test_sensitivity_finds_the_poisoned_layer_and_float_heals_it(
    fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    convert = StaticInt8()
    ranked = convert.sensitivity(fp32, calibration)
    assert len(ranked) == 4
    assert [s.sqnr_db for s in ranked] == sorted(s.sqnr_db for s in ranked)
    # its output carries the poisoned channel, and so does the input of the layer after it
    assert {s.module for s in ranked[:2]} == {"network.poison", "network.after"}
    whole = error(fp32, convert(fp32, tmp_path / "whole.onnx", calibration))
    healed = convert(fp32, tmp_path / "healed.onnx", replace(calibration, keep_float=tuple(s.node for s in ranked[:2])))
    assert set(healed.notes["float_layers"]) == {"network.poison", "network.after", "network.head"}
    assert healed.notes["int8_layers"] == 2
    assert error(fp32, healed) < 0.5 * whole


def test_calibrates_once_for_several_tries(
    fp32: Artifact, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    honest = int8_cpu._measure
    monkeypatch.setattr(int8_cpu, "_measure", lambda *args: calls.append(1) or honest(*args))
    convert = StaticInt8()
    convert(fp32, tmp_path / "one.onnx", calibration)
    node = convert.sensitivity(fp32, calibration)[0].node
    convert(fp32, tmp_path / "two.onnx", replace(calibration, keep_float=(node,)))
    assert len(calls) == 1
    convert(fp32, tmp_path / "three.onnx", Calibration(tensors=calibration.tensors[:4].copy(), source="others"))
    assert len(calls) == 2


def test_ranges_are_those_of_the_calibration_images(fp32: Artifact, calibration: Calibration) -> None:
    assert fp32.path is not None
    ranges = int8_cpu._measure(onnx.load(str(fp32.path)), calibration)
    low, high = ranges["image"].range_value
    assert low == pytest.approx(calibration.tensors.min())
    assert high == pytest.approx(calibration.tensors.max())


def test_what_cannot_be_quantised_gives_one_line(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    convert = StaticInt8()
    with pytest.raises(ExportError, match="no node is named 'nonsense'"):
        convert(fp32, tmp_path / "x.onnx", replace(calibration, keep_float=("nonsense",)))
    with pytest.raises(ExportError, match="needs calibration images"):
        convert(fp32, tmp_path / "x.onnx", Calibration(tensors=calibration.tensors[:0], source="none"))
    everything = tuple(s.node for s in convert.sensitivity(fp32, calibration))
    with pytest.raises(ExportError, match="no layer can be quantised"):
        convert(fp32, tmp_path / "x.onnx", replace(calibration, keep_float=everything))
    assert fp32.path is not None
    other = tmp_path / "text.onnx"
    other.write_text("not a network")
    with pytest.raises(ExportError, match="is not an ONNX file"):
        convert(replace(fp32, path=other), tmp_path / "x.onnx", calibration)
    assert not (tmp_path / "x.onnx").exists()


def test_activations_that_are_not_finite_are_named(fp32: Artifact, tmp_path: Path) -> None:
    tensors = probe(SPEC, 8).numpy()
    tensors[3, 0, 0, 0] = np.inf
    with pytest.raises(ExportError, match="not finite on the calibration images"):
        StaticInt8()(fp32, tmp_path / "x.onnx", Calibration(tensors=tensors, source="broken"))


def test_notes_are_json(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    json.dumps(StaticInt8()(fp32, tmp_path / "model.int8_cpu.onnx", calibration).notes)
