"""A run's pictures and its page: curves, confusion matrix, and what was trained on what."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..data import Dataset
from ..data.targets import Boxes
from ..errors import ImageError
from ..files import write_bytes, write_text
from ..inputs import ImageInput, read_image
from ..reading import viewable
from ..results import Detections, Segmentation
from .evaluate import Evaluation

__all__ = [
    "confusion_picture",
    "curves_picture",
    "grid",
    "match_picture",
    "png",
    "samples_picture",
    "write_report",
]

MANY = 30
"""Classes beyond which the confusion matrix shows no names and no counts."""


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def curves_picture(rows: Sequence[Mapping[str, Any]], metric_name: str) -> bytes:
    """Losses and metric over the epochs of all phases, as PNG."""
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    x = np.arange(1, len(rows) + 1)
    left.plot(x, [r["train_loss"] for r in rows], label="training", marker="." if len(rows) < 40 else None)
    left.plot(x, [r["val_loss"] for r in rows], label="validation", marker="." if len(rows) < 40 else None)
    left.set_ylabel("loss")
    left.legend(frameon=False)
    right.plot(x, [100 * r["val_metric"] for r in rows], color="tab:green", marker="." if len(rows) < 40 else None)
    right.set_ylabel(f"{metric_name} (validation), %")
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        for i in range(1, len(rows)):
            if rows[i]["phase"] != rows[i - 1]["phase"]:
                axis.axvline(i + 0.5, color="grey", linestyle=":")
                axis.text(
                    i + 0.5,
                    1.01,
                    f"{rows[i - 1]['phase']} | {rows[i]['phase']}",
                    transform=axis.get_xaxis_transform(),
                    ha="center",
                    fontsize=7,
                )
    figure.tight_layout()
    return _png(figure)


def match_picture(rows: Sequence[Mapping[str, Any]], players: Sequence[str], metric_name: str) -> bytes:
    """Of players: losses, gradient norms, what is told apart, and the metric over the epochs, as PNG."""
    figure = Figure(figsize=(11, 6))
    (losses, gradients), (apart, metric) = figure.subplots(2, 2)
    x = [row["epoch"] for row in rows]
    marker = "." if len(rows) < 40 else None
    for axis, what, name in (
        (losses, "loss", "loss"),
        (gradients, "gradient norm", "gradient"),
        (apart, "told apart, %", "accuracy"),
    ):
        for player in players:
            values = [row.get(f"{player}_{name}") for row in rows]
            known = [(e, v) for e, v in zip(x, values, strict=True) if v is not None]
            if known:
                share = 100 if name == "accuracy" else 1
                axis.plot([e for e, _ in known], [share * v for _, v in known], label=player, marker=marker)
                axis.legend(frameon=False)
        axis.set_ylabel(what)
    gradients.set_yscale("log")
    apart.set_visible(bool(apart.lines))  # of networks that have no judge
    decibels = metric_name.startswith("PSNR")  # which is kept in hundredths
    values = [row["val_metric"] * (100 if decibels else 1) for row in rows]
    metric.plot(x, values, color="tab:green", marker=marker)
    metric.set_ylabel(f"{metric_name} (validation)" + (", dB" if decibels else ""))
    for axis in (losses, gradients, apart, metric):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    return _png(figure)


def grid(pictures: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Pictures in rows of ``columns``, each in a cell of the largest one's size."""
    wide, high = (max(p.size[axis] for p in pictures) for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (wide + gap) - gap, rows * (high + gap) - gap), "white")
    for at, picture in enumerate(pictures):
        row, column = divmod(at, columns)
        sheet.paste(picture.convert("RGB"), (column * (wide + gap), row * (high + gap)))
    return sheet


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def confusion_picture(matrix: np.ndarray, labels: Sequence[str]) -> bytes:
    """(C, C) counts, row = actual class, as PNG; coloured by the share of the row."""
    count = len(labels)
    side = min(14.0, max(3.5, 1.6 + 0.42 * count))
    figure = Figure(figsize=(side, side))
    axis = figure.subplots()
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axis.set_xlabel("predicted")
    axis.set_ylabel("actual")
    if count <= MANY:
        axis.set_xticks(range(count), labels, rotation=90)
        axis.set_yticks(range(count), labels)
        for row in range(count):
            for column in range(count):
                if matrix[row, column]:
                    colour = "white" if share[row, column] > 0.5 else "black"
                    axis.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=colour)
    return _png(figure)


