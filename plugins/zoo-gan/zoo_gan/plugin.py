"""What zoo-gan registers. Records only: torch is imported when a network is built."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Architecture, Spec, hookimpl

SPECS: tuple[Architecture, ...] = ()


@hookimpl
def zoo_register() -> Iterable[Spec]:
    return SPECS
