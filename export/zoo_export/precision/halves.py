"""fp16 and bf16 written into a graph by casts, and the same arithmetic in a graph that any CPU executes.

A strongly typed builder (TensorRT 10.12 and after, every TensorRT-RTX) takes the types as they stand in the graph, so the
graph must be typed throughout: each operator either holds half precision in all operands of one type, or none. Inputs and
outputs of the graph stay float32, and a Cast stands wherever a value passes from the one to the other. What does not bear
half precision is found by :mod:`.keeping`.

ONNX Runtime's CPU provider has next to no kernels for half precision. It computes in float32 and drops the casts between
(measured with 1.32, at every optimisation level: ``x + x + x`` in fp16 of ``1 + 2^-13`` gives 3.00037, and of 70000 gives
210000, where fp16 gives 3 and infinity). Executing the graph itself there would show none of what half precision costs;
:func:`emulate` makes the graph that does.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from zoo.errors import ExportError

from ..tensorrt.view import STANDARD, View, attribute, subgraphs

__all__ = ["HALF", "INDIFFERENT", "Form", "emulate", "half_form", "is_exact", "prepare", "rounded", "to_half"]

FLOAT = TensorProto.FLOAT
HALF: Mapping[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
BF16_OPSET = 22
"""The first in which convolution, pooling and most activations are defined for bfloat16."""
EXACT = (
    *(
        "Abs",
        "Clip",
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalMaxPool",
    ),
    *(
        "Identity",
        "Max",
        "MaxPool",
        "Min",
        "Neg",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "ScatterElements",
    ),
    *(
        "ScatterND",
        "Sign",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
    ),
    "Where",
)
"""Operators that copy, choose or flip the sign of what they are given: they round nothing (see :func:`is_exact`)."""
MONOTONE = ("Clip", "Relu")
"""Rounding before these and rounding after them is the same, because 0 and the bounds of a Clip are representable."""
INDIFFERENT = ("Shape", "Size")
"""They read a tensor's shape; its type is nothing to them."""


def is_exact(node: NodeProto) -> bool:
    """Whether every float that the node gives is one that it was given, or that one's negative."""
    return node.op_type in EXACT and attribute(node, "reduction", "none") in ("none", "max", "min")


# -- the graph as it is before --------------------------------------------------------------------------------------


def prepare(model: ModelProto) -> ModelProto:
    """A copy in which local functions are inlined, constants are initializers, and every node has a name of its own."""
    made = ModelProto()
    made.CopyFrom(onnx.inliner.inline_local_functions(model) if model.functions else model)
    graph, results = made.graph, {o.name for o in made.graph.output}
    taken = {node.name for node in graph.node}
    view, seen = View(made), set[str]()
    nodes = list(graph.node)
    del graph.node[:]
    for index, node in enumerate(nodes):
        if node.op_type == "Constant" and node.domain in STANDARD and node.output[0] not in results:
            tensor = view.constant(node.output[0])
            if tensor is not None:
                graph.initializer.add().CopyFrom(tensor)
                graph.initializer[-1].name = node.output[0]
                continue
        if not node.name or node.name in seen:
            node.name = _fresh(f"{node.op_type}_{index}", taken)
        seen.add(node.name)
        graph.node.append(node)
    return made


@dataclass(frozen=True, kw_only=True)
class Form:
    """Which operands of a node become half precision when the node does: positions in ``input`` and ``output``."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def half_form(node: NodeProto, view: View, precision: str) -> Form | None:
    """How a node is typed in half precision, as the operator's own definition says; None where it has no such form.

    Operands that ONNX defines as float32 and nothing else (the scales of a Resize) stay that. Nodes with branches or
    bodies, of other domains, or with operands whose type cannot be inferred have no form.
    """
    if node.domain not in STANDARD or any(True for _ in subgraphs(node)):
        return None
    opset = max(view.opset, BF16_OPSET) if precision == "bf16" else view.opset
    operator = _operator(node.op_type, opset)
    if operator is None:
        return None
    wanted = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}[precision]
    bound, inputs, outputs = set(), [], []
    for index, name in enumerate(node.input):
        kind = view.dtype(name) if name else TensorProto.UNDEFINED
        if name and kind == TensorProto.UNDEFINED:
            return None
        letter = operator.letter(operator.inputs, index)
        if kind == FLOAT and wanted in operator.allowed.get(letter, ()):
            inputs.append(index)
            bound.add(letter)
    for index, name in enumerate(node.output):
        kind = view.dtype(name) if name else TensorProto.UNDEFINED
        if name and kind == TensorProto.UNDEFINED:
            return None
        if kind != FLOAT:
            continue
        letter = operator.letter(operator.outputs, index)
        if letter in bound or node.op_type in ("Cast", "ConstantOfShape"):
            outputs.append(index)
        elif wanted in operator.allowed.get(letter, ()):
            return None  # an attribute of the node says the type, in a way that is not known here
    if node.op_type in INDIFFERENT or not (inputs or outputs):
        return None
    return Form(inputs=tuple(inputs), outputs=tuple(outputs))


@dataclass(frozen=True, kw_only=True)
class _Operator:
    """The type letters of an operator's definition."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    allowed: Mapping[str, frozenset[str]]
    """For each letter, the types that it may stand for."""

    def letter(self, formals: Sequence[str], index: int) -> str:
        return formals[min(index, len(formals) - 1)] if formals else ""  # the last may be variadic


