"""Ask NVIDIA's parser in a process of its own: some broken graphs crash it, and the crash must not be ours."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from zoo.runtime.tensorrt import api

__all__ = ["Answer", "ask"]

PATIENCE_S = 300
"""A network of 300 MB takes a second."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was said, and by whom."""

    flavour: str
    version: str
    verdict: api.Verdict
    crash: str = ""
    """How the parser went down on this graph, like ``SIGSEGV``; the verdict is then a refusal."""


def ask(flavours: Sequence[str], model: bytes, path: Path | None = None) -> Answer | None:
    """The verdict of the first of these flavours that is installed; None where none is. ``path`` as for :func:`api.parse`."""
    present = [flavour for flavour in flavours if importlib.util.find_spec(api.MODULES[flavour]) is not None]
    if not present:
        return None
    where = str(path.resolve()) if path else ""
    crash = ""
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, ",".join(present), where],
            input=model,
            capture_output=True,
            timeout=PATIENCE_S,
            cwd=Path(sys.executable).parent,  # a module in the user's folder must not stand in for another
        )
        if done.returncode == 0:
            said = json.loads(done.stdout.splitlines()[-1])
            if not said:
                return None
            return Answer(
                flavour=said["flavour"], version=said["version"], verdict=api.Verdict.from_dict(said["verdict"])
            )
        crash = _signal(done.returncode)
    except subprocess.TimeoutExpired:
        crash = f"no answer within {PATIENCE_S} s"
    title = api.TITLES[present[0]]
    complaint = api.Complaint(node="", operator="", text=f"the parser crashes on this graph ({crash})")
    verdict = api.Verdict(library=title, parsed=False, complaints=(complaint,))
    return Answer(flavour=present[0], version="", verdict=verdict, crash=crash)


def _signal(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def main() -> None:
    """The child: flavours and the model's path on the command line, the model on standard input, JSON on standard output."""
    flavours, where = sys.argv[1].split(","), sys.argv[2]
    library = next((found for flavour in flavours if (found := api.find(flavour))), None)
    said = {}
    if library is not None:
        model = sys.stdin.buffer.read()
        verdict = api.parse(library, model, Path(where) if where else None, nodes=_count(model))
        said = {"flavour": library.flavour, "version": library.version, "verdict": verdict.to_dict()}
    json.dump(said, sys.stdout)


def _count(model: bytes) -> int:
    try:
        return len(onnx.load_model_from_string(model).graph.node)
    except Exception:  # not ONNX at all, which the parser says too; protobuf's classes differ between implementations
        return 0


if __name__ == "__main__":
    main()
