"""Which nodes of a graph do not bear half precision, and why: by their range, by their nature, by what they do to the outputs.

fp16 ends at 65504 and has 11 bits, bf16 reaches as far as float32 and has 8. So two things go wrong: a value leaves the
range, or it needs more bits than there are. The first is measured on the calibration images. Of the second, three kinds are
known beforehand: statistics (a variance is a difference of large numbers), coordinates (a box at 640 pixels has a grid of half
a pixel in fp16) and decisions (a rank, a comparison or an index does not come out a little wrong). Wherever the rules can look
at the graph they do not look at operators' names: a decision is what makes integers or truth values of floats, a coordinate
is what leads to one, or to a sampler's grid, with no layer with weights in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from zoo.artifacts import Calibration
from zoo.errors import ExportError
from zoo.runtime.ort import open_session

from ..tensorrt.view import View, attribute
from .halves import INDIFFERENT, half_form, is_exact, rounded
from .layers import WEIGHTED, layer_precisions
from .normalising import squared

__all__ = ["LARGEST", "Yardstick", "by_constants", "by_nature", "by_range", "formless", "macs", "measure_shapes"]

FLOAT = TensorProto.FLOAT
_NO_TENSOR = TensorProto.UNDEFINED
LARGEST = 65504.0
"""The largest finite number of fp16."""
HEADROOM = 4.0
"""Images to come reach further than those of the calibration: beyond a quarter of the range a value stays float32."""
RANGE_IMAGES = 64
LOST = 2.0**-8
"""Relative error (RMS) beyond which a constant is said not to survive: rounding alone costs 2^-12 in fp16, 2^-9 in bf16, so
this is a constant that fp16 flushes to zero or to a few bits."""
BITS = {"fp16": 11, "bf16": 8}
HEAVY = (*WEIGHTED, "Attention", "DeformConv", "Einsum", "GRU", "LSTM", "RNN")
"""Where a network computes features: coordinates are looked for up to these and no further."""
STATISTICS = (
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
    "ReduceSumSquare",
)
SAMPLERS = {"GridSample": 1, "MaxRoiPool": 1, "RoiAlign": 1}
"""Which input of them says where to look."""
PLACE = 1 / 64
"""Pixels: what a bilinear sampler's place may be off by."""
REFUSED = {"fp16": (), "bf16": ("ConvTranspose", "GRU", "HardSwish", "LpNormalization", "LpPool", "Mish")}
"""What TensorRT-RTX 1.7.1 takes in float32 and does not take in this type (measured, one operator at a time)."""
BOUNDS = ("Clip", "Max", "Min")
"""A constant that overflows to infinity bounds nothing in these, as it did before."""


def formless(view: View, precision: str) -> dict[str, str]:
    """Nodes that handle floats and have no half-precision form, in ONNX or in TensorRT."""
    found = {}
    for node in view.graph.node:
        floats = any(view.dtype(name) == FLOAT for name in (*node.input, *node.output) if name)
        if node.op_type in REFUSED[precision]:
            found[node.name] = f"TensorRT has no {precision} form of {node.op_type}"
        elif floats and node.op_type not in INDIFFERENT and half_form(node, view, precision) is None:
            found[node.name] = f"ONNX has no {precision} form of {node.op_type}"
    return found


# -- by nature ------------------------------------------------------------------------------------------------------


