"""From a trained network to a bundle that is proved: the work behind ``zoo export``, fail closed."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo import __version__
from zoo.artifacts import Artifact, Calibration, Judge
from zoo.bundle import MANIFEST, SCHEMA, open_bundle, validate
from zoo.data import Dataset, audit, division, open_data
from zoo.errors import DataError, ExportError, GateFailed, ImageError, ZooError
from zoo.files import dump_json, new_folder, sha256_file
from zoo.inputs import Source, preprocess, read_image
from zoo.machine import machine, versions
from zoo.parity import FAIL, INCONCLUSIVE, Candidate, Reference, Samples
from zoo.parity.evidence import Batch, batch_size, made_images, observe, prepared_batches, stand_in
from zoo.parity.golden import make_golden, selftest
from zoo.parity.reference import StoredReference, save_reference
from zoo.parity.report import ArtifactReport, Flip, Report, find_flips
from zoo.parity.verify import LATENCY_TENSORS, bounds
from zoo.registry import get_registry
from zoo.runtime.session import Session
from zoo.specs import Architecture, ImageInput, Runtime
from zoo.tasks import TaskHalf, rows_in
from zoo.tasks.pictures import PictureTask
from zoo.train.extractor import open_extractor
from zoo.train.models import Model, deployable, find_checkpoint, half_of, open_model
from zoo.train.quality import REAL, QualityGate, real_images
from zoo.train.reference import TorchReference, torch_reference

from .graphs import MODULES
from .plan import Plan, make_plans
from .precision.auditing import audit as audit_calibration
from .precision.casts import twin

__all__ = ["ExportGateFailed", "Outcome", "Request", "export_bundle"]

CALIBRATION_SEED = 0
CACHE_BYTES = 512 << 20
"""Preprocessed images up to this size are kept, so that each is decoded once; beyond it they are made again."""
STORED_SAMPLES = 2000
"""How many per-sample reference results travel in the bundle."""
SEARCH_IMAGES = 256
"""Training images that a plan of mixed precisions is searched on, beside those that it is calibrated on."""
GOLDEN_IMAGES = 5
GOLDEN_BYTES = 2 << 20
"""Outputs of the golden images that decoding needs: fewer images where they are larger than this in all."""
RESULT_BYTES = 4 << 20
"""Per-sample results of the reference that travel in the bundle: of fewer samples where they are images."""
REFERENCE_BYTES = 1 << 20
"""Raw reference outputs that travel in the bundle: of as many samples as fit, and never of none."""
FALLBACK_ROUNDS = 6
"""1, 2, 4, 8, 16 and 32 layers go back to float before int8 is given up."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    source: str
    """Checkpoint folder, run folder, or architecture name."""
    out: Path
    to: tuple[str, ...] = ("onnx",)
    """Targets: ``onnx``, ``tensorrt``, ``tensorrt:10.3``, ``tensorrt-rtx``."""
    precisions: tuple[str, ...] = ("fp32",)
    data: Path | None = None
    weights: str = "pretrained"
    size: int | tuple[int, int] | None = None
    channels: int | None = None
    build: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the architecture's ``build``."""
    dynamic_size: bool = False
    """Height and width of the graph's input are left open (for tiles and for images as they are)."""
    sizes: tuple[tuple[int, int], ...] | None = None
    """Least, usual and largest (height, width) of an engine whose graph leaves them open."""
    batch: tuple[int, int, int] = (1, 1, 8)
    """Least, usual and largest number of images that an engine takes at once."""
    defer: bool = False
    """Build no engine here: the device does."""
    tf32: bool = False
    """Whether an engine may round the operands of float32 products to 10 bits of mantissa."""
    nms: str = "host"
    """Where a detector's candidates are suppressed: on the ``host``, or in the ``graph``."""
    max_drop: float | None = None
    """Largest accuracy drop allowed, as a share of 1; None for the task's own."""
    waive: str = ""
    """Why an artefact is kept although a gate said no; empty keeps it out."""
    overwrite: bool = False
    val_share: float | None = None
    split_seed: int | None = None
    threads: int | None = None
    calibration: int = 128
    calibrator: str = ""
    """How int8 ranges are chosen; empty: as the precision pass thinks best."""
    budget: float = 0.005
    """Mean loss of the task's score that a mixed plan may cost, as a share of 1."""
    features: str = "random"
    """Whose features tell made images from real ones, where no image is the right one (:mod:`zoo.train.extractor`)."""
    max_samples: int | None = None
    """At most so many validation images are judged; None for all."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it. ``bundle`` is None where no artefact was fit to keep."""

    bundle: Path | None
    report: Report
    report_path: Path
    manifest: Mapping[str, Any]


