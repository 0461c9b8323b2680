"""Which runtime opens an artefact on this machine, found by asking each; and why those that were better did not.

In order of what they are worth on a GPU: TensorRT, TensorRT-RTX, ONNX Runtime's TensorRT provider, its CUDA provider,
its CPU. ONNX artefacts are another matter: they were judged on the CPU, so that is where they run unless another
runtime is asked for by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import BundleError, MissingPart, ZooError
from ..lookup import find, runtimes_for
from ..specs import Runtime, absent, missing_part, resolve

__all__ = ["Choice", "choose", "why_not"]

JUDGED = {"onnx": "onnxruntime"}
"""By format, the runtime that artefacts are judged in wherever they are made: what was proved is what runs by default."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The runtime that was taken, and why others were not."""

    runtime: Runtime
    lost: Mapping[str, str] = field(default_factory=dict)
    """By name of a runtime that would have come first: why it did not, in a line."""

    def __str__(self) -> str:
        return "; ".join([self.runtime.name, *(f"not {name}: {reason}" for name, reason in self.lost.items())])


def choose(format: str, name: str | None = None, *, lost: Mapping[str, str] | None = None) -> Choice:
    """The best runtime here for artefacts of a format, or the one of that ``name``.

    ``lost``: runtimes that were tried already and could not open the artefact, with the reasons.

    Raises UnknownName, BundleError where the named runtime reads other formats or cannot run here, or none reads this
    one; MissingPart with the install line where nothing that reads it is installed.
    """
    if name:
        spec = find(Runtime, name)
        if format not in spec.reads:
            raise BundleError(f"runtime {name} reads {', '.join(spec.reads)} artefacts, and this one is {format}")
        if absent(spec):
            raise missing_part(spec)
        if reason := _probe(spec):
            raise BundleError(f"runtime {name} does not run on this machine: {reason}")
        return Choice(runtime=spec)
    candidates = runtimes_for(format)
    if not candidates:
        raise BundleError(f"no runtime reads {format} artefacts: `zoo plugins` shows what is installed")
    reasons = dict(lost or {})
    judged = next((spec for spec in candidates if spec.name == JUDGED.get(format)), None)
    if judged is not None and judged.name not in reasons and not why_not(judged):
        usable = [s.name for s in candidates[: candidates.index(judged)] if s.name not in reasons and not why_not(s)]
        left = dict.fromkeys(usable, f"{format} artefacts run where they were judged unless it is asked for by name")
        return Choice(runtime=judged, lost={**reasons, **left})
    for spec in candidates:
        if spec.name in reasons:
            continue
        reason = why_not(spec)
        if not reason:
            return Choice(runtime=spec, lost=reasons)
        reasons[spec.name] = reason
    raise _none(format, candidates, reasons)


def why_not(spec: Runtime) -> str:
    """Why a runtime opens nothing on this machine; empty where it can be tried."""
    return str(missing_part(spec)) if absent(spec) else _probe(spec)


def _probe(spec: Runtime) -> str:
    if not spec.probe:
        return ""
    try:
        return str(resolve(spec.probe, f"runtime '{spec.name}'")())
    except ZooError as error:
        return str(error)
    except Exception as error:  # a stranger's library may raise anything
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _none(format: str, candidates: list[Runtime], reasons: Mapping[str, str]) -> ZooError:
    if len(candidates) == 1 and absent(candidates[0]):
        return missing_part(candidates[0])
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    last = candidates[-1]
    if absent(last):
        return MissingPart(f"a runtime that opens {format} artefacts ({told})", missing_part(last).install)
    return BundleError(f"no runtime opens {format} artefacts on this machine: {told}")
