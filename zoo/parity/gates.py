"""The three gates: numbers, accuracy, latency. Each gives a Finding; none of them guesses a bound.

The bounds are the task's ``tolerances`` (one table, a reason beside each number), laid over by a user's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..machine import clocks, cores
from ..tasks import TaskHalf, gained, measure, rows_in, said
from . import FAIL, INCONCLUSIVE, PASS, SKIPPED, Candidate, Finding, Reference, Samples
from .evidence import OUTPUT_BYTES

__all__ = [
    "accuracy",
    "compare",
    "judge",
    "latency",
    "numbers",
    "paired_interval",
    "student_interval",
    "told_latencies",
]

CONFIDENCE_Z = 1.6449
"""One-sided 95 %: the question is "is it worse by more than the margin?", which has one side."""
MAX_BATCH = 16
"""Images that are run at once, at the most (:func:`zoo.parity.evidence.batch_size`)."""
ROUNDING = 1e-3
"""Share of the spread that float32 rounding alone moves no value by. Faster R-CNN and RT-DETRv2 trained on 252 scenes: the
worst value of 108 images was off by 5e-5; a layer's weights changed by 1 % move some value of most images by more."""
COARSE = 0.01
"""Share of the spread (RMS) by which a float32 candidate may differ where units of rounding are no measure: over images that
were not run in float64, and where another row was chosen. It is what half precision is allowed."""


def judge(candidate: Candidate, reference: Reference, samples: Samples) -> Iterable[Finding]:
    """All three gates on one artefact."""
    return (
        numbers(candidate, reference, samples),
        accuracy(candidate, reference, samples),
        latency(candidate, reference, samples),
    )


# -- numbers ---------------------------------------------------------------------------------------------------


def numbers(candidate: Candidate, reference: Reference, samples: Samples) -> Finding:
    """Every output of the candidate against the reference.

    float32 candidates: the error against float64 is counted in units of PyTorch's own float32 error, so that the
    bound needs no tuning per network. Others: root-mean-square error as a share of the reference's spread. Where a
    network chooses its rows by their scores, rows are paired first (see :class:`_Pairs`).
    """
    bounds = candidate.tolerances
    figures: dict[str, Any] = {}
    misfits = {name: _misfit(name, candidate, reference, len(samples.ids)) for name in samples.task.outputs}
    problems = [problem for problem in misfits.values() if problem]
    ours: Mapping[str, np.ndarray] = {n: candidate.outputs[n] for n in misfits if not misfits[n]}
    theirs: Mapping[str, np.ndarray] = {n: reference.outputs[n] for n in ours}
    exact, where, said = reference.exact, None, ""
    pairs = None if problems else _pair(ours, theirs, exact, samples.half, bounds)
    if pairs is not None:
        ours, theirs, exact, where, said = pairs.ours, pairs.theirs, pairs.exact, pairs.where, pairs.said
        figures["rows"] = pairs.figures
        problems += pairs.problems
    worst = 0.0
    for name in ours:
        count = min(len(ours[name]), len(theirs[name]))
        a, b = ours[name][:count], theirs[name][:count]
        if b.dtype.kind in "iub":
            agreement = float((a == b).mean())
            figures[name] = {"agreement": agreement}
            if agreement < bounds.get("agreement", 1.0):
                problems.append(
                    f"'{name}' agrees in {100 * agreement:.3f} % of its values, {100 * bounds.get('agreement', 1.0):g} % needed"
                )
            continue
        truth = exact[name] if exact is not None else None
        found = compare(a, b, truth, bounds.get("numbers_floor", 0.0), bounds.get("numbers_least", 0.0), where)
        figures[name] = found
        if found["not_finite"]:
            problems.append(f"{found['not_finite']} values of '{name}' are not finite")
        elif "numbers_units" in bounds and "units" in found:
            worst = max(worst, found["units"])
            most = max(COARSE, bounds["numbers_units"] * found["unit"] / found["spread"])
            if not found["units"] <= bounds["numbers_units"]:
                problems.append(
                    f"'{name}' is off by {found['units']:.3g} units of float32 error, {bounds['numbers_units']:g} allowed"
                )
            elif not found["rms_share"] <= most:
                problems.append(
                    f"'{name}' is off by {100 * found['rms_share']:.3g} % of its spread over all {count} images (RMS), "
                    f"{100 * most:.2g} % allowed"
                )
        else:
            limit = bounds.get("numbers_rms", bounds.get("golden", 0.0))
            worst = max(worst, found["rms_share"])
            if not found["rms_share"] <= limit:
                problems.append(
                    f"'{name}' is off by {100 * found['rms_share']:.3g} % of its spread (RMS), {100 * limit:g} % allowed"
                )
    if problems:
        return Finding(gate="numbers", verdict=FAIL, message="; ".join(problems), figures=figures)
    if "numbers_units" in bounds and exact is not None:
        message = f"error {worst:.2g} units of PyTorch's own float32 error ({bounds['numbers_units']:g} allowed)"
    else:
        message = f"error {100 * worst:.3g} % of the outputs' spread, RMS"
    return Finding(gate="numbers", verdict=PASS, message=message + said, figures=figures)


