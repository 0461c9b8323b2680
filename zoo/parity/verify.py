"""Judges a bundle where it stands: the self-test, then the gates, against PyTorch or what PyTorch left behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..bundle import ArtifactEntry, Bundle
from ..data import Dataset, Sample
from ..errors import DataError, ZooError
from ..files import sha256_bytes
from ..inputs import Source, prepare_batch
from ..lookup import find, find_task, runtimes_for
from ..machine import machine
from ..results import ImageResult
from ..runtime.choosing import why_not
from ..runtime.predictor import Predictor, open_artifact, open_half
from ..specs import Runtime, Task
from ..tasks import TaskHalf, rows_in
from . import FAIL, PASS, SKIPPED, Candidate, Finding, Reference, Samples
from .evidence import Batch, is_own, judged, observe, prepared_batches, stand_in
from .gates import compare, told_latencies
from .golden import Stage, golden_arrays, selftest
from .reference import StoredReference, load_reference, take
from .report import ArtifactReport, Flip, Report, find_flips

__all__ = ["bounds", "verify_bundle"]

LATENCY_TENSORS = 8
NOTHING_REAL = (
    "quality compares what is made with real images, of which there are none: give those of a generator with --data"
)
Quality = Callable[[Sequence[ImageResult], Mapping[str, float]], Finding]
EXACT = 16
"""Images that are run in float64 where PyTorch is at hand: the truth of the numeric gate is slow to compute."""


def bounds(task: Task, precision: str, *, max_drop: float | None = None) -> dict[str, float]:
    """The task's tolerances for a precision, with a user's own accuracy margin (a share, not points) over them.

    A precision that the table does not know is held to that of float32: nobody said it may be worse.
    """
    table = dict(task.tolerances.get(precision, task.tolerances["fp32"]))
    if max_drop is not None:
        table["accuracy_drop"] = max_drop
    return table


@dataclass(kw_only=True)
class _Basis:
    """What every artefact of the bundle is judged against."""

    reference: Reference | None
    """None where the fp32 artefact stands in."""
    samples: Samples
    images: Sequence[Source]
    batches: Callable[[], Iterable[Batch]]
    statements: list[str]
    real: Sequence[Sample] = ()
    """Real images that what is made can be compared with, as a set."""


def verify_bundle(
    bundle: Bundle,
    *,
    data: Dataset | None = None,
    network: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None,
    exact_network: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None,
    network_name: str = "",
    artifacts: Sequence[str] = (),
    threads: int | None = None,
    max_drop: float | None = None,
    quality: Callable[[Sequence[ImageResult], Sequence[Sample]], Quality] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Judge artefacts of a bundle on this machine.

    The reference is ``network`` (PyTorch, where it is at hand); otherwise the per-sample results stored in the
    bundle, for those images of ``data`` that were judged at export; otherwise the stored results for the golden
    vectors. ``quality`` makes a gate of what the reference made and of real images, for networks that have no right
    answer; it needs ``data`` that holds such images. Nothing is written. Raises BundleError, DataError, MissingPart.
    """
    from ..registry import get_registry  # pluggy: needed to judge, not to import this module

    task = find_task(bundle.task)
    half = open_half(bundle)
    if quality is not None and data is None:
        raise DataError(NOTHING_REAL)
    stages = selftest(bundle, artifacts[0] if len(artifacts) == 1 else None, threads=threads)
    names = list(artifacts or bundle.artifacts)
    broken = [s for s in stages if not s and not s.artifact]
    if any(s.stage in ("manifest", "files") for s in broken):
        failed = [_report(bundle, n, [], [s for s in stages if not s]) for n in names]
        return Report(
            subject=bundle.name,
            reference="-",
            samples="-",
            artifacts=failed,
            machine=machine(),
            bundle=_identity(bundle),
        )
    basis = _basis(bundle, task, half, data, network, exact_network, network_name, progress)
    if quality is not None and not basis.real:
        raise DataError(NOTHING_REAL)
    judge = quality(basis.reference.results, basis.real) if quality and basis.reference else None
    substitute: Reference | None = None
    reports: list[ArtifactReport] = []
    flips: list[Flip] = []
    ran: list[Candidate] = []
    statements = list(basis.statements)
    for name in sorted(names, key=lambda n: _rank(bundle.artifacts[n])):
        own = [s for s in stages if s.artifact in ("", name)]
        closed = next((s.message for s in own if s.stage == "open" and not s), "")
        if not closed:
            try:
                predictor = open_artifact(bundle, name, threads=threads)
            except ZooError as error:
                closed = str(error)
        if closed:
            finding = _closed(bundle.artifacts[name], closed)
            if finding.verdict == SKIPPED:
                statements.append(f"{name} was not judged: {finding.message}.")
                own = [s for s in own if s.stage != "open"]
            reports.append(_report(bundle, name, [finding], own))
            continue
        try:
            candidate = _candidate(predictor, basis, task, max_drop, threads)
        except Exception as error:  # each runtime has exceptions of its own
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            finding = Finding(gate="numbers", verdict=FAIL, message=f"the artefact does not run: {line[:200]}")
            reports.append(_report(bundle, name, [finding], own, predictor))
            continue
        ran.append(candidate)
        if candidate.stand_in:
            statements.append(f"{name} was {candidate.stand_in}.")
        reference = basis.reference or substitute
        if reference is None:
            # without a call: the latency bound is a share of PyTorch's time, and this is not PyTorch
            substitute = Reference(
                name=f"artefact {name}",
                outputs=candidate.outputs,
                results=candidate.results,
                device=candidate.device,
            )
            reports.append(_report(bundle, name, [], own, predictor))
            continue
        findings = [*get_registry().verify(candidate, reference, basis.samples)]
        findings += _engine_finding(predictor, candidate, basis.samples, threads)
        findings += [judge(candidate.results, candidate.tolerances)] if judge else []
        flips += find_flips(candidate, reference, basis.samples, basis.images, bundle.input)
        reports.append(_report(bundle, name, findings, own, predictor))
    if basis.reference is None or basis.reference.call is None:
        told = told_latencies(ran, basis.samples.tensors)
        reports = [_with_latency(r, told[r.name]) if r.name in told else r for r in reports]
    return Report(
        subject=bundle.name,
        reference=basis.reference.name if basis.reference else substitute.name if substitute else "-",
        samples=basis.samples.source,
        artifacts=reports,
        machine=machine(),
        flips=flips,
        statements=statements,
        bundle=_identity(bundle),
    )


