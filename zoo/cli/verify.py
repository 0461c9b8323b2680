"""``zoo verify``: judge a bundle where it stands, with or without torch."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import emit_json, json_option, note, progress, table

if TYPE_CHECKING:
    import numpy as np

    from ..bundle import Bundle
    from ..data import Dataset, Sample
    from ..parity.report import ArtifactReport, Report
    from ..results import ImageResult


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Labelled images: the set that it was exported with.")
@click.option("--split", default="val", show_default=True, help="Which split of --data.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Compare with this checkpoint in PyTorch.")
@click.option("--artifact", "artifacts", multiple=True, help="Only this artefact; may be given again.")
@click.option("--max-drop", type=click.FloatRange(0, 100), help="Largest accuracy drop allowed, in points.")
@click.option(
    "--features",
    metavar="NAME[:FILE]",
    help="Of generators: judge quality too (KID, FID), by the features of this classifier, or of `random` filters; needs torch.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of one call.")
@click.option("--bisect", is_flag=True, help="Find the layer where an artefact parts from the fp32 graph.")
@click.option("--out", type=click.Path(path_type=Path), help="Write parity.json and report.html into this folder.")
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what was found, and on which machine, into this JSON file.",
)
@json_option
def command(
    bundle: Path,
    data: Path | None,
    split: str,
    checkpoint: Path | None,
    artifacts: tuple[str, ...],
    max_drop: float | None,
    features: str | None,
    threads: int | None,
    bisect: bool,
    out: Path | None,
    record: Path | None,
    as_json: bool,
) -> None:
    """Judge BUNDLE: the self-test, then the gates (numbers, accuracy, latency).

    The reference is what PyTorch answered at export, which travels in the bundle; with --checkpoint it is PyTorch
    itself. Without --data the golden vectors are judged and accuracy is not. Without PyTorch at hand latency is
    measured and told, not judged. Exit code 1 where a gate fails.

    --bisect looks at every layer of the artefacts that failed (or of all, or of those named) beside that of the
    bundle's fp32 graph, or of the checkpoint's, and names the torch module where they part. It needs zoo-export.

    The bundle is never changed: --record writes what this machine found, to keep or to pass on.

    \b
    Examples:
      zoo verify digits.zoo --data digits/
      zoo verify digits/ --data digits/ --checkpoint runs/digits --out report/
      zoo verify digits.zoo --bisect --artifact int8
      zoo verify digits.zoo --data digits/ --record orin.json
    """
    from ..bundle import open_bundle
    from ..errors import GateFailed
    from ..files import dump_json
    from ..parity.verify import verify_bundle

    find = _bisector() if bisect else None  # what is not installed is said before the slow work
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
            quality=_quality(opened, features) if features else None,
            progress=update,
        )
    if find is not None:
        report = _bisected(find, opened, report, artifacts, _tensors(opened, dataset), checkpoint, threads)
    if out is not None:
        note(f"report: {report.write(out)}")
    if record is not None:
        dump_json(record, report.record())
        note(f"record: {record}")
    if as_json:
        emit_json(report.to_dict())
    else:
        show(report)
    if report.failed:
        first = report.failed[0]
        raise GateFailed(f"{first.name} failed: {first.failures[0]}")


def _quality(bundle: Bundle, features: str) -> Callable[[Sequence[ImageResult], Sequence[Sample]], Any]:
    """Raises MissingPart without torch, UnknownName, CheckpointError."""
    from ..specs import resolve

    gate, real_images = (resolve(f"zoo.train.quality:{name}", "--features") for name in ("QualityGate", "real_images"))
    extractor = resolve("zoo.train.extractor:open_extractor", "--features")(features)
    return lambda made, real: gate(made, real_images(real, bundle.makes), extractor)


# -- where an artefact parts from the network --------------------------------------------------------------------


def _bisector() -> Callable[..., Any]:
    """The exporter's bisection. Raises MissingPart with the install line."""
    from ..errors import MissingPart
    from ..specs import install_line, resolve

    if importlib.util.find_spec("zoo_export") is None:
        raise MissingPart("zoo-export, which --bisect needs,", install_line("zoo_export"))
    found: Callable[..., Any] = resolve("zoo_export.bisect:bisect_artifact", "--bisect", install_line("zoo_export"))
    return found


