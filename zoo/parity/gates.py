"""The three gates: numbers, accuracy, latency. Each gives a Finding; none of them guesses a bound.

The bounds are the task's ``tolerances`` (one table, a reason beside each number), laid over by a user's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from . import FAIL, INCONCLUSIVE, PASS, SKIPPED, Candidate, Finding, Reference, Samples

__all__ = ["accuracy", "compare", "judge", "latency", "numbers", "paired_interval"]

CONFIDENCE_Z = 1.6449
"""One-sided 95 %: the question is "is it worse by more than the margin?", which has one side."""


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
    bound needs no tuning per network. Others: root-mean-square error as a share of the reference's spread.
    """
    bounds = candidate.tolerances
    figures: dict[str, Any] = {}
    problems: list[str] = []
    worst = 0.0
    for name in samples.task.outputs:
        if name not in candidate.outputs:
            problems.append(f"output '{name}' is missing")
            continue
        ours, theirs = candidate.outputs[name], reference.outputs[name]
        if ours.shape[1:] != theirs.shape[1:]:
            problems.append(f"output '{name}' has shape {ours.shape}, the reference {theirs.shape}")
            continue
        count = min(len(ours), len(theirs))
        ours, theirs = ours[:count], theirs[:count]
        if theirs.dtype.kind in "iub":
            agreement = float((ours == theirs).mean())
            figures[name] = {"agreement": agreement}
            if agreement < bounds.get("agreement", 1.0):
                problems.append(
                    f"'{name}' agrees in {100 * agreement:.3f} % of its values, {100 * bounds.get('agreement', 1.0):g} % needed"
                )
            continue
        exact = reference.exact[name] if reference.exact is not None else None
        found = compare(ours, theirs, exact, bounds.get("numbers_floor", 0.0), bounds.get("numbers_least", 0.0))
        figures[name] = found
        if found["not_finite"]:
            problems.append(f"{found['not_finite']} values of '{name}' are not finite")
        elif "numbers_units" in bounds and "units" in found:
            worst = max(worst, found["units"])
            if not found["units"] <= bounds["numbers_units"]:
                problems.append(
                    f"'{name}' is off by {found['units']:.3g} units of float32 error, {bounds['numbers_units']:g} allowed"
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
    if "numbers_units" in bounds and reference.exact is not None:
        message = f"error {worst:.2g} units of PyTorch's own float32 error ({bounds['numbers_units']:g} allowed)"
    else:
        message = f"error {100 * worst:.3g} % of the outputs' spread, RMS"
    return Finding(gate="numbers", verdict=PASS, message=message, figures=figures)


def compare(
    ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray | None = None, floor: float = 0.0, least: float = 0.0
) -> dict[str, Any]:
    """Figures on one output, (N, …) each.

    ``max_abs`` and ``mean_abs`` in the output's own unit; ``rms_share``: RMS error / RMS of the reference about
    its per-sample mean (shift of all logits changes nothing); ``cosine``; ``psnr_db`` with the reference's range
    as peak; ``argmax_agreement``; ``histogram`` of log10 absolute error; with ``exact``: ``unit`` and ``units``, the
    unit being no less than ``floor`` times the spread, nor than ``least``.
    """
    a, b = ours.astype(np.float64).reshape(len(ours), -1), theirs.astype(np.float64).reshape(len(theirs), -1)
    broken = int(a.size - np.isfinite(a).sum())
    if broken:
        return {"not_finite": broken}
    error = np.abs(a - b)
    centred = b - b.mean(axis=1, keepdims=True)
    spread = float(np.sqrt((centred**2).mean())) or float(np.sqrt((b**2).mean())) or 1.0
    rms = float(np.sqrt((error**2).mean()))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    peak = float(b.max() - b.min())
    found: dict[str, Any] = {
        "not_finite": 0,
        "max_abs": float(error.max()),
        "mean_abs": float(error.mean()),
        "rms_share": rms / spread,
        "spread": spread,
        "cosine": float((a * b).sum() / norm) if norm else 1.0,
        "psnr_db": 20 * math.log10(peak / rms) if rms and peak else None,
        "argmax_agreement": float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        "histogram": _histogram(error),
    }
    if exact is not None:
        truth = exact.astype(np.float64).reshape(len(exact), -1)
        # the exact outputs may cover the first samples only, being slow to compute
        a, b = a[: len(truth)], b[: len(truth)]
        unit_max = max(float(np.abs(b - truth).max()), floor * spread, least, np.finfo(np.float64).tiny)
        unit_mean = max(float(np.abs(b - truth).mean()), floor * spread / 8, least, np.finfo(np.float64).tiny)
        found["unit"] = unit_max
        found["units"] = max(float(np.abs(a - truth).max()) / unit_max, float(np.abs(a - truth).mean()) / unit_mean)
    return found


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


def accuracy(candidate: Candidate, reference: Reference, samples: Samples) -> Finding:
    """The task's metric, paired sample by sample: pass where a drop beyond the margin is ruled out at 95 %,
    fail where a drop beyond it is shown, inconclusive otherwise (with how many more samples it would take).
    """
    if samples.targets is None:
        return Finding(
            gate="accuracy",
            verdict=SKIPPED,
            message="accuracy was not judged: no labelled data was given (--data DIR)",
        )
    half = samples.half
    margin = candidate.tolerances["accuracy_drop"]
    ours = half.sample_scores(candidate.results, samples.targets)
    theirs = half.sample_scores(reference.results, samples.targets)
    same = half.same_answer(candidate.results, reference.results)
    mean, low, high = paired_interval(ours - theirs)
    count = len(ours)
    figures: dict[str, Any] = {
        "metric": half.score_name,
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
    said = (
        f"{half.score_name} {100 * figures['candidate']:.2f} % against {100 * figures['reference']:.2f} % "
        f"({100 * mean:+.2f} points, at worst {100 * low:+.2f}; {100 * -margin:+.2f} allowed; "
        f"{figures['changed_answers']} of {count} answers changed)"
    )
    if half.metric_name != half.score_name:  # what belongs to the whole set has no pairs: it is told, not judged
        whole = {}
        for who, results in (("candidate", candidate.results), ("reference", reference.results)):
            meter = half.meter(samples.labels)
            for start in range(0, count, 16):
                meter.update(results[start : start + 16], samples.targets[start : start + 16])
            whole[who] = float(meter.compute()[half.metric_name])
        figures["whole_set"] = {"metric": half.metric_name, **whole}
        figures["differences"] = half.differences(candidate.results, reference.results)
        said += f"; {half.metric_name} {100 * whole['candidate']:.2f} % against {100 * whole['reference']:.2f} %"
    if low >= -margin:
        return Finding(gate="accuracy", verdict=PASS, message=said, figures=figures)
    if high < -margin:
        return Finding(gate="accuracy", verdict=FAIL, message=said, figures=figures)
    more = samples_needed(ours - theirs, margin) - count
    figures["more_samples"] = more if more > 0 else None
    cure = (
        f"about {more} more samples would settle it"
        if 0 < more < 1_000_000
        else "more samples would have to show a smaller drop"
    )
    return Finding(gate="accuracy", verdict=INCONCLUSIVE, message=f"{said}: {cure}", figures=figures)


def samples_needed(differences: np.ndarray, margin: float) -> int:
    """How many samples of the same kind would make the interval's low end reach ``-margin``; 10**9 if none would."""
    mean = float(differences.mean())
    spread = float((differences**2).mean())
    for n in np.unique(np.geomspace(max(1, len(differences)), 1e6, 400).astype(int)):
        total = n + 2.0
        centre = mean * n / total
        variance = max(0.0, (spread * n + 1.0) / total - centre**2)
        if centre - CONFIDENCE_Z * math.sqrt(variance / total) >= -margin:
            return int(n)
    return 10**9


# -- latency ---------------------------------------------------------------------------------------------------


def latency(candidate: Candidate, reference: Reference, samples: Samples) -> Finding:
    """Batch-1 latency of both, in turn within one run; the ratio of medians is judged, never an absolute time."""
    if candidate.call is None or reference.call is None or not len(samples.tensors):
        return Finding(gate="latency", verdict=SKIPPED, message="latency was not judged: nothing to compare with here")
    bound = candidate.tolerances["latency_ratio"]
    found = interleave({"candidate": candidate.call, "reference": reference.call}, samples.tensors)
    ours, theirs = found["candidate"], found["reference"]
    ratio = float(np.median(ours) / np.median(theirs))
    low, high = _ratio_interval(ours, theirs)
    figures: dict[str, Any] = {
        "ratio_p50": ratio,
        "interval_95": [low, high],
        "bound": bound,
        "candidate_ms": percentiles(ours),
        "reference_ms": percentiles(theirs),
        "rounds": len(ours),
        "batch": 1,
        "candidate_device": candidate.device,
        "reference_device": reference.device,
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
