"""Exact rewrites: what ``zoo lint --fix`` may do, because the graph computes the same to the last bit.

Each rewrite takes the model, changes it in place, and says what it did. None guesses: where exactness cannot be seen
from the graph, it leaves the graph alone. The same bits are promised for the graph as it is written; a runtime that
fuses Q/DQ pairs into integer kernels of its own may round elsewhere before and after.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .view import View

__all__ = ["REWRITES", "fix"]

_AWKWARD = (TensorProto.DOUBLE, TensorProto.INT8)
"""Types of constants that are better cast beforehand."""


def fix(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """A rewritten copy of the model, its local functions inlined, and one line for each thing that was done."""
    fixed = onnx.inliner.inline_local_functions(model) if model.functions else copy.deepcopy(model)
    done: list[str] = []
    for rewrite in REWRITES:
        done += rewrite(fixed)
    if done:
        _sweep(fixed)
    return fixed, done


def _axes(model: ModelProto) -> Iterator[str]:
    """unnamed-axis: open axes of inputs get the input's name and their number; none is said to equal another."""
    for value in View(model).inputs:
        for number, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_param = f"{value.name}_{number}"
                yield f"input {value.name}: axis {number} is named {dim.dim_param}"


def _outputs(model: ModelProto) -> Iterator[str]:
    """extra-outputs: those that nothing reads go. (BatchNormalization's mean training mode, and stay.)"""
    view = View(model)
    for node in view.ops("MaxPool", "LayerNormalization"):
        while len(node.output) > 1 and node.output[-1] not in view.readers and node.output[-1] not in view.results:
            gone = node.output.pop()
            yield f"node {view.name(node)}: output '{gone}', which nothing reads, is gone"


def _loops(model: ModelProto) -> Iterator[str]:
    """loop-condition: an absent condition means true."""
    view = View(model)
    for node in view.ops("Loop"):
        if len(node.input) > 1 and not node.input[1]:
            node.input[1] = _add(view, "true", np.asarray(True))
            yield f"node {node.name}: its condition, true, is written out"


def _folds(model: ModelProto) -> Iterator[str]:
    """runtime-axes, double, quantised-constant: what follows from constants alone is computed once."""
    view = View(model)
    wanted: dict[str, None] = {}
    for node in view.nodes:
        axes = node.input[1] if len(node.input) > 1 else ""
        if node.op_type.startswith("Reduce") and axes and view.constant(axes) is None and view.fixed(axes):
            wanted[axes] = None
    for node in view.ops("Cast"):
        source, name = node.input[0], node.output[0]
        if view.constant(source) is not None and view.dtype(source) in _AWKWARD and view.dtype(name) not in _AWKWARD:
            wanted[name] = None
    for name in wanted:
        value = _evaluate(view, name)
        if value is not None and _replace(view, view.makers[name], value):
            yield f"'{name}' is a constant now"


def _biases(model: ModelProto) -> Iterator[str]:
    """int32-bias: bias times scale in float32, which is what dequantising it gives."""
    view = View(model)
    for node in list(view.ops("DequantizeLinear")):
        bias, scale = view.value(node.input[0]), view.value(node.input[1])
        zero = view.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        if bias is None or bias.dtype != np.int32 or scale is None or scale.dtype != np.float32:
            continue
        fits = scale.size == 1 or (bias.ndim == 1 and scale.shape == bias.shape)
        if zero is not None and not zero.any() and fits:
            value = bias.astype(np.float32) * (scale.reshape(()) if scale.size == 1 else scale)
            if _replace(view, node, value):
                yield f"'{node.output[0]}': the INT32 bias is in float now"


