"""What both forms of int8 have in common: from calibration images to ranges, to a corrected graph, to what is told of it.

Two choices are left to measurement, since no rule holds for all networks. Which calibrator: each is tried, and the one whose
network errs least on the calibration images is taken. The best rule for MobileNetV2 with its ImageNet weights (``mean``: half
the error of ``minmax``) has nine times the error of the best on a LeNet for MNIST. Whether to correct the biases: if the
error is less with it. The classifier layer, and what comes after it, stays in float: it costs next to nothing there and hurts
most in integers.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from zoo.artifacts import Artifact, Calibration
from zoo.errors import ExportError
from zoo.files import sha256_file
from zoo.machine import versions

from ..graphs import clean, load, save
from .auditing import saturation as saturation_concerns
from .bias import add_to_bias, channel_means, correctable, mean_shifts
from .layers import Sensitivity, head_nodes, read_modules, weighted_nodes
from .ranges import CALIBRATORS, Range, Statistics, choose, find_calibrator, measure, open_session

__all__ = ["Int8Pass", "Yardstick"]

JUDGED = 16
"""Calibration images on which calibrators and corrections are compared."""
CORRECTED = 64
"""Calibration images that biases are corrected on."""
FINALISTS = 2
"""Calibrators that are compared with corrected biases, which takes longer than without and changes little."""
BATCH = 8
TRUTH_BYTES = 128 << 20
"""The float outputs that are kept for comparison; fewer images where they are larger."""
LEAST = 1e-6
"""What counts as next to nothing, as a share."""
MOVING = ("Identity", "Reshape", "SpaceToDepth", "Transpose")
"""Operators behind which an image is still the image."""
TOLD = 5
"""How many of the most clipped tensors the notes name."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What is known of one network on one set of images."""

    digest: str
    tensors: weakref.ref[np.ndarray]
    statistics: Mapping[str, Statistics]
    yardstick: Yardstick
    means: list[dict[str, np.ndarray]] = field(default_factory=list)
    """Of each image that biases are corrected on, the means of each layer's channels."""
    chosen: list[str] = field(default_factory=list)
    """The best calibrator, once it is known."""
    noises: dict[tuple[str, tuple[str, ...]], float] = field(default_factory=dict)
    corrections: dict[tuple[str, tuple[str, ...]], _Correction] = field(default_factory=dict)
    """By calibrator and layers in int8."""


@dataclass(frozen=True, kw_only=True)
class _Correction:
    """What is added to the biases of one int8 form of a network, and how far its outputs then are from the float ones."""

    shifts: Mapping[str, np.ndarray]
    """(channels,) float32 by node name; empty where the form is better without."""
    noise: float


