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

from zoo.errors import ExportError

__all__ = ["LAYERS", "STANDARD", "View", "attribute", "subgraphs", "type_name"]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Where nearly all of the arithmetic is: their precision is what a person asks for."""
STANDARD = ("", "ai.onnx")

_SMALL = 1024
"""Constants up to so many elements keep their values when shapes are inferred: no shape is larger."""
_NONE = TensorProto.UNDEFINED


class View:
    """One model, read only. ``folder`` is where external data lies, ``modules`` the exporter's map of node to torch module.

    Local functions are inlined, because the parser follows them too. Raises ExportError for names that are not UTF-8.
    """

    def __init__(self, model: ModelProto, folder: Path | None = None, modules: dict[str, str] | None = None) -> None:
        self.model = onnx.inliner.inline_local_functions(model) if model.functions else model
        self.graph = self.model.graph
        self.folder = folder
        self.modules = modules or {}
        self.graphs: list[GraphProto] = [self.graph]
        self.nodes: list[NodeProto] = []
        self._walk(self.graph)
        if any(
            isinstance(text, bytes) for n in self.nodes for text in (n.op_type, n.domain, n.name, *n.input, *n.output)
        ):
            raise ExportError("the graph holds a name that is not text: the file is damaged; copy or export it again")
        self.broken = {id(node): fault for node in self.nodes if (fault := _fault(node, self.opset))}
        """Nodes (by identity) that lack an input, output or attribute that their operator must have, and what it is."""
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
        """Nodes of these operators that have all that the operator must have."""
        return (node for node in self.nodes if node.op_type in kinds and id(node) not in self.broken)

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
        casts: list[int] = []
        tensor: TensorProto | None = None
        for _ in range(len(self.nodes) + 1):  # an ill-formed graph may lead round in a circle
            tensor, node = self.initializers.get(name), self.makers.get(name)
            if tensor is not None or node is None or node.domain not in STANDARD or id(node) in self.broken:
                break
            if node.op_type == "Constant":
                tensor = _constant(node)
                break
            if node.op_type not in ("Identity", "Cast"):
                break
            if node.op_type == "Cast":
                casts.append(int(attribute(node, "to")))
            name = node.input[0]
        for to in reversed(casts):
            value = self._array(tensor)
            if value is None or to not in TensorProto.DataType.values() or to in (_NONE, TensorProto.STRING):
                return None
            tensor = numpy_helper.from_array(value.astype(helper.tensor_dtype_to_np_dtype(to)))
        return tensor

    def value(self, name: str) -> np.ndarray | None:
        """The numbers behind a constant; None where it is computed, or where its external file is missing."""
        return self._array(self.constant(name))

    def _array(self, tensor: TensorProto | None) -> np.ndarray | None:
        if tensor is None:
            return None
        try:
            return np.asarray(numpy_helper.to_array(tensor, str(self.folder or "")))
        except (OSError, ValueError, TypeError, KeyError, onnx.checker.ValidationError):
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
            return int(self.initializers[name].data_type)
        if name in self._values:
            return int(self._values[name].type.tensor_type.elem_type)
        constant = self.constant(name)
        return int(constant.data_type if constant is not None else _NONE)

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
        names = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "UNDEFINED": "unknown"}
        kind = type_name(self.dtype(node.output[0]))
        return names.get(kind, kind.lower())


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute; text comes as str."""
    for found in node.attribute:
        if found.name == name:
            value = helper.get_attribute_value(found)
            return value.decode(errors="replace") if isinstance(value, bytes) else value
    return default


def type_name(kind: int) -> str:
    """``FLOAT16`` for 10, and so on."""
    return TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else f"TYPE{kind}"


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The branches of an If, the body of a Loop or Scan."""
    for found in node.attribute:
        if found.type == AttributeProto.GRAPH:
            yield found.g
        elif found.type == AttributeProto.GRAPHS:
            yield from found.graphs


def _fault(node: NodeProto, opset: int) -> str:
    """What a node of a standard operator lacks; empty where it is whole, or where the operator is not known."""
    if node.domain not in STANDARD or not onnx.defs.has(node.op_type):
        return ""
    try:
        schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return ""
    for what, there, least in (
        ("inputs", len(node.input), schema.min_input),
        ("outputs", len(node.output), schema.min_output),
    ):
        if there < least:
            return f"has {there} {what}, {node.op_type} needs {least}"
    given = {found.name for found in node.attribute}
    lacking = [name for name, found in schema.attributes.items() if found.required and name not in given]
    return f"lacks the attribute {lacking[0]}" if lacking else ""


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node; None for text and sparse ones."""
    for found in node.attribute:
        value = helper.get_attribute_value(found)
        if found.name == "value":
            return value
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