def _closed(entry: ArtifactEntry, reason: str) -> Finding:
    """What to say of an artefact that does not open: a fault, unless its own library is not at hand and what would have
    stood in for it does not know all its layers."""
    own = [r for r in runtimes_for(entry.format) if is_own(entry.format, r.name)]
    if any(not why_not(r) for r in own):
        return Finding(gate="numbers", verdict=FAIL, message=f"the artefact does not open: {reason}")
    return Finding(
        gate="numbers",
        verdict=SKIPPED,
        message=f"{' and '.join(r.name for r in own)} do not run here, and nothing else executes its graph ({reason})",
    )


def _rank(entry: ArtifactEntry) -> tuple[bool, bool]:
    """The plain fp32 graph first: what the others are compared with where PyTorch left nothing."""
    return entry.precision != "fp32", entry.format != "onnx"


def _with_latency(report: ArtifactReport, told: Finding) -> ArtifactReport:
    """The report with what was measured in place of the gate's word that there is nothing to compare with."""
    others = [f for f in report.findings if f.gate != told.gate]
    return replace(report, findings=[*others, told])


def _identity(bundle: Bundle) -> dict[str, Any]:
    """What tells this bundle from others, for a record that is read elsewhere."""
    text = json.dumps(bundle.manifest, sort_keys=True, ensure_ascii=False).encode()
    return {
        "name": bundle.name,
        "created": bundle.manifest.get("created", ""),
        "architecture": bundle.manifest.get("architecture", ""),
        "manifest_sha256": sha256_bytes(text),
        "files": {a.name: bundle.manifest["files"][a.file]["sha256"] for a in bundle.artifacts.values()},
    }


def _downgrade(predictor: Predictor) -> list[Finding]:
    """A failed finding where a runtime that works here could not open the artefact, or computed something else: another
    took its place, which must not go unseen."""
    if predictor.artifact.format == "onnx":
        return []  # these run where they were judged, whatever else is installed
    tried = {n: reason for n, reason in predictor.choice.lost.items() if not why_not(find(Runtime, n))}
    return [
        Finding(
            gate="engine",
            verdict=FAIL,
            message=f"{name} works here, but {predictor.choice.runtime.name} took its place: {reason}",
        )
        for name, reason in list(tried.items())[:1]
    ]


