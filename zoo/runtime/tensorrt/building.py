"""Builds an engine in a process of its own, so that a crashing parser, a full memory or Ctrl-C costs only the build.

Some broken graphs bring NVIDIA's parser down, a builder may take all memory there is, and a build under way cannot be
stopped from within. The child gets a line of JSON (and the model, where it is not a file) on standard input, tells
progress and the end as lines of JSON on standard output, and ends itself when its parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, TypedDict

from ...errors import ExportError, MissingPart, ZooError
from ...files import beside, sha256_file, write_bytes
from . import api, cuda
from .inspecting import built_precisions, counts, inspect

__all__ = ["Facts", "Shapes", "build_engine"]

Shapes = Mapping[str, Sequence[Sequence[int]]]
"""For each input: its least, usual and largest (N, C, H, W)."""

TOLD_EVERY_S = 10.0
INTEGRATED_WORKSPACE = 1 << 30
"""Scratch memory of one kernel on a GPU that shares the machine's memory, where the recipe names none: the library's
own default is all there is, which other programs need too."""
FULL = (
    "out of memory",
    "outofmemory",
    "bad_alloc",
    "memoryerror",
    "cannot allocate",
    "requested amount of gpu memory",
    "check(p) failed",
)
"""What libraries say where memory ran out; the last is Myelin's, for an allocation that gave nothing."""


class Facts(TypedDict):
    """What is known of a built engine; JSON-ready."""

    flavour: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    version: str
    gpu: str
    """Empty where it was built without one."""
    compute_capability: str
    """``8.7``; empty where it was built without a GPU."""
    driver: str
    built_on: str
    """For a person: the GPU's name, or ``CPU``."""
    seconds: float
    bytes: int
    sha256: str
    """Of the engine file, to notice damage. Two builds of one graph differ, so it says nothing of what was built."""
    peak_memory_bytes: int
    """Largest resident memory of the building process; 0 where the system does not tell."""
    warnings: list[str]
    typed: list[list[str]]
    """Name, kind and output type of each layer of the parsed network."""
    built_precisions: dict[str, str] | None
    """By ONNX node, as the engine's inspector tells; None where no GPU could load the engine."""
    layer_counts: dict[str, int] | None
    """How many convolutions and matrix products the engine computes in each precision."""


