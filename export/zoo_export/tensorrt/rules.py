"""The rule table: what TensorRT refuses, builds into something else without a word, or needs to be told.

One function is one rule. It takes the graph and the target and yields what it found; the decorator gives the rule its
id, its severity, and what a person wants to know next: why, and the cure. Where a rule says "measured", the verdict is
that of the parser and builder of TensorRT-RTX 1.7.1.116, which the tests ask again wherever it is installed. docs/lint.md
lists all rules.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from .targets import OLDEST_OPSET, Target
from .view import LAYERS, STANDARD, View, attribute, type_name

__all__ = ["ERROR", "INFO", "RULES", "SEVERITIES", "UNSUPPORTED", "WARNING", "Hit", "Rule"]

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)


@dataclass(frozen=True)
class Hit:
    """One place where a rule applies. ``severity`` and ``cure`` replace the rule's own where they are given."""

    node: NodeProto | None
    what: str
    severity: str = ""
    cure: str = ""


Check = Callable[[View, Target], Iterable[Hit]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    id: str
    severity: str
    why: str
    cure: str
    fixes: bool
    """Whether ``--fix`` has an exact rewrite for it, if not for every graph."""
    check: Check


RULES: dict[str, Rule] = {}


def rule(id: str, severity: str, *, why: str, cure: str, fixes: bool = False) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        RULES[id] = Rule(id=id, severity=severity, why=why, cure=cure, fixes=fixes, check=check)
        return check

    return register


def _dims(shape: Iterable[int | str] | None) -> str:
    return "x".join(str(d) or "?" for d in shape) if shape is not None else "?"


def _extra(node: NodeProto) -> list[str]:
    return [name for name in node.output[1:] if name]


# -- the graph as a whole ------------------------------------------------------------------------------------------


@rule(
    "opset",
    WARNING,
    why="outside the documented range the parser goes on (measured: from 7 to 28 without a word) and may read an operator by the wrong definition",
    cure="export with opset 20, which ONNX Runtime and every TensorRT from 10.0 on read",
)
def _opset(view: View, target: Target) -> Iterator[Hit]:
    if not OLDEST_OPSET <= view.opset <= target.newest_opset:
        yield Hit(None, f"opset {view.opset}; {target} documents {OLDEST_OPSET} to {target.newest_opset}")


@rule(
    "wiring",
    ERROR,
    why="such a graph is not valid ONNX, and the parser stops there",
    cure="export the network again; a tool on the way broke the graph",
)
def _wiring(view: View, target: Target) -> Iterator[Hit]:
    known = {*view.initializers, *(i.name for graph in view.graphs for i in graph.input), ""}
    known |= {s.values.name for graph in view.graphs for s in graph.sparse_initializer}
    for node in view.nodes:
        if id(node) in view.broken:
            yield Hit(node, view.broken[id(node)])
        for name in node.input:
            if name not in known and name not in view.makers:
                yield Hit(node, f"reads '{name}', which nothing makes")
    for name in sorted(view.results - known - view.makers.keys()):
        yield Hit(None, f"output '{name}' is made by nothing")
    made = Counter(name for node in view.nodes for name in node.output if name)
    for node in view.nodes:
        for name in node.output:
            if made[name] > 1 and node is view.makers[name]:
                yield Hit(node, f"'{name}' is made {made[name]} times")


@rule(
    "node-names",
    WARNING,
    why="the engine's layers, messages and profiles are told apart by node names alone (and ONNX Runtime refuses doubles)",
    cure="--fix names them",
    fixes=True,
)
def _node_names(view: View, target: Target) -> Iterator[Hit]:
    nameless = sum(not node.name for node in view.nodes)
    if nameless:
        yield Hit(None, f"{nameless} of {len(view.nodes)} nodes have no name")
    for name, count in Counter(node.name for node in view.nodes if node.name).items():
        if count > 1:
            yield Hit(None, f"{count} nodes are named '{name}'")


@rule(
    "rank",
    ERROR,
    why="TensorRT's tensors have at most 8 axes (measured: 8 builds, 9 is refused)",
    cure="reshape so that no value has more than 8 axes",
)
def _rank(view: View, target: Target) -> Iterator[Hit]:
    for value in view.inputs:
        if len(view.shape(value.name) or ()) > 8:
            yield Hit(None, f"input '{value.name}' is {_dims(view.shape(value.name))}")
    for node in view.nodes:
        for name in node.output:
            if len(view.shape(name) or ()) > 8:
                yield Hit(node, f"makes '{name}' of {_dims(view.shape(name))}")


def _open_axes(view: View, name: str) -> list[int]:
    return [axis for axis, size in enumerate(view.shape(name) or ()) if isinstance(size, str)]


@rule(
    "dynamic-shape",
    INFO,
    why="without an optimisation profile the builder returns nothing (measured)",
    cure="give a range when the engine is built, like --batch 1:4:16; the middle is what it is tuned for",
)
def _dynamic_shape(view: View, target: Target) -> Iterator[Hit]:
    for value in view.inputs:
        if _open_axes(view, value.name):
            yield Hit(None, f"input '{value.name}' is {_dims(view.shape(value.name))}: it needs a profile")


@rule(
    "symbolic-size",
    WARNING,
    why="an engine for many sizes is tuned for one and slower at the others; sums over shapes stay in the graph",
    cure="export with a fixed height and width, leaving the batch open; several sizes are several engines",
)
def _symbolic_size(view: View, target: Target) -> Iterator[Hit]:
    for value in view.inputs:
        inner = [axis for axis in _open_axes(view, value.name) if axis > 0]
        if inner and len(view.shape(value.name) or ()) >= 3:
            yield Hit(None, f"input '{value.name}' is {_dims(view.shape(value.name))}: axes {inner} are open")


@rule(
    "unnamed-axis",
    WARNING,
    why="two open axes that are equal (the batch of two inputs) can only be known to be so by their name",
    cure="name the axis when exporting; --fix names those of inputs",
    fixes=True,
)
def _unnamed_axis(view: View, target: Target) -> Iterator[Hit]:
    for value in view.inputs:
        nameless = [axis for axis in _open_axes(view, value.name) if (view.shape(value.name) or ())[axis] == ""]
        if nameless:
            yield Hit(None, f"input '{value.name}': axes {nameless} have neither size nor name")


_SHAPE_OPERANDS = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Tile": (1,),
    "TopK": (1,),
}
"""Which inputs of which operators decide on shapes."""