def _engine_finding(predictor: Predictor, candidate: Candidate, samples: Samples, threads: int | None) -> list[Finding]:
    """Where an engine ran: how far it is from what ONNX Runtime computes of the very graph that it was built of, which
    tells a fault of the engine from a fault of the graph. Nothing where no engine ran, unless one could have.
    """
    entry = predictor.artifact
    downgrade = _downgrade(predictor)
    if downgrade or entry.format == "onnx" or candidate.stand_in or not entry.file.endswith(".onnx"):
        return downgrade
    bound = candidate.tolerances.get("engine", candidate.tolerances.get("numbers_rms", 0.0))

    def finding(verdict: str, message: str, **figures: Any) -> list[Finding]:
        return [Finding(gate="engine", verdict=verdict, message=message, figures=figures)]

    try:
        plain = open_artifact(predictor.bundle, entry.name, runtime="onnxruntime", threads=threads).session
        theirs = plain.run(samples.tensors)
    except Exception as error:  # not installed here, or it knows no kernel for a layer
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return finding(SKIPPED, f"the engine was not compared with its graph: {line[:200]}")
    ours = predictor.session.run(samples.tensors)
    worst, at = 0.0, ""
    for name, value in theirs.items():
        if name not in ours or ours[name].shape != value.shape:
            return finding(FAIL, f"output '{name}' of the engine is not that of its graph")
        if value.dtype.kind in "iub":
            continue  # labels flip where two scores are equal; the floats that they come from are compared
        found = compare(ours[name], value)
        off = float("inf") if found["not_finite"] else found["rms_share"]
        if off >= worst:
            worst, at = off, name
    told = f"'{at}' is off by {100 * worst:.2g} % of its spread from {plain.device} on the same graph"
    return finding(
        PASS if worst <= bound else FAIL,
        f"{told} ({100 * bound:g} % allowed)",
        rms_share=worst if worst != float("inf") else None,
        bound=bound,
        output=at,
        images=len(samples.tensors),
        graph_device=plain.device,
    )


def _report(
    bundle: Bundle, name: str, findings: Sequence[Finding], stages: Sequence[Stage], predictor: Predictor | None = None
) -> ArtifactReport:
    entry = bundle.artifacts[name]
    return ArtifactReport(
        name=name,
        precision=entry.precision,
        format=entry.format,
        findings=list(findings),
        stages=list(stages),
        bytes=bundle.manifest["files"][entry.file]["bytes"],
        device=predictor.session.device if predictor else "",
        runtime=predictor.session.runtime if predictor else "",
        lost=dict(predictor.choice.lost) if predictor else {},
        stand_in=stand_in(entry.format, predictor.session, entry.precision) if predictor else "",
        waived=str(bundle.manifest.get("waived", {}).get(name, "")),
        notes=entry.notes,
    )


def _candidate(
    predictor: Predictor, basis: _Basis, task: Task, max_drop: float | None, threads: int | None
) -> Candidate:
    samples = basis.samples
    seen = observe(predictor.session.run, basis.batches(), samples.half, samples.labels, predictor.input)
    return Candidate(
        name=predictor.artifact.name,
        precision=predictor.artifact.precision,
        outputs=seen.outputs,
        results=seen.results,
        call=predictor.session.run,
        time_ms=getattr(predictor.session, "time_ms", None),
        device=predictor.session.device,
        threads=threads,
        stand_in=stand_in(predictor.artifact.format, predictor.session, predictor.artifact.precision),
        tolerances=bounds(task, predictor.artifact.precision, max_drop=max_drop),
    )


