"""``zoo finetune``: adapt a network to a folder of images. torch is imported when it runs, not for its help."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ..errors import ZooError
from ..lookup import find_task
from ..registry import get_registry
from ..specs import Architecture, resolve
from ..tasks import told
from .common import (
    SIZE,
    build_option,
    complete_architecture,
    emit_json,
    features_option,
    json_option,
    note,
    parse_options,
    progress,
    table,
)


class _NumberOr(click.ParamType):
    """A positive number, or one word."""

    def __init__(self, number: type[int] | type[float], word: str) -> None:
        self.number, self.word = number, word
        self.name = f"{'N' if number is int else 'X'}|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == self.word or isinstance(value, self.number):
            return value
        try:
            found = self.number(value)
        except ValueError:
            self.fail(f"'{value}' is neither a number nor '{self.word}'", param, ctx)
        if not found > 0:
            self.fail(f"{value} is not above 0", param, ctx)
        return found


SHARE = click.FloatRange(0.0, 1.0, max_open=True)


@click.command()
@click.argument("source", metavar="ARCHITECTURE|CHECKPOINT", required=False, shell_complete=complete_architecture)
@click.option(
    "--data",
    type=click.Path(),
    help="Labelled images in any format that `zoo data inspect` recognises for the architecture's task.",
)
@click.option("--format", default="", metavar="NAME", help="The data's format, where it is not recognised by itself.")
@click.option(
    "--val-share",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Set aside for validation where the data has no val split.",
)
@click.option("--out", type=click.Path(), help="The run's folder.  [default: runs/ARCHITECTURE]")
@click.option(
    "--weights",
    default="",
    metavar="pretrained|none|TAG|FILE",
    help="Weights to start from.  [default: pretrained; none where nobody published any]",
)
@click.option(
    "--channels", type=click.IntRange(1, 64), help="Input channels; the first layer is adapted and keeps its weights."
)
@click.option(
    "--pixel",
    default="",
    type=click.Choice(["", "uint8", "uint16", "float32"]),
    help="Type in which images are kept: uint16 for 16 bits, float32 for measurements.  [default: uint8]",
)
@click.option("--size", type=SIZE, help="Input height and width in pixels.")
@build_option
@click.option(
    "--epochs",
    type=click.IntRange(0),
    help="Epochs of the whole network.  [default: classify 5, segment 20, detect 60; more from scratch]",
)
@click.option(
    "--head-epochs", type=click.IntRange(0), help="Epochs of a new head before that, on cached features.  [default: 30]"
)
@click.option(
    "--batch-size",
    metavar="N|auto",
    type=_NumberOr(int, "auto"),
    help="auto: what fits in memory.  [default: classify 16, 32 from 1000 images on, 128 from 10 000; others 8]",
)
@click.option(
    "--lr",
    metavar="X|auto",
    type=_NumberOr(float, "auto"),
    help="Learning rate; auto: by a range test.  [default: classify 0.0001, from scratch 0.002; others 0.001]",
)
@click.option(
    "--lr-decay",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Each deeper group of layers learns this much slower.  [default: classify 0.5, others 0.7]",
)
@click.option("--weight-decay", type=click.FloatRange(0.0), help="[default: classify 0.05, segment 0.01, detect 0.03]")
@click.option(
    "--loss",
    default="",
    metavar="NAME",
    help="Of segmentation: ce+dice, focal, jaccard, …; of networks that make images: hinge, wgan-gp, l1+perceptual, …",
)
@click.option(
    "--loss-weight",
    "loss_weights",
    multiple=True,
    metavar="TERM=X",
    help="Of networks that make images: what a term of the loss weighs, as l1=10.",
)
@click.option("--patch", type=click.IntRange(4), help="Of restoration: side of training patches, in input pixels.")
@click.option(
    "--degrade",
    default="",
    metavar="RECIPE",
    help="Of restoration: how good images are damaged, as bicubic:2 or blur:0.2-2+noise:5+jpeg:60 or holes.",
)
@click.option("--style", default="", type=click.Path(), metavar="FILE", help="Of style transfer: the picture.")
@click.option("--perceptual", default="", metavar="NAME[:FILE]", help="Network of perceptual losses.  [default: vgg16]")
@features_option
@click.option(
    "--diffaugment",
    default="",
    metavar="POLICY",
    help="What a discriminator sees is varied: color,translation,cutout. For small sets.",
)
@click.option(
    "--freeze", type=click.IntRange(0), default=0, help="First layers of a discriminator that stay as they are."
)
@click.option(
    "--augment/--no-augment", default=None, help="Random crops, mirroring, colours.  [default: not for glyphs]"
)
@click.option("--flip/--no-flip", default=None, help="Mirroring alone.")
@click.option("--randaugment", type=click.IntRange(0, 30), default=0, help="RandAugment's magnitude; 9 is usual.")
@click.option("--mosaic", type=click.FloatRange(0.0, 1.0), help="Of detection: share of images put together from four.")
@click.option(
    "--mixup",
    type=click.FloatRange(0.0),
    default=0.0,
    help="Mixup's alpha, 0.2 is usual; of detection: share of images mixed with another.",
)
@click.option("--cutmix", type=click.FloatRange(0.0), default=0.0, help="CutMix's alpha; 1 is usual.")
@click.option("--label-smoothing", "smoothing", type=SHARE, default=0.0, help="0.1 is usual.")
@click.option(
    "--ema", type=SHARE, help="Decay of averaged weights, 0: none.  [default: classify 0, segment 0.99, detect 0.998]"
)
@click.option("--balance", is_flag=True, help="Rare classes weigh more in the loss.")
@click.option(
    "--patience", type=click.IntRange(0), default=0, help="Stop after so many epochs without a better one; 0: never."
)
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    help="Lightning's: 32-true, bf16-mixed, …; auto: bf16 where the hardware has it.",
)
@click.option("--accelerator", default="auto", show_default=True, help="Lightning's: cpu, gpu, mps, auto.")
@click.option("--devices", default="1", show_default=True, help="Lightning's: how many, or which.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--workers", type=click.IntRange(0), help="Threads that load images.  [default: up to 4]")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--resume", type=click.Path(), metavar="RUN", help="Go on with a stopped run; its own options count.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out.")
@json_option
def command(
    source: str | None,
    data: str | None,
    out: str | None,
    resume: str | None,
    overwrite: bool,
    as_json: bool,
    build: tuple[str, ...],
    **rest: Any,
) -> None:
    """Adapt a network to your images by transfer learning.

    A new head is trained first, on features that the frozen network computes once; then the layers join from the
    back to the front, the deeper the slower. The run's folder holds checkpoint/ (the best epoch), metrics.csv,
    curves.png, pictures of the answers and report.html. Ctrl-C and a kill lose at most the epoch in flight: --resume goes on.

    \b
    Examples:
      zoo finetune mobilenet --data photos/
      zoo finetune lenet --data mnist/ --epochs 5 --out runs/digits
      zoo finetune runs/digits --data other-digits/ --out runs/other
      zoo finetune resnet18 --data photos/ --weights resnet18.pth --mixup 0.2 --ema 0.999
      zoo finetune unet --data cells/ --option encoder=resnet18
      zoo finetune yolo --data coco/ --size 320
      zoo finetune dcgan --data faces/ --size 64 --loss hinge --diffaugment color,translation,cutout
      zoo finetune srresnet --data photos/ --option scale=2
      zoo finetune pix2pix --data masks-and-photos/
      zoo finetune style --data photos/ --style starry.jpg
      zoo finetune --resume runs/digits
    """
    if resume is not None:
        if source is not None or data is not None:
            raise click.UsageError(
                "--resume RUN goes on with the run's own options: leave out the architecture and --data"
            )
    elif source is None or data is None:
        raise click.UsageError("give an architecture (or a checkpoint) and --data, or --resume RUN")
    if source is not None and data is not None:
        _refuse_early(source, data)
    module = "zoo.train.finetune"
    options_type = resolve(f"{module}:Options", "fine-tuning")
    if resume is not None:
        folder = Path(resume)
    else:
        if out is None:
            models = resolve("zoo.train.models:run_name", "fine-tuning")
            out = str(Path("runs") / models(source))
        folder = Path(out)
    try:
        if resume is not None:
            summary = resolve(f"{module}:resume", "fine-tuning")(folder, say=note, progress=progress)
        else:
            rest["loss_weights"] = _weights(rest["loss_weights"])
            options = options_type(
                source=source, data=str(Path(data or "").resolve()), build=parse_options(build), **_absolute(rest)
            )
            run = resolve(f"{module}:finetune", "fine-tuning")
            summary = run(options, folder, overwrite=overwrite, say=note, progress=progress)
    except KeyboardInterrupt:
        if (folder / "run.json").is_file():
            note(f"stopped; go on with: zoo finetune --resume {folder}")
        raise
    if summary is None:  # a helper process of a run on several devices
        return
    if summary.already_finished:
        note(f"{folder} is finished: nothing is left to do")
    if as_json:
        emit_json(summary.to_dict())
        return
    half = find_task(get_registry().get(Architecture, summary.architecture).task).resolve()
    figures = [(k, told(half, k, v)) for k, v in summary.metrics.items() if k != "classes"]
    rows = [
        ("architecture", summary.architecture),
        *figures,
        ("time", f"{summary.seconds:.0f} s"),
        ("checkpoint", summary.checkpoint),
        ("report", summary.report),
    ]
    click.echo(table(rows, ("", "best epoch, validation")))
    click.echo(f"\nnext: zoo export {folder} --data {_data_of(folder, data)} --out {folder}/bundle")


def _refuse_early(source: str, data: str) -> None:
    """What is wrong at first sight is said before torch and Lightning are imported, which takes seconds."""
    if not Path(data).exists():
        from ..data import open_data

        open_data(data)
    if not Path(source).exists() and os.sep not in source:
        get_registry().get(Architecture, source)


def _absolute(rest: dict[str, Any]) -> dict[str, Any]:
    """Files are remembered by their absolute paths, so that a run resumes from any folder."""
    files = {k: rest.get(k, "") for k in ("weights", "style")}
    found = {k: str(Path(v).resolve()) for k, v in files.items() if v and Path(v).is_file()}
    for option in ("perceptual", "features"):
        name, _, file = rest.get(option, "").partition(":")
        if file and Path(file).is_file():
            found[option] = f"{name}:{Path(file).resolve()}"
    return {**rest, **found}


def _weights(given: tuple[str, ...]) -> dict[str, float]:
    """TERM=X to factors. Raises UsageError."""
    found = {}
    for text in given:
        term, _, value = text.partition("=")
        try:
            found[term] = float(value)
        except ValueError:
            raise click.UsageError(f"--loss-weight {text}: give TERM=X, as l1=10") from None
    return found


def _data_of(folder: Path, data: str | None) -> str:
    import json

    if data is not None:
        return data
    try:
        return str(json.loads((folder / "run.json").read_text("utf-8"))["options"]["data"])
    except (OSError, ValueError, KeyError):
        raise ZooError(f"{folder / 'run.json'} cannot be read") from None