@dataclass(kw_only=True)
class _Made:
    """One artefact, and what was found about it."""

    plan: Plan
    artifact: Artifact
    session: Session
    report: ArtifactReport
    flips: list[Flip] = field(default_factory=list)


@dataclass(kw_only=True)
class _Basis:
    """What everything is judged on: images, their tensors, and what PyTorch says of them."""

    images: Sequence[Source]
    batches: Batches
    samples: Samples
    reference: Reference
    dataset: Dataset | None
    calibration: Calibration | None
    quality: QualityGate | None = None
    """Where what is made can only be judged as a set, against real images."""


class Batches:
    """The preprocessed images, (n, C, H, W) float32 and their frames at a time, as often as asked for."""

    def __init__(self, images: Sequence[Source], spec: ImageInput) -> None:
        self._images, self._spec = images, spec
        fits = len(images) * 4 * int(np.prod(spec.shape)) <= CACHE_BYTES
        self._kept: list[Batch] | None = [] if fits else None

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is None:
            yield from prepared_batches(self._images, self._spec)
            return
        done = sum(len(tensor) for tensor, _ in self._kept)
        yield from list(self._kept)
        for batch in prepared_batches(self._images[done:], self._spec):
            self._kept.append(batch)
            yield batch

    def first(self, count: int) -> np.ndarray:
        """(K, C, H, W) float32, K = ``count`` or as many as there are."""
        parts, have = [], 0
        for tensor, _ in self:
            parts.append(tensor)
            have += len(tensor)
            if have >= count:
                break
        return np.concatenate(parts)[:count]


def export_bundle(
    request: Request, *, progress: Progress | None = None, note: Callable[[str], None] = print
) -> Outcome:
    """Export, convert, judge, and write the bundle folder ``request.out``: whole, or not at all.

    An artefact that a gate failed is kept out unless ``request.waive`` says why it may stay. The report is written
    in any case: into the bundle, or into ``<out>.failed`` where no artefact is left.

    Raises GateFailed (after everything is written), ExportError, DataError, CheckpointError, MissingPart,
    OutputError, UnknownName. ``progress(label, total)`` and ``note(text)`` are told how it goes.
    """
    show = progress or (lambda label, total: nullcontext(lambda done: None))
    plans = make_plans(request.to, request.precisions)
    threads = request.threads or torch.get_num_threads()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with new_folder(request.out, overwrite=request.overwrite) as folder:
            if find_checkpoint(request.source) is None:
                meant = get_registry().get(Architecture, request.source)
                if meant.name != request.source:
                    note(f"{request.source} means {meant.name}: {meant.summary}")
            model = open_model(
                request.source,
                weights=request.weights,
                size=request.size,
                channels=request.channels,
                options=request.build,
            )
            _need_task(request, model)
            module = deployable(model)
            reference = torch_reference(model)
            _need_to_run(model, reference)
            statements = _statements(request, model)
            for text in statements:
                note(f"warning: {text}")
            basis = _basis(request, model, reference, show, note)
            if basis.dataset is not None and basis.dataset.faults:
                statements.append(
                    f"{len(basis.dataset.faults)} faulty images or boxes were left out of the {basis.dataset.split} split."
                )
            source = Artifact(format="torch", precision="fp32", input=model.input, task=model.task, module=module)
            with tempfile.TemporaryDirectory(prefix=".work.", dir=folder) as name:
                work = Path(name)
                maker = _Maker(
                    request=request,
                    source=source,
                    folder=folder,
                    work=work,
                    basis=basis,
                    threads=threads,
                    note=note,
                )
                made = [maker.make(plan) for plan in plans]
                for text in _slower_than_fp32(made):
                    note(f"warning: {text}")
                    statements.append(text)
                statements += maker.statements
            outcome = _finish(request, model, reference, basis, made, statements, folder)
            if outcome.bundle is None:
                # nothing may be left at --out: the report goes beside it
                failed = request.out.with_name(request.out.name + ".failed")
                with new_folder(failed, overwrite=True) as place:
                    outcome.report.write(place)
                raise ExportGateFailed(replace(outcome, report_path=failed / "report.html"))
    finally:
        torch.set_num_threads(before)
    if outcome.report.failed:
        raise ExportGateFailed(outcome)
    return outcome


