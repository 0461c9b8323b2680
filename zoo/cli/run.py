"""`zoo run`: a bundle on images. What it needs is what a device has: numpy, Pillow and one inference library."""

from __future__ import annotations

import glob
import io
import json
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data.naming import images_in
from ..errors import DataError, ImageError
from ..files import new_folder, write_bytes
from ..inputs import read_image
from ..reading import viewable
from ..runtime import load
from .common import note, table

if TYPE_CHECKING:
    from ..runtime.predictor import Predictor


def find_images(sources: Iterable[str]) -> list[Path]:
    """Files as they are, folders with all images below them, globs expanded. Raises DataError where nothing is found."""
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            images, _ = images_in(path)
            if not images:
                raise DataError(f"{source} holds no images")
            found += images
        elif not path.exists() and glob.has_magic(source):
            matches = sorted(Path(p) for p in glob.glob(source, recursive=True))
            if not matches:
                raise DataError(f"{source} matches no file")
            found += [p for p in matches if p.is_file()]
        else:
            found.append(path)
    return list(dict.fromkeys(found))


@click.command("run")
@click.argument("bundle", type=click.Path())
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--artifact", default=None, metavar="NAME", help="Which artefact (fp32, int8); by default the bundle's own choice."
)
@click.option("--runtime", default=None, metavar="NAME", help="Which runtime; by default the best that works here.")
@click.option("--top", default=3, type=click.IntRange(1), show_default=True, help="How many classes to tell.")
@click.option(
    "--confidence",
    default=None,
    type=click.FloatRange(0, 1),
    help="Of a detector: boxes below it are not told.  [default: the bundle's]",
)
@click.option("--tile", default=None, type=click.IntRange(32), help="Cut large images into tiles of this many pixels.")
@click.option(
    "--overlap",
    default=None,
    type=click.IntRange(0),
    help="How far tiles overlap, in pixels; alone: tiles of the network's size.",
)
@click.option("--out", default=None, type=click.Path(), help="New folder for the images with the answer drawn on them.")
@click.option("--threads", default=None, type=click.IntRange(1), help="CPU threads for one image.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object a line and image; boxes and masks also as COCO annotations.",
)
@click.pass_context
def command(
    ctx: click.Context,
    bundle: str,
    images: tuple[str, ...],
    artifact: str | None,
    runtime: str | None,
    top: int,
    confidence: float | None,
    tile: int | None,
    overlap: int | None,
    out: str | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Run BUNDLE (a folder or a .zoo file) on IMAGES: files, folders, or quoted globs.

    An image that cannot be read is told on standard error, the others are still answered, and the exit code is 2.
    So is the runtime of a TensorRT artefact, and why better ones were not taken; its engine is built where none is at
    hand, which may take minutes the first time.

    \b
    Examples:
      zoo run digits.zoo photo.jpg
      zoo run digits.zoo photos/ 'more/**/*.png' --json > answers.jsonl
      zoo run digits.zoo photos/ --artifact int8 --out drawn/
      zoo run cells.zoo photo.jpg --confidence 0.5 --out drawn/
      zoo run fields.zoo orthophoto.tif --tile 512 --overlap 64 --out drawn/
      zoo run digits.zoo photo.jpg --artifact tensorrt-fp16 --runtime tensorrt
    """
    paths = find_images(images)
    decode = {} if confidence is None else {"confidence": confidence}
    predictor = load(bundle, artifact=artifact, runtime=runtime, threads=threads, decode=decode, progress=note)
    ran = {"runtime": predictor.session.runtime, **({"lost": predictor.choice.lost} if predictor.choice.lost else {})}
    if predictor.artifact.format != "onnx" or predictor.choice.lost:
        note(f"{predictor.artifact.name} runs in {predictor.session.runtime} on {predictor.session.device}")
        for name, reason in predictor.choice.lost.items():
            note(f"  not in {name}: {reason}")
    rows: list[list[Any]] = []
    bad = 0
    with new_folder(Path(out)) if out else nullcontext() as folder:
        for index, path in enumerate(paths):
            try:
                if tile is None and overlap is None:
                    result = predictor(path)
                else:
                    result = predictor.tiled(path, tile=tile, overlap=overlap)
            except ImageError as error:
                bad += 1
                note(f"zoo: error: {error}")
                if as_json:
                    click.echo(json.dumps({"image": str(path), "error": str(error)}, ensure_ascii=False))
                continue
            if as_json:
                answer = result.to_dict(top) if hasattr(result, "top") else result.to_dict()
                if hasattr(result, "to_coco"):
                    answer["annotations"] = result.to_coco(index)
                click.echo(json.dumps({"image": str(path), **answer, **ran}, ensure_ascii=False))
            else:
                rows.append([path, *_cells(predictor.task, result, top)])
            if folder is not None:
                _draw(folder, path, predictor, result)
    if rows:
        others = [""] * (max(map(len, rows)) - 3)
        click.echo(table([r + [""] * (3 + len(others) - len(r)) for r in rows], ["image", "answer", "share", *others]))
    if out:
        note(f"{len(paths) - bad} picture{'s' if len(paths) - bad != 1 else ''} in {out}")
    if bad:
        note(f"{bad} of {len(paths)} images could not be read")
    return 2 if bad else 0


def _cells(half: Any, result: Any, top: int) -> list[str]:
    if hasattr(result, "top"):
        best, *rest = result.top(top)
        return [best[0], f"{100 * best[1]:.1f}%", *(f"{label} {100 * score:.1f}%" for label, score in rest)]
    return [half.describe(result), ""]


def _draw(folder: Path, path: Path, predictor: Predictor, result: Any) -> None:
    picture = predictor.task.draw(viewable(read_image(path, predictor.input)), result)
    name, count = f"{path.stem}.png", 1
    while (folder / name).exists():  # two folders may each hold a 1.jpg
        count += 1
        name = f"{path.stem}-{count}.png"
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes(folder / name, buffer.getvalue())