@functools.cache
def _operator(op_type: str, opset: int) -> _Operator | None:
    try:
        schema = onnx.defs.get_schema(op_type, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return None
    return _Operator(
        inputs=tuple(f.type_str for f in schema.inputs),
        outputs=tuple(f.type_str for f in schema.outputs),
        allowed={c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
    )


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


# -- into half precision --------------------------------------------------------------------------------------------


def to_half(model: ModelProto, precision: str, keep: Collection[str] = ()) -> ModelProto:
    """The graph with its float32 values in ``fp16`` or ``bf16``, but for those of the nodes named in ``keep``.

    ``model``: as :func:`prepare` gives it; it is left as it is. Inputs and outputs stay float32, and so do the bodies of
    If, Loop and Scan. A node that only moves values about stays in float32 too where all around it does, so that no
    pair of casts is spent on it. Node names stay; a value that exists in both precisions has its own name where it is
    made and carries ``.fp16`` or ``.fp32`` after its cast. bf16 raises the opset to 22, the first that defines
    convolution for it.

    Raises ExportError where raising the opset would change a GroupNormalization.
    """
    return _Rewriter(model, precision, keep).run()


class _Rewriter:
    """One rewrite. ``form`` holds the nodes that become half, by name."""

    def __init__(self, model: ModelProto, precision: str, keep: Collection[str]) -> None:
        self.model, self.precision, self.kind = model, precision, HALF[precision]
        self.view = View(model)
        self.graph = self.view.graph
        self.form: dict[str, Form] = {}
        for node in self.graph.node:
            form = half_form(node, self.view, precision) if node.name not in keep else None
            if form is not None:
                self.form[node.name] = form
        self.half_made = {node.output[i] for node in self.graph.node for i in self._outputs(node)}
        self._settle_movers()
        self.taken = {*self.view.initializers, *self.view.makers, *(i.name for i in self.graph.input)}
        self.results = {o.name for o in self.graph.output}
        self.constants = {i.name: i for i in self.graph.initializer}
        self.native: dict[str, str] = {}
        """Values made in half that the graph gives away as float32: what they are called where they are made."""
        self.cast: dict[tuple[str, int], str] = {}
        """Of a value and a type, the name it is read by."""
        self.nodes: list[NodeProto] = []
        self.used: dict[str, TensorProto] = {}

    def _outputs(self, node: NodeProto) -> tuple[int, ...]:
        form = self.form.get(node.name)
        return form.outputs if form is not None else ()

    def _settle_movers(self) -> None:
        """Nodes that move values from what stays float32 to what stays float32 stay float32."""
        graph_results = {o.name for o in self.graph.output}
        constants = {i.name for i in self.graph.initializer}
        changed = True
        while changed:
            changed = False
            for node in self.graph.node:
                if not is_exact(node) or node.name not in self.form:
                    continue
                form = self.form[node.name]
                sources = [node.input[i] for i in form.inputs if node.input[i] not in constants]
                made = [node.output[i] for i in form.outputs]
                readers = [r for name in made for r in self.view.readers.get(name, ())]
                wanted = any(self._reads_half(r, name) for name in made for r in self.view.readers.get(name, ()))
                leads_on = bool(readers) or any(name in graph_results for name in made)
                if sources and leads_on and not wanted and not any(s in self.half_made for s in sources):
                    del self.form[node.name]
                    self.half_made -= set(made)
                    changed = True

    def _reads_half(self, node: NodeProto, name: str) -> bool:
        form = self.form.get(node.name)
        return form is not None and any(node.input[i] == name for i in form.inputs)

    def run(self) -> ModelProto:
        for name in self.results & self.half_made:
            self.native[name] = _fresh(f"{name}.{self.precision}", self.taken)
        self._place_constants()
        for node in self.graph.node:
            self._rewrite(node)
        made = ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import)
        made.graph.name = self.graph.name
        made.graph.node.extend(self.nodes)
        made.graph.input.extend(self.graph.input)
        made.graph.output.extend(self.graph.output)
        made.graph.initializer.extend(self.used.values())
        made.graph.sparse_initializer.extend(self.graph.sparse_initializer)
        if self.precision == "bf16":
            self._raise_opset(made)
        return made

    def _place_constants(self) -> None:
        """Each constant in the types in which it is read; its name goes to the half form where that is the only one."""
        wanted: dict[str, set[int]] = {}
        for node in self.graph.node:
            form = self.form.get(node.name)
            halves = set(form.inputs) if form is not None else set()
            for index, name in enumerate(node.input):
                wanted.setdefault(name, set()).add(self.kind if index in halves else FLOAT)
            for name in _captured(node):
                wanted.setdefault(name, set()).add(FLOAT)
        inputs = {i.name for i in self.graph.input}
        quantisers = ("QuantizeLinear", "DequantizeLinear")
        scales = {node.input[1] for node in self.graph.node if node.op_type in quantisers}
        for name, tensor in self.constants.items():
            kinds = wanted.get(name, set())
            if tensor.data_type != FLOAT or name in inputs or name in self.results or self.kind not in kinds:
                if kinds or name in self.results or name in inputs:
                    self.used[name] = tensor
                continue
            own = name if kinds == {self.kind} else _fresh(f"{name}.{self.precision}", self.taken)
            self.cast[name, self.kind] = own
            self.used[own] = rounded(tensor, self.kind, own, positive=name in scales)
            if FLOAT in kinds:
                self.used[name] = tensor

    def _read(self, name: str, kind: int) -> str:
        """What to call a float value in order to have it in this type; puts in a Cast where there was none yet."""
        made = self.kind if name in self.half_made else FLOAT
        if made == kind:
            return self.native.get(name, name)
        if kind == FLOAT and name in self.native:
            return name
        if (name, kind) not in self.cast:
            suffix = "fp32" if kind == FLOAT else self.precision
            own = _fresh(f"{name}.{suffix}", self.taken)
            self._cast(self.native.get(name, name), own, kind)
            self.cast[name, kind] = own
        return self.cast[name, kind]

    def _cast(self, source: str, result: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [result], name=f"{result}.cast", to=kind))

    def _rewrite(self, old: NodeProto) -> None:
        node = NodeProto()
        node.CopyFrom(old)
        form = self.form.get(old.name)
        halves = set(form.inputs) if form is not None else set()
        for index, name in enumerate(old.input):
            if name and self.view.dtype(name) == FLOAT:
                if old.op_type in INDIFFERENT:
                    node.input[index] = self.native.get(name, name)
                else:
                    node.input[index] = self._read(name, self.kind if index in halves else FLOAT)
        captured = {name: self._read(name, FLOAT) for name in sorted(_captured(old)) if self.view.dtype(name) == FLOAT}
        for body in subgraphs(node):
            _rename(body, {k: v for k, v in captured.items() if k != v})
        made = set(form.outputs) if form is not None else set()
        if made and old.op_type == "Cast":
            _set(node, "to", self.kind)
        if made and old.op_type == "ConstantOfShape":
            value = attribute(old, "value")
            value = numpy_helper.from_array(np.zeros(1, np.float32)) if value is None else value
            _set(node, "value", rounded(value, self.kind, value.name))
        for index in made:
            node.output[index] = self.native.get(old.output[index], old.output[index])
        self.nodes.append(node)
        for index in made:
            if old.output[index] in self.native:
                self._cast(node.output[index], old.output[index], FLOAT)

    def _raise_opset(self, made: ModelProto) -> None:
        for found in made.opset_import:
            if found.domain in STANDARD and found.version < BF16_OPSET:
                if found.version < 21 and any(n.op_type == "GroupNormalization" for n in self.view.nodes):
                    raise ExportError(
                        f"bf16 needs opset {BF16_OPSET}, and GroupNormalization means something else from opset 21 on: "
                        "export the network with opset 21 or later, or choose fp16"
                    )
                found.version = BF16_OPSET


