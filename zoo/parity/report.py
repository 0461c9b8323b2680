"""The parity report: parity.json for programs, report.html (self-contained) for people. numpy and Pillow only."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..files import dump_json, write_text
from ..inputs import Source, read_image
from ..reading import viewable
from ..specs import ImageInput
from ..tasks import TaskHalf
from . import FAIL, INCONCLUSIVE, PASS, SKIPPED, Candidate, Finding, Reference, Samples
from .golden import Stage

__all__ = ["ArtifactReport", "Flip", "Report", "find_flips"]

MAX_FLIPS = 24


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
    """data: URIs: the image; or the reference's and the candidate's drawing of it. Empty where it is not at hand."""


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

    @property
    def verdict(self) -> str:
        """``fail`` where any gate or stage failed, else the weakest of the gates' verdicts."""
        verdicts = [f.verdict for f in self.findings]
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
            "device": self.device,
            "waived": self.waived,
            "findings": [f.to_dict() for f in self.findings],
            "selftest": [s.to_dict() for s in self.stages],
            "notes": dict(self.notes),
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
    """The samples that the two would answer differently, those first whose score differs most; with their pictures."""
    half = samples.half
    if not len(candidate.results) or len(candidate.results) != len(reference.results):
        return []
    changed: list[int] = np.flatnonzero(~half.same_answer(candidate.results, reference.results)).tolist()
    if samples.targets is not None and changed:
        targets = [samples.targets[i] for i in changed]
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
.flips .wide img{width:22.5rem;display:inline-block;margin-right:.5rem}.dim{opacity:.7}svg text{fill:currentColor;font:11px sans-serif}
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
    for artifact in report.artifacts:
        parts.append(_section(artifact))
    if report.flips:
        parts.append(f"<h2>Images whose answer changed ({len(report.flips)} shown)</h2><div class=flips>")
        parts += [_flip(flip) for flip in report.flips]
        parts.append("</div>")
    parts.append("<h2>Machine</h2><table>")
    for key, value in report.machine.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        parts.append(f"<tr><th>{escape(str(key))}<td>{escape(shown)}")
    parts.append("</table>")
    return "\n".join(parts) + "\n"


def _verdict(word: str) -> str:
    return f"<span class='v {word.replace(' ', '-')}'>{escape(word)}</span>"


def _summary(artifacts: Sequence[ArtifactReport]) -> str:
    gates = list(dict.fromkeys(f.gate for a in artifacts for f in a.findings))
    rows = ["<table><tr><th>artefact<th class=n>size" + "".join(f"<th>{escape(g)}" for g in gates) + "<th>verdict"]
    for a in artifacts:
        verdicts = a.gates()
        cells = "".join(f"<td>{_verdict(verdicts[g]) if g in verdicts else ''}" for g in gates)
        waived = f"<br>waived: {escape(a.waived)}" if a.waived else ""
        rows.append(f"<tr><td>{escape(a.name)}<td class=n>{_size(a.bytes)}{cells}<td>{_verdict(a.verdict)}{waived}")
    return "".join(rows) + "</table>"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _section(artifact: ArtifactReport) -> str:
    parts = [f"<h2>{escape(artifact.name)}</h2><table>"]
    for stage in artifact.stages:
        if not stage:
            parts.append(f"<tr><th>self-test: {escape(stage.stage)}<td>{_verdict(FAIL)}<td>{escape(stage.message)}")
    for finding in artifact.findings:
        parts.append(f"<tr><th>{escape(finding.gate)}<td>{_verdict(finding.verdict)}<td>{escape(finding.message)}")
    parts.append("</table>")
    for finding in artifact.findings:
        drawer = {"numbers": _numbers, "accuracy": _accuracy, "latency": _latency}.get(finding.gate)
        if drawer and finding.figures:
            parts.append(drawer(finding.figures))
    if artifact.notes:
        notes = escape(json.dumps(dict(artifact.notes), indent=1, ensure_ascii=False, default=str))
        parts.append(f"<details><summary>How it was made</summary><pre>{notes}</pre></details>")
    return "".join(parts)


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
    low, high = figures["interval_95_one_sided"]
    margin = figures["margin"]
    left, right = min(low, margin) - 0.01, max(high, 0.0) + 0.01

    def x(value: float) -> float:
        return float(10 + 480 * (value - left) / (right - left))

    return (
        f"<figure><svg width=500 height=60 role=img><line x1=10 x2=490 y1=30 y2=30 stroke=currentColor opacity=.3 />"
        f"<line x1={x(margin):.1f} x2={x(margin):.1f} y1=8 y2=46 stroke=#c62828 stroke-dasharray='4 3' />"
        f"<line x1={x(0):.1f} x2={x(0):.1f} y1=14 y2=46 stroke=currentColor opacity=.5 />"
        f"<line x1={x(low):.1f} x2={x(high):.1f} y1=30 y2=30 stroke=#4a78b5 stroke-width=5 />"
        f"<circle cx={x(figures['difference']):.1f} cy=30 r=6 fill=#4a78b5 />"
        f"<text x={x(margin):.1f} y=58>{100 * margin:+.1f}</text><text x={x(0):.1f} y=58>0</text></svg>"
        f"<figcaption class=dim>difference in {escape(figures['metric'])}, points, with its interval; "
        f"the dashed line is the largest drop allowed. {figures['worse']} images answered worse, "
        f"{figures['better']} better.</figcaption></figure>{_whole_set(figures)}"
    )


def _whole_set(figures: Mapping[str, Any]) -> str:
    """The set's own figure of both, and how far their results are apart; nothing where the pairs say it all."""
    whole = figures.get("whole_set")
    if not whole:
        return ""
    rows = [("reference", whole["reference"]), ("candidate", whole["candidate"])]
    cells = "".join(f"<tr><th>{escape(whole['metric'])}, {who}<td class=n>{100 * v:.2f} %" for who, v in rows)
    cells += "".join(f"<tr><th>{escape(k)}<td class=n>{_number(v)}" for k, v in figures["differences"].items())
    return f"<table>{cells}</table>"


def _latency(figures: Mapping[str, Any]) -> str:
    rows = ["<table><tr><th>batch 1<th class=n>p50, ms<th class=n>p90<th class=n>p99<th>on"]
    for who in ("candidate", "reference"):
        ms = figures[f"{who}_ms"]
        cells = "".join(f"<td class=n>{ms[p]:.3g}" for p in ("p50", "p90", "p99"))
        rows.append(f"<tr><td>{who}{cells}<td>{escape(figures[f'{who}_device'])}")
    low, high = figures["interval_95"]
    return (
        "".join(rows) + f"</table><p class=dim>x{figures['ratio_p50']:.3f} (95 %: {low:.3f} to {high:.3f}), "
        f"{figures['rounds']} rounds in turn after a warm-up.</p>"
    )


def _flip(flip: Flip) -> str:
    picture = "".join(f"<img src='{uri}' alt=''>" for uri in flip.pictures)
    wide = " class=wide" if len(flip.pictures) > 1 else ""
    expected = f"<br>right: {escape(flip.expected)}" if flip.expected else ""
    return (
        f"<figure{wide}>{picture}<figcaption><b>{escape(flip.artifact)}</b> {escape(flip.id)}<br>"
        f"reference: {escape(flip.reference_said)}<br>candidate: {escape(flip.candidate_said)}{expected}</figcaption></figure>"
    )
