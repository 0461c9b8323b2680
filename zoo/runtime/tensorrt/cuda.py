"""The CUDA driver through ctypes: it comes with every NVIDIA driver and with JetPack, so that a device installs nothing.

Only the functions of the driver API whose symbols have been the same since CUDA 11.4 are used, by the names that
``cuda.h`` maps them to (``cuMemAlloc`` is the symbol ``cuMemAlloc_v2``). The primary context is retained, which is the
one that TensorRT and every other user of the CUDA runtime share.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import sys
import threading
import weakref
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import DeviceError

__all__ = [
    "Buffer",
    "Device",
    "DeviceError",
    "Driver",
    "Event",
    "Graph",
    "Memory",
    "PinnedBuffer",
    "Stream",
    "driver",
    "probe",
]

NAMES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1",)

OUT_OF_MEMORY = 2
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR, INTEGRATED = 75, 76, 18
STREAM_NON_BLOCKING = 1
CAPTURE_THREAD_LOCAL = 1
"""Other threads may go on allocating while this one captures."""

_SYMBOLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
}


class Driver:
    """The loaded driver library; every call is checked. Use :func:`driver`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        try:
            for symbol, types in _SYMBOLS.items():
                function = getattr(library, symbol)
                function.argtypes, function.restype = types, c_int
        except AttributeError as error:
            raise DeviceError(f"the NVIDIA driver is older than CUDA 11.4 ({error}): upgrade the driver") from None
        self.call("cuInit", 0)

    def call(self, symbol: str, *arguments: Any) -> None:
        """Raises DeviceError with the driver's own name and words for what went wrong."""
        code = self.try_call(symbol, *arguments)
        if code:
            raise self.error(code, symbol)

    def try_call(self, symbol: str, *arguments: Any) -> int:
        """The result code, 0 where all is well. For clean-up, which has nobody to tell."""
        return int(getattr(self._library, symbol)(*arguments))

    def error(self, code: int, symbol: str) -> DeviceError:
        name, text = c_char_p(), c_char_p()
        self.try_call("cuGetErrorName", code, byref(name))
        self.try_call("cuGetErrorString", code, byref(text))
        known = (name.value or f"error {code}".encode()).decode()
        return DeviceError(f"the GPU's driver refused {symbol}: {known}: {(text.value or b'no text').decode()}", known)

    @property
    def cuda_version(self) -> str:
        """The newest CUDA that the driver serves, like ``12.6``."""
        version = c_int()
        self.call("cuDriverGetVersion", byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    @property
    def devices(self) -> int:
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return count.value


@cache
def driver() -> Driver:
    """The driver of this machine, loaded once a process. Raises DeviceError where there is none or it has no GPU."""
    reasons = []
    for name in NAMES:
        try:
            return Driver(ctypes.CDLL(name))
        except OSError as error:
            reasons.append(str(error))
    raise DeviceError(f"no NVIDIA driver is installed ({reasons[0]})")


def probe() -> str:
    """Why no NVIDIA GPU can be used here; empty where one can."""
    try:
        return "" if driver().devices else "the NVIDIA driver sees no GPU"
    except DeviceError as error:
        return str(error)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of the GPU; of an integrated one they are the machine's."""

    free: int
    total: int


class _Context:
    """A retained primary context, and what is to be freed before it is released."""

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.driver = driver
        self.ordinal = ordinal
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._here = threading.local()
        # finalizers, not what they watch: where a device and its buffers go as one piece of garbage, weak references
        # to the buffers are dead before anybody could free them through these
        self._finalizers: dict[int, weakref.finalize[..., Any]] = {}
        self._keys = itertools.count()
        self.closed = False
        handle = c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", byref(handle), ordinal)
        self.handle = handle

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        if self.closed:
            raise DeviceError("the GPU was closed: open it again")
        if os.getpid() != self.process:
            raise DeviceError("a GPU cannot be used in a forked process: open it after the fork, or spawn instead")
        if getattr(self._here, "entered", False):  # by a caller further up, on this thread
            yield
            return
        self.driver.call("cuCtxPushCurrent_v2", self.handle)
        self._here.entered = True
        try:
            yield
        finally:
            self._here.entered = False
            self.driver.try_call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def own(self, thing: _Owned, symbol: str, handle: Any) -> weakref.finalize[..., Any]:
        """What frees a handle, once: when it is called, when ``thing`` is garbage, or when this context is closed."""
        key = next(self._keys)
        self._finalizers[key] = weakref.finalize(thing, self._free, key, symbol, handle)
        return self._finalizers[key]

    def _free(self, key: int, symbol: str, handle: Any) -> None:
        """Errors are nobody's to handle: the context may be gone, or the driver shutting down."""
        self._finalizers.pop(key, None)
        if self.closed or os.getpid() != self.process:
            return
        if self.driver.try_call("cuCtxPushCurrent_v2", self.handle) == 0:
            self.driver.try_call(symbol, handle)
            self.driver.try_call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def close(self) -> None:
        for finalizer in reversed(list(self._finalizers.values())):
            finalizer()
        with self._lock:
            if not self.closed and os.getpid() == self.process:
                self.driver.try_call("cuDevicePrimaryCtxRelease_v2", self.ordinal)
            self.closed = True


class _Owned:
    """Something of the driver's that is freed once: by ``close()``, with its last reference, or with its device."""

    def __init__(self, context: _Context, symbol: str, handle: Any) -> None:
        self._context = context
        self._handle = handle
        self._finalizer = context.own(self, symbol, handle)

    def close(self) -> None:
        self._finalizer()


class Buffer(_Owned):
    """Memory of the GPU: ``address``, ``size`` in bytes."""

    def __init__(self, context: _Context, size: int) -> None:
        address = c_uint64()
        context.driver.call("cuMemAlloc_v2", byref(address), size)
        super().__init__(context, "cuMemFree_v2", address)
        self.address = int(address.value)
        self.size = size


class PinnedBuffer(_Owned):
    """Memory of the host that the GPU reads and writes by itself, so that a copy need not wait."""

    def __init__(self, context: _Context, size: int) -> None:
        address = c_void_p()
        context.driver.call("cuMemHostAlloc", byref(address), size, 0)
        super().__init__(context, "cuMemFreeHost", address)
        self.address = int(address.value or 0)
        self.size = size
        self.bytes = (ctypes.c_ubyte * size).from_address(self.address)
        """Supports the buffer protocol; valid for as long as this object is not closed."""


class Event(_Owned):
    """A moment in a stream."""

    def __init__(self, context: _Context) -> None:
        handle = c_void_p()
        context.driver.call("cuEventCreate", byref(handle), 0)
        super().__init__(context, "cuEventDestroy_v2", handle)

    def ms_since(self, start: Event) -> float:
        """Milliseconds on the GPU between two recorded events; waits for this one."""
        elapsed = c_float()
        with self._context.current():
            self._context.driver.call("cuEventSynchronize", self._handle)
            self._context.driver.call("cuEventElapsedTime", byref(elapsed), start._handle, self._handle)
        return elapsed.value


class Graph(_Owned):
    """Captured work that is launched as one."""

    def __init__(self, context: _Context, captured: c_void_p) -> None:
        handle = c_void_p()
        try:
            context.driver.call("cuGraphInstantiateWithFlags", byref(handle), captured, 0)
        finally:
            context.driver.try_call("cuGraphDestroy", captured)
        super().__init__(context, "cuGraphExecDestroy", handle)


class Stream(_Owned):
    """Work for the GPU in the order in which it is given. Calls return at once; :meth:`synchronize` waits."""

    def __init__(self, context: _Context) -> None:
        handle = c_void_p()
        context.driver.call("cuStreamCreate", byref(handle), STREAM_NON_BLOCKING)
        super().__init__(context, "cuStreamDestroy_v2", handle)
        self.handle = int(handle.value or 0)
        """As other libraries take it."""

    def _call(self, symbol: str, *arguments: Any) -> None:
        with self._context.current():
            self._context.driver.call(symbol, *arguments)

    def copy_in(self, target: Buffer, source: PinnedBuffer, size: int) -> None:
        """The first ``size`` bytes from the host to the GPU."""
        self._call("cuMemcpyHtoDAsync_v2", target.address, source.address, size, self._handle)

    def copy_out(self, target: PinnedBuffer, source: Buffer, size: int) -> None:
        """The first ``size`` bytes from the GPU to the host."""
        self._call("cuMemcpyDtoHAsync_v2", target.address, source.address, size, self._handle)

    def record(self, event: Event) -> None:
        self._call("cuEventRecord", event._handle, self._handle)

    def launch(self, graph: Graph) -> None:
        self._call("cuGraphLaunch", graph._handle, self._handle)

    def synchronize(self) -> None:
        """Wait until everything given so far is done. Raises DeviceError for whatever failed on the way."""
        self._call("cuStreamSynchronize", self._handle)

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[Graph]]:
        """What the block gives to this stream is recorded in place of being done; the graph is then in the list.

        Raises DeviceError where something in the block cannot be recorded; the stream is usable afterwards.
        """
        found: list[Graph] = []
        captured = c_void_p()
        driver = self._context.driver
        with self._context.current():
            driver.call("cuStreamBeginCapture_v2", self._handle, CAPTURE_THREAD_LOCAL)
            try:
                yield found
            except BaseException:
                if driver.try_call("cuStreamEndCapture", self._handle, byref(captured)) == 0 and captured:
                    driver.try_call("cuGraphDestroy", captured)
                raise
            driver.call("cuStreamEndCapture", self._handle, byref(captured))
            found.append(Graph(self._context, captured))


