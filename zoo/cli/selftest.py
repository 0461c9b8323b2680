"""``zoo selftest``: replay a bundle's golden vectors on this machine and name the stage that differs."""

from __future__ import annotations

from pathlib import Path

import click

from .common import emit_json, json_option, note, table


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--artifact", help="Only this artefact; by default all of them.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of one call.")
@json_option
def command(bundle: Path, artifact: str | None, threads: int | None, as_json: bool) -> None:
    """Replay the golden vectors of BUNDLE (a folder or a .zoo file) with numpy and a runtime alone.

    Stages: manifest, files, preprocess, open, network, decode. Exit code 1 where one fails. A TensorRT artefact is opened
    in the best runtime that works here; why better ones do not is told on standard error.

    \b
    Examples:
      zoo selftest digits.zoo
      zoo selftest digits.zoo --artifact int8 --json
    """
    from ..bundle import open_bundle
    from ..errors import GateFailed
    from ..parity.golden import selftest
    from ..runtime.choosing import choose

    opened = open_bundle(bundle)
    if artifact:
        opened.artifact(artifact)
    stages = selftest(opened, artifact, threads=threads)
    tried = {opened.artifacts[s.artifact].format for s in stages if s.stage == "open"}
    lost = {format: dict(choose(format).lost) for format in sorted(tried)}
    for format, reasons in lost.items():
        for name, reason in reasons.items():
            note(f"{format}: not in {name}: {reason}")
    if as_json:
        told = {"passed": all(stages), "stages": [s.to_dict() for s in stages], "lost": lost}
        emit_json({"bundle": str(bundle), **told})
    else:
        rows = [(s.stage, s.artifact, "pass" if s else "FAIL", s.message) for s in stages]
        click.echo(table(rows, ("stage", "artefact", "verdict", "what was seen")))
    failed = [s for s in stages if not s]
    if failed:
        where = f" ({failed[0].artifact})" if failed[0].artifact else ""
        raise GateFailed(f"self-test failed at stage '{failed[0].stage}'{where}: {failed[0].message}")
