"""The one place that talks to NVIDIA's parser and builder: finds them, asks them, and takes no ``None`` for an answer.

The same code serves ``tensorrt`` (8.6 to 11) and ``tensorrt_rtx``: names are probed, versions are not compared. What the
libraries do, as observed (TensorRT-RTX 1.7.1.116): a graph that cannot be parsed gives False and a list of errors; one
that cannot be built gives None, and the reason is only in the log; a profile with a wrong name or with the least above
the largest raises nothing; a second logger in a process is ignored; Python's own sys.stderr does not see what they print.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import ExportError, MissingPart, UnknownName

__all__ = [
    "INSTALL",
    "MODULES",
    "TITLES",
    "Built",
    "Complaint",
    "Library",
    "Profile",
    "Verdict",
    "build",
    "find",
    "need",
    "parse",
    "why_not",
]

TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = {
    "tensorrt": "pip install tensorrt (on a Jetson it comes with JetPack)",
    "tensorrt-rtx": "pip install tensorrt-rtx",
}

HEARD = ("INFO", "WARNING", "ERROR", "INTERNAL_ERROR")
"""Severities that are kept; a build says tens of thousands of VERBOSE lines."""
KEPT = 200
"""Lines that are kept of what is said outside of :meth:`Library.listening`: a stream of warnings must not fill memory."""

Progress = Callable[[str, int, int], None]
"""Phase of a build, steps done in it, and of how many."""

Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""For each input with open axes: its least, usual and largest shape."""


@dataclass(frozen=True, kw_only=True)
class Complaint:
    """One thing that the parser refuses."""

    node: str
    operator: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the parser says of a graph; truthy where it takes it."""

    library: str
    """Who was asked, like ``TensorRT-RTX 1.7.1.116``."""
    parsed: bool
    complaints: tuple[Complaint, ...] = ()
    refused: tuple[int, ...] = ()
    """Indices into ``graph.node`` of what it cannot take. It looks at all nodes for what it can tell from a node alone,
    and stops at the first whose import fails, so there may be more."""
    warnings: tuple[str, ...] = ()
    typed: tuple[tuple[str, str, str], ...] = ()
    """Name, kind and output type of each layer: ``("node_conv2d", "CONVOLUTION", "HALF")``."""

    @property
    def layers(self) -> dict[str, dict[str, int]]:
        """How many layers of each kind give each type: ``{"CONVOLUTION": {"HALF": 52, "FLOAT": 1}}``."""
        found: dict[str, Counter[str]] = {}
        for _, kind, type_ in self.typed:
            found.setdefault(kind, Counter())[type_] += 1
        return {kind: dict(types) for kind, types in sorted(found.items())}

    def __bool__(self) -> bool:
        return self.parsed

    def to_dict(self) -> dict[str, Any]:
        return {
            "library": self.library,
            "parsed": self.parsed,
            "complaints": [vars(c) for c in self.complaints],
            "refused": list(self.refused),
            "warnings": list(self.warnings),
            "typed": [list(layer) for layer in self.typed],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """The way back from :meth:`to_dict`."""
        return cls(
            library=data["library"],
            parsed=data["parsed"],
            complaints=tuple(Complaint(**c) for c in data["complaints"]),
            refused=tuple(data["refused"]),
            warnings=tuple(data["warnings"]),
            typed=tuple((name, kind, type_) for name, kind, type_ in data["typed"]),
        )


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine, or why there is none; truthy where there is one."""

    verdict: Verdict
    plan: bytes = b""
    reason: str = ""
    warnings: tuple[str, ...] = ()
    timing_cache: bytes = b""
    """How fast each kernel was, to be given to the next build; empty unless one was given to this."""

    def __bool__(self) -> bool:
        return bool(self.plan)


