"""What every test may use: the real data where it is at hand, one thread a test, and a registry that is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Two xdist workers on two cores: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real images and weights that are not part of this repository. Skips where they are absent."""
    folder = Path(os.environ.get("ZOO_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"no test assets at {folder}: set ZOO_ASSETS")
    return folder


@pytest.fixture
def zoo() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line as a user does, in a process of its own; gives the finished process with its output."""

    def run(*args: object, check: int | None = 0, **kwargs: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *(str(a) for a in args)],
            capture_output=True,
            text=True,
            timeout=600,
            **kwargs,  # type: ignore[call-overload]
        )
        if check is not None:
            assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback (most recent call last)" not in done.stderr, done.stderr
        return done

    return run
