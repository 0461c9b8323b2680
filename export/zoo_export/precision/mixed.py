"""The automatic plan: which layers may be int8, which fp16, which must stay float32, for a loss that the user allows.

Each layer's own int8 noise at the outputs is measured once. Noises of several layers add up as powers, roughly (rounding
errors of different layers are all but uncorrelated), so layers are ranked by the noise that they bring for the work that they
save, and the plan is a cut through that ranking: before it float, after it int8. Where to cut is not predicted but tried: a
candidate holds if the task's score on held-out images loses no more than the budget and the outputs stay within the numeric
gate's bound for int8. (Sensitivity per layer, additive noise and a search over the ranking: Z. Dong et al., "HAWQ-V2", NeurIPS
2020, https://arxiv.org/abs/1911.03852, with measured noise in place of the Hessian's trace.)

How fast a plan is, is a model and is told as one: multiply-accumulates of the layers with weights, times what one costs.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from zoo.artifacts import Artifact, Calibration
from zoo.errors import ExportError
from zoo.machine import versions
from zoo.runtime.ort import open_session

from ..graphs import clean, load, save
from ..tensorrt.view import View
from .casts import HURTS, HalfPrecision, summary, with_integer_layers
from .halves import emulate, prepare, to_half
from .int8_cpu import StaticInt8
from .int8_tensorrt import SymmetricInt8
from .keeping import Yardstick, by_constants, macs, measure_shapes
from .layers import Sensitivity, layer_precisions, read_modules

__all__ = ["COSTS", "MixedPlan", "convert_cpu", "convert_tensorrt"]

COSTS: Mapping[str, Mapping[str, float]] = {
    # dense tensor-core rates of NVIDIA's A100 data sheet: 156 TFLOPS in TF32, 312 in FP16, 624 TOPS in INT8. Where TF32 is
    # off, float32 costs several times more than is said here; the ranking does not change by that
    "tensorrt": {"fp32": 1.0, "fp16": 0.5, "bf16": 0.5, "int8": 0.25},
    # AVX512-VNNI and its kin multiply and add four bytes where a float32 lane holds one
    "cpu": {"fp32": 1.0, "int8": 0.25},
}
"""What one multiply-accumulate costs, float32 being 1. Memory traffic, which decides on small layers, is not in it."""
ROOM = 0.5
"""Share of the numeric gate's bound that a candidate may use where no score judges it."""
EVALUATIONS = 16
SECONDS = 240.0
PROBES = 8
WORTH = 0.01
"""A layer is tried in int8 once more on its own where that would save at least this share of the plan's cost."""


class IntegerPass(Protocol):
    """What the plan needs of an int8 pass."""

    def __call__(self, artifact: Artifact, out: Path, calibration: Calibration) -> Artifact: ...

    def sensitivity(self, artifact: Artifact, calibration: Calibration, probes: int = ...) -> list[Sensitivity]: ...


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One assignment of precisions, tried."""

    in_float: frozenset[str]
    """The layers that are not int8 though they could be."""
    precisions: Mapping[str, str]
    cost: float
    """Predicted, as a share of the same network in float32."""
    rms_share: float
    score: float | None
    """Mean of the judge's scores; None where nothing judged, or where the numbers alone ruled it out."""
    holds: bool
    kept: Mapping[str, str] = field(default_factory=dict)
    """Nodes that stay float32 where others are fp16, and why."""


class MixedPlan:
    """The pass itself: an int8 pass, and what the rest is in: half precision, or float32 where ``half`` is None."""

    def __init__(
        self,
        target: str,
        integer: IntegerPass,
        half: HalfPrecision | None,
        *,
        evaluations: int = EVALUATIONS,
        seconds: float = SECONDS,
    ) -> None:
        self.target, self.integer, self.half = target, integer, half
        self.evaluations, self.seconds = evaluations, seconds

    def __call__(self, artifact: Artifact, out: Path, calibration: Calibration) -> Artifact:
        """Write the fastest plan found for an fp32 ONNX artefact whose mean score on ``calibration.judge`` lies at most
        ``calibration.budget`` below the artefact's own.

        Without a judge the outputs' error alone decides. The search ends after ``evaluations`` candidates or ``seconds``,
        with the best that held; it is deterministic unless the time ends it. Nodes of ``calibration.keep_float`` stay
        float32 in every candidate. Raises ExportError: no calibration images, a budget that is none, nothing to quantise,
        no plan that holds.
        """
        if not 0 <= calibration.budget < 1:
            raise ExportError(
                f"a budget of {calibration.budget:g} is none: the score lies in 0..1, so the loss does too"
            )
        if artifact.path is None:
            raise ExportError("a mixed plan needs an ONNX file to start from")
        if not len(calibration.tensors):
            raise ExportError("a mixed plan needs calibration images: the training split gave none")
        search = _Search(self, artifact, calibration)
        best, model = search.run()
        onnx.checker.check_model(clean(model), full_check=True)
        save(model, out)
        notes = {**artifact.notes, "nodes": len(model.graph.node), **search.notes(best)}
        return replace(artifact, format="onnx", precision="mixed", path=out, notes=notes)


