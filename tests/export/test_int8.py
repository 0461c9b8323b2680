"""Static int8: the form that CPUs are fast at, the classifier in float, and the layers that hurt found."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from zoo.artifacts import Artifact, Calibration
from zoo.builtin import CLASSIFY
from zoo.errors import ExportError, UnknownName
from zoo.parity.gates import compare
from zoo.runtime.ort import open_session
from zoo.specs import ImageInput
from zoo.testing.signal import give_signal, probe
from zoo.train.classify import Deployable
from zoo_export.onnx_export import export
from zoo_export.precision import int8
from zoo_export.precision.bias import add_to_bias, correctable, mean_shifts
from zoo_export.precision.int8 import Yardstick
from zoo_export.precision.int8_cpu import StaticInt8
from zoo_export.precision.int8_tensorrt import SymmetricInt8
from zoo_export.precision.layers import head_nodes, layer_precisions, weighted_nodes
from zoo_export.precision.ranges import Range, choose, measure
from zoo_export.precision.stem import fold_stride

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


class Norms(nn.Module):
    """Instance and RMS normalisation, written out; and a gate, which is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(a, 8, 3, padding=1) for a in (3, 8, 8))
        self.gate, self.gain, self.head = nn.Conv2d(8, 8, 1), nn.Parameter(torch.rand(1, 8, 1, 1) + 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        x = x - x.mean(2, keepdim=True).mean(3, keepdim=True)
        x = x * torch.rsqrt((x * x).mean(2, keepdim=True).mean(3, keepdim=True) + 1e-5) * self.gain
        x = self.two(torch.relu(x))
        x = torch.relu(x / (x.pow(2).mean(1, keepdim=True) + 1e-5).sqrt())
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(torch.relu(self.three(x)).mean((2, 3)))


def test_normalisations_that_are_written_out_stay_in_float(calibration: Calibration, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = Artifact(format="torch", precision="fp32", input=SPEC, task=CLASSIFY, module=Deployable(Norms()).eval())
    fp32 = export(source, tmp_path / "model.fp32.onnx", {})
    made = StaticInt8()(fp32, tmp_path / "model.int8.onnx", calibration)
    assert made.path is not None
    assert made.notes["int8_layers"] == 4
    graph = onnx.load(made.path).graph
    makers = {name: node for node in graph.node for name in node.output}

    def integers(node: NodeProto) -> bool:
        return any(name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input)

    muls = [node for node in graph.node if node.op_type == "Mul"]
    roots = [node for node in graph.node if node.op_type in ("Add", "Sqrt", "Reciprocal", "Div", "Pow")]
    assert [integers(node) for node in muls].count(True) == 1, "the gate's product runs in integers, and it alone"
    assert len(muls) >= 4
    assert not any(integers(node) for node in roots if node.op_type in ("Sqrt", "Reciprocal"))
    assert error(fp32, made) < 0.05


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
    honest = int8.measure
    monkeypatch.setattr(int8, "measure", lambda *args: calls.append(1) or honest(*args))
    convert = StaticInt8()
    convert(fp32, tmp_path / "one.onnx", calibration)
    node = convert.sensitivity(fp32, calibration)[0].node
    convert(fp32, tmp_path / "two.onnx", replace(calibration, keep_float=(node,)))
    assert len(calls) == 1
    convert(fp32, tmp_path / "three.onnx", Calibration(tensors=calibration.tensors[:4].copy(), source="others"))
    assert len(calls) == 2


def test_the_image_keeps_its_full_range(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    """Behind the folded stem too."""
    artifact = StaticInt8()(fp32, tmp_path / "model.onnx", replace(calibration, method="mean"))
    constants = {i.name: numpy_helper.to_array(i) for i in onnx.load(str(artifact.path)).graph.initializer}
    scale, zero = float(constants["image_scale"]), float(constants["image_zero_point"])
    assert (0 - zero) * scale == pytest.approx(calibration.tensors.min(), abs=scale)
    assert (255 - zero) * scale == pytest.approx(calibration.tensors.max(), abs=scale)
    strided = exported_stem(8)
    ranges = int8.Int8Pass()._ranges(strided, seen_of(strided, calibration.tensors), "mean")
    assert ranges["image.blocks2"].high == ranges["image"].high == pytest.approx(calibration.tensors.max())


def exported_stem(channels: int) -> ModelProto:
    """(N, 3, 24, 24), folded: a convolution with stride 2."""
    weight = np.random.default_rng(0).normal(size=(channels, 3, 3, 3)).astype(np.float32)
    return fold_stride(stem(weight, [24, 24], strides=[2, 2], pads=[1, 1, 1, 1]))


def seen_of(model: ModelProto, tensors: np.ndarray) -> int8._Seen:
    names = {v.name for v in (*model.graph.input, *model.graph.value_info)}
    statistics = measure(model, names, Calibration(tensors=tensors, source=""))
    return int8._Seen(
        digest="",
        tensors=None,  # type: ignore[arg-type]
        statistics=statistics,
        yardstick=Yardstick(model, tensors[:1]),
    )


@pytest.mark.parametrize("method", ["minmax", "mean", "entropy", "percentile", "mse"])
def test_the_calibrator_that_was_asked_for_is_used(
    method: str, fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    artifact = StaticInt8()(fp32, tmp_path / "model.onnx", replace(calibration, method=method))
    assert artifact.notes["calibrator"] == method
    constants = {i.name: numpy_helper.to_array(i) for i in onnx.load(str(artifact.path)).graph.initializer}
    model = onnx.load(str(fp32.path))
    name = next(n for n in model.graph.node if n.op_type == "Relu").output[0]
    expected = choose(method, measure(model, [name], calibration)[name])
    assert constants[f"{name}_scale"] * 255 == pytest.approx(expected.high, rel=1e-4)


def test_unasked_it_errs_no_more_than_with_any(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    convert = StaticInt8()
    errors = {
        method: error(fp32, convert(fp32, tmp_path / "x.onnx", replace(calibration, method=method)))
        for method in ("minmax", "mean", "entropy", "percentile", "mse")
    }
    chosen = convert(fp32, tmp_path / "x.onnx", calibration)
    assert errors[chosen.notes["calibrator"]] == error(fp32, chosen) < 1.5 * min(errors.values())


def test_an_unknown_calibrator_is_named(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown calibrator 'minmaxx': did you mean minmax"):
        StaticInt8()(fp32, tmp_path / "x.onnx", replace(calibration, method="minmaxx"))
    assert not (tmp_path / "x.onnx").exists()


def test_concerns_about_the_images_are_kept_with_those_about_the_ranges(
    fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    known = {"kind": "size", "severity": "info", "message": "few"}
    artifact = StaticInt8()(fp32, tmp_path / "x.onnx", replace(calibration, concerns=(known,), method="minmax"))
    assert artifact.notes["calibration_concerns"] == [known]
    assert artifact.notes["saturation"] == {}
    # four images of one kind, then sixteen of ten times their contrast: the mean range of all clips the latter
    loud = np.concatenate([calibration.tensors[:16] * 0.02, calibration.tensors[16:20]])
    artifact = StaticInt8()(fp32, tmp_path / "x.onnx", Calibration(tensors=loud, source="made", method="mean"))
    assert max(artifact.notes["saturation"].values()) > 0.01
    assert [c["kind"] for c in artifact.notes["calibration_concerns"]] == ["saturation"]


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


# -- the yardstick -------------------------------------------------------------------------------------------------


def two_outputs() -> ModelProto:
    """(N, 3, 24, 24) to two float outputs, each with a layer of its own behind a common one."""
    rng = np.random.default_rng(0)
    weights = {"w": (4, 3, 3, 3), "a": (4, 4, 3, 3), "b": (4, 4, 3, 3), "ha": (2, 4, 1, 1), "hb": (2, 4, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "common"),
        helper.make_node("Conv", ["c", "a"], ["d"], "first"),
        helper.make_node("Conv", ["c", "b"], ["e"], "second"),
        helper.make_node("Conv", ["d", "ha"], ["logits"], "head_a"),
        helper.make_node("Conv", ["e", "hb"], ["boxes"], "head_b"),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 24, 24])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2, 20, 20]) for n in ("logits", "boxes")],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("convert", [StaticInt8, SymmetricInt8])
def test_sensitivity_looks_at_every_output(
    convert: type[int8.Int8Pass], fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    """A layer that the first output does not depend on at all costs something all the same."""
    path = tmp_path / "model.fp32.onnx"
    onnx.save(two_outputs(), path)
    ranked = convert().sensitivity(replace(fp32, path=path), calibration, probes=4)
    found = {s.node: s.sqnr_db for s in ranked}
    assert set(found) == {"common", "first", "second"}
    assert all(20 < value < 60 for value in found.values()), found


def test_the_worst_output_counts(calibration: Calibration) -> None:
    model = two_outputs()
    yardstick = Yardstick(model, calibration.tensors[:4])
    assert yardstick.noise(model) == 0
    logits, boxes = yardstick.truth
    shifted = add_to_bias(model, {"head_a": np.full(2, 0.1, np.float32), "head_b": np.full(2, 0.2, np.float32)})
    expected = []
    for truth, shift in ((logits, 0.1), (boxes, 0.2)):
        decibels = [10 * np.log10(shift**2 / (image.astype(np.float64) ** 2).mean()) for image in truth]
        expected.append(10 ** (np.mean(decibels) / 10))
    assert yardstick.noise(shifted) == pytest.approx(max(expected), rel=1e-3)


def test_no_float_output_no_measure(calibration: Calibration) -> None:
    model = two_outputs()
    del model.graph.output[:]
    model.graph.node.append(helper.make_node("Cast", ["logits"], ["classes"], to=TensorProto.UINT8))
    model.graph.output.append(helper.make_tensor_value_info("classes", TensorProto.UINT8, None))
    with pytest.raises(ExportError, match="no float output"):
        Yardstick(model, calibration.tensors[:1])


# -- biases --------------------------------------------------------------------------------------------------------


def layered(bias: bool) -> ModelProto:
    """(N, 3, 24, 24) to (N, 4): convolutions, a transposed one, a MatMul with an Add behind it, a Gemm with beta 0.5."""
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) + 0.1).astype(np.float32)

    weights = {"w1": draw(8, 3, 3, 3), "w2": draw(8, 6, 2, 2), "w3": draw(6, 5), "b3": draw(5), "w4": draw(4, 5)}
    weights |= {"b1": draw(8), "b4": draw(1, 4)} if bias else {}
    nodes = [
        helper.make_node("Conv", ["image", "w1", *(["b1"] if bias else [])], ["a"], "conv", strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("ConvTranspose", ["b", "w2"], ["c"], "transposed"),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "w3"], ["g"], "matmul"),
        helper.make_node("Add", ["g", "b3"], ["h"], "add"),
        helper.make_node("Gemm", ["h", "w4", *(["b4"] if bias else [])], ["i"], "gemm", transB=1, beta=0.5),
        helper.make_node("Relu", ["i"], ["j"], "relu3"),
        helper.make_node("MatMul", ["j", "w5"], ["logits"], "head"),
    ]
    weights["w5"] = draw(4, 4)
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 24, 24])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