def samples_picture(data: Dataset, spec: ImageInput, labels: Sequence[str], seen: Evaluation, count: int = 8) -> bytes:
    """Truth and answer side by side, as PNG: the images answered worst, then some of the middle."""
    scores = seen.half.sample_scores(seen.results, seen.targets)
    order = np.argsort(scores, kind="stable")
    worst = order[: count // 2]
    rest = order[count // 2 :]
    chosen = [*worst, *rest[:: max(1, len(rest) // max(1, count - len(worst)))][: count - len(worst)]]
    tiles = []
    for index in chosen:
        sample = data[int(index)]
        try:
            image = viewable(read_image(sample.image, spec, sample.id))
        except ImageError:
            continue
        pair = [
            truth(sample.target, labels, image),
            seen.half.draw(image, seen.half.shown(seen.results[index])),
        ]
        tiles.append((f"{sample.id[-40:]}   {seen.half.score_name} {100 * scores[index]:.1f} %", pair))
    figure = Figure(figsize=(13, 3.6 * max(1, -(-len(tiles) // 2))))
    axes = figure.subplots(max(1, -(-len(tiles) // 2)), 4, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for at, (title, pair) in enumerate(tiles):
        row, column = divmod(at, 2)
        for side, (what, picture) in enumerate(zip(("truth", "answer"), pair, strict=True)):
            axis = axes[row][2 * column + side]
            axis.imshow(np.asarray(picture.convert("RGB")))
            axis.set_title(f"{what}: {title}" if side == 0 else what, fontsize=7)
    figure.tight_layout()
    return _png(figure)


def truth(target: Any, labels: Sequence[str], image: Image.Image) -> Image.Image:
    """A target, drawn as the answer of a perfect network would be."""
    names = tuple(labels)
    if isinstance(target, Boxes):
        ones = np.ones(len(target), np.float32)
        known = Detections(
            boxes=target.boxes,
            scores=ones,
            classes=target.classes,
            labels=names,
            width=image.width,
            height=image.height,
        )
        return known.draw(image, scores=False)
    return Segmentation(classes=target.read(), labels=names).draw(image)


def write_report(
    folder: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    classes: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, bytes],
) -> Path:
    """``report.html`` (self-contained) and the pictures beside it. Raises OutputError."""
    for name, data in pictures.items():
        write_bytes(folder / f"{name}.png", data)
    columns = list(classes[0])[1:] if classes else []
    deciding = next((c for c in ("F1", "IoU", "AP@50:95") if c in columns), "")
    worst = sorted(classes, key=lambda c: c[deciding] if deciding else 0)[:50]
    heads = "".join(f"<th>{html.escape(c)}{' %' if isinstance(classes[0][c], float) else ''}</th>" for c in columns)
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts)
    per_class = "".join(
        f"<tr><th>{html.escape(c['label'])}</th>"
        + "".join(f"<td>{100 * c[k]:.1f}</td>" if isinstance(c[k], float) else f"<td>{c[k]}</td>" for k in columns)
        + "</tr>"
        for c in worst
    )
    shown = "" if len(worst) == len(classes) else f" (the {len(worst)} worst of {len(classes)})"
    images = "".join(
        f'<h2>{html.escape(name.capitalize())}</h2><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in pictures.items()
    )
    table = f"<h2>Classes{shown}</h2>\n<table><tr><th>class</th>{heads}</tr>{per_class}</table>" if classes else ""
    path = folder / "report.html"
    write_text(
        path,
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }}
table {{ border-collapse: collapse }} th, td {{ text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #ddd; vertical-align: top }}
img {{ max-width: 100% }}
</style></head><body>
<h1>{html.escape(title)}</h1>
<table>{rows}</table>
{images}
{table}
</body></html>
""",
    )
    return path
