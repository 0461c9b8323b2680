"""Symmetric int8: the form that NVIDIA's parser takes and its builder fuses, placed as documented, executed by ONNX Runtime."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from zoo.artifacts import Artifact, Calibration
from zoo.builtin import CLASSIFY, SEGMENT
from zoo.errors import ExportError, UnknownName
from zoo.parity.gates import compare
from zoo.runtime.ort import open_session
from zoo.runtime.tensorrt.api import Library, build, find
from zoo.specs import ImageInput
from zoo.testing.signal import give_signal, probe
from zoo.train.classify import Deployable
from zoo_export.onnx_export import export
from zoo_export.precision.int8_tensorrt import SymmetricInt8, output_axis, quantised_skips
from zoo_export.precision.layers import layer_precisions
from zoo_export.precision.ranges import Range
from zoo_export.tensorrt.lint import lint
from zoo_export.tensorrt.rules import ERROR
from zoo_export.tensorrt.targets import Target

SPEC = ImageInput(height=32, width=32)
F = TensorProto.FLOAT


class Block(nn.Module):
    """A ResNet's block: where it strides, its skip is a convolution too."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm_one = nn.BatchNorm2d(outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm_two = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm_one(self.one(x)))
        return torch.relu(self.norm_two(self.two(y)) + self.skip(x))


class Net(nn.Module):
    """Each kind of layer with weights: grouped, depthwise and transposed convolutions, a gate of one pixel, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.plain, self.strided = Block(16, 16, 1), Block(16, 32, 2)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.reduce, self.expand = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.up = nn.ConvTranspose2d(32, 24, 2, 2)
        self.last = nn.Conv2d(24, 32, 3, 2, 1)
        self.hidden, self.head = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.strided(self.plain(torch.relu(self.stem(x))))
        x = torch.relu(self.depthwise(x))
        x = x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        x = torch.relu(self.last(torch.relu(self.up(x))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


class Tokens(nn.Module):
    """A transformer's layers: a linear one on tokens is a MatMul and an Add."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.norm = nn.LayerNorm(24)
        self.up, self.down, self.head = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


