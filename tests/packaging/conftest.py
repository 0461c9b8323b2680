"""Wheels built once, and environments that hold what a test says and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = (
    ".",
    "export",
    "plugins/zoo-timm",
    "plugins/zoo-classic",
    "plugins/zoo-segment",
    "plugins/zoo-detect",
    "plugins/zoo-gan",
)
EXAMPLE = "examples/plugin-package"
OURS = ("edgezoo", "zoo", "zoo_export", "zoo_timm", "zoo_classic", "zoo_segment", "zoo_detect", "zoo_gan", "zoo_pebble")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Distribution name to wheel, built as ``pip install`` would build them."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheels")
    sources = [str(ROOT / m) for m in (*MEMBERS, EXAMPLE)]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out)]
    subprocess.run([*command, *sources], check=True, cwd=out)
    return {w.name.partition("-")[0]: w for w in out.glob("*.whl")}


class Environment:
    """A virtual environment of its own; ``python`` and ``zoo`` run in it, away from this checkout."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.folder = folder
        self.ours = OURS
        self.packages = next(folder.glob("lib/python*/site-packages"))
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ZOO_", "VIRTUAL_ENV"))}
        self.env |= {"OMP_NUM_THREADS": "1", "HOME": str(folder), "PATH": f"{folder / 'bin'}:/usr/bin:/bin"}

    def borrow(self, wanted: Callable[[str], bool]) -> None:
        """Link packages of the running environment in, to spare their download. Never our own."""
        for source in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for path in Path(source).iterdir():
                name = path.name.lower()
                own = name.startswith(OURS) or "editable" in name or name.endswith(".pth") or name == "__pycache__"
                if not own and wanted(name) and not (self.packages / path.name).exists():
                    (self.packages / path.name).symlink_to(path)

    def install(self, wheels: Iterable[Path]) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python"), "install", "--quiet"]
        subprocess.run([*command, "--no-deps", "--no-index", *map(str, wheels)], check=True)

    def run(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        program, *rest = map(str, command)
        done = subprocess.run(
            [str(self.folder / "bin" / program), *rest],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env,
            timeout=900,
        )
        if check:
            assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[], Environment]:
    """Makes a new, empty virtual environment."""
    return lambda: Environment(tmp_path / "environment")
