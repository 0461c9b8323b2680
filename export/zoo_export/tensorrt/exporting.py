"""From an ONNX graph to one that TensorRT builds an engine of, and to the engine where one can be built here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.artifacts import Artifact
from zoo.errors import ExportError, MissingPart
from zoo.parity import FAIL, PASS, SKIPPED, Finding
from zoo.runtime.tensorrt import api
from zoo.specs import ImageInput

from ..graphs import read_modules, save
from .fixes import fix
from .lint import Report, lint, open_model
from .targets import Target, parse_target
from .view import LAYERS, View

__all__ = ["Builder", "TensorRTExport", "export", "find_builder", "profiles"]

PRECISION_OF = {"HALF": "fp16", "BF16": "bf16", "FLOAT": "fp32"}
"""The types that TensorRT's parser gives layers, in the zoo's words."""
BITS = {"int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
WEIGHTED_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
LINT_SHOWN = 40
"""Findings that are kept in the manifest; `zoo lint` shows them all."""


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Who builds engines on this machine, and what such an engine is good for."""

    flavour: str
    says: str
    """One line for a person."""


def find_builder(target: Target) -> Builder:
    """The library that builds for ``target`` here: its own where there is a GPU, else TensorRT-RTX, which needs none.

    Raises MissingPart with the install lines, and ``--defer`` as the way out, where neither is at hand.
    """
    own = api.find(target.flavour)
    if own is not None and target.flavour == "tensorrt":
        if own.builder() is not None:
            return Builder(flavour="tensorrt", says=f"{own} builds the engine for this GPU.")
        reason = f"{own} is installed, but makes no builder: it needs an NVIDIA GPU and its driver"
    else:
        reason = "" if target.rtx else "TensorRT is not installed here"
    rtx = api.find("tensorrt-rtx")
    if rtx is not None:
        proof = "which shows that the graph parses, builds and keeps its precision"
        if target.rtx:
            says = (
                f"{rtx} builds the engine on this CPU; the GPU it runs on (RTX, Ampere or newer) compiles it further."
            )
        else:
            says = f"{reason}: the device builds its own engine (`zoo build`). {rtx} builds one on this CPU, {proof}."
        return Builder(flavour="tensorrt-rtx", says=says)
    way_out = f"{api.INSTALL['tensorrt-rtx']} (builds on a CPU), or --defer: the device builds its engine itself"
    if own is None and not target.rtx:
        way_out = f"{api.INSTALL['tensorrt']}; {way_out}"
    raise MissingPart(
        f"{target} builds no engine here ({reason or 'it is not installed'}): a library that does", way_out
    )


def profiles(spec: ImageInput, options: Mapping[str, Any], name: str) -> dict[str, list[list[int]]]:
    """Least, usual and largest shape of the graph's input ``name``, from ``options``: ``batch`` (three counts) and
    ``sizes`` (three (height, width), where the graph leaves them open)."""
    counts: Sequence[int] = options.get("batch") or (1, 1, 8)
    sizes = options.get("sizes") or [(spec.height, spec.width)] * 3
    return {name: [[n, spec.channels, h, w] for n, (h, w) in zip(counts, sizes, strict=True)]}


class TensorRTExport:
    """The exporter. Calling it prepares the graph; :meth:`complete` builds the engine, which is slow and done once."""

    def __call__(self, source: Artifact, out: Path, options: Mapping[str, Any]) -> Artifact:
        """Write the graph that TensorRT reads to ``<out>.onnx``, with the exact rewrites of `zoo lint --fix`, and judge it
        by the linter and, where one is installed, NVIDIA's parser. Where nothing is to be rewritten and the source lies in
        the same folder, it serves as it is.

        ``options``: ``target`` (``tensorrt:10.3``), ``batch``, ``sizes``, ``tf32``, ``workspace_bytes``. A refusal is a
        failed finding of the artefact. Raises ExportError where there is no ONNX file to start from.
        """
        if source.path is None:
            raise ExportError("TensorRT needs an ONNX file to start from")
        target = parse_target(str(options.get("target") or "tensorrt"), _asked(source.precision))
        model = open_model(source.path, weights=True)
        modules = read_modules(source.path)
        mended, done = fix(model)
        path = out.with_name(out.name + ".onnx")
        if done or source.path.parent != out.parent:
            save(mended, path)
        else:
            path = source.path  # the very file of the ONNX artefact in the same bundle
        report = lint(path, target, modules=modules)
        view = View(mended, None, dict(modules))
        layers = _layers(view, source.precision, report)
        (name,) = (value.name for value in view.inputs)
        return replace(
            source,
            format="tensorrt",
            path=path,
            findings=(_lint_finding(report), *_parsed_finding(layers, report)),
            notes={
                **source.notes,
                "target": str(target),
                "rewritten": done,
                "lint": [f.to_dict() for f in report.findings[:LINT_SHOWN]],
                "parser": report.asked,
                "layers": layers,
                "layer_counts": dict(report.precisions),
            },
            build={
                "profiles": profiles(source.input, options, name),
                "flags": {"tf32": bool(options.get("tf32"))},
                "workspace_bytes": options.get("workspace_bytes"),
                "engines": [],
            },
        )

    def complete(self, artifact: Artifact, options: Mapping[str, Any]) -> Artifact:
        """The same artefact with an engine beside its graph; where the builder refuses, with a failed finding.

        ``options``: ``target``, ``defer``, ``progress``. Raises MissingPart as :func:`find_builder`.
        """
        assert artifact.path is not None
        if options.get("defer"):
            message = "no engine was built (--defer): the device builds it, at `zoo build` or when it is first loaded"
            return replace(artifact, findings=(*artifact.findings, _finding("build", SKIPPED, message)))
        from zoo.runtime.tensorrt.building import build_engine

        builder = find_builder(parse_target(str(options.get("target") or "tensorrt")))
        engine = artifact.path.with_name(f"model.{artifact.precision}.{builder.flavour}.engine")
        try:
            facts = build_engine(
                builder.flavour,
                artifact.path,
                engine,
                profiles=artifact.build["profiles"],
                flags=artifact.build["flags"],
                workspace_bytes=artifact.build["workspace_bytes"],
                progress=options.get("progress"),
            )
        except ExportError as error:
            return replace(artifact, findings=(*artifact.findings, _finding("build", FAIL, str(error))))
        entry: dict[str, Any] = {**facts, "file": engine.name}
        built = entry.pop("built_precisions", None) or {}
        entry.pop("typed", None)
        layers = [{**layer, "built": built.get(layer["layer"])} for layer in artifact.notes["layers"]]
        finding = _built_finding(builder, facts, layers)
        return replace(
            artifact,
            findings=(*artifact.findings, finding),
            notes={**artifact.notes, "layers": layers},
            build={**artifact.build, "engines": [*artifact.build["engines"], entry]},
        )