class Device:
    """One NVIDIA GPU. Safe to use from several threads: each call makes the context current for its own duration.

    What it gives out is freed by ``close()``, when nothing refers to it any more, or with the device.
    Raises DeviceError where there is no driver, no GPU, or none of that number.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self.driver = driver()
        count = self.driver.devices
        if not count:
            raise DeviceError("the NVIDIA driver sees no GPU")
        if not 0 <= ordinal < count:
            raise DeviceError(f"there is no GPU {ordinal}: the driver sees {count}, counted from 0")
        number = c_int()
        self.driver.call("cuDeviceGet", byref(number), ordinal)
        self._number = number.value
        self._context = _Context(self.driver, self._number)
        self._finalizer = weakref.finalize(self, self._context.close)

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self.driver.call("cuDeviceGetName", text, len(text), self._number)
        return text.value.decode("utf-8", "replace")

    @property
    def compute_capability(self) -> tuple[int, int]:
        return self._attribute(COMPUTE_CAPABILITY_MAJOR), self._attribute(COMPUTE_CAPABILITY_MINOR)

    @property
    def integrated(self) -> bool:
        """Whether its memory is the machine's own, as on a Jetson."""
        return bool(self._attribute(INTEGRATED))

    @property
    def driver_version(self) -> str:
        """``CUDA 12.6, driver 540.4.0``; without the driver's own number where the system does not tell it."""
        own = _kernel_module()
        return f"CUDA {self.driver.cuda_version}" + (f", driver {own}" if own else "")

    def _attribute(self, which: int) -> int:
        value = c_int()
        self.driver.call("cuDeviceGetAttribute", byref(value), which, self._number)
        return value.value

    def memory(self) -> Memory:
        free, total = c_size_t(), c_size_t()
        with self.current():
            self.driver.call("cuMemGetInfo_v2", byref(free), byref(total))
        return Memory(free=free.value, total=total.value)

    def current(self) -> contextlib.AbstractContextManager[None]:
        """For calls of other libraries: within the block this GPU is the calling thread's own."""
        return self._context.current()

    def buffer(self, size: int) -> Buffer:
        """Raises DeviceError that says how much was wanted and how much is free."""
        with self._roomy(size), self.current():
            return Buffer(self._context, size)

    def pinned(self, size: int) -> PinnedBuffer:
        """Raises DeviceError as :meth:`buffer`."""
        with self._roomy(size), self.current():
            return PinnedBuffer(self._context, size)

    @contextlib.contextmanager
    def _roomy(self, size: int) -> Iterator[None]:
        try:
            yield
        except DeviceError as error:
            if not error.out_of_memory:
                raise
            raise DeviceError(self.out_of_memory(f"{size / 1e6:.1f} MB"), error.name) from None

    def out_of_memory(self, wanted: str) -> str:
        """The line for a person whose GPU has no room for what is ``wanted``."""
        has = self.memory()
        return (
            f"not enough memory on {self.name} for {wanted}: {has.free / 1e6:.0f} of {has.total / 1e6:.0f} MB are free: "
            "close what else uses it, or build for smaller batches (`zoo export --batch`)"
        )

    def stream(self) -> Stream:
        with self.current():
            return Stream(self._context)

    def event(self) -> Event:
        with self.current():
            return Event(self._context)

    def close(self) -> None:
        """Free all that it gave out, then let go of the GPU."""
        self._finalizer()


def _kernel_module() -> str:
    with contextlib.suppress(OSError):
        return _module_version(Path("/proc/driver/nvidia/version").read_text("utf-8", "replace"))
    return ""


def _module_version(text: str) -> str:
    """``580.65.06`` of ``… Kernel Module  580.65.06  Wed …``, ``540.4.0`` of ``… Kernel Module for aarch64  540.4.0  …``."""
    found = re.search(r"Kernel Module\s.*?\s?(\d+\.\d+(?:\.\d+)*)\s", text)
    return found[1] if found else ""
