"""The layers of a graph as the precision passes see them: which carry weights, which make the answer, where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from zoo.artifacts import Artifact

from .. import graphs

__all__ = ["WEIGHTED", "Sensitivity", "head_nodes", "layer_precisions", "read_modules", "weighted_nodes"]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PRECISIONS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)
CARRIERS = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose")
"""What may stand between a layer and its weights without making them anything but weights."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How much one layer alone, in int8, disturbs the network's outputs."""

    node: str
    module: str
    """The torch module the node came from, where the exporter's sidecar tells it."""
    sqnr_db: float
    """Signal to quantisation noise, at the float output that suffers most; the lower, the worse."""


def read_modules(artifact: Artifact) -> dict[str, str]:
    """The exporter's sidecar beside the artefact (graph node to torch module); empty where there is none."""
    return graphs.read_modules(artifact.path) if artifact.path else {}


def weighted_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes with trained weights, in graph order."""
    constants = {i.name for i in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in WEIGHTED and any(i in constants for i in n.input[1:2])]


def head_nodes(model: onnx.ModelProto) -> set[str]:
    """The last layer with weights on each way to an output, and everything after it."""
    weighted = set(weighted_nodes(model))
    maker = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    queue = [o.name for o in model.graph.output]
    while queue:
        node = maker.get(queue.pop())
        if node is None or node.name in found:
            continue
        found.add(node.name)
        if node.name not in weighted:
            queue += list(node.input)
    return found


def layer_precisions(model: onnx.ModelProto) -> dict[str, str]:
    """What each layer with trained weights computes in, read off the graph: ``int8``, ``fp16``, ``bf16`` or ``fp32``.

    Node names in graph order. A layer is ``int8`` where its data and its weights both come out of a DequantizeLinear of
    8-bit integers, which is what compilers fuse into one integer layer; with one of the two it computes in float. Else
    the element type of its data says it, or that of its weights where shape inference does not know the data's.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    types |= {i.name: i.data_type for i in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    constants = {i.name for i in graph.initializer}
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 2 or not _is_constant(node.input[1], maker, constants):
            continue
        data, weight = node.input[:2]
        if _is_dequantised(data, maker, types) and _weight_is_dequantised(weight, maker, types):
            found[node.name] = "int8"
            continue
        kind = types.get(data) or types.get(weight) or TensorProto.FLOAT
        found[node.name] = PRECISIONS.get(kind, TensorProto.DataType.Name(kind).lower())
    return found


def _is_constant(name: str, maker: Mapping[str, onnx.NodeProto], constants: set[str]) -> bool:
    while name not in constants:
        node = maker.get(name)
        if node is None or node.op_type not in (*CARRIERS, "Constant"):
            return False
        if node.op_type == "Constant":
            return True
        name = node.input[0]
    return True


def _is_dequantised(name: str, maker: Mapping[str, onnx.NodeProto], types: Mapping[str, int]) -> bool:
    node = maker.get(name)
    return node is not None and node.op_type == "DequantizeLinear" and types.get(node.input[0]) in EIGHT_BITS


def _weight_is_dequantised(name: str, maker: Mapping[str, onnx.NodeProto], types: Mapping[str, int]) -> bool:
    while (node := maker.get(name)) is not None and node.op_type in CARRIERS:
        if _is_dequantised(name, maker, types):
            return True
        name = node.input[0]
    return False
