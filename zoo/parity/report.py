"""The parity report: parity.json for programs, report.html (self-contained) for people. numpy and Pillow only."""

from __future__ import annotations

import base64
import datetime
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import __version__
from ..errors import ImageError
from ..files import dump_json, write_text
from ..inputs import Source, read_image
from ..reading import viewable
from ..specs import ImageInput
from ..tasks import TaskHalf, said
from ..tasks.pictures import NOTICED, PictureTask, apart, psnr
from . import FAIL, INCONCLUSIVE, PASS, SKIPPED, Candidate, Finding, Reference, Samples
from .golden import Stage

__all__ = ["STATUSES", "ArtifactReport", "Flip", "Report", "find_flips"]

MAX_FLIPS = 24
MAX_CROPS = 8
"""Images of which the crop that changed most is shown: three pictures each."""
CROP, MAGNIFIED, AMPLIFIED = 64, 3, 8
"""Side of such a crop in pixels, how many times larger it is shown, and how many times its difference is brightened."""
RECORD_SCHEMA = 1

STATUSES = {
    "prepared": "the graph is ready for the device's own library, and only the graph was executed here",
    "built": "it runs on the device that is named; not every gate was judged and passed there",
    "verified": "it ran on the device that is named: numbers and accuracy passed, and its latency was measured there",
}
"""What the words for an artefact's state mean."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One image whose answer changed between reference and candidate."""

    artifact: str
    id: str
    expected: str
    """The right answer, or empty where nobody knows."""
    reference: Mapping[str, Any]
    """``to_dict()`` of the reference's result."""
    candidate: Mapping[str, Any]
    reference_said: str
    candidate_said: str
    """The same in a few words."""
    pictures: tuple[str, ...] = ()
    """data: URIs: the image; or the reference's and the candidate's drawing of it; or, of images that were made, a crop of
    the reference's, of the candidate's, and their difference. Empty where it is not at hand."""


