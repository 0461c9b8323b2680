"""Finds the entry points of one group without importlib.metadata, whose imports and full scan cost more than the rest
of ``zoo --help`` together.

Covers what pip and uv install: ``*.dist-info`` and ``*.egg-info`` folders on ``sys.path``. Where something else
provides distributions (a zipped application, say), the standard library is asked after all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["EntryPoint", "find_entry_points"]


class EntryPoint(NamedTuple):
    """One line of a distribution's ``entry_points.txt``."""

    name: str
    value: str
    """``package.module`` or ``package.module:attribute``."""
    distribution: str
    version: str

    def load(self) -> Any:
        """Import what it names. Raises whatever that module raises."""
        import importlib

        module, _, attribute = self.value.partition(":")
        found: Any = importlib.import_module(module.strip())
        for part in attribute.strip().split(".") if attribute.strip() else ():
            found = getattr(found, part)
        return found


def find_entry_points(group: str) -> list[EntryPoint]:
    """The entry points of ``group``, sorted by name; the first distribution of a name on ``sys.path`` counts."""
    found: list[EntryPoint] = []
    seen: set[str] = set()
    for folder in sys.path:
        if folder and os.path.isfile(folder):
            return sorted(_from_metadata(group), key=lambda e: e.name)
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for name in names:
            if not name.endswith((".dist-info", ".egg-info")):
                continue
            distribution, _, version = name.rpartition(".")[0].partition("-")
            key = distribution.lower().replace("_", "-").replace(".", "-")
            if key in seen:
                continue
            seen.add(key)
            try:
                with open(os.path.join(folder or ".", name, "entry_points.txt"), encoding="utf-8") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError):
                continue
            if f"[{group}]" in text:
                owner = distribution.replace("_", "-")
                found += [
                    EntryPoint(name=key, value=value, distribution=owner, version=version.partition("-")[0])
                    for key, value in _section(text, group)
                ]
    return sorted(found, key=lambda e: e.name)


def _section(text: str, group: str) -> Iterator[tuple[str, str]]:
    inside = False
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield name.strip(), value.partition("[")[0].strip()


def _from_metadata(group: str) -> Iterator[EntryPoint]:
    import importlib.metadata

    for entry in importlib.metadata.entry_points(group=group):
        dist = entry.dist
        yield EntryPoint(
            name=entry.name,
            value=entry.value,
            distribution=dist.name if dist else "",
            version=dist.version if dist else "",
        )