@rule(
    "shape-input",
    WARNING,
    why="its numbers decide on shapes, so the profile must give their range, not only its shape (measured: without, the builder refuses)",
    cure="make it a constant when exporting",
)
def _shape_input(view: View, target: Target) -> Iterator[Hit]:
    inputs = {i.name for i in view.inputs}
    for node in view.ops(*_SHAPE_OPERANDS):
        for index in _SHAPE_OPERANDS[node.op_type]:
            name = node.input[index] if index < len(node.input) else ""
            if name in inputs:
                scales = view.dtype(name) == TensorProto.FLOAT and node.op_type == "Resize"
                what = f"input '{name}' decides on the shape of {node.op_type}'s output"
                yield Hit(node, what + (", and is FLOAT" if scales else ""), ERROR if scales else "")


@rule(
    "external-data",
    INFO,
    why="the weights lie in other files, which the parser finds only by the model's own path",
    cure="keep the files beside the model; below 2 GiB, save it as one file",
)
def _external_data(view: View, target: Target) -> Iterator[Hit]:
    tensors = [t for t in view.initializers.values() if t.data_location == TensorProto.EXTERNAL]
    files = Counter(entry.value for t in tensors for entry in t.external_data if entry.key == "location")
    folder = (view.folder or Path()).resolve()
    for name, count in files.items():
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            yield Hit(None, f"weights are to be read from '{name}', outside the model's folder", ERROR)
        elif not file.is_file():
            cure = "copy the whole model again: all its files belong in one folder"
            yield Hit(None, f"file '{name}' with {count} weights is missing", ERROR, cure)
        else:
            yield Hit(None, f"{count} weights are in '{name}' ({file.stat().st_size / 2**20:.1f} MiB)")


@rule(
    "precision",
    ERROR,
    why="in a strongly typed network the graph's own types are the engine's: what is not there is not built, and nothing says so",
    cure="export with --precision, which writes the types into the graph",
)
def _precision(view: View, target: Target) -> Iterator[Hit]:
    """Fires only where a precision was asked for. A plan may leave most layers of an int8 network in float."""
    wanted = target.precision
    found = Counter(view.precision(node) for node in view.ops(*LAYERS))
    least = 1 if wanted == "int8" else math.ceil(sum(found.values()) / 2)
    if wanted and found[wanted] < max(least, 1):
        there = ", ".join(f"{count} {name}" for name, count in found.most_common()) or "none"
        yield Hit(None, f"{wanted} was asked for; layers in the graph: {there}")


