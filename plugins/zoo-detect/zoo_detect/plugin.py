"""What zoo-detect registers. Records only: torch is imported when a network is built."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Spec, hookimpl

from .records import RECORDS


@hookimpl
def zoo_register() -> Iterable[Spec]:
    return RECORDS
