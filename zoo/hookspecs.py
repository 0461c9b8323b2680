"""The moments a plugin can answer: the table of contents of the plugin system. Nouns are records (``zoo.specs``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from .specs import Spec

if TYPE_CHECKING:
    from pathlib import Path

    from .parity import Candidate, Finding, Reference, Samples

GROUP = "zoo"
"""Both the pluggy project name and the entry-point group that plugins are found by."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def zoo_register() -> Iterable[Spec]:
    """Called once, when the registry is first asked for anything. Deliver every noun the plugin brings.

    Import nothing heavy here: a record names its code by a dotted path.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def zoo_open_weights(uri: str, cache: Path) -> Path | None:
    """Called when weights are wanted. Return a local file (safetensors or .pth) for ``uri``, or None if it is
    not yours. Files that are fetched belong under ``cache``. Raise ``CheckpointError`` where it is yours but
    cannot be had: say why, and the cure.
    """


@hookspec
def zoo_verify(candidate: Candidate, reference: Reference, samples: Samples) -> Iterable[Finding]:
    """Called for each artefact that is judged, on the workstation and on the device (numpy only). Every plugin's
    findings are collected; one that fails keeps the artefact from being called verified.
    """
    raise NotImplementedError
