"""`zoo list`, `zoo show`, `zoo plugins`: what there is, what it is, and where it comes from. Imports no torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from ..errors import UnknownName
from ..registry import get_registry
from ..specs import Architecture, ImageInput, Task
from .common import complete_architecture, emit_json, json_option, note, table


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g}" if count else ""


def _giga(count: int) -> str:
    return f"{count / 1e9:.3g}" if count else ""


def _size(spec: ImageInput) -> str:
    if spec.color == "latent":
        return f"{spec.channels} latents"
    return f"{spec.channels}x{spec.height}x{spec.width}"


def _record(spec: Architecture) -> dict[str, Any]:
    plugin = get_registry().owner(Architecture, spec.name)
    return {
        "name": spec.name,
        "aliases": list(spec.aliases),
        "task": spec.task,
        "summary": spec.summary,
        "parameters": spec.parameters or None,
        "macs": spec.macs or None,
        "input": spec.input.to_dict(),
        "makes": spec.makes.to_dict() if spec.makes else None,
        "head": spec.head,
        "license": spec.license,
        "paper": spec.paper,
        "plugin": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "weights": [
            {
                "name": w.name,
                "uri": w.uri,
                "num_classes": w.num_classes,
                "license": w.license,
                "input": (w.input or spec.input).to_dict(),
            }
            for w in spec.weights
        ],
    }


@click.command("list")
@click.argument("pattern", default="")
@click.option("--task", default="", metavar="TASK", help="Only architectures for this task (classify, …).")
@json_option
def list_command(pattern: str, task: str, as_json: bool) -> None:
    """List the architectures whose name or short name holds PATTERN, or matches it (quote the star).

    \b
    Examples:
      zoo list
      zoo list resnet
      zoo list 'mobilenet*' --task classify --json
    """
    registry = get_registry()
    if task:
        registry.get(Task, task)
    found = list(registry.architectures(pattern, task))
    if pattern and not found:
        known = [n for spec in registry.architectures("", task) for n in (spec.name, *spec.aliases)]
        raise UnknownName("architecture", pattern, known)
    if as_json:
        emit_json([_record(spec) for spec in found])
        return
    rows = [
        (
            spec.name,
            ", ".join(spec.aliases),
            spec.task,
            _millions(spec.parameters),
            _giga(spec.macs),
            _size(spec.input),
            len(spec.weights),
            spec.summary,
        )
        for spec in found
    ]
    click.echo(table(rows, ["name", "short", "task", "M params", "GMACs", "input", "weights", "summary"]))
    note(f"{len(found)} architecture{'s' if len(found) != 1 else ''}; `zoo show NAME` says more")


@click.command("show")
@click.argument("name", shell_complete=complete_architecture)
@json_option
def show_command(name: str, as_json: bool) -> None:
    """Show one architecture: size, input, weights, licences, paper, and which plugin brings it.

    \b
    Examples:
      zoo show resnet
      zoo show mobilenetv2_100 --json
    """
    spec = get_registry().get(Architecture, name)
    if as_json:
        emit_json(_record(spec))
        return
    plugin = get_registry().owner(Architecture, spec.name)
    i, makes = spec.input, spec.makes
    rows = [
        ("name", spec.name + (f"  ({name} means {spec.name})" if name != spec.name else "")),
        ("short names", ", ".join(spec.aliases)),
        ("what", spec.summary),
        ("task", spec.task),
        ("parameters", f"{spec.parameters:,}" if spec.parameters else "not counted"),
        ("GMACs", f"{_giga(spec.macs)} for one image of {_size(makes or i)}" if spec.macs else "not counted"),
        *_input_rows(spec),
        ("makes", f"{_size(makes)} {makes.color}, or what --size and --channels say" if makes else ""),
        ("head", spec.head),
        ("licence of the code", spec.license or "not stated"),
        ("paper", spec.paper),
        ("plugin", f"{plugin.name} ({plugin.owner})"),
    ]
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        if value:
            click.echo(f"{key.ljust(width)}  {value}")
    click.echo()
    if not spec.weights:
        click.echo("weights: none; train it with --weights none, or give --weights FILE")
        return
    click.echo(
        table(
            [
                (
                    w.name,
                    "" if n else "pretrained",
                    w.num_classes or "features only",
                    _size(w.input or i),
                    w.license or "not stated",
                    w.uri,
                )
                for n, w in enumerate(spec.weights)
            ],
            ["weights", "", "classes", "input", "licence", "from"],
        )
    )


def _input_rows(spec: Architecture) -> list[tuple[str, str]]:
    i = spec.input
    if i.color == "latent":
        return [("input", f"{_size(i)}, drawn from N(0, 1){', and a class' if spec.classes else ''}")]
    values = f"mean {', '.join(f'{m:g}' for m in i.mean)}; std {', '.join(f'{s:g}' for s in i.std)}"
    return [
        ("input", f"{_size(i)} {i.color}, {i.resize}, {i.interpolation}, keeps {100 * i.crop:g} %"),
        ("values", f"(pixel / {i.peak:g} - mean) / std; {values}"),
    ]


@click.command("plugins")
@json_option
def plugins_command(as_json: bool) -> None:
    """Show every plugin that was found, what it brings, and why one was left out.

    ZOO_BLOCK_PLUGINS=name,name leaves plugins out; * leaves out all but the core.

    \b
    Examples:
      zoo plugins
      ZOO_BLOCK_PLUGINS=timm zoo plugins --json
    """
    plugins = get_registry().plugins
    if as_json:
        emit_json(
            [
                {
                    "name": p.name,
                    "distribution": p.distribution,
                    "version": p.version,
                    "brings": dict(Counter(s.kind for s in p.specs)),
                    "error": p.error or None,
                }
                for p in plugins
            ]
        )
        return
    rows = []
    for p in plugins:
        count = Counter(s.kind for s in p.specs)
        brings = ", ".join(f"{n} {_plural(kind, n)}" for kind, n in sorted(count.items()))
        rows.append((p.name, p.owner.strip(), "broken" if p.error else "ok", brings or "nothing"))
    click.echo(table(rows, ["plugin", "from", "state", "brings"]))
    for p in plugins:
        if p.error:
            click.echo(f"\n{p.name}: {p.error}")


def _plural(kind: str, count: int) -> str:
    return kind if count == 1 else kind + "s"
