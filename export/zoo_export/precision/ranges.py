"""Which range of values each tensor's 8 bits should cover: measured on calibration images, chosen by a calibrator.

One pass over the images takes the extremes, a second one the histograms, so that no more than one image's activations
are ever held. A range that is narrower than what was seen clips; how much it clips is told with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from zoo.artifacts import Calibration
from zoo.errors import ExportError, UnknownName

__all__ = [
    "BINS",
    "CALIBRATORS",
    "Range",
    "Statistics",
    "choose",
    "find_calibrator",
    "measure",
    "open_session",
]

BINS = 4096
"""Equal bins over -T..T, T being the largest magnitude seen; so 2048 of the magnitude, as TensorRT's calibrator has."""
LEVELS = 128
"""Magnitudes that a signed byte can tell apart: what the entropy calibrator and the least squares count with."""
PERCENTILE = 99.99
"""TensorRT's and ONNX Runtime's documents name 99.9 to 99.999; this one clips a value in ten thousand."""
CANDIDATES = 128
"""Thresholds that the searching calibrators try: the 16th, the 32nd, … of the 2048 bins."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """What the 8 bits of one tensor cover."""

    low: float
    high: float
    saturation: float = 0.0
    """Share of the calibration values that lie outside and are clipped, 0..1; as exact as a histogram of BINS is."""

    @property
    def magnitude(self) -> float:
        """The largest of the two sides: what a symmetric scale is made of."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """What was seen of one tensor on the calibration images."""

    low: float
    high: float
    """The extremes over all images."""
    mean_low: float
    mean_high: float
    """The mean over the images of each image's extremes."""
    counts: np.ndarray
    """(BINS,) int64: the histogram over ``-magnitude..magnitude``; empty where only the extremes were asked for."""

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def magnitudes(self) -> np.ndarray:
        """(BINS / 2,) int64: the histogram of the absolute value over ``0..magnitude``."""
        half = len(self.counts) // 2
        found: np.ndarray = self.counts[half:] + self.counts[:half][::-1]
        return found


def measure(
    model: onnx.ModelProto, names: Collection[str], calibration: Calibration, *, histograms: bool = True
) -> dict[str, Statistics]:
    """Run the float network over the calibration images, one by one, and look at the named tensors.

    ``names`` are float tensors of the graph, its input among them where wanted. Raises ExportError where one of them is
    not finite.
    """
    names = sorted(names)
    session = _extremes(model, names)
    image = session.get_inputs()[0].name
    # image by image: the extremes of a batch would be those of its worst image
    values = np.asarray([session.run(None, {image: batch}) for batch in calibration.batches(1)], np.float32)
    low, high = values[:, 0::2], values[:, 1::2]
    for at, name in enumerate(names):
        if not (np.isfinite(low[:, at]).all() and np.isfinite(high[:, at]).all()):
            raise ExportError(f"activation '{name}' is not finite on the calibration images: train the network again")
    counts = np.zeros((len(names), BINS), np.int64)
    if histograms:
        largest = np.maximum(np.abs(low).max(axis=0), np.abs(high).max(axis=0))
        session = open_session(_with_outputs(model, names))
        for batch in calibration.batches(1):
            found = session.run(names, {image: batch})
            for at, value in enumerate(found):
                counts[at] += histogram(value, float(largest[at]))
    return {
        name: Statistics(
            low=float(low[:, at].min()),
            high=float(high[:, at].max()),
            mean_low=float(low[:, at].mean(dtype=np.float64)),
            mean_high=float(high[:, at].mean(dtype=np.float64)),
            counts=counts[at] if histograms else counts[at, :0],
        )
        for at, name in enumerate(names)
    }


