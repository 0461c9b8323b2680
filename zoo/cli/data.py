"""`zoo data`: what a data set is and what is wrong with it, and the same data in another format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..errors import DataError
from .common import emit_json, json_option, note, progress, table

if TYPE_CHECKING:
    from ..data.inspecting import Inspection

_SHOWN = 20
"""Faults that are printed; --json has all."""

_task = click.option(
    "--task",
    type=click.Choice(["classify", "segment", "detect", "generate", "restore", "translate"]),
    help="What the data is for.  [default: by its format]",
)
_format = click.option("--format", default="", metavar="NAME", help="The data's format, where another is recognised.")


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function of how many are done and how many there are; the bar begins when it is first called."""
    with ExitStack() as stack:
        bars: list[Callable[[int], None]] = []

        def advance(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(progress(label, total)))
            bars[0](done)

        yield advance


@click.group()
def command() -> None:
    """Look at a data set before anything learns from it, or write it in another format.

    \b
    Examples:
      zoo data inspect photos/
      zoo data convert photos/ --to coco --out photos-coco/
    """


@command.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@_task
@_format
@click.option(
    "--grid", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="A picture of labelled samples."
)
@json_option
def inspect_command(path: Path, task: str | None, format: str, grid: Path | None, as_json: bool) -> None:
    """Say what PATH holds: format, splits, classes or pairs, sizes, and every fault.

    The exit code is 0 where training would take the data (without what is listed as faulty), 2 where it would not.

    \b
    Examples:
      zoo data inspect photos/
      zoo data inspect coco/ --task segment --grid samples.png
      zoo data inspect photos/ --json > photos.json
    """
    from ..data.inspecting import grid as draw
    from ..data.inspecting import inspect

    picture = _picture(grid)
    with _progress("reading") as advance:
        found = inspect(path, task=task or "", format=format, progress=advance)
    if as_json:
        emit_json(found.to_dict())
    else:
        click.echo("\n\n".join(_paragraphs(found)))
    if grid is not None:
        from ..files import beside

        sheet = draw(found)
        with beside(grid) as part:
            sheet.save(part, format=picture)
        note(f"{grid}: labelled samples")
    if found.refusal:
        raise DataError(found.refusal)


def _picture(grid: Path | None) -> str:
    """Pillow's name of the format that a file's suffix asks for."""
    known = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    if grid is not None and grid.suffix.lower() not in known:
        raise click.UsageError(f"--grid {grid}: name a .png or .jpg file")
    return known[grid.suffix.lower()] if grid is not None else ""


def _paragraphs(found: Inspection) -> list[str]:
    also = f" (it also looks like {', '.join(found.others)}: --format {found.others[0]})" if found.others else ""
    count = len(found.labels)
    said = [f"{found.root}: {found.format.name}, data for {found.task}{also}\n{found.format.summary}"]
    said.append(_splits(found))
    if count:
        said.append(_classes(found) if any(len(p.data) for p in found.parts.values()) else f"{count} classes")
    else:
        said.append(_unlabelled(found))
    if found.task == "detect":
        said.append(_boxes(found))
    sizes = found.sizes().most_common()
    shown = ", ".join(f"{w}x{h} ({n})" for (w, h), n in sizes[:5]) + (
        f", {len(sizes) - 5} other sizes" if sizes[5:] else ""
    )
    said.append(f"image sizes: {shown or 'none could be read'}")
    if found.notes:
        said.append("\n".join(f"note: {text}" for text in found.notes))
    faults = found.faults
    if faults:
        lines = [f"  {split + ': ' if split else ''}{fault.reason}" for split, fault in faults[:_SHOWN]]
        more = [f"  … and {len(faults) - _SHOWN} more: --json has all"] if faults[_SHOWN:] else []
        said.append("\n".join([f"{len(faults)} fault{'' if len(faults) == 1 else 's'}:", *lines, *more]))
    else:
        said.append("no faults")
    return said


