"""Every error the zoo raises on purpose, so that a caller catches one class and a person reads one line.

ZooError                 exit code 2: bad input or a missing part
├── UnknownName          a name nobody registered; says the nearest ones
├── MissingPart          an optional package is not installed; says the install line
├── OutputError          the place to write to is unusable: exists, read-only, full
├── DataError            a data set cannot be used
│   └── ImageError       one image cannot be read
├── CheckpointError      weights or a checkpoint do not fit
├── BundleError          a bundle is broken, altered, unsafe or of an unknown schema
├── ExportError          a network cannot be turned into the artefact that was asked for
├── DeviceError          a GPU or its driver refused: absent, out of memory, a call that failed
├── PluginError          a plugin broke its contract
└── GateFailed           exit code 1: a parity gate said no
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BundleError",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "ExportError",
    "GateFailed",
    "ImageError",
    "MissingPart",
    "OutputError",
    "PluginError",
    "UnknownName",
    "ZooError",
    "nearest",
]


class ZooError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is what the command line returns."""

    exit_code = 2


class UnknownName(ZooError):
    """``name`` is not among the registered names of its ``kind``."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = nearest(name, known)
        if close:
            cure = "did you mean " + " or ".join(close) + "?"
        elif known and len(known) <= 12:
            cure = "there are: " + ", ".join(known)
        elif known:
            cure = f"`zoo list` shows all {len(known)}" if kind == "architecture" else f"there are {len(known)}"
        else:
            cure = "none is installed; `zoo plugins` shows what was found"
        super().__init__(f"unknown {kind} '{name}': {cure}")
        self.kind, self.name, self.nearest = kind, name, close


class MissingPart(ZooError):
    """A part of the zoo needs a package that is not installed."""

    def __init__(self, what: str, install: str) -> None:
        super().__init__(f"{what} is not installed: {install}")
        self.what, self.install = what, install


class OutputError(ZooError):
    """Something cannot be written where it should go."""


class DataError(ZooError):
    """A data set is missing, empty, inconsistent, or too damaged to use."""


class ImageError(DataError):
    """One image cannot be read: damaged, empty, too large, or of a kind that has no agreed meaning."""


class CheckpointError(ZooError):
    """Weights or a checkpoint cannot be read, or do not fit the network."""


class BundleError(ZooError):
    """A bundle is missing, altered, unsafe, or of a schema this version does not know."""


class ExportError(ZooError):
    """A network cannot be turned into the artefact that was asked for."""


class DeviceError(ZooError):
    """A GPU or its driver refused: not there, out of memory, or a call that failed. ``name`` is CUDA's own."""

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(text)
        self.name = name

    @property
    def out_of_memory(self) -> bool:
        return self.name == "CUDA_ERROR_OUT_OF_MEMORY"


class PluginError(ZooError):
    """A plugin broke its contract."""


class GateFailed(ZooError):
    """A parity gate failed. The report that says why was written before this was raised."""

    exit_code = 1


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The registered names most like ``name``, best first; empty where nothing is close."""
    import difflib  # an error is being made: time enough

    known = list(known)
    close = difflib.get_close_matches(name.lower(), known, n=count, cutoff=0.6)
    if len(name) >= 3:
        starts = sorted((k for k in known if k.startswith(name.lower()) and k not in close), key=len)
        close += starts[: count - len(close)]
    return close
