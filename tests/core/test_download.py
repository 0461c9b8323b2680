"""Fetching weights: once, whole or not at all, over https, and with a cure where there is no network."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from zoo.download import cache_folder, fetch
from zoo.errors import CheckpointError, OutputError

BODY = b"weights" * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    served: list[str] = []

    def do_GET(self) -> None:
        self.served.append(self.path)
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[: len(BODY) // 2] if self.path.startswith("/cut") else BODY)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.served.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_a_file_is_fetched_once(server: str, tmp_path: Path) -> None:
    first = fetch(f"{server}/a/net.pth", tmp_path)
    assert first.read_bytes() == BODY
    assert first.name.endswith("-net.pth")
    assert fetch(f"{server}/a/net.pth", tmp_path) == first
    assert Handler.served == ["/a/net.pth"]
    assert fetch(f"{server}/b/net.pth", tmp_path) != first  # the same name elsewhere is another file


@pytest.mark.parametrize(("path", "words"), [("/absent.pth", "answers 404"), ("/cut.pth", "bytes came")])
def test_half_a_file_is_no_file(server: str, tmp_path: Path, path: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as refused:
        fetch(server + path, tmp_path)
    assert "--weights FILE" in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_no_network_says_the_cure(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights\.invalid.*--weights FILE"):
        fetch("https://weights.invalid/net.pth", tmp_path, timeout_s=5)
    assert not list(tmp_path.iterdir())


def test_plain_http_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="https only"):
        fetch("http://example.com/net.pth", tmp_path)


def test_a_cache_that_cannot_be_written(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="in the way"):
        fetch(f"{server}/net.pth", tmp_path / "file")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ZOO_CACHE", raising=False)
    assert cache_folder() == tmp_path / "edgezoo"
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
