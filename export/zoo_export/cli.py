"""``zoo export``: a network becomes a bundle, and the bundle is proved."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.common import (
    SIZE,
    build_option,
    complete_architecture,
    emit_json,
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

__all__ = ["command"]


@click.command()
@click.argument("source", shell_complete=complete_architecture)
@click.option("--to", default="onnx", show_default=True, help="Artefact format: any that an exporter writes.")
@click.option("--precision", default="fp32", show_default=True, help="Comma-separated: fp32,int8.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Labelled images: calibration from train, judgement on val."
)
@click.option("--out", type=click.Path(path_type=Path), help="Bundle folder to write.  [default: NAME-bundle]")
@click.option(
    "--weights", default="pretrained", show_default=True, help="For an architecture: pretrained, none, or a file."
)
@click.option("--size", type=SIZE, help="Input height and width, in pixels.")
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
    precision: str,
    data: Path | None,
    out: Path | None,
    weights: str,
    size: int | tuple[int, int] | None,
    build: tuple[str, ...],
    dynamic_size: bool,
    nms: str,
    channels: int | None,
    max_drop: float | None,
    waive: str,
    calibration: int,
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

    \b
    Examples:
      zoo export runs/photos --precision fp32,int8 --data photos/ --out photos-bundle
      zoo export mobilenet                      pretrained, no data at hand
      zoo export runs/photos --data photos/ --precision int8 --max-drop 1
    """
    from .plan import make_plans, runtime_for

    precisions = tuple(p.strip() for p in precision.split(",") if p.strip())
    make_plans(to, precisions)  # what is misspelt or missing is said before torch is imported
    runtime_for(to)
    from .pipeline import ExportGateFailed, Request, export_bundle

    if waive and not waive.strip():
        raise ExportError("--waive needs a reason: say why the artefact may be kept")
    place = out or Path(f"{Path(source).resolve().name if Path(source).exists() else source.replace('/', '-')}-bundle")
    try:
        outcome = export_bundle(
            Request(
                source=source,
                out=place,
                to=to,
                precisions=precisions,
                data=data,
                weights=weights,
                size=size,
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
                max_samples=max_samples,
            ),
            progress=progress,
            note=note,
        )
    except ExportGateFailed as error:
        _show(error.outcome, data, as_json)
        raise
    _show(outcome, data, as_json)


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
    for artifact in outcome.report.artifacts:
        facts = _facts(outcome, artifact)
        gates = artifact.gates()
        rows.append(
            (
                artifact.name,
                f"{artifact.bytes / 1e6:.2f}",
                *(gates.get(gate, "-") for gate in ("numbers", "accuracy", "latency")),
                f"{facts['times_faster']:.1f}x" if facts["times_faster"] else "-",
                facts["status"],
            )
        )
    click.echo(f"\nagainst {outcome.report.reference}, on {outcome.report.samples}")
    click.echo(table(rows, ("artefact", "MB", "numbers", "accuracy", "latency", "faster", "status")))
    for artifact in outcome.report.artifacts:
        for finding in artifact.findings:
            if finding.verdict != "not judged":
                click.echo(f"  {artifact.name} {finding.gate}: {finding.message}")
    click.echo(f"report: {outcome.report_path}")
    if outcome.bundle is not None:
        bundle = shlex.quote(str(outcome.bundle))
        click.echo(f"bundle: {outcome.bundle} (default: {outcome.manifest['default']})\nnext:")
        click.echo(f"  zoo run {bundle} photo.jpg")
        click.echo(f"  zoo verify {bundle}" + (f" --data {shlex.quote(str(data))}" if data else ""))
        click.echo(f"  zoo pack {bundle}")


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
