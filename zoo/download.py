"""Fetches weights over https into a cache: whole or not at all, and a clear line where there is no network."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from . import __version__
from .errors import CheckpointError
from .files import as_output_error, beside, sha256_bytes

__all__ = ["cache_folder", "fetch"]


def cache_folder() -> Path:
    """Where fetched weights live: ``$ZOO_CACHE``, else ``$XDG_CACHE_HOME/edgezoo``, else ``~/.cache/edgezoo``."""
    own = os.environ.get("ZOO_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgezoo"


def fetch(uri: str, cache: Path, *, timeout_s: float = 20.0) -> Path:
    """The file of an ``https`` address, from the cache where it is there already.

    The name in the cache holds the address's hash, so that two files of one name never meet. Raises
    CheckpointError where the address cannot be reached or the file came short, OutputError where the cache
    cannot be written.
    """
    parts = urllib.parse.urlsplit(uri)
    name = Path(parts.path).name or "weights"
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1"):
        raise CheckpointError(f"{uri}: weights are fetched over https only: download the file and give --weights FILE")
    path = cache / f"{sha256_bytes(uri.encode())[:12]}-{name}"
    if path.is_file():
        return path
    with beside(path) as part:
        with part.open("wb") as target:
            try:
                request = urllib.request.Request(uri, headers={"User-Agent": f"edgezoo/{__version__}"})
                with urllib.request.urlopen(request, timeout=timeout_s) as response:
                    expected = response.headers.get("Content-Length")
                    shutil.copyfileobj(response, _Writer(target, path), 1 << 20)
            except urllib.error.HTTPError as error:
                raise CheckpointError(f"{uri} answers {error.code} {error.reason}: {_CURE}") from None
            except (urllib.error.URLError, TimeoutError, ConnectionError, OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                raise CheckpointError(f"{parts.hostname or uri} cannot be reached ({reason}): {_CURE}") from None
        got = part.stat().st_size
        if expected is not None and int(expected) != got:
            raise CheckpointError(f"{uri}: {got} of {expected} bytes came: try again, or {_CURE}")
    return path


_CURE = "download the file elsewhere and give it with --weights FILE"


class _Writer:
    """A file whose write errors are told apart from the network's: a full disk is not an unreachable hub."""

    def __init__(self, file: object, path: Path) -> None:
        self._file, self._path = file, path

    def write(self, block: bytes) -> int:
        try:
            return self._file.write(block)  # type: ignore[attr-defined, no-any-return]
        except OSError as error:
            raise as_output_error(error, self._path) from error
