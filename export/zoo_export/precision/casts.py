"""The precision passes fp16 and bf16: what bears half precision gets it, what does not stays float32, and why is written down.

The graph is rewritten by :mod:`.halves`, the nodes that stay float32 are found by :mod:`.keeping`: by range, by nature, by
their constants, and, where the outputs still suffer, by measuring which layers do it.
"""

from __future__ import annotations

import atexit
import functools
import heapq
import math
import shutil
import tempfile
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from zoo.artifacts import Artifact, Calibration
from zoo.errors import ExportError
from zoo.files import sha256_bytes, sha256_file, write_bytes
from zoo.machine import versions

from ..graphs import clean, load, save
from ..tensorrt.view import View, attribute
from .halves import HALF, emulate, half_form, prepare, to_half
from .keeping import Yardstick, by_constants, by_nature, by_range, formless, macs, measure_shapes
from .layers import Sensitivity, layer_precisions, read_modules

__all__ = ["HalfPrecision", "convert_bf16", "convert_fp16", "emulate", "twin"]

ROOM = 0.5
"""Share of the numeric gate's bound that the outputs may be off by on the calibration images before layers are kept for it."""
BLOCKS = 8
EVALUATIONS = 32
SECONDS = 120.0
"""The search for layers that hurt ends after so many graphs executed, or so much time."""
HURTS = "disturbs the outputs most"


@dataclass(frozen=True, kw_only=True)
class _Analysis:
    """What was found about one network on one set of images."""

    why: Mapping[str, str]
    """Node name to the reason why it stays float32."""
    search: Mapping[str, Any] | None
    """What the search for layers that hurt did; None where there was no need."""


class HalfPrecision:
    """The pass itself, for ``fp16`` or ``bf16``. Calling it converts; it remembers what it found about the last network and
    images, so that trying again with other layers in float measures once.
    """

    def __init__(self, precision: str) -> None:
        if precision not in HALF:
            raise ExportError(f"half precision is one of {', '.join(HALF)}, not '{precision}'")
        self.precision = precision
        self._seen: tuple[str, weakref.ref[np.ndarray], _Analysis] | None = None

    def __call__(self, artifact: Artifact, out: Path, calibration: Calibration) -> Artifact:
        """Write the half-precision form of an fp32 ONNX artefact to ``out``; of one with int8 layers in it, their mix.

        Inputs and outputs stay float32. Nodes named in ``calibration.keep_float`` stay float32 beside those that the pass
        keeps by itself. Raises ExportError: no calibration images, a node name that does not exist, values that are not
        finite, no layer left that could be half.
        """
        model, digest = self._open(artifact, calibration)
        names = {node.name for node in model.graph.node}
        unknown = [name for name in calibration.keep_float if name not in names]
        if unknown:
            raise ExportError(f"{artifact.path}: no node is named '{unknown[0]}', so it cannot be kept in float")
        analysis = self._analyse(artifact, model, digest, calibration)
        why = {**dict.fromkeys(calibration.keep_float, "asked for"), **analysis.why}
        half = clean(to_half(model, self.precision, with_integer_layers(View(model), why)))
        onnx.checker.check_model(half, full_check=True)
        precisions = layer_precisions(half)
        if self.precision not in precisions.values():
            raise ExportError(
                f"no layer can be {self.precision}: the network has none with weights, or all stay float32 "
                f"({next(iter(why.values()), 'none is there')}): ask for fp32"
            )
        error = Yardstick.of(model, calibration.tensors).shares(emulate(half))
        save(half, out)
        modules = read_modules(artifact)
        found = list(precisions.values())
        return replace(
            artifact,
            format="onnx",
            precision="mixed" if "int8" in found else self.precision,
            path=out,
            notes={
                **artifact.notes,
                "nodes": len(half.graph.node),
                "opset": half.opset_import[0].version,
                "scheme": f"{self.precision} by casts: float32 in and out, weights and values {self.precision}",
                "calibration_images": len(calibration.tensors),
                "calibration_source": calibration.source,
                "layers": {kind: found.count(kind) for kind in sorted(set(found))},
                "casts": sum(node.op_type == "Cast" for node in half.graph.node),
                "kept_float": summary(why, modules),
                "float_layers": [modules.get(n) or n for n, kind in precisions.items() if kind == "fp32"],
                "search": dict(analysis.search) if analysis.search is not None else None,
                "rms_share": {name: _number(share) for name, share in error.items()},
                "executed_as": "float32 with every value rounded to what the graph holds: CPUs have no such kernels",
                "made_with": {**artifact.notes.get("made_with", {}), **versions(("onnx", "onnxruntime"))},
            },
        )

    def sensitivity(self, artifact: Artifact, calibration: Calibration, probes: int = 8) -> list[Sensitivity]:
        """Each layer with weights in half precision alone, over ``probes`` calibration images; the one that hurts most
        comes first. Layers that the pass keeps in float32 by itself are not among them.

        Raises ExportError as a conversion does.
        """
        model, digest = self._open(artifact, calibration)
        analysis = self._analyse(artifact, model, digest, calibration)
        modules = read_modules(artifact)
        yard = Yardstick.of(model, calibration.tensors, probes)
        names = {node.name for node in model.graph.node}
        found = []
        for name, kind in layer_precisions(model).items():
            if name in analysis.why or kind != "fp32":
                continue
            share = yard.worst(emulate(to_half(model, self.precision, names - {name})))
            ratio = -20 * math.log10(share) if share > 0 else math.inf
            found.append(Sensitivity(node=name, module=modules.get(name, ""), sqnr_db=ratio))
        return sorted(found, key=lambda s: s.sqnr_db)

    def rules(self, artifact: Artifact, calibration: Calibration) -> dict[str, str]:
        """Which nodes stay float32 whatever the outputs say, and why. Raises ExportError as a conversion does."""
        return self._rules(self._open(artifact, calibration)[0], calibration)

    def keep(self, artifact: Artifact, calibration: Calibration) -> dict[str, str]:
        """Which nodes a conversion leaves in float32 by itself, and why: the rules, and the layers that hurt."""
        model, digest = self._open(artifact, calibration)
        return dict(self._analyse(artifact, model, digest, calibration).why)

    def _open(self, artifact: Artifact, calibration: Calibration) -> tuple[ModelProto, str]:
        if artifact.path is None:
            raise ExportError(f"{self.precision} needs an ONNX file to start from")
        if not len(calibration.tensors):
            raise ExportError(f"{self.precision} needs calibration images: the training split gave none")
        return prepare(load(artifact.path)), sha256_file(artifact.path)

    def _analyse(self, artifact: Artifact, model: ModelProto, digest: str, calibration: Calibration) -> _Analysis:
        if self._seen is not None and self._seen[0] == digest and self._seen[1]() is calibration.tensors:
            return self._seen[2]
        why = self._rules(model, calibration)
        if "int8" in layer_precisions(model).values():
            return _Analysis(why=why, search=None)  # beside int8, the noise of half precision is nothing
        table = artifact.task.tolerances.get(self.precision, artifact.task.tolerances["fp32"])
        limit = ROOM * table.get("numbers_rms", table["golden"])
        hurting, search = _Search(self.precision, model, why, calibration, limit).run()
        analysis = _Analysis(why={**why, **dict.fromkeys(hurting, HURTS)}, search=search)
        self._seen = (digest, weakref.ref(calibration.tensors), analysis)
        return analysis

    def _rules(self, model: ModelProto, calibration: Calibration) -> dict[str, str]:
        view = View(model)
        shapes = measure_shapes(model, calibration.tensors[:1])
        why = formless(view, self.precision)
        for found in (by_constants(view, self.precision), by_nature(view, self.precision, shapes)):
            why = {**found, **why}
        if self.precision == "fp16":
            why = {**by_range(model, calibration, shapes, skip=why), **why}
        return why