def _misfit(name: str, candidate: Candidate, reference: Reference, images: int) -> str:
    """Why an output cannot be compared; empty where it can.

    Both sides may hold the first of the images only: as many as memory or the bundle had room for, each its own number.
    But a candidate that has room for more and tells of fewer images than it was shown has lost some.
    """
    if name not in candidate.outputs:
        return f"output '{name}' is missing"
    ours, theirs = candidate.outputs[name], reference.outputs[name]
    if ours.shape[1:] != theirs.shape[1:]:
        return f"output '{name}' has shape {ours.shape}, the reference {theirs.shape}"
    # what the next batch would have held, at the most
    room = OUTPUT_BYTES - (len(ours) + MAX_BATCH) * sum(v[:1].nbytes for v in candidate.outputs.values())
    if len(ours) > images or (len(ours) < images and room >= 0) or not len(ours):
        return f"output '{name}' has {len(ours)} rows for {images} images: the graph loses images of a batch"
    return ""


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Outputs whose rows were chosen by score, row beside row.

    float32 candidates: where two places score alike, rounding decides which is chosen, and in a transformer every row of
    that image feels it. Such an image says nothing of rounding: it is set aside, and the share of them is bounded.
    """

    ours: Mapping[str, np.ndarray]
    theirs: Mapping[str, np.ndarray]
    exact: Mapping[str, np.ndarray] | None
    where: np.ndarray | None
    """(N, A) bool: which rows are compared; None for all."""
    figures: Mapping[str, Any]
    problems: Sequence[str]
    said: str
    """How many rows have a partner and what was set aside, to go on a message."""


def _pair(
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    exact: Mapping[str, np.ndarray] | None,
    half: TaskHalf,
    bounds: Mapping[str, float],
) -> _Pairs | None:
    """None where rows stand for the same as they are, or cannot be paired, not being numbers."""
    count = min(rows_in(ours), rows_in(theirs))
    ours, theirs = ({n: v[:count] for n, v in o.items()} for o in (ours, theirs))
    if not all(np.isfinite(v).all() for v in ours.values()):
        return None
    aligned = half.aligned(ours, theirs)
    if aligned is None:
        return None
    problems = []
    figures: dict[str, Any] = {"matter": aligned.matter, "paired": 1 - aligned.lost}
    needed = bounds.get("rows_paired", 1.0)
    if not figures["paired"] >= needed:
        problems.append(
            f"{100 * aligned.lost:.3g} % of the {aligned.matter} rows that matter have no partner, "
            f"{100 * (1 - needed):.3g} % allowed"
        )
    ours, where = {**ours, **aligned.outputs}, aligned.paired.copy()
    said = f"; {100 * figures['paired']:.4g} % of {aligned.matter} rows that matter paired"
    if "images_tied" not in bounds:
        return _Pairs(ours=ours, theirs=theirs, exact=None, where=where, figures=figures, problems=problems, said=said)
    # what the units would forgive even where all values are alike (see compare)
    least = bounds["numbers_units"] * bounds.get("numbers_least", 0.0)
    settled = _settled(ours, theirs, where, least)
    if exact is not None:
        exact = {n: v[:count] for n, v in exact.items()}
        first = {n: v[: rows_in(exact)] for n, v in theirs.items()}
        truth = half.aligned(exact, first)
        assert truth is not None
        exact = {**exact, **truth.outputs}
        settled[: len(truth.paired)] &= _settled(exact, first, truth.paired, least)
        where[: len(truth.paired)] &= truth.paired
    aside = count - int(settled.sum())
    figures["images_tied"] = aside
    if aside > max(1, bounds["images_tied"] * count) or aside == count:
        problems.append(
            f"in {aside} of {count} images rows differ by more than rounding, which {100 * bounds['images_tied']:g} % may "
            "where places score alike"
        )
    elif aside:
        for name in ours:
            found = compare(ours[name][~settled], theirs[name][~settled], where=where[~settled])
            off = found["rms_share"]
            if not off <= max(COARSE, least / found["spread"]):
                problems.append(
                    f"'{name}' is off by {100 * off:.3g} % of its spread (RMS) in {aside} images where other places were "
                    f"chosen, {100 * COARSE:g} % allowed"
                )
        said += f", {aside} of {count} images set aside, where places score alike and rounding chose others"
        ours, theirs = ({n: v[settled] for n, v in o.items()} for o in (ours, theirs))
        where = where[settled]
        if exact is not None:
            exact = {n: v[settled[: len(v)]] for n, v in exact.items()} if settled[: rows_in(exact)].any() else None
    return _Pairs(ours=ours, theirs=theirs, exact=exact, where=where, figures=figures, problems=problems, said=said)


def _settled(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], paired: np.ndarray, least: float
) -> np.ndarray:
    """(N,) bool: of which images every row has its partner, as near as rounding leaves it."""
    settled = paired.all(axis=1)
    for name in ours:
        a, b = (o[name].astype(np.float64).reshape(len(paired), -1) for o in (ours, theirs))
        settled &= np.abs(a - b).max(axis=1) <= max(ROUNDING * _spread(b), least)
    return np.asarray(settled)


def compare(
    ours: np.ndarray,
    theirs: np.ndarray,
    exact: np.ndarray | None = None,
    floor: float = 0.0,
    least: float = 0.0,
    where: np.ndarray | None = None,
) -> dict[str, Any]:
    """Figures on one output, (N, …) each; with ``where``, bool of the first axes' shape, on those values alone.

    ``max_abs`` and ``mean_abs`` in the output's own unit; ``rms_share``: RMS error / RMS of the reference about
    its per-sample mean (shift of all logits changes nothing); ``cosine``; ``psnr_db`` with the reference's range
    as peak; ``argmax_agreement`` of (N, K) scores; ``histogram`` of log10 absolute error; with ``exact``: ``unit`` and ``units``, the
    unit being no less than ``floor`` times the spread, nor than ``least``.
    """
    a, b = ours.astype(np.float64).reshape(len(ours), -1), theirs.astype(np.float64).reshape(len(theirs), -1)
    broken = int(a.size - np.isfinite(a).sum())
    if broken:
        return {"not_finite": broken}
    spread, peak = _spread(b), float(b.max() - b.min())
    judged: Any = np.s_[:, :]
    if where is not None:
        whole = where.reshape(where.shape + (1,) * (theirs.ndim - where.ndim))
        judged = np.broadcast_to(whole, theirs.shape).reshape(b.shape)
        a, b = np.where(judged, a, 0.0), np.where(judged, b, 0.0)
    error = _some(np.abs(a - b)[judged])
    rms = float(np.sqrt((error**2).mean()))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    found: dict[str, Any] = {
        "not_finite": 0,
        "max_abs": float(error.max()),
        "mean_abs": float(error.mean()),
        "rms_share": rms / spread,
        "spread": spread,
        "cosine": float((a * b).sum() / norm) if norm else 1.0,
        "psnr_db": 20 * math.log10(peak / rms) if rms and peak else None,
        **({"argmax_agreement": float((a.argmax(axis=1) == b.argmax(axis=1)).mean())} if theirs.ndim == 2 else {}),
        "histogram": _histogram(error),
    }
    if exact is not None:
        truth = exact[: len(a)].astype(np.float64).reshape(min(len(a), len(exact)), -1)
        # the exact outputs may cover the first samples only, being slow to compute
        first = judged if where is None else judged[: len(truth)]
        off, own = (_some(np.abs(o[: len(truth)] - truth)[first]) for o in (a, b))
        unit_max = max(float(own.max()), floor * spread, least, np.finfo(np.float64).tiny)
        unit_mean = max(float(own.mean()), floor * spread / 8, least, np.finfo(np.float64).tiny)
        found["unit"] = unit_max
        found["units"] = max(float(off.max()) / unit_max, float(off.mean()) / unit_mean)
    return found


def _some(errors: np.ndarray) -> np.ndarray:
    """As they are; 0 where nothing could be compared, which is told as what it is."""
    return errors if errors.size else np.zeros(1)


def _spread(values: np.ndarray) -> float:
    """Root mean square of (N, M) float64 about each sample's own mean; where that is 0, about 0; where that is 0, 1."""
    centred = values - values.mean(axis=1, keepdims=True)
    return float(np.sqrt((centred**2).mean())) or float(np.sqrt((values**2).mean())) or 1.0


