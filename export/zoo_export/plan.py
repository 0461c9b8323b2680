"""How each precision is reached, found before any slow work and without torch: what is misspelt or missing is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zoo.errors import ExportError
from zoo.registry import get_registry
from zoo.specs import Exporter, Precision, Runtime, absent, first_installed, missing_part

__all__ = ["Plan", "make_plans", "runtime_for"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Exporters before the precision pass, the pass, exporters after it."""

    precision: str
    before: Sequence[Exporter]
    convert: Precision | None
    """None for fp32."""
    after: Sequence[Exporter]


def make_plans(to: str, precisions: Sequence[str]) -> list[Plan]:
    """One plan a precision. Raises UnknownName, MissingPart with the install line, ExportError."""
    registry = get_registry()
    chain = registry.chain("torch", to)
    formats = ["torch", *(exporter.writes for exporter in chain)]
    if not precisions:
        raise ExportError("--precision is empty: name at least one, like fp32,int8")
    if len(set(precisions)) != len(precisions):
        raise ExportError(f"--precision {','.join(precisions)}: name each precision once")
    plans = []
    for precision in precisions:
        if precision == "fp32":
            plans.append(Plan(precision=precision, before=chain, convert=None, after=()))
            continue
        # the pass nearest to the target knows the target's wishes best
        passes = {p.reads for p in registry.specs(Precision) if p.precision == precision}
        at = max((i for i, name in enumerate(formats) if name in passes), default=len(formats) - 1)
        spec = registry.precision(precision, formats[at])
        if absent(spec):
            raise missing_part(spec)
        plans.append(Plan(precision=precision, before=chain[:at], convert=spec, after=chain[at:]))
    return plans


def runtime_for(format: str) -> Runtime:
    """The runtime that judges artefacts of a format here. Raises MissingPart, ExportError."""
    found = get_registry().runtimes(format)
    if not found:
        raise ExportError(
            f"no runtime reads {format} artefacts, so they could not be judged: `zoo plugins` shows what is installed"
        )
    return first_installed(found)