# -- types ---------------------------------------------------------------------------------------------------------

_TYPES = (
    "FLOAT",
    "FLOAT16",
    "BFLOAT16",
    "DOUBLE",
    "INT32",
    "INT64",
    "INT8",
    "UINT8",
    "BOOL",
    "FLOAT8E4M3FN",
    "INT4",
    "FLOAT4E2M1",
)
"""What the parser has a type for (measured); every other one is refused wherever it stands."""


@rule(
    "dtype",
    ERROR,
    why="TensorRT has no such type (measured: refused as input, output, constant and target of Cast)",
    cure="cast to INT32 or FLOAT before export; 16-bit quantisation has no form in TensorRT: use fp16",
)
def _dtype(view: View, target: Target) -> Iterator[Hit]:
    def wrong(kind: int) -> bool:
        return kind != TensorProto.UNDEFINED and (
            type_name(kind) not in _TYPES or not (kind == TensorProto.INT64 or target.has(type_name(kind)))
        )

    for where, values in (("input", view.inputs), ("output", view.graph.output)):
        for value in values:
            if wrong(view.dtype(value.name)):
                yield Hit(None, f"{where} '{value.name}' is {type_name(view.dtype(value.name))}")
    for name, tensor in view.initializers.items():
        if wrong(tensor.data_type):
            yield Hit(None, f"constant '{name}' is {type_name(tensor.data_type)}")
    for node in view.nodes:
        if any(a.name in ("value_string", "value_strings", "sparse_value") for a in node.attribute):
            yield Hit(node, "is a constant of text or of sparse form")
        kinds = {view.dtype(name) for name in node.output if name}
        for kind in sorted(k for k in kinds if wrong(k)):
            yield Hit(node, f"makes {type_name(kind)}")
    for graph in view.graphs:
        for sparse in graph.sparse_initializer:
            yield Hit(None, f"constant '{sparse.values.name}' is of sparse form")


@rule(
    "uint8",
    ERROR,
    why="UINT8 exists only at the edge of a network, next to a Cast (measured: Transpose, Slice, Concat, Resize … of it are refused)",
    cure="cast to FLOAT straight after the input, and to UINT8 last of all",
)
def _uint8(view: View, target: Target) -> Iterator[Hit]:
    inputs, outputs = {i.name for i in view.inputs}, {o.name for o in view.graph.output}
    for node in view.nodes:
        if node.domain not in STANDARD or node.op_type in UNSUPPORTED or node.op_type in _QUANTISERS:
            continue  # other rules tell of these
        for name in node.input:
            edge = node.op_type in ("Cast", "Identity", "Equal", "Shape")
            if name in inputs and view.dtype(name) == TensorProto.UINT8 and not edge:
                yield Hit(node, f"works on the UINT8 input '{name}'")
        for name in node.output:
            if view.dtype(name) == TensorProto.UINT8 and name not in outputs:
                yield Hit(node, f"makes UINT8 '{name}' inside the network")
            elif view.dtype(name) == TensorProto.UINT8 and node.op_type not in ("Cast", "Identity"):
                yield Hit(node, f"makes the UINT8 output '{name}' without a Cast")


@rule(
    "double",
    WARNING,
    why="DOUBLE is computed in FLOAT without a word (measured), so the numbers differ from ONNX Runtime's",
    cure="export the network in float32; --fix takes away casts of DOUBLE constants",
    fixes=True,
)
def _double(view: View, target: Target) -> Iterator[Hit]:
    for value in (*view.inputs, *view.graph.output):
        if view.dtype(value.name) == TensorProto.DOUBLE:
            yield Hit(None, f"'{value.name}' is DOUBLE")
    for name, tensor in view.initializers.items():
        if tensor.data_type == TensorProto.DOUBLE:
            yield Hit(None, f"constant '{name}' is DOUBLE")
    for node in view.nodes:
        if any(view.dtype(name) == TensorProto.DOUBLE for name in node.output if name):
            yield Hit(node, "makes DOUBLE")


