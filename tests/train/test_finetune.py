"""Whole runs: what they leave, that a killed one ends like one that was not, and that bad input leaves nothing."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("zoo_classic")

from zoo.errors import CheckpointError, DataError, OutputError, UnknownName, ZooError
from zoo.train.finetune import Options, Summary, finetune, resume
from zoo.train.models import load_checkpoint


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lying and standing bars somewhere in some noise, 30 images each, 20 x 24 pixels."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("few") / "photos"
    for name in ("lying", "standing"):
        (root / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.normal(50, 15, (20, 24, 3))
            y, x = rng.integers(3, 14), rng.integers(3, 18)
            if name == "lying":
                pixels[y : y + 3, 2:22] += 150
            else:
                pixels[2:18, x : x + 3] += 150
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without its clock."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder / "checkpoint").network.state_dict()


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def run(photos: Path, out: Path, say: Callable[[str], None] = lambda text: None, **options: Any) -> Summary:
    summary = finetune(Options(**{"source": "lenet", "data": str(photos), **options}), out, say=say)
    assert summary is not None
    return summary


def test_from_scratch_it_learns_and_leaves_everything(grey_digits: Path, tmp_path: Path) -> None:
    said: list[str] = []
    summary = run(grey_digits, tmp_path / "run", said.append, epochs=5, batch_size=32)
    assert summary.metrics["top-1 accuracy"] > 0.9
    left = {p.name for p in summary.folder.iterdir()}
    assert left == {"checkpoint", "metrics.csv", "curves.png", "confusion.png", "report.html", "run.json"}
    assert [r["epoch"] for r in rows(summary.folder)] == ["1", "2", "3", "4", "5"]
    assert {r["phase"] for r in rows(summary.folder)} == {"network"}  # random weights have no head phase
    for name in ("curves.png", "confusion.png"):
        with Image.open(summary.folder / name) as picture:
            assert picture.width > 200
    page = summary.report.read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")  # self-contained
    record = json.loads((summary.checkpoint / "checkpoint.json").read_text())
    assert record["provenance"]["metrics"]["top-1 accuracy"] == summary.metrics["top-1 accuracy"]
    assert record["provenance"]["data"]["val"]["images"] == summary.metrics["images"]
    assert str(grey_digits) not in json.dumps(record)  # a checkpoint travels; local paths stay at home
    assert any("from random ones" in line for line in said)
    assert sum(line.startswith("network ") for line in said) == 5
    # a finished run is left alone
    before = (summary.folder / "run.json").stat().st_mtime_ns
    again = resume(summary.folder)
    assert again is not None
    assert again.already_finished
    assert again.metrics == summary.metrics
    assert (summary.folder / "run.json").stat().st_mtime_ns == before


def test_transfer_trains_the_head_first_on_cached_features(lenet_checkpoint: Path, few: Path, tmp_path: Path) -> None:
    said: list[str] = []
    summary = run(few, tmp_path / "run", said.append, source=str(lenet_checkpoint), epochs=4, head_epochs=20, lr=2e-3)
    phases = [r["phase"] for r in rows(summary.folder)]
    assert phases == ["head"] * 20 + ["network"] * 4
    assert any(line.startswith("features: ") for line in said)
    assert not (summary.folder / "features").exists()
    assert summary.metrics["top-1 accuracy"] >= 0.9


def test_a_frozen_backbone_stays_as_it_was(lenet_checkpoint: Path, few: Path, tmp_path: Path) -> None:
    summary = run(few, tmp_path / "run", source=str(lenet_checkpoint), epochs=0, head_epochs=3)
    before = load_checkpoint(lenet_checkpoint).network.state_dict()
    after = weights(summary.folder)
    assert after["head.weight"].shape[0] == 2
    assert all(torch.equal(before[k], after[k]) for k in before if not k.startswith("head."))


def test_features_by_torch_are_those_by_onnx_runtime(
    lenet_checkpoint: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.data import open_data
    from zoo.train import features
    from zoo.train.data import Images
    from zoo.train.models import open_model

    model = open_model(str(lenet_checkpoint), labels=["lying", "standing"])
    images = Images(open_data(few).train, model.input)

    def computed(name: str) -> tuple[np.ndarray, str]:
        function, by, done = features.trunk(model.network, model.head, model.input.shape, torch.device("cpu"))
        array = features.compute(function, images, tmp_path / name, "train")
        done()
        return array, by

    fast, by = computed("fast")
    assert by == "ONNX Runtime"
    monkeypatch.setattr(features, "_by_ort", lambda module, shape: None)
    slow, by = computed("slow")
    assert by == "torch on cpu"
    assert fast.shape == slow.shape == (len(images), 84)
    assert np.allclose(fast, slow, atol=1e-4)
    assert not model.network.training
    # what is there is read, not computed again
    again = features.compute(lambda batch: pytest.fail("computed twice"), images, tmp_path / "slow", "train")
    assert np.array_equal(again, slow)


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "smoothing": 0.1},
        {"randaugment": 9, "augment": True, "balance": True, "workers": 2},
        {"channels": 3, "size": 28, "precision": "bf16-mixed", "workers": 0},
    ],
    ids=["mixed and averaged", "augmented and balanced", "three channels in bf16"],
)
def test_every_option_learns(grey_digits: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    summary = run(grey_digits, tmp_path / "run", epochs=3, batch_size=32, lr=5e-3, **options)
    assert summary.metrics["top-1 accuracy"] > 0.6


def test_the_seed_decides(few: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(few, tmp_path / name, epochs=2, seed=seed)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert equal(tmp_path / "a", tmp_path / "b")
    assert not equal(tmp_path / "a", tmp_path / "c")


def test_it_stops_when_nothing_improves(few: Path, tmp_path: Path) -> None:
    run(few, tmp_path / "run", epochs=40, lr=1e-12, patience=2)
    assert len(rows(tmp_path / "run")) < 10


def test_batch_size_and_learning_rate_find_themselves(grey_digits: Path, tmp_path: Path) -> None:
    said: list[str] = []
    summary = run(grey_digits, tmp_path / "run", said.append, epochs=3, batch_size="auto", lr="auto")
    settled = json.loads((summary.folder / "run.json").read_text())["settled"]
    assert settled["batch_size"] in (8, 16, 32)
    assert 1e-6 < settled["lr"] < 0.3
    assert any(line.startswith("learning rate ") for line in said)
    assert summary.metrics["top-1 accuracy"] > 0.6
    assert not list(summary.folder.glob("*.ckpt"))


KILLED: dict[str, dict[str, Any]] = {
    "from scratch": {"source": "lenet", "epochs": 8, "ema": 0.9, "mixup": 0.2, "augment": True, "batch_size": 16},
    "gradual": {"epochs": 8, "head_epochs": 3, "batch_size": 16, "randaugment": 9},
}


@pytest.mark.parametrize("case", list(KILLED))
def test_a_killed_run_resumes_to_the_same_end(case: str, lenet_checkpoint: Path, few: Path, tmp_path: Path) -> None:
    options = {"source": str(lenet_checkpoint), **KILLED[case]}
    run(few, tmp_path / "whole", **options)
    killed = tmp_path / "killed"
    script = (
        "import sys, json; from pathlib import Path; from zoo.train.finetune import Options, finetune\n"
        "finetune(Options(**json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, json.dumps({"data": str(few), **options}), str(killed)])
    end = time.monotonic() + 120
    while not ((killed / "last.ckpt").is_file() and sum(r["phase"] == "network" for r in rows(killed)) >= 2):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((killed / "run.json").read_text())["state"] != "finished"
    done = len(rows(killed))
    assert done < len(rows(tmp_path / "whole")), "it was killed too late to prove anything"
    said: list[str] = []
    summary = resume(killed, say=said.append)
    assert summary is not None
    assert sum(line.startswith("network ") for line in said) < 8  # it went on, it did not start over
    assert rows(killed) == rows(tmp_path / "whole")
    assert equal(killed, tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert summary.metrics == whole["metrics"]
    assert not list(killed.glob(".*"))


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_control_c_leaves_a_resumable_run(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["finetune", "lenet", "--data", str(few), "--out", str(out), "--epochs", "500", "--batch-size", "16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not (out / "last.ckpt").is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"zoo finetune --resume {out}" in errors
    assert "Traceback" not in errors
    assert (out / "last.ckpt").is_file()
    assert (out / "checkpoint" / "checkpoint.json").is_file()


def test_a_folder_with_something_in_it_is_refused(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = run(few, out, epochs=1)
    kept = (out / "metrics.csv").read_text()
    with pytest.raises(OutputError, match="already holds a run: go on with it by --resume"):
        run(few, out, epochs=1)
    assert (out / "metrics.csv").read_text() == kept
    options = Options(source="lenet", data=str(few), epochs=2)
    again = finetune(options, out, overwrite=True)
    assert again is not None
    assert len(rows(out)) == 2
    assert again.checkpoint == first.checkpoint
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("dear to somebody")
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            finetune(options, other, overwrite=overwrite)
    assert (other / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"source": "lenett"}, UnknownName, "did you mean"),
        ({"data": "/nowhere/at/all"}, DataError, "no such"),
        ({"weights": "absent.pth"}, CheckpointError, "no such file"),
        ({"weights": "pretrained"}, CheckpointError, "no pretrained weights"),
        ({"format": "cvs"}, UnknownName, "did you mean csv"),
    ],
)
def test_bad_input_leaves_nothing(
    few: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as refused:
        run(few, tmp_path / "run", **{"epochs": 1, **options})
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "only"
    folder.mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (8, 8), (i, i, i)).save(folder / f"{i}.png")
    with pytest.raises(DataError, match="one class"):
        run(tmp_path / "photos", tmp_path / "run", epochs=1)


def test_damaged_images_are_left_out_and_counted(few: Path, tmp_path: Path) -> None:
    import shutil

    data = Path(shutil.copytree(few, tmp_path / "photos"))
    (data / "lying" / "0.png").write_bytes(b"")
    (data / "standing" / "3.png").write_bytes((data / "standing" / "3.png").read_bytes()[:100])
    said: list[str] = []
    summary = run(data, tmp_path / "run", said.append, epochs=1)
    assert any("left out" in line for line in said)
    record = json.loads((summary.checkpoint / "checkpoint.json").read_text())["provenance"]["data"]
    assert record["train"]["images"] + record["val"]["images"] == 58


def test_a_loss_that_is_no_number_stops_with_a_cure(few: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"NaN or infinit.*lower --lr"):
        run(few, tmp_path / "run", epochs=3, lr=1e30)


def test_resume_refuses_what_it_cannot_continue(few: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        resume(tmp_path)
    run(few, tmp_path / "run", epochs=1)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["state"] = "ready"
    record["data"]["train"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="has changed"):
        resume(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_train_one_network(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["finetune", "lenet", "--data", str(few), "--out", str(out), "--epochs", "3", "--batch-size", "8"]
    arguments += ["--devices", "2", "--accelerator", "cpu"]
    done = subprocess.run([sys.executable, "-m", "zoo", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(rows(out)) == 3
    assert done.stderr.count("network 3/3") == 1  # one of the two speaks
    assert json.loads((out / "run.json").read_text())["state"] == "finished"


@pytest.mark.assets
@pytest.mark.slow
def test_ants_and_bees(assets: Path, tmp_path: Path) -> None:
    """The classic few-shot task with real ImageNet weights: at least 93 % within three minutes on two cores."""
    pytest.importorskip("zoo_timm")
    file = assets / "weights" / "mobilenetv2_100.imagenet1k.safetensors"
    summary = run(assets / "hymenoptera", tmp_path / "run", source="mobilenetv2_100", weights=str(file), epochs=1)
    assert summary.metrics["top-1 accuracy"] >= 0.93
    assert [r["phase"] for r in rows(summary.folder)] == ["head"] * 30 + ["network"]


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize(("name", "least", "epochs"), [("mnist", 0.985, 4), ("fashion-mnist", 0.88, 6)])
def test_lenet_on_the_classics(assets: Path, tmp_path: Path, name: str, least: float, epochs: int) -> None:
    from zoo.data import open_data
    from zoo.train.evaluate import evaluate

    summary = run(assets / name, tmp_path / "run", source="lenet5", epochs=epochs)
    test = open_data(assets / name).test
    assert test is not None
    assert len(test) == 10_000
    figures = evaluate(load_checkpoint(summary.checkpoint), test).figures
    assert figures["top-1 accuracy"] >= least


def test_a_full_disk_is_said_and_keeps_the_last_state(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from zoo.train import engine

    out = tmp_path / "run"
    real, calls = torch.save, []

    def full(state: Any, file: Any, *rest: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, file, *rest)

    monkeypatch.setattr(engine.torch, "save", full)
    with pytest.raises(OutputError, match="no space left"):
        run(few, out, epochs=3)
    assert not list(out.glob(".*"))
    monkeypatch.undo()
    summary = resume(out)
    assert summary is not None
    run(few, tmp_path / "whole", epochs=3)
    assert rows(out) == rows(tmp_path / "whole")
    assert equal(out, tmp_path / "whole")