LAYERS = ["conv", "transposed", "matmul", "gemm"]


def coarse(model: ModelProto) -> ModelProto:
    """Its layers in int8 with ranges that clip a lot."""
    names = ["image", "b", "f", "h"]
    found = measure(model, names, Calibration(tensors=probe(SPEC, 32).numpy(), source=""))
    ranges = {n: Range(low=0.4 * found[n].low, high=0.4 * found[n].high) for n in names}
    return SymmetricInt8().quantise(model, ranges, LAYERS)


def mean_errors(model: ModelProto, other: ModelProto) -> dict[str, float]:
    """The median over the images of what each layer's channel means are off by, RMS over the channels."""
    outputs = {"conv": "a", "transposed": "c", "matmul": "h", "gemm": "i"}
    found = {}
    for layer, name in outputs.items():
        sides = []
        for one in (model, other):
            told = onnx.ModelProto()
            told.CopyFrom(one)
            del told.graph.output[:]
            told.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
            value = open_session(told.SerializeToString(), threads=1).run(probe(SPEC, 32).numpy())[name]
            sides.append(value.reshape(*value.shape[:2], -1).mean(axis=2))
        found[layer] = float(np.sqrt((np.median(sides[1] - sides[0], axis=0) ** 2).mean()))
    return found


@pytest.mark.parametrize("bias", [False, True])
def test_corrected_biases_bring_the_means_back(bias: bool) -> None:
    model = layered(bias)
    assert correctable(model, LAYERS) == LAYERS
    quantised = coarse(model)
    before = mean_errors(model, quantised)
    shifts = mean_shifts(model, quantised, LAYERS, probe(SPEC, 32).numpy())
    assert {name: shift.shape for name, shift in shifts.items()} == {
        "conv": (8,),
        "transposed": (6,),
        "matmul": (5,),
        "gemm": (4,),
    }
    corrected = add_to_bias(model, shifts)
    onnx.checker.check_model(corrected, full_check=True)
    after = mean_errors(model, coarse_as(corrected, quantised))
    # the first layer sees the same images with and without, so it is exact there
    assert after["conv"] < 1e-3 * before["conv"]
    for layer in LAYERS[1:]:
        assert after[layer] < 0.35 * before[layer], (layer, before, after)