convert_tensorrt = MixedPlan("tensorrt", SymmetricInt8(), HalfPrecision("fp16"))
convert_cpu = MixedPlan("cpu", StaticInt8(), None)


def without_idle_pairs(model: ModelProto) -> ModelProto:
    """The graph without the Q/DQ pairs that no integer layer reads or wrote.

    An int8 pass for CPUs quantises what lies between its layers as well; between layers that are in float that is noise,
    and saves nothing. Changes the model in place.
    """
    integers = {name for name, kind in layer_precisions(model).items() if kind == "int8"}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    results = {o.name for o in model.graph.output}
    gone: set[str] = set()
    instead: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        back = readers.get(node.output[0], [])
        outputs = [reader.output[0] for reader in back]
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in ("Clip", "LeakyRelu", "Relu"):
            maker = makers.get(maker.input[0])
        wrote = maker is not None and maker.name in integers
        read = any(reader.name in integers for name in outputs for reader in readers.get(name, ()))
        plain = all(reader.op_type == "DequantizeLinear" for reader in back) and not results & {*outputs, *node.output}
        if plain and not wrote and not read:
            gone |= {node.name, *(reader.name for reader in back)}
            instead |= dict.fromkeys(outputs, node.input[0])
    kept = [node for node in model.graph.node if node.name not in gone]
    for node in kept:
        for index, name in enumerate(node.input):
            while name in instead:
                name = instead[name]
            node.input[index] = name
    copies = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