def _slower_than_fp32(made: Sequence[_Made]) -> list[str]:
    """The latency gate compares with PyTorch, so a smaller precision that is no faster than fp32 must be said apart."""
    ratios = {
        one.report.name: finding.figures["ratio_p50"]
        for one in made
        for finding in one.report.findings
        if finding.gate == "latency" and "ratio_p50" in finding.figures
    }
    whole = ratios.get("fp32")
    return [
        f"{name} takes {ratio / whole:.2f} times as long as fp32 on this machine: it saves space here, not time."
        for name, ratio in ratios.items()
        if whole and ratio > 1.05 * whole
    ]


class ExportGateFailed(GateFailed):
    """At least one artefact failed; ``outcome`` says what was written all the same."""

    def __init__(self, outcome: Outcome) -> None:
        report = outcome.report
        first, several = report.failed[0], len(report.failed) > 1
        super().__init__(
            f"{', '.join(a.name for a in report.failed)} failed and {'are' if several else 'is'} not in the bundle: "
            f'{first.failures[0]} (report: {outcome.report_path}; --waive "reason" keeps it all the same)'
        )
        self.outcome = outcome


def _statements(request: Request, model: Model) -> list[str]:
    found = []
    if request.data is None and model.makes is not None:
        found.append("Quality was not judged: no real images were given (--data DIR). Numbers were, on seeded latents.")
    elif request.data is None:
        found.append(
            "Accuracy was not judged: no labelled data was given (--data DIR). "
            "Numbers and latency were judged on made images of natural statistics."
        )
    if model.weights == "none":
        found.append(
            "The weights are random (--weights none): parity says little about them, and the bundle knows nothing."
        )
    elif model.provenance.get("head") == "new":
        found.append(
            "The classifier is new and untrained: its answers mean nothing until it is fine-tuned (`zoo finetune`)."
        )
    return found


# -- what is judged on -----------------------------------------------------------------------------------------


def _basis(
    request: Request, model: Model, torch_ref: TorchReference, show: Progress, note: Callable[[str], None]
) -> _Basis:
    spec = model.input
    dataset: Dataset | None = None
    train: Dataset | None = None
    images: list[Source]
    targets: list[Any] | None
    if request.data is not None:
        train, dataset = _data(request, model, show, note)
        images, ids = [s.image for s in dataset], tuple(s.id for s in dataset)
        targets = None if dataset.others else dataset.targets
        origin = dataset.source
    else:
        images = list(_made_images(spec, _made_count(spec), seed=1))
        ids, targets = tuple(f"made image {i}" for i in range(len(images))), None
        origin = f"{len(images)} made images of natural statistics"
    batches = Batches(images, spec)
    with show("reference", len(images)) as update:
        done = 0

        def run(batch: np.ndarray) -> dict[str, np.ndarray]:
            nonlocal done
            found = torch_ref.run(batch)
            done += len(batch)
            update(done)
            return found

        half = half_of(model)
        seen = observe(run, batches, half, model.labels, spec)
    _need_finite(seen.outputs, origin)
    samples = Samples(
        task=model.task,
        half=half,
        labels=model.labels,
        ids=ids,
        targets=targets,
        source=origin,
        tensors=batches.first(LATENCY_TENSORS),
    )
    reference = Reference(
        name=torch_ref.name,
        outputs=seen.outputs,
        exact=_exact(torch_ref, batches.first(min(exact_count(spec), rows_in(seen.outputs))), note),
        results=seen.results,
        call=torch_ref.run,
        device=torch_ref.device,
    )
    calibration = None
    if request.precisions != ("fp32",):
        judged = frozenset(s.digest() for s in dataset) if dataset is not None else frozenset()
        calibration = _calibration(request, model, train, judged, samples.half, torch_ref, note)
    quality = None
    if dataset is not None and dataset.others:
        real = real_images(dataset.others, model.makes or model.input)
        quality = QualityGate(seen.results, real, open_extractor(request.features))
    return _Basis(
        images=images,
        batches=batches,
        samples=samples,
        reference=reference,
        dataset=dataset,
        calibration=calibration,
        quality=quality,
    )


