"""An ONNX graph as the rules see it: every node of every branch, the types, and the constants as the parser finds them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["LAYERS", "STANDARD", "View", "attribute", "subgraphs"]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Where nearly all of the arithmetic is: their precision is what a person asks for."""
STANDARD = ("", "ai.onnx")

_SMALL = 1024
"""Constants up to so many elements keep their values when shapes are inferred: no shape is larger."""
_NONE = TensorProto.UNDEFINED


class View:
    """One model, read only. ``folder`` is where external data lies, ``modules`` the exporter's map of node to torch module.

    Local functions are inlined, because the parser follows them too.
    """

    def __init__(self, model: ModelProto, folder: Path | None = None, modules: dict[str, str] | None = None) -> None:
        self.model = onnx.inliner.inline_local_functions(model) if model.functions else model
        self.graph = self.model.graph
        self.folder = folder
        self.modules = modules or {}
        self.graphs: list[GraphProto] = [self.graph]
        self.nodes: list[NodeProto] = []
        self._walk(self.graph)
        self.initializers = {i.name: i for graph in self.graphs for i in graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.inputs = [i for i in self.graph.input if i.name not in self.initializers]
        self.results = {o.name for graph in self.graphs for o in graph.output}
        """Names that leave the graph, a branch, or a loop body."""

    def _walk(self, graph: GraphProto) -> None:
        for node in graph.node:
            self.nodes.append(node)
            for body in subgraphs(node):
                self.graphs.append(body)
                self._walk(body)

    @property
    def opset(self) -> int:
        """Version of the standard operators; 0 where the model names none."""
        return max((o.version for o in self.model.opset_import if o.domain in STANDARD), default=0)

    def ops(self, *kinds: str) -> Iterator[NodeProto]:
        return (node for node in self.nodes if node.op_type in kinds)

    def name(self, node: NodeProto) -> str:
        """What a person finds the node by: its name, or what it makes where it has none."""
        return node.name or f"{node.op_type} -> {next((o for o in node.output if o), '?')}"

    def module(self, node: NodeProto) -> str:
        """The torch module that a node came from; for nodes that a pass put in, that of the first layer they feed."""
        at: NodeProto | None = node
        for _ in range(4):
            if at is None:
                break
            if found := self.modules.get(at.name):
                return found
            at = next((reader for name in at.output for reader in self.readers.get(name, ())), None)
        return ""

    # -- constants -------------------------------------------------------------------------------------------------

    def constant(self, name: str) -> TensorProto | None:
        """The tensor behind a name, through Identity and Cast, which is as far as the parser follows. None: computed."""
        if name in self.initializers:
            return self.initializers[name]
        node = self.makers.get(name)
        if node is None or node.domain not in STANDARD:
            return None
        if node.op_type == "Constant":
            return _constant(node)
        if node.op_type == "Identity":
            return self.constant(node.input[0])
        if node.op_type == "Cast":
            tensor, to = self.constant(node.input[0]), attribute(node, "to", _NONE)
            value = self._array(tensor)
            return None if value is None else numpy_helper.from_array(value.astype(helper.tensor_dtype_to_np_dtype(to)))
        return None

    def value(self, name: str) -> np.ndarray | None:
        """The numbers behind a constant; None where it is computed, or where its external file is missing."""
        return self._array(self.constant(name))

    def _array(self, tensor: TensorProto | None) -> np.ndarray | None:
        if tensor is None:
            return None
        try:
            return numpy_helper.to_array(tensor, str(self.folder or ""))
        except (OSError, ValueError, TypeError, onnx.checker.ValidationError):
            return None

    def fixed(self, name: str) -> bool:
        """Whether a value is the same whatever the inputs are, by however many operators it was computed."""
        queue, seen = [name], set()
        while queue:
            at = queue.pop()
            if at in seen or at in self.initializers:
                continue
            seen.add(at)
            node = self.makers.get(at)
            if node is None or any(True for _ in subgraphs(node)) or node.op_type.startswith("Random"):
                return False
            queue += [i for i in node.input if i]
        return True

    # -- types and shapes ------------------------------------------------------------------------------------------

    @cached_property
    def _values(self) -> dict[str, onnx.ValueInfoProto]:
        try:
            inferred = onnx.shape_inference.infer_shapes(_skeleton(self.model)).graph
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            inferred = self.graph  # an ill-formed graph: what it says of itself must do
        found: dict[str, onnx.ValueInfoProto] = {}
        queue = [inferred]
        while queue:
            graph = queue.pop()
            found |= {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}
            queue += [body for node in graph.node for body in subgraphs(node)]
        return found

    def dtype(self, name: str) -> int:
        """TensorProto's element type; UNDEFINED where it is not known."""
        if name in self.initializers:
            return self.initializers[name].data_type
        if name in self._values:
            return self._values[name].type.tensor_type.elem_type
        constant = self.constant(name)
        return constant.data_type if constant is not None else _NONE

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        """Sizes; a text for an axis that is not fixed ("" where it has no name). None where even the rank is unknown."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        if name not in self._values or not self._values[name].type.tensor_type.HasField("shape"):
            constant = self.constant(name)
            return tuple(constant.dims) if constant is not None else None
        dims = self._values[name].type.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims)

    def precision(self, node: NodeProto) -> str:
        """What a layer computes in: int8 where both operands come out of a DequantizeLinear, else its output's type."""
        sources = [self.makers.get(name) for name in node.input[:2]]
        if len(sources) == 2 and all(s is not None and s.op_type == "DequantizeLinear" for s in sources):
            return "int8"
        names = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
        kind = self.dtype(node.output[0])
        return names.get(kind, TensorProto.DataType.Name(kind).lower())


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute; text comes as str."""
    for found in node.attribute:
        if found.name == name:
            value = helper.get_attribute_value(found)
            return value.decode() if isinstance(value, bytes) else value
    return default


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The branches of an If, the body of a Loop or Scan."""
    for found in node.attribute:
        if found.type == AttributeProto.GRAPH:
            yield found.g
        elif found.type == AttributeProto.GRAPHS:
            yield from found.graphs


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node; None for text and sparse ones."""
    for found in node.attribute:
        value = helper.get_attribute_value(found)
        if found.name == "value":
            return value  # type: ignore[no-any-return]
        if found.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.asarray(value, np.float32))
        if found.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.asarray(value, np.int64))
    return None


def _skeleton(model: ModelProto) -> ModelProto:
    """The model without its large weights, whose values no shape depends on: small enough for any network."""
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = bare.graph
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    graph.name = model.graph.name
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims) <= _SMALL and tensor.data_location != TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.initializer.append(TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type))
    return bare
