"""Post-training int8 for TensorRT: explicit Q/DQ in the form that its builder fuses.

Activations and weights are int8 with zero point 0, activations with one scale a tensor, weights with one an output
channel; biases stay in float, since TensorRT refuses them in int32. Q/DQ stand where NVIDIA recommends ("Explicit
Quantization" in the TensorRT documentation): on the data of every layer with weights, not on its output, and on the skip
input of an addition that a convolution ends in, so that convolution, addition and what follows run as one integer kernel.
All else stays in float. Pooling by maximum, concatenation and the like move past a Q by themselves; average pooling does
not, and what it would gain in integers has not been measured here.

A signed byte has 128 levels for what a ReLU gives where the unsigned one of the form for CPUs has 256. On MobileNetV2 with
its ImageNet weights the error, as a share of the logits' spread over 200 photos that it was not calibrated on, is 0.28 with
the extremes as ranges, 0.16 with their means, 0.12 with corrected biases beside; the form for CPUs has 0.22, 0.13 and 0.085.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from .int8 import Int8Pass
from .layers import WEIGHTED
from .ranges import Range

__all__ = ["SymmetricInt8", "convert", "output_axis", "quantised_skips"]

LIMIT = 127
"""Scales are magnitude / 127, so that both signs reach as far."""
TRANSPARENT = ("Clip", "LeakyRelu", "MaxPool", "Relu")
"""What may stand between an addition and the next integer layer without ending the fusion."""


class SymmetricInt8(Int8Pass):
    """The pass itself."""

    scheme = "explicit Q/DQ, int8 activations (symmetric), int8 weights (symmetric, per channel), float biases"

    def layers(self, model: ModelProto) -> list[str]:
        """Convolutions of a single pixel (squeeze-and-excitation, a generator's latents) stay in float too: a product of a
        matrix and a vector waits for memory, so integers gain nothing there, and a gate multiplies what it loses into a
        whole map."""
        single = _single_pixels(model)
        rank = {i.name: len(i.dims) for i in model.graph.initializer}
        fit = {
            node.name
            for node in model.graph.node
            if node.op_type in WEIGHTED and node.input[0] not in single and rank.get(node.input[1], 0) >= 2
        }
        return [name for name in super().layers(model) if name in fit]

    def tensors(self, model: ModelProto) -> Collection[str]:
        layers = self.layers(model)
        skips = quantised_skips(model, layers)
        return {
            *(node.input[0] for node in model.graph.node if node.name in set(layers)),
            *(node.input[skips[node.name]] for node in model.graph.node if node.name in skips),
        }

    def quantise(
        self, model: ModelProto, ranges: Mapping[str, Range], layers: Collection[str], *, alone: bool = False
    ) -> ModelProto:
        skips = {} if alone else quantised_skips(model, layers)
        return _insert(model, ranges, set(layers), skips)


convert = SymmetricInt8()


def output_axis(node: NodeProto, rank: int) -> int:
    """The axis of a layer's weights (of this rank) along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return rank - 1


def quantised_skips(model: ModelProto, layers: Collection[str]) -> dict[str, int]:
    """Additions that a convolution among ``layers`` ends in and an integer layer follows: which of their inputs is the
    skip, by node name.

    The kernel of a convolution takes the other summand in as it is, and writes what that is: so the skip has to be int8
    where int8 is to come out, and has to be float where it is not. Where both summands come from convolutions, the first
    takes the addition in.
    """
    names = set(layers)
    constants = {i.name for i in model.graph.initializer}
    outputs = {o.name for o in model.graph.output}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    data = {node.input[0] for node in model.graph.node if node.name in names}

    def integers_follow(name: str) -> bool:
        while name not in data:
            follows = readers.get(name, [])
            if len(follows) != 1 or follows[0].op_type not in TRANSPARENT:
                return False
            name = follows[0].output[0]
        return True

    def ends_in(name: str) -> bool:
        node = makers.get(name)
        return (
            node is not None
            and node.name in names
            and node.op_type in ("Conv", "ConvTranspose")
            and len(readers[name]) == 1
            and name not in outputs
        )

    found = {}
    for node in model.graph.node:
        if node.op_type != "Add" or any(name in constants for name in node.input) or node.input[0] == node.input[1]:
            continue
        main = next((at for at in (0, 1) if ends_in(node.input[at])), None)
        if main is not None and integers_follow(node.output[0]):
            found[node.name] = 1 - main
    return found


def _insert(
    model: ModelProto, ranges: Mapping[str, Range], layers: Collection[str], skips: Mapping[str, int]
) -> ModelProto:
    """Q/DQ on the data of the layers and on the skips, DQ on the layers' weights."""
    model = copy.deepcopy(model)
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    taken = set(constants) | {name for node in graph.node for name in (*node.input, *node.output, node.name)}
    nodes: list[NodeProto] = []
    made: dict[tuple[str, int], str] = {}

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    def constant(name: str, value: np.ndarray) -> str:
        name = fresh(name)
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def activation(name: str) -> str:
        """The dequantised form of a float tensor: one pair for all who read it."""
        if (name, -1) not in made:
            scale = constant(f"{name}.scale", np.float32(_scale(ranges[name].magnitude)))
            zero = constant(f"{name}.zero", np.int8(0))
            quantised, back = fresh(f"{name}.int8"), fresh(f"{name}.dequantised")
            nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [quantised], fresh(f"{name}.Q")))
            nodes.append(helper.make_node("DequantizeLinear", [quantised, scale, zero], [back], fresh(f"{name}.DQ")))
            made[name, -1] = back
        return made[name, -1]

    def weights(name: str, axis: int) -> str:
        if (name, axis) not in made:
            value = numpy_helper.to_array(constants[name])
            others = tuple(i for i in range(value.ndim) if i != axis)
            scales = np.asarray([_scale(m) for m in np.abs(value).max(axis=others)], np.float32)
            steps = value / scales.reshape([-1 if i == axis else 1 for i in range(value.ndim)])
            integers = np.clip(np.round(steps), -LIMIT, LIMIT).astype(np.int8)
            inputs = [
                constant(f"{name}.int8", integers),
                constant(f"{name}.scale", scales),
                constant(f"{name}.zero", np.zeros(len(scales), np.int8)),
            ]
            back = fresh(f"{name}.dequantised")
            nodes.append(helper.make_node("DequantizeLinear", inputs, [back], fresh(f"{name}.DQ"), axis=axis))
            made[name, axis] = back
        return made[name, axis]

    for node in graph.node:
        if node.name in layers:
            node.input[0] = activation(node.input[0])
            node.input[1] = weights(node.input[1], output_axis(node, len(constants[node.input[1]].dims)))
        elif node.name in skips:
            node.input[skips[node.name]] = activation(node.input[skips[node.name]])
        nodes.append(node)
    _replace(graph, nodes)
    return model


def _scale(magnitude: float) -> float:
    """A tensor that is nothing but zeros is as well served by any scale; TensorRT wants a positive one."""
    return max(float(magnitude), float(np.finfo(np.float32).tiny) * 2 * LIMIT) / LIMIT if magnitude else 1.0


def _replace(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Set the nodes, and drop the constants that none of them reads."""
    copies = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    used = {name for node in copies for name in node.input} | {o.name for o in graph.output}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _single_pixels(model: ModelProto) -> set[str]:
    """Maps of height and width 1, as far as shapes are known."""
    found = set()
    for value in (*model.graph.value_info, *model.graph.input):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4 and all(d.HasField("dim_value") and d.dim_value == 1 for d in dims[2:]):
            found.add(value.name)
    return found
