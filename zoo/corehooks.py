"""The core's own plugin: its records, its gates and its way of fetching weights, answered like anybody's hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import builtin
from .hookspecs import hookimpl
from .specs import Spec

if TYPE_CHECKING:
    from pathlib import Path

    from .parity import Candidate, Finding, Reference, Samples


@hookimpl
def zoo_register() -> Iterable[Spec]:
    return builtin.SPECS


@hookimpl
def zoo_open_weights(uri: str, cache: Path) -> Path | None:
    if uri.startswith(("http://", "https://")):
        from .download import fetch

        return fetch(uri, cache)
    return None


@hookimpl
def zoo_verify(candidate: Candidate, reference: Reference, samples: Samples) -> Iterable[Finding]:
    from .parity.gates import judge
    from .parity.pictures import pixels

    return [*judge(candidate, reference, samples), *pixels(candidate, reference, samples)]
