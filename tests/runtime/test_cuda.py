"""The driver through ctypes: on a fake driver that checks every argument, and on a real GPU where there is one."""

from __future__ import annotations

import gc
import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.runtime.tensorrt import cuda
from zoo.runtime.tensorrt.cuda import Buffer, Device, DeviceError, PinnedBuffer, Stream

REASON = cuda.probe()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    if request.param == "real" and REASON:
        pytest.skip(f"needs an NVIDIA GPU: {REASON}")
    if request.param == "fake":
        request.getfixturevalue("fake_gpu")
    opened = Device()
    yield opened
    opened.close()


def view(pinned: PinnedBuffer) -> np.ndarray:
    return np.frombuffer(pinned.bytes, np.float32)


def round_trip(device: Device, stream: Stream, values: np.ndarray) -> np.ndarray:
    """To the GPU and back."""
    there, source, target = device.buffer(values.nbytes), device.pinned(values.nbytes), device.pinned(values.nbytes)
    view(source)[:] = values
    stream.copy_in(there, source, values.nbytes)
    stream.copy_out(target, there, values.nbytes)
    stream.synchronize()
    return view(target).copy()


# -- on either


def test_it_says_what_it_is(device: Device) -> None:
    assert device.name
    major, minor = device.compute_capability
    assert major >= 5
    assert 0 <= minor <= 9
    assert re.match(r"CUDA \d+\.\d+", device.driver_version)
    memory = device.memory()
    assert 0 < memory.free <= memory.total
    assert isinstance(device.integrated, bool)


def test_what_goes_in_comes_out(device: Device) -> None:
    values = np.arange(1000, dtype=np.float32)
    assert np.array_equal(round_trip(device, device.stream(), values), values)


def test_threads_share_a_device(device: Device) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            stream = device.stream()
            for turn in range(20):
                values = np.full(512, 100 * seed + turn, np.float32)
                if not np.array_equal(round_trip(device, stream, values), values):
                    wrong.append(seed)
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_captured_graph_does_the_copies_anew(device: Device) -> None:
    stream = device.stream()
    there, source, target = device.buffer(64), device.pinned(64), device.pinned(64)
    view(source)[:], view(target)[:] = 1, 0
    with stream.capture() as graphs:
        stream.copy_in(there, source, 64)
        stream.copy_out(target, there, 64)
    stream.synchronize()
    assert not view(target).any(), "it was recorded, not done"
    for value in (5, 6):
        view(source)[:] = value
        stream.launch(graphs[0])
        stream.synchronize()
        assert (view(target) == value).all()


def test_a_capture_that_fails_leaves_the_stream_usable(device: Device) -> None:
    stream = device.stream()
    with pytest.raises(DeviceError, match="CAPTURE"), stream.capture():
        stream.synchronize()
    values = np.ones(16, np.float32)
    assert np.array_equal(round_trip(device, stream, values), values)


def test_events_measure_milliseconds(device: Device) -> None:
    stream, start, end = device.stream(), device.event(), device.event()
    there, source = device.buffer(1 << 20), device.pinned(1 << 20)
    stream.record(start)
    for _ in range(50):
        stream.copy_in(there, source, 1 << 20)
    stream.record(end)
    assert 0 < end.ms_since(start) < 1000


def test_too_much_memory_is_one_line_with_what_is_free(device: Device) -> None:
    with pytest.raises(DeviceError, match=r"not enough memory on .* for .* MB: \d+ of \d+ MB are free: ") as caught:
        device.buffer(1 << 50)
    assert caught.value.out_of_memory
    assert "\n" not in str(caught.value)
    assert device.buffer(16).size == 16, "and it goes on working"


def test_a_gpu_that_does_not_exist_is_refused(device: Device) -> None:
    with pytest.raises(DeviceError, match="there is no GPU 99: the driver sees"):
        Device(99)


def test_a_closed_device_is_refused(device: Device) -> None:
    stream = device.stream()
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="was closed"):
        stream.synchronize()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC 12.2\n",
            "535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root)\n", "580.65.06"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (b)\nGCC 11.4.0\n",
            "540.4.0",
        ),
        ("something else", ""),
    ],
)
def test_the_drivers_own_number(text: str, version: str) -> None:
    assert cuda._module_version(text) == version


# -- on the fake alone, which counts what is live and fails on demand


def test_everything_is_freed_with_its_last_reference_with_close_or_with_the_device(fake_gpu: Any) -> None:
    device = Device()
    kept, dropped, closed = device.buffer(8), device.buffer(8), device.pinned(8)
    stream, event = device.stream(), device.event()
    with stream.capture() as graphs:
        pass
    assert fake_gpu.live() == {
        "context": 1,
        "device memory": 2,
        "host memory": 1,
        "stream": 1,
        "event": 1,
        "exec": 1,
    }
    del dropped, graphs
    closed.close()
    closed.close()
    gc.collect()
    assert fake_gpu.live() == {"context": 1, "device memory": 1, "stream": 1, "event": 1}
    device.close()
    assert fake_gpu.live() == {}
    del kept, stream, event
    other = Device()
    assert fake_gpu.live() == {"context": 1}
    del other
    gc.collect()
    assert fake_gpu.live() == {}