def _captured(node: NodeProto) -> set[str]:
    """Names from outside that the branches or the body of a node read."""
    found: set[str] = set()
    for body in subgraphs(node):
        own = (
            {i.name for i in body.input} | {i.name for i in body.initializer} | {o for n in body.node for o in n.output}
        )
        read = {i for n in body.node for i in n.input if i} | {o.name for o in body.output}
        for inner in body.node:
            read |= _captured(inner)
        found |= read - own
    return found


def _rename(body: GraphProto, names: Mapping[str, str]) -> None:
    for node in body.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        for inner in subgraphs(node):
            _rename(inner, names)
    for value in body.output:
        value.name = names.get(value.name, value.name)


def _set(node: NodeProto, name: str, value: object) -> None:
    others = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*others, helper.make_attribute(name, value)])


def rounded(tensor: TensorProto, kind: int, name: str, *, positive: bool = False) -> TensorProto:
    """A float constant in half precision: to nearest, ties to even, and to infinity beyond the range.

    ``positive``: what would become zero becomes the least number above it. A quantiser's scale must not be zero (TensorRT
    refuses it), and channels whose scale is that small are dead ones.
    """
    exact = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        value = exact.astype(np.float16 if kind == TensorProto.FLOAT16 else ml_dtypes.bfloat16)
    if positive:
        least = np.asarray(2.0**-24 if kind == TensorProto.FLOAT16 else 2.0**-133).astype(value.dtype)
        value = np.where((value == 0) & (exact > 0), least, value)
    return numpy_helper.from_array(value, name)


