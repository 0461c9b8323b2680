"""Graphs broken in one known layer: that layer is named, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from zoo.artifacts import Artifact, Calibration
from zoo.bundle import open_bundle
from zoo.cli import execute
from zoo.errors import BundleError, ExportError
from zoo.files import sha256_file
from zoo.inputs import preprocess_batch
from zoo.lookup import find_task
from zoo.parity.evidence import natural_images
from zoo.parity.gates import compare
from zoo.runtime.ort import open_session
from zoo.testing.signal import give_signal
from zoo.train.models import deployable, open_model
from zoo_export.bisect import FP32_BOUND, Bisection, _Sum, bisect, bisect_artifact, layer_bound
from zoo_export.graphs import MODULES, save
from zoo_export.onnx_export import to_model
from zoo_export.pipeline import Request, export_bundle
from zoo_export.precision.halves import prepare, to_half
from zoo_export.precision.int8_cpu import StaticInt8
from zoo_export.precision.int8_tensorrt import SymmetricInt8
from zoo_export.precision.layers import weighted_nodes

NETWORKS = {"resnet10t": 64, "mobilenetv3_small_050": 64}
"""A residual network, and one with depthwise convolutions, hard swishes and squeeze-and-excitation."""


@dataclass(frozen=True)
class Net:
    path: Path
    modules: dict[str, str]
    tensors: np.ndarray
    artifact: Artifact

    def model(self) -> onnx.ModelProto:
        return onnx.load(str(self.path))


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Net]:
    found = {}
    for name, size in NETWORKS.items():
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        opened = open_model(name, weights="none", size=size, num_classes=10)
        give_signal(opened.network, opened.input)
        model, modules = to_model(deployable(opened), opened.input, opened.task.outputs)
        path = folder / "model.fp32.onnx"
        save(model, path)
        tensors = preprocess_batch(natural_images(4, size + 9, size + 5, 3, seed=3), opened.input)
        artifact = Artifact(format="onnx", precision="fp32", input=opened.input, task=opened.task, path=path)
        found[name] = Net(path, modules, tensors, artifact)
    return found


@pytest.fixture(scope="module")
def resnet(nets: dict[str, Net]) -> Net:
    return nets["resnet10t"]


@pytest.fixture(scope="module")
def int8(resnet: Net) -> onnx.ModelProto:
    images = natural_images(16, 70, 66, 3, seed=8)
    calibration = Calibration(tensors=preprocess_batch(images, resnet.artifact.input), source="made")
    out = resnet.path.with_name("model.int8.onnx")
    StaticInt8()(resnet.artifact, out, calibration)
    return onnx.load(str(out))


def change(model: onnx.ModelProto, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(i for i in model.graph.initializer if i.name == name)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(how(value).astype(value.dtype), name))


def by_one_percent(value: np.ndarray) -> np.ndarray:
    return value * np.random.default_rng(0).choice([0.99, 1.01], size=value.shape)


def one_number_by_one_percent(value: np.ndarray) -> np.ndarray:
    changed = value.copy()
    changed.flat[int(np.abs(value).argmax())] *= 1.01
    return changed


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def compared(net: Net, candidate: onnx.ModelProto, bound: float = FP32_BOUND, **options: Any) -> Bisection:
    return bisect(candidate, net.path, net.tensors, net.modules, bound=bound, threads=1, **options)


# -- float32 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [by_one_percent, one_number_by_one_percent])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_changed_weight_is_found_exactly(name: str, place: str, how: Any, nets: dict[str, Net]) -> None:
    net = nets[name]
    model = net.model()
    layers = weighted_nodes(model)
    victim = layers[{"first": 0, "middle": len(layers) // 2, "last": len(layers) - 1}[place]]
    change(model, node_of(model, victim).input[1], how)
    found = compared(net, model)
    assert not found
    assert found.first is not None and found.jump is not None
    assert found.first.node == victim, found.message
    assert found.jump.node == victim, found.message
    assert found.first.module == net.modules[victim] != ""
    assert found.first.module in found.message
    # what comes before is the same to the bit, what comes after adds nothing of its own
    assert [x.error for x in found.layers[: found.first.index]] == [0.0] * found.first.index
    assert max((x.added for x in found.layers if x.node != victim), default=0) < 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_goes_with_itself(name: str, nets: dict[str, Net]) -> None:
    net = nets[name]
    found = compared(net, net.model())
    assert found, found.message
    assert found.first is None
    assert all(x.error == 0 and x.added == 0 for x in found.layers)
    assert set(found.outputs.values()) == {0.0}
    nodes = [n for n in net.model().graph.node if n.op_type != "Constant"]
    assert {x.node for x in found.layers} >= {n.name for n in nodes if n.op_type in ("Conv", "Gemm", "Relu", "Add")}
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_layer_that_was_added_is_told_of(resnet: Net) -> None:
    model = resnet.model()
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    softmax.output[0] = "once"
    model.graph.node.append(onnx.helper.make_node("Softmax", ["once"], ["scores"], name="again", axis=1))
    found = compared(resnet, model)
    assert not found
    assert found.only_candidate == ("Softmax 'again'",)
    if found.first is None:  # the twin of the first softmax agrees; the output is what differs
        assert "output 'scores' is off" in found.message
    else:
        assert found.first.output == "scores"
    assert "again" in found.message or found.first is not None


def test_another_stride_is_told_as_another_shape(resnet: Net) -> None:
    model = resnet.model()
    conv = node_of(model, weighted_nodes(model)[3])
    strides = next(a for a in conv.attribute if a.name == "strides")
    strides.ints[:] = [2, 2]
    # the addition after it would not run: cut the graph there
    pool = next(n for n in model.graph.node if n.op_type in ("GlobalAveragePool", "ReduceMean"))
    for node in model.graph.node:
        if node.op_type == "Add":
            node.op_type = "Identity"
            del node.input[1:]
    assert pool.output
    found = compared(resnet, model)
    assert found.first is not None
    assert found.first.node == conv.name
    assert "its shape is 4x" in found.message


def test_graphs_of_different_exports_have_nothing_in_common(resnet: Net) -> None:
    model = resnet.model()
    for node in model.graph.node:
        node.name = f"other {node.name}"
        node.input[:] = [f"other {t}" for t in node.input]
        node.output[:] = [f"other {t}" for t in node.output]
    for value in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        value.name = f"other {value.name}"
    del model.graph.value_info[:]
    with pytest.raises(ExportError, match="no layer in common"):
        compared(resnet, model)


def test_images_of_another_size_are_refused(resnet: Net, tiny_bundle: Path) -> None:
    with pytest.raises(ExportError, match="tiny takes 3x16x16 images, and these are 3x64x64"):
        bisect(tiny_bundle / "model.fp32.onnx", resnet.path, resnet.tensors, {}, bound=1, names=("tiny", "resnet"))


def test_what_is_no_graph_is_refused(resnet: Net) -> None:
    with pytest.raises(ExportError, match="not an ONNX file"):
        bisect(b"rubbish", resnet.path, resnet.tensors, {}, bound=FP32_BOUND)
    with pytest.raises(ExportError, match="at least one image"):
        bisect(resnet.path, resnet.path, resnet.tensors[:0], {}, bound=FP32_BOUND)


# -- smaller precisions ------------------------------------------------------------------------------------------


def test_honest_int8_stays_within_its_bound(resnet: Net, int8: onnx.ModelProto) -> None:
    found = compared(resnet, int8, layer_bound(find_task("classify").tolerances["int8"]))
    assert found, found.message
    assert 0 < found.jump.added < 0.1
    # activations that clipping replaces are compared with what the float network's activation gives
    assert len(found.layers) >= len(weighted_nodes(resnet.model()))
    assert max(x.error for x in found.layers) < 0.25


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
def test_every_layer_of_what_tensorrt_gets_can_be_compared(precision: str, resnet: Net) -> None:
    if precision == "int8":
        images = natural_images(8, 70, 66, 3, seed=8)
        calibration = Calibration(tensors=preprocess_batch(images, resnet.artifact.input), source="made")
        out = resnet.path.with_name("model.int8.tensorrt.onnx")
        SymmetricInt8()(resnet.artifact, out, calibration)
        model = onnx.load(str(out))
    else:
        model = to_half(prepare(resnet.model()), precision)
    found = compared(resnet, model, layer_bound(find_task("classify").tolerances[precision]))
    assert found, found.message
    assert len(found.layers) == len([n for n in resnet.model().graph.node if n.op_type not in ("Constant", "Shape")])
    assert all(x.added > 0 for x in found.layers if x.operator == "Conv")
    assert found.only_candidate == found.only_reference == ()


@pytest.mark.parametrize("place", [1, 6, 11])
def test_a_poisoned_int8_layer_adds_most(place: int, resnet: Net, int8: onnx.ModelProto) -> None:
    """The scales of one layer's weights are those of another network."""
    model = onnx.ModelProto()
    model.CopyFrom(int8)
    victim = weighted_nodes(resnet.model())[place]
    dequantised = node_of(model, victim).input[1]
    dequantise = next(n for n in model.graph.node if dequantised in n.output)
    change(model, dequantise.input[1], lambda scale: scale * np.random.default_rng(1).uniform(0.2, 1.8, scale.shape))
    found = compared(resnet, model, 0.25)
    assert not found
    assert found.jump.node == victim, found.message
    assert found.first.node == victim, found.message
    assert f"{100 * found.jump.added:.2g} % is its own doing" in found.message


