"""Players are trained as a user would: runs that resume to the same weights, stop at a NaN, and refuse what cannot be."""

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

import numpy as np
import pytest
from PIL import Image

from zoo.errors import DataError, UnknownName, ZooError
from zoo.parity.evidence import natural_images

pytest.importorskip("lightning")
pytest.importorskip("zoo_gan")

from zoo.train.finetune import Options, Summary, finetune, resume
from zoo.train.match import Match
from zoo.train.models import load_checkpoint

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for at, image in enumerate(natural_images(24, 48, 56, 3, seed=5)):
        Image.fromarray(image).save(folder / f"{at:02d}.png")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Side by side: an image and its negative."""
    folder = tmp_path_factory.mktemp("pairs")
    for at, image in enumerate(natural_images(10, 32, 32, 3, seed=6)):
        Image.fromarray(np.concatenate((image, 255 - image), axis=1)).save(folder / f"{at}.png")
    return folder


def options(source: str, data: Path, **more: object) -> Options:
    usual: dict[str, object] = {"epochs": 1, "batch_size": 4, "workers": 0, "precision": "32-true"}
    return Options(source=source, data=str(data), **{**usual, **more})  # type: ignore[arg-type]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_gan_learns_leaves_pictures_and_goes_on_from_its_checkpoint(photos: Path, tmp_path: Path) -> None:
    first = finetune(options("dcgan", photos, size=16, build={"width": 8}, loss="hinge"), tmp_path / "one")
    assert isinstance(first, Summary)
    assert first.metric_name == "KID"
    assert {"KID", "FID", "precision", "recall", "extractor"} <= set(first.metrics)
    told = rows(tmp_path / "one")[0]
    assert {"discriminator_accuracy", "discriminator_gradient", "generator_gradient", "generator_loss"} <= set(told)
    assert all(np.isfinite(float(v)) for k, v in told.items() if k != "phase")
    for picture in ("samples/000.png", "samples/001.png", "curves.png", "samples.png"):
        with Image.open(tmp_path / "one" / picture) as image:
            assert image.width > 16
    model = load_checkpoint(first.checkpoint)
    assert model.makes is not None
    assert model.makes.shape == (3, 16, 16)
    second = finetune(
        options(str(tmp_path / "one"), photos, diffaugment="color,translation", freeze=1), tmp_path / "two"
    )
    assert isinstance(second, Summary)
    kept = load_checkpoint(second.checkpoint).network.state_dict()
    began = model.network.state_dict()
    changed = {name for name in began if not began[name].equal(kept[name])}
    assert any(name.startswith("generator.") for name in changed)
    still = [n for n in began if n.startswith("discriminator.") and "weight" in n and n not in changed]
    assert still, "a frozen layer keeps its weights"


def test_a_conditional_gan_is_told_the_folders_names(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "kinds"
    for at, file in enumerate(sorted(photos.iterdir())):
        (data / ("a", "b")[at % 2]).mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.convert("L").save(data / ("a", "b")[at % 2] / file.name)
    done = finetune(options("dcgan-conditional", data, size=16, build={"width": 8}), tmp_path / "run")
    assert isinstance(done, Summary)
    model = load_checkpoint(done.checkpoint)
    assert model.labels == ("a", "b")
    assert model.input.channels == 102
    assert model.makes is not None
    assert model.makes.channels == 1, "a set of grey images makes a generator of grey images"


def test_super_resolution_gets_better_from_good_images_alone(photos: Path, tmp_path: Path) -> None:
    done = finetune(
        options("srresnet", photos, epochs=2, patch=12, build={"blocks": 1, "width": 16}, lr=2e-3), tmp_path / "run"
    )
    assert isinstance(done, Summary)
    settled = json.loads((tmp_path / "run" / "run.json").read_text())["settled"]
    assert done.metrics["PSNR-Y"] > settled["before"], "two epochs of 200 steps do not make it worse than bicubic"
    assert done.metrics["images"] == 5


def test_pairs_are_learnt_and_scored(pairs: Path, tmp_path: Path) -> None:
    done = finetune(
        options("pix2pix", pairs, size=32, epochs=2, lr=2e-3, build={"width": 8, "depth": 4, "judge_width": 8, "layers": 1}),
        tmp_path / "run",
    )  # fmt: skip
    assert isinstance(done, Summary)
    got = rows(tmp_path / "run")
    assert float(got[-1]["L1"]) < 0.9 * float(got[0]["L1"]) or float(got[-1]["L1"]) < 0.15


def test_two_sets_without_pairs(photos: Path, tmp_path: Path) -> None:
    for name, step in (("trainA", 0), ("trainB", 1)):
        (tmp_path / "sets" / name).mkdir(parents=True)
        for file in sorted(photos.iterdir())[step::2]:
            (tmp_path / "sets" / name / file.name).write_bytes(file.read_bytes())
    small = {"width": 8, "blocks": 1, "judge_width": 8, "layers": 1}
    done = finetune(options("cyclegan", tmp_path / "sets", size=32, build=small), tmp_path / "run")
    assert isinstance(done, Summary)
    assert done.metric_name == "KID"
    assert "pool" not in " ".join(load_checkpoint(done.checkpoint).network.state_dict())


@pytest.mark.parametrize("source", ["inpaint-partial", "inpaint-gated"])
def test_holes_are_painted(source: str, photos: Path, tmp_path: Path) -> None:
    build = {"width": 8, "depth": 2} if source == "inpaint-partial" else {"width": 8, "judge_width": 8}
    done = finetune(options(source, photos, size=32, build=build), tmp_path / "run")
    assert isinstance(done, Summary)
    assert done.metrics["PSNR-Y"] > 0.1


def test_style_learns_one_pictures_manner(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="give it with --style FILE"):
        finetune(options("style", photos), tmp_path / "none")
    done = finetune(
        options(
            "style", photos, size=32, build={"width": 8, "blocks": 1}, perceptual="mobilenetv2_100:random",
            style=str(sorted(photos.iterdir())[0]),
        ),
        tmp_path / "run",
    )  # fmt: skip
    assert isinstance(done, Summary)
    assert {"content", "style"} <= set(done.metrics)


def test_a_killed_run_ends_as_one_that_was_not(photos: Path, tmp_path: Path) -> None:
    arguments = {"epochs": 3, "size": 16, "build": {"width": 8}}
    finetune(options("dcgan", photos, **arguments), tmp_path / "whole")
    code = (
        "import sys; from pathlib import Path; from zoo.train.finetune import *\n"
        "finetune(Options(source='dcgan', data=sys.argv[1], epochs=3, size=16, build={'width': 8}, batch_size=4, workers=0,"
        " precision='32-true'), Path(sys.argv[2]))"
    )
    broken = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(photos), str(broken)])
    until = time.monotonic() + 120
    while not (broken / "last.ckpt").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resume(broken)
    weights = [(tmp_path / name / "checkpoint" / "weights.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    clocks = ("seconds", "images_per_s")
    told = [
        [{k: v for k, v in row.items() if k not in clocks} for row in rows(tmp_path / n)] for n in ("whole", "killed")
    ]
    assert told[0] == told[1]


def test_a_loss_that_is_no_number_stops_the_run_and_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Match.training_step

    def broken(self: Match, batch: dict[str, object], index: int) -> None:
        if self.current_epoch == 1:
            self.network.generator.get_parameter("paint.weight").data.fill_(float("nan"))
        before(self, batch, index)  # type: ignore[arg-type]

    monkeypatch.setattr(Match, "training_step", broken)
    with pytest.raises(
        ZooError, match=r"'\w+ [\w ]+' became NaN or infinite in epoch 2: the checkpoint of the epoch before"
    ):
        finetune(options("dcgan", photos, epochs=3, size=16, build={"width": 8}, ema=0.0), tmp_path / "run")
    model = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert all(bool(p.isfinite().all()) for p in model.network.parameters())


def test_what_cannot_be_is_refused_in_one_line(photos: Path, pairs: Path, tmp_path: Path) -> None:
    cases: list[tuple[Options, type[Exception], str]] = [
        (options("dcgan", photos, loss="hindge"), UnknownName, "hinge"),
        (options("dcgan", photos, devices="2"), ZooError, "leave out --devices"),
        (options("dcgan", photos, mixup=0.2), ZooError, "--mixup is not for task generate"),
        (options("dcgan", photos, size=20), ZooError, "20"),
        (options("dcgan", photos, degrade="jpeg:30"), ZooError, "--degrade is for task restore"),
        (options("srresnet", photos, degrade="blurr:3"), ZooError, "blur"),
        (options("pix2pix", photos, size=32, build={"width": 8, "depth": 3}), DataError, "images of one kind"),
        (options("cyclegan", pairs, size=32, build={"width": 8, "blocks": 1}), DataError, "trainA/ and trainB/"),
        (
            options("inpaint-partial", photos, size=32, patch=13, build={"width": 8, "depth": 2}),
            ZooError,
            "multiple of 4",
        ),
    ]
    for at, (wanted, kind, text) in enumerate(cases):
        with pytest.raises(kind) as caught:
            finetune(wanted, tmp_path / str(at))
        assert text in str(caught.value), str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / str(at) / "checkpoint").exists()


def test_as_a_user_types_it(zoo: Run, photos: Path, tmp_path: Path) -> None:
    """finetune, evaluate, export in two precisions, verify, run: the whole way of a network that makes images."""
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    zoo("finetune", "srresnet", "--data", photos, "--epochs", 1, "--patch", 12, "--batch-size", 4, "--option", "blocks=1",
        "--option", "width=8", "--out", run)  # fmt: skip
    assert "dB" in zoo("evaluate", run, "--data", photos).stdout
    exported = zoo("export", run, "--precision", "fp32,int8", "--data", photos, "--out", bundle, "--size", 24, "--waive",
                   "latency is not what is tested", "--json")  # fmt: skip
    assert exported.returncode == 0
    assert zoo("selftest", bundle).returncode == 0
    told = zoo("evaluate", bundle, "--data", photos, "--artifact", "int8").stdout
    assert "PSNR-Y" in told
    photo = sorted(photos.iterdir())[0]
    zoo("run", bundle, photo, "--out", tmp_path / "big.png")
    with Image.open(tmp_path / "big.png") as big, Image.open(photo) as small:
        assert big.size == (2 * small.width, 2 * small.height)
    zoo("run", bundle, photos, "--compare", "--out", tmp_path / "both")
    assert len(list((tmp_path / "both").iterdir())) == 24
    for wrong, text in (
        (("--seed", 3), "leave out --seed"),
        (("--mask", photo), "fills no holes"),
    ):
        refused = zoo("run", bundle, photo, *wrong, check=2)
        assert text in refused.stderr
