"""``zoo lint``: what TensorRT would refuse or silently change, told beforehand, with the cure."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoo.bundle import MANIFEST, open_bundle
from zoo.cli.common import emit_json, json_option, note, table
from zoo.errors import BundleError, ExportError, GateFailed

if TYPE_CHECKING:
    from .tensorrt.lint import Finding, Report

__all__ = ["command"]

_SHOWN = 10
"""So many rewrites are told of one by one."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "target",
    default="tensorrt",
    show_default=True,
    metavar="TARGET",
    help="tensorrt or tensorrt-rtx, with a version if you like: tensorrt:10.3.",
)
@click.option(
    "--expect", default="", metavar="PRECISION", help="fp16, bf16 or int8: an error where the layers are not in it."
)
@click.option("--artifact", help="Of a bundle: only this artefact.")
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave a rule out; may be given again.")
@click.option(
    "--fix",
    "fixed",
    type=click.Path(path_type=Path),
    metavar="OUT.onnx",
    help="Write the graph with what can be mended exactly.",
)
@click.option(
    "--parser/--no-parser", default=True, help="Also ask NVIDIA's parser, where it is installed.  [default: ask]"
)
@json_option
def command(
    model: Path,
    target: str,
    expect: str,
    artifact: str | None,
    ignore: tuple[str, ...],
    fixed: Path | None,
    parser: bool,
    as_json: bool,
) -> None:
    """Say what TensorRT would refuse in MODEL (an ONNX file, or a bundle's), or build into something else.

    Needs nothing from NVIDIA. Each finding names the node, the torch module it came from, and the cure; docs/lint.md
    lists the rules. Exit code 1 where an error is found.

    \b
    Examples:
      zoo lint model.onnx --for tensorrt:10.3
      zoo lint photos-bundle --artifact fp32 --for tensorrt-rtx
      zoo lint model.onnx --expect int8 --fix mended.onnx
    """
    from .tensorrt.targets import parse_target

    wanted = parse_target(target, expect)
    from .tensorrt.lint import lint  # imports onnx, after what is misspelt was said

    found = list(_graphs(model, artifact))
    if fixed is not None and len(found) > 1:
        raise ExportError(f"--fix writes one graph, and {model} has {len(found)}: choose one with --artifact")
    reports = []
    done: list[str] = []
    for name, source, modules in found:
        if fixed is None:
            reports.append(lint(source, wanted, name=name, modules=modules, ignore=ignore, ask=parser))
            continue
        done = _mend(name, source, fixed)
        reports.append(lint(fixed, wanted, modules=modules, ignore=ignore, ask=parser))
    if as_json:
        emit_json({"passed": all(reports), "fixed": done, "models": [r.to_dict() for r in reports]})
    else:
        if fixed is not None:
            more = [f"{len(done) - _SHOWN} more, which --json lists"] if len(done) > _SHOWN else []
            for line in [*done[:_SHOWN], *more] or ["nothing: no exact rewrite applies"]:
                note(f"fixed: {line}")
        for report in reports:
            show(report)
    for report in reports:
        if not report:
            first = report.errors[0]
            where = f" at {first.node}" if first.node else ""
            raise GateFailed(
                f"{report.model}: {_errors(report)} for {report.target}; the first, {first.rule}{where}: {first.what}"
            )


def _graphs(model: Path, artifact: str | None) -> Iterator[tuple[str, Path | bytes, dict[str, str]]]:
    """Name, content and torch modules of each graph to judge. Raises BundleError, ExportError."""
    from .graphs import MODULES, parse_modules, read_modules

    if not (model.is_dir() or model.name == MANIFEST or (model.is_file() and zipfile.is_zipfile(model))):
        if artifact:
            raise ExportError(f"--artifact {artifact}: {model} is one graph, not a bundle")
        yield str(model), model, read_modules(model)
        return
    with open_bundle(model) as bundle:
        entries = [bundle.artifact(artifact)] if artifact else list(bundle.artifacts.values())
        graphs = [entry for entry in entries if entry.file.endswith(".onnx")]
        if not graphs:
            raise BundleError(f"{model}: no artefact is an ONNX graph: it has {', '.join(e.file for e in entries)}")
        modules = parse_modules(bundle.read(MODULES)) if MODULES in bundle.manifest["files"] else {}
        for entry in graphs:
            yield f"{model} {entry.name}", bundle.open_file(entry.file), modules


def _mend(name: str, source: Path | bytes, out: Path) -> list[str]:
    """Write the graph with its exact rewrites to ``out``; one line for each."""
    from .graphs import save
    from .tensorrt.fixes import fix
    from .tensorrt.lint import open_model, whole

    model = open_model(source, name, weights=True)
    with whole(model, name):
        mended, done = fix(model)
    save(mended, out)
    return done


def show(report: Report) -> None:
    """Print one report: a row for each rule, then why and what to do about it."""
    layers = ", ".join(f"{count} {kind}" for kind, count in report.precisions.items()) or "none"
    click.echo(f"{report.model}: for {report.target}, opset {report.opset}, {report.nodes} nodes, layers: {layers}")
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in report.findings:
        groups.setdefault((finding.severity, finding.rule, finding.cure), []).append(finding)
    if groups:
        rows = [
            (severity, rule, len(found), found[0].node, found[0].module, _short(found[0].what))
            for (severity, rule, _), found in groups.items()
        ]
        click.echo(table(rows, ("severity", "rule", "places", "node", "torch module", "what was found")))
        for (_, rule, cure), found in groups.items():
            click.echo(f"{rule}: {found[0].why}\n  cure: {cure}")
    click.echo(f"parser: {report.asked}")
    click.echo(f"verdict: {_errors(report)}\n")


def _errors(report: Report) -> str:
    count = len(report.errors)
    return "no errors" if not count else f"{count} error{'s' if count > 1 else ''}"


def _short(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
