"""A machine with an NVIDIA GPU that is not there: the fake driver compiled, and the fake ``tensorrt`` put in its place.

Not a test: tests load it by its path. What they prove with it is the zoo's own half (arguments, order, lifetimes,
decisions), never what NVIDIA's libraries do.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from zoo.runtime.tensorrt import api, cuda

HERE = Path(__file__).parent
KINDS = ("context", "device memory", "host memory", "stream", "event", "graph", "exec")


class FakeGpu:
    """The compiled fake driver: what it holds, and how to make it fail."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))

    def live(self) -> dict[str, int]:
        """How many things of each kind are not freed."""
        counts = {name: self._library.fakeLive(index) for index, name in enumerate(KINDS)}
        return dict(Counter(counts) + Counter())

    def fail_next(self, symbol: str, code: int) -> None:
        """The next call of a driver function gives this result code and does nothing."""
        self._library.fakeFail(symbol.encode(), code)


def compile_driver(folder: Path) -> Path:
    """``<folder>/libcuda.so.1`` of tests/fakes/cuda.c. Skips where there is no C compiler."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the fake CUDA driver needs a C compiler on Linux")
    out = folder / "libcuda.so.1"
    if not out.exists():
        command = [
            compiler,
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-pthread",
            "-fvisibility=hidden",
        ]
        subprocess.run([*command, "-o", str(out), str(HERE / "cuda.c")], check=True)
    return out


def plug_in(monkeypatch: pytest.MonkeyPatch, driver: Path) -> FakeGpu:
    """This process and its children see one NVIDIA GPU, until the test ends."""
    cuda.driver.cache_clear()
    monkeypatch.setattr(cuda, "NAMES", (str(driver),))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver.parent))  # of children: this process has read it long ago
    return FakeGpu(driver)


def install_tensorrt(monkeypatch: pytest.MonkeyPatch, driver: Path, version: str = "10.3.0") -> None:
    """``import tensorrt`` gives the fake one, here and in children."""
    monkeypatch.setenv("FAKE_LIBCUDA", str(driver))
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", version)
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(api, "_found", {})
