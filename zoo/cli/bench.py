"""``zoo bench``: a bundle's latency on this machine, every artefact in turn within one run."""

from __future__ import annotations

from pathlib import Path

import click

from .common import emit_json, json_option, note, table


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--artifact", "artifacts", multiple=True, help="Only this artefact; may be given again.")
@click.option("--batch", type=click.IntRange(1, 1024), default=1, show_default=True, help="Images a call.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of one call.")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="How long to measure.")
@json_option
def command(
    bundle: Path, artifacts: tuple[str, ...], batch: int, threads: int | None, seconds: float, as_json: bool
) -> None:
    """Measure the latency of BUNDLE's artefacts: the network alone, and the whole way from an image to a result.

    Artefacts take turns, so that a change of clocks touches all alike: trust the ratios.

    \b
    Examples:
      zoo bench digits.zoo
      zoo bench digits.zoo --batch 8 --threads 1 --json
    """
    import numpy as np

    from ..bundle import open_bundle
    from ..machine import machine
    from ..parity.evidence import natural_images
    from ..parity.gates import interleave, percentiles
    from ..runtime.predictor import open_artifact

    opened = open_bundle(bundle)
    spec = opened.input
    predictors = {name: open_artifact(opened, name, threads=threads) for name in artifacts or opened.artifacts}
    pixels = natural_images(batch, 2 * spec.height, 2 * spec.width, spec.source_channels)
    tensor, _ = next(iter(predictors.values())).prepare(pixels)
    calls = {f"{name}|network": (lambda _x, p=p: p.session.run(tensor)) for name, p in predictors.items()}
    calls |= {f"{name}|image to result": (lambda _x, p=p: p(pixels, batch=batch)) for name, p in predictors.items()}
    times = interleave(calls, np.empty((1, 1, 1, 1), np.float32), seconds=seconds, rounds=100_000)
    first = next(iter(predictors))
    rows = []
    for key, values in times.items():
        name, _, what = key.partition("|")
        ms = percentiles(values)
        base = float(np.median(times[f"{first}|{what}"]))
        rows.append(
            {
                "artifact": name,
                "what": what,
                "batch": batch,
                "p50_ms": ms["p50"],
                "p90_ms": ms["p90"],
                "p99_ms": ms["p99"],
                "images_per_s": 1000 * batch / ms["p50"],
                "ratio": ms["p50"] / base,
                "rounds": len(values),
                "device": predictors[name].session.device,
            }
        )
    if as_json:
        emit_json({"bundle": str(bundle), "machine": machine(), "measurements": rows})
        return
    click.echo(
        table(
            [
                (r["artifact"], r["what"], f"{r['p50_ms']:.3f}", f"{r['p90_ms']:.3f}", f"{r['p99_ms']:.3f}",
                 f"{r['images_per_s']:.0f}", f"x{r['ratio']:.2f}", r["rounds"])
                for r in rows
            ],
            ("artefact", "what", "p50 ms", "p90 ms", "p99 ms", "images/s", f"of {first}", "rounds"),
        )
    )  # fmt: skip
    facts = machine()
    note(f"{facts['processor']}, {facts['cores']} cores, {predictors[first].session.device}, batch {batch}")
