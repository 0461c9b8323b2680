"""PLACEHOLDER of the lead, to be replaced by its owner: which runtime opens an artefact here, and why others lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..lookup import find, runtimes_for
from ..specs import Runtime, first_installed

__all__ = ["Choice", "choose"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    runtime: Runtime
    lost: Mapping[str, str] = field(default_factory=dict)


def choose(format: str, name: str | None = None) -> Choice:
    return Choice(runtime=find(Runtime, name) if name else first_installed(runtimes_for(format)))