@rule(
    "int64",
    INFO,
    why="the engine's input and output have the graph's type: INT64 from TensorRT 9 on, INT32 before",
    cure="give INT64 buffers; or cast to INT32 at the edge of the network",
)
def _int64(view: View, target: Target) -> Iterator[Hit]:
    native = target.has("INT64")
    for where, values in (("input", view.inputs), ("output", view.graph.output)):
        for value in values:
            if view.dtype(value.name) == TensorProto.INT64:
                became = "stays INT64" if native else f"becomes INT32 in {target}"
                yield Hit(None, f"{where} '{value.name}' {became}", INFO if native else WARNING)
    if not native:
        for name, tensor in view.initializers.items():
            value = view.value(name) if tensor.data_type == TensorProto.INT64 else None
            # the largest INT64 is how exporters write "to the end" of a Slice, and is clipped without harm
            if value is not None and value.size and (np.abs(value[value < 2**62]) > 2**31 - 1).any():
                yield Hit(None, f"constant '{name}' has values past INT32, which {target} clips", WARNING)


_LENIENT = ("Clip", "QuantizeLinear", "DequantizeLinear", "BatchNormalization")
"""Operators whose operands the parser takes in two types (measured)."""


@rule(
    "mixed-types",
    ERROR,
    why="a strongly typed network casts nothing by itself: operands must have one type (measured)",
    cure="put a Cast before the operand that is left over; zoo's own precision passes do",
)
def _mixed_types(view: View, target: Target) -> Iterator[Hit]:
    for node in view.nodes:
        if node.domain not in STANDARD or node.op_type in _LENIENT:
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=view.opset)
        except onnx.defs.SchemaError:
            continue
        kinds: dict[str, set[int]] = {}
        for index, name in enumerate(node.input):
            formal = schema.inputs[min(index, len(schema.inputs) - 1)] if schema.inputs else None
            if formal is not None and name and formal.is_homogeneous:
                kinds.setdefault(formal.type_str, set()).add(view.dtype(name))
        for letter in kinds.values():
            known = sorted(type_name(k) for k in letter if k != TensorProto.UNDEFINED)
            if len(known) > 1:
                yield Hit(node, f"operands are {' and '.join(known)}")


@rule(
    "quantised-constant",
    ERROR,
    why="an INT8 or narrower constant may only stand before a DequantizeLinear (measured: parses, then the builder refuses)",
    cure="store it as INT32 or FLOAT; --fix folds a Cast of it into the constant",
    fixes=True,
)
def _quantised_constant(view: View, target: Target) -> Iterator[Hit]:
    narrow = (TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN)
    for name, tensor in view.initializers.items():
        if tensor.data_type in narrow:
            for node in view.readers.get(name, ()):
                if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Identity"):
                    yield Hit(node, f"reads the {type_name(tensor.data_type)} constant '{name}'")


def _floats(view: View) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in view.initializers.items():
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            value = view.value(name)
            if value is not None:
                yield name, value


@rule(
    "nan",
    ERROR,
    why="the parser and the builder take it without a word (measured), and every answer will be NaN",
    cure="train or convert the network again",
)
def _nan(view: View, target: Target) -> Iterator[Hit]:
    for name, value in _floats(view):
        if np.isnan(value).any():
            node = next(iter(view.readers.get(name, ())), None)
            yield Hit(node, f"constant '{name}' has {int(np.isnan(value).sum())} of {value.size} values NaN")


@rule(
    "fp16-range",
    INFO,
    why="fp16 ends at 65504 and at 6e-8: what lies outside becomes infinite or 0",
    cure="for fp16, keep the layer that reads it in float",
)
def _fp16_range(view: View, target: Target) -> Iterator[Hit]:
    for name, value in _floats(view):
        if value.dtype == np.float16 or not value.size:
            continue
        size = np.abs(value[np.isfinite(value)])
        large, lost = int((size > 65504).sum()), int(((size > 0) & (size < 2.0**-25)).sum())
        node = next(iter(view.readers.get(name, ())), None)
        if large:
            yield Hit(node, f"constant '{name}' has {large} values above 65504 (the largest {size.max():.3g})")
        elif lost > 0.01 * size.size:
            yield Hit(node, f"constant '{name}' has {lost} of {value.size} values below 3e-8")


# -- quantisation --------------------------------------------------------------------------------------------------

_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_SYMMETRIC = "quantise for TensorRT: symmetric INT8 (zero point 0) activations and weights, per channel, bias in float"