def _splits(found: Inspection) -> str:
    rows: list[tuple[Any, ...]] = []
    for name, split in found.to_dict()["splits"].items():
        figures = [split["images"]]
        if found.task == "detect":
            figures += [sum(c["objects"] for c in split["classes"]), split["ignored"], split["background"]]
        rows.append((name, *figures, split["faults"]))
    columns = ["objects", "ignored", "without objects"] if found.task == "detect" else []
    return table(rows, ["split", "images", *columns, "faults"])


def _classes(found: Inspection) -> str:
    """A row a class: images and objects or pixels, in all splits together, and the share of each split."""
    parts = list(found.parts.values())
    counts = [part.counts for part in parts]
    images = np.sum([part.images for part in parts], axis=0)
    total = np.sum(counts, axis=0)
    what = {"detect": "objects", "segment": "pixels"}.get(found.task)
    several = len(parts) > 1
    rows = []
    for at, label in enumerate(found.labels):
        row: list[Any] = [label, int(images[at])] + ([int(total[at])] if what else [])
        row.append(_share(total[at], total.sum()))
        row += [_share(c[at], c.sum()) for c in counts] if several else []
        rows.append(row)
    names = [f"of {split}" for split in found.parts] if several else []
    return table(rows, ["class", "images", *([what] if what else []), "share", *names])


def _unlabelled(found: Inspection) -> str:
    """What images without labels come with: a partner, another domain, nothing."""
    from ..data.reading import plural

    parts = found.parts.values()
    ratios = sum((part.ratios for part in parts), Counter[int]())
    if ratios or any(part.alone for part in parts):
        shown = ", ".join(
            f"{plural(n, 'pair')} {'of equal size' if ratio == 1 else f'x{ratio}'}" for ratio, n in ratios.most_common()
        )
        return f"{shown or 'no pairs'}; {plural(sum(p.alone for p in parts), 'image')} without partner"
    if any(part.others for part in parts):
        return f"{plural(sum(len(part.data.others) for part in parts), 'image')} of the other domain"
    return "no labels"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _boxes(found: Inspection) -> str:
    boxes = found.boxes()
    said = f"boxes: {boxes['small']} small (below 32x32 px), {boxes['medium']} medium, {boxes['large']} large (from 96x96 px)"
    if "width" not in boxes:
        return said
    names = {
        "width": "width, px",
        "height": "height, px",
        "aspect": "width / height",
        "relative": "side / image's side",
    }
    rows = [(name, *(f"{v:g}" for v in boxes[key])) for key, name in names.items()]
    return said + "\n\n" + table(rows, ["boxes", "5 %", "median", "95 %"])


@command.command("convert")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--to", required=True, type=click.Choice(["coco", "yolo", "voc", "csv", "masks"]), help="The format to write."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@_task
@_format
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@json_option
def convert_command(
    path: Path, to: str, out: Path, task: str | None, format: str, overwrite: bool, as_json: bool
) -> None:
    """Write PATH in another format; images become hard links where they can, else copies.

    What the new format does not hold is said with its count.

    \b
    Examples:
      zoo data convert photos/ --to coco --out photos-coco/
      zoo data convert coco/ --to masks --out photos-masks/
      zoo data convert coco/ --task segment --to coco --out class-maps/
    """
    from ..data.converting import convert

    with _progress("writing") as advance:
        done = convert(
            path,
            to,
            out,
            task=task or "",
            format=format,
            overwrite=overwrite,
            progress=advance,
        )
    if as_json:
        images = {split or "whole": count for split, count in done.images.items()}
        emit_json(
            {
                "out": str(out),
                "from": done.source,
                "to": to,
                "task": done.task,
                "images": images,
                "losses": list(done.losses),
            }
        )
        return
    for loss in done.losses:
        note(f"warning: {loss}")
    shown = ", ".join(f"{split + ' ' if split else ''}{count}" for split, count in done.images.items())
    click.echo(f"{out}: {shown} images, {done.source} to {to}\nnext: zoo data inspect {out}")
