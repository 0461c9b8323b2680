"""``zoo verify``: judge a bundle where it stands, with or without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import emit_json, json_option, note, progress, table

if TYPE_CHECKING:
    from ..data import Dataset
    from ..parity.report import Report


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Labelled images: the set that it was exported with.")
@click.option("--split", default="val", show_default=True, help="Which split of --data.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Compare with this checkpoint in PyTorch.")
@click.option("--artifact", "artifacts", multiple=True, help="Only this artefact; may be given again.")
@click.option("--max-drop", type=click.FloatRange(0, 100), help="Largest accuracy drop allowed, in points.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of one call.")
@click.option("--out", type=click.Path(path_type=Path), help="Write parity.json and report.html into this folder.")
@json_option
def command(
    bundle: Path,
    data: Path | None,
    split: str,
    checkpoint: Path | None,
    artifacts: tuple[str, ...],
    max_drop: float | None,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Judge BUNDLE: the self-test, then the gates (numbers, accuracy, latency).

    The reference is what PyTorch answered at export, which travels in the bundle; with --checkpoint it is PyTorch
    itself. Without --data the golden vectors are judged and accuracy is not. Exit code 1 where a gate fails.

    \b
    Examples:
      zoo verify digits.zoo --data digits/
      zoo verify digits/ --data digits/ --checkpoint runs/digits --out report/
    """
    from ..bundle import open_bundle
    from ..errors import GateFailed
    from ..parity.verify import verify_bundle

    opened = open_bundle(bundle)
    for name in artifacts:
        opened.artifact(name)
    dataset = None
    if data is not None:
        dataset = open_split(opened.manifest, data, split)
    network = exact = None
    name = ""
    if checkpoint is not None:
        from ..specs import resolve

        model = resolve("zoo.train.models:open_model", "--checkpoint")(checkpoint)
        reference = resolve("zoo.train.reference:torch_reference", "--checkpoint")(model)
        network, exact, name = reference.run, reference.exact, reference.name
    with progress("reference", len(dataset) if dataset else 1) as update:
        report = verify_bundle(
            opened,
            data=dataset,
            network=network,
            exact_network=exact,
            network_name=name,
            artifacts=artifacts,
            threads=threads,
            max_drop=max_drop / 100 if max_drop is not None else None,
            progress=update,
        )
    if out is not None:
        note(f"report: {report.write(out)}")
    if as_json:
        emit_json(report.to_dict())
    else:
        show(report)
    if report.failed:
        first = report.failed[0]
        raise GateFailed(f"{first.name} failed: {first.failures[0]}")


def open_split(manifest: Mapping[str, Any], data: Path, split: str) -> Dataset:
    """The split of a data set, divided as it was at export. Raises DataError."""
    from ..data import division, open_data

    val_share, seed = division(manifest.get("provenance") or {})
    return open_data(data, task=str(manifest["task"]), val_share=val_share, seed=seed).get(split)


def show(report: Report) -> None:
    """Print a parity report as a table, and what must not be missed below it."""
    rows = []
    for artifact in report.artifacts:
        for stage in artifact.stages:
            if not stage:
                rows.append((artifact.name, f"self-test: {stage.stage}", "FAIL", stage.message))
        for finding in artifact.findings:
            verdict = finding.verdict.upper() if finding.verdict == "fail" else finding.verdict
            rows.append((artifact.name, finding.gate, verdict, finding.message))
        if artifact.stages and all(artifact.stages):
            rows.append((artifact.name, "self-test", "pass", artifact.stages[-1].message))
    click.echo(f"{report.subject}: against {report.reference}, on {report.samples}")
    click.echo(table(rows, ("artefact", "gate", "verdict", "what was seen")))
    for text in report.statements:
        note(text)
