"""Runs an engine: names, not indices, and ``execute_async_v3``, which every TensorRT from 8.6 to 11 has.

A lane is what one call needs for itself: an execution context, a stream, and buffers on both sides. Lanes are made when
calls overlap, up to a bound, and are reused; so threads never meet in one context, and nothing is allocated per call.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BundleError, ZooError
from .api import Library
from .cuda import Buffer, Device, DeviceError, Event, Graph, PinnedBuffer
from .inspecting import Layer, inspect

__all__ = ["TensorRTSession", "load_engine"]

DTYPES: Mapping[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
"""TensorRT's types that numpy has too."""

LANES = 4
"""Calls that run side by side by default: each holds an execution context's memory and its buffers."""


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    name: str
    dtype: np.dtype


def load_engine(library: Library, plan: Path | bytes, device: Device) -> Any:
    """Deserialise an engine for ``device``. Raises BundleError with the library's reason where it does not fit here:
    another version, another GPU, damaged, or no engine at all."""
    with library.listening() as heard, device.current(), _mapped(plan) as data:
        runtime = library.runtime()
        engine = None if runtime is None or not len(data) else runtime.deserialize_cuda_engine(data)
    if engine is None:
        said = next((text for severity, text in heard if "ERROR" in severity), "no reason was given")
        what = plan.name if isinstance(plan, Path) else "the engine"
        raise BundleError(f"{what} does not load in {library} on {device.name}: {_line(said)}")
    return engine


