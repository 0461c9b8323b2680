"""Writing without losing anything: beside, then rename. And the hashes that artefacts are known by."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import OutputError, ZooError

__all__ = [
    "as_output_error",
    "beside",
    "dump_json",
    "new_folder",
    "sha256_bytes",
    "sha256_file",
    "write_bytes",
    "write_text",
]


def sha256_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def as_output_error(error: OSError, path: Path) -> OutputError:
    """One clear line for an OSError met while writing ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left on the disk while writing {path}: free some, or choose another --out")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"no permission to write {path}: choose another --out, or change its owner or mode")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return OutputError(f"{path} cannot be written: something else of that name is in the way")
    return OutputError(f"cannot write {path}: {error.strerror or error}")


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write into: renamed over it when the block ends, removed when it raises.

    A reader of ``path`` sees the old file or the new one, never half. Raises OutputError for the block's OSErrors.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise as_output_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all. Raises OutputError where the place cannot be written."""
    with beside(path) as part, part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def dump_json(path: Path, data: Any) -> None:
    """Write JSON with sorted keys off, two-space indent, and a final newline; NaN is refused."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears at ``path`` complete or not at all.

    The block writes into a temporary sibling, which is renamed when the block ends and removed when it raises.
    An existing non-empty ``path`` is refused (OutputError) unless ``overwrite``; then it is swapped out whole.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file: choose another --out")
        if path.is_dir() and any(path.iterdir()) and not overwrite:
            raise OutputError(f"{path} already holds something: choose another --out, or --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        beside.chmod(0o755)
    except OSError as error:
        raise as_output_error(error, path) from error
    try:
        yield beside
        old: Path | None = None
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, old)
        os.replace(beside, path)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise as_output_error(error, path) from error
    except ZooError:
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