def _histogram(error: np.ndarray) -> dict[str, Any]:
    """Counts of |error| in half-decade bins; ``zeros`` apart."""
    flat = error.reshape(-1)
    positive = flat[flat > 0]
    if not len(positive):
        return {"zeros": int(flat.size), "from_log10": 0.0, "step": 0.5, "counts": []}
    logs = np.log10(positive)
    low = math.floor(float(logs.min()) * 2) / 2
    high = max(low + 0.5, math.ceil(float(logs.max()) * 2) / 2)
    bins = round((high - low) / 0.5)
    counts, _ = np.histogram(logs, bins=bins, range=(low, high))
    return {"zeros": int(flat.size - len(positive)), "from_log10": low, "step": 0.5, "counts": counts.tolist()}


# -- accuracy --------------------------------------------------------------------------------------------------


def paired_interval(differences: np.ndarray, z: float = CONFIDENCE_Z) -> tuple[float, float, float]:
    """Mean of paired per-sample differences in -1..1 and its confidence interval: (mean, low, high).

    Agresti and Min's adjusted Wald interval for matched pairs (2005, "Simple improved confidence intervals for
    comparing matched proportions"): half a pseudo-sample in each of the four cells. For 0/1 scores it is theirs;
    for continuous scores in 0..1 the same prior keeps the interval from collapsing when no sample differs.
    """
    n = len(differences) + 2.0
    mean = float(differences.sum()) / n
    variance = max(0.0, (float((differences**2).sum()) + 1.0) / n - mean**2)
    half = z * math.sqrt(variance / n)
    return float(differences.mean()) if len(differences) else 0.0, mean - half, mean + half


