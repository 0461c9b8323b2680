"""``zoo export``: a network becomes a bundle, and the bundle is proved."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.common import (
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
from zoo.errors import ExportError

if TYPE_CHECKING:
    from zoo.parity.report import ArtifactReport

    from .pipeline import Outcome

__all__ = ["BATCH", "SIZES", "Sizes", "command"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What --size says: the usual (height, width) or side, and the range where one is given."""

    usual: int | tuple[int, int] | None = None
    range: tuple[tuple[int, int], ...] | None = None


class _SizesType(click.ParamType):
    """One size, or three that rise: least:usual:largest."""

    name = "N|HxW|A:B:C"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        sides = [SIZE.convert(part, param, ctx) for part in value.split(":")]
        if len(sides) == 1:
            return Sizes(usual=sides[0])
        pairs = tuple((side, side) if isinstance(side, int) else side for side in sides)
        if len(pairs) != 3 or not all(a <= b <= c for a, b, c in zip(*pairs, strict=True)):
            self.fail(f"'{value}': give least:usual:largest, rising, like 256:512:1024", param, ctx)
        return Sizes(usual=pairs[1], range=pairs)


class _BatchType(click.ParamType):
    """One number N (1:N:N), or three that rise: least:usual:largest."""

    name = "N|A:B:C"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        parts = value.split(":")
        if len(parts) in (1, 3) and all(part.isdigit() for part in parts):
            counts = tuple(int(part) for part in (["1", *parts * 2] if len(parts) == 1 else parts))
            if 1 <= counts[0] <= counts[1] <= counts[2] <= 4096:
                return counts
        self.fail(f"'{value}': give least:usual:largest, rising, in 1..4096, like 1:4:16", param, ctx)


SIZES, BATCH = _SizesType(), _BatchType()