@dataclass(frozen=True, kw_only=True)
class ArtifactReport:
    """Everything found about one artefact."""

    name: str
    precision: str
    format: str
    findings: Sequence[Finding]
    stages: Sequence[Stage] = ()
    bytes: int = 0
    device: str = ""
    waived: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = ""
    """Name of the runtime that opened it."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """By runtime that would have been better, why it did not open it."""
    stand_in: str = ""
    """What executed it in place of its own runtime, and what that says; empty where its own did."""
    bisection: Mapping[str, Any] = field(default_factory=dict)
    """Where it parts from the fp32 graph, as ``zoo_export.bisect.Bisection.to_dict`` tells it; empty where nobody asked."""

    @property
    def status(self) -> str:
        """``prepared``, ``built`` or ``verified``: what this run proved of the artefact, see :data:`STATUSES`.

        Verified are those whose numbers and accuracy passed, on their own runtime, where no other gate said no or did
        not know, and whose latency was measured, be it judged or only told. Where no image is the right one, quality
        takes the place of accuracy, or pixels do where the user's images have no real ones to be compared with either.
        """
        verdicts = {f.gate: f.verdict for f in self._counting}
        if self.stand_in or not self.device:
            return "built" if verdicts.get("build") == PASS else "prepared"
        answers = next(gate for gate in ("accuracy", "quality", "pixels") if gate in verdicts or gate == "pixels")
        judged = all(verdicts.get(gate) == PASS for gate in ("numbers", answers))
        rest = {f.gate: f for f in self._counting if f.verdict != PASS}
        measured = bool(self._figures("latency"))
        told = set(rest) <= {"latency"} and all(f.verdict == SKIPPED for f in rest.values())
        return "verified" if judged and measured and told and all(self.stages) else "built"

    @property
    def verified_on(self) -> str:
        """The device, where the status is ``verified``."""
        return self.device if self.status == "verified" else ""

    @property
    def _counting(self) -> list[Finding]:
        """All findings but accuracy's word that it was not judged, where quality was or nobody could."""
        found = {f.gate for f in self.findings}
        instead = "quality" in found or ("pixels" in found and self._figures("accuracy").get("known") == 0)
        return [f for f in self.findings if f.gate != "accuracy" or f.verdict != SKIPPED or not instead]

    def _figures(self, gate: str) -> Mapping[str, Any]:
        return next((f.figures for f in self.findings if f.gate == gate), {})

    @property
    def verdict(self) -> str:
        """``fail`` where any gate or stage failed, else the weakest of the gates' verdicts."""
        verdicts = [f.verdict for f in self._counting]
        if FAIL in verdicts or not all(self.stages):
            return FAIL
        for weak in (INCONCLUSIVE, SKIPPED):
            if weak in verdicts:
                return weak
        return PASS if verdicts else SKIPPED

    @property
    def failures(self) -> list[str]:
        """One line for each failed gate or stage: ``numbers: …``."""
        failed = [f"{s.stage}: {s.message}" for s in self.stages if not s]
        return failed + [f"{f.gate}: {f.message}" for f in self.findings if f.verdict == FAIL]

    def gates(self) -> dict[str, str]:
        """By gate, its verdict: what the manifest keeps."""
        return {f.gate: f.verdict for f in self.findings}

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "precision": self.precision,
            "format": self.format,
            "verdict": self.verdict,
            "bytes": self.bytes,
            "runtime": self.runtime,
            "device": self.device,
            "status": self.status,
            "verified_on": self.verified_on,
            "stand_in": self.stand_in,
            "lost": dict(self.lost),
            "waived": self.waived,
            "findings": [f.to_dict() for f in self.findings],
            "selftest": [s.to_dict() for s in self.stages],
            "notes": dict(self.notes),
            "bisection": dict(self.bisection),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was compared, on what, and what came out. Truthy where nothing failed."""

    subject: str
    reference: str
    samples: str
    """What it was judged on: ``val split of photos (153 images)``."""
    artifacts: Sequence[ArtifactReport]
    machine: Mapping[str, Any]
    flips: Sequence[Flip] = ()
    statements: Sequence[str] = ()
    """Plain sentences that a reader must not miss: ``Accuracy was not judged …``."""
    bundle: Mapping[str, Any] = field(default_factory=dict)
    """Which bundle was judged: name, sha256 of the manifest and of each artefact; empty while it is being made."""

    @property
    def failed(self) -> list[ArtifactReport]:
        return [a for a in self.artifacts if a.verdict == FAIL and not a.waived]

    def __bool__(self) -> bool:
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "reference": self.reference,
            "samples": self.samples,
            "statements": list(self.statements),
            "artifacts": [a.to_dict() for a in self.artifacts],
            "flips": [
                {
                    "artifact": f.artifact,
                    "id": f.id,
                    "expected": f.expected,
                    "reference": dict(f.reference),
                    "candidate": dict(f.candidate),
                }
                for f in self.flips
            ],
            "machine": dict(self.machine),
            "bundle": dict(self.bundle),
        }

    def record(self) -> dict[str, Any]:
        """What a machine found about a bundle, for whoever keeps such records: figures, status and machine of each
        artefact, and which bundle it was. Neither images nor their names are in it. JSON-ready.
        """
        whole = self.to_dict()
        for key in ("flips", "subject"):
            del whole[key]
        for artifact in whole["artifacts"]:
            for key in ("notes", "bisection"):
                del artifact[key]
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        return {
            "record": "zoo verify",
            "schema": RECORD_SCHEMA,
            "made_by": f"edgezoo {__version__}",
            "at": now,
            **whole,
        }

    def write(self, folder: Path) -> Path:
        """Write ``parity.json`` and ``report.html``; returns the latter. Raises OutputError."""
        dump_json(folder / "parity.json", self.to_dict())
        write_text(folder / "report.html", render(self))
        return folder / "report.html"


def find_flips(
    candidate: Candidate,
    reference: Reference,
    samples: Samples,
    images: Sequence[Source],
    spec: ImageInput,
    limit: int = MAX_FLIPS,
) -> list[Flip]:
    """The samples that the two would answer differently, those first whose score differs most; with their pictures.

    Of images that were made, those first that differ most, ``MAX_CROPS`` at most, with the crops that changed most.
    """
    half = samples.half
    if not len(candidate.results) or len(candidate.results) != len(reference.results):
        return []
    if isinstance(half, PictureTask):
        return _crops(candidate, reference, samples, half, min(limit, MAX_CROPS))
    changed: list[int] = np.flatnonzero(~half.same_answer(candidate.results, reference.results)).tolist()
    targets = [samples.targets[i] for i in changed] if samples.targets is not None else []
    if targets and all(target is not None for target in targets):
        ours = half.sample_scores([candidate.results[i] for i in changed], targets)
        theirs = half.sample_scores([reference.results[i] for i in changed], targets)
        changed = [changed[i] for i in np.argsort(-np.abs(ours - theirs), kind="stable").tolist()]
    flips = []
    for index in changed[:limit]:
        told, expected = half.shown(candidate.results[index]), half.shown(reference.results[index])
        target = samples.targets[index] if samples.targets is not None else None
        flips.append(
            Flip(
                artifact=candidate.name,
                id=samples.ids[index],
                expected=samples.labels[target] if isinstance(target, (int, np.integer)) else "",
                reference=expected.to_dict(),
                candidate=told.to_dict(),
                reference_said=half.describe(expected),
                candidate_said=half.describe(told),
                pictures=_pictures(images[index], spec, half, expected, told),
            )
        )
    return flips


def _crops(candidate: Candidate, reference: Reference, samples: Samples, half: PictureTask, limit: int) -> list[Flip]:
    """The images that changed visibly, those first that differ most on average; no input is read."""
    pairs = zip(candidate.results, reference.results, strict=True)
    off = [
        float(apart(ours, theirs).mean()) if ours.pixels.shape == theirs.pixels.shape else -1.0
        for ours, theirs in pairs
    ]
    same = half.same_answer(candidate.results, reference.results)
    worst = [i for i in np.argsort(-np.asarray(off), kind="stable").tolist() if off[i] >= 0 and not same[i]]
    flips = []
    for index in worst[:limit]:
        ours, theirs = candidate.results[index], reference.results[index]
        target = samples.targets[index] if samples.targets is not None else None
        scores = ["", ""]
        if target is not None:
            judged = half.sample_scores([theirs, ours], [target, target]).tolist()
            scores = [f", {half.score_name} {said(half, score)}" for score in judged]
        difference = apart(ours, theirs)
        left, top, right, bottom = changed_most(difference)
        parts = [v[top:bottom, left:right] for v in (theirs.pixels, ours.pixels, difference)]
        parts[2] = np.minimum(parts[2].astype(np.uint16) * AMPLIFIED, 255).astype(np.uint8)
        flips.append(
            Flip(
                artifact=candidate.name,
                id=samples.ids[index],
                expected="",
                reference=theirs.to_dict(),
                candidate=ours.to_dict(),
                reference_said=half.describe(theirs) + scores[0],
                candidate_said=f"{off[index]:.2f} of 255 apart on average, {int(difference.max())} at most, "
                f"PSNR {psnr(ours.pixels, theirs.pixels):.1f} dB{scores[1]}; shown from {left}, {top} on",
                pictures=tuple(_magnified(part) for part in parts),
            )
        )
    return flips


def changed_most(difference: np.ndarray, side: int = CROP) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the part of ``side`` pixels, or of the whole where that is smaller, whose mean of the
    (H, W, C) differences is the largest."""
    height, width = difference.shape[:2]
    high, wide = min(side, height), min(side, width)
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = difference.astype(np.float64).sum(axis=2).cumsum(axis=0).cumsum(axis=1)
    windows = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    top, left = (int(at) for at in np.unravel_index(int(windows.argmax()), windows.shape))
    return left, top, left + wide, top + high