def coarse_as(model: ModelProto, quantised: ModelProto) -> ModelProto:
    """``model`` in int8 with the scales of ``quantised``."""
    scales = {
        i.name: float(numpy_helper.to_array(i))
        for i in quantised.graph.initializer
        if i.name.endswith(".scale") and not i.dims
    }
    ranges = {n.removesuffix(".scale"): Range(low=-127 * s, high=127 * s) for n, s in scales.items()}
    return SymmetricInt8().quantise(model, ranges, LAYERS)


def test_a_shift_is_added_exactly_once_even_where_a_bias_is_shared() -> None:
    model = layered(True)
    tensors = probe(SPEC, 4).numpy()
    shift = {"gemm": np.arange(4, dtype=np.float32), "matmul": np.ones(5, np.float32)}
    changed = add_to_bias(model, shift)
    values = {}
    for name, one in (("before", model), ("after", changed)):
        told = onnx.ModelProto()
        told.CopyFrom(one)
        del told.graph.output[:]
        told.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("h", "i"))
        values[name] = open_session(told.SerializeToString(), threads=1).run(tensors)
    assert values["after"]["h"] - values["before"]["h"] == pytest.approx(1, abs=1e-4)
    weight = next(numpy_helper.to_array(i) for i in model.graph.initializer if i.name == "w4")
    assert values["after"]["i"] - values["before"]["i"] == pytest.approx(
        np.broadcast_to(np.arange(4) + weight.sum(axis=1), (4, 4)), abs=1e-3
    )
    # one of two layers that share a bias is corrected, the other keeps it
    shared = two_outputs()
    shared.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "bias"))
    for node in shared.graph.node[1:3]:
        node.input.append("bias")
    apart = add_to_bias(shared, {"first": np.ones(4, np.float32)})
    biases = {n.name: n.input[2] for n in apart.graph.node if len(n.input) > 2}
    constants = {i.name: numpy_helper.to_array(i) for i in apart.graph.initializer}
    assert (constants[biases["first"]] == 1).all()
    assert (constants[biases["second"]] == 0).all()