class Yardstick:
    """How far a network's float outputs are from another's, on fixed images."""

    def __init__(self, model: ModelProto, images: np.ndarray) -> None:
        """``images`` (N, C, H, W) float32; fewer of them are used where the outputs are large. Raises ExportError where no
        output is float32."""
        self.names = [o.name for o in model.graph.output if o.type.tensor_type.elem_type == TensorProto.FLOAT]
        if not self.names:
            raise ExportError("the network has no float output, so what int8 costs cannot be measured")
        first = _run(model, images[:1], self.names)
        count = max(1, min(len(images), TRUTH_BYTES // max(1, sum(value.nbytes for value in first))))
        self.images = images[:count]
        self.truth = _run(model, self.images, self.names)
        """(N, …) float32 each."""

    def noise(self, model: ModelProto) -> float:
        """Noise power as a share of the signal's, at the float output where it is largest.

        The geometric mean over the images, that is the mean of their decibels: the few that a clipped range distorts
        beyond measure do not decide alone.
        """
        worst = 0.0
        for found, truth in zip(_run(model, self.images, self.names), self.truth, strict=True):
            error, power = _power(found - truth), _power(truth)
            if not np.isfinite(error).all():
                return math.inf
            if not error.any():
                continue
            # an image without any signal counts as one of little
            ratios = error / np.maximum(power, LEAST * max(float(power.mean()), float(np.finfo(np.float32).tiny)))
            worst = max(worst, float(np.exp(np.log(np.maximum(ratios, LEAST**2)).mean())))
        return worst


def _power(values: np.ndarray) -> np.ndarray:
    """(N,) float64: mean square of each image's values."""
    found: np.ndarray = (values.astype(np.float64) ** 2).reshape(len(values), -1).mean(axis=1)
    return found


def _run(model: ModelProto, images: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    session = open_session(model)
    image = session.get_inputs()[0].name
    parts = [session.run(list(names), {image: images[i : i + BATCH]}) for i in range(0, len(images), BATCH)]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


class Int8Pass:
    """Base of the two passes. Calling it converts; it remembers what it measured of the last network and images it saw,
    so that trying again with other layers in float measures once.
    """

    scheme = ""
    """What it writes, for the report."""

    def __init__(self) -> None:
        self._seen: _Seen | None = None

    # -- what a form must say ---------------------------------------------------------------------------------------

    def prepare(self, model: ModelProto) -> ModelProto:
        """The same float network in the shape that the form likes best; node names stay."""
        return model

    def tensors(self, model: ModelProto) -> Collection[str]:
        """Names of the float tensors whose ranges the form needs."""
        raise NotImplementedError

    def layers(self, model: ModelProto) -> list[str]:
        """The layers with weights that the form can put in int8, in graph order."""
        head = head_nodes(model)
        return [name for name in weighted_nodes(model) if name not in head]

    def quantise(
        self, model: ModelProto, ranges: Mapping[str, Range], layers: Collection[str], *, alone: bool = False
    ) -> ModelProto:
        """A copy of the model with these layers in int8; ``alone``: with nothing else in integers beside them."""
        raise NotImplementedError

    # -- the pass ---------------------------------------------------------------------------------------------------

    def __call__(self, artifact: Artifact, out: Path, calibration: Calibration) -> Artifact:
        """Write the int8 form of an fp32 ONNX artefact to ``out``.

        Nodes named in ``calibration.keep_float`` stay in float beside the classifier. Raises ExportError: no
        calibration images, no layer that can be quantised, a node name that does not exist; UnknownName: no such
        calibrator.
        """
        model = self._open(artifact, calibration)
        names = {node.name for node in model.graph.node}
        unknown = [name for name in calibration.keep_float if name not in names]
        if unknown:
            raise ExportError(f"{artifact.path}: no node is named '{unknown[0]}', so it cannot be kept in float")
        possible = self.layers(model)
        layers = [name for name in possible if name not in calibration.keep_float]
        if not layers:
            raise ExportError(
                "no layer can be quantised: the network has none beside its classifier, or all are kept in float"
            )
        seen = self._look(artifact, model, calibration)
        calibrator = self._calibrator(model, seen, calibration)
        ranges = self._ranges(model, seen, calibrator)
        correction = self._correction(model, seen, calibrator, layers, calibration)
        quantised = self.quantise(add_to_bias(model, correction.shifts), ranges, layers)
        onnx.checker.check_model(clean(quantised), full_check=True)
        save(quantised, out)
        modules = read_modules(artifact)
        used = {node.input[0] for node in quantised.graph.node if node.op_type == "QuantizeLinear"}
        clipped = sorted((-ranges[name].saturation, name) for name in used & set(ranges))[:TOLD]
        saturation = {name: float(f"{-share:.3g}") for share, name in clipped if share}
        concerns = [*calibration.concerns, *(c.to_dict() for c in saturation_concerns(saturation))]
        return replace(
            artifact,
            format="onnx",
            precision="int8",
            module=None,
            path=out,
            findings=(),
            build={},
            notes={
                **artifact.notes,
                "nodes": len(quantised.graph.node),
                "scheme": self.scheme,
                "calibrator": calibrator,
                "calibration_images": len(calibration.tensors),
                "calibration_source": calibration.source,
                **({"calibration_concerns": concerns} if concerns else {}),
                "saturation": saturation,
                "bias_correction": bool(correction.shifts),
                "int8_layers": len(layers),
                "float_layers": [modules.get(n) or n for n in weighted_nodes(model) if n not in set(layers)],
                "made_with": {**artifact.notes.get("made_with", {}), **versions(("onnxruntime",))},
            },
        )

    def sensitivity(self, artifact: Artifact, calibration: Calibration, probes: int = 16) -> list[Sensitivity]:
        """Each layer quantised alone, over ``probes`` calibration images; the one that hurts most comes first.

        Raises ExportError and UnknownName as a conversion does.
        """
        model = self._open(artifact, calibration)
        seen = self._look(artifact, model, calibration)
        ranges = self._ranges(model, seen, self._calibrator(model, seen, calibration))
        yardstick = Yardstick(model, calibration.tensors[:probes])
        modules = read_modules(artifact)
        found = []
        for node in self.layers(model):
            noise = yardstick.noise(self.quantise(model, ranges, [node], alone=True))
            ratio = -10 * math.log10(noise) if noise > 0 else math.inf
            found.append(Sensitivity(node=node, module=modules.get(node, ""), sqnr_db=ratio))
        return sorted(found, key=lambda s: s.sqnr_db)

    # -- steps ------------------------------------------------------------------------------------------------------

    def _open(self, artifact: Artifact, calibration: Calibration) -> ModelProto:
        if artifact.path is None:
            raise ExportError("int8 needs an ONNX file to start from")
        if not len(calibration.tensors):
            raise ExportError("int8 needs calibration images: the training split gave none")
        if calibration.method:
            find_calibrator(calibration.method)  # a wrong name is told before the images are run
        return self.prepare(load(artifact.path))

    def _look(self, artifact: Artifact, model: ModelProto, calibration: Calibration) -> _Seen:
        """Run the calibration images, unless that was done already."""
        assert artifact.path is not None
        digest = sha256_file(artifact.path)
        if self._seen is None or self._seen.digest != digest or self._seen.tensors() is not calibration.tensors:
            names = self.tensors(model)
            if not names:
                raise ExportError("no layer can be quantised: the network has no operator with an integer form")
            self._seen = _Seen(
                digest=digest,
                tensors=weakref.ref(calibration.tensors),
                statistics=measure(model, names, calibration),
                yardstick=Yardstick(model, _spread(calibration.tensors, JUDGED)),
            )
        return self._seen

    def _calibrator(self, model: ModelProto, seen: _Seen, calibration: Calibration) -> str:
        """The one that was asked for, else the one with the least error with all layers in int8: each is tried as it is,
        the best FINALISTS with corrected biases."""
        if calibration.method:
            return calibration.method
        if not seen.chosen:
            layers = self.layers(model)
            finalists = sorted(sorted(CALIBRATORS), key=lambda name: self._plain(model, seen, name, layers)[1])
            seen.chosen.append(
                min(
                    finalists[:FINALISTS],
                    key=lambda name: self._correction(model, seen, name, layers, calibration).noise,
                )
            )
        return seen.chosen[0]

    def _ranges(self, model: ModelProto, seen: _Seen, calibrator: str) -> dict[str, Range]:
        """The range of the image is known and full, whatever the calibrator thinks of it."""
        inputs = {i.name for i in model.graph.input}
        for node in model.graph.node:
            if node.op_type in MOVING and node.input[0] in inputs:
                inputs |= set(node.output)
        return {
            name: choose("minmax" if name in inputs else calibrator, found) for name, found in seen.statistics.items()
        }

    def _plain(
        self, model: ModelProto, seen: _Seen, calibrator: str, layers: Sequence[str]
    ) -> tuple[ModelProto, float]:
        """The quantised graph as it is, and how far its outputs are from the float ones."""
        key = (calibrator, tuple(layers))
        quantised = self.quantise(model, self._ranges(model, seen, calibrator), layers)
        if key not in seen.noises:
            seen.noises[key] = seen.yardstick.noise(quantised)
        return quantised, seen.noises[key]

    def _correction(
        self, model: ModelProto, seen: _Seen, calibrator: str, layers: Sequence[str], calibration: Calibration
    ) -> _Correction:
        """What to add to the biases: the measured shifts, or nothing if that leaves less error."""
        key = (calibrator, tuple(layers))
        if key not in seen.corrections:
            plain, noise = self._plain(model, seen, calibrator, layers)
            images = _spread(calibration.tensors, CORRECTED)
            if not seen.means:
                seen.means.extend(channel_means(model, correctable(model, self.layers(model)), images))
            shifts = mean_shifts(model, plain, correctable(model, layers), images, seen.means)
            corrected = self.quantise(add_to_bias(model, shifts), self._ranges(model, seen, calibrator), layers)
            tried = [_Correction(shifts={}, noise=noise)]
            tried.append(_Correction(shifts=shifts, noise=seen.yardstick.noise(corrected)))
            seen.corrections[key] = min(tried, key=lambda found: found.noise)
        return seen.corrections[key]


def _spread(tensors: np.ndarray, count: int) -> np.ndarray:
    """At most so many, evenly over the whole: they may lie class by class."""
    step = max(1, len(tensors) // count)
    return tensors[::step][:count]
