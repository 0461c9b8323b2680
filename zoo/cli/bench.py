"""``zoo bench``: a bundle's latency on this machine, every artefact in turn within one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import emit_json, json_option, note, table

if TYPE_CHECKING:
    from ..runtime.predictor import Predictor


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

    Artefacts take turns, so that a change of clocks touches all alike: trust the ratios. Each is opened by the best
    runtime that works here; which that is, and why better ones do not, is said. The graph of a TensorRT artefact that
    only ONNX Runtime can execute here is not measured: that would be no engine's latency.

    \b
    Examples:
      zoo bench digits.zoo
      zoo bench digits.zoo --batch 8 --threads 1 --json
    """
    import numpy as np

    from ..bundle import open_bundle
    from ..errors import ZooError
    from ..machine import clocks, machine
    from ..parity.evidence import made_images
    from ..parity.gates import interleave, percentiles
    from ..runtime.predictor import open_artifact

    opened = open_bundle(bundle)
    spec = opened.input
    predictors: dict[str, Predictor] = {}
    closed: dict[str, ZooError] = {}
    for name in artifacts or opened.artifacts:
        try:
            predictors[name] = open_artifact(opened, name, threads=threads, progress=note)
        except ZooError as error:
            closed[name] = error
    if closed and (artifacts or not predictors):
        raise next(iter(closed.values()))
    runtimes = {name: _told(predictor) for name, predictor in predictors.items()}
    timed = {name: p for name, p in predictors.items() if not runtimes[name]["stand_in"]}
    rows: list[dict[str, Any]] = []
    now: dict[str, Any] = {}
    if timed:
        larger = 1 if spec.resize == "crop" else 2  # what is not resized is timed at the network's own size
        pixels = made_images(spec, batch, larger * spec.height, larger * spec.width)
        tensor, _ = next(iter(timed.values())).prepare(pixels)
        calls = {f"{name}|network": (lambda _x, p=p: p.session.run(tensor)) for name, p in timed.items()}
        calls |= {f"{name}|image to result": (lambda _x, p=p: p(pixels, batch=batch)) for name, p in timed.items()}
        events = {n: f for n, p in timed.items() if (f := getattr(p.session, "time_ms", None)) is not None}
        warmup = 20 if events else 3  # a GPU takes some tens of calls until its clocks are up
        times = interleave(calls, np.empty((1, 1, 1, 1), np.float32), warmup=warmup, seconds=seconds, rounds=100_000)
        own = {name: np.asarray([time_ms(tensor) for _ in range(50)]) for name, time_ms in events.items()}
        now = clocks()  # while they are still up
        first = next(iter(timed))
        times |= {f"{name}|the device alone": values for name, values in own.items()}
        for key, values in times.items():
            name, _, what = key.partition("|")
            ms = percentiles(values)
            base = times.get(f"{first}|{what}")
            rows.append(
                {
                    "artifact": name,
                    "what": what,
                    "batch": batch,
                    "p50_ms": ms["p50"],
                    "p90_ms": ms["p90"],
                    "p99_ms": ms["p99"],
                    "images_per_s": 1000 * batch / ms["p50"],
                    "ratio": ms["p50"] / float(np.median(base)) if base is not None else None,
                    "rounds": len(values),
                    "warmup": warmup,
                    "device": timed[name].session.device,
                    "runtime": timed[name].session.runtime,
                }
            )
    facts = machine()
    if as_json:
        measured = {"measurements": rows, "runtimes": runtimes, "machine": facts, "clocks": now}
        emit_json({"bundle": str(bundle), **measured, "not_opened": {n: str(e) for n, e in closed.items()}})
        return
    if rows:
        click.echo(
            table(
                [
                    (r["artifact"], r["what"], f"{r['p50_ms']:.3f}", f"{r['p90_ms']:.3f}", f"{r['p99_ms']:.3f}",
                     f"{r['images_per_s']:.0f}", "-" if r["ratio"] is None else f"x{r['ratio']:.2f}", r["rounds"])
                    for r in rows
                ],
                ("artefact", "what", "p50 ms", "p90 ms", "p99 ms", "images/s", f"of {first}", "rounds"),
            )
        )  # fmt: skip
        click.echo()
    click.echo(
        table(
            [
                (name, told["runtime"], told["device"], told["stand_in"] and f"not measured: {told['stand_in']}")
                for name, told in runtimes.items()
            ],
            ("artefact", "runtime", "device", ""),
        )
    )
    for name, fault in closed.items():
        note(f"{name} was not opened: {fault}")
    for reason, names in _reasons(runtimes).items():
        note(f"not {reason} (for {', '.join(names)})")
    note(f"{facts['processor']}, {facts['cores']} cores, batch {batch}" + _at(now))


def _told(predictor: Predictor) -> dict[str, Any]:
    """Which runtime opened an artefact, and why better ones did not."""
    from ..parity.evidence import stand_in

    return {
        "runtime": predictor.session.runtime,
        "device": predictor.session.device,
        "stand_in": stand_in(predictor.artifact.format, predictor.session, predictor.artifact.precision),
        "lost": dict(predictor.choice.lost),
    }


def _reasons(runtimes: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Each ``runtime: reason`` once, with the artefacts that it holds for."""
    found: dict[str, list[str]] = {}
    for name, told in runtimes.items():
        for runtime, reason in told["lost"].items():
            found.setdefault(f"{runtime}: {reason}", []).append(name)
    return found


def _at(now: dict[str, Any]) -> str:
    """The clocks and power mode that were in force, as far as known."""
    said = [f"GPU at {gpu['sm_mhz']} MHz" for gpu in now.get("gpus", ()) if "sm_mhz" in gpu]
    said += [f"power mode {now['power_mode']}"] if "power_mode" in now else []
    return "".join(f", {text}" for text in said)