def student_interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean of paired per-sample differences in -1..1 of a score without bound or step, and Student's confidence interval:
    (mean, low, high). Of one sample nobody knows the spread: then all of -1..1 is possible.

    Raises ValueError without any.
    """
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return mean, -1.0, 1.0
    half = student_t(n - 1) * float(differences.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


_STUDENT_T = (6.3138, 2.9200, 2.3534, 2.1318)
"""Of 1 to 4 degrees of freedom."""


def student_t(freedom: int) -> float:
    """95 % of Student's distribution lie below it; within 1e-3 (M. Abramowitz, I. Stegun 1964, formula 26.7.5)."""
    if freedom <= len(_STUDENT_T):
        return _STUDENT_T[freedom - 1]
    z = 1.644854
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, 1)))


def accuracy(candidate: Candidate, reference: Reference, samples: Samples) -> Finding:
    """The task's metric, paired sample by sample: pass where a drop beyond the margin is ruled out at 95 %,
    fail where a drop beyond it is shown, inconclusive otherwise (with how many more samples it would take).

    Samples without a target are left out, and counted. Shares of right answers: see :func:`paired_interval`; decibels: :func:`student_interval`.
    """
    half = samples.half
    continuous = half.unit == "dB"
    if samples.targets is None or all(target is None for target in samples.targets):
        why = "nobody knows the right images" if continuous else "no labelled data was given (--data DIR)"
        return Finding(
            gate="accuracy",
            verdict=SKIPPED,
            message=f"accuracy was not judged: {why}",
            figures={} if samples.targets is None else {"known": 0},
        )
    for who, results in (("candidate", candidate.results), ("reference", reference.results)):
        if len(results) != len(samples.targets):
            return Finding(
                gate="accuracy",
                verdict=FAIL,
                message=f"the {who} gave {len(results)} results for {len(samples.targets)} images: "
                "the graph loses images of a batch",
            )
    margin = candidate.tolerances["accuracy_drop"]
    mine, its, targets = candidate.results, reference.results, samples.targets
    known = [i for i, target in enumerate(targets) if target is not None]
    unknown = len(targets) - len(known)
    if unknown:
        mine, its, targets = ([values[i] for i in known] for values in (mine, its, targets))
    ours, theirs = half.sample_scores(mine, targets), half.sample_scores(its, targets)
    same = half.same_answer(mine, its)
    mean, low, high = student_interval(ours - theirs) if continuous else paired_interval(ours - theirs)
    count = len(ours)
    figures: dict[str, Any] = {
        "metric": half.score_name,
        "unit": half.unit,
        "samples": count,
        "reference": float(theirs.mean()),
        "candidate": float(ours.mean()),
        "difference": mean,
        "interval_95_one_sided": [low, high],
        "margin": -margin,
        "changed_answers": int((~same).sum()),
        "worse": int((ours < theirs).sum()),
        "better": int((ours > theirs).sum()),
    }
    message = (
        f"{half.score_name} {said(half, figures['candidate'])} against {said(half, figures['reference'])} "
        f"({gained(half, mean)}, at worst {100 * low:+.2f}; {100 * -margin:+.2f} allowed; "
        f"{figures['changed_answers']} of {count} answers changed)"
    )
    if half.metric_name != half.score_name:  # what belongs to the whole set has no pairs: it is told, not judged
        whole = {}
        for who, results in (("candidate", mine), ("reference", its)):
            meter = measure(half, samples.labels, results, targets)
            whole[who] = float(meter.compute()[half.metric_name])
        figures["whole_set"] = {"metric": half.metric_name, **whole}
        figures["differences"] = half.differences(mine, its)
        message += f"; {half.metric_name} {said(half, whole['candidate'])} against {said(half, whole['reference'])}"
    if unknown:
        figures["unjudged"] = unknown
        message += f"; {unknown} images without a right answer were left out"
    if low >= -margin:
        return Finding(gate="accuracy", verdict=PASS, message=message, figures=figures)
    if high < -margin:
        return Finding(gate="accuracy", verdict=FAIL, message=message, figures=figures)
    if continuous and count == 1:
        figures["more_samples"] = None
        cure = "one image tells nothing of the spread, give more"
        return Finding(gate="accuracy", verdict=INCONCLUSIVE, message=f"{message}: {cure}", figures=figures)
    more = samples_needed(ours - theirs, margin, continuous) - count
    figures["more_samples"] = more if more > 0 else None
    cure = (
        f"about {more} more samples would settle it"
        if 0 < more < 1_000_000
        else "more samples would have to show a smaller drop"
    )
    return Finding(gate="accuracy", verdict=INCONCLUSIVE, message=f"{message}: {cure}", figures=figures)