# -- and executed ---------------------------------------------------------------------------------------------------


def emulate(model: ModelProto) -> ModelProto:
    """A float32 graph that computes what a graph in half precision does: an emulation, for CPUs without such kernels.

    Every value that the real graph holds in fp16 or bf16 is rounded to it (to nearest, ties to even; fp16 overflows to
    infinity and has its subnormals), constants included. Between these an operator computes in float32, as tensor cores
    accumulate; a kernel that accumulates in fp16 does worse than is seen here. What leaves a DequantizeLinear and what goes
    to a QuantizeLinear alone is not rounded, because compilers make an integer layer of what lies between. Names of nodes
    and values stay.
    """
    source = View(model)
    graph, halves = source.graph, {v: k for k, v in HALF.items()}
    made = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    made.graph.name = graph.name
    made.graph.input.extend(graph.input)
    made.graph.output.extend(graph.output)
    for tensor in graph.initializer:
        if tensor.data_type in halves:
            value = numpy_helper.to_array(tensor).astype(np.float32)
            made.graph.initializer.append(numpy_helper.from_array(value, tensor.name))
        else:
            made.graph.initializer.append(tensor)
    taken = {*source.initializers, *source.makers, *(i.name for i in graph.input)}
    axis = _fresh("rounding.axis", taken)
    made.graph.initializer.append(numpy_helper.from_array(np.asarray([0], np.int64), axis))
    late = _rounded_later(source, halves)
    for old in graph.node:
        node = NodeProto()
        node.CopyFrom(old)
        if old.op_type == "Cast" and attribute(old, "to") in halves:
            _set(node, "to", FLOAT)
        if old.op_type == "ConstantOfShape" and source.dtype(old.output[0]) in halves:
            value = numpy_helper.to_array(attribute(old, "value")).astype(np.float32)
            _set(node, "value", numpy_helper.from_array(value))
        made.graph.node.append(node)
        for index, name in enumerate(old.output):
            kind = source.dtype(name) if name else FLOAT
            if kind not in halves or name in late or not _rounds(old, source, late):
                continue
            node.output[index] = made.graph.node[-1].output[index] = raw = _fresh(f"{name}.exact", taken)
            made.graph.node.extend(_round(raw, name, kind, axis, taken))
    return made


def _rounded_later(view: View, halves: Collection[int]) -> set[str]:
    """Values that only a Relu or a Clip reads: the rounding is made after that, so that it stays one with its convolution."""
    found = set()
    results = view.results
    for node in view.graph.node:
        if node.op_type in MONOTONE and view.dtype(node.input[0]) in halves and node.input[0] not in results:
            maker = view.makers.get(node.input[0])
            if (
                maker is not None
                and not is_exact(maker)
                and maker.op_type != "Cast"
                and len(view.readers[node.input[0]]) == 1
            ):
                found.add(node.input[0])
    return found


def _rounds(node: NodeProto, view: View, late: Collection[str]) -> bool:
    """Whether what a node makes may need rounding, given that what it reads is rounded."""
    if node.op_type == "Cast":
        return view.dtype(node.input[0]) not in HALF.values()
    readers = [reader.op_type for name in node.output for reader in view.readers.get(name, ())]
    quantised = set(readers) == {"QuantizeLinear"} and not view.results & set(node.output)
    if node.op_type == "DequantizeLinear" or quantised:
        return False
    return not is_exact(node) or any(name in late for name in node.input)


def _round(source: str, result: str, kind: int, axis: str, taken: set[str]) -> Iterator[NodeProto]:
    """There and back. The axis put in between keeps optimisers from taking the two casts for one that does nothing (ONNX
    Runtime 1.8 dropped such pairs); it costs no time, because no value moves."""
    names = [_fresh(f"{result}.{step}", taken) for step in ("rounded", "wide", "back")]
    for operator, inputs, output, extra in (
        ("Cast", [source], names[0], {"to": kind}),
        ("Unsqueeze", [names[0], axis], names[1], {}),
        ("Cast", [names[1]], names[2], {"to": FLOAT}),
        ("Squeeze", [names[2], axis], result, {}),
    ):
        yield helper.make_node(operator, inputs, [output], name=f"{output}.{operator.lower()}", **extra)
