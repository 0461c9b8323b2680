"""Finds a spec by name on a device: the core's own records first, the registry (and pluggy) only where needed."""

from __future__ import annotations

import importlib.util
from typing import TypeVar

from .builtin import SPECS
from .errors import MissingPart, UnknownName
from .specs import Runtime, Spec, Task

S = TypeVar("S", bound=Spec)

__all__ = ["find", "find_task", "runtimes_for"]


def find(kind: type[S], name: str) -> S:
    """The spec of that name. Raises UnknownName; MissingPart where only a plugin could know it and pluggy is absent."""
    for spec in SPECS:
        if isinstance(spec, kind) and spec.name == name:
            return spec
    if importlib.util.find_spec("pluggy") is None:
        known = [s.name for s in SPECS if isinstance(s, kind)]
        error = UnknownName(kind.kind, name, known)
        raise MissingPart(f"pluggy, which plugins are found with ({error}),", "pip install pluggy")
    from .registry import get_registry

    return get_registry().get(kind, name)


def find_task(name: str) -> Task:
    return find(Task, name)


def runtimes_for(format: str) -> list[Runtime]:
    """The runtimes that read an artefact format, best first; the registry is asked only where the core has none."""
    own = [s for s in SPECS if isinstance(s, Runtime) and format in s.reads]
    if own:
        return sorted(own, key=lambda r: -r.priority)
    if importlib.util.find_spec("pluggy") is None:
        return []
    from .registry import get_registry

    return get_registry().runtimes(format)
