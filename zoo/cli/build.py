"""``zoo build``: the engines of a bundle's TensorRT artefacts, built and proved on the device that will run them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import emit_json, json_option, note, table

if TYPE_CHECKING:
    from ..bundle import Bundle

BUILDERS = ("tensorrt", "tensorrt-rtx")


@click.command("build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--artifact", "artifacts", multiple=True, help="Only this artefact; may be given again.")
@click.option(
    "--runtime",
    type=click.Choice(BUILDERS),
    help="Which library builds and runs.  [default: the first that works here]",
)
@click.option(
    "--force", is_flag=True, help="Build even where an engine is at hand; it stays until the new one has passed."
)
@json_option
def command(bundle: Path, artifacts: tuple[str, ...], runtime: str | None, force: bool, as_json: bool) -> None:
    """Build the engines of BUNDLE's TensorRT artefacts for this machine's GPU, and replay the golden vectors in each.

    An engine fits one graph, library, GPU and driver, so it is built where it runs, once: it is kept in
    $ZOO_CACHE/engines (by default ~/.cache/edgezoo/engines). What is not built here is built when it is first loaded.

    \b
    Examples:
      zoo build photos.zoo
      zoo build photos.zoo --artifact tensorrt-fp16 --force
      zoo build photos/ --json > engines.json
    """
    from ..bundle import open_bundle
    from ..errors import BundleError, ZooError
    from ..runtime.predictor import open_artifact

    opened = open_bundle(bundle)
    for name in artifacts:
        if opened.artifact(name).format != "tensorrt":
            raise BundleError(
                f"artefact {name} is {opened.artifact(name).format}: only TensorRT artefacts have engines"
            )
    names = artifacts or tuple(a.name for a in opened.artifacts.values() if a.format == "tensorrt")
    if not names:
        raise BundleError(f"{bundle} has no TensorRT artefact: `zoo export --to onnx,tensorrt` makes one")
    chosen = _builder(runtime)
    rows: list[dict[str, Any]] = []
    failed: list[ZooError] = []
    for name in names:
        try:
            predictor = open_artifact(
                opened, name, runtime=chosen, force=force, progress=lambda line, name=name: note(f"{name}: {line}")
            )
        except ZooError as error:  # the others may still be built
            failed.append(error)
            rows.append({"artifact": name, "runtime": chosen, "error": str(error)})
            continue
        rows.append(_row(opened, name, predictor.session))
        predictor.session.close()  # type: ignore[attr-defined]
    if as_json:
        emit_json({"bundle": str(bundle), "engines": rows})
    else:
        headers = ("artefact", "library", "GPU", "from", "s", "MB", "layers", "golden vectors", "engine")
        click.echo(table([_cells(row) for row in rows], headers))
    if failed:
        raise failed[0]


def _builder(runtime: str | None) -> str:
    """The first library that builds and runs here. Raises ExportError with the reason of each, and how to get it."""
    from ..errors import ExportError
    from ..lookup import find
    from ..runtime.choosing import why_not
    from ..runtime.tensorrt import cuda
    from ..specs import Runtime

    reasons = {}
    for name in (runtime,) if runtime else BUILDERS:
        reasons[name] = why_not(find(Runtime, name))
        if not reasons[name]:
            return name
    no_gpu = cuda.probe()
    told = [f"{name}: {reason}" for name, reason in reasons.items() if reason != no_gpu]
    raise ExportError("no engine can be built on this machine: " + "; ".join([no_gpu, *told] if no_gpu else told))


def _row(bundle: Bundle, name: str, session: Any) -> dict[str, Any]:
    from ..runtime.tensorrt.inspecting import counts

    found = session.obtained
    facts = found.facts
    return {
        "artifact": name,
        "runtime": session.runtime,
        "version": facts.get("version", ""),
        "gpu": facts.get("gpu") or facts.get("built_on", ""),
        "driver": facts.get("driver", ""),
        "origin": found.origin,
        "seconds": facts.get("seconds"),
        "bytes": facts.get("bytes"),
        "peak_memory_bytes": facts.get("peak_memory_bytes"),
        "layers": facts.get("layer_counts") or counts(session.layers()) or None,
        "golden": bool(bundle.manifest.get("golden")),
        "engine": str(found.path or ""),
        "told": list(found.told),
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return (row["artifact"], row["runtime"], "", "FAIL", "", "", "", "", row["error"])
    layers = ", ".join(f"{count} {precision}" for precision, count in (row["layers"] or {}).items())
    return (
        row["artifact"],
        f"{row['runtime']} {row['version']}",
        row["gpu"],
        row["origin"],
        f"{row['seconds']:.1f}" if row["seconds"] is not None else "",
        f"{row['bytes'] / 1e6:.1f}" if row["bytes"] is not None else "",
        layers or "not told",
        "pass" if row["golden"] else "none",
        row["engine"],
    )