class Library:
    """An importable ``tensorrt`` or ``tensorrt_rtx``. Use :func:`find` or :func:`need`; one object a module, one logger
    an object, because the libraries keep the first logger they are given for the rest of the process.
    """

    def __init__(self, flavour: str, module: ModuleType) -> None:
        self.flavour = flavour
        self.trt: Any = module
        self.version = str(getattr(module, "__version__", "of unknown version"))
        self._log: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._logger = self._make_logger()
        self._runtime: Any = None

    def __str__(self) -> str:
        return f"{TITLES[self.flavour]} {self.version}"

    def _make_logger(self) -> Any:
        base, log, lock = self.trt.ILogger, self._log, self._lock

        class Collector(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)  # the bindings insist on it, and not by way of super()

            def log(self, severity: Any, text: str) -> None:
                name = str(severity).rpartition(".")[2]
                if name not in HEARD:
                    return
                log.append((name, text))
                if len(log) > KEPT and not lock.locked():
                    del log[: -KEPT // 2]

        return Collector()

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[tuple[str, str]]]:
        """Collects (severity, text) of what the library says in the block, and keeps it off the terminal.

        One thread at a time: the library's log does not tell whose line is whose.
        """
        with self._lock, _muted():
            self._log.clear()
            heard: list[tuple[str, str]] = []
            try:
                yield heard
            finally:
                heard += self._log

    def builder(self) -> Any | None:
        """A builder; None where the library cannot make one, which for ``tensorrt`` is where there is no GPU."""
        try:
            if hasattr(self.trt, "init_libnvinfer_plugins"):
                self.trt.init_libnvinfer_plugins(self._logger, "")  # NonZero, RoiAlign, EfficientNMS_TRT, …
            return self.trt.Builder(self._logger)
        except (TypeError, RuntimeError):  # "factory function returned nullptr"
            return None

    def runtime(self) -> Any | None:
        """The one runtime of this process, which outlives every engine; None where the library cannot make one."""
        if self._runtime is None:
            try:
                if hasattr(self.trt, "init_libnvinfer_plugins"):
                    self.trt.init_libnvinfer_plugins(self._logger, "")
                self._runtime = self.trt.Runtime(self._logger)
            except (TypeError, RuntimeError):  # "factory function returned nullptr"
                return None
        return self._runtime

    def last_error(self) -> str:
        """The newest error line that the library said; empty where it said none lately."""
        return next((_clean(text) for severity, text in reversed(self._log) if "ERROR" in severity), "")

    @property
    def strongly_typed(self) -> bool:
        """Whether a network keeps the types that its graph has; before TensorRT 10 builder flags decide."""
        return hasattr(getattr(self.trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED")

    def network(self, builder: Any) -> Any | None:
        """An empty network, strongly typed wherever the library knows the word."""
        flags = getattr(self.trt, "NetworkDefinitionCreationFlag", None)
        wanted = [getattr(flags, name, None) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED")]
        return builder.create_network(sum(1 << int(flag) for flag in wanted if flag is not None))

    def parser(self, network: Any) -> Any:
        return self.trt.OnnxParser(network, self._logger)


_found: dict[str, Library | None] = {}
_reasons: dict[str, str] = {}


def find(flavour: str) -> Library | None:
    """The library of a flavour (``tensorrt``, ``tensorrt-rtx``), None where it cannot be imported. Found once a process."""
    if flavour not in _found:
        try:
            _found[flavour] = Library(flavour, importlib.import_module(MODULES[flavour]))
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            _found[flavour] = None
            _reasons[flavour] = _why(flavour, error)
    return _found[flavour]


def why_not(flavour: str) -> str:
    """Why :func:`find` gives None, with the cure; empty where it gives a library."""
    return _reasons[flavour] if find(flavour) is None else ""


def _why(flavour: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == MODULES[flavour]:
        return f"{TITLES[flavour]} is not installed: {INSTALL[flavour]}"
    # the bindings are there, and a library that they need is not
    return f"{TITLES[flavour]} cannot be loaded ({(str(error).splitlines() or [''])[0][:200]}): {INSTALL[flavour]}"


def need(flavour: str) -> Library:
    """As :func:`find`. Raises MissingPart with the install line."""
    library = find(flavour)
    if library is None:
        raise MissingPart(TITLES[flavour], INSTALL[flavour])
    return library


def parse(library: Library, model: bytes, path: Path | None = None, *, nodes: int = 0) -> Verdict:
    """Ask the parser about a serialised ONNX model; ``path`` is its file, needed where weights lie in files beside it.

    ``nodes``: how many the graph has, needed to tell which of them are refused (this module does not read ONNX).

    No GPU is needed with ``tensorrt-rtx``. Where the library makes no builder, the verdict is a complaint that says so.
    """
    with library.listening() as heard:
        verdict, *_ = _parse(library, model, path, library.builder(), nodes)
    return _with_warnings(verdict, heard)


def build(
    library: Library,
    model: bytes,
    path: Path | None = None,
    *,
    profile: Profile | None = None,
    tf32: bool = False,
    workspace_bytes: int | None = None,
    timing_cache: bytes | None = None,
    progress: Progress | None = None,
) -> Built:
    """Parse and build. With ``tensorrt-rtx`` this needs no GPU, and the engine is compiled further where it runs.

    Every input with open axes needs its shapes in ``profile``. ``tf32``: whether the operands of float32 products may
    be rounded to 10 bits of mantissa, which the libraries do unless they are told not to. ``workspace_bytes`` bounds
    the scratch memory of a kernel, by default as the library does. ``timing_cache``: an earlier build's, empty bytes
    to begin one; None for none. The engine keeps what its inspector tells of each layer.

    Raises UnknownName for an input that does not exist and ExportError for shapes that are missing, out of order, or
    of another rank; the libraries say nothing of these.
    """
    with library.listening() as heard:
        builder = library.builder()
        # the parser owns the weights, so it must live until the engine is built
        verdict, network, parser = _parse(library, model, path, builder)
        if builder is None or not verdict:
            return Built(verdict=verdict, reason=verdict.complaints[0].text)
        before = len(library._log)
        config = builder.create_builder_config()
        if config is None:
            return Built(verdict=verdict, reason="the library made no builder configuration")
        shapes = builder.create_optimization_profile()
        if _set_shapes(network, shapes, profile or {}):
            config.add_optimization_profile(shapes)
        monitor = _monitor(library.trt, progress)  # the configuration may not keep it alive
        cache = _configure(library.trt, config, tf32, workspace_bytes, timing_cache, monitor)
        plan = builder.build_serialized_network(network, config)
        del parser, monitor
        said = library._log[before:]
        learnt = bytes(memoryview(config.get_timing_cache().serialize())) if cache is not None else b""
    verdict = _with_warnings(verdict, heard[:before])
    warnings = tuple(text for severity, text in said if severity == "WARNING")
    if plan is None:
        errors = [text for severity, text in said if "ERROR" in severity]
        return Built(verdict=verdict, reason=_clean(errors[0]) if errors else "no reason was given", warnings=warnings)
    return Built(verdict=verdict, plan=bytes(memoryview(plan)), warnings=warnings, timing_cache=learnt)


def _configure(
    trt: Any, config: Any, tf32: bool, workspace: int | None, timing_cache: bytes | None, monitor: Any | None
) -> Any | None:
    """Set what was asked for, by names that every version has; gives the timing cache that the build fills."""
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if monitor is not None:
        config.progress_monitor = monitor
    if timing_cache is None:
        return None
    cache = config.create_timing_cache(timing_cache)
    # a cache of another version or GPU is refused, which costs time and nothing else
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _monitor(trt: Any, progress: Progress | None) -> Any | None:
    """An object that tells ``progress``; None where nobody asked, or the library is older than TensorRT 10."""
    base: Any = getattr(trt, "IProgressMonitor", None)
    if progress is None or base is None:
        return None
    tell = progress

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            tell(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            tell(phase, step + 1, self._steps.get(phase, step + 1))
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()


def _parse(
    library: Library, model: bytes, path: Path | None, builder: Any | None, nodes: int = 0
) -> tuple[Verdict, Any, Any]:
    """The verdict; and, where it is good, the network and the parser that filled it."""

    def refused(*complaints: Complaint, indices: tuple[int, ...] = ()) -> tuple[Verdict, None, None]:
        return Verdict(library=str(library), parsed=False, complaints=complaints, refused=indices), None, None

    def said(text: str) -> Complaint:
        return Complaint(node="", operator="", text=text)

    if not model:
        return refused(said("the model is empty"))  # which the parser would take
    if builder is None:
        return refused(said(f"{library} makes no builder here: it needs an NVIDIA GPU and its driver"))
    where = str(path) if path else None
    network = library.network(builder)
    if network is None:
        return refused(said(f"{library} made no network"))
    parser = library.parser(network)
    if parser.parse(model, where):
        return Verdict(library=str(library), parsed=True, typed=_typed(network)), network, parser
    complaints = [
        Complaint(
            node=_ask(error, "node_name"), operator=_ask(error, "node_operator"), text=_clean(_ask(error, "desc"))
        )
        for error in (parser.get_error(i) for i in range(parser.num_errors))
    ]
    reasons = tuple(dict.fromkeys(complaints)) or (said("the parser refused without a reason"),)
    return refused(*reasons, indices=_refused(library, builder, model, where, nodes))


def _refused(library: Library, builder: Any, model: bytes, where: str | None, nodes: int) -> tuple[int, ...]:
    """The nodes that are in no sub-graph which the parser would take over, good as a whole or not."""
    network = library.network(builder)  # kept by name: a parser does not keep its network alive
    parser = library.parser(network)
    if not hasattr(parser, "supports_model_v2"):  # TensorRT 10.0 and before
        return ()
    parser.supports_model_v2(model, where)
    taken = {node for index in range(parser.num_subgraphs) for node in parser.get_subgraph_nodes(index)}
    return tuple(sorted(set(range(nodes)) - taken))


def _typed(network: Any) -> tuple[tuple[str, str, str], ...]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return tuple((x.name, *(str(v).rpartition(".")[2] for v in (x.type, x.get_output_type(0)))) for x in layers)


def _set_shapes(network: Any, shapes: Any, profile: Profile) -> bool:
    """Fill in an optimisation profile; whether any input needs one."""
    inputs = {t.name: tuple(t.shape) for t in (network.get_input(i) for i in range(network.num_inputs))}
    for name in profile:
        if name not in inputs:
            raise UnknownName("input", name, inputs)
    open_inputs = {name: shape for name, shape in inputs.items() if any(size < 0 for size in shape)}
    for name, shape in open_inputs.items():
        if name not in profile:
            raise ExportError(f"input '{name}' is {_sizes(shape)}: give its least, usual and largest shape")
        least, usual, largest = profile[name]
        for given in (least, usual, largest):
            fits = len(given) == len(shape) and all(s in (-1, g) for s, g in zip(shape, given, strict=True))
            if not fits:
                raise ExportError(f"input '{name}' is {_sizes(shape)}, which {_sizes(given)} does not fit")
        if not all(a <= b <= c for a, b, c in zip(least, usual, largest, strict=True)):
            order = ", ".join(_sizes(s) for s in (least, usual, largest))
            raise ExportError(f"input '{name}': shapes {order} must rise from the least to the largest")
        shapes.set_shape(name, least, usual, largest)
    return bool(open_inputs)


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape)


def _ask(error: Any, name: str) -> str:
    return str(getattr(error, name)()) if hasattr(error, name) else ""


def _clean(text: str) -> str:
    """The one line of an error that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Invalid Node"):
        lines = lines[1:]
    first = lines[0] if lines else ""
    if first in ("false", ""):
        return "the parser has no importer for this operator"
    return first.partition(" In validateTypes")[0].removeprefix("Assertion failed: ")[:300]


def _with_warnings(verdict: Verdict, heard: list[tuple[str, str]]) -> Verdict:
    warnings = tuple(dict.fromkeys(text for severity, text in heard if severity == "WARNING"))
    return Verdict(**{**vars(verdict), "warnings": warnings})


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Keep what C++ prints of its own accord (it does not pass by the logger) off standard error."""
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
