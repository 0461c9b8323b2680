"""``zoo evaluate``: the task's figures of a checkpoint, an architecture or a bundle on a data set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..bundle import MANIFEST
from ..data import division
from ..errors import DataError
from ..lookup import find_task
from ..specs import ImageInput, resolve
from ..tasks import told
from .common import (
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

if TYPE_CHECKING:
    from ..data import Dataset


@click.command()
@click.argument("source", metavar="CHECKPOINT|BUNDLE|ARCHITECTURE", shell_complete=complete_architecture)
@click.option(
    "--data", required=True, type=click.Path(), help="Images: one folder a class, idx files, or a CSV of path,label."
)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    default="val",
    show_default=True,
    help="all: data without splits, whole.",
)
@click.option("--format", default="", metavar="NAME", help="The data's format, where it is not recognised by itself.")
@click.option(
    "--val-share",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    help="Set aside for validation where the data has no val split.  [default: as it was for training, else 0.2]",
)
@click.option("--split-seed", type=click.IntRange(0), help="[default: as it was for training, else 0]")
@click.option(
    "--weights", default="pretrained", show_default=True, metavar="pretrained|none|TAG|FILE", help="Of an architecture."
)
@build_option
@features_option
@click.option("--artifact", metavar="NAME", help="Of a bundle: fp32, int8, …  [default: the manifest's choice]")
@click.option("--device", default="cpu", show_default=True, help="Of a checkpoint: cpu, cuda, …")
@json_option
def command(
    source: str,
    data: str,
    split: str,
    format: str,
    val_share: float | None,
    split_seed: int | None,
    weights: str,
    build: tuple[str, ...],
    features: str,
    artifact: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure a checkpoint, a bundle or an architecture's own weights on a data set.

    Labels are matched by name. A bundle is measured by its runtime, without torch.

    \b
    Examples:
      zoo evaluate runs/mobilenetv2_100 --data photos/
      zoo evaluate photos.zoo --data photos/ --artifact int8 --json
      zoo evaluate mobilenet --data imagenet-val/ --split all
      zoo evaluate carn-m --weights carn_m.pth --option scale=2 --data set5/ --split all
      zoo evaluate faces.zoo --data faces/ --features mobilenetv2_100
    """
    path = Path(source)
    runner: Any
    measure: Callable[[Any, Dataset, Callable[[int], None]], dict[str, Any]]
    if (path / MANIFEST).is_file() or (path.is_file() and path.suffix == ".zoo"):
        from ..runtime.predictor import open_predictor

        runner = open_predictor(source, artifact=artifact)
        what = f"{runner.bundle.name} {runner.artifact.name}, {runner.session.device}"
        provenance, task = runner.bundle.manifest.get("provenance", {}), runner.bundle.task
        measure = partial(_run_bundle, features=features)
    else:
        if artifact is not None:
            raise click.UsageError(f"{source} is no bundle: leave out --artifact")
        runner = resolve("zoo.train.models:open_model", "evaluating a checkpoint")(
            source, weights=weights, options=parse_options(build)
        )
        what = f"{runner.architecture.name} ({runner.weights} weights), float32 on {device}"
        provenance, task = runner.provenance, runner.task.name
        evaluate = resolve("zoo.train.evaluate:evaluate", "evaluating a checkpoint")

        def _run_network(runner: Any, dataset: Dataset, advance: Callable[[int], None]) -> dict[str, Any]:
            if _as_a_set(task, dataset):
                found: dict[str, Any] = resolve(
                    "zoo.train.evaluate:evaluate_set", "telling made images from real ones"
                )(runner, dataset, device=device, features=features)
                return found
            figures: dict[str, Any] = evaluate(runner, dataset, device=device, progress=advance).figures
            return figures

        measure = _run_network

    divided = provenance.get("data") or {}
    share, seed = division(provenance, val_share, split_seed)
    dataset = _open(data, task, runner.input, split, format, share, seed)
    known = (divided.get(split) or {}).get("fingerprint")
    dataset = dataset.relabelled(runner.labels)
    if (
        split == "val"
        and known
        and divided.get("name", dataset.root.name) == dataset.root.name
        and known != dataset.fingerprint()
    ):
        note(
            "warning: this is not the division of the data that the network was trained with: it may have learnt from some of these images"
        )
    with progress("evaluating", len(dataset)) as advance:
        figures = measure(runner, dataset, advance)
    if as_json:
        emit_json({"what": what, "data": dataset.source, "left_out": len(dataset.faults), **figures})
        return
    click.echo(f"{what}\n{dataset.source}\n")
    figures = dict(figures)
    classes = figures.pop("classes", [])
    half = find_task(task).resolve()
    click.echo(table([(k, told(half, k, v)) for k, v in figures.items()], ("figure", "value")))
    if classes:
        columns = list(classes[0])
        rows = [[f"{100 * v:.1f} %" if isinstance(v, float) else v for v in c.values()] for c in classes]
        click.echo("\n" + table(rows, ("class", *columns[1:])))


def _open(data: str, task: str, input: ImageInput, split: str, format: str, val_share: float, seed: int) -> Dataset:
    from ..data import audit, open_data
    from ..data.splitting import find_format

    if split == "all":
        root = Path(data)
        reader = find_format(root, task, format)
        brought = reader.splits(root)
        if brought:
            raise DataError(f"{data} comes divided into {', '.join(brought)}: choose one with --split")
        dataset = reader.open(root, None)
    else:
        dataset = open_data(data, task=task, format=format, val_share=val_share, seed=seed).get(split)
    with progress("reading", len(dataset)) as advance:
        dataset = audit(dataset, input=input, progress=lambda done, total: advance(done))
    for text in dataset.notes:
        note(f"warning: {text}")
    if dataset.faults:
        note(f"warning: {len(dataset.faults)} faulty images or boxes are left out (first: {dataset.faults[0].reason})")
    return dataset


def _as_a_set(task: str, data: Dataset) -> bool:
    """Whether there is no right answer to each input, only real images to compare with."""
    return task == "generate" or bool(data.others)


def _run_bundle(
    model: Any, dataset: Dataset, advance: Callable[[int], None], features: str = "random"
) -> dict[str, Any]:
    from ..parity.evidence import prepared_batches

    if _as_a_set(model.bundle.task, dataset):
        judge = resolve("zoo.train.quality:judge_set", "telling made images from real ones")
        judged = model.task.samples(dataset, model.input, model.labels, 1000)
        found: dict[str, Any] = judge(
            model.run, judged, model.input, model.task, model.bundle.makes, features, model.labels
        )
        return found
    dataset = model.task.samples(dataset, model.input, model.labels)
    meter, done = model.task.meter(model.labels), 0
    if model.as_it_is:  # whole images, at their own size: what a user will see
        for sample in dataset:
            meter.update([model(sample.image)], [sample.target])
            done += 1
            advance(done)
        whole: dict[str, Any] = meter.compute()
        return whole
    for tensor, frames in prepared_batches([s.image for s in dataset], model.input, progress=advance):
        results = model.task.decode(model.run(tensor), labels=model.labels, frames=frames, judging=True)
        meter.update(results, dataset.targets[done : done + len(results)])
        done += len(results)
    figures: dict[str, Any] = meter.compute()
    return figures