def test_a_range_that_clips_is_its_layers(resnet: Net, int8: onnx.ModelProto) -> None:
    """An activation's scale an eighth of what it should be: the rounding belongs to the layer that made the tensor."""
    model = onnx.ModelProto()
    model.CopyFrom(int8)
    quantise = [n for n in model.graph.node if n.op_type == "QuantizeLinear"][12]
    maker = next(n for n in model.graph.node if quantise.input[0] in n.output)
    change(model, quantise.input[1], lambda scale: scale / 8)
    found = compared(resnet, model, 0.25)
    assert found.jump.node == maker.name, found.message


@pytest.mark.parametrize("activation", [True, False])
def test_an_overflow_of_fp16(activation: bool, resnet: Net) -> None:
    """The same function in float32, but one convolution gives numbers beyond 65504."""
    model = resnet.model()
    convs = [n for n in model.graph.node if n.op_type == "Conv"]
    loud, relu, quiet = next(
        (a, relu, b)
        for a in convs[4:]
        for b in convs
        for relu in model.graph.node
        if relu.op_type == "Relu" and relu.input[0] == a.output[0] and b.input[0] == relu.output[0]
    )
    for name in loud.input[1:3]:
        change(model, name, lambda value: value * 2e4)
    change(model, quiet.input[1], lambda value: value / 2e4)
    same = compared(resnet, model, 0.01)
    assert same.output_error < 1e-4, "the function is the same; the loud layer itself is not"
    if not activation:  # its own output is looked at by another, so that it is rounded before the activation
        model.graph.node.append(onnx.helper.make_node("Identity", [loud.output[0]], ["more"], name="more"))
        model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, None))
    half = to_half(prepare(model), "fp16")
    found = bisect(half, model, resnet.tensors, resnet.modules, bound=0.01, threads=1)
    # a convolution and its activation are one: the rounding is where the result is written
    assert found.first.node == (relu.name if activation else loud.name), found.message
    assert found.jump.node == found.first.node
    assert found.first.not_finite > 0
    assert "not finite" in found.message
    data = found.to_dict()
    assert data["first"]["error"] is None and data["first"]["not_finite"] > 0
    json.dumps(data, allow_nan=False)