def histogram(values: np.ndarray, magnitude: float) -> np.ndarray:
    """(BINS,) int64: how many values lie in each of the equal bins over ``-magnitude..magnitude``."""
    if magnitude == 0:
        counts = np.zeros(BINS, np.int64)
        counts[BINS // 2] = values.size
        return counts
    at = (values.reshape(-1) * np.float32(BINS / 2 / magnitude) + np.float32(BINS // 2)).astype(np.int32)
    return np.bincount(np.clip(at, 0, BINS - 1, out=at), minlength=BINS)


# -- calibrators ---------------------------------------------------------------------------------------------------


def minmax(seen: Statistics) -> tuple[float, float]:
    """All that was seen."""
    return seen.low, seen.high


def mean(seen: Statistics) -> tuple[float, float]:
    """The mean over the images of each image's minimum and maximum, in the spirit of the moving averages of B. Jacob et
    al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018."""
    return seen.mean_low, seen.mean_high


def percentile(seen: Statistics) -> tuple[float, float]:
    """The magnitude below which PERCENTILE of the values lie."""
    counts = seen.magnitudes
    inside = int(np.searchsorted(np.cumsum(counts), counts.sum() * PERCENTILE / 100))
    return _within(seen, (inside + 1) / len(counts))


def entropy(seen: Statistics) -> tuple[float, float]:
    """The threshold whose 128 levels keep most of the distribution's information: the least Kullback-Leibler divergence
    between what is clipped to it and what is quantised under it (S. Migacz, "8-bit Inference with TensorRT", GTC 2017).
    """
    counts = seen.magnitudes.astype(np.float64)
    # zeros are exact whatever the threshold is, and after a ReLU they would outvote all else
    counts[0] = 0
    if not counts.any():
        return minmax(seen)
    tried = _candidates(counts)
    return _within(seen, tried[int(np.argmin([divergence(counts, kept) for kept in tried]))] / len(counts))


def divergence(counts: np.ndarray, kept: int) -> float:
    """KL(P || Q) in nats of a histogram of magnitudes clipped to its first ``kept`` bins, and of the same bins merged to
    LEVELS and spread out again over those that hold anything. Infinite where Q misses what P has."""
    inside = counts[:kept]
    p = inside.copy()
    p[-1] += counts[kept:].sum()
    level = np.arange(kept) * LEVELS // kept
    filled = inside > 0
    merged = np.bincount(level, weights=inside, minlength=LEVELS)
    shared = np.bincount(level, weights=filled, minlength=LEVELS)
    q = np.where(filled, (merged / np.maximum(shared, 1))[level], 0.0)
    there = p > 0
    if not q.any() or not q[there].all():
        return float("inf")
    p, q = p[there] / p.sum(), q[there] / q.sum()
    return float((p * np.log(p / q)).sum())


def mse(seen: Statistics) -> tuple[float, float]:
    """The threshold that leaves the least squared error of rounding and clipping, in signed bytes."""
    counts = seen.magnitudes
    if not counts[1:].any():
        return minmax(seen)
    tried = _candidates(counts)
    return _within(seen, tried[int(np.argmin([squared_error(counts, kept) for kept in tried]))] / len(counts))


def squared_error(counts: np.ndarray, kept: int) -> float:
    """Sum of squared errors, in bins, of a histogram of magnitudes rounded to the LEVELS - 1 steps of ``kept`` bins."""
    centre = np.arange(len(counts)) + 0.5
    step = kept / (LEVELS - 1)
    rounded = np.minimum(np.round(centre / step), LEVELS - 1) * step
    return float((counts * (centre - rounded) ** 2).sum())


def _candidates(counts: np.ndarray) -> list[int]:
    step = len(counts) // CANDIDATES
    return list(range(step * 8, len(counts) + 1, step))


def _within(seen: Statistics, share: float) -> tuple[float, float]:
    """A share of the largest magnitude on both sides, but no farther than the values reach."""
    threshold = seen.magnitude * share
    return max(seen.low, -threshold), min(seen.high, threshold)


CALIBRATORS: Mapping[str, Callable[[Statistics], tuple[float, float]]] = {
    "entropy": entropy,
    "mean": mean,
    "minmax": minmax,
    "mse": mse,
    "percentile": percentile,
}


def find_calibrator(name: str) -> Callable[[Statistics], tuple[float, float]]:
    """Raises UnknownName with the nearest names."""
    if name not in CALIBRATORS:
        raise UnknownName("calibrator", name, CALIBRATORS)
    return CALIBRATORS[name]


def choose(method: str, seen: Statistics) -> Range:
    """The range that a calibrator chooses for one tensor, with what it clips. Raises UnknownName."""
    low, high = find_calibrator(method)(seen)
    return Range(low=low, high=high, saturation=saturation(seen, low, high))


def saturation(seen: Statistics, low: float, high: float) -> float:
    """Share of the values of a histogram that lie outside ``low..high``; bins that are cut count in proportion."""
    total = int(seen.counts.sum())
    if not total or not seen.magnitude:
        return 0.0
    # a side that reaches as far as the values do cuts none, in whatever bin it lies
    low = -np.inf if low <= seen.low else low
    high = np.inf if high >= seen.high else high
    edges = np.linspace(-seen.magnitude, seen.magnitude, len(seen.counts) + 1)
    left, right = edges[:-1], edges[1:]
    inside = np.clip((np.minimum(right, high) - np.maximum(left, low)) / (right - left), 0, 1)
    return float((seen.counts * (1 - inside)).sum() / total)


# -- graphs that tell ----------------------------------------------------------------------------------------------


def _with_outputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    model = copy.deepcopy(model)
    graph = model.graph
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return model


def open_session(model: onnx.ModelProto) -> Any:
    """ONNX Runtime on the CPU, saying nothing."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _extremes(model: onnx.ModelProto, names: Collection[str]) -> Any:
    model = copy.deepcopy(model)
    graph = model.graph
    del graph.output[:]
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            graph.node.append(helper.make_node(kind, [name], [f"{name}.{kind}"], name=f"{name}.{kind}", keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{name}.{kind}", TensorProto.FLOAT, []))
    return open_session(model)