@click.command()
@click.argument("source", shell_complete=complete_architecture)
@click.option(
    "--to",
    default="onnx",
    show_default=True,
    metavar="TARGET,...",
    help="onnx, tensorrt, tensorrt:VERSION, tensorrt-rtx, or what another exporter writes; comma-separated.",
)
@click.option("--trt", is_flag=True, help="Short for --to tensorrt.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="NAME,...",
    help="fp32, fp16, bf16, int8, or mixed (a plan that keeps accuracy); comma-separated.",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Labelled images: calibration from train, judgement on val."
)
@click.option("--out", type=click.Path(path_type=Path), help="Bundle folder to write.  [default: NAME-bundle]")
@click.option(
    "--weights", default="pretrained", show_default=True, help="For an architecture: pretrained, none, or a file."
)
@click.option(
    "--size",
    type=SIZES,
    help="Input height and width, in pixels; of a segmenter also least:usual:largest, like 256:512:1024.",
)
@click.option(
    "--batch",
    type=BATCH,
    default="1:1:8",
    show_default=True,
    help="Of an engine: least:usual:largest number of images at once; one number N means 1:N:N.",
)
@click.option("--defer", is_flag=True, help="Build no engine here: the device does, by `zoo build` or on first use.")
@click.option("--tf32", is_flag=True, help="Of a TensorRT engine: let float32 products round their operands to TF32.")
@build_option
@click.option("--dynamic-size", is_flag=True, help="Of a segmenter: leave height and width open, for `zoo run --tile`.")
@click.option(
    "--nms",
    type=click.Choice(["host", "graph"]),
    default="host",
    show_default=True,
    help="Of a detector: where overlapping boxes are suppressed.",
)
@click.option("--channels", type=click.IntRange(1), help="Input channels; the first layer is adapted.")
@click.option(
    "--max-drop", type=click.FloatRange(0, 100), metavar="POINTS", help="Largest accuracy drop allowed, in points."
)
@click.option(
    "--waive", default="", metavar="REASON", help="Keep an artefact that a gate failed; the manifest records why."
)
@click.option(
    "--calibration", type=click.IntRange(1), default=128, show_default=True, help="Images that int8 is calibrated on."
)
@click.option(
    "--calibrator",
    type=click.Choice(["auto", "minmax", "mean", "entropy", "percentile", "mse"]),
    default="auto",
    show_default=True,
    help="How int8 ranges are chosen.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="Of mixed: how much accuracy the plan may cost, on training images held out for the search.",
)
@features_option
@click.option("--max-samples", type=click.IntRange(1), help="Judge at most so many validation images.  [default: all]")
@click.option(
    "--val-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share set aside where the data has no val split.  [default: as trained]",
)
@click.option("--split-seed", type=int, help="Seed of that division.  [default: as trained]")
@click.option("--threads", type=click.IntRange(1), help="CPU threads, for PyTorch and for the artefacts.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already at --out.")
@json_option
def command(
    source: str,
    to: str,
    trt: bool,
    precision: str,
    data: Path | None,
    out: Path | None,
    weights: str,
    size: Sizes | None,
    batch: tuple[int, int, int],
    defer: bool,
    tf32: bool,
    build: tuple[str, ...],
    dynamic_size: bool,
    nms: str,
    channels: int | None,
    max_drop: float | None,
    waive: str,
    calibration: int,
    calibrator: str,
    budget: float,
    features: str,
    max_samples: int | None,
    val_share: float | None,
    split_seed: int | None,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn SOURCE (a checkpoint, a fine-tuning run, or an architecture's name) into a bundle for devices.

    Each artefact is compared with PyTorch: numbers, accuracy (with --data) and latency. One that fails is kept out
    of the bundle and the exit code is 1. int8 is calibrated on the training split; layers that cost too much
    accuracy go back to float by themselves.

    For TensorRT the precision is written into the graph, which is linted and, where a library is at hand, built:
    TensorRT on a machine with a GPU, TensorRT-RTX on any x86-64 Linux. Without either, --defer leaves it to the device.

    \b
    Examples:
      zoo export runs/photos --precision fp32,int8 --data photos/ --out photos-bundle
      zoo export mobilenet                      pretrained, no data at hand
      zoo export runs/photos --data photos/ --precision int8 --max-drop 1
      zoo export resnet --trt --precision fp16 --batch 1:4:16
      zoo export runs/photos --data photos/ --to onnx,tensorrt:10.3 --precision int8 --defer
    """
    from .plan import make_plans

    precisions, targets = _words(precision), _words(to)
    if trt:
        given = click.get_current_context().get_parameter_source("to") != click.core.ParameterSource.DEFAULT
        targets = (*targets, "tensorrt") if given else ("tensorrt",)
    # what is misspelt or missing is said before torch is imported
    plans = make_plans(targets, precisions)
    if not defer:
        _say_builders([plan.target for plan in plans if plan.format == "tensorrt"])
    shape, sizes = size or Sizes(), None
    if shape.range:
        sizes, dynamic_size = shape.range, True
    elif dynamic_size and any(plan.format == "tensorrt" for plan in plans):
        raise ExportError("--dynamic-size for TensorRT needs the sizes: --size least:usual:largest, like 256:512:1024")
    from .pipeline import ExportGateFailed, Request, export_bundle

    if waive and not waive.strip():
        raise ExportError("--waive needs a reason: say why the artefact may be kept")
    place = out or Path(f"{Path(source).resolve().name if Path(source).exists() else source.replace('/', '-')}-bundle")
    try:
        outcome = export_bundle(
            Request(
                source=source,
                out=place,
                to=targets,
                precisions=precisions,
                data=data,
                weights=weights,
                size=shape.usual,
                sizes=sizes,
                batch=batch,
                defer=defer,
                tf32=tf32,
                build=parse_options(build),
                dynamic_size=dynamic_size,
                nms=nms,
                channels=channels,
                max_drop=max_drop / 100 if max_drop is not None else None,
                waive=waive.strip(),
                overwrite=overwrite,
                val_share=val_share,
                split_seed=split_seed,
                threads=threads,
                calibration=calibration,
                calibrator="" if calibrator == "auto" else calibrator,
                budget=budget / 100,
                features=features,
                max_samples=max_samples,
            ),
            progress=progress,
            note=note,
        )
    except ExportGateFailed as error:
        _show(error.outcome, data, as_json)
        raise
    _show(outcome, data, as_json)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _say_builders(targets: Sequence[str]) -> None:
    """Who builds the engines here. Raises MissingPart before any slow work where nobody can."""
    if not targets:
        return
    from .tensorrt.exporting import find_builder
    from .tensorrt.targets import parse_target

    for says in dict.fromkeys(find_builder(parse_target(target)).says for target in targets):
        note(says)


def _show(outcome: Outcome, data: Path | None, as_json: bool) -> None:
    if as_json:
        emit_json(
            {
                "bundle": str(outcome.bundle) if outcome.bundle else None,
                "report": str(outcome.report_path),
                "default": outcome.manifest.get("default"),
                "artifacts": [
                    {**_facts(outcome, a), "findings": [f.to_dict() for f in a.findings]}
                    for a in outcome.report.artifacts
                ],
                "statements": list(outcome.report.statements),
            }
        )
        return
    rows = []
    found = {gate for artifact in outcome.report.artifacts for gate in artifact.gates()}
    ours = ("pixels", "quality", "lint", "precision", "build")
    shown = ("numbers", "accuracy", "latency", *(gate for gate in ours if gate in found))
    for artifact in outcome.report.artifacts:
        facts = _facts(outcome, artifact)
        gates = artifact.gates()
        rows.append(
            (
                artifact.name,
                f"{artifact.bytes / 1e6:.2f}",
                *(gates.get(gate, "-") for gate in shown),
                f"{facts['times_faster']:.1f}x" if facts["times_faster"] else "-",
                facts["status"],
            )
        )
    click.echo(f"\nagainst {outcome.report.reference}, on {outcome.report.samples}")
    click.echo(table(rows, ("artefact", "MB", *shown, "faster", "status")))
    for artifact in outcome.report.artifacts:
        for finding in artifact.findings:
            if finding.verdict != "not judged":
                click.echo(f"  {artifact.name} {finding.gate}: {finding.message}")
    click.echo(f"report: {outcome.report_path}")
    if outcome.bundle is not None:
        bundle = shlex.quote(str(outcome.bundle))
        click.echo(f"bundle: {outcome.bundle} (default: {outcome.manifest['default']})\nnext:")
        click.echo(f"  zoo run {bundle} {_usual(outcome.manifest)}")
        if any(entry["format"] == "tensorrt" for entry in outcome.manifest["artifacts"]):
            click.echo(f"  zoo build {bundle}     on the device")
        click.echo(f"  zoo verify {bundle}" + (f" --data {shlex.quote(str(data))}" if data else ""))
        click.echo(f"  zoo pack {bundle}")


def _usual(manifest: Mapping[str, Any]) -> str:
    """What one would run a bundle on."""
    if manifest["input"]["color"] == "latent":
        return "--seed 7 --grid 8x8 --out grid.png"
    return "photo.jpg --out made.png" if "scale" in manifest["decode"] else "photo.jpg"


def _facts(outcome: Outcome, artifact: ArtifactReport) -> dict[str, Any]:
    """One artefact's row: where it is, how large, how fast, and what became of it."""
    entries: Sequence[Mapping[str, Any]] = outcome.manifest.get("artifacts", ())
    entry = next((e for e in entries if e["name"] == artifact.name), None)
    ratios = [f.figures["ratio_p50"] for f in artifact.findings if f.gate == "latency" and "ratio_p50" in f.figures]
    status = "failed, kept out" if entry is None else str(entry["status"])
    return {
        "name": artifact.name,
        "precision": artifact.precision,
        "file": entry["file"] if entry else None,
        "bytes": artifact.bytes,
        "gates": artifact.gates(),
        "times_faster": 1 / ratios[0] if ratios and ratios[0] else None,
        "status": status + (f" (waived: {artifact.waived})" if artifact.waived else ""),
        "device": artifact.device,
    }
