"""Which range of values each tensor's 8 bits should cover: measured on calibration images, chosen by a calibrator.

One pass over the images, one image at a time, so that no more than one image's activations are ever held. A range that is
narrower than what was seen clips; how much it clips is told with it.
"""

from __future__ import annotations

import copy
import math
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
    "Histogram",
    "Range",
    "Statistics",
    "choose",
    "find_calibrator",
    "measure",
    "open_session",
]

BINS = 8192
"""Equal bins over -L..L, L a power of two that is no more than twice the largest magnitude seen. So that magnitude is counted
in 2048 to 4096 bins; TensorRT's calibrator has 2048."""
SAMPLED = 65536
"""Values of one tensor of one image that are counted; of more, every k-th."""
NOTHING = 1e-30
"""Magnitudes below this count as zero: their bins would be too narrow for float32."""
LEVELS = 128
"""Magnitudes that a signed byte can tell apart: what the entropy calibrator and the least squares count with."""
PERCENTILE = 99.99
"""TensorRT's and ONNX Runtime's documents name 99.9 to 99.999; this one clips a value in ten thousand."""
CANDIDATES = 128
"""Thresholds that the searching calibrators try, evenly up to the largest magnitude; those below a sixteenth are left out."""


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


class Histogram:
    """Counts of values in BINS equal bins over ``-limit..limit``. Where a value lies beyond, the limit doubles and
    bins are merged two by two, so that values can be counted as they come and none is counted in a wrong bin."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count float32 values of any shape, all finite."""
        values = values.reshape(-1)
        values = values[:: -(-values.size // SAMPLED)] if values.size else values
        largest = float(np.abs(values).max(initial=0.0))
        if largest > max(self.limit, NOTHING):
            limit = 2.0 ** math.ceil(math.log2(largest))
            while self.limit and self.limit < limit:
                self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), BINS // 4)
                self.limit *= 2
            self.limit = limit
        scale = BINS / 2 / self.limit if self.limit else 0.0
        at = (values * np.float32(scale) + np.float32(BINS // 2)).astype(np.int32)
        self.counts += np.bincount(np.clip(at, 0, BINS - 1, out=at), minlength=BINS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """What was seen of one tensor on the calibration images."""

    low: float
    high: float
    """The extremes over all images."""
    mean_low: float
    mean_high: float
    """The mean over the images of each image's extremes."""
    histogram: Histogram

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def width(self) -> float:
        """Of one bin."""
        return self.histogram.limit / (BINS // 2)

    @property
    def magnitudes(self) -> np.ndarray:
        """(n,) int64: how many absolute values lie in each bin from 0 up to the largest; n is 2048 to 4096."""
        half = BINS // 2
        counts = self.histogram.counts
        bins = math.ceil(half * self.magnitude / self.histogram.limit) if self.histogram.limit else half
        folded: np.ndarray = (counts[half:] + counts[:half][::-1])[: max(1, min(bins, half))]
        return folded


def measure(model: onnx.ModelProto, names: Collection[str], calibration: Calibration) -> dict[str, Statistics]:
    """Run the float network over the calibration images, one by one, and look at the named tensors.

    ``names`` are float tensors of the graph, its input among them where wanted. Raises ExportError where one of them is
    not finite.
    """
    names = sorted(names)
    session = open_session(_with_outputs(model, names))
    image = session.get_inputs()[0].name
    histograms = [Histogram() for _ in names]
    extremes: list[list[tuple[float, float]]] = []
    # image by image: the extremes of a batch would be those of its worst image
    for batch in calibration.batches(1):
        row = []
        for name, value, counted in zip(names, session.run(names, {image: batch}), histograms, strict=True):
            low, high = (float(value.min()), float(value.max())) if value.size else (0.0, 0.0)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ExportError(
                    f"activation '{name}' is not finite on the calibration images: train the network again"
                )
            counted.add(value)
            row.append((low, high))
        extremes.append(row)
    table = np.asarray(extremes, np.float64)  # (images, tensors, 2)
    return {
        name: Statistics(
            low=float(table[:, at, 0].min()),
            high=float(table[:, at, 1].max()),
            mean_low=float(table[:, at, 0].mean()),
            mean_high=float(table[:, at, 1].mean()),
            histogram=histograms[at],
        )
        for at, name in enumerate(names)
    }


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
    return _within(seen, inside + 1)


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
    return _within(seen, tried[int(np.argmin([divergence(counts, kept) for kept in tried]))])


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
    return _within(seen, tried[int(np.argmin([squared_error(counts, kept) for kept in tried]))])


def squared_error(counts: np.ndarray, kept: int) -> float:
    """Sum of squared errors, in bins, of a histogram of magnitudes rounded to the LEVELS - 1 steps of ``kept`` bins."""
    centre = np.arange(len(counts)) + 0.5
    step = kept / (LEVELS - 1)
    rounded = np.minimum(np.round(centre / step), LEVELS - 1) * step
    return float((counts * (centre - rounded) ** 2).sum())


def _candidates(counts: np.ndarray) -> list[int]:
    """Numbers of bins from zero up."""
    return [len(counts) * k // CANDIDATES for k in range(CANDIDATES // 16, CANDIDATES + 1)]


def _within(seen: Statistics, bins: int) -> tuple[float, float]:
    """So many bins to both sides, but no farther than the values reach."""
    threshold = bins * seen.width
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
    counts, limit = seen.histogram.counts, seen.histogram.limit
    if not limit:
        return 0.0
    # a side that reaches as far as the values do cuts none, in whatever bin it lies
    low = -np.inf if low <= seen.low else low
    high = np.inf if high >= seen.high else high
    edges = np.linspace(-limit, limit, BINS + 1)
    inside = np.clip((np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)) / seen.width, 0, 1)
    return float((counts * (1 - inside)).sum() / counts.sum())


# -- running -------------------------------------------------------------------------------------------------------


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