def samples_needed(differences: np.ndarray, margin: float, continuous: bool = False) -> int:
    """How many samples of the same kind would make the interval's low end reach ``-margin``; 10**9 if none would.

    ``continuous``: of :func:`student_interval`, which needs two samples to begin with.
    """
    mean = float(differences.mean())
    spread = float((differences**2).mean())
    deviation = float(differences.std(ddof=1)) if continuous else 0.0
    for n in np.unique(np.geomspace(max(2 if continuous else 1, len(differences)), 1e6, 400).astype(int)):
        if continuous:
            low = mean - student_t(int(n) - 1) * deviation / math.sqrt(n)
        else:
            total = n + 2.0
            centre = mean * n / total
            variance = max(0.0, (spread * n + 1.0) / total - centre**2)
            low = centre - CONFIDENCE_Z * math.sqrt(variance / total)
        if low >= -margin:
            return int(n)
    return 10**9


# -- latency ---------------------------------------------------------------------------------------------------


def latency(candidate: Candidate, reference: Reference, samples: Samples) -> Finding:
    """Batch-1 latency of both, in turn within one run; the ratio of medians is judged, never an absolute time.

    Not judged where another library stands in for the artefact's own, nor where the reference cannot be run.
    """
    if candidate.stand_in:
        return _not_judged(f"latency was not judged: {candidate.stand_in}")
    if candidate.call is None or reference.call is None or not len(samples.tensors):
        return _not_judged("latency was not judged: nothing to compare with here")
    bound = candidate.tolerances["latency_ratio"]
    found = interleave(
        {"candidate": candidate.call, "reference": reference.call}, samples.tensors, warmup=warmup_calls(candidate)
    )
    ours, theirs = found["candidate"], found["reference"]
    ratio = float(np.median(ours) / np.median(theirs))
    low, high = _ratio_interval(ours, theirs)
    figures = {
        "ratio_p50": ratio,
        "interval_95": [low, high],
        "bound": bound,
        "reference_ms": percentiles(theirs),
        "reference_device": reference.device,
        **_measured(candidate, ours, samples.tensors),
    }
    said = (
        f"p50 {figures['candidate_ms']['p50']:.3g} ms against {figures['reference_ms']['p50']:.3g} ms: "
        f"x{ratio:.2f} of {reference.name} (x{bound:g} allowed)"
    )
    if high <= bound:
        verdict = PASS
    elif low > bound:
        verdict = FAIL
    else:
        verdict, said = INCONCLUSIVE, said + ": too noisy to say, measure again on an idle machine"
    return Finding(gate="latency", verdict=verdict, message=said, figures=figures)