def _tensors(bundle: Bundle, data: Dataset | None) -> np.ndarray:
    """A few inputs to look at: of the data where it is given, else the golden vectors."""
    from ..inputs import prepare_batch
    from ..parity.golden import golden_arrays

    if data is None:
        found: np.ndarray = golden_arrays(bundle)[0]["tensors"]
        return found
    return prepare_batch([sample.image for sample in data.subset(range(min(8, len(data))))], bundle.input)[0]


def _bisected(
    find: Callable[..., Any],
    bundle: Bundle,
    report: Report,
    named: Sequence[str],
    tensors: np.ndarray,
    checkpoint: Path | None,
    threads: int | None,
) -> Report:
    """The report with what each artefact's bisection found: of those named, else of those that failed, else of all that
    have something to be compared with. Raises BundleError where there is none.
    """
    from ..errors import BundleError

    ran = [a for a in report.artifacts if a.device]
    wanted = list(named) or [a.name for a in ran if a.verdict == "fail"] or [a.name for a in ran]
    done: dict[str, ArtifactReport] = {}
    refused: list[BundleError] = []
    for one in ran:
        if one.name not in wanted:
            continue
        with progress(f"layers of {one.name}", 100) as update:
            try:
                found = find(
                    bundle,
                    one.name,
                    tensors,
                    checkpoint=checkpoint,
                    threads=threads,
                    engine=_engine(bundle, one, threads),
                    progress=lambda so_far, total, update=update: update(100 * so_far // total),
                )
            except BundleError as error:  # nothing to compare with: the fp32 graph is what the others are compared with
                refused.append(error)
                continue
        done[one.name] = replace(one, bisection=found.to_dict())
    if refused and (named or not done):
        raise refused[0]
    return replace(report, artifacts=[done.get(a.name, a) for a in report.artifacts])


def _engine(bundle: Bundle, report: ArtifactReport, threads: int | None) -> Callable[[bytes], Any] | None:
    """Opens a graph where the artefact really ran, which for an engine means building one; None for ONNX Runtime's CPU,
    which needs no whole graph to run a layer."""
    if report.runtime in ("", "onnxruntime"):
        return None
    from ..lookup import find
    from ..specs import Runtime

    opener = find(Runtime, report.runtime).resolve()

    def open_graph(graph: bytes) -> Any:
        with _throwaway_cache():
            return opener(graph, threads=threads, recipe=bundle.artifact(report.name).build)

    return open_graph


@contextmanager
def _throwaway_cache() -> Iterator[None]:
    """A cache for engines that nobody asks for again: they are as large as the network, and many."""
    before = os.environ.get("ZOO_CACHE")
    with tempfile.TemporaryDirectory(prefix="zoo-bisect.") as folder:
        os.environ["ZOO_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["ZOO_CACHE"]
            else:
                os.environ["ZOO_CACHE"] = before


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
    for artifact in report.artifacts:
        if artifact.bisection:
            _show_bisection(artifact.name, artifact.bisection)
    for artifact in report.artifacts:
        if artifact.device:
            note(f"{artifact.name}: {artifact.status}, on {artifact.device}")
        for runtime, reason in artifact.lost.items():
            note(f"{artifact.name}: not {runtime}: {reason}")
    for text in report.statements:
        note(text)


def _show_bisection(name: str, found: Mapping[str, Any]) -> None:
    """Print where an artefact parts from the network, and the layers that add most by themselves."""
    click.echo(f"\n{name}, layer by layer on {found['images']} images: {found['message']}")
    worst = [layer for layer in found["worst"] if layer["added"] is None or layer["added"] > 0]
    shown = [found["first"]] if found["first"] else []
    shown += [layer for layer in worst if layer not in shown]
    if not shown:
        return

    def share(value: float | None) -> str:
        return "not finite" if value is None else f"{100 * value:.3g} %"

    rows = [
        (layer["index"] + 1, layer["module"] or "-", f"{layer['operator']} {layer['node']}", share(layer["error"]),
         share(layer["added"]), "-" if layer["sqnr_db"] is None else f"{layer['sqnr_db']:.1f}",
         "first beyond the bound" if layer is found["first"] else "")
        for layer in shown
    ]  # fmt: skip
    click.echo(table(rows, ("layer", "torch module", "node", "error", "by itself", "SQNR, dB", "")))