def _zero_points(model: ModelProto) -> Iterator[str]:
    """zero-point: UINT8 around 128 is INT8 around 0. Every number moves by 128, and none is rounded or cut off."""
    view = View(model)
    moved: set[str] = set()
    data: np.ndarray | None
    for node in view.ops("QuantizeLinear", "DequantizeLinear"):
        if node.op_type == "QuantizeLinear":
            name = node.output[0]
            readers = view.readers.get(name, [])
            group = [node, *readers]
            whole = readers and name not in view.results and all(r.op_type == "DequantizeLinear" for r in readers)
        else:
            group, name = [node], ""
            data = view.value(node.input[0])
            whole = data is not None and data.dtype == np.uint8
        if not whole or not all(_is_128(view, member) for member in group):
            continue
        for member in group:
            zero = np.zeros(_zero(view, member).shape, np.int8)
            member.input[2] = _add(view, "zero_point", zero)
        if name:
            moved.add(name)
        elif data is not None:
            node.input[0] = _add(view, node.input[0], (data.astype(np.int16) - 128).astype(np.int8))
        yield f"node {view.name(node)}: UINT8 around 128 is INT8 around 0 now"
    for graph in view.graphs:
        for value in graph.value_info:
            if value.name in moved:
                value.type.tensor_type.elem_type = TensorProto.INT8


def _names(model: ModelProto) -> Iterator[str]:
    """node-names: nameless nodes get their operator and a number; of doubles the later ones get a number."""
    nodes = View(model).nodes
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    for node in nodes:
        before = node.name
        if not before or before in seen:
            stem, number = before or node.op_type, 0
            while f"{stem}_{number}" in taken:
                number += 1
            node.name = f"{stem}_{number}"
            taken.add(node.name)
            yield f"node {node.name}: " + (f"was another '{before}'" if before else "had no name")
        seen.add(node.name)


REWRITES: tuple[Callable[[ModelProto], Iterator[str]], ...] = (
    _axes,
    _outputs,
    _loops,
    _folds,
    _biases,
    _zero_points,
    _names,
)


def _zero(view: View, node: NodeProto) -> np.ndarray:
    zero = view.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return np.zeros((), np.int8) if zero is None else zero


def _is_128(view: View, node: NodeProto) -> bool:
    zero = _zero(view, node)
    return zero.dtype == np.uint8 and bool(np.all(zero == 128))


def _add(view: View, stem: str, value: np.ndarray) -> str:
    """A new constant of the whole graph; its name."""
    taken = view.makers.keys() | {i.name for graph in view.graphs for i in graph.initializer}
    number = 0
    while (name := f"{stem}.fixed{number}") in taken:
        number += 1
    view.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _replace(view: View, node: NodeProto, value: np.ndarray) -> bool:
    """A constant in the place of a node, unless its value leaves the graph, where a node must stay."""
    if node.output[0] in view.results:
        return False
    for graph in view.graphs:
        if any(found is node for found in graph.node):
            graph.node.remove(node)
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), node.output[0]))
            return True
    return False


def _evaluate(view: View, name: str) -> np.ndarray | None:
    """What a value that depends on no input is; None where ONNX's reference cannot compute it."""
    needed, queue = set(), [name]
    while queue:
        at = queue.pop()
        if at and at not in needed:
            needed.add(at)
            queue += view.makers[at].input if at in view.makers else []
    graph = helper.make_graph(
        [node for node in view.nodes if not needed.isdisjoint(node.output)],
        "constants",
        [],
        [ValueInfoProto(name=name)],
        [tensor for key, tensor in view.initializers.items() if key in needed],
    )
    model = helper.make_model(graph, opset_imports=view.model.opset_import, ir_version=view.model.ir_version)
    try:
        return np.asarray(ReferenceEvaluator(model).run(None, {})[0])
    except Exception:  # the reference raises whatever numpy does
        return None


def _sweep(model: ModelProto) -> None:
    """Take away what nothing reads any more."""
    while True:
        view = View(model)
        kept = view.results | {i.name for graph in view.graphs for i in graph.input}
        gone = 0
        for graph in view.graphs:
            for values in (graph.node, graph.initializer):
                for value in list(values):
                    names = value.output if isinstance(value, NodeProto) else [value.name]
                    if not any(name in view.readers or name in kept for name in names):
                        values.remove(value)
                        gone += 1
        if not gone:
            return
