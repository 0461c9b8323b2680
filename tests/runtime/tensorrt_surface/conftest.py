"""The public names of real TensorRT bindings, read at test time from NVIDIA's own wheels; nothing of theirs is kept here.

The bindings are a wheel of 1 MB that imports without TensorRT, a GPU or a driver once the three shared libraries that it
links to can be found. Ours hold the functions that it asks for, each returning a null pointer, so the names are all there
and nothing does anything: these tests are about the API's surface, never about TensorRT's behaviour.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from zoo.download import cache_folder
from zoo.errors import OutputError
from zoo.files import dump_json, sha256_file

BINDINGS = {
    "10.3": "tensorrt-cu12-bindings==10.3.0",  # JetPack 6.1 and 6.2
    "10.16": "tensorrt-cu13-bindings==10.16.1.11",  # JetPack 7.2, and the last of 10
    "11": "tensorrt-cu13-bindings==11.4.0.106",  # the newest with wheels
}
"""The versions that the zoo's code is held to. Exact, so that a test run does not depend on the day."""
SURFACES = (*BINDINGS, "rtx")
DUMP = Path(__file__).parent / "dump.py"
PATIENCE_S = 60


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What a library's Python module offers."""

    name: str
    """One of SURFACES."""
    version: str
    names: frozenset[str]
    """Dotted paths below the module: ``Builder``, ``Builder.create_network``, ``BuilderFlag.TF32``."""
    writable: frozenset[str]
    """Those of the names that are properties and can be assigned to."""
    calls: Mapping[str, list[list[tuple[str, bool]]]]
    """For what can be called, the arguments (name, whether it is needed) of each overload, where the bindings tell."""

    def __contains__(self, path: str) -> bool:
        return path in self.names

    @property
    def words(self) -> set[str]:
        """Every part of every path."""
        return {word for path in self.names for word in path.split(".")}


class Unavailable(Exception):
    """Why a surface cannot be read here."""


def read_surface(name: str) -> Surface:
    """A surface by its name. Raises Unavailable with the reason where it cannot be had on this machine."""
    said = _installed("tensorrt_rtx") if name == "rtx" else _from_wheel(BINDINGS[name])
    calls = {path: [[(a, n) for a, n in one] for one in overloads] for path, overloads in said["calls"].items()}
    return Surface(
        name=name,
        version=said["version"],
        names=frozenset(said["names"]),
        writable=frozenset(said["writable"]),
        calls=calls,
    )


def _installed(module: str) -> dict:
    try:
        return _dump(module)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise Unavailable(f"{module} cannot be imported: {last}") from None


def _from_wheel(requirement: str) -> dict:
    """From the cache, else by downloading the wheel. Only the names stay in the cache, a file for each Python."""
    package, _, version = requirement.partition("==")
    tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{sha256_file(DUMP)[:8]}"
    cached = cache_folder() / "tensorrt-surfaces" / f"{package}-{version}-{tag}.json"
    if cached.is_file():
        return json.loads(cached.read_text("utf-8"))
    if not sys.platform.startswith("linux"):
        raise Unavailable(f"{requirement}: its shared libraries are stood in for on Linux only")
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{requirement}: there is no {tool} here to make the shared libraries it links to")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(_download(requirement, folder)) as wheel:
            wheel.extractall(folder)
        _make_libraries(folder / "tensorrt_bindings" / "tensorrt.so", folder / "stubs")
        said = _dump("tensorrt_bindings", folder, libraries=folder / "stubs")
    with contextlib.suppress(OutputError):  # a cache that cannot be written costs a second the next time
        dump_json(cached, said)
    return said


def _download(requirement: str, folder: Path) -> Path:
    options = "--quiet --no-deps --only-binary :all: --disable-pip-version-check --no-input --retries 0 --timeout 10"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{requirement}: not downloaded within {PATIENCE_S} s") from None
    if done.returncode == 0:
        return next(folder.glob("*.whl"))
    if "No module named pip" in done.stderr:
        raise Unavailable(f"{requirement}: this Python has no pip to download it with")
    if "(from versions: none)" in done.stderr:
        raise Unavailable(f"{requirement}: pip reaches no package index that has it")
    if "No matching distribution" in done.stderr:
        python = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
        raise Unavailable(f"{requirement}: no wheel for {python} on {sysconfig.get_platform()}")
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: no reason was given"]
    raise Unavailable(f"{requirement}: pip does not download it: {errors[0].removeprefix('ERROR: ')}")


def _make_libraries(bindings: Path, folder: Path) -> None:
    """A library for each of NVIDIA's that ``bindings`` links to, each with every function that is missing here."""
    folder.mkdir()
    c_locale = {**os.environ, "LC_ALL": "C"}
    linked = subprocess.run(["readelf", "-d", bindings], capture_output=True, text=True, check=True, env=c_locale)
    sonames = [line.split("[")[1].split("]")[0] for line in linked.stdout.splitlines() if "(NEEDED)" in line]
    undefined = subprocess.run(
        ["nm", "-D", "-u", "--format=posix", bindings], capture_output=True, text=True, check=True, env=c_locale
    )
    symbols = [line.split()[0] for line in undefined.stdout.splitlines() if line.split()[1] == "U"]
    here = ctypes.CDLL(None)  # Python's own functions and the C library's; a version after @ says that a system has it
    missing = [symbol for symbol in symbols if "@" not in symbol and not hasattr(here, symbol)]
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in missing))
    for soname in (name for name in sonames if name.startswith("libnv")):
        link = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(folder / soname), str(source)]
        subprocess.run(link, check=True)


def _dump(module: str, folder: Path | None = None, *, libraries: Path | None = None) -> dict:
    environment = dict(os.environ)
    if libraries is not None:
        paths = [str(libraries), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(p for p in paths if p)
    command = [sys.executable, str(DUMP), module, *([str(folder)] if folder else [])]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=True, env=environment, cwd=DUMP.parent
    )
    return json.loads(done.stdout)


@functools.cache
def _surface(name: str) -> Surface | Exception:
    """The surface, or what came in between: that too is found out once."""
    try:
        return read_surface(name)
    except Exception as error:
        return error


@pytest.fixture(params=SURFACES)
def surface(request: pytest.FixtureRequest) -> Surface:
    """Each of the surfaces in turn; skips those that cannot be read here."""
    found = _surface(request.param)
    if isinstance(found, Surface):
        return found
    if isinstance(found, Unavailable):
        request.node.add_marker(pytest.mark.skip)  # so that the summary shows a reason once a file, not once a test
        pytest.skip(str(found))
    raise found


@pytest.fixture
def surfaces() -> dict[str, Surface]:
    """Those that can be read here; skips where none can."""
    found = {name: _surface(name) for name in SURFACES}
    known = {name: surface for name, surface in found.items() if isinstance(surface, Surface)}
    if not known:
        pytest.skip("; ".join(str(reason) for reason in found.values()))
    return known
