"""Evidence that an artefact does what the trained network does. numpy only: the same code judges everywhere.

Three gates (``zoo.parity.gates``), golden vectors (``selftest``), and the report that shows both (``report``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ..specs import Task
    from ..tasks import TaskHalf

__all__ = ["Candidate", "Finding", "Reference", "Samples"]

PASS, FAIL, INCONCLUSIVE, SKIPPED = "pass", "fail", "inconclusive", "not judged"


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What candidate and reference were both run on."""

    task: Task
    half: TaskHalf
    """The task's numpy half, with the decode settings in force."""
    labels: tuple[str, ...]
    ids: tuple[str, ...]
    """N names, in the order of the outputs' first axis."""
    targets: Sequence[Any] | None
    """N targets, each None where nobody knows the right answer; None where no images were given, or only a set of real ones to
    compare with: then accuracy is not judged."""
    source: str
    """For the report: ``val split of photos (153 images)``."""
    tensors: np.ndarray
    """(K, C, H, W) float32, K <= N: the first few inputs, for the latency gate."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One artefact's behaviour on the samples."""

    name: str
    precision: str
    outputs: Mapping[str, np.ndarray]
    """By output name, (K, …), K <= N: raw outputs of the first samples, as many as memory allows."""
    results: Sequence[Any] = ()
    """N result records, decoded for judging; empty where only the raw outputs are at hand."""
    call: Callable[[np.ndarray], Any] | None = None
    """Runs a (1, C, H, W) tensor; None where latency is not to be measured."""
    time_ms: Callable[[np.ndarray], float] | None = None
    """Runs such a tensor and gives the device's own time by its events, in milliseconds; None where it has no clock."""
    device: str = ""
    threads: int | None = None
    """CPU threads of one call, where they are bounded."""
    stand_in: str = ""
    """What executed it in place of the artefact's own runtime, and what that says (see
    :func:`zoo.parity.evidence.stand_in`); empty where its own did. The latency of a stand-in is nobody's."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """The bounds in force: the task's for this precision, with a user's own laid over them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The trained network's behaviour on the same samples."""

    name: str
    """``PyTorch 2.15.0 (eager, float32)``, or the artefact that stands in for it on a device."""
    outputs: Mapping[str, np.ndarray]
    """By output name, (K, …), K <= N, as the candidate's."""
    exact: Mapping[str, np.ndarray] | None = None
    """The first of them in float64 arithmetic: the truth against which both are measured."""
    results: Sequence[Any] = ()
    """N result records, as the candidate's."""
    call: Callable[[np.ndarray], Any] | None = None
    device: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One gate's verdict on one artefact. Truthy where it passed."""

    gate: str
    verdict: str
    """``pass``, ``fail``, ``inconclusive`` or ``not judged``."""
    message: str
    """One line for a person: the figure, the bound, and the cure where there is one."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind it, JSON-ready, units in the names."""

    def __bool__(self) -> bool:
        return self.verdict == PASS

    def to_dict(self) -> dict[str, Any]:
        return {"gate": self.gate, "verdict": self.verdict, "message": self.message, "figures": dict(self.figures)}