def _magnified(pixels: np.ndarray) -> str:
    """A data: URI without loss, each pixel ``MAGNIFIED`` pixels wide."""
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    image = image.resize((image.width * MAGNIFIED, image.height * MAGNIFIED), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pictures(source: Source, spec: ImageInput, half: TaskHalf, reference: Any, candidate: Any) -> tuple[str, ...]:
    """The image alone for a task of labels; else what the reference and the candidate draw on it."""
    try:
        image = viewable(read_image(source, spec))
    except ImageError:
        return ()
    if half.draws_on_image:
        return (_thumbnail(half.draw(image, reference), 360), _thumbnail(half.draw(image, candidate), 360))
    return (_thumbnail(image, 112),)


def _thumbnail(image: Image.Image, side: int) -> str:
    """A data: URI of about ``side`` pixels."""
    image = image.convert("RGB")
    if min(image.size) < side:
        image = image.resize((side, side * image.height // image.width or 1), Image.Resampling.NEAREST)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


# -- HTML ------------------------------------------------------------------------------------------------------

_STYLE = """
:root{color-scheme:light dark;--ok:#2e7d32;--bad:#c62828;--mid:#b26a00;--line:#8884}
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;width:100%;margin:.6rem 0}td,th{padding:.3rem .6rem;border-bottom:1px solid var(--line);
text-align:left;vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.v{font-weight:600;white-space:nowrap}.pass{color:var(--ok)}.fail{color:var(--bad)}
.inconclusive,.not-judged{color:var(--mid)}.say{border-left:4px solid var(--mid);padding:.3rem .8rem;margin:.6rem 0}
.flips{display:flex;flex-wrap:wrap;gap:.8rem}.flips figure{margin:0;width:12rem;font-size:.85rem;overflow-wrap:anywhere}
.flips img{width:112px;image-rendering:auto;display:block}.flips .wide{width:47rem}
.flips .wide img{width:22.5rem;display:inline-block;margin-right:.5rem}
.flips .crops{width:100%}.flips .crops img{width:auto;max-width:32%;display:inline-block;margin-right:.5rem;image-rendering:pixelated}
.dim{opacity:.7}svg text{fill:currentColor;font:11px sans-serif}
dl{display:grid;grid-template-columns:max-content auto;gap:.1rem .8rem;margin:.6rem 0}dt{font-weight:600}dd{margin:0}
.bar{display:inline-block;height:.7em;background:#4a78b5;vertical-align:middle;min-width:1px}.bar.int8{background:#2e7d32}
.bar.fp16,.bar.bf16{background:#b26a00}.bar.fp32{background:#8886}.off{background:#c6282822}summary{cursor:pointer}
.long{overflow-wrap:anywhere}
"""


def render(report: Report) -> str:
    """The report as one HTML page without references to anything outside it."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Parity of {escape(report.subject)}</title><style>{_STYLE}</style>",
        f"<h1>Parity of {escape(report.subject)}</h1>",
        f"<p class=dim>{escape(report.reference)} is the reference; judged on {escape(report.samples)}.</p>",
    ]
    parts += [f"<p class=say>{escape(text)}</p>" for text in report.statements]
    parts.append(_summary(report.artifacts))
    parts.append(f"<dl>{''.join(f'<dt>{word}</dt><dd>{escape(text)}</dd>' for word, text in STATUSES.items())}</dl>")
    for artifact in report.artifacts:
        parts.append(_section(artifact))
    if report.flips:
        parts.append(f"<h2>Images whose answer changed ({len(report.flips)} shown)</h2>")
        if any(len(flip.pictures) == 3 for flip in report.flips):
            parts.append(
                f"<p class=dim>Of each image that differs by more than {NOTICED} of 255 somewhere, those first that differ most: "
                f"the {CROP} x {CROP} pixels that changed most, {MAGNIFIED} times as large. From left to right the reference, the "
                f"candidate, and how far they are apart, {AMPLIFIED} times as bright.</p>"
            )
        parts.append("<div class=flips>")
        parts += [_flip(flip) for flip in report.flips]
        parts.append("</div>")
    parts.append("<h2>Machine</h2><table>")
    for key, value in report.machine.items():
        parts.append(f"<tr><th>{escape(str(key))}<td>{escape(_plain(value))}")
    parts.append("</table>")
    return "\n".join(parts) + "\n"


def _plain(value: Any) -> str:
    """A JSON value in a line: ``edgezoo 0.1.0, numpy 2.4.0``."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_plain(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _verdict(word: str) -> str:
    return f"<span class='v {word.replace(' ', '-')}'>{escape(word)}</span>"


def _summary(artifacts: Sequence[ArtifactReport]) -> str:
    gates = list(dict.fromkeys(f.gate for a in artifacts for f in a.findings))
    rows = [
        "<table><tr><th>artefact<th class=n>size" + "".join(f"<th>{escape(g)}" for g in gates) + "<th>verdict<th>status"
    ]
    for a in artifacts:
        verdicts = a.gates()
        cells = "".join(f"<td>{_verdict(verdicts[g]) if g in verdicts else ''}" for g in gates)
        waived = f"<br>waived: {escape(a.waived)}" if a.waived else ""
        rows.append(
            f"<tr><td>{escape(a.name)}<td class=n>{_size(a.bytes)}{cells}<td>{_verdict(a.verdict)}{waived}<td>{a.status}"
        )
    return "".join(rows) + "</table>"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


_TOLD_APART = ("layers", "plan", "lint", "calibration_concerns")
"""Notes that have a table of their own."""


def _section(artifact: ArtifactReport) -> str:
    parts = [f"<h2>{escape(artifact.name)}</h2>"]
    if artifact.device:
        parts.append(f"<p class=dim>{escape(artifact.status)}; opened on {escape(artifact.device)}</p>")
    if artifact.stand_in:
        parts.append(f"<p class=say>{escape(artifact.stand_in[:1].upper() + artifact.stand_in[1:])}.</p>")
    if artifact.lost:
        rows = "".join(f"<tr><td>{escape(k)}<td>{escape(v)}" for k, v in artifact.lost.items())
        parts.append(
            f"<details><summary>Runtimes that did not open it</summary><table><tr><th>runtime<th>why not{rows}</table></details>"
        )
    parts.append("<table>")
    for stage in artifact.stages:
        if not stage:
            parts.append(f"<tr><th>self-test: {escape(stage.stage)}<td>{_verdict(FAIL)}<td>{escape(stage.message)}")
    for finding in artifact.findings:
        parts.append(f"<tr><th>{escape(finding.gate)}<td>{_verdict(finding.verdict)}<td>{escape(finding.message)}")
    parts.append("</table>")
    for finding in artifact.findings:
        drawer = {"numbers": _numbers, "accuracy": _accuracy, "quality": _quality, "latency": _latency}.get(
            finding.gate
        )
        if drawer and finding.figures:
            parts.append(drawer(finding.figures))
    if artifact.bisection:
        parts.append(_bisection(artifact.bisection))
    notes = artifact.notes
    parts += [_concerns(notes.get("calibration_concerns")), _lint(notes.get("lint"))]
    parts += [_layers(notes.get("layers")), _plan(notes.get("plan"))]
    rest = {key: value for key, value in notes.items() if key not in _TOLD_APART}
    if rest:
        text = escape(json.dumps(rest, indent=1, ensure_ascii=False, default=str))
        parts.append(f"<details><summary>How it was made</summary><pre>{text}</pre></details>")
    return "".join(parts)


def _rows(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list in the notes, which an exporter of anybody's may have written."""
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, (list, tuple)) else []


def _cell(value: Any) -> str:
    return f"<td>{'-' if value in (None, '') else escape(str(value))}"


def _concerns(value: Any) -> str:
    """What was found wrong with the calibration images."""
    rows = _rows(value)
    if not rows:
        return ""
    cells = "".join(f"<tr>{_cell(r.get('severity'))}{_cell(r.get('message'))}" for r in rows)
    return f"<h3>The calibration set</h3><table>{cells}</table>"


def _lint(value: Any) -> str:
    """The linter's findings, folded away."""
    rows = _rows(value)
    if not rows:
        return ""
    cells = "".join(
        f"<tr>{_cell(r.get('severity'))}{_cell(r.get('rule'))}<td class=long>{escape(str(r.get('module') or r.get('node') or '-'))}"
        f"<td>{escape(str(r.get('what', '')))}<td>{escape(str(r.get('cure', '')))}"
        for r in rows
    )
    errors = sum(r.get("severity") == "error" for r in rows)
    told = f"{len(rows)} remark{'s' if len(rows) > 1 else ''} of the linter" + (f", {errors} errors" if errors else "")
    return f"<details><summary>{told}</summary><table><tr><th>severity<th>rule<th>where<th>what<th>cure{cells}</table></details>"


def _layers(value: Any) -> str:
    """Which precision was asked for, which the graph has, and which the engine; those that differ are marked."""
    rows = _rows(value)
    if not rows:
        return ""
    columns = ["requested", "graph", "parsed", "built"]
    columns = [c for c in columns if c in ("requested", "graph") or any(r.get(c) for r in rows)]
    cells = []
    for r in rows:
        off = " class=off" if _differs(r) else ""
        where = r.get("module") or r.get("layer") or "-"
        cells.append(f"<tr{off}><td class=long title='{escape(str(r.get('layer', '')))}'>{escape(str(where))}")
        cells += [_cell(r.get(c)) for c in columns]
    kinds = Counter(str(r.get("built") or r.get("graph") or "-") for r in rows)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    marked = sum(map(_differs, rows))
    differ = f"; {marked} are not what was asked for throughout" if marked else ""
    heads = "".join(f"<th>{c}" for c in columns)
    return (
        f"<details><summary>Precision of the {len(rows)} layers: {escape(told)}{differ}</summary>"
        f"<table><tr><th>layer{heads}{''.join(cells)}</table></details>"
    )


def _differs(layer: Mapping[str, Any]) -> bool:
    """Whether a layer is not what was asked for, in the graph or after it. A parser shows the type that a layer gives
    out, which for int8 is a float; of a mixed plan anything was asked."""
    asked, graph, parsed, built = (layer.get(k) for k in ("requested", "graph", "parsed", "built"))
    pairs = [(asked if asked != "mixed" else graph, graph), (graph, built)]
    if graph in ("fp16", "bf16"):
        pairs.append((graph, parsed))
    return any(a and b and a != b for a, b in pairs)


def _plan(value: Any) -> str:
    """The plan of a mixed artefact: what each layer computes in, its share of the work, and what int8 would do to it."""
    rows = _rows(value.get("layers")) if isinstance(value, Mapping) else _rows(value)
    if not rows:
        return ""
    cells = []
    for r in rows:
        precision, share, noise = str(r.get("precision", "")), r.get("macs_share"), r.get("sqnr_db")
        bar = ""
        if isinstance(share, (int, float)):
            bar = f"<span class='bar {escape(precision)}' style='width:{min(100.0, 100 * share):.1f}%'></span>"
        cells.append(
            f"<tr><td class=long>{escape(str(r.get('module') or r.get('layer') or '-'))}{_cell(precision)}"
            f"<td class=n>{'-' if share is None else f'{100 * share:.1f} %'}<td style='width:30%'>{bar}"
            f"<td class=n>{_number(noise)}"
        )
    facts = {k: v for k, v in value.items() if k != "layers"} if isinstance(value, Mapping) else {}
    told = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(_plain(v))}</dd>" for k, v in facts.items())
    return (
        f"<details open><summary>The plan, layer by layer</summary>{f'<dl>{told}</dl>' if told else ''}"
        "<table><tr><th>layer<th>precision<th class=n>share of the work<th>"
        f"<th class=n>signal to noise of int8, dB{''.join(cells)}</table></details>"
    )


_DECADES = (-7, 1)
"""The error of a layer is drawn from 1e-7 to 10 times its RMS."""


def _bisection(found: Mapping[str, Any]) -> str:
    """Each layer's error along the network, and the layers that add most by themselves."""
    layers = _rows(found.get("layers"))
    low, high = _DECADES
    width, height = 900, 170

    def y(share: Any) -> float:
        power = high if share is None else math.log10(share) if share > 0 else low
        return 10 + height * (high - min(high, max(low, power))) / (high - low)

    def x(index: int) -> float:
        return 40 + width * (index + 0.5) / max(1, len(layers))

    marks = "".join(
        f"<text x=0 y={y(10.0**d) + 4:.0f}>1e{d}</text>"
        f"<line x1=40 x2={40 + width} y1={y(10.0**d):.1f} y2={y(10.0**d):.1f} stroke=currentColor opacity=.12 />"
        for d in range(low, high + 1, 2)
    )
    line = " ".join(f"{x(i):.1f},{y(r.get('error')):.1f}" for i, r in enumerate(layers))
    dots = "".join(
        f"<circle cx={x(i):.1f} cy={y(r.get('error')):.1f} r=3 fill=#4a78b5><title>{escape(_where(r))}: "
        f"{_share(r.get('error'))}</title></circle>"
        f"<rect x={x(i) - 1:.1f} width=2 y={y(r.get('added')):.1f} height={10 + height - y(r.get('added')):.1f} fill=#4a78b5 opacity=.3 />"
        for i, r in enumerate(layers)
    )
    bound = y(found.get("bound"))
    rows = "".join(
        f"<tr><td class=long>{escape(_where(r))}<td class=n>{_share(r.get('added'))}<td class=n>{_share(r.get('error'))}"
        for r in _rows(found.get("worst"))
    )
    return (
        f"<h3>Where it parts from {escape(str(found.get('reference', 'the fp32 graph')))}</h3>"
        f"<p class=say>{escape(str(found.get('message', '')))}</p>"
        f"<figure><svg width={60 + width} height={height + 25} role=img>{marks}"
        f"<line x1=40 x2={40 + width} y1={bound:.1f} y2={bound:.1f} stroke=#c62828 stroke-dasharray='4 3' />"
        f"<polyline points='{line}' fill=none stroke=#4a78b5 />{dots}</svg>"
        "<figcaption class=dim>error of each layer as a share of its RMS, in the order of the network (line), and what the "
        "layer adds by itself (bars); the dashed line is what is allowed</figcaption></figure>"
        f"<table><tr><th>layers that add most<th class=n>by itself<th class=n>in all{rows}</table>"
    )


def _where(layer: Mapping[str, Any]) -> str:
    return str(layer.get("module") or layer.get("node") or "-")


def _share(value: Any) -> str:
    return "not finite" if value is None else f"{100 * value:.3g} %"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _numbers(figures: Mapping[str, Any]) -> str:
    columns = {
        "max_abs": "max |error|",
        "mean_abs": "mean |error|",
        "rms_share": "RMS / spread",
        "units": "units of float32 error",
        "cosine": "cosine",
        "psnr_db": "PSNR, dB",
        "argmax_agreement": "same arg-max",
    }
    columns = {key: title for key, title in columns.items() if any(key in found for found in figures.values())}
    rows = ["<table><tr><th>output" + "".join(f"<th class=n>{t}" for t in columns.values())]
    plots = []
    for name, found in figures.items():
        rows.append(f"<tr><td>{escape(name)}" + "".join(f"<td class=n>{_number(found.get(k))}" for k in columns))
        if found.get("histogram", {}).get("counts"):
            plots.append(_histogram(name, found["histogram"]))
    return "".join(rows) + "</table>" + "".join(plots)


def _histogram(name: str, histogram: Mapping[str, Any]) -> str:
    counts = histogram["counts"]
    top, width = max(counts), min(34, 900 // len(counts))
    bars = []
    for i, count in enumerate(counts):
        height = 90 * count / top
        x = 10 + i * width
        low = histogram["from_log10"] + i * histogram["step"]
        bars.append(
            f"<rect x={x} y={100 - height:.1f} width={width - 3} height={height:.1f} fill=#4a78b5><title>{count}</title></rect>"
        )
        if low == int(low):
            bars.append(f"<text x={x} y=115>1e{low:g}</text>")
    zeros = f", {histogram['zeros']} exactly equal" if histogram["zeros"] else ""
    return (
        f"<figure><svg width={20 + width * len(counts)} height=125 role=img>{''.join(bars)}</svg>"
        f"<figcaption class=dim>|error| of {escape(name)}: values a half-decade{zeros}</figcaption></figure>"
    )


def _accuracy(figures: Mapping[str, Any]) -> str:
    if "interval_95_one_sided" not in figures:  # not judged
        return ""
    low, high = figures["interval_95_one_sided"]
    margin, unit = figures["margin"], figures.get("unit", "%")
    points, rim = ("points", 0.01) if unit == "%" else (unit, 0.001)
    left, right = min(low, margin) - rim, max(high, 0.0) + rim

    def x(value: float) -> float:
        return float(10 + 480 * (value - left) / (right - left))

    return (
        f"<figure><svg width=500 height=60 role=img><line x1=10 x2=490 y1=30 y2=30 stroke=currentColor opacity=.3 />"
        f"<line x1={x(margin):.1f} x2={x(margin):.1f} y1=8 y2=46 stroke=#c62828 stroke-dasharray='4 3' />"
        f"<line x1={x(0):.1f} x2={x(0):.1f} y1=14 y2=46 stroke=currentColor opacity=.5 />"
        f"<line x1={x(low):.1f} x2={x(high):.1f} y1=30 y2=30 stroke=#4a78b5 stroke-width=5 />"
        f"<circle cx={x(figures['difference']):.1f} cy=30 r=6 fill=#4a78b5 />"
        f"<text x={x(margin):.1f} y=58>{100 * margin:+.{1 if unit == '%' else 2}f}</text><text x={x(0):.1f} y=58>0</text></svg>"
        f"<figcaption class=dim>difference in {escape(figures['metric'])}, {escape(points)}, with its interval; "
        f"the dashed line is the largest drop allowed. {figures['worse']} images answered worse, "
        f"{figures['better']} better.</figcaption></figure>{_whole_set(figures)}"
    )


def _whole_set(figures: Mapping[str, Any]) -> str:
    """The set's own figure of both, and how far their results are apart; nothing where the pairs say it all."""
    whole = figures.get("whole_set")
    if not whole:
        return ""
    rows = [("reference", whole["reference"]), ("candidate", whole["candidate"])]
    cells = "".join(
        f"<tr><th>{escape(whole['metric'])}, {who}<td class=n>{100 * v:.2f} {escape(figures.get('unit', '%'))}"
        for who, v in rows
    )
    cells += "".join(f"<tr><th>{escape(k)}<td class=n>{_number(v)}" for k, v in figures["differences"].items())
    return f"<table>{cells}</table>"


def _quality(figures: Mapping[str, Any]) -> str:
    """How far both networks' images are from real ones, as sets."""
    rows = [("reference", figures.get("reference")), ("candidate", figures.get("candidate"))]
    known = [(who, found) for who, found in rows if isinstance(found, Mapping)]
    if not known:
        return ""
    names = list(dict.fromkeys(name for _, found in known for name in found))
    cells = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}"
        + "".join(f"<td class=n>{escape(_plain(found.get(name, '-')))}" for _, found in known)
        for name in names
    )
    return f"<table><tr><th>{''.join(f'<th class=n>{who}' for who, _ in known)}{cells}</table>"


def _latency(figures: Mapping[str, Any]) -> str:
    rows = [f"<table><tr><th>batch {figures['batch']}<th class=n>p50, ms<th class=n>p90<th class=n>p99<th>on"]
    lines = [("candidate", figures["candidate_ms"], figures["candidate_device"])]
    if "device_ms" in figures:
        lines.append(("the device alone, by its events", figures["device_ms"], figures["candidate_device"]))
    lines.append(("reference", figures["reference_ms"], figures["reference_device"]))
    for who, ms, device in lines:
        cells = "".join(f"<td class=n>{ms[p]:.3g}" for p in ("p50", "p90", "p99"))
        rows.append(f"<tr><td>{who}{cells}<td>{escape(device)}")
    low, high = figures["interval_95"]
    clocks = f" Clocks: {escape(_plain(figures['clocks']))}." if figures.get("clocks") else ""
    return (
        "".join(rows) + f"</table><p class=dim>x{figures['ratio_p50']:.3f} (95 %: {low:.3f} to {high:.3f}), "
        f"{figures['rounds']} rounds in turn after {figures.get('warmup', 3)} calls of warm-up, "
        f"{figures.get('threads', 'all')} CPU threads.{clocks}</p>"
    )


def _flip(flip: Flip) -> str:
    picture = "".join(f"<img src='{uri}' alt=''>" for uri in flip.pictures)
    wide = {2: " class=wide", 3: " class=crops"}.get(len(flip.pictures), "")
    expected = f"<br>right: {escape(flip.expected)}" if flip.expected else ""
    return (
        f"<figure{wide}>{picture}<figcaption><b>{escape(flip.artifact)}</b> {escape(flip.id)}<br>"
        f"reference: {escape(flip.reference_said)}<br>candidate: {escape(flip.candidate_said)}{expected}</figcaption></figure>"
    )