def _basis(
    bundle: Bundle,
    task: Task,
    half: TaskHalf,
    data: Dataset | None,
    network: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None,
    exact_network: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None,
    network_name: str,
    progress: Callable[[int], None] | None,
) -> _Basis:
    stored = load_reference(bundle)
    if data is None:
        return _golden_basis(bundle, task, half, stored, network, exact_network, network_name)
    data = half.samples(data.relabelled(bundle.labels), bundle.input, bundle.labels)
    images: list[Source] = [s.image for s in data]
    targets: list[Any] | None = None if data.others else data.targets
    ids = [s.id for s in data]
    statements: list[str] = []
    reference: Reference | None = None
    if network is not None:
        batches = prepared_batches(images, bundle.input, progress=progress)
        seen = observe(network, batches, half, bundle.labels, bundle.input)
        exact = dict(exact_network(prepare_batch(images[:EXACT], bundle.input)[0])) if exact_network else None
        reference = Reference(
            name=network_name,
            outputs=seen.outputs,
            exact=exact,
            results=seen.results,
            call=network,
            device="CPU (PyTorch)",
        )
    elif stored is not None:
        known = {digest: index for index, digest in enumerate(stored.digests)}
        pairs = [(here, known[d]) for here, d in enumerate(s.digest() for s in data) if d in known]
        # raw and exact outputs cover the first samples of the stored set: keep that order
        pairs.sort(key=lambda pair: pair[1])
        if pairs:
            if len(pairs) < len(images):
                statements.append(
                    f"{len(pairs)} of the {len(images)} images were judged at export; the others have no reference here."
                )
            here, there = [p[0] for p in pairs], [p[1] for p in pairs]
            images, ids, targets = (
                [images[i] for i in here],
                [ids[i] for i in here],
                targets and [targets[i] for i in here],
            )
            raw, exactly = (sum(1 for t in there if t < rows_in(o)) for o in (stored.outputs, stored.exact))
            results = half.unpack(stored.results, bundle.labels)
            reference = Reference(
                name=f"{stored.name}, as stored in the bundle",
                outputs=take(stored.outputs, there[:raw]),
                exact=take(stored.exact, there[:exactly]) if exactly else None,
                results=[results[t] for t in there],
            )
    if reference is None:
        if len(bundle.artifacts) < 2:
            raise DataError(
                f"none of the {len(images)} images was judged at export, so there is nothing to compare with: "
                "give the data the bundle was exported with, or --checkpoint (needs torch)"
            )
        statements.append(
            "None of these images was judged at export: the fp32 artefact stands in for PyTorch as the reference."
        )
    return _Basis(
        reference=reference,
        samples=Samples(
            task=task,
            half=half,
            labels=bundle.labels,
            ids=tuple(ids),
            targets=targets,
            source=data.source if len(ids) == len(data) else f"{len(ids)} images of the {data.source}",
            tensors=prepare_batch(images[:LATENCY_TENSORS], bundle.input)[0],
        ),
        images=images,
        batches=lambda: prepared_batches(images, bundle.input),
        statements=statements,
        real=data.others,
    )


def _golden_basis(
    bundle: Bundle,
    task: Task,
    half: TaskHalf,
    stored: StoredReference | None,
    network: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None,
    exact_network: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None,
    network_name: str,
) -> _Basis:
    arrays, images = golden_arrays(bundle)
    # the tensors as they were at export: here the network is judged, and the self-test judges the preprocessing
    tensors, frames = arrays["tensors"], prepare_batch(images, bundle.input)[1]
    reference: Reference | None = None
    if network is not None:
        seen = observe(network, [(tensors, frames)], half, bundle.labels, bundle.input)
        exact = dict(exact_network(tensors)) if exact_network else None
        reference = Reference(
            name=network_name,
            outputs=seen.outputs,
            exact=exact,
            results=seen.results,
            call=network,
            device="CPU (PyTorch)",
        )
    elif stored is not None and stored.golden_outputs:
        count = rows_in(stored.golden_outputs)
        tensors, frames, images = tensors[:count], frames[:count], images[:count]
        reference = Reference(
            name=f"{stored.name}, as stored in the bundle",
            outputs=stored.golden_outputs,
            exact=stored.golden_exact or None,
            results=judged(stored.golden_outputs, (tensors, frames), half, bundle.labels, bundle.input),
        )
    return _Basis(
        reference=reference,
        samples=Samples(
            task=task,
            half=half,
            labels=bundle.labels,
            ids=tuple(s["id"] for s in bundle.manifest["golden"]["samples"][: len(tensors)]),
            targets=None,
            source=f"the {len(tensors)} golden vectors of the bundle",
            tensors=tensors,
        ),
        images=images,
        batches=lambda: [(tensors, frames)],
        statements=["Accuracy was not judged: no labelled data was given (--data DIR)."],
    )
