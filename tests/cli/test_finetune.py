"""The command line around a run: what it prints, what it refuses, and that its help needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.cli import execute

Zoo = Callable[..., subprocess.CompletedProcess[str]]


def test_help_imports_no_torch() -> None:
    script = (
        "import sys; from zoo.cli import execute; execute(['finetune', '--help']); "
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--head-epochs" in done.stdout
    assert "zoo finetune mobilenet --data photos/" in done.stdout


def test_from_data_to_evaluation(
    zoo: Zoo, grey_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("zoo_classic")
    done = zoo("finetune", "lenet", "--data", grey_digits, "--epochs", 3, "--val-share", 0.3, "--json", cwd=tmp_path)
    summary = json.loads(done.stdout)
    assert summary["architecture"] == "lenet5"
    assert summary["folder"] == "runs/lenet5"
    assert "lenet means lenet5" in done.stderr
    assert not any(word in done.stderr for word in ("GPU available", "warning", "Tip", "lightning"))
    assert not (tmp_path / "lightning_logs").exists()
    monkeypatch.chdir(tmp_path)
    # the same split by itself, and so the same figures
    assert execute(["evaluate", "runs/lenet5", "--data", str(grey_digits), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["images"] == summary["metrics"]["images"] == 270
    assert again["top-1 accuracy"] == summary["metrics"]["top-1 accuracy"]
    # a second run in the same place is refused in one line
    assert execute(["finetune", "lenet", "--data", str(grey_digits)]) == 2
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1
    assert "--resume runs/lenet5" in refused
    assert execute(["finetune", "--resume", "runs/lenet5"]) == 0
    said = capsys.readouterr()
    assert "is finished" in said.err
    assert "next: zoo export runs/lenet5" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune"], "give an architecture"),
        (["finetune", "lenet"], "--data"),
        (["finetune", "lenet", "--resume", "x"], "leave out"),
        (["finetune", "lenet", "--data", "x", "--lr", "fast"], "neither a number nor 'auto'"),
        (["finetune", "lenet", "--data", "x", "--batch-size", "0"], "not above 0"),
        (["finetune", "lenet", "--data", "x", "--val-share", "1.0"], "val-share"),
        (["finetune", "--resume", "nowhere"], "holds no run"),
        (["finetune", "lennet", "--data", "."], "did you mean"),
        (["finetune", "runs/absent", "--data", "."], "no such checkpoint folder"),
    ],
)
def test_what_is_refused(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("zoo_classic")
    monkeypatch.chdir(tmp_path)
    assert execute(arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_torch_it_says_the_install_line(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"  # what an absent package looks like
        "from zoo.cli import execute; sys.exit(execute(['finetune', 'lenet', '--data', '.']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'edgezoo[train]'" in done.stderr
    assert "Traceback" not in done.stderr