def test_bfloat16_which_numpy_does_not_know() -> None:
    float32, bfloat16 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)

    def model(half: bool) -> onnx.ModelProto:
        node = onnx.helper.make_node
        nodes = [node("Conv", ["image", "w"], ["c"], name="conv", pads=[1, 1, 1, 1])]
        if half:
            nodes.append(node("Cast", ["c"], ["narrow"], name="narrow", to=bfloat16))
        nodes.append(node("Identity", ["narrow" if half else "c"], ["seen" if half else "out"], name="after"))
        if half:
            nodes.append(node("Cast", ["seen"], ["out"], name="wide", to=float32))
        image, out = (
            onnx.helper.make_tensor_value_info(name, float32, ["batch", c, 8, 8])
            for name, c in (("image", 3), ("out", 4))
        )
        graph = onnx.helper.make_graph(nodes, "g", [image], [out], [numpy_helper.from_array(weights, "w")])
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)

    tensors = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    found = bisect(model(True), model(False), tensors, {}, bound=0.08)
    assert found, found.message
    conv, after = found.layers
    assert (conv.node, conv.error) == ("conv", 0)
    # 8 bits: a rounding of at most 2^-9 of the value
    assert 2**-11 < after.error < 2**-9
    assert after.error == pytest.approx(found.outputs["out"], rel=1e-6)


# -- memory, and where it really runs ----------------------------------------------------------------------------


