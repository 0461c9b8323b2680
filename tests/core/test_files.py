"""Writing: whole or not at all, and one clear line where the place is unusable."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from zoo.errors import OutputError
from zoo.files import as_output_error, dump_json, new_folder, sha256_bytes, sha256_file, write_bytes, write_text


def test_write_and_replace(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["a.txt"]
    assert sha256_file(path) == sha256_bytes(b"two")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="no space left on the disk while writing"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full() -> None:
    with pytest.raises(OutputError, match="no space left"):
        try:
            with open("/dev/full", "wb", buffering=0) as file:
                file.write(b"x")
        except OSError as error:
            raise as_output_error(error, Path("/dev/full")) from error


def test_no_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        target = Path("/proc/zoo-test/a.txt")  # root may write anywhere but here
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        target = tmp_path / "locked" / "a.txt"
    with pytest.raises(OutputError, match=r"no permission to write|cannot write"):
        write_text(target, "x")


def test_something_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="in the way"):
        write_text(tmp_path / "file" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="in the way"):
        write_text(tmp_path / "folder", "x")


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        dump_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    dump_json(tmp_path / "a.json", {"é": [1]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"é": [1]}


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "x"
    assert os.listdir(tmp_path) == ["out"]


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_another_run_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:  # an empty folder is no run
        (folder / "old").write_text("x")
    with pytest.raises(OutputError, match="already holds something"), new_folder(tmp_path / "out"):
        pytest.fail("the block ran")
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("x")
    assert os.listdir(tmp_path / "out") == ["new"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"), new_folder(tmp_path / "file"):
        pytest.fail("the block ran")
    assert sorted(os.listdir(tmp_path)) == ["file", "out"]


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert os.listdir(tmp_path / "out") == ["old"]