def by_nature(view: View, precision: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Statistics, long sums, what makes the answer, decisions and coordinates: node name to reason.

    ``shapes``: as :func:`measure_shapes` gives them.
    """
    found: dict[str, str] = {}
    nodes = list(view.graph.node)
    for node in nodes:
        if node.op_type in STATISTICS:
            found[node.name] = "statistics: sums of squares"
        square = squared(node, view)
        if square is not None:
            found[node.name] = found[square.name] = "statistics: sums of squares"
        if _terms(node, view, shapes) > 2 ** BITS[precision]:
            # one added to 2^11 is 2^11 in fp16: a kernel that adds up in its own type stops counting there
            found.setdefault(node.name, f"a sum of more than {2 ** BITS[precision]} terms, to which {precision} counts")
        if _too_fine(node, precision, shapes):
            found[node.name] = f"samples places that {precision} does not tell apart"
    answer = _answer(view)
    places = _before_decisions(view) - answer
    for names, why in (
        (answer, "makes the answer, after the last layer with weights"),
        (places, "leads to a decision or a coordinate"),
        (_computed_from(view, answer | places), "computed from coordinates"),
    ):
        for name in names:
            found.setdefault(name, why)
    return {node.name: found[node.name] for node in nodes if node.name in found}


def _answer(view: View) -> set[str]:
    """Everything after the last layer with weights on each way to an output."""
    weighted, found = set(layer_precisions(view.model)), set[str]()
    queue = [o.name for o in view.graph.output]
    while queue:
        node = view.makers.get(queue.pop())
        if node is not None and node.name not in found and node.name not in weighted:
            found.add(node.name)
            queue += node.input
    return found


def _too_fine(node: NodeProto, precision: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a sampler's places lose more than PLACE when they are read in half precision.

    TensorRT wants a sampler's map and its places in one type (measured). In GridSample places lie in -1..1, so a map of S
    pixels is off by S / 2 times half a step of the type below 1; those of regions are pixels of the image.
    """
    if node.op_type == "GridSample":
        return max(shapes[node.input[0]][2:]) * 2.0 ** -(BITS[precision] + 2) > PLACE
    return node.op_type in SAMPLERS


def measure_shapes(model: ModelProto, image: np.ndarray) -> dict[str, tuple[int, ...]]:
    """The shape of every value of the main graph for one image, (1, C, H, W) float32, as it is when the graph is run.

    Shape inference leaves much open behind a Reshape; what an operator adds up and multiplies must be known.
    """
    view = View(model)
    names = [name for node in view.graph.node for name in node.output if name and view.dtype(name) != _NO_TENSOR]
    probe = ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in names:
        probe.graph.node.append(helper.make_node("Shape", [name], [f"{name}.shape"], name=f"{name}.shape"))
        probe.graph.output.append(helper.make_tensor_value_info(f"{name}.shape", TensorProto.INT64, None))
    values = open_session(probe.SerializeToString()).run(image).values()
    found = {name: tuple(int(size) for size in value) for name, value in zip(names, values, strict=True)}
    found |= {i.name: image.shape for i in view.inputs}
    return found | {name: tuple(tensor.dims) for name, tensor in view.initializers.items()}


def macs(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Multiply-accumulates of each layer with weights for one image, by node name.

    ``shapes``: as ``measure_shapes`` gives them for one image.
    """
    found = {}
    weighted = set(layer_precisions(model))
    for node in model.graph.node:
        if node.name not in weighted:
            continue
        data, weight, result = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
        if node.op_type == "Conv":  # weights (C_out, C_in / groups, *kernel)
            found[node.name] = math.prod(result) * math.prod(weight[1:])
        elif node.op_type == "ConvTranspose":  # weights (C_in, C_out / groups, *kernel)
            found[node.name] = math.prod(data) * math.prod(weight[1:])
        else:
            summed = data[0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else data[-1]
            found[node.name] = math.prod(result) * summed
    return found


def _terms(node: NodeProto, view: View, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many values a node adds up for each that it gives; 0 for one that adds none."""
    if node.op_type == "AveragePool":
        return math.prod(attribute(node, "kernel_shape", [1]))
    if node.op_type not in ("GlobalAveragePool", "LogSoftmax", "ReduceMean", "ReduceSum", "Softmax"):
        return 0
    shape = shapes.get(node.input[0], ())
    if node.op_type == "GlobalAveragePool":
        axes: Iterable[int] = range(2, len(shape))
    elif node.op_type in ("Softmax", "LogSoftmax"):
        axes = [attribute(node, "axis", -1)]
    else:
        given = attribute(node, "axes")
        if given is None and len(node.input) > 1 and node.input[1]:
            given = view.value(node.input[1])
        if given is None or not len(given):
            given = [] if attribute(node, "noop_with_empty_axes", 0) else range(len(shape))
        axes = [int(axis) for axis in given]
    return math.prod(shape[axis] for axis in axes)


def _before_decisions(view: View) -> set[str]:
    """Nodes between the last layer with weights and a decision or a sampler's grid that round something on the way."""
    found: set[str] = set()
    for node in view.graph.node:
        starts = _deciding(node, view)
        if not starts:
            continue
        inside: set[str] = set()
        queue = list(starts)
        while queue:
            maker = view.makers.get(queue.pop())
            if maker is None or maker.op_type in HEAVY or maker.name in inside:
                continue
            inside.add(maker.name)
            queue += [name for name in maker.input if view.dtype(name) == FLOAT]
        # copies and maxima of one rounded tensor rank as the tensor does: nothing is gained by keeping those
        rounding: set[str] = set()
        for part in view.graph.node:
            if part.name in inside and (
                not is_exact(part) or any(_made_by(name, rounding, view) for name in part.input)
            ):
                rounding.add(part.name)
        found |= rounding
        if node.op_type not in SAMPLERS and any(_made_by(name, rounding, view) for name in starts):
            found.add(node.name)
    return found


def _deciding(node: NodeProto, view: View) -> list[str]:
    """The float inputs of a node that it decides or samples by."""
    if node.op_type in SAMPLERS:
        return [node.input[SAMPLERS[node.op_type]]]
    if node.op_type in (*INDIFFERENT, "QuantizeLinear") or any(
        view.dtype(name) == FLOAT for name in node.output[: 1 if node.op_type != "TopK" else 0]
    ):
        return []
    return [name for name in node.input if name and view.dtype(name) == FLOAT and name not in view.initializers]


def _made_by(name: str, nodes: Collection[str], view: View) -> bool:
    maker = view.makers.get(name)
    return maker is not None and maker.name in nodes


def _computed_from(view: View, origins: Collection[str]) -> set[str]:
    """Nodes all of whose floats come from these, as far as the next layer that computes features."""
    reached = set(origins)
    for node in view.graph.node:
        if node.name in reached or node.op_type in HEAVY:
            continue
        sources = [n for n in node.input if n and view.dtype(n) == FLOAT and n not in view.initializers]
        if sources and all(_made_by(name, reached, view) for name in sources):
            reached.add(node.name)
    return reached - set(origins)


# -- by constants ---------------------------------------------------------------------------------------------------


def by_constants(view: View, precision: str) -> dict[str, str]:
    """Nodes with a float constant that half precision overflows, or that it leaves nothing of: weights in bulk, an epsilon."""
    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    verdicts: dict[str, str] = {}
    for name, tensor in view.initializers.items():
        if tensor.data_type != FLOAT:
            continue
        exact = numpy_helper.to_array(tensor).astype(np.float64)
        half = numpy_helper.to_array(rounded(tensor, kind, name)).astype(np.float64)
        finite = np.isfinite(exact)
        if not np.isfinite(half[finite]).all():
            verdicts[name] = f"beyond the range ({np.abs(exact[finite]).max():.3g})"
            continue
        power = float((exact[finite] ** 2).sum())
        error = float(((half - exact)[finite] ** 2).sum())
        if power > 0 and math.sqrt(error / power) > LOST:
            verdicts[name] = f"too small ({np.abs(exact[finite]).max():.3g})"
    found = {}
    for node in view.graph.node:
        for name in node.input:
            said = verdicts.get(name)
            if said is not None and not (node.op_type in BOUNDS and said.startswith("beyond")):
                found[node.name] = f"a constant is {said} for {precision}"
                break
    return found


# -- by range -------------------------------------------------------------------------------------------------------


def by_range(
    model: ModelProto, calibration: Calibration, shapes: Mapping[str, tuple[int, ...]], skip: Collection[str] = ()
) -> dict[str, str]:
    """Nodes that leave fp16's range on the calibration images: in what they read or make, or in sums on the way.

    ``model``: as ``prepare`` gives it. Each image is run alone and only extremes are kept, so memory is bounded by one
    image. Of a sum (convolution, product of matrices, mean) the largest total of magnitudes is what counts: no order of
    adding reaches further. It is bounded from the extremes, and measured where the bound is too large to acquit.
    """
    view = View(model)
    images = calibration.tensors[:RANGE_IMAGES]
    names = [i.name for i in view.inputs if view.dtype(i.name) == FLOAT]
    names += [name for node in view.graph.node for name in node.output if name and view.dtype(name) == FLOAT]
    low, high = _extremes(model, names, images)
    peak = {name: max(abs(a), abs(b)) for name, a, b in zip(names, low, high, strict=True)}
    found: dict[str, str] = {}
    for node in view.graph.node:
        if node.name in skip:
            continue
        for name in (*node.output, *node.input):
            if not peak.get(name, 0.0) <= LARGEST / HEADROOM:
                found[node.name] = f"values reach {peak[name]:.3g} (fp16 ends at {LARGEST:.0f})"
                break
    suspects = [
        node for node in view.graph.node
        if node.name not in found and node.name not in skip and _bound(node, view, shapes, peak) > LARGEST
    ]  # fmt: skip
    for node, total in zip(suspects, _totals(model, view, shapes, suspects, images), strict=True):
        if total > LARGEST:
            found[node.name] = f"sums reach {total:.3g} (fp16 ends at {LARGEST:.0f})"
    return {node.name: found[node.name] for node in view.graph.node if node.name in found}


def _extremes(model: ModelProto, names: Sequence[str], images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest value of each of these over the images."""
    kinds = ("ReduceMin", "ReduceMax")
    extra = [
        helper.make_node(kind, [name], [f"{name}.{kind}"], name=f"{name}.{kind}", keepdims=0)
        for name in names
        for kind in kinds
    ]
    values = _run(model, extra, [node.output[0] for node in extra], images)
    return values[:, 0::2].min(axis=0), values[:, 1::2].max(axis=0)


def _run(model: ModelProto, extra: Iterable[NodeProto], outputs: Sequence[str], images: np.ndarray) -> np.ndarray:
    """(images, outputs) float64: scalars that nodes added to the graph give, image by image."""
    probe = ModelProto()
    probe.CopyFrom(model)
    for node in extra:
        probe.graph.node.append(node)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, []) for name in outputs)
    session = open_session(probe.SerializeToString())
    rows = [list(session.run(images[i : i + 1]).values()) for i in range(len(images))]
    return np.asarray(rows, np.float64).reshape(len(images), len(outputs))


def _bound(node: NodeProto, view: View, shapes: Mapping[str, tuple[int, ...]], peak: Mapping[str, float]) -> float:
    """No sum that the node makes exceeds this, from the extremes of what it reads; 0 where it makes none."""
    if node.op_type in ("ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool"):
        return _terms(node, view, shapes) * peak.get(node.input[0], math.inf)
    if node.op_type not in WEIGHTED or len(node.input) < 2:
        return 0.0
    data, weight = peak.get(node.input[0]), view.value(node.input[1])
    if data is None:
        return 0.0  # no float: an integer layer adds up in 32 bits
    if weight is None:
        maker = view.makers.get(node.input[1])
        if maker is not None and maker.op_type == "DequantizeLinear":
            return 0.0
        return data * peak.get(node.input[1], math.inf) * shapes.get(node.input[0], (1,))[-1]
    bias = view.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    extra = float(np.abs(bias).max()) if bias is not None and bias.size else 0.0
    return data * float(np.abs(weight).sum(axis=_summed(node, weight)).max(initial=0.0)) + extra


def _summed(node: NodeProto, weight: np.ndarray) -> tuple[int, ...]:
    """The axes of a layer's weights that it sums over for one output value."""
    if node.op_type == "Conv":
        return tuple(range(1, weight.ndim))
    if node.op_type == "ConvTranspose":
        return (0, *range(2, weight.ndim))
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return (1,)
    return (max(0, weight.ndim - 2),)


def _totals(
    model: ModelProto,
    view: View,
    shapes: Mapping[str, tuple[int, ...]],
    nodes: Sequence[NodeProto],
    images: np.ndarray,
) -> list[float]:
    """For each node the largest sum of magnitudes behind any of its values: the node itself, on magnitudes."""
    if not nodes:
        return []
    probe = ModelProto()
    probe.CopyFrom(model)
    extra: list[NodeProto] = []
    outputs, factors = [], []
    for index, node in enumerate(nodes):
        prefix = f"total.{index}"
        twin = NodeProto()
        twin.CopyFrom(node)
        twin.name = prefix
        for at, name in enumerate(node.input):
            if not name or view.dtype(name) != FLOAT:
                continue
            twin.input[at] = f"{prefix}.{at}"
            if name in view.initializers:
                value = np.abs(numpy_helper.to_array(view.initializers[name]))
                probe.graph.initializer.append(numpy_helper.from_array(value, twin.input[at]))
            else:
                extra.append(helper.make_node("Abs", [name], [twin.input[at]], name=twin.input[at]))
        twin.output[0] = f"{prefix}.out"
        extra.append(twin)
        extra.append(
            helper.make_node("ReduceMax", [twin.output[0]], [f"{prefix}.max"], name=f"{prefix}.max", keepdims=0)
        )
        outputs.append(f"{prefix}.max")
        mean = node.op_type in ("ReduceMean", "GlobalAveragePool", "AveragePool")
        factors.append(_terms(node, view, shapes) if mean else 1)
    largest = _run(probe, extra, outputs, images).max(axis=0)
    return [float(a) * b for a, b in zip(largest, factors, strict=True)]


# -- by what it does to the outputs ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """The float outputs of a graph on a few images, to hold those of its rewritten forms against.

    Where the graph ranks (TopK), the rewritten forms are given the ranks of the first: two candidates of nearly equal
    score that change places make every number of their rows differ, and that says nothing of the layers before.
    """

    tensors: np.ndarray
    """(n, C, H, W) float32."""
    truth: Mapping[str, np.ndarray]
    """Output name to (n, …) float32."""
    ranks: Mapping[str, np.ndarray]
    """Name of a TopK to its indices, (n, …) int64."""

    @classmethod
    def of(cls, model: ModelProto, tensors: np.ndarray, most: int = 8, values: int = 1 << 22) -> Yardstick:
        """At most ``most`` images, and fewer where their outputs have more than ``values`` values in all.

        Raises ExportError where an output is not finite on them.
        """
        probe = ModelProto()
        probe.CopyFrom(model)
        ranked = {node.output[1]: node.name for node in model.graph.node if node.op_type == "TopK" and node.output[1]}
        probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ranked)
        session = open_session(probe.SerializeToString())
        parts: list[dict[str, np.ndarray]] = []
        for index in range(min(most, len(tensors))):
            parts.append(session.run(tensors[index : index + 1]))
            if sum(value.size for part in parts for value in part.values()) >= values:
                break
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for name, value in joined.items():
            if not np.isfinite(value).all():
                raise ExportError(f"output '{name}' is not finite on the calibration images: train the network again")
        return cls(
            tensors=tensors[: len(parts)],
            truth={name: value for name, value in joined.items() if value.dtype == np.float32},
            ranks={ranked[name]: value for name, value in joined.items() if name in ranked},
        )

    def shares(self, model: ModelProto) -> dict[str, float]:
        """For each output the RMS error as a share of its spread, as the numeric gate counts it; infinity where it is
        not finite."""
        run = _opened(self._ranked(model))
        error, spread = dict.fromkeys(self.truth, 0.0), dict.fromkeys(self.truth, 0.0)
        for at in range(len(self.tensors)):
            one = slice(at, at + 1)
            outputs = run(self.tensors[one], {_pin(name): value[one] for name, value in self.ranks.items()}, self.truth)
            for name, value in outputs.items():
                exact = self.truth[name][at].astype(np.float64).reshape(-1)
                difference = value.astype(np.float64).reshape(-1) - exact
                error[name] += float((difference**2).mean()) if np.isfinite(difference).all() else math.inf
                spread[name] += float(exact.var()) or float((exact**2).mean()) or 1.0
        return {name: math.sqrt(error[name] / spread[name]) for name in self.truth}

    def worst(self, model: ModelProto) -> float:
        """The largest of the :meth:`shares`."""
        return max(self.shares(model).values(), default=0.0)

    def _ranked(self, model: ModelProto) -> ModelProto:
        """The graph with the indices of every TopK as inputs."""
        if not self.ranks:
            return model
        made = ModelProto()
        made.CopyFrom(model)
        for node in made.graph.node:
            if node.name not in self.ranks:
                continue
            axis, (values, indices) = attribute(node, "axis", -1), node.output
            shape = self.ranks[node.name].shape
            made.graph.input.append(helper.make_tensor_value_info(_pin(node.name), TensorProto.INT64, (1, *shape[1:])))
            at = list(made.graph.node).index(node)
            made.graph.node.insert(at + 1, helper.make_node("Identity", [_pin(node.name)], [indices]))
            node.CopyFrom(
                helper.make_node(
                    "GatherElements", [node.input[0], _pin(node.name)], [values], name=node.name, axis=axis
                )
            )
        return made


def _pin(name: str) -> str:
    return f"{name}.ranks"


def _opened(
    model: ModelProto,
) -> Callable[[np.ndarray, Mapping[str, np.ndarray], Iterable[str]], dict[str, np.ndarray]]:
    """Runs a graph that has more inputs than the image."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0].name

    def run(batch: np.ndarray, others: Mapping[str, np.ndarray], outputs: Iterable[str]) -> dict[str, np.ndarray]:
        names = list(outputs)
        return dict(zip(names, session.run(names, {image: batch, **others}), strict=True))

    return run