def told_latencies(candidates: Sequence[Candidate], tensors: np.ndarray) -> dict[str, Finding]:
    """Batch-1 latency of several artefacts, in turn within one run, where PyTorch is not at hand: told, not judged.

    By name; the ratio is to the first float32 one, or to the first. Stand-ins are left out: see :func:`latency`.
    """
    timed = {c.name: c for c in candidates if c.call is not None and not c.stand_in}
    if not timed or not len(tensors):
        return {}
    base = next((c.name for c in timed.values() if c.precision == "fp32"), next(iter(timed)))
    warmup = max(warmup_calls(c) for c in timed.values())
    times = interleave({name: c.call for name, c in timed.items()}, tensors, warmup=warmup, seconds=3.0 + len(timed))
    told = {}
    for name, candidate in timed.items():
        ratio = float(np.median(times[name]) / np.median(times[base]))
        figures = {
            "ratio_p50": ratio,
            "interval_95": list(_ratio_interval(times[name], times[base])),
            "bound": None,
            "reference_ms": percentiles(times[base]),
            "reference_device": f"{timed[base].device}, artefact {base}",
            **_measured(candidate, times[name], tensors, warmup),
        }
        ms = figures["candidate_ms"]
        beside = f", x{ratio:.2f} of artefact {base}" if name != base else ""
        events = f" ({figures['device_ms']['p50']:.3g} ms by the device's events)" if "device_ms" in figures else ""
        told[name] = _not_judged(
            f"p50 {ms['p50']:.3g} ms{events}, p99 {ms['p99']:.3g} ms on {candidate.device}{beside}: "
            "told, not judged, for PyTorch is not at hand",
            figures,
        )
    return told


def _not_judged(message: str, figures: Mapping[str, Any] | None = None) -> Finding:
    return Finding(gate="latency", verdict=SKIPPED, message=message, figures=figures or {})


def warmup_calls(candidate: Candidate) -> int:
    """Calls before any is counted: a GPU takes some tens until its clocks are up, and builds kernels in the first."""
    return 3 if candidate.time_ms is None else 20


def _measured(candidate: Candidate, times_ms: np.ndarray, tensors: np.ndarray, warmup: int = 0) -> dict[str, Any]:
    """What a latency must carry to mean anything. The clocks are read now, while they are still up."""
    figures: dict[str, Any] = {
        "candidate_ms": percentiles(times_ms),
        "candidate_device": candidate.device,
        "rounds": len(times_ms),
        "warmup": warmup or warmup_calls(candidate),
        "batch": 1,
        "threads": candidate.threads or cores(),
    }
    if candidate.time_ms is not None:
        own = [candidate.time_ms(tensors[i % len(tensors)][None]) for i in range(min(50, len(times_ms)))]
        figures["device_ms"] = percentiles(np.asarray(own))
    now = clocks()
    return {**figures, "clocks": now} if now else figures


def interleave(
    calls: Mapping[str, Any], tensors: np.ndarray, *, warmup: int = 3, seconds: float = 3.0, rounds: int = 200
) -> dict[str, np.ndarray]:
    """Latencies in milliseconds of each callable on (1, C, H, W) tensors, taking turns, after a warm-up.

    Stops after ``rounds`` rounds or ``seconds`` seconds, whichever comes first, but not before five rounds.
    """
    inputs = [np.ascontiguousarray(tensors[i : i + 1]) for i in range(len(tensors))]
    for call in calls.values():
        for i in range(warmup):
            call(inputs[i % len(inputs)])
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(rounds):
        order = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for name in order:
            start = time.perf_counter_ns()
            calls[name](inputs[turn % len(inputs)])
            times[name].append((time.perf_counter_ns() - start) / 1e6)
        if turn >= 4 and time.perf_counter() - began > seconds:
            break
    return {name: np.asarray(values) for name, values in times.items()}


def percentiles(times_ms: np.ndarray) -> dict[str, float]:
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}


def _ratio_interval(ours: np.ndarray, theirs: np.ndarray, draws: int = 500) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of medians, resampling rounds (pairs stay together)."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(ours), size=(draws, len(ours)))
    ratios = np.median(ours[picks], axis=1) / np.median(theirs[picks], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
