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

from ..files import write_bytes, write_text

__all__ = ["confusion_picture", "curves_picture", "write_report"]

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
    worst = sorted(classes, key=lambda c: c["F1"])[:50]
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts)
    per_class = "".join(
        f"<tr><th>{html.escape(c['label'])}</th><td>{c['images']}</td><td>{100 * c['precision']:.1f}</td>"
        f"<td>{100 * c['recall']:.1f}</td><td>{100 * c['F1']:.1f}</td></tr>"
        for c in worst
    )
    shown = "" if len(worst) == len(classes) else f" (the {len(worst)} worst of {len(classes)})"
    images = "".join(
        f'<h2>{html.escape(name.capitalize())}</h2><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in pictures.items()
    )
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
<h2>Classes{shown}</h2>
<table><tr><th>class</th><th>images</th><th>precision %</th><th>recall %</th><th>F1 %</th></tr>{per_class}</table>
</body></html>
""",
    )
    return path
