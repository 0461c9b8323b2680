"""How each artefact is reached, found before any slow work and without torch: what is misspelt or missing is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from zoo.errors import ExportError, UnknownName
from zoo.registry import get_registry
from zoo.runtime.choosing import Choice, choose
from zoo.runtime.tensorrt.api import TITLES
from zoo.specs import Exporter, Precision, absent, missing_part

__all__ = ["Plan", "make_plans"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Exporters before the precision pass, the pass, exporters after it."""

    target: str
    """As it was asked for: ``onnx``, ``tensorrt:10.3``."""
    format: str
    """Of the artefact: ``onnx``, ``tensorrt``."""
    precision: str
    before: Sequence[Exporter]
    convert: Precision | None
    """None for fp32."""
    after: Sequence[Exporter]

    @property
    def name(self) -> str:
        """The artefact's: ``fp16`` of ONNX, ``tensorrt-fp16`` of TensorRT."""
        return self.precision if self.format == "onnx" else f"{self.format}-{self.precision}"

    @cached_property
    def choice(self) -> Choice:
        """The runtime that judges the artefact here. Raises MissingPart, BundleError."""
        return choose(self.format)


def make_plans(targets: Sequence[str], precisions: Sequence[str]) -> list[Plan]:
    """One plan for each target and precision, ONNX first, since others are made of it.

    Raises UnknownName, MissingPart with the install line, ExportError.
    """
    if not precisions:
        raise ExportError("--precision is empty: name at least one, like fp32,int8")
    if len(set(precisions)) != len(precisions):
        raise ExportError(f"--precision {','.join(precisions)}: name each precision once")
    formats = [_format(target) for target in targets]
    if not formats:
        raise ExportError("--to is empty: name a format, like onnx or tensorrt")
    if len(set(formats)) != len(formats):
        raise ExportError(f"--to {','.join(targets)}: name each format once, TensorRT in one version")
    plans = [
        _plan(target, format, precision)
        for target, format in zip(targets, formats, strict=True)
        for precision in precisions
    ]
    for plan in plans:
        plan.choice  # noqa: B018  (said now, not after the slow work)
    return sorted(plans, key=lambda plan: len(plan.before) + len(plan.after))


def _format(target: str) -> str:
    """The artefact format of a target; a version behind a colon, and the flavour of TensorRT, are the exporter's."""
    name = target.partition(":")[0]
    if name in TITLES:
        from .tensorrt.targets import parse_target

        parse_target(target)
        return "tensorrt"
    return target


def _plan(target: str, format: str, precision: str) -> Plan:
    registry = get_registry()
    chain = registry.chain("torch", format)
    if precision == "fp32":
        return Plan(target=target, format=format, precision=precision, before=chain, convert=None, after=())
    formats = ["torch", *(exporter.writes for exporter in chain)]
    # the pass nearest to the target knows the target's wishes best; among those, the one that is meant for it alone
    passes = [p for p in registry.specs(Precision) if p.target in ("", format) and p.reads in formats]
    places = [formats.index(p.reads) for p in passes if p.precision == precision]
    if not places:
        raise UnknownName(f"precision of {format}", precision, {"fp32", *(p.precision for p in passes)})
    at = max(places)
    spec = registry.precision(precision, formats[at], format)
    if absent(spec):
        raise missing_part(spec)
    return Plan(target=target, format=format, precision=precision, before=chain[:at], convert=spec, after=chain[at:])