def test_little_memory_gives_the_same_answer(resnet: Net) -> None:
    model = resnet.model()
    victim = weighted_nodes(model)[5]
    change(model, node_of(model, victim).input[1], by_one_percent)
    at_once = compared(resnet, model)
    seen: list[tuple[int, int]] = []
    bit_by_bit = compared(resnet, model, memory_bytes=1 << 18, progress=lambda *x: seen.append(x))
    assert [x.node for x in bit_by_bit.layers] == [x.node for x in at_once.layers]
    for what in ("error", "added"):
        ours, theirs = ([getattr(x, what) for x in found.layers] for found in (bit_by_bit, at_once))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    assert len(seen) > 20
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_an_engine_shows_its_layers_as_outputs(resnet: Net, int8: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(int8)
    victim = weighted_nodes(resnet.model())[6]
    dequantise = next(n for n in model.graph.node if node_of(model, victim).input[1] in n.output)
    change(model, dequantise.input[1], lambda scale: scale * 1.5)
    opened: list[int] = []

    def engine(graph: bytes) -> Any:
        opened.append(len(onnx.load_model_from_string(graph).graph.output))
        return open_session(graph, threads=1)

    found = compared(resnet, model, 0.25, engine=engine, memory_bytes=1 << 22)
    assert opened[0] == 2  # as it is
    assert len(opened) > 2 and min(opened[1:]) > 2
    assert found.jump.node == victim, found.message


class Fused:
    """An engine whose fusion is at fault, as long as nobody looks at what was fused."""

    def __init__(self, graph: bytes) -> None:
        self.session = open_session(graph, threads=1)

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        found = self.session.run(batch)
        return found if len(found) > 2 else {name: value * 1.5 + 1 for name, value in found.items()}


def test_a_fault_that_vanishes_when_it_is_looked_at(resnet: Net) -> None:
    found = compared(resnet, resnet.model(), engine=Fused)
    assert not found
    assert found.first is None
    assert "observing the layers undid the fusion that is at fault" in found.message


def test_the_error_is_rms_over_rms() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(6, 5, 4)).astype(np.float32)
    truth -= truth.mean(axis=(1, 2), keepdims=True)  # the gates' share is about the mean, this one is not
    ours = truth + draw.normal(size=truth.shape).astype(np.float32) * 0.1
    total = _Sum()
    for part in (slice(0, 4), slice(4, 6)):
        total.add(ours[part], truth[part])
    assert total.share == pytest.approx(compare(ours, truth)["rms_share"], rel=1e-6)


# -- bundles and the command line --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(lenet_checkpoint: Path, grey_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bisect") / "digits"
    export_bundle(
        Request(source=str(lenet_checkpoint), out=out, precisions=("fp32", "int8"), data=grey_digits, threads=1),
        note=lambda text: None,
    )
    return out


@pytest.fixture
def broken(bundle: Path, tmp_path: Path) -> Path:
    """The second weighted layer of the fp32 graph has other weights than the checkpoint's, and the seals are good."""
    import shutil

    folder = Path(shutil.copytree(bundle, tmp_path / "broken"))
    file = folder / "model.fp32.onnx"
    model = onnx.load(str(file))
    change(model, node_of(model, weighted_nodes(model)[1]).input[1], by_one_percent)
    save(model, file)
    manifest = json.loads((folder / "zoo.json").read_text())
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (folder / "zoo.json").write_text(json.dumps(manifest))
    return folder


def test_int8_is_compared_with_the_bundles_own_fp32(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        tensors = np.load(bundle / "golden.npz")["tensors"]
        found = bisect_artifact(opened, "int8", tensors)
        assert found.reference == "artefact fp32"
        assert found.candidate == "int8"
        assert all(x.module for x in found.layers if x.operator in ("Conv", "Gemm"))
        with pytest.raises(BundleError, match="is what the others are compared with: --checkpoint"):
            bisect_artifact(opened, "fp32", tensors)


def test_the_command_line_names_the_module(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, grey_digits: Path
) -> None:
    assert execute(["verify", str(bundle), "--bisect", "--artifact", "int8", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "int8, layer by layer on 8 images" in said
    assert "torch module" in said and "network." in said
    # all artefacts: fp32 has nothing to be compared with, which is no error where int8 has
    line = ["verify", str(bundle), "--bisect", "--out", str(tmp_path / "out"), "--data", str(grey_digits), "--json"]
    assert execute([*line, "--threads", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = {a["name"]: a["bisection"] for a in report["artifacts"]}
    assert found["fp32"] == {} and found["int8"]["layers"]
    assert "by itself" in (tmp_path / "out" / "report.html").read_text()


def test_the_command_line_finds_the_fault_by_the_checkpoint(
    broken: Path, lenet_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["verify", str(broken), "--bisect", "--checkpoint", str(lenet_checkpoint), "--artifact", "fp32"]
    assert execute([*line, "--threads", "1"]) == 1
    said = capsys.readouterr().out
    module = json.loads((broken / MODULES).read_text())[weighted_nodes(onnx.load(str(broken / "model.fp32.onnx")))[1]]
    assert f"fp32 parts from the checkpoint's network at {module} (" in said
    assert "first beyond the bound" in said


def test_without_a_checkpoint_fp32_has_nothing_to_be_compared_with(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["verify", str(bundle), "--bisect", "--artifact", "fp32", "--threads", "1"]) == 2
    assert "--checkpoint compares it with PyTorch's network" in capsys.readouterr().err


def test_without_the_exporter_the_install_line_is_given(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import zoo.cli.verify

    monkeypatch.setattr(zoo.cli.verify.importlib.util, "find_spec", lambda name: None)
    assert execute(["verify", str(bundle), "--bisect"]) == 2
    assert "pip install 'edgezoo[export]'" in capsys.readouterr().err