def _zero_point(view: View, node: NodeProto) -> np.ndarray | None:
    return view.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None


def _quantised_kind(view: View, node: NodeProto) -> int:
    """The integer type on a Q or DQ's quantised side, which without a zero point is UINT8."""
    if node.op_type == "DequantizeLinear" and view.dtype(node.input[0]) != TensorProto.UNDEFINED:
        return view.dtype(node.input[0])
    if len(node.input) > 2 and node.input[2]:
        return view.dtype(node.input[2])
    return int(attribute(node, "output_dtype", 0) or TensorProto.UINT8)


@rule(
    "zero-point",
    ERROR,
    why="TensorRT's quantisation is symmetric: a zero point other than 0 is refused (measured; only DLA has a flag for it)",
    cure=_SYMMETRIC + "; --fix shifts UINT8 with zero point 128 to INT8 exactly",
    fixes=True,
)
def _zero_points(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops(*_QUANTISERS):
        zero = _zero_point(view, node)
        if zero is not None and np.any(zero != 0):
            low, high = int(zero.min()), int(zero.max())
            yield Hit(
                node,
                f"{type_name(_quantised_kind(view, node))}, zero point {low if low == high else f'{low} to {high}'}",
            )


@rule(
    "uint8-quantised",
    ERROR,
    why="UINT8 with zero point 0 is built as INT8 with no more than a line in the log (measured): all above 127 steps is cut off",
    cure=_SYMMETRIC,
)
def _uint8_quantised(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops(*_QUANTISERS):
        zero = _zero_point(view, node)
        if _quantised_kind(view, node) != TensorProto.UINT8 or (zero is not None and np.any(zero != 0)):
            continue
        maker = view.makers.get(node.input[0])
        if maker is not None and maker.op_type == "QuantizeLinear":
            continue  # told of once, at the quantiser
        yield Hit(node, "UINT8, zero point 0" if zero is not None else "UINT8 by ONNX's default, no zero point given")


@rule(
    "int32-bias",
    ERROR,
    why="DequantizeLinear takes no INT32 (measured); ONNX Runtime's quantiser writes biases so by default",
    cure="leave the bias in float (QuantizeBias=False); --fix turns it into the same float constant",
    fixes=True,
)
def _int32_bias(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("DequantizeLinear"):
        if view.dtype(node.input[0]) == TensorProto.INT32:
            yield Hit(node, f"dequantises the INT32 '{node.input[0]}'")


@rule(
    "scale",
    ERROR,
    why="scales must be positive (measured: 0 and negative ones are refused)",
    cure="calibrate again; a scale of 0 comes from a tensor that was 0 on every calibration image",
)
def _scale(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops(*_QUANTISERS):
        scale = view.value(node.input[1])
        if scale is not None and not np.all(np.asarray(scale, np.float64) > 0):
            yield Hit(node, f"scale {float(np.asarray(scale, np.float64).min()):g}")


@rule(
    "runtime-zero-point",
    ERROR,
    why="a zero point must be a constant (measured: parses, then the builder refuses)",
    cure="quantise statically, with calibration images",
)
def _runtime_zero_point(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops(*_QUANTISERS):
        if len(node.input) > 2 and node.input[2] and view.constant(node.input[2]) is None:
            yield Hit(node, f"zero point '{node.input[2]}' is computed")


# -- operators -----------------------------------------------------------------------------------------------------

_NO_IMPORTER = """
AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress
ConcatFromSequence ConvInteger CumProd Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxRoiPool MaxUnpool
MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv
QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert
SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit
SwiGLU TfIdfVectorizer Unique
"""
UNSUPPORTED = frozenset(_NO_IMPORTER.split())
"""Standard operators that the parser has no importer for (measured by its supports_operator, over all of ONNX 1.23)."""

_PLUGINS = ("NonZero", "RoiAlign", "DeformConv", "DFT")
"""Standard operators that the parser hands to a plugin: they are there only with the library of standard plugins."""

_REQUANTISE = "this is ONNX Runtime's integer form for CPUs: quantise the float network again, as Q/DQ, for TensorRT"
_CURES = {
    "MaxUnpool": "replace it by a transposed convolution or an interpolation: TensorRT has no pooling indices",
    "DynamicQuantizeLinear": "quantise statically, with calibration images",
    "AffineGrid": "compute the grid outside the network, or from constants",
}


def _standard(name: str) -> bool:
    return bool(onnx.defs.has(name))


def _cure(name: str) -> str:
    return _REQUANTISE if name.startswith("QLinear") or name.endswith("Integer") else _CURES.get(name, "")


@rule(
    "unsupported-op",
    ERROR,
    why="the parser has no importer for it (measured)",
    cure="replace it in the network's forward by operators that TensorRT has, or run this part outside the engine",
)
def _unsupported(view: View, target: Target) -> Iterator[Hit]:
    for node in view.nodes:
        if node.domain in STANDARD and node.op_type in UNSUPPORTED:
            yield Hit(node, f"is a {node.op_type}", cure=_cure(node.op_type))


@rule(
    "newer-op",
    ERROR,
    why="the parser of this version does not know the operator yet",
    cure="use a newer TensorRT, or export with opset 20, where most of these are written out in older operators",
)
def _newer(view: View, target: Target) -> Iterator[Hit]:
    for node in view.nodes:
        if node.domain in STANDARD and node.op_type not in _PLUGINS and not target.has(node.op_type):
            yield Hit(node, f"{node.op_type} {target.since(node.op_type)}")


@rule(
    "foreign-domain",
    ERROR,
    why="the parser ignores an operator's domain (measured): it takes this for the standard operator of the same name, which may mean something else",
    cure="export without operators of other domains (no onnxruntime optimiser or transformer fusions)",
)
def _foreign(view: View, target: Target) -> Iterator[Hit]:
    for node in view.nodes:
        if node.domain not in STANDARD and _standard(node.op_type) and node.op_type not in UNSUPPORTED:
            yield Hit(node, f"is {node.op_type} of {node.domain}")


@rule(
    "custom-op",
    ERROR,
    why="no importer has this name (measured): the parser looks for a plugin, and without one refuses",
    cure="export it written out in standard operators; with a plugin of your own, --ignore custom-op",
)
def _custom(view: View, target: Target) -> Iterator[Hit]:
    for node in view.nodes:
        known = _standard(node.op_type) and not (node.domain not in STANDARD and node.op_type in UNSUPPORTED)
        if known or node.op_type.startswith("TRT_"):  # TRT_…: quantisers of NVIDIA's own tools, which have importers
            continue
        what = f"is {node.op_type}" + (f" of {node.domain}" if node.domain not in STANDARD else "")
        bundled = node.op_type.endswith("_TRT") and not target.rtx
        cure = "load the standard plugins (libnvinfer_plugin) before parsing; TensorRT 11 dropped many of them"
        yield Hit(node, what, WARNING, cure) if bundled else Hit(node, what, cure=_cure(node.op_type))


@rule(
    "plugin-op",
    WARNING,
    why="the parser hands it to a plugin (measured: refused where the standard plugins, or a GPU to make one, are absent)",
    cure="load the standard plugins (libnvinfer_plugin) before parsing, or keep this part outside the engine",
)
def _plugin(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops(*_PLUGINS):
        if target.has(node.op_type):
            needs = "a GPU while parsing" if target.rtx else "a plugin"
            yield Hit(node, f"{node.op_type} needs {needs}")
        else:
            yield Hit(node, f"{node.op_type} {target.since(node.op_type)}", ERROR)


@rule(
    "nms",
    INFO,
    why="boxes to suppress depend on the data: an engine can do it slowly, TensorRT-RTX not at all (measured: no runner)",
    cure="leave non-maximum suppression to the host, which is the zoo's default (--nms host)",
)
def _nms(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("NonMaxSuppression"):
        runs = target.has("nms")
        yield Hit(
            node, f"NonMaxSuppression {'runs in the engine' if runs else 'cannot be built'}", INFO if runs else ERROR
        )


@rule(
    "extra-outputs",
    ERROR,
    why="only the first output exists in TensorRT (measured: refused even where nothing reads the others)",
    cure="take the output away; --fix does where nothing reads it. Unpooling by indices has no form in TensorRT",
    fixes=True,
)
def _extra_outputs(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("MaxPool", "LayerNormalization", "BatchNormalization"):
        if _extra(node):
            used = [name for name in _extra(node) if name in view.readers or name in view.results]
            yield Hit(
                node,
                f"{node.op_type} makes '{_extra(node)[0]}' too, "
                + ("which is read" if used else "which nothing reads"),
            )


@rule(
    "training-mode",
    ERROR,
    why="an engine only infers (measured: refused)",
    cure="call .eval() on the whole network before export",
)
def _training(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("BatchNormalization", "Dropout"):
        if node.op_type == "BatchNormalization":
            on = bool(attribute(node, "training_mode", 0))
        else:
            mode = node.input[2] if len(node.input) > 2 else ""
            value = view.value(mode) if mode else None
            on = bool(mode) and (value is None or bool(value.any()))
        if on:
            yield Hit(node, f"{node.op_type} in training mode")


_SPATIAL = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")


@rule(
    "spatial-axes",
    ERROR,
    why="convolution and pooling have at most three spatial axes (measured)",
    cure="write it as several of fewer axes",
)
def _spatial(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops(*_SPATIAL):
        shape = view.shape(node.input[0])
        if shape is not None and len(shape) > 5:
            yield Hit(node, f"{node.op_type} over {len(shape) - 2} spatial axes")


@rule(
    "pool-dilations",
    ERROR,
    why="pooling with gaps is refused (measured)",
    cure="use a pooling without dilations",
)
def _pool_dilations(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("MaxPool", "AveragePool", "LpPool"):
        gaps = attribute(node, "dilations", ())
        if any(d != 1 for d in gaps):
            yield Hit(node, f"{node.op_type} with dilations {list(gaps)}")


@rule(
    "resize",
    ERROR,
    why="this kind of Resize is refused (measured); nearest, linear and cubic with half_pixel, pytorch_half_pixel, align_corners and asymmetric build",
    cure="interpolate without antialiasing, and with align_corners either way; resize photos before the network",
)
def _resize(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("Resize"):
        how = attribute(node, "coordinate_transformation_mode", "half_pixel")
        if how in ("half_pixel_symmetric", "tf_crop_and_resize"):
            yield Hit(node, f"Resize by {how}")
        if attribute(node, "antialias", 0):
            yield Hit(node, "Resize with antialias")
        policy = attribute(node, "keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            yield Hit(node, f"Resize with keep_aspect_ratio_policy {policy}")


@rule(
    "gridsample-5d",
    ERROR,
    why="sampling from volumes came with TensorRT 11.2; earlier ones take 4-D inputs only",
    cure="use TensorRT 11.2 or newer, or sample slice by slice",
)
def _gridsample(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("GridSample"):
        if len(view.shape(node.input[0]) or ()) == 5 and not target.has("gridsample-5d"):
            yield Hit(node, f"GridSample of {_dims(view.shape(node.input[0]))} {target.since('gridsample-5d')}")


@rule(
    "topk",
    ERROR,
    why="K is at most 3840 (measured: 3841 parses, then the builder refuses)",
    cure="take fewer candidates, or take the best in two steps, per level or per tile",
)
def _topk(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("TopK"):
        k = view.value(node.input[1]) if len(node.input) > 1 else np.asarray(attribute(node, "k", 0))
        if k is not None and k.size and int(k.max()) > 3840:
            yield Hit(node, f"TopK with K = {int(k.max())}")


@rule(
    "scatter-reduction",
    ERROR,
    why="scattering that adds or compares is refused: ScatterND everywhere, ScatterElements where there is no plugin (measured)",
    cure="write the sum as a matrix product with a one-hot matrix, or keep this part outside the engine",
)
def _scatter(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("ScatterND", "ScatterElements"):
        reduction = attribute(node, "reduction", "none")
        if reduction != "none":
            plugin = node.op_type == "ScatterElements" and target.has("scatter-reduction")
            what = f"{node.op_type} with reduction {reduction}"
            yield Hit(node, what + (", by a plugin" if plugin else ""), WARNING if plugin else "")


@rule(
    "runtime-axes",
    ERROR,
    why="axes must be constants when the engine is built; Reduce wants them as they stand, or behind Identity and Cast (measured)",
    cure="fold constants (export with onnxslim); --fix does where the axes do not depend on the inputs",
    fixes=True,
)
def _runtime_axes(view: View, target: Target) -> Iterator[Hit]:
    for node in view.nodes:
        axes = node.input[1] if len(node.input) > 1 else ""
        if not axes or not (node.op_type.startswith("Reduce") or node.op_type in ("Squeeze", "Unsqueeze")):
            continue
        fixed = view.fixed(axes)
        if not fixed or (node.op_type.startswith("Reduce") and view.constant(axes) is None):
            yield Hit(node, f"axes of {node.op_type} are computed " + ("from constants" if fixed else "at run time"))


@rule(
    "loop-condition",
    ERROR,
    why="the body reads a condition that the Loop was not given, and the parser does not fill it in (measured)",
    cure="give the Loop a constant condition, true; --fix does",
    fixes=True,
)
def _loop(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("Loop"):
        body = attribute(node, "body")
        given = len(node.input) > 1 and node.input[1]
        name = body.input[1].name if len(body.input) > 1 else ""
        if not given and name and (name in view.readers or any(o.name == name for o in body.output)):
            yield Hit(node, f"Loop without a condition, which its body reads as '{name}'")


@rule(
    "if-ranks",
    ERROR,
    why="both branches must give the same number of axes (measured: parses, then the builder refuses)",
    cure="make the branches agree, usually by leaving out a Squeeze; or fold the condition to a constant",
)
def _if(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("If"):
        if view.constant(node.input[0]) is not None:
            continue
        pairs = zip(attribute(node, "then_branch").output, attribute(node, "else_branch").output, strict=False)
        for one, two in pairs:
            ranks = [view.shape(one.name), view.shape(two.name)]
            if None not in ranks and len(ranks[0] or ()) != len(ranks[1] or ()):
                yield Hit(node, f"branches give {_dims(ranks[0])} and {_dims(ranks[1])}")


_RECURRENT = ("LSTM", "GRU", "RNN")


@rule(
    "rnn-layout",
    ERROR,
    why="layout 1 (batch first) is read as layout 0 without a word (measured: the output has the wrong shape)",
    cure="export with layout 0; torch does, with a Transpose before and after",
)
def _rnn_layout(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops(*_RECURRENT):
        if attribute(node, "layout", 0):
            yield Hit(node, f"{node.op_type} with layout 1")


@rule(
    "rnn-variant",
    ERROR,
    why="coupled gates and directions with activations of their own are refused (measured)",
    cure="write the cell out in plain operators, or run the directions as two layers",
)
def _rnn_variant(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops(*_RECURRENT):
        if attribute(node, "input_forget", 0):
            yield Hit(node, f"{node.op_type} with input_forget")
        names = list(attribute(node, "activations", ()))
        half = len(names) // 2
        if attribute(node, "direction", "forward") == "bidirectional" and names[:half] != names[half:]:
            yield Hit(node, f"{node.op_type} with other activations backward than forward")


@rule(
    "gru-reset",
    WARNING,
    why="building a GRU with linear_before_reset = 0 had not ended after eight minutes on a CPU (measured; with 1 it takes half a second)",
    cure="export with linear_before_reset = 1, which is torch's GRU",
)
def _gru(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("GRU"):
        if target.rtx and not attribute(node, "linear_before_reset", 0):
            yield Hit(node, "GRU with linear_before_reset = 0")


@rule(
    "attention",
    WARNING,
    why="the Attention operator is built only into a fused kernel, where there is one for its type and size; what cannot be fused is refused (measured)",
    cure="export attention written out as MatMul, Softmax, MatMul: opset 20 does",
)
def _attention(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("Attention"):
        reasons = []
        if float(attribute(node, "softcap", 0.0)):
            reasons.append("softcap")
        if _extra(node) or any(node.input[4:]):
            reasons.append("a key-value cache or a second output")
        shape = view.shape(node.input[0]) or ()
        head = shape[-1] if len(shape) == 4 else 0
        if len(shape) == 4 and view.dtype(node.input[0]) == TensorProto.FLOAT:
            reasons.append("4-D operands in FLOAT")
        elif isinstance(head, int) and head and not 8 < head <= 256:
            reasons.append(f"heads of {head}")
        yield Hit(node, "Attention with " + " and ".join(reasons), ERROR) if reasons else Hit(node, "Attention")


@rule(
    "eyelike",
    ERROR,
    why="EyeLike needs a fixed shape (measured)",
    cure="build the matrix from constants, or fix the size at export",
)
def _eyelike(view: View, target: Target) -> Iterator[Hit]:
    for node in view.ops("EyeLike"):
        shape = view.shape(node.input[0])
        if shape is None or any(isinstance(size, str) for size in shape):
            yield Hit(node, f"EyeLike of {_dims(shape)}")