def exported(network: nn.Module, folder: Path) -> Artifact:
    torch.manual_seed(0)
    module = Deployable(give_signal(network, SPEC)).eval()
    source = Artifact(format="torch", precision="fp32", input=SPEC, task=CLASSIFY, module=module)
    return export(source, folder / "model.fp32.onnx", {})


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration(tensors=probe(SPEC, 32).numpy(), source="32 made images")


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    return exported(Net(), tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    return exported(Tokens(), tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def int8(fp32: Artifact, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return SymmetricInt8()(fp32, tmp_path_factory.mktemp("int8") / "model.int8.onnx", calibration)


@pytest.fixture(scope="module")
def library() -> Library:
    found = find("tensorrt-rtx")
    if found is None:
        pytest.skip("tensorrt-rtx is not installed: pip install tensorrt-rtx (Linux x86-64, Windows)")
    return found


def load(artifact: Artifact) -> ModelProto:
    assert artifact.path is not None
    model = onnx.load(str(artifact.path))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(artifact: Artifact, tensors: np.ndarray) -> np.ndarray:
    assert artifact.path is not None
    return open_session(artifact.path, threads=1).run(tensors)["logits"]


def error(reference: Artifact, artifact: Artifact) -> float:
    tensors = probe(SPEC, 16, seed=9).numpy()
    return float(compare(run(artifact, tensors), run(reference, tensors))["rms_share"])


def modules(artifact: Artifact) -> dict[str, str]:
    """Torch module to graph node."""
    assert artifact.path is not None
    found = json.loads(artifact.path.with_name("model.modules.json").read_text())
    kinds = {n.name: n.op_type for n in load(artifact).graph.node}
    return {m: n for n, m in found.items() if kinds.get(n) in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")}


# -- the scheme ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp32", "tokens"])
def test_the_scheme_is_symmetric_with_float_biases(
    name: str, calibration: Calibration, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(name)
    model = load(SymmetricInt8()(source, tmp_path / "model.int8.onnx", calibration))
    constants = {i.name: i for i in model.graph.initializer}
    originals = {i.name: numpy_helper.to_array(i) for i in load(source).graph.initializer}
    weights = {n.name: n.input[1] for n in load(source).graph.node if len(n.input) > 1}
    makers = {o: n for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = (numpy_helper.to_array(constants[i]) for i in node.input[1:])
            assert zero.dtype == np.int8, "no uint8, and no bias in int32"
            assert not zero.any()
            assert scale.dtype == np.float32
            assert (scale > 0).all()
    layers = [n for n in model.graph.node if layer_precisions(model).get(n.name) == "int8"]
    assert {n.op_type for n in layers} >= ({"Conv", "ConvTranspose", "Gemm"} if name == "fp32" else {"Conv", "MatMul"})
    for node in layers:
        data, weight = makers[node.input[0]], makers[node.input[1]]
        assert numpy_helper.to_array(constants[data.input[1]]).shape == (), "one scale for all data of a layer"
        original = originals[weights[node.name]]
        axis = next(a.i for a in weight.attribute if a.name == "axis")
        assert axis == output_axis(node, original.ndim)
        scale, integers = (numpy_helper.to_array(constants[weight.input[k]]) for k in (1, 0))
        assert scale.shape == (original.shape[axis],), "one scale an output channel"
        assert integers.dtype == np.int8
        assert integers.min() >= -127
        wide = scale.reshape([-1 if k == axis else 1 for k in range(original.ndim)])
        assert np.abs(integers * wide - original).max() <= 0.5001 * scale.max()
        assert (np.abs(integers).max(axis=tuple(k for k in range(original.ndim) if k != axis)) == 127).all()
        for bias in node.input[2:]:
            assert constants[bias].data_type == F


@pytest.mark.parametrize(
    ("kind", "attributes", "rank", "axis"),
    [("Conv", {}, 4, 0), ("ConvTranspose", {}, 4, 1), ("Gemm", {}, 2, 1), ("Gemm", {"transB": 1}, 2, 0)]
    + [("MatMul", {}, 2, 1), ("MatMul", {}, 3, 2)],
)
def test_the_axis_of_the_output_channels(kind: str, attributes: dict[str, int], rank: int, axis: int) -> None:
    assert output_axis(helper.make_node(kind, ["x", "w"], ["y"], **attributes), rank) == axis


def test_what_is_quantised_is_told(fp32: Artifact, int8: Artifact) -> None:
    precisions = layer_precisions(load(int8))
    notes = int8.notes
    in_float = {"network.reduce", "network.expand", "network.head"}
    assert set(notes["float_layers"]) == in_float
    assert Counter(precisions.values()) == {"int8": notes["int8_layers"], "fp32": 3}
    assert {precisions[modules(fp32)[name]] for name in in_float} == {"fp32"}
    assert (int8.format, int8.precision) == ("onnx", "int8")
    assert notes["calibrator"] in ("entropy", "mean", "minmax", "mse", "percentile")
    assert (notes["calibration_images"], notes["calibration_source"]) == (32, "32 made images")
    assert isinstance(notes["bias_correction"], bool)
    assert len(notes["saturation"]) <= 5
    assert set(notes["saturation"]) <= {n.input[0] for n in load(int8).graph.node if n.op_type == "QuantizeLinear"}
    assert "onnxruntime" in notes["made_with"]
    json.dumps(notes)


def test_it_answers_as_the_float_network_does(
    fp32: Artifact, int8: Artifact, tokens: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    assert error(fp32, int8) < 0.06
    assert error(tokens, SymmetricInt8()(tokens, tmp_path / "model.int8.onnx", calibration)) < 0.06
    assert fp32.path is not None
    assert int8.path is not None
    # all but the head, the gate and the names is a quarter
    assert int8.path.stat().st_size < 0.45 * fp32.path.stat().st_size


def test_two_conversions_give_the_same_bytes(
    fp32: Artifact, int8: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    again = SymmetricInt8()(fp32, tmp_path / "again.onnx", calibration)
    assert again.path is not None
    assert int8.path is not None
    assert again.path.read_bytes() == int8.path.read_bytes()


@pytest.mark.parametrize("method", ["minmax", "mean", "entropy", "percentile", "mse"])
def test_the_calibrator_that_was_asked_for_is_used(
    method: str, fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    asked = SymmetricInt8()(fp32, tmp_path / f"{method}.onnx", replace(calibration, method=method))
    assert asked.notes["calibrator"] == method
    assert error(fp32, asked) < 0.12


def test_the_best_calibrator_is_taken_unasked(
    fp32: Artifact, int8: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    """On the images that it is chosen on; no other of them errs less there."""
    convert = SymmetricInt8()
    errors = {}
    for method in ("minmax", "mean", "entropy", "percentile", "mse"):
        asked = convert(fp32, tmp_path / f"{method}.onnx", replace(calibration, method=method))
        ours, theirs = run(asked, calibration.tensors), run(fp32, calibration.tensors)
        errors[method] = float(((ours - theirs) ** 2).mean())
    chosen = errors[int8.notes["calibrator"]]
    assert chosen <= 1.25 * min(errors.values()), "two finalists of five are compared in full, on scores and logits"
    assert chosen < max(errors.values())


# -- placement -----------------------------------------------------------------------------------------------------


def test_skips_are_quantised_so_that_convolution_and_addition_fuse(fp32: Artifact, int8: Artifact) -> None:
    model = load(int8)
    makers = {o: n for n in model.graph.node for o in n.output}
    names = modules(fp32)
    found = {}
    for node in model.graph.node:
        if node.op_type == "Add":
            found[node.name] = [makers[i].op_type for i in node.input]
    assert sorted(found.values()) == [["Conv", "DequantizeLinear"]] * 2
    plain = next(
        n for n in model.graph.node if n.op_type == "Add" and names["network.plain.two"] == makers[n.input[0]].name
    )
    skip = makers[plain.input[1]]
    # the block's first convolution and the addition read one and the same int8 tensor
    first = next(n for n in model.graph.node if n.name == names["network.plain.one"])
    assert first.input[0] == skip.output[0]
    # outputs of layers are left alone: an activation comes before the next Q
    readers = {i: n for n in model.graph.node for i in n.input}
    assert readers[first.output[0]].op_type == "Relu"


def graph(*nodes: onnx.NodeProto, **weights: np.ndarray) -> ModelProto:
    """(1, 4, 8, 8) to y."""
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", F, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", F, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def conv(source: str, target: str, weight: str = "w") -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [target], target, pads=[1] * 4)


W = np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("nodes", "layers", "expected"),
    [
        # a convolution, its input added, then an integer layer: the input is the skip
        ([conv("x", "a"), helper.make_node("Add", ["a", "x"], ["s"], "s"), conv("s", "y")], "ay", {"s": 1}),
        ([conv("x", "a"), helper.make_node("Add", ["x", "a"], ["s"], "s"), conv("s", "y")], "ay", {"s": 0}),
        # behind an activation still
        (
            [conv("x", "a"), helper.make_node("Add", ["a", "x"], ["s"], "s")]
            + [helper.make_node("Relu", ["s"], ["r"], "r"), conv("r", "y")],
            "ay",
            {"s": 1},
        ),
        # a float layer follows, so float is to come out
        ([conv("x", "a"), helper.make_node("Add", ["a", "x"], ["s"], "s"), conv("s", "y")], "a", {}),
        # the convolution is in float itself
        ([conv("x", "a"), helper.make_node("Add", ["a", "x"], ["s"], "s"), conv("s", "y")], "y", {}),
        # its result is needed elsewhere, so the addition cannot be taken in
        (
            [conv("x", "a"), helper.make_node("Add", ["a", "x"], ["s"], "s"), conv("s", "b")]
            + [helper.make_node("Add", ["a", "b"], ["y"], "y")],
            "ab",
            {},
        ),
        # an activation stands between
        (
            [conv("x", "a"), helper.make_node("Relu", ["a"], ["r"], "r")]
            + [helper.make_node("Add", ["r", "x"], ["s"], "s"), conv("s", "y")],
            "ay",
            {},
        ),
        # a bias is no skip
        ([conv("x", "a"), helper.make_node("Add", ["a", "b"], ["s"], "s"), conv("s", "y")], "ay", {}),
    ],
)
def test_which_input_of_an_addition_is_the_skip(
    nodes: list[onnx.NodeProto], layers: str, expected: dict[str, int]
) -> None:
    model = graph(*nodes, w=W, b=np.ones((4, 1, 1), np.float32))
    assert quantised_skips(model, list(layers)) == expected


def test_a_tensor_and_a_weight_that_two_layers_share_are_quantised_once() -> None:
    model = graph(conv("x", "a"), conv("x", "b"), helper.make_node("Add", ["a", "b"], ["y"], "y"), w=W)
    found = SymmetricInt8().quantise(model, {"x": Range(low=-1, high=2)}, ["a", "b"])
    assert Counter(n.op_type for n in found.graph.node) == {
        "QuantizeLinear": 1,
        "DequantizeLinear": 2,
        "Conv": 2,
        "Add": 1,
    }
    scale = next(numpy_helper.to_array(i) for i in found.graph.initializer if i.name == "x.scale")
    assert scale == pytest.approx(2 / 127)
    assert not any(i.name == "w" for i in found.graph.initializer), "the float weights are gone"


def test_names_that_are_taken_already_are_left_alone() -> None:
    model = graph(conv("x", "x.int8"), conv("x.int8", "y", "x.scale"), **{"w": W, "x.scale": W})
    found = SymmetricInt8().quantise(model, {n: Range(low=-1, high=1) for n in ("x", "x.int8")}, ["x.int8", "y"])
    onnx.checker.check_model(found, full_check=True)
    names = [i.name for i in found.graph.initializer] + [o for n in found.graph.node for o in n.output]
    assert len(names) == len(set(names))


def test_zeros_have_a_scale() -> None:
    weight = W.copy()
    weight[2] = 0
    model = graph(conv("x", "y"), w=weight)
    found = SymmetricInt8().quantise(model, {"x": Range(low=0, high=0)}, ["y"])
    scales = {i.name: numpy_helper.to_array(i) for i in found.graph.initializer}
    assert scales["x.scale"] > 0
    assert (scales["w.scale"] > 0).all()
    assert not scales["w.int8"][2].any()


# -- layers that go back, and what they cost -----------------------------------------------------------------------


def test_a_layer_kept_in_float_has_no_q_on_it(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    names = modules(fp32)
    convert = SymmetricInt8()
    kept = convert(
        fp32, tmp_path / "kept.onnx", replace(calibration, keep_float=(names["network.plain.two"],), method="minmax")
    )
    model = load(kept)
    assert layer_precisions(model)[names["network.plain.two"]] == "fp32"
    assert "network.plain.two" in kept.notes["float_layers"]
    makers = {o: n for n in model.graph.node for o in n.output}
    node = next(n for n in model.graph.node if n.name == names["network.plain.two"])
    assert makers[node.input[0]].op_type == "Relu"
    # the addition that it ends in is a float one again, the other block's is not
    kinds = sorted(sorted(makers[i].op_type for i in n.input) for n in model.graph.node if n.op_type == "Add")
    assert kinds == [["Conv", "DequantizeLinear"], ["Conv", "Relu"]]


def test_sensitivity_measures_each_layer_alone(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    convert = SymmetricInt8()
    ranked = convert.sensitivity(fp32, calibration, probes=8)
    whole = convert(fp32, tmp_path / "whole.onnx", calibration)
    assert len(ranked) == whole.notes["int8_layers"]
    assert [s.sqnr_db for s in ranked] == sorted(s.sqnr_db for s in ranked)
    assert all(s.module for s in ranked)
    assert all(10 < s.sqnr_db < 100 for s in ranked)
    healed = convert(fp32, tmp_path / "healed.onnx", replace(calibration, keep_float=tuple(s.node for s in ranked[:3])))
    assert error(fp32, healed) < error(fp32, whole)


def test_bad_requests_give_one_line(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    convert, out = SymmetricInt8(), tmp_path / "x.onnx"
    with pytest.raises(ExportError, match="no node is named 'nonsense'"):
        convert(fp32, out, replace(calibration, keep_float=("nonsense",)))
    with pytest.raises(ExportError, match="needs calibration images"):
        convert(fp32, out, replace(calibration, tensors=calibration.tensors[:0]))
    with pytest.raises(UnknownName, match="unknown calibrator 'entropi': did you mean entropy"):
        convert(fp32, out, replace(calibration, method="entropi"))
    with pytest.raises(UnknownName, match="unknown calibrator"):
        convert.sensitivity(fp32, replace(calibration, method="entropi"))
    everything = tuple(s.node for s in convert.sensitivity(fp32, calibration, probes=1))
    with pytest.raises(ExportError, match="no layer can be quantised"):
        convert(fp32, out, replace(calibration, keep_float=everything))
    assert not out.exists()


# -- NVIDIA's own parser and builder -------------------------------------------------------------------------------


def profile(model: ModelProto) -> dict[str, Any]:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return {model.graph.input[0].name: ((1, *shape), (2, *shape), (4, *shape))}


@pytest.mark.parametrize("name", ["fp32", "tokens"])
def test_tensorrt_builds_it_with_each_integer_layer(
    name: str, calibration: Calibration, library: Library, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    artifact = SymmetricInt8()(request.getfixturevalue(name), tmp_path / "model.int8.onnx", calibration)
    model = load(artifact)
    built = build(library, model.SerializeToString(), profile=profile(model))
    assert built, built.reason
    kinds = Counter(n.op_type for n in model.graph.node)
    layers = built.verdict.layers
    assert layers["QUANTIZE"] == {"INT8": kinds["QuantizeLinear"]}
    assert sum(layers["DEQUANTIZE"].values()) == kinds["DequantizeLinear"]
    assert sum(layers["CONVOLUTION"].values()) == kinds["Conv"]
    if name == "fp32":
        assert sum(layers["DECONVOLUTION"].values()) == 1
    assert sum(layers["MATRIX_MULTIPLY"].values()) == kinds["Gemm"] + kinds["MatMul"]


def test_the_linter_has_nothing_against_it(int8: Artifact) -> None:
    assert int8.path is not None
    for target in (Target(flavour="tensorrt-rtx"), Target(flavour="tensorrt")):
        assert [f for f in lint(int8.path, target).findings if f.severity == ERROR] == []


@pytest.mark.parametrize(
    "node",
    [
        lambda: (helper.make_node("ConvTranspose", ["x", "w"], ["y"], "y", group=2), (4, 3, 2, 2)),
        lambda: (helper.make_node("Conv", ["x", "w"], ["y"], "y", group=4), (8, 1, 3, 3)),
        lambda: (helper.make_node("Conv", ["x", "w"], ["y"], "y", dilations=[2, 2]), (6, 4, 3, 3)),
        lambda: (helper.make_node("MatMul", ["x", "w"], ["y"], "y"), (8, 5)),
    ],
)
def test_tensorrt_builds_layers_of_other_shapes(node: Callable[[], Any], library: Library) -> None:
    made, shape = node()
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model = graph(made, w=weight)
    found = SymmetricInt8().quantise(model, {"x": Range(low=-3, high=3)}, ["y"])
    onnx.checker.check_model(found, full_check=True)
    built = build(library, found.SerializeToString())
    assert built, built.reason
    x = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    ours, theirs = (open_session(m.SerializeToString(), threads=1).run(x)["y"] for m in (found, model))
    assert compare(ours, theirs)["rms_share"] < 0.02


def test_a_segmenter_is_converted_by_its_float_output(
    calibration: Calibration, library: Library, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["c"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "b"], ["d"], "second", pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["e"], "relu2"),
        helper.make_node("Conv", ["e", "h"], ["logits"], "head"),
        helper.make_node("ArgMax", ["logits"], ["i"], "argmax", axis=1, keepdims=0),
        helper.make_node("Cast", ["i"], ["classes"], "cast", to=TensorProto.UINT8),
    ]
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 3, 3, 3), "b": (8, 8, 3, 3), "h": (4, 8, 1, 1)}
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", F, ["batch", 3, 32, 32])],
        [
            helper.make_tensor_value_info("logits", F, ["batch", 4, 32, 32]),
            helper.make_tensor_value_info("classes", TensorProto.UINT8, ["batch", 32, 32]),
        ],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()],
    )
    path = tmp_path / "model.fp32.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    source = Artifact(format="onnx", precision="fp32", input=SPEC, task=SEGMENT, path=path)
    artifact = SymmetricInt8()(source, tmp_path / "model.int8.onnx", calibration)
    assert artifact.notes["int8_layers"] == 2
    assert {s.node for s in SymmetricInt8().sensitivity(source, calibration, probes=2)} == {"first", "second"}
    x = probe(SPEC, 4, seed=5).numpy()
    assert artifact.path is not None
    ours, theirs = (open_session(p, threads=1).run(x)["classes"] for p in (artifact.path, path))
    assert (ours == theirs).mean() > 0.97
    model = load(artifact)
    assert build(library, model.SerializeToString(), profile=profile(model))