def test_layers_whose_bias_has_no_place_are_left_out() -> None:
    model = layered(True)
    gemm = next(n for n in model.graph.node if n.name == "gemm")
    next(a for a in gemm.attribute if a.name == "beta").f = 0.0  # which makes it ignore its bias
    assert correctable(model, [*LAYERS, "head"]) == ["conv", "transposed", "matmul"]


def test_outliers_in_a_few_images_do_not_move_the_correction() -> None:
    """Two images of 32 drive a layer far out of its range; what is corrected is what the other thirty need."""
    model = layered(True)
    tensors = probe(SPEC, 32).numpy()
    ranges = {
        n: Range(low=found.low, high=found.high)
        for n, found in measure(model, ["image", "b", "f", "h"], Calibration(tensors=tensors, source="")).items()
    }
    quantised = SymmetricInt8().quantise(model, ranges, LAYERS)
    calm = mean_shifts(model, quantised, ["transposed"], tensors)["transposed"]
    loud = tensors.copy()
    loud[:2] *= 30
    wild = mean_shifts(model, quantised, ["transposed"], loud)["transposed"]
    only = mean_shifts(model, quantised, ["transposed"], loud[:2])["transposed"]
    assert np.abs(only).max() > 100 * np.abs(calm).max()
    assert np.abs(wild - calm).max() < 0.5 * np.abs(calm).max() + 1e-3


# -- the stem ------------------------------------------------------------------------------------------------------