def test_a_device_and_its_buffers_may_go_as_one_piece_of_garbage(fake_gpu: Any) -> None:
    class Holder:
        pass

    holder = Holder()
    holder.itself, holder.device = holder, Device()  # type: ignore[attr-defined]
    holder.buffers = [holder.device.buffer(8), holder.device.pinned(8), holder.device.stream()]  # type: ignore[attr-defined]
    assert len(fake_gpu.live()) == 4
    del holder
    gc.collect()
    assert fake_gpu.live() == {}


def test_a_failed_call_says_which_and_why(fake_gpu: Any) -> None:
    device = Device()
    stream = device.stream()
    fake_gpu.fail_next("cuStreamSynchronize", 719)
    with pytest.raises(DeviceError, match=r"refused cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED: "):
        stream.synchronize()
    fake_gpu.fail_next("cuStreamSynchronize", 12345)
    with pytest.raises(DeviceError, match="error 12345: as the fake says"):
        stream.synchronize()


@pytest.mark.parametrize("symbol", ["cuMemAlloc_v2", "cuMemHostAlloc", "cuGraphInstantiateWithFlags"])
def test_a_failure_half_way_leaks_nothing(fake_gpu: Any, symbol: str) -> None:
    device = Device()
    stream = device.stream()
    before = fake_gpu.live()
    fake_gpu.fail_next(symbol, 1)
    with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_VALUE"):
        if symbol == "cuGraphInstantiateWithFlags":
            with stream.capture():
                pass
        elif symbol == "cuMemAlloc_v2":
            device.buffer(4)
        else:
            device.pinned(4)
    assert fake_gpu.live() == before


def test_no_gpu_and_no_driver_are_told_apart(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cuda.probe() == ""
    monkeypatch.setenv("FAKE_GPU_COUNT", "0")
    assert cuda.probe() == "the NVIDIA driver sees no GPU"
    with pytest.raises(DeviceError, match="sees no GPU"):
        Device()
    cuda.driver.cache_clear()
    monkeypatch.setenv("FAKE_GPU_COUNT", "-1")
    assert "CUDA_ERROR_NO_DEVICE" in cuda.probe()
    monkeypatch.setattr(cuda, "NAMES", (str(tmp_path / "libcuda.so.1"),))
    assert cuda.probe().startswith("no NVIDIA driver is installed (")


def test_an_old_driver_is_named(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cuda._SYMBOLS, "cuNotThere", ())
    cuda.driver.cache_clear()
    assert "older than CUDA 11.4" in cuda.probe()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_is_refused_and_frees_nothing_of_its_parent(fake_gpu: Any) -> None:
    device = Device()
    buffer = device.buffer(8)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"nothing"
        try:
            device.buffer(8)
        except DeviceError as error:
            said = str(error).encode()
        buffer.close()
        device.close()
        os.write(writer, said + b"|" + repr(fake_gpu.live()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    said, live = os.read(reader, 1000).decode().split("|")
    assert "forked process" in said
    assert "'device memory': 1" in live
    assert isinstance(buffer, Buffer)
    assert fake_gpu.live() == {"context": 1, "device memory": 1}


def test_the_symbols_are_those_of_cuda_h() -> None:
    """Against the header that comes with PyTorch's CUDA packages: names, and how many arguments each takes."""
    runtime = pytest.importorskip("nvidia.cu13", reason="NVIDIA's headers are not installed")
    header = Path(next(iter(runtime.__path__))) / "include" / "cuda.h"
    if not header.exists():
        pytest.skip("NVIDIA's headers are not installed")
    text = header.read_text("utf-8", "replace")
    mapped = dict(re.findall(r"^#define (cu\w+)\s+(?:__CUDA_API_PT[DS][SZ]\()?(cu\w+)\)?\s*$", text, re.M))
    declared = dict(re.findall(r"^CUresult CUDAAPI (cu\w+)\(([^;]*)\);", text, re.M))
    # cuEventElapsedTime_v2 is of CUDA 12.8; the symbol without a number is the one that every driver has
    older = {"cuEventElapsedTime"}
    for symbol, types in cuda._SYMBOLS.items():
        public = symbol.removesuffix("_v2")
        name = "cuGraphInstantiate" if symbol == "cuGraphInstantiateWithFlags" else public
        assert mapped.get(name, name) == symbol or symbol in older, symbol
        arguments = [a for a in declared[name].split(",") if a.strip() != "void"]
        assert len(arguments) == len(types), symbol
