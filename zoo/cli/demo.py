"""``zoo demo``: the whole path on pictures that are at hand, each step a command that a person could type."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from .common import note, table

OLD, NEW = range(5), range(5, 10)
SEED = 7
VAL_SHARE = 0.4  # enough held-out images for the accuracy gate to reach a verdict

# The device side: nothing of training or export may be there, so the process itself says what it loaded.
DEVICE = """
import sys, zoo.runtime
model = zoo.runtime.load(sys.argv[1])
if sys.argv[2]:
    from PIL import Image
    result = model(sys.argv[2])
    result.draw(Image.open(sys.argv[2])).save(sys.argv[3])
else:
    result = model.generate(1, seed=7)[0]
heavy = sorted({"torch", "onnx", "timm", "lightning"} & set(sys.modules))
assert not heavy, heavy
print(f"{model.session.device}|{model.task.describe(result)}")
"""


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What a task's training left: the data, and the run to export."""

    data: Path
    run: Path


@click.command()
@click.option(
    "--task",
    type=click.Choice(["classify", "segment", "detect", "generate", "restore"]),
    default="classify",
    show_default=True,
    help="Digits; shapes to be outlined, or to be boxed; digits to be drawn; pictures to be enlarged.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("zoo-demo"),
    show_default=True,
    help="Folder to work in; made anew.",
)
@click.option("--quick", is_flag=True, help="Fewer epochs: to see that it works, not how well.")
def command(task: str, out: Path, quick: bool) -> None:
    """See the whole path: train, adapt, go to ONNX in fp32 and int8, be proved equal, packed, and run by a process
    without torch.

    classify: a LeNet learns the digits 0 to 4 (scikit-learn carries them), then 5 to 9. segment and detect: a small
    U-Net or YOLO learns, from random weights, to find discs, squares and triangles in pictures made on the spot.
    generate: a DCGAN learns to draw digits. restore: an SRResNet learns to make pictures twice as large.

    \b
    Examples:
      zoo demo
      zoo demo --task detect --out /tmp/demo
    """
    from ..errors import OutputError, ZooError
    from ..specs import resolve

    resolve("zoo.train.models:open_model", "zoo demo")
    marker = out / ".zoo-demo"
    if out.exists() and not marker.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} holds something that is not a demo: choose another --out")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    marker.touch()
    began = time.monotonic()
    learn = {"classify": _digits, "generate": _drawing, "restore": _enlarging}.get(task, partial(_shapes, task))
    made = learn(out, quick)
    bundle, packed = out / "bundle", out / f"{made.data.name}.zoo"
    _zoo("evaluate", made.run, "--data", made.data)
    _zoo("export", made.run, "--to", "onnx", "--precision", "fp32,int8", "--data", made.data, "--out", bundle)
    _zoo("pack", bundle, "--out", packed)
    _zoo("selftest", packed)

    from ..bundle import open_bundle
    from ..data import open_data

    held_out = open_data(made.data, task=task, val_share=VAL_SHARE, seed=SEED).val
    sample = held_out[len(held_out) // 2]
    photo, picture = str(sample.image), out / "prediction.png"
    what = f"held-out {sample.id} is read as"
    if task == "classify":
        what = f"a held-out {held_out.labels[sample.target]} is read as"
    elif task == "generate":
        photo, what = "", "a digit is drawn in"
        _zoo("run", packed, "--seed", "7", "--grid", "8x8", "--out", picture)
    elif task == "restore":
        from PIL import Image

        with Image.open(photo) as large:
            large.resize((large.width // 2, large.height // 2), Image.Resampling.BICUBIC).save(out / "small.png")
        photo, what = str(out / "small.png"), f"held-out {sample.id}, at half its size, is made"
    call = f'("{photo}")' if photo else ".generate(1, seed=7)"
    note(f"\n$ python -c 'import zoo.runtime; zoo.runtime.load(\"{packed}\"){call}'")
    done = subprocess.run(
        [sys.executable, "-c", DEVICE, str(packed), photo, str(picture)], capture_output=True, text=True
    )
    if done.returncode:
        raise ZooError(f"the device process failed: {done.stderr.strip().splitlines()[-1:]}")
    device, _, said = done.stdout.strip().partition("|")
    with open_bundle(packed) as opened:
        rows = []
        for artifact in opened.artifacts.values():
            size = opened.manifest["files"][artifact.file]["bytes"] / 1e3
            gates = ", ".join(f"{gate} {verdict}" for gate, verdict in artifact.gates.items())
            rows.append((artifact.name, f"{size:.0f}", artifact.status, gates))
    click.echo("")
    click.echo(table(rows, ("artefact", "kB", "status", "gates")))
    click.echo(f"\n{what} {said} on {device}, without torch")
    click.echo(f"report:  {bundle / 'report.html'}")
    click.echo(f"picture: {picture}")
    click.echo(f"bundle:  {packed} ({packed.stat().st_size / 1e3:.0f} kB), {time.monotonic() - began:.0f} s in all")


def _load_digits() -> Any:
    from ..errors import MissingPart

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingPart("scikit-learn, which carries the digits,", "pip install scikit-learn") from None
    return load_digits()


def _digits(out: Path, quick: bool) -> _Made:
    digits = _load_digits()
    old, new = out / "digits-0-4", out / "digits-5-9"
    _write_digits(digits.images, digits.target, old, OLD)
    _write_digits(digits.images, digits.target, new, NEW)
    note(f"wrote {len(digits.target)} digits to {old} and {new}")
    base, tuned = out / "base", out / "tuned"
    split = ["--val-share", str(VAL_SHARE), "--seed", str(SEED)]
    epochs = "4" if quick else "12"
    _zoo("finetune", "lenet5", "--weights", "none", "--data", old, "--out", base, "--epochs", epochs, *split)
    _zoo("finetune", base, "--data", new, "--out", tuned, "--epochs", epochs, "--lr", "0.005", *split)
    return _Made(data=new, run=tuned)


def _drawing(out: Path, quick: bool) -> _Made:
    data, run = out / "digits", out / "run"
    digits = _load_digits()
    _write_digits(digits.images, digits.target, data, range(10))
    note(f"wrote {len(digits.target)} digits to {data}")
    _zoo(
        "finetune", "dcgan", "--weights", "none", "--data", data, "--out", run, "--size", 16, "--option", "width=32",
        "--epochs", 2 if quick else 20, "--ema", 0.99, "--val-share", VAL_SHARE, "--seed", SEED,
    )  # fmt: skip
    return _Made(data=data, run=run)


def _enlarging(out: Path, quick: bool) -> _Made:
    from ..data.scenes import write_scenes

    data, run = out / "pictures", out / "run"
    count = 60 if quick else 200
    write_scenes(data, "restore", count)
    note(f"made {count} pictures of discs, squares and triangles in {data}")
    _zoo(
        "finetune", "srresnet", "--weights", "none", "--data", data, "--out", run, "--option", "width=16",
        "--option", "blocks=4", "--option", "ends=3", "--epochs", 1 if quick else 4, "--val-share", VAL_SHARE, "--seed", SEED,
    )  # fmt: skip
    return _Made(data=data, run=run)


def _shapes(task: str, out: Path, quick: bool) -> _Made:
    from ..data.scenes import write_scenes

    data, run = out / "shapes", out / "run"
    count = 160 if quick else 400
    write_scenes(data, task, count)
    note(f"made {count} pictures of discs, squares and triangles in {data}")
    network, side, epochs = ("unet", "96", (2, 10)) if task == "segment" else ("yolo", "160", (2, 16))
    _zoo("data", "inspect", data, "--task", task, "--grid", out / "data.png")
    _zoo(
        "finetune", network, "--weights", "none", "--data", data, "--out", run, "--size", side,
        "--epochs", epochs[0] if quick else epochs[1], "--val-share", VAL_SHARE, "--seed", SEED,
    )  # fmt: skip
    return _Made(data=data, run=run)


def _write_digits(images, targets, folder: Path, wanted: range) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        if target in wanted:
            place = folder / str(target)
            place.mkdir(parents=True, exist_ok=True)
            # the set counts ink in 0..16; images count in 0..255
            Image.fromarray((image * (255 / 16)).round().astype("uint8")).save(place / f"{index:04d}.png")


def _zoo(*args: object) -> None:
    """Run one zoo command as a person would, in a process of its own, and pass its exit code on."""
    words = [str(a) for a in args]
    note(f"\n$ zoo {shlex.join(words)}")
    code = subprocess.run([sys.executable, "-m", "zoo", *words]).returncode
    if code:
        raise click.exceptions.Exit(code)