def build_engine(
    flavour: str,
    model: Path | bytes,
    out: Path,
    *,
    profiles: Shapes,
    flags: Mapping[str, Any] | None = None,
    workspace_bytes: int | None = None,
    timing_cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Facts:
    """Build the engine of an ONNX model with a library of ``flavour`` and write it to ``out``, whole or not at all.

    ``model``: a file, or its bytes where no weights lie beside it. ``flags``: ``tf32``. ``timing_cache``: a file of
    kernel timings that is read and written, for ``tensorrt`` alone (with TensorRT-RTX it would demand a GPU).
    ``progress`` is told a line at the start and every ten seconds.

    Raises ExportError with the library's reason, MissingPart where the library is not installed, OutputError where
    ``out`` cannot be written. Ctrl-C ends the build; what was at ``out`` before stays in every case.
    """
    tell = progress or (lambda line: None)
    request = {
        "flavour": flavour,
        "path": "" if isinstance(model, bytes) else str(Path(model).resolve()),
        "bytes": len(model) if isinstance(model, bytes) else 0,
        "profiles": {name: [list(shape) for shape in shapes] for name, shapes in profiles.items()},
        "tf32": bool((flags or {}).get("tf32")),
        "workspace_bytes": workspace_bytes,
        "timing_cache": str(timing_cache.resolve()) if timing_cache and flavour == "tensorrt" else "",
    }
    with beside(Path(out).absolute()) as part:
        said = _converse({**request, "out": str(part)}, model if isinstance(model, bytes) else b"", tell)
        return {**said, "bytes": part.stat().st_size, "sha256": sha256_file(part)}  # type: ignore[typeddict-item]


def _converse(request: Mapping[str, Any], model: bytes, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run the child and give the facts that it ends with."""
    title = api.TITLES[request["flavour"]]
    started = time.monotonic()
    tell(f"{title} builds the engine; this may take minutes")
    with tempfile.TemporaryFile() as errors, _start(errors) as child:
        assert child.stdin is not None
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(child.stdout, lines), daemon=True).start()
        try:
            try:
                child.stdin.write(json.dumps(request).encode() + b"\n" + model)
                child.stdin.flush()  # and left open: its end tells the child that its parent is gone
            except BrokenPipeError:
                pass  # the child died at once; its exit code says how
            said = _listen(lines, title, started, tell)
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            _close(child.stdin)
        errors.seek(0)
        printed = errors.read()[-4000:].decode("utf-8", "replace")
    if said is None:
        raise ExportError(_death(title, code, printed))
    if "error" in said:
        if said["error"] == "missing":
            raise MissingPart(said["what"], said["install"])
        raise ExportError(f"{title}: {_with_cure(said['text'])}")
    return {key: value for key, value in said.items() if key in Facts.__annotations__}


def _start(errors: IO[bytes]) -> subprocess.Popen[bytes]:
    import zoo

    # the child must find the very packages that this process would, and nothing in the user's current folder
    places = [p for p in sys.path if p] + [str(Path(zoo.__file__).resolve().parents[1])]
    code = f"import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import main; main()"
    return subprocess.Popen(
        [sys.executable, "-I", "-c", code, json.dumps(places)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
    )


def _pump(stream: IO[bytes] | None, lines: queue.Queue[str | None]) -> None:
    if stream is not None:
        for line in stream:
            lines.put(line.decode("utf-8", "replace"))
    lines.put(None)


def _listen(
    lines: queue.Queue[str | None], title: str, started: float, tell: Callable[[str], None]
) -> dict[str, Any] | None:
    """Until the child says the end (its facts or an error), or falls silent for good (None)."""
    phase, told = "", started
    while True:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            line = ""
        if line is None:
            return None
        if line:
            said = json.loads(line)
            if "phase" not in said:
                return said  # type: ignore[no-any-return]
            phase = f": {said['phase'].lower()}, {said['done']} of {said['steps']}"
        now = time.monotonic()
        if now - told >= TOLD_EVERY_S:
            tell(f"{title} builds the engine, {now - started:.0f} s{phase}")
            told = now


def _close(pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # flushing into a dead child
        pipe.close()


def _death(title: str, code: int, printed: str) -> str:
    """One line for a child that ended without a word."""
    last = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "")
    if any(word in printed.lower() for word in FULL):
        return f"{title}: {_with_cure(last)}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"{title}: the builder ended with exit code {code}" + (f": {last[:200]}" if last else "")
    if name == "SIGKILL":
        return f"{title}: {_with_cure('the builder was killed, as Linux does where memory runs out')}"
    return f"{title}: the builder crashed on this graph ({name}): `zoo lint` says what is unusual about it"


def _with_cure(reason: str) -> str:
    if any(word in reason.lower() for word in (*FULL, "memory runs out")):
        return f"{reason}: not enough memory to build: close other programs, or export with a smaller --batch or --size"
    return reason


# -- the child


def main() -> NoReturn:
    """The child's side of :func:`build_engine`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would wait for the end of the build
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the lines of JSON
    request = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read(request["bytes"])
    threading.Thread(target=_watch, args=(Path(request["out"]),), daemon=True).start()

    def say(**what: Any) -> None:
        out.write(json.dumps(what).encode() + b"\n")
        out.flush()

    try:
        say(**_build(request, data, say))
    except MissingPart as error:
        say(error="missing", what=error.what, install=error.install)
    except ZooError as error:
        say(error="refused", text=str(error))
    except MemoryError:
        say(error="refused", text="out of memory")
    except OSError as error:
        say(error="refused", text=f"{error.filename or 'a file'}: {error.strerror or error}")
    # past the destructors of a library that may be half broken
    out.close()
    os._exit(0)


def _watch(part: Path) -> None:
    """End with the parent: its end of the pipe closes however it dies."""
    sys.stdin.buffer.read(1)
    part.unlink(missing_ok=True)
    os._exit(1)


def _build(request: Mapping[str, Any], data: bytes, say: Callable[..., None]) -> dict[str, Any]:
    library = api.find(request["flavour"])
    if library is None:
        raise MissingPart(api.TITLES[request["flavour"]], api.why_not(request["flavour"]))
    path = Path(request["path"]) if request["path"] else None
    model = path.read_bytes() if path else data
    device = None if cuda.probe() else cuda.Device()
    workspace = request["workspace_bytes"]
    if workspace is None and device is not None and device.integrated:
        workspace = min(INTEGRATED_WORKSPACE, device.memory().total // 4)
    timings = Path(request["timing_cache"]) if request["timing_cache"] else None
    last = 0.0

    def progress(phase: str, done: int, steps: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 0.5:
            last = time.monotonic()
            say(phase=phase, done=done, steps=steps)

    started = time.monotonic()
    built = api.build(
        library,
        model,
        path,
        profile={name: _three(shapes) for name, shapes in request["profiles"].items()},
        tf32=request["tf32"],
        workspace_bytes=workspace,
        timing_cache=None if timings is None else timings.read_bytes() if timings.is_file() else b"",
        progress=progress,
    )
    seconds = time.monotonic() - started
    if not built:
        raise ExportError(built.reason)
    if timings is not None:
        write_bytes(timings, built.timing_cache)
    Path(request["out"]).write_bytes(built.plan)
    layers = _inspect(library, built.plan) if device is not None else ()
    return {
        "flavour": library.flavour,
        "version": library.version,
        "gpu": device.name if device else "",
        "compute_capability": ".".join(map(str, device.compute_capability)) if device else "",
        "driver": device.driver_version if device else "",
        "built_on": device.name if device else "CPU",
        "seconds": round(seconds, 2),
        "peak_memory_bytes": _peak(),
        "warnings": list(built.verdict.warnings + built.warnings),
        "typed": [list(layer) for layer in built.verdict.typed],
        "built_precisions": built_precisions(layers) or None,
        "layer_counts": counts(layers) or None,
    }


def _three(shapes: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    least, usual, largest = (tuple(shape) for shape in shapes)
    return least, usual, largest


def _inspect(library: api.Library, plan: bytes) -> tuple[Any, ...]:
    with library.listening():
        runtime = library.runtime()
        engine = runtime.deserialize_cuda_engine(plan) if runtime is not None else None
        return inspect(library, engine) if engine is not None else ()


def _peak() -> int:
    # Linux's own count begins anew with the program; getrusage tells the peak of whoever forked it, if that was larger
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
