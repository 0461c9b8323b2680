"""`zoo run`: a bundle on images. What it needs is what a device has: numpy, Pillow and one inference library."""

from __future__ import annotations

import glob
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from PIL import Image

from ..data.naming import images_in
from ..errors import DataError, ImageError, OutputError
from ..files import new_folder, write_bytes
from ..inputs import read_image
from ..reading import viewable
from ..runtime import load
from .common import note, progress, table

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
@click.argument("images", nargs=-1)
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
@click.option(
    "--mask", default=None, type=click.Path(), help="Of inpainting: an image that is white where the hole is."
)
@click.option("--seed", default=None, type=click.IntRange(0), help="Of a generator: what is drawn.  [default: 0]")
@click.option("--count", default=None, type=click.IntRange(1), help="Of a generator: how many images.  [default: 1]")
@click.option("--grid", default=None, metavar="CxR", help="Of a generator: one picture of columns x rows.")
@click.option("--label", default=None, metavar="NAME", help="Of a generator that is told a class: which.")
@click.option("--compare", is_flag=True, help="Of networks that make images: before and after, side by side.")
@click.option(
    "--out",
    default=None,
    type=click.Path(),
    help="New folder for the images with the answer drawn on them, or for the images that were made; for one image also a file, like big.png.",
)
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
    mask: str | None,
    seed: int | None,
    count: int | None,
    grid: str | None,
    label: str | None,
    compare: bool,
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
      zoo run sharper.zoo small.jpg --out big.png
      zoo run holes.zoo photo.jpg --mask hole.png --out whole.png
      zoo run faces.zoo --seed 7 --grid 8x8 --out grid.png
    """
    decode = {} if confidence is None else {"confidence": confidence}
    paths = find_images(images)
    predictor = load(bundle, artifact=artifact, runtime=runtime, threads=threads, decode=decode, progress=note)
    ran = {"runtime": predictor.session.runtime, **({"lost": predictor.choice.lost} if predictor.choice.lost else {})}
    if predictor.artifact.format != "onnx" or predictor.choice.lost:
        note(f"{predictor.artifact.name} runs in {predictor.session.runtime} on {predictor.session.device}")
        for name, reason in predictor.choice.lost.items():
            note(f"  not in {name}: {reason}")
    drawn = {"--seed": seed, "--count": count, "--grid": grid, "--label": label}
    if predictor.input.color == "latent":
        wrong = {"--mask": mask, "--tile": tile, "--overlap": overlap, "--compare": compare or None}
        _refuse(f"{predictor.bundle.name} makes images of random numbers", wrong)
        if paths:
            raise click.UsageError(f"{predictor.bundle.name} makes images of random numbers: leave out {paths[0]}")
        return _generate(predictor, seed or 0, count, grid, label or "", out, as_json)
    _refuse(f"{predictor.bundle.name} takes images", drawn)
    if not paths:
        raise click.UsageError("give images: files, folders, or quoted globs")
    makes = hasattr(predictor.task, "compose")
    if not makes:
        _refuse(f"{predictor.bundle.name} makes no images", {"--mask": mask, "--compare": compare or None})
    if not predictor.task.settings.get("holes"):
        _refuse(f"{predictor.bundle.name} fills no holes", {"--mask": mask})
    if mask is not None and len(paths) > 1:
        raise click.UsageError("--mask is for one image")
    single = out is not None and _is_picture(out, len(paths))
    rows: list[list[Any]] = []
    bad = 0
    tiled = tile is not None or overlap is not None
    ask = partial(predictor.tiled, tile=tile, overlap=overlap) if tiled else predictor
    with (
        new_folder(Path(out)) if out and not single else nullcontext() as folder,
        _bar(len(paths), shown=not as_json) as advance,
    ):
        for index, path in enumerate(paths):
            advance(index)
            try:
                result = ask(path, mask=mask, progress=partial(advance, index))
            except ImageError as error:
                bad += 1
                note(f"{OVER if sys.stderr.isatty() else ''}zoo: error: {error}")
                if as_json:
                    click.echo(json.dumps({"image": str(path), "error": str(error)}, ensure_ascii=False))
                continue
            file = out
            if single:
                _write(Path(out or ""), _picture(path, predictor, result, compare))
            elif folder is not None:
                file = str(Path(out or "") / _draw(folder, path, predictor, result, compare))
            if as_json:
                answer = result.to_dict(top) if hasattr(result, "top") else result.to_dict()
                if hasattr(result, "to_coco"):
                    answer["annotations"] = result.to_coco(index)
                if file is not None:
                    answer["file"] = file
                click.echo(json.dumps({"image": str(path), **answer, **ran}, ensure_ascii=False))
            else:
                rows.append([path, *_cells(predictor.task, result, top)])
        advance(len(paths))
    if rows and makes:
        click.echo(table(rows, ["image", "made"]))
    elif rows:
        others = [""] * (max(map(len, rows)) - 3)
        click.echo(table([r + [""] * (3 + len(others) - len(r)) for r in rows], ["image", "answer", "share", *others]))
    if out:
        written = len(paths) - bad
        if written or not single:
            note(f"{written} picture{'s' if written != 1 else ''} in {out}")
    if bad:
        note(f"{bad} of {len(paths)} images could not be read")
    return 2 if bad else 0


@contextmanager
def _bar(images: int, shown: bool) -> Iterator[Callable[..., None]]:
    """Gives a function that takes how many images are done, and of the next one how many tiles of how many. The bar is
    for a terminal, and for what takes its time: several images, or several tiles."""
    with ExitStack() as stack:
        update: Callable[[int], None] | None = None

        def advance(image: int, done: int = 0, tiles: int = 1) -> None:
            nonlocal update
            if not shown or not sys.stderr.isatty() or (images == tiles == 1):
                return
            update = update or stack.enter_context(progress("running", 100 * images))
            update(100 * image + 100 * done // tiles)

        yield advance


OVER = "\r\x1b[K"
"""Puts a line over the bar, which is drawn again below it."""


def _cells(half: Any, result: Any, top: int) -> list[str]:
    if hasattr(result, "top"):
        best, *rest = result.top(top)
        return [best[0], f"{100 * best[1]:.1f}%", *(f"{label} {100 * score:.1f}%" for label, score in rest)]
    return [half.describe(result)] if hasattr(half, "compose") else [half.describe(result), ""]


_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
GAP = 2
"""Pixels between the pictures of a grid."""


def _refuse(why: str, options: Mapping[str, Any]) -> None:
    """Raises UsageError for an option that means nothing to the network."""
    given = next((name for name, value in options.items() if value is not None), "")
    if given:
        raise click.UsageError(f"{why}: leave out {given}")


def _generate(
    predictor: Predictor, seed: int, count: int | None, grid: str | None, label: str, out: str | None, as_json: bool
) -> int:
    """Images out of a seed: a grid in one file, or each in a file of its own."""
    shape = (1, 1)
    if grid is not None:
        match = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", grid)
        if match is None:
            raise click.UsageError(f"--grid {grid}: give columns x rows, as 8x8")
        if count is not None:
            raise click.UsageError("--grid says how many images there are: leave out --count")
        shape = (int(match[1]), int(match[2]))
    total = count or shape[0] * shape[1]
    if out is None:
        raise click.UsageError("--out FILE (or a new folder) is where the images go")
    single = _is_picture(out, total if grid is None else 1, "a folder, or --grid")
    if grid is not None and not single:
        raise click.UsageError(f"--out {out}: a grid is one picture: give a file, as grid.png")
    results = predictor.generate(total, seed=seed, label=label)
    files: list[str] = []
    if single:
        wide, high = results[0].width + GAP, results[0].height + GAP
        sheet = Image.new("RGB", (shape[0] * wide - GAP, shape[1] * high - GAP), "white")
        for at, result in enumerate(results):
            sheet.paste(result.image().convert("RGB"), (at % shape[0] * wide, at // shape[0] * high))
        _write(Path(out), sheet if grid is not None else results[0].image())
        files = [out] * total
    else:
        with new_folder(Path(out)) as folder:
            for at, result in enumerate(results):
                _write(folder / f"{seed}-{at:04d}.png", result.image())
        files = [str(Path(out) / f"{seed}-{at:04d}.png") for at in range(total)]
    for at, (result, file) in enumerate(zip(results, files, strict=True)):
        if as_json:
            click.echo(json.dumps({"seed": seed, "index": at, **result.to_dict(), "file": file}, ensure_ascii=False))
    if not as_json:
        click.echo(f"{total} image{'s' if total > 1 else ''} of seed {seed} in {out}")
    return 0


def _is_picture(out: str, count: int, many: str = "a folder") -> bool:
    """Whether ``out`` is a file for one picture, else it is a folder. Raises UsageError."""
    suffix = Path(out).suffix.lower()
    if suffix not in _PICTURES:
        if suffix in Image.registered_extensions():
            raise click.UsageError(f"--out {out}: pictures are written as {', '.join(_PICTURES)}")
        return False
    if count > 1:
        raise click.UsageError(f"--out {out}: {count} images need {many}")
    return True


def _picture(path: Path, predictor: Predictor, result: Any, compare: bool) -> Image.Image:
    """The image that was made, or before and after; of other networks the image with the answer drawn on it."""
    if hasattr(predictor.task, "compose") and not compare:
        made: Image.Image = result.image()
        return made
    return predictor.task.draw(viewable(read_image(path, predictor.input)), result)


def _write(path: Path, picture: Image.Image) -> None:
    """Beside, then renamed, in the format of the name's end. Raises OutputError."""
    buffer = io.BytesIO()
    try:
        picture.save(buffer, Image.registered_extensions()[path.suffix.lower()], quality=95)
    except (OSError, ValueError) as error:  # WebP ends at 16383 pixels, JPEG at 65500
        size = f"{picture.width}x{picture.height} pixels"
        raise OutputError(f"{path} cannot be written: {size}: {error}: choose .png or .tif") from None
    write_bytes(path, buffer.getvalue())


def _draw(folder: Path, path: Path, predictor: Predictor, result: Any, compare: bool) -> str:
    """Into a file of its own, whose name is returned."""
    name, count = f"{path.stem}.png", 1
    while (folder / name).exists():  # two folders may each hold a 1.jpg
        count += 1
        name = f"{path.stem}-{count}.png"
    _write(folder / name, _picture(path, predictor, result, compare))
    return name
