"""What every verb shares: tables, JSON, progress that is a bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

__all__ = [
    "SIZE",
    "build_option",
    "complete_architecture",
    "emit_json",
    "features_option",
    "json_option",
    "note",
    "parse_options",
    "progress",
    "table",
]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


class _Size(click.ParamType):
    """One number for a square, or HEIGHTxWIDTH, in pixels."""

    name = "N|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        sides = value.lower().split("x")
        if not (1 <= len(sides) <= 2 and all(s.isdigit() and 1 <= int(s) <= 16384 for s in sides)):
            self.fail(f"'{value}' is no size: give pixels like 320, or height x width like 256x512", param, ctx)
        return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


SIZE = _Size()

build_option = click.option(
    "--option",
    "build",
    multiple=True,
    metavar="KEY=VALUE",
    help="Build option of the architecture, like encoder=resnet18; may be given again.",
)


features_option = click.option(
    "--features",
    default="random",
    show_default=True,
    metavar="NAME[:FILE]",
    help="Of generators: classifier whose features tell made images from real ones (KID, FID).",
)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` pairs; a value that is JSON (a number, true, a list) is taken as such, else as text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise click.UsageError(f"--option {pair}: give KEY=VALUE, like encoder=resnet18")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def emit_json(data: Any) -> None:
    """Print ``data`` as JSON on standard output."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """Say something on standard error, where it does not get into a pipe."""
    click.echo(text, err=True)


def complete_architecture(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion of architecture names and aliases."""
    from ..registry import get_registry

    return [
        name
        for spec in get_registry().architectures(incomplete + "*")
        for name in (spec.name, *spec.aliases)
        if name.startswith(incomplete)
    ]


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """Columns as wide as their contents; numbers to the right."""
    cells = [[("" if c is None else str(c)) for c in row] for row in rows]
    widths = [max([len(h), *(len(r[i]) for r in cells)]) for i, h in enumerate(headers)]
    right = [bool(cells) and all(_is_number(r[i]) for r in cells) for i in range(len(headers))]

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(headers), line(["-" * w for w in widths]), *(line(r) for r in cells)])


def _is_number(text: str) -> bool:
    try:
        float(text.replace(" ", "").removesuffix("%").removesuffix("x"))
    except ValueError:
        return text in ("", "-")
    return True


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how many are done. A bar on a terminal; elsewhere a line every ten seconds."""
    if sys.stderr.isatty():
        with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
            yield lambda done: bar.update(done - bar.pos)
        return
    started = last = time.monotonic()

    def update(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10 and done < total:
            note(f"{label}: {done} of {total}, {now - started:.0f} s")
            last = now

    yield update
