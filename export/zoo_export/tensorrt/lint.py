"""The linter: every rule over one graph, and NVIDIA's own parser after them where it is installed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from zoo.errors import ExportError, UnknownName, ZooError
from zoo.runtime.tensorrt import api

from ..graphs import read_modules
from . import asking
from .asking import Answer
from .rules import ERROR, INFO, RULES, SEVERITIES, WARNING
from .targets import Target
from .view import LAYERS, View

__all__ = ["PARSER", "Finding", "Report", "lint", "open_model", "untold", "whole"]

PARSER = "parser"
"""The rule id of what only NVIDIA's parser found."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a graph, or that must be known of it."""

    rule: str
    severity: str
    """error, warning or info."""
    node: str
    """Name of the graph node; empty where the finding is about the whole graph."""
    module: str
    """The torch module that the node came from, where the exporter's sidecar tells it."""
    what: str
    why: str
    cure: str

    def to_dict(self) -> dict[str, str]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in one graph; truthy where no finding is an error."""

    model: str
    target: str
    opset: int
    nodes: int
    precisions: Mapping[str, int]
    """How many convolutions and matrix products compute in which type."""
    findings: tuple[Finding, ...]
    asked: str
    """Which parser was asked and what it said, in one line; or why none was."""
    verdict: api.Verdict | None = field(default=None, repr=False)

    def __bool__(self) -> bool:
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == ERROR)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "target": self.target,
            "passed": bool(self),
            "opset": self.opset,
            "nodes": self.nodes,
            "precisions": dict(self.precisions),
            "parser": self.asked,
            "verdict": self.verdict.to_dict() if self.verdict else None,
            "findings": [f.to_dict() for f in self.findings],
        }


def open_model(source: Path | bytes, name: str = "", *, weights: bool = False) -> ModelProto:
    """Read ONNX; weights that lie in files beside it only where they are asked for. Raises ExportError where it is none."""
    name = name or str(source)
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        model = onnx.load_model_from_string(data)
    except OSError as error:
        raise ExportError(f"{name}: {error.strerror or error}") from None
    except Exception as error:  # protobuf's class for this differs between its implementations
        raise ExportError(f"{name} is not an ONNX file, or only part of one: copy or export it again") from error
    if not model.graph.node and not model.graph.output:
        raise ExportError(f"{name} is not an ONNX file: it holds no graph")
    if weights and isinstance(source, Path):
        try:
            onnx.load_external_data_for_model(model, str(source.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ExportError(
                f"{name}: weights in another file cannot be read: {str(error).splitlines()[0]}"
            ) from error
    return model


@contextlib.contextmanager
def whole(model: ModelProto, name: str) -> Iterator[None]:
    """Turns what a damaged model makes of this code into an ExportError with the checker's word on the model."""
    try:
        yield
    except ZooError:
        raise
    except Exception as error:  # text that is no text, types that are none: a damaged file can hold anything
        try:
            onnx.checker.check_model(model)
        except Exception as fault:
            reason = str(fault).strip().splitlines()[0][:200]
            raise ExportError(f"{name} is damaged: {reason}: copy or export it again") from error
        raise


def lint(
    source: Path | bytes | ModelProto,
    target: Target,
    *,
    name: str = "",
    modules: Mapping[str, str] | None = None,
    ignore: Iterable[str] = (),
    ask: bool = True,
) -> Report:
    """Judge one graph for a target.

    ``source``: an ONNX file, its bytes, or the model itself; ``modules``: graph node to torch module, by default the
    sidecar beside the file; ``ignore``: ids of rules that are left out; ``ask``: also ask NVIDIA's parser if it is
    installed. Raises ExportError where the source is no ONNX, UnknownName for a rule that does not exist.
    """
    ignored = set(ignore)
    for id in sorted(ignored - {*RULES, PARSER}):
        raise UnknownName("rule", id, (*RULES, PARSER))
    file = source if isinstance(source, Path) else None
    model = source if isinstance(source, ModelProto) else open_model(source, name)
    name = name or (str(file) if file else model.graph.name)
    if modules is None:
        modules = read_modules(file) if file else {}
    with whole(model, name):
        view = View(model, file.parent if file else None, dict(modules))
        findings = [
            Finding(
                rule=rule.id,
                severity=hit.severity or rule.severity,
                node=view.name(hit.node) if hit.node is not None else "",
                module=view.module(hit.node) if hit.node is not None else "",
                what=hit.what,
                why=rule.why,
                cure=hit.cure or rule.cure,
            )
            for rule in RULES.values()
            if rule.id not in ignored
            for hit in rule.check(view, target)
        ]
    said: Answer | None = None
    asked = "not asked"
    if ask:
        sibling = "tensorrt" if target.rtx else "tensorrt-rtx"
        data = file.read_bytes() if file else source if isinstance(source, bytes) else model.SerializeToString()
        said = asking.ask([target.flavour, sibling], data, file)
        asked = f"none is installed; {api.INSTALL['tensorrt-rtx']} brings one that needs no GPU"
    if said is not None:
        own = said.flavour == target.flavour and target.means(said.version)
        role = "" if own else f" (not {target}, but it shares the parser)"
        asked = f"{said.verdict.library} {'takes' if said.verdict else 'refuses'} it{role}"
        findings += [] if PARSER in ignored else untold(said, view, findings, severity=ERROR if own else WARNING)
    findings.sort(key=lambda f: SEVERITIES.index(f.severity))
    return Report(
        model=name,
        target=str(target),
        opset=view.opset,
        nodes=len(view.nodes),
        precisions=dict(Counter(view.precision(node) for node in view.ops(*LAYERS)).most_common()),
        findings=tuple(findings),
        asked=asked,
        verdict=said.verdict if said else None,
    )


def untold(said: Answer, view: View, findings: Sequence[Finding], *, severity: str = ERROR) -> list[Finding]:
    """What the parser refuses where no rule told of the node: as findings of its own.

    What lies in a branch or a loop body counts as told of where the node that holds it was.
    """
    told = {f.node for f in findings if f.severity != INFO}
    outer = {view.name(node): index for index, node in enumerate(view.graph.node)}
    refused = {name for name, index in outer.items() if index in said.verdict.refused}

    def known(complaint: api.Complaint) -> bool:
        return not said.crash and ({complaint.node} if complaint.node in outer or not refused else refused) <= told

    return [
        Finding(
            rule=PARSER,
            severity=severity,
            node=complaint.node,
            module=view.modules.get(complaint.node, ""),
            what=f"{complaint.operator}: {complaint.text}" if complaint.operator else complaint.text,
            why=f"{said.verdict.library} refuses it, and no rule told of it",
            cure="replace this part of the network; and please report it, because a rule is missing",
        )
        for complaint in said.verdict.complaints
        if not known(complaint)
    ]
