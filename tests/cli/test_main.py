"""The shell around the verbs: help without imports, exit codes, one line for every foreseeable error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from zoo import cli
from zoo.errors import GateFailed, OutputError, UnknownName, ZooError
from zoo.registry import get_registry
from zoo.specs import Command


def test_help_names_every_verb_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom zoo.cli import execute\nassert execute(['--help']) == 0\n"
        "print('LOADED', *sorted({'torch','onnx','numpy','onnxruntime','timm','lightning'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1].split() == ["LOADED"]
    for verb in get_registry().names(Command):
        assert f"\n  {verb} " in out


@pytest.mark.parametrize("verb", get_registry().names(Command))
def test_every_verb_has_help_with_an_example(verb: str):
    command = get_registry().get(Command, verb).resolve()
    with click.Context(command, info_name=f"zoo {verb}") as context:
        text = command.get_help(context)
    assert f"zoo {verb}" in text.split("Options:")[0].partition("\n")[2], f"zoo {verb} --help shows no example"


def test_a_misspelt_verb_names_the_nearest(zoo):
    done = zoo("lsit", check=2)
    assert "list" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ZooError("no good"), 2, "zoo: error: no good"),
        (GateFailed("int8 failed"), 1, "zoo: error: int8 failed"),
        (OutputError("disk full"), 2, "zoo: error: disk full"),
        (UnknownName("architecture", "resnt", ["resnet50"]), 2, "did you mean resnet50?"),
        (KeyboardInterrupt(), 130, "zoo: interrupted"),
        (MemoryError("Unable to allocate 8 TiB"), 2, "out of memory (Unable to allocate 8 TiB): give smaller"),
        (OSError(28, "No space left on device", "/x/y"), 2, "no space left on the disk while writing /x/y"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(monkeypatch, capsys, error, code, line):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", fail)
    assert cli.execute([]) == code
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    def fail(**_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli.cli, "main", fail)
    with pytest.raises(RuntimeError):
        cli.execute([])


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m zoo list | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "rror" not in done.stderr


def test_completion_lists_verbs():
    env = {**os.environ, "_ZOO_COMPLETE": "bash_complete", "COMP_WORDS": "zoo li", "COMP_CWORD": "1"}
    code = "from zoo.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "plain,list" in done.stdout


def test_selftest_and_bench_and_verify_of_a_small_bundle(zoo, tiny_bundle: Path, tmp_path: Path):
    found = json.loads(zoo("selftest", tiny_bundle, "--json").stdout)
    assert found["passed"] is True
    assert "pass" in zoo("selftest", tiny_bundle).stdout
    rows = json.loads(zoo("bench", tiny_bundle, "--seconds", "0.2", "--json").stdout)["measurements"]
    assert {r["what"] for r in rows} == {"network", "image to result"}
    assert all(r["p50_ms"] > 0 for r in rows)
    done = zoo("verify", tiny_bundle, "--out", tmp_path / "report")
    assert "not judged" in done.stdout or "Accuracy was not judged" in done.stderr
    assert (tmp_path / "report" / "report.html").is_file()


def test_a_broken_bundle_fails_the_selftest_with_exit_code_1(zoo, tiny_bundle: Path):
    with (tiny_bundle / "model.fp32.onnx").open("ab") as file:
        file.write(b"x")
    done = zoo("selftest", tiny_bundle, check=1)
    assert "'files'" in done.stderr
    assert zoo("verify", tiny_bundle, check=1).stderr.startswith("zoo: error:")


def test_a_path_that_is_no_bundle_is_exit_code_2(zoo, tmp_path: Path):
    for verb in ("selftest", "verify", "bench", "pack"):
        done = zoo(verb, tmp_path / "nothing", check=2)
        assert "no such file" in done.stderr


def test_ctrl_c_is_130(tiny_bundle: Path):
    child = subprocess.Popen(
        [sys.executable, "-m", "zoo", "bench", str(tiny_bundle), "--seconds", "60"], stderr=subprocess.PIPE, text=True
    )
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=4)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert err.splitlines()[-1] == "zoo: interrupted"