export = TensorRTExport()


def _asked(precision: str) -> str:
    """What the linter is to hold the graph to: a mixed plan may put its layers where it likes."""
    return "" if precision == "mixed" else precision


def _finding(gate: str, verdict: str, message: str, **figures: Any) -> Finding:
    return Finding(gate=gate, verdict=verdict, message=message, figures=figures)


def _lint_finding(report: Report) -> Finding:
    if report:
        count = len(report.findings)
        more = f", {count} remark{'s' if count > 1 else ''}" if count else ""
        return _finding("lint", PASS, f"nothing that {report.target} refuses{more}; {report.asked}")
    first = report.errors[0]
    where = f" at {first.module or first.node}" if first.module or first.node else ""
    rest = f" (and {len(report.errors) - 1} more)" if len(report.errors) > 1 else ""
    return _finding(
        "lint", FAIL, f"{report.target} refuses it: {first.rule}{where}: {first.what}{rest}. Cure: {first.cure}"
    )


def _layers(view: View, requested: str, report: Report) -> list[dict[str, Any]]:
    """A row for each convolution and matrix product: what was asked for, what the graph says, what the parser made of it."""
    parsed = {
        name: PRECISION_OF.get(type_, type_.lower())
        for name, kind, type_ in (report.verdict.typed if report.verdict else ())
        if kind in WEIGHTED_LAYERS
    }
    return [
        {
            "layer": view.name(node),
            "module": view.module(node),
            "requested": requested,
            "graph": view.precision(node),
            "parsed": parsed.get(view.name(node)),
            "built": None,
        }
        for node in view.ops(*LAYERS)
    ]


def _parsed_finding(layers: Sequence[Mapping[str, Any]], report: Report) -> list[Finding]:
    """Whether the parser's own layers have the types that the graph gives them; nothing where no parser was asked.

    The output of an int8 layer is a float in the parser's network: its integers lie in the Q/DQ layers around it.
    """
    if report.verdict is None or not report.verdict:
        return []
    known = [x for x in layers if x["parsed"] is not None]
    lost = [x for x in known if x["graph"] in ("fp16", "bf16") and x["parsed"] != x["graph"]]
    if lost:
        first = lost[0]
        message = (
            f"{len(lost)} layers lost their precision in the parser: {first['module'] or first['layer']} is "
            f"{first['graph']} in the graph and {first['parsed']} in {report.verdict.library}"
        )
        return [_finding("precision", FAIL, message)]
    pairs = sum(report.verdict.layers.get("DEQUANTIZE", {}).values())
    if any(x["graph"] == "int8" for x in layers) and not pairs:
        return [_finding("precision", FAIL, f"{report.verdict.library} dropped every Q/DQ pair of the graph")]
    counts = ", ".join(f"{count} {name}" for name, count in report.precisions.items()) or "no weighted layer"
    return [
        _finding("precision", PASS, f"as {report.verdict.library} reads it: {counts}", parsed=report.verdict.layers)
    ]


def _built_finding(builder: Builder, facts: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> Finding:
    """What was built, and whether the engine's own inspector shows the precision that the graph has.

    A builder may leave a few layers in a wider type where it fuses them with others; half of them is a downgrade.
    """
    title = f"{api.TITLES[builder.flavour]} {facts['version']}"
    where = f"on {facts['gpu']}" if facts.get("gpu") else "on the CPU, not run: it is compiled further on an RTX GPU"
    said = f"{title}: {facts['bytes'] / 1e6:.1f} MB in {facts['seconds']:.1f} s {where}"
    known = [x for x in layers if x["built"] in BITS and x["graph"] in BITS]
    wider = [x for x in known if BITS[x["built"]] > BITS[x["graph"]]]
    if wider:
        first = wider[0]
        said += (
            f"; {len(wider)} of {len(known)} layers are wider in the engine than in the graph, the first "
            f"{first['module'] or first['layer']}: {first['graph']} became {first['built']}"
        )
    verdict = FAIL if 2 * len(wider) > len(known) else PASS
    return _finding("build", verdict, said, seconds=facts["seconds"], bytes=facts["bytes"])