class _Search:
    """One search on one network."""

    def __init__(self, plan: MixedPlan, artifact: Artifact, calibration: Calibration) -> None:
        assert artifact.path is not None
        self.began, self.began_cpu = time.monotonic(), time.process_time()
        self.plan, self.artifact, self.calibration = plan, artifact, calibration
        self.model = prepare(load(artifact.path))
        shapes = measure_shapes(self.model, calibration.tensors[:1])
        self.macs = macs(self.model, shapes)
        self.cost = COSTS[plan.target]
        self.yard = Yardstick.of(self.model, calibration.tensors, PROBES)
        table = artifact.task.tolerances
        bound = table.get("mixed", table.get("int8", table["fp32"])).get("numbers_rms", 0.25)
        self.limit = bound if calibration.judge is not None else ROOM * bound
        """What the outputs may be off by, RMS, as a share of their spread."""
        asked = dict.fromkeys(calibration.keep_float, "asked for")
        unknown = sorted(set(asked) - {node.name for node in self.model.graph.node})
        if unknown:
            raise ExportError(f"{artifact.path}: no node is named '{unknown[0]}', so it cannot be kept in float")
        self.why = {**asked, **(plan.half.rules(artifact, calibration) if plan.half is not None else {})}
        self.ranked = self._rank(
            [s for s in plan.integer.sensitivity(artifact, calibration, PROBES) if s.node not in asked]
        )
        self.ranking_seconds = time.monotonic() - self.began
        self.images = 0
        self.before = self._score(self.model)
        self.tried: list[Candidate] = []
        self.best: tuple[Candidate, ModelProto] | None = None
        """The cheapest that holds so far; the graphs of the others are not kept, they may be large."""
        self.slowest = 0.0
        self.out_of_time = False

    # -- the ranking -----------------------------------------------------------------------------------------------

    def _rank(self, sensitivities: Sequence[Sensitivity]) -> list[Sensitivity]:
        """The layer that brings the most noise for the work it saves comes first: the first to go back to float."""
        saved = self._float_cost() - self.cost["int8"]
        return sorted(sensitivities, key=lambda s: (-_noise(s) / max(1e-12, saved * self.macs.get(s.node, 0)), s.node))

    def _float_cost(self) -> float:
        return self.cost[self.plan.half.precision if self.plan.half is not None else "fp32"]

    # -- the search ------------------------------------------------------------------------------------------------

    def run(self) -> tuple[Candidate, ModelProto]:
        """The cheapest candidate that holds, and its graph. Raises ExportError where none does."""
        names = [s.node for s in self.ranked]

        def holds(count: int) -> bool:
            return self._try(frozenset(names[:count])).holds

        if names and not holds(0):
            low, high = 0, len(names)  # all in int8 does not hold; none in int8 is left for the end
            middle = self._quieter(4.0)
            while high - low > 1 and self._may_go_on():
                if not low < middle < high:
                    middle = (low + high) // 2
                low, high = (low, middle) if holds(middle) else (middle, high)
                middle = (low + high) // 2
            if self.best is not None:
                self._return_to_int8(self.best[0])
        if self.best is None:
            self._without_int8(names)
        assert self.best is not None
        return self.best

    def _quieter(self, factor: float) -> int:
        """How many layers must go back to float for the predicted noise power to fall by this factor."""
        left = total = sum(_noise(s) for s in self.ranked)
        for count, layer in enumerate(self.ranked):
            if left <= total / factor:
                return count
            left -= _noise(layer)
        return len(self.ranked)

    def _return_to_int8(self, best: Candidate) -> None:
        """Layers that went back to float for the company they were in are tried in int8 on their own, dearest first."""
        total = sum(self.macs.values())
        saved = self._float_cost() - self.cost["int8"]
        noise = {s.node: _noise(s) for s in self.ranked}
        dearest = sorted(best.in_float, key=lambda name: (-self.macs.get(name, 0), name))
        for name in dearest:
            if saved * self.macs.get(name, 0) / total < WORTH * best.cost or not self._may_go_on():
                break
            wanted = best.in_float - {name}
            if noise[name] > self.limit**2 or any(c.in_float == wanted for c in self.tried):
                continue
            candidate = self._try(wanted)
            if candidate.holds:
                best = candidate

    def _without_int8(self, names: Sequence[str]) -> None:
        """No int8 plan held: half precision, more and more of it in float32. The time limit does not end this."""
        half = self.plan.half
        allowed = f"loses at most {100 * self.calibration.budget:g} points of the score"
        if self.before is None:
            allowed = f"keeps the outputs within {100 * self.limit:g} % of their spread"
        if half is None:
            raise ExportError(
                f"no plan with an int8 layer was found that {allowed}{self._nearest()}: "
                "allow more (--budget), calibrate on other images, or ask for fp32"
            )
        everything = frozenset(names)
        if self._try(everything).holds:
            return
        hurting = {**half.keep(self.artifact, self.calibration), **self.why}
        if hurting != self.why:
            self.why = hurting
            if self._try(everything).holds:
                return
        ranked = [s.node for s in half.sensitivity(self.artifact, self.calibration)]
        for share in (0.25, 0.5, 0.75):
            worst = ranked[: math.ceil(share * len(ranked))]
            self.why = {**dict.fromkeys(worst, HURTS), **self.why}
            if self._try(everything).holds:
                return
        raise ExportError(
            f"no plan below float32 was found that {allowed}{self._nearest()}: allow more (--budget), or ask for fp32"
        )

    def _nearest(self) -> str:
        losses = [self.before - c.score for c in self.tried if c.score is not None and self.before is not None]
        return f" (the best lost {100 * min(losses):.2f})" if losses else ""

    def _may_go_on(self) -> bool:
        if len(self.tried) >= self.plan.evaluations:
            return False
        if time.monotonic() - self.began + self.slowest > self.plan.seconds:
            self.out_of_time = True
            return False
        return True

    # -- one candidate ---------------------------------------------------------------------------------------------

    def _try(self, in_float: frozenset[str]) -> Candidate:
        began = time.monotonic()
        model, kept = self._build(in_float)
        precisions = layer_precisions(model)
        executed = emulate(model) if self.plan.half is not None else model
        share = self.yard.worst(executed)
        score = self._score(executed) if share <= self.limit else None
        holds = share <= self.limit and set(precisions.values()) != {"fp32"}
        if score is not None and self.before is not None:
            holds = holds and self.before - score <= self.calibration.budget + 1e-9
        found = Candidate(
            in_float=in_float,
            precisions=precisions,
            cost=self._predict(precisions),
            rms_share=share,
            score=score,
            holds=holds,
            kept=kept,
        )
        self.tried.append(found)
        if holds and (self.best is None or (found.cost, share) < (self.best[0].cost, self.best[0].rms_share)):
            self.best = (found, model)
        self.slowest = max(self.slowest, time.monotonic() - began)
        return found

    def _build(self, in_float: Collection[str]) -> tuple[ModelProto, dict[str, str]]:
        model = self.model
        asked = set(self.calibration.keep_float)
        if any(s.node not in in_float for s in self.ranked):
            with tempfile.TemporaryDirectory(prefix="zoo-mixed-") as folder:
                keep = tuple(sorted({*in_float, *asked}))
                made = self.plan.integer(
                    self.artifact, Path(folder) / "int8.onnx", replace(self.calibration, keep_float=keep)
                )
                assert made.path is not None
                model = prepare(load(made.path))
        if self.plan.half is None:
            return (without_idle_pairs(model) if in_float or asked else model), {}
        view = View(model)
        scales = {
            name: why
            for name, why in by_constants(view, self.plan.half.precision).items()
            if name not in {node.name for node in self.model.graph.node}
        }
        kept = {**scales, **self.why}
        return to_half(model, self.plan.half.precision, with_integer_layers(view, kept)), kept

    def _score(self, model: ModelProto) -> float | None:
        judge = self.calibration.judge
        if judge is None:
            return None
        scores = judge(open_session(model.SerializeToString()).run)
        self.images = len(scores)
        return float(np.mean(scores))

    def _predict(self, precisions: Mapping[str, str]) -> float:
        total = sum(self.macs.values())
        return sum(self.macs.get(n, 0) * self.cost.get(kind, 1.0) for n, kind in precisions.items()) / max(1, total)

    # -- what is told ----------------------------------------------------------------------------------------------

    def notes(self, best: Candidate) -> dict[str, Any]:
        """JSON-ready: the plan layer by layer, what it was chosen by, what it is predicted to gain, what the search did."""
        total = max(1, sum(self.macs.values()))
        ratios = {s.node: s.sqnr_db for s in self.ranked}
        modules = read_modules(self.artifact)
        kinds = [best.precisions[name] for name in best.precisions]
        rest = self.plan.half.precision if self.plan.half is not None else "fp32"
        judged = self.before is not None
        uniform = self.cost[rest]
        return {
            "scheme": f"a plan of int8, {rest}{' and fp32' if rest != 'fp32' else ''} by layer",
            "calibration_images": len(self.calibration.tensors),
            "calibration_source": self.calibration.source,
            "layers": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "plan": [
                {
                    "layer": modules.get(name) or name,
                    "node": name,
                    "precision": kind,
                    "macs_share": _round(self.macs.get(name, 0) / total),
                    "sqnr_db": _round(ratios[name]) if name in ratios else None,
                }
                for name, kind in best.precisions.items()
            ],
            "int8_layers": kinds.count("int8"),
            "float_layers": [modules.get(n) or n for n, kind in best.precisions.items() if kind != "int8"],
            "kept_float": summary(best.kept, modules),
            "chosen_by": "the score of held-out images, and the outputs' error"
            if judged
            else "the outputs' error alone",
            "budget": self.calibration.budget if judged else None,
            "judged_images": self.images,
            "score_before": _round(self.before),
            "score_after": _round(best.score),
            "rms_share": _round(best.rms_share),
            "predicted_cost": {
                "model": "multiply-accumulates times " + ", ".join(f"{k} {v:g}" for k, v in self.cost.items()),
                "of_fp32": _round(best.cost),
                **({f"of_{rest}": _round(best.cost / uniform)} if rest != "fp32" else {}),
            },
            "search": {
                "evaluations": len(self.tried),
                "tried": [
                    {
                        "in_float": len(c.in_float),
                        "cost_of_fp32": _round(c.cost),
                        "rms_share": _round(c.rms_share),
                        "score": _round(c.score),
                        "holds": c.holds,
                    }
                    for c in self.tried
                ],
                "seconds": round(time.monotonic() - self.began, 1),
                "cpu_seconds": round(time.process_time() - self.began_cpu, 1),
                "ranking_seconds": round(self.ranking_seconds, 1),
                "out_of_time": self.out_of_time,
            },
            "made_with": {**self.artifact.notes.get("made_with", {}), **versions(("onnx", "onnxruntime"))},
        }


def _noise(layer: Sensitivity) -> float:
    """Noise power at the outputs, as a share of the signal's."""
    return 10 ** (-layer.sqnr_db / 10) if math.isfinite(layer.sqnr_db) else 0.0


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