def exact_count(spec: ImageInput) -> int:
    """How many images are run in float64, which is slow: 256 small ones, fewer large ones, at least one batch."""
    return int(min(256, max(batch_size(spec), 2_400_000 // int(np.prod(spec.shape)))))


def _made_count(spec: ImageInput) -> int:
    return max(32, exact_count(spec) // 2)


def _made_images(spec: ImageInput, count: int, seed: int) -> Iterable[np.ndarray]:
    # somewhat larger than the input, so that resizing and cropping are part of what is judged
    height, width = round(spec.height * 1.3) + 1, round(spec.width * 1.15) + 2
    return made_images(spec, count, height, width, seed)


def _data(request: Request, model: Model, show: Progress, note: Callable[[str], None]) -> tuple[Dataset, Dataset]:
    """The training split (for calibration) and the validation split, divided as they were at training."""
    divided = model.provenance.get("data") or {}
    val_share, seed = division(model.provenance, request.val_share, request.split_seed)
    splits = open_data(request.data or "", task=model.task.name, val_share=val_share, seed=seed)
    train, val = splits.train.relabelled(model.labels), splits.val.relabelled(model.labels)
    if request.max_samples is not None and request.max_samples < len(val):
        order = np.random.default_rng(0).permutation(len(val))[: request.max_samples]
        val = val.subset(sorted(order.tolist()))
    with show("reading images", len(val)) as update:
        val = audit(val, input=model.input, progress=lambda done, total: update(done))
    half = half_of(model)
    count = min(REAL, request.max_samples or REAL)
    known = (divided.get("val") or {}).get("fingerprint")
    if known and request.max_samples is None and known != val.fingerprint():
        note(
            "warning: this is not the division of the data that the checkpoint was trained with: some judged images may have been learnt from"
        )
    for text in val.notes:
        note(f"warning: {text}")
    for fault in val.faults[:5]:
        note(f"left out: {fault.reason}")
    if len(val.faults) > 5:
        note(f"left out: {len(val.faults) - 5} more")
    judged = half.samples(val, model.input, model.labels, count)
    if model.makes is None:
        return half.samples(train, model.input, model.labels), judged
    # latents are calibrated on that nobody is judged by
    drawn = half.samples(train, model.input, model.labels, count + request.calibration + SEARCH_IMAGES)
    return drawn.subset(range(count, len(drawn))), judged


def _calibration(
    request: Request,
    model: Model,
    train: Dataset | None,
    judged: Collection[str],
    half: TaskHalf,
    torch_ref: TorchReference,
    note: Callable[[str], None],
) -> Calibration:
    """Images to calibrate on, and others that a plan of mixed precisions is searched on: none of them is judged."""
    spec = model.input
    wanted = request.calibration
    searched = SEARCH_IMAGES if "mixed" in request.precisions else 0
    images: list[Source]
    digests: list[str] = []
    if train is None:
        wanted, targets, origin = min(wanted, 64), None, "made images of natural statistics"
        images = list(_made_images(spec, wanted + min(searched, 64), seed=2))
        tensors = [preprocess(image, spec) for image in images[:wanted]]
    else:
        if searched:
            wanted = min(wanted, max(1, len(train) // 2))
        images, targets, tensors = [], [], []
        for index in np.random.default_rng(CALIBRATION_SEED).permutation(len(train)).tolist():
            sample = train[index]
            with contextlib.suppress(ImageError):  # a damaged image is no reason to stop; others take its place
                if len(tensors) < wanted:
                    tensors.append(preprocess(sample.image, spec, sample.id))
                    digests.append(sample.digest())
                else:
                    read_image(sample.image, spec, sample.id)
                images.append(sample.image)
                targets.append(sample.target)
            if len(images) == wanted + searched:
                break
        if not images:
            raise DataError(
                f"{train.root}: none of the {len(train)} training images can be read, so int8 cannot be calibrated"
            )
        if any(target is None for target in targets):
            targets = None  # then the trained network's answer is the right one
        origin = f"images of the {train.source}"
    calibrated = np.stack(tensors)
    concerns = audit_calibration(
        calibrated,
        targets=targets[:wanted] if targets is not None else None,
        labels=model.labels,
        digests=digests,
        judged_digests=judged,
    )
    for concern in concerns:
        note(f"calibration: {concern.message}")
    judge: Judge | None = None
    if images[wanted:]:
        batches = Batches(images[wanted:], spec)

        def results_of(run: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> Sequence[Any]:
            return observe(run, batches, half, model.labels, spec).results

        known = results_of(torch_ref.run) if targets is None else ()

        def judge(run: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> np.ndarray:
            results = results_of(run)
            if targets is None and isinstance(half, PictureTask):
                return half.likeness(results, known)
            if targets is None:
                return np.asarray(half.same_answer(results, known), np.float64)
            return half.sample_scores(results, targets[wanted:])

    return Calibration(
        tensors=calibrated,
        source=f"{len(tensors)} {origin}",
        concerns=tuple(c.to_dict() for c in concerns),
        method=request.calibrator,
        judge=judge,
        budget=request.budget,
    )


def _exact(reference: TorchReference, tensors: np.ndarray, note: Callable[[str], None]) -> dict[str, np.ndarray] | None:
    try:
        return reference.exact(tensors)
    except (RuntimeError, TypeError) as error:
        note(f"the network does not run in float64 ({_line(error)}): numbers are judged by their spread alone")
        return None


def _need_task(request: Request, model: Model) -> None:
    """Raises ExportError where an option means nothing to the network's task."""
    if request.nms == "graph" and model.task.name != "detect":
        raise ExportError(f"--nms graph is for detectors; {model.architecture.name} is for task {model.task.name}")
    if request.nms == "graph" and request.to != ("onnx",):
        raise ExportError("--nms graph goes with --to onnx alone: TensorRT-RTX has no NMS, and the host's takes 0.5 ms")
    if request.dynamic_size and model.task.name != "segment" and (model.input.resize, model.makes) != ("crop", None):
        raise ExportError(
            f"--dynamic-size is for segmenters and for networks that take images as they are; {model.architecture.name} "
            f"(task {model.task.name}) is exported for one size"
        )


def _need_to_run(model: Model, reference: TorchReference) -> None:
    """Raises ExportError where the network does not take an image of its declared size."""
    c, h, w = model.input.shape
    try:
        reference.run(np.zeros((1, c, h, w), np.float32))
    except ZooError:
        raise  # the network says what it takes, and the cure
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        own = model.architecture.input
        raise ExportError(
            f"{model.architecture.name} does not take {c}x{h}x{w} images ({_line(error)}): "
            f"leave out --size and --channels, or try its own {own.channels}x{own.height}x{own.width}"
        ) from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def _need_finite(outputs: Mapping[str, np.ndarray], origin: str) -> None:
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise ExportError(
                f"PyTorch's own output '{name}' is not finite on the {origin}: the checkpoint is broken, train it again"
            )


# -- making and judging ----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Maker:
    """Makes the artefacts of one bundle, one precision after the other, and judges each."""

    request: Request
    source: Artifact
    folder: Path
    """Where what may be kept is written."""
    work: Path
    """Where everything on the way is written."""
    basis: _Basis
    threads: int
    note: Callable[[str], None]
    statements: list[str] = field(default_factory=list)
    """What a reader of the report must not miss."""
    _done: dict[str, Artifact] = field(default_factory=dict)
    """By exporter's name, what it made: int8 starts from the very file that is the fp32 artefact."""

    def make(self, plan: Plan) -> _Made:
        self.note(f"{plan.name}: making and judging it")
        base = self.source
        for exporter in plan.before:
            last = plan.convert is None and exporter is plan.before[-1]
            if exporter.name not in self._done:
                place = self.folder if last and self.request.nms == "host" else self.work
                file = place / f"model.{base.precision}.{exporter.writes}"
                self._done[exporter.name] = exporter.resolve()(base, file, self._options(plan))
                for other in (self.work, self.folder):
                    if (place / MODULES).exists() and other != place:
                        shutil.copy(place / MODULES, other / MODULES)
            base = self._done[exporter.name]
        if plan.convert is None:
            made = self._judge(plan, base)
        else:
            assert self.basis.calibration is not None
            made = self._quantise(plan, plan.convert.resolve(), base, self.basis.calibration)
        return self._complete(plan, made)

    def _options(self, plan: Plan) -> dict[str, Any]:
        """What every exporter is told; each takes what concerns it."""
        request = self.request
        return {
            "dynamic_size": request.dynamic_size,
            "scale": self.basis.samples.half.settings.get("scale", 1),
            "target": plan.target,
            "batch": request.batch,
            "sizes": request.sizes,
            "tf32": request.tf32,
            "defer": request.defer,
            "progress": self.note,
        }

    def _complete(self, plan: Plan, made: _Made) -> _Made:
        """Have the last exporter do what is slow and done once, which for TensorRT is to build the engine.

        Where the engine itself is judged it was built before (:meth:`_judge`).
        """
        exporter = [*plan.before, *plan.after][-1].resolve()
        if not hasattr(exporter, "complete") or not made.report.stand_in:
            return made
        if made.report.verdict == FAIL and not self.request.waive:
            return made
        self._say_stand_in(plan)
        artifact: Artifact = exporter.complete(made.artifact, self._options(plan))
        findings = [*made.report.findings, *artifact.findings[len(made.artifact.findings) :]]
        failed = any(f.verdict == FAIL for f in findings)
        report = replace(
            made.report, findings=findings, notes=artifact.notes, waived=self.request.waive if failed else ""
        )
        return replace(made, artifact=artifact, report=report)

    def _say_stand_in(self, plan: Plan) -> None:
        text = (
            f"{plan.format}: ONNX Runtime executed the very graphs that engines are built of, on the CPU. Numbers and accuracy "
            "are those of the graphs; an engine is verified where it runs (`zoo build`, then `zoo verify`)."
        )
        if text not in self.statements:
            self.statements.append(text)

    def _quantise(
        self, plan: Plan, convert: Callable[..., Artifact], base: Artifact, calibration: Calibration
    ) -> _Made:
        """Convert; where what comes out suffers too much, put the layers that hurt most back to float and try again.

        A pass takes part in this by offering ``sensitivity(artifact, calibration)``: its layers, the worst first.
        """
        made = self._judge(plan, self._convert(plan, convert, base, calibration))
        if not hasattr(convert, "sensitivity") or not _hurt(made):
            return made
        self.note(f"{plan.name}: too much is lost; looking for the layers that hurt most")
        ranked = convert.sensitivity(base, calibration)
        kept: list[Any] = []
        for turn in range(FALLBACK_ROUNDS):
            if 2**turn >= len(ranked):
                break
            kept = ranked[: 2**turn]
            again = replace(calibration, keep_float=tuple(s.node for s in kept))
            made = self._judge(plan, self._convert(plan, convert, base, again))
            if not _hurt(made):
                break
        if kept:
            worst = [
                {"layer": s.module or s.node, "sqnr_db": round(s.sqnr_db, 1) if np.isfinite(s.sqnr_db) else None}
                for s in kept
            ]
            notes = {**made.artifact.notes, "float_because_they_hurt": worst}
            made.artifact, made.report = replace(made.artifact, notes=notes), replace(made.report, notes=notes)
            shown = ", ".join(str(w["layer"]) for w in worst[:6]) + (", …" if len(worst) > 6 else "")
            count = f"{len(worst)} layer{'s' if len(worst) > 1 else ''}"
            self.statements.append(
                f"{plan.name}: {count} went back to float, because it lost too much without: {shown}."
            )
            self.note(self.statements[-1])
        return made

    def _convert(
        self, plan: Plan, convert: Callable[..., Artifact], base: Artifact, calibration: Calibration
    ) -> Artifact:
        place = self.work if plan.after or self.request.nms == "graph" else self.folder
        found = convert(base, place / f"model.{plan.precision}.{base.format}", calibration)
        for exporter in plan.after:
            place = self.folder if exporter is plan.after[-1] else self.work
            found = exporter.resolve()(found, place / f"model.{plan.precision}.{exporter.writes}", self._options(plan))
        return found

    def _judge(self, plan: Plan, artifact: Artifact) -> _Made:
        basis = self.basis
        runtime = plan.choice.runtime
        if artifact.build and not runtime.name.startswith("onnxruntime"):
            artifact = [*plan.before, *plan.after][-1].resolve().complete(artifact, self._options(plan))
        if self.request.nms == "graph":
            from .nms import embed

            artifact = embed(artifact, self.folder / _files(artifact)[0].name, **basis.samples.half.settings)
        path, *engines = _files(artifact)
        session: Session = runtime.resolve()(
            _executable(artifact, runtime) or path, threads=self.threads, recipe=artifact.build, engines=engines
        )
        try:
            samples = basis.samples
            seen = observe(session.run, basis.batches, samples.half, samples.labels, artifact.input)
        except Exception as error:  # each runtime has exceptions of its own
            raise ExportError(f"artefact {plan.name} does not run in {runtime.name}: {_line(error)}") from error
        candidate = Candidate(
            name=plan.name,
            precision=artifact.precision,
            outputs=seen.outputs,
            results=seen.results,
            call=session.run,
            stand_in=stand_in(artifact.format, session),
            device=session.device,
            tolerances=bounds(artifact.task, artifact.precision, max_drop=self.request.max_drop),
        )
        findings = [*get_registry().verify(candidate, basis.reference, basis.samples), *artifact.findings]
        if isinstance(basis.samples.half, PictureTask):
            from zoo.train.lpips import beside_pixels

            findings = [beside_pixels(f, candidate.results, basis.reference.results) for f in findings]
        if basis.quality is not None:
            findings.append(basis.quality(candidate.results, candidate.tolerances))
        failed = any(f.verdict == FAIL for f in findings)
        return _Made(
            plan=plan,
            artifact=artifact,
            session=session,
            flips=find_flips(candidate, basis.reference, basis.samples, basis.images, artifact.input),
            report=ArtifactReport(
                name=plan.name,
                precision=artifact.precision,
                format=artifact.format,
                findings=findings,
                bytes=path.stat().st_size,
                device=session.device,
                runtime=runtime.name,
                lost=plan.choice.lost,
                stand_in=candidate.stand_in,
                waived=self.request.waive if failed else "",
                notes=artifact.notes,
            ),
        )


def _executable(artifact: Artifact, runtime: Runtime) -> Path | None:
    """What ONNX Runtime's CPU executes in the stead of a graph for another library: one that rounds as that will."""
    return twin(artifact) if artifact.format != "onnx" and runtime.name == "onnxruntime" else None


def _hurt(made: _Made) -> bool:
    """Whether precision is to blame: a gate of what comes out failed, or the images at hand show a drop beyond the margin
    without being enough to prove it. Latency would not improve by going back to float.
    """
    for finding in made.report.findings:
        if finding.gate in ("numbers", "accuracy", "pixels", "quality") and finding.verdict == FAIL:
            return True
        if finding.gate == "accuracy" and finding.verdict == INCONCLUSIVE:
            return bool(finding.figures["difference"] < finding.figures["margin"])
    return False


# -- the bundle ------------------------------------------------------------------------------------------------


def _finish(
    request: Request,
    model: Model,
    torch_ref: TorchReference,
    basis: _Basis,
    made: Sequence[_Made],
    statements: Sequence[str],
    folder: Path,
) -> Outcome:
    facts = machine()
    report = Report(
        subject=request.out.name,
        reference=basis.reference.name,
        samples=basis.samples.source,
        artifacts=[m.report for m in made],
        machine=facts,
        flips=[flip for m in made for flip in m.flips],
        statements=statements,
    )
    kept = [m for m in made if m.report.verdict != FAIL or m.report.waived]
    wanted = {path for one in kept for path in _files(one.artifact)}
    for path in {path for one in made for path in _files(one.artifact)} - wanted:
        path.unlink()
    if not kept:
        return Outcome(bundle=None, report=report, report_path=request.out, manifest={})
    golden = make_golden(
        folder,
        model.input,
        _golden_images(basis),
        {m.report.name: m.session for m in kept},
        basis.samples.half,
        model.labels,
    )
    _store_reference(folder, basis, torch_ref)
    report.write(folder)
    manifest = _manifest(request, model, basis, kept, report, golden, folder)
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    validate(manifest, folder)
    dump_json(folder / MANIFEST, manifest)
    # what a device will replay is replayed here first
    with open_bundle(folder) as bundle:
        broken = [stage for stage in selftest(bundle) if not stage]
    if broken:
        raise GateFailed(f"the finished bundle fails its own self-test at {broken[-1].stage}: {broken[-1].message}")
    return Outcome(bundle=request.out, report=report, report_path=request.out / "report.html", manifest=manifest)


def _files(artifact: Artifact) -> list[Path]:
    assert artifact.path is not None
    return [artifact.path, *(artifact.path.with_name(engine["file"]) for engine in artifact.build.get("engines", ()))]


def _golden_images(basis: _Basis) -> list[tuple[str, Source]]:
    """A few judged images, of different classes where there are classes; fewer where each costs the bundle much."""
    indices: list[int] = list(range(len(basis.images)))
    targets = basis.samples.targets
    if targets is not None and all(isinstance(t, int) for t in targets):
        first: dict[int, int] = {}
        for index, target in enumerate(targets):
            first.setdefault(target, index)
        indices = list(first.values())
    raw = basis.reference.outputs
    needed = basis.samples.half.decodes(list(raw))
    size = sum(raw[name][0].nbytes for name in needed)
    count = max(1, min(GOLDEN_IMAGES, GOLDEN_BYTES // max(1, size)))
    step = max(1, len(indices) // count)
    return [(basis.samples.ids[i], basis.images[i]) for i in indices[::step][:count]]


def _store_reference(folder: Path, basis: _Basis, torch_ref: TorchReference) -> None:
    with np.load(folder / "golden.npz", allow_pickle=False) as archive:
        tensors = archive["tensors"]
    count = min(STORED_SAMPLES, len(basis.images)) if basis.dataset is not None else 0
    one = basis.samples.half.pack(basis.reference.results[:1]) if count else {}
    count = min(count, max(1, RESULT_BYTES // max(1, sum(value.nbytes for value in one.values())))) if count else 0
    exact = basis.reference.exact or {}
    raw = basis.reference.outputs
    fits = max(1, REFERENCE_BYTES // max(1, sum(value[0].nbytes for value in raw.values())))
    tensors = tensors[:fits]
    save_reference(
        folder,
        StoredReference(
            name=basis.reference.name,
            ids=basis.samples.ids[:count],
            digests=tuple(s.digest() for s in list(basis.dataset or ())[:count]),
            results=basis.samples.half.pack(basis.reference.results[:count]),
            outputs={name: value[: min(count, fits)] for name, value in raw.items()},
            exact={name: value[: min(count, fits)] for name, value in exact.items()},
            golden_outputs=torch_ref.run(tensors),
            golden_exact=torch_ref.exact(tensors) if exact else {},
        ),
    )


def _manifest(
    request: Request,
    model: Model,
    basis: _Basis,
    kept: Sequence[_Made],
    report: Report,
    golden: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    c, h, w = model.input.shape
    sides = ("height", "width") if request.dynamic_size else ()
    scale = basis.samples.half.settings.get("scale", 1)
    made = tuple(f"{scale}*{side}" if scale > 1 else side for side in sides)
    artifacts = []
    for one in kept:
        assert one.artifact.path is not None
        status = one.report.status
        artifacts.append(
            {
                "name": one.report.name,
                "format": one.artifact.format,
                "precision": one.artifact.precision,
                "file": one.artifact.path.relative_to(folder).as_posix(),
                "status": status,
                "verified_on": one.report.verified_on,
                "gates": one.report.gates(),
                "notes": dict(one.artifact.notes),
                **({"build": dict(one.artifact.build)} if one.artifact.build else {}),
            }
        )
    data = None
    if basis.dataset is not None:
        data = {
            "name": basis.dataset.root.name,
            "format": basis.dataset.format,
            "split": basis.dataset.split,
            "images": len(basis.dataset),
            "left_out": len(basis.dataset.faults),
            "fingerprint": basis.dataset.fingerprint(),
        }
    provenance = dict(model.provenance)
    licences = provenance.pop("licences", [])
    return {
        "schema": SCHEMA,
        "name": request.out.name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "task": model.task.name,
        "architecture": model.architecture.name,
        "input": model.input.to_dict(),
        "decode": basis.samples.half.settings,
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", c, *(sides or (h, w))]}],
        "outputs": [
            {
                "name": name,
                "dtype": str(value.dtype),
                "shape": ["batch", *value.shape[1:-2], *made] if made else ["batch", *value.shape[1:]],
            }
            for name, value in ((n, basis.reference.outputs[n]) for n in model.task.outputs)
        ],
        "labels": list(model.labels),
        "default": _default(artifacts),
        "artifacts": artifacts,
        "waived": {m.report.name: m.report.waived for m in kept if m.report.waived},
        "golden": dict(golden),
        "parity": {
            "report": "parity.json",
            "page": "report.html",
            "reference": report.reference,
            "samples": report.samples,
            "statements": list(report.statements),
        },
        "data": data,
        "provenance": provenance,
        "licences": licences,
        "versions": {
            "edgezoo": __version__,
            **versions(("zoo-export", "torch", "onnx", "onnxruntime", "onnxscript", "onnxslim", "numpy", "pillow")),
        },
        "machine": dict(report.machine),
        "files": {},
    }


def _default(artifacts: Sequence[Mapping[str, Any]]) -> str:
    """The first verified fp32 artefact, else the first verified one, else the first."""
    ranked = sorted(artifacts, key=lambda a: (a["status"] != "verified", a["precision"] != "fp32"))
    return str(ranked[0]["name"])