class TensorRTSession:
    """An engine of TensorRT or TensorRT-RTX, opened. Thread-safe.

    ``engine``: as :func:`load_engine` gives it. ``cuda_graph``: record the launches of each input shape once and repeat
    them as one, which helps networks so small that launching them is what takes time; every shape then keeps a context
    of its own. ``lanes``: how many calls may run side by side; further ones wait.

    Raises BundleError where the engine is not one that the zoo can run, DeviceError where the GPU has no room for it.
    """

    def __init__(
        self,
        library: Library,
        engine: Any,
        device: Device,
        *,
        cuda_graph: bool = False,
        lanes: int = LANES,
    ) -> None:
        self.runtime = library.flavour
        self.device = f"{device.name} ({library}, {device.driver_version}{', CUDA graph' if cuda_graph else ''})"
        self._library = library
        self._engine = engine
        self._gpu = device
        self._cuda_graph = cuda_graph
        self._inputs, self._outputs = _tensors(library, engine)
        (self._input,) = self._inputs
        self.input_name = self._input.name
        self.output_names = tuple(tensor.name for tensor in self._outputs)
        shape = tuple(engine.get_tensor_shape(self.input_name))
        self.input_shape = tuple(None if size < 0 else int(size) for size in shape)
        # a network of one size has no profile, and what an engine says of it then differs from version to version
        said = engine.get_tensor_profile_shape(self.input_name, 0) if None in self.input_shape else (shape,) * 3
        least, usual, largest = (tuple(int(size) for size in one) for one in said)
        self.profile: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] = (least, usual, largest)
        """Least, usual and largest shape of the input."""
        self.obtained: Any = None
        """Where the engine is from (:class:`zoo.runtime.tensorrt.engines.Obtained`), where its opener tells."""
        self._limit = lanes
        self._made = 0
        self._idle: list[_Lane] = []
        self._free = threading.Condition()
        self._closed = False
        with self._lane(usual) as lane:  # what would not work for the usual shape would not work at all
            lane.bind(usual)

    def run(self, batch: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """(N, C, H, W) float32 to the named outputs (all by default). The caller owns what comes back.

        More images than the profile's largest batch go through in several runs, fewer than its least are filled up.
        Raises BundleError for a shape that the profile excludes, DeviceError where the GPU fails.
        """
        names = self.output_names if outputs is None else tuple(outputs)
        for name in names:
            if name not in self.output_names:
                raise ValueError(f"the engine has no output '{name}': it has {', '.join(self.output_names)}")
        parts = []
        for part, count in self._parts(batch):
            with self._lane(part.shape) as lane, self._gpu.current():
                found = lane.run(part, names)
            if count == len(batch) == len(part):
                return found
            for name, value in found.items():
                if value.shape[:1] != part.shape[:1]:
                    raise BundleError(
                        f"output '{name}' has the shape {value.shape} for {len(part)} images, so a batch of {len(batch)} "
                        f"cannot be put together of runs of {self.profile[0][0]} to {self.profile[2][0]}: "
                        "export with another --batch"
                    )
            parts.append({name: value[:count] for name, value in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def time_ms(self, batch: np.ndarray) -> float:
        """Milliseconds that the GPU computes for a batch, once, by CUDA events around the network.

        Copies to and from the GPU are not in it, and neither is the time until the GPU gets to it: compare it with
        ``trtexec``'s GPU compute time, and the time of :meth:`run` with what an application sees.
        """
        total = 0.0
        for part, _ in self._parts(batch):
            with self._lane(part.shape) as lane, self._gpu.current():
                total += lane.time_ms(part)
        return total

    def layers(self) -> tuple[Layer, ...]:
        """What the engine's inspector tells of each layer."""
        with self._library.listening():
            return inspect(self._library, self._engine)

    def close(self) -> None:
        """Free what it holds on the GPU. Calls under way end first; later ones raise ZooError."""
        with self._free:
            self._closed = True
            while self._made > len(self._idle):
                self._free.wait()
            for lane in self._idle:
                lane.close()
            self._idle.clear()
            self._made = 0
        with contextlib.suppress(DeviceError), self._gpu.current():
            self._engine = None

    def __enter__(self) -> TensorRTSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- shapes

    def _parts(self, batch: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """The batch in pieces that the profile allows, each with how many of its images are the caller's."""
        least, _, largest = self.profile
        fits = batch.ndim == len(least) and all(
            a <= size <= b for a, size, b in zip(least[1:], batch.shape[1:], largest[1:], strict=True)
        )
        if not fits or not len(batch):
            raise BundleError(
                f"input '{self.input_name}' is {_sizes(batch.shape)}; the engine was built for "
                f"{_sizes(least)} to {_sizes(largest)}: export with other sizes (`zoo export --size 224:256:512`)"
            )
        for start in range(0, len(batch), largest[0]):
            part = np.asarray(batch[start : start + largest[0]], self._input.dtype)
            count = len(part)
            if count < least[0]:
                part = np.concatenate([part, np.repeat(part[-1:], least[0] - count, axis=0)])
            yield part, count

    # -- lanes

    @contextlib.contextmanager
    def _lane(self, shape: tuple[int, ...]) -> Iterator[_Lane]:
        lane = self._take(shape)
        try:
            yield lane
        except BaseException:
            self._give(lane, broken=True)  # nobody knows what state its context is in
            raise
        self._give(lane)

    def _take(self, shape: tuple[int, ...]) -> _Lane:
        with self._free:
            while True:
                if self._closed:
                    raise ZooError("the session was closed: load the bundle again")
                found = next((x for x in reversed(self._idle) if not self._cuda_graph or x.shape in ((), shape)), None)
                if found is not None:
                    self._idle.remove(found)
                    return found
                if self._made >= self._limit and self._idle:  # of another shape: its place is needed
                    self._idle.pop(0).close()
                    self._made -= 1
                if self._made < self._limit:
                    try:
                        lane = _Lane(self)
                    except DeviceError as error:
                        if not error.out_of_memory or not self._made:
                            raise
                        self._limit = self._made  # as many as there is room for
                        continue
                    self._made += 1
                    return lane
                self._free.wait()

    def _give(self, lane: _Lane, *, broken: bool = False) -> None:
        with self._free:
            if broken:
                lane.close()
                self._made -= 1
            else:
                self._idle.append(lane)
            self._free.notify_all()


class _Lane:
    """One execution context, its stream and its buffers; used by one thread at a time."""

    def __init__(self, session: TensorRTSession) -> None:
        self._session = session
        self._gpu = session._gpu
        library = session._library
        with self._gpu.current():
            self._context: Any = _make_context(library, session)
        if self._context is None:
            reason = library.last_error()
            if "memory" in reason.lower():
                text = self._gpu.out_of_memory(f"an execution context of {library}")
                raise DeviceError(text, "CUDA_ERROR_OUT_OF_MEMORY")
            raise DeviceError(f"{library} makes no execution context on {self._gpu.name}: {_line(reason)}")
        self._stream = self._gpu.stream()
        self._events: tuple[Event, Event] | None = None
        self._device: dict[str, Buffer] = {}
        self._host: dict[str, PinnedBuffer] = {}
        self.shape: tuple[int, ...] = ()
        """Of the input, as bound; empty at first."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._graph: Graph | None = None
        self._runs = 0
        """Since the shape was bound."""

    def bind(self, shape: tuple[int, ...]) -> None:
        """Make ready for an input of this shape: output shapes, buffers, addresses."""
        if shape == self.shape:
            return
        session = self._session
        self._drop_graph()
        self.shape, self._runs = (), 0
        with self._gpu.current():
            if not self._context.set_input_shape(session.input_name, shape):
                raise DeviceError(
                    f"{session._library} refuses input '{session.input_name}' {_sizes(shape)}: "
                    f"{_line(session._library.last_error())}"
                )
            self._shapes = {session.input_name: shape}
            for tensor in session._outputs:
                self._shapes[tensor.name] = tuple(int(n) for n in self._context.get_tensor_shape(tensor.name))
        for tensor in (*session._inputs, *session._outputs):
            if any(size < 0 for size in self._shapes[tensor.name]):
                raise BundleError(
                    f"output '{tensor.name}' has a size that depends on the image ({_sizes(self._shapes[tensor.name])}), "
                    "which this runtime does not run: export with the suppression of boxes on the host (`--nms host`)"
                )
            self._reserve(tensor.name, max(1, self._bytes(tensor)))
        self.shape = shape

    def run(self, batch: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        self.bind(batch.shape)
        self._copy_in(batch)
        self._compute()
        wanted = [t for t in self._session._outputs if t.name in names]
        for tensor in wanted:
            self._stream.copy_out(self._pinned(tensor.name), self._device[tensor.name], self._bytes(tensor))
        self._stream.synchronize()
        return {t.name: self._view(t).copy() for t in wanted}

    def time_ms(self, batch: np.ndarray) -> float:
        self.bind(batch.shape)
        if self._events is None:
            self._events = (self._gpu.event(), self._gpu.event())
        start, end = self._events
        self._copy_in(batch)
        self._stream.synchronize()
        self._stream.record(start)
        self._compute()
        self._stream.record(end)
        return end.ms_since(start)

    def close(self) -> None:
        """Graph before context before buffers: each may use what comes after it."""
        self._drop_graph()
        with contextlib.suppress(DeviceError), self._gpu.current():
            self._context = None
        self._stream.close()
        for buffer in (*self._device.values(), *self._host.values(), *(self._events or ())):
            buffer.close()

    # -- steps

    def _copy_in(self, batch: np.ndarray) -> None:
        tensor = self._session._input
        self._pinned(tensor.name)
        self._view(tensor)[...] = batch
        self._stream.copy_in(self._device[tensor.name], self._host[tensor.name], self._bytes(tensor))

    def _compute(self) -> None:
        if self._graph is None and self._session._cuda_graph and self._runs and not _records_itself(self._session):
            self._record()
        if self._graph is not None:
            self._stream.launch(self._graph)
        else:
            self._enqueue()
        self._runs += 1

    def _enqueue(self) -> None:
        with self._gpu.current():
            if not self._context.execute_async_v3(self._stream.handle):
                library = self._session._library
                raise DeviceError(f"{library} failed on {self._gpu.name}: {_line(library.last_error())}")

    def _record(self) -> None:
        """Capture the launches of the bound shape, which has run once, as TensorRT demands.

        A network that cannot be captured (it waits for the GPU on its way) goes on without.
        """
        try:
            with self._stream.capture() as graphs:
                self._enqueue()
        except DeviceError as error:
            self._session._cuda_graph = False
            said = str(error)
            self._session.device = self._session.device.replace(", CUDA graph", f", no CUDA graph: {said[:80]}")
            return
        (self._graph,) = graphs

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    # -- memory

    def _reserve(self, name: str, size: int) -> None:
        """Room on the GPU for a tensor: what is there already where it is enough."""
        old = self._device.get(name)
        if old is None or old.size < size:
            if old is not None:
                old.close()  # first: both may not fit
                del self._device[name]
            self._device[name] = self._gpu.buffer(size)
        with self._gpu.current():
            self._context.set_tensor_address(name, self._device[name].address)

    def _pinned(self, name: str) -> PinnedBuffer:
        """Room on the host for a tensor; made when it is first copied, since not every output ever is."""
        size = self._device[name].size
        old = self._host.get(name)
        if old is None or old.size < size:
            if old is not None:
                old.close()
                del self._host[name]
            self._host[name] = self._gpu.pinned(size)
        return self._host[name]

    def _bytes(self, tensor: _Tensor) -> int:
        return int(np.prod(self._shapes[tensor.name], dtype=np.int64)) * tensor.dtype.itemsize

    def _view(self, tensor: _Tensor) -> np.ndarray:
        shape = self._shapes[tensor.name]
        flat: np.ndarray = np.frombuffer(memoryview(self._host[tensor.name].bytes), np.uint8, self._bytes(tensor))
        return flat.view(tensor.dtype).reshape(shape)


def _tensors(library: Library, engine: Any) -> tuple[tuple[_Tensor, ...], tuple[_Tensor, ...]]:
    """Inputs and outputs of an engine. Raises BundleError where it is no network from one batch of images."""
    trt = library.trt
    inputs: list[_Tensor] = []
    outputs: list[_Tensor] = []
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        kind = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
        if kind not in DTYPES:
            raise BundleError(
                f"'{name}' of the engine is {kind}, which numpy has no type for: export it again as float32"
            )
        if str(engine.get_tensor_location(name)).endswith("HOST"):
            raise BundleError(f"'{name}' of the engine is a shape, not an array on the GPU: export it again without")
        tensor = _Tensor(name=name, dtype=np.dtype(DTYPES[kind]))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(tensor)
    if len(inputs) != 1:
        found = ", ".join(t.name for t in inputs) or "none"
        raise BundleError(
            f"the engine has {len(inputs)} inputs ({found}); a network of the zoo takes one batch of images"
        )
    return tuple(inputs), tuple(outputs)


def _make_context(library: Library, session: TensorRTSession) -> Any | None:
    """TensorRT-RTX compiles kernels while it runs, so it has to decide itself when to record its CUDA graphs."""
    if session._cuda_graph and _records_itself(session):
        config = session._engine.create_runtime_config()
        config.cuda_graph_strategy = library.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return session._engine.create_execution_context(config)
    return session._engine.create_execution_context()


def _records_itself(session: TensorRTSession) -> bool:
    return hasattr(session._library.trt, "CudaGraphStrategy")


@contextlib.contextmanager
def _mapped(plan: Path | bytes) -> Iterator[bytes | mmap.mmap]:
    """The bytes of an engine, read from the disk as they are needed: a Jetson has no memory to spare for a copy."""
    if isinstance(plan, bytes):
        yield plan
        return
    with plan.open("rb") as file:
        if not plan.stat().st_size:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped


def _line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason was given"


def _sizes(shape: Sequence[int]) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape)