convert_fp16 = HalfPrecision("fp16")
convert_bf16 = HalfPrecision("bf16")


def with_integer_layers(view: View, keep: Collection[str]) -> set[str]:
    """These nodes, and what must share their type so that compilers still see integer layers: a layer with weights and
    every DequantizeLinear that it reads."""
    found = set(keep)
    layers = []
    for node in view.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            makers = [view.makers[name] for name in node.input if name in view.makers]
            parts = {m.name for m in makers if m.op_type == "DequantizeLinear"}
            if parts:
                layers.append({node.name, *parts})
    changed = True
    while changed:
        changed = False
        for together in layers:
            if found & together and not together <= found:
                found |= together
                changed = True
    return found


def summary(why: Mapping[str, str], modules: Mapping[str, str]) -> list[dict[str, Any]]:
    """Reasons, how many nodes each holds for, and the torch modules they are from; the node's name where that is not known."""
    found: dict[str, list[str]] = {}
    for name, reason in why.items():
        found.setdefault(reason, []).append(name)
    return [
        {"why": reason, "nodes": len(names), "layers": list(dict.fromkeys(modules.get(n) or n for n in names))}
        for reason, names in found.items()
    ]


# -- which layers hurt ----------------------------------------------------------------------------------------------


class _Search:
    """Finds the fewest stretches of a network that must stay float32 for its outputs to stay within a limit.

    A stretch in half precision alone gives noise at the outputs; noises of several add up as powers, roughly. The network
    is cut into a few stretches, the noisiest is cut in two, and so on; then the noisiest that are left stay float32 until
    the rest is predicted, and then measured, to be within the limit.
    """

    def __init__(
        self, precision: str, model: ModelProto, why: Mapping[str, str], calibration: Calibration, limit: float
    ) -> None:
        self.precision, self.model, self.why, self.limit = precision, model, why, limit
        self.yard = Yardstick.of(model, calibration.tensors)
        self.work = macs(model, measure_shapes(model, calibration.tensors[:1]))
        self.names = {node.name for node in model.graph.node}
        self.evaluations = 0
        self.end = time.monotonic() + SECONDS

    def run(self) -> tuple[list[str], dict[str, Any] | None]:
        """The nodes to keep, and what to tell of it. None where the limit holds as it is."""
        before = self._measure(self.names)
        if before <= self.limit:
            return [], None
        began = time.monotonic()
        stretches = self._cut(self._layers())
        kept, after = self._choose(stretches) if stretches is not None else ([], before)
        told: dict[str, Any] = {
            "limit": self.limit,
            "before": _number(before),
            "after": _number(after) if kept else None,
            "kept": len(kept),
            "evaluations": self.evaluations,
            "seconds": round(time.monotonic() - began, 1),
        }
        if not kept:
            told["given_up"] = "half of the layers in float32 would not mend it: the network itself is sensitive"
        return kept, told

    def _measure(self, half: Collection[str]) -> float:
        """RMS share at the worst output with these nodes in half precision and all others in float32."""
        self.evaluations += 1
        keep = (self.names - set(half)) | set(self.why)
        return self.yard.worst(emulate(to_half(self.model, self.precision, keep)))

    def _layers(self) -> list[list[str]]:
        """The nodes that would be half, cut before each layer with weights."""
        view = View(self.model)
        found: list[list[str]] = [[]]
        for node in self.model.graph.node:
            if node.name in self.why or half_form(node, view, self.precision) is None:
                continue
            if node.name in self.work and found[-1]:
                found.append([])
            found[-1].append(node.name)
        return found

    def _cut(self, layers: list[list[str]]) -> list[_Stretch] | None:
        """The network in stretches, the noisiest cut finest; None where the noise is everywhere, or the time is up."""
        size = max(1, math.ceil(len(layers) / BLOCKS))
        whole = []
        for start in range(0, len(layers), size):
            if time.monotonic() > self.end:
                return None
            whole.append(self._stretch(layers[start : start + size]))
        quiet = sorted(s.noise for s in whole)[: (len(whole) + 1) // 2]
        if sum(quiet) > (2 * self.limit) ** 2:
            return None
        queue = [(-s.noise, index, s) for index, s in enumerate(whole)]
        heapq.heapify(queue)
        found, index = [], len(queue)
        while queue:
            stretch = heapq.heappop(queue)[2]
            parts = stretch.layers
            if len(parts) == 1 or self.evaluations + 2 > EVALUATIONS or time.monotonic() > self.end:
                found.append(stretch)
                continue
            for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :]):
                part = self._stretch(half)
                heapq.heappush(queue, (-part.noise, index, part))
                index += 1
        return sorted(found, key=lambda s: -s.noise)

    def _stretch(self, layers: list[list[str]]) -> _Stretch:
        names = [name for layer in layers for name in layer]
        return _Stretch(layers=layers, names=names, noise=self._measure(names) ** 2)

    def _choose(self, stretches: Sequence[_Stretch]) -> tuple[list[str], float]:
        """The nodes to keep, and the share that is left; none where half of the layers, or of their work, would not do."""
        total, by_rule = sum(self.work.values()), sum(name in self.why for name in self.work)
        after = math.inf
        for margin in (1.0, 0.5, 0.25):  # the model of noise may promise too much
            count = 1
            while sum(s.noise for s in stretches[count:]) > margin * self.limit**2:
                count += 1
            kept = [name for s in stretches[:count] for name in s.names]
            layers = [self.work[name] for name in kept if name in self.work]
            if 2 * (len(layers) + by_rule) > len(self.work) or 2 * sum(layers) > total:
                break
            after = self._measure(self.names - set(kept))
            if after <= self.limit:
                return kept, after
        return [], after


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """Layers that follow each other, each with the nodes up to the next."""

    layers: list[list[str]]
    names: list[str]
    noise: float
    """Power at the worst output with only this stretch in half precision, as a share of the signal's."""


def _number(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


# -- executed on a CPU ----------------------------------------------------------------------------------------------


def twin(artifact: Artifact) -> Path | None:
    """The file to execute in ONNX Runtime's CPU provider in an artefact's stead; None where the artefact itself will do.

    A graph with fp16 or bf16 in it has an emulation (:func:`.halves.emulate`), because that provider rounds nothing of the
    first and does not open the second. It lies in a temporary folder of this process, which goes when the process ends.
    """
    if artifact.path is None or artifact.format not in ("onnx", "tensorrt"):
        return None
    model = load(artifact.path)
    kinds = set(HALF.values())
    casts = (attribute(node, "to") for node in model.graph.node if node.op_type == "Cast")
    if not kinds & {*(tensor.data_type for tensor in model.graph.initializer), *casts}:
        return None
    data = emulate(model).SerializeToString(deterministic=True)
    path = _twins() / f"{sha256_bytes(data)[:16]}.onnx"
    if not path.exists():
        write_bytes(path, data)
    return path


@functools.cache
def _twins() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="zoo-twins-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
