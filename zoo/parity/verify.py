"""Judges a bundle where it stands: the self-test, then the gates, against PyTorch or what PyTorch left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..data import Dataset
from ..errors import DataError
from ..inputs import Source, prepare_batch
from ..lookup import find_task
from ..machine import machine
from ..runtime.predictor import Predictor, open_artifact, open_half
from ..specs import Task
from ..tasks import TaskHalf
from . import FAIL, Candidate, Finding, Reference, Samples
from .evidence import Batch, observe, prepared_batches
from .golden import Stage, golden_arrays, selftest
from .reference import StoredReference, load_reference, take
from .report import ArtifactReport, Flip, Report, find_flips

__all__ = ["bounds", "verify_bundle"]

LATENCY_TENSORS = 8
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
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Judge artefacts of a bundle on this machine.

    The reference is ``network`` (PyTorch, where it is at hand); otherwise the per-sample results stored in the
    bundle, for those images of ``data`` that were judged at export; otherwise the stored results for the golden
    vectors. Nothing is written. Raises BundleError, DataError, MissingPart.
    """
    from ..registry import get_registry  # pluggy: needed to judge, not to import this module

    task = find_task(bundle.task)
    half = open_half(bundle)
    stages = selftest(bundle, artifacts[0] if len(artifacts) == 1 else None, threads=threads)
    names = list(artifacts or bundle.artifacts)
    broken = [s for s in stages if not s and not s.artifact]
    if any(s.stage in ("manifest", "files") for s in broken):
        failed = [_report(bundle, n, [], [s for s in stages if not s]) for n in names]
        return Report(subject=bundle.name, reference="-", samples="-", artifacts=failed, machine=machine())
    basis = _basis(bundle, task, half, data, network, exact_network, network_name, progress)
    stand_in: Reference | None = None
    reports: list[ArtifactReport] = []
    flips: list[Flip] = []
    for name in sorted(names, key=lambda n: bundle.artifacts[n].precision != "fp32"):
        own = [s for s in stages if s.artifact in ("", name)]
        if any(s.stage == "open" and not s for s in own):
            reports.append(_report(bundle, name, [], own))
            continue
        predictor = open_artifact(bundle, name, threads=threads)
        try:
            candidate = _candidate(predictor, basis, task, max_drop)
        except Exception as error:  # each runtime has exceptions of its own
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            finding = Finding(gate="numbers", verdict=FAIL, message=f"the artefact does not run: {line[:200]}")
            reports.append(_report(bundle, name, [finding], own, predictor))
            continue
        reference = basis.reference or stand_in
        if reference is None:
            # without a call: the latency bound is a share of PyTorch's time, and this is not PyTorch
            stand_in = Reference(
                name=f"artefact {name}",
                outputs=candidate.outputs,
                results=candidate.results,
                device=candidate.device,
            )
            reports.append(_report(bundle, name, [], own, predictor))
            continue
        findings = get_registry().verify(candidate, reference, basis.samples)
        flips += find_flips(candidate, reference, basis.samples, basis.images, bundle.input)
        reports.append(_report(bundle, name, findings, own, predictor))
    return Report(
        subject=bundle.name,
        reference=basis.reference.name if basis.reference else stand_in.name if stand_in else "-",
        samples=basis.samples.source,
        artifacts=reports,
        machine=machine(),
        flips=flips,
        statements=basis.statements,
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
        waived=str(bundle.manifest.get("waived", {}).get(name, "")),
        notes=entry.notes,
    )


def _candidate(predictor: Predictor, basis: _Basis, task: Task, max_drop: float | None) -> Candidate:
    seen = observe(predictor.session.run, basis.batches(), basis.samples.half, basis.samples.labels)
    return Candidate(
        name=predictor.artifact.name,
        precision=predictor.artifact.precision,
        outputs=seen.outputs,
        results=seen.results,
        call=predictor.session.run,
        device=predictor.session.device,
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
    data = data.relabelled(bundle.labels)
    images: list[Source] = [s.image for s in data]
    targets: list[Any] = data.targets
    ids = [s.id for s in data]
    statements: list[str] = []
    reference: Reference | None = None
    if network is not None:
        seen = observe(network, prepared_batches(images, bundle.input, progress=progress), half, bundle.labels)
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
            images, ids, targets = [images[i] for i in here], [ids[i] for i in here], [targets[i] for i in here]
            raw, exactly = (sum(1 for t in there if t < _length(o)) for o in (stored.outputs, stored.exact))
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
        seen = observe(network, [(tensors, frames)], half, bundle.labels)
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
        count = _length(stored.golden_outputs)
        reference = Reference(
            name=f"{stored.name}, as stored in the bundle",
            outputs=stored.golden_outputs,
            exact=stored.golden_exact or None,
            results=half.decode(stored.golden_outputs, labels=bundle.labels, frames=frames[:count], judging=True),
        )
        tensors, frames, images = tensors[:count], frames[:count], images[:count]
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


def _length(outputs: Mapping[str, np.ndarray]) -> int:
    return min((len(v) for v in outputs.values()), default=0)