def stem(weight: np.ndarray, size: list[int | str], **attributes: object) -> ModelProto:
    channels = weight.shape[1] * int(attributes.get("group", 1))  # type: ignore[call-overload]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["y"], "stem", **attributes)],
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weight.shape[0], None, None])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(("stride", "kernel"), itertools.product((2, 3, 4), (1, 2, 3, 5, 7)))
def test_a_folded_stride_gives_the_same_numbers(stride: int, kernel: int) -> None:
    rng = np.random.default_rng(stride * kernel)
    for pads in ([0, 0, 0, 0], [1, 1, 1, 1], [3, 3, 3, 3], [0, 1, 2, 1]):
        weight = rng.normal(size=(5, 3, kernel, kernel)).astype(np.float32)
        model = stem(weight, [24, 36], strides=[stride] * 2, pads=pads)
        folded = fold_stride(model)
        onnx.checker.check_model(folded, full_check=True)
        assert [n.op_type for n in folded.graph.node] == ["SpaceToDepth", "Conv"]
        assert folded.graph.node[1].name == "stem"
        assert len(folded.graph.initializer) == 1
        x = rng.normal(size=(2, 3, 24, 36)).astype(np.float32)
        ours, theirs = (open_session(m.SerializeToString(), threads=1).run(x)["y"] for m in (folded, model))
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize(
    ("shape", "size", "attributes"),
    [
        ((4, 3, 3, 3), [24, 24], {"strides": [1, 1]}),
        ((4, 3, 3, 3), [24, 24], {"strides": [2, 1]}),
        ((4, 3, 3, 3), [25, 24], {"strides": [2, 2]}),
        ((4, 3, 3, 3), ["height", "width"], {"strides": [2, 2]}),
        ((4, 3, 3, 3), [24, 24], {"strides": [2, 2], "dilations": [2, 2]}),
        ((4, 3, 3, 3), [24, 24], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((4, 1, 3, 3), [24, 24], {"strides": [2, 2], "group": 4}),
        ((4, 8, 3, 3), [24, 24], {"strides": [2, 2]}),
    ],
)
def test_what_cannot_be_folded_stays(
    shape: tuple[int, ...], size: list[int | str], attributes: dict[str, object]
) -> None:
    model = stem(np.ones(shape, np.float32), size, **attributes)
    assert fold_stride(model) == model


def test_the_folded_stem_is_an_int8_layer(calibration: Calibration, fp32: Artifact, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": (8, 3, 3, 3), "a": (8, 8, 3, 3), "h": (4, 8, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "stem", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "a"], ["d"], "second"),
        helper.make_node("Conv", ["d", "h"], ["logits"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 24, 24])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 10, 10])],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in weights.items()],
    )
    path = tmp_path / "model.fp32.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    source = replace(fp32, path=path)
    artifact = StaticInt8()(source, tmp_path / "model.int8.onnx", calibration)
    written = onnx.load(str(artifact.path))
    assert layer_precisions(written) == {"stem": "int8", "second": "int8", "head": "fp32"}
    assert sum(n.op_type == "SpaceToDepth" for n in written.graph.node) == 1
    assert error(source, artifact) < 0.03
    # TensorRT's form keeps the shape that its own kernels know
    other = SymmetricInt8()(source, tmp_path / "model.trt.onnx", calibration)
    assert not any(n.op_type == "SpaceToDepth" for n in onnx.load(str(other.path)).graph.node)


# -- reading precisions off a graph --------------------------------------------------------------------------------


def test_precisions_are_read_off_the_graph() -> None:
    """int8 needs both operands; weights may come through casts; without a known type the weights' own says it."""

    def tensor(value: np.ndarray, name: str) -> TensorProto:
        return numpy_helper.from_array(value, name)

    dq, q = "DequantizeLinear", "QuantizeLinear"
    nodes = [
        helper.make_node(q, ["x", "s", "z"], ["xq"]),
        helper.make_node(dq, ["xq", "s", "z"], ["xd"]),
        helper.make_node(dq, ["w8", "s", "z"], ["wd"]),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["xd", "wt"], ["a"], "both"),
        helper.make_node("MatMul", ["a", "wd"], ["b"], "weights only"),
        helper.make_node("MatMul", ["xd", "wf"], ["c"], "data only"),
        helper.make_node("Cast", ["b"], ["bh"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["wf"], ["wh"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["bh", "wh"], ["d"], "half"),
        helper.make_node("Cast", ["d"], ["db"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["wf"], ["wb"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["db", "wb"], ["e"], "brain"),
        helper.make_node("MatMul", ["x", "x"], ["f"], "no weights"),
        helper.make_node("Unknown", ["x"], ["u"], domain="elsewhere"),
        helper.make_node("MatMul", ["u", "wf"], ["g"], "type unknown"),
        helper.make_node(dq, ["x32", "s"], ["x32d"]),
        helper.make_node("MatMul", ["x32d", "wd"], ["h"], "32 bits"),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4]),
            helper.make_tensor_value_info("x32", TensorProto.INT32, [4, 4]),
        ],
        [helper.make_tensor_value_info("e", TensorProto.BFLOAT16, [4, 4])],
        [
            tensor(np.float32(0.1), "s"),
            tensor(np.int8(0), "z"),
            tensor(np.ones((4, 4), np.int8), "w8"),
            tensor(np.ones((4, 4), np.float32), "wf"),
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)], ir_version=10
    )
    assert layer_precisions(model) == {
        "both": "int8",
        "weights only": "fp32",
        "data only": "fp32",
        "half": "fp16",
        "brain": "bf16",
        "type unknown": "fp32",
        "32 bits": "fp32",
    }


def test_the_head_is_the_last_layer_on_each_way_out() -> None:
    model = two_outputs()
    assert weighted_nodes(model) == ["common", "first", "second", "head_a", "head_b"]
    assert head_nodes(model) == {"head_a", "head_b"}
    assert set(layer_precisions(model).values()) == {"fp32"}
