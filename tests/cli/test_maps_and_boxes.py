"""The whole path for class maps and for boxes, as a user types it: inspect, fine-tune, evaluate, export, verify, run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("zoo_segment")
pytest.importorskip("zoo_detect")

from zoo.data.scenes import SHAPES, write_scenes

pytestmark = pytest.mark.slow

Zoo = Callable[..., subprocess.CompletedProcess[str]]

NETWORKS = {
    "segment": ["unet", "--option", "encoder=mobilenetv2_035", "--loss", "ce+dice"],
    "detect": ["yolo", "--option", "backbone=mobilenetv2_035", "--option", "width=32", "--mosaic", "0.3"],
}
HEADLINE = {"segment": "mIoU", "detect": "mAP@50:95"}


class Trained(NamedTuple):
    task: str
    data: Path
    run: Path
    bundle: Path
    exported: dict


@pytest.fixture(scope="module", params=["segment", "detect"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    task = request.param
    folder = tmp_path_factory.mktemp(task)
    data, run, bundle = folder / "shapes", folder / "run", folder / "bundle"
    write_scenes(data, task, 40, side=80)
    call("finetune", *NETWORKS[task], "--weights", "none", "--data", data, "--out", run, "--size", 64, "--epochs", 2)
    extra = ["--dynamic-size"] if task == "segment" else ["--nms", "graph"]
    done = call(
        "export", run, "--data", data, "--precision", "fp32,int8", "--out", bundle, *extra, "--waive",
        "two epochs teach little", "--json",
    )  # fmt: skip
    return Trained(task, data, run, bundle, json.loads(done.stdout))


def call(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "zoo", *map(str, words)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    assert not check or done.returncode in (0, 1), done.stderr
    return done


def test_the_run_tells_what_was_learnt(trained: Trained, zoo: Zoo) -> None:
    record = json.loads((trained.run / "checkpoint" / "checkpoint.json").read_text())
    assert record["task"] == trained.task
    assert record["labels"] == (["background", *SHAPES] if trained.task == "segment" else list(SHAPES))
    assert set(record["decode"]) == ({"confidence"} if trained.task == "detect" else set())
    assert (trained.run / "samples.png").stat().st_size > 10_000
    figures = json.loads(zoo("evaluate", trained.run, "--data", trained.data, "--json").stdout)
    told = record["provenance"]["metrics"]
    assert figures[HEADLINE[trained.task]] == pytest.approx(told[HEADLINE[trained.task]], abs=1e-6)
    assert [c["label"] for c in figures["classes"]]


def test_a_bundle_is_evaluated_without_torch(trained: Trained, zoo: Zoo) -> None:
    of_run = json.loads(zoo("evaluate", trained.run, "--data", trained.data, "--json").stdout)
    of_bundle = json.loads(zoo("evaluate", trained.bundle, "--data", trained.data, "--json").stdout)
    name = HEADLINE[trained.task]
    assert of_bundle[name] == pytest.approx(of_run[name], abs=2e-3)


def test_artefacts_are_judged_and_described(trained: Trained) -> None:
    fp32 = trained.exported["artifacts"][0]
    assert fp32["gates"]["numbers"] == "pass"
    accuracy = next(f for f in fp32["findings"] if f["gate"] == "accuracy")["figures"]
    assert accuracy["whole_set"]["metric"] == HEADLINE[trained.task]
    assert accuracy["whole_set"]["candidate"] == pytest.approx(accuracy["whole_set"]["reference"], abs=2e-3)
    assert accuracy["differences"]
    manifest = json.loads((trained.bundle / "zoo.json").read_text())
    if trained.task == "segment":
        assert manifest["inputs"][0]["shape"] == ["batch", 3, "height", "width"]
    else:
        assert 0 < manifest["decode"]["confidence"] < 1


def test_verify_needs_no_torch(trained: Trained) -> None:
    code = (
        "import sys; sys.modules.update({n: None for n in ('torch', 'timm', 'onnx')}); from zoo.cli import execute; "
        "sys.exit(execute(sys.argv[1:]))"
    )
    words = ["verify", str(trained.bundle), "--data", str(trained.data), "--artifact", "fp32", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "as stored in the bundle" in report["reference"]
    gates = {f["gate"]: f["verdict"] for f in report["artifacts"][0]["findings"]}
    assert gates["numbers"] == "pass"
    assert gates["accuracy"] in ("pass", "inconclusive")
    assert all(s["passed"] for s in report["artifacts"][0]["selftest"])


def test_run_draws_and_tells_in_coco_terms(trained: Trained, zoo: Zoo, tmp_path: Path) -> None:
    photo = next((trained.data / "images").iterdir())
    done = zoo("run", trained.bundle, photo, "--out", tmp_path / "drawn", "--json")
    answer = json.loads(done.stdout)
    assert (answer["width"], answer["height"]) == (80, 80)
    assert isinstance(answer["annotations"], list)
    assert Image.open(tmp_path / "drawn" / f"{photo.stem}.png").width >= 80
    table = zoo("run", trained.bundle, photo).stdout
    assert photo.name in table


def test_confidence_is_the_users(trained: Trained, zoo: Zoo) -> None:
    photo = next((trained.data / "images").iterdir())
    if trained.task == "segment":
        refused = zoo("run", trained.bundle, photo, "--confidence", 0.5, check=2)
        assert "no decode setting 'confidence'" in refused.stderr
        return
    counts = [
        len(json.loads(zoo("run", trained.bundle, photo, "--confidence", c, "--json").stdout)["objects"])
        for c in (0.001, 0.02, 0.999)
    ]
    assert counts[0] >= counts[1] >= counts[2] == 0
    assert counts[0] > 0


def test_large_images_are_cut_into_tiles(trained: Trained, zoo: Zoo, tmp_path: Path) -> None:
    tiles = [np.asarray(Image.open(p)) for p in sorted((trained.data / "images").iterdir())[:6]]
    Image.fromarray(np.concatenate([np.concatenate(tiles[:3], 1), np.concatenate(tiles[3:], 1)])).save(
        tmp_path / "large.png"
    )
    size = ["--tile", 96] if trained.task == "segment" else []  # a tile of another size needs open sides
    answer = json.loads(zoo("run", trained.bundle, tmp_path / "large.png", *size, "--overlap", 32, "--json").stdout)
    assert (answer["width"], answer["height"]) == (240, 160)
    if trained.task == "detect":
        refused = zoo("run", trained.bundle, tmp_path / "large.png", "--tile", 96, check=2)
        assert len(refused.stderr.strip().splitlines()) <= 2


def test_options_that_mean_nothing_to_the_task_are_refused(trained: Trained, zoo: Zoo, tmp_path: Path) -> None:
    network = NETWORKS[trained.task][:3]
    common = [*network, "--weights", "none", "--data", trained.data, "--out", tmp_path / "run", "--size", 64]
    for words, complaint in {
        "segment": [(["--mosaic", 0.5], "--mosaic"), (["--loss", "dise"], "did you mean"), (["--randaugment", 9], "randaugment")],
        "detect": [(["--balance"], "--balance"), (["--cutmix", 1.0], "--cutmix"), (["--label-smoothing", 0.1], "smoothing")],
    }[trained.task]:  # fmt: skip
        assert complaint in zoo("finetune", *common, *words, check=2).stderr
        assert not (tmp_path / "run").exists()
    other = "detect" if trained.task == "segment" else "segment"
    wrong = zoo(
        "finetune", *NETWORKS[other][:3], "--weights", "none", "--data", trained.data, "--out", tmp_path / "x", check=2
    )
    assert trained.task in wrong.stderr


def test_five_bands_of_16_bits(zoo: Zoo, tmp_path: Path) -> None:
    """A satellite's images: five bands in a TIFF, measured mean and spread, the same pixels on the device."""
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    data, run, bundle = tmp_path / "fields", tmp_path / "run", tmp_path / "bundle"
    (data / "images").mkdir(parents=True)
    (data / "masks").mkdir()
    for i in range(12):
        field = np.zeros((70, 80), np.uint8)
        y, x = rng.integers(5, 40, 2)
        field[y : y + 25, x : x + 25] = 1
        bands = rng.normal(9000, 900, (70, 80, 5))
        bands[..., 3] += field * 6000.0
        pixels = bands.clip(0, 65535).astype(np.uint16)
        tifffile.imwrite(data / "images" / f"{i}.tif", pixels, photometric="minisblack", planarconfig="contig")
        Image.fromarray(field).save(data / "masks" / f"{i}.png")
    assert json.loads(zoo("data", "inspect", data, "--grid", tmp_path / "grid.png", "--json").stdout)
    assert Image.open(tmp_path / "grid.png").width > 300
    network = ["unet", "--option", "encoder=mobilenetv2_035", "--weights", "none", "--size", 64]
    zoo("finetune", *network, "--channels", 5, "--pixel", "uint16", "--data", data, "--out", run, "--epochs", 1)
    recipe = json.loads((run / "checkpoint" / "checkpoint.json").read_text())["input"]
    assert (recipe["channels"], recipe["color"], recipe["pixel"]) == (5, "bands", "uint16")
    assert recipe["mean"][0] == pytest.approx(9000 / 65535, rel=0.02)
    assert recipe["std"][0] == pytest.approx(900 / 65535, rel=0.1)
    call("export", run, "--data", data, "--out", bundle)
    assert all(s["passed"] for s in json.loads(zoo("selftest", bundle, "--json").stdout)["stages"])
    answer = json.loads(zoo("run", bundle, data / "images" / "0.tif", "--json").stdout)
    assert (answer["width"], answer["height"]) == (80, 70)
    wrong = zoo("run", bundle, data / "masks" / "0.png", check=2)
    assert "5" in wrong.stderr


def test_a_killed_run_resumes_to_the_same_end(trained: Trained, tmp_path: Path) -> None:
    line = [
        *("finetune", *NETWORKS[trained.task], "--weights", "none", "--data", trained.data),
        *("--size", 64, "--epochs", 3),
    ]
    call(*line, "--out", tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "zoo", *map(str, line), "--out", str(killed)])
    end = time.monotonic() + 120
    while not (killed / "metrics.csv").is_file():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end, "no epoch ended in two minutes"
        time.sleep(0.02)
    process.kill()
    process.wait()
    call("finetune", "--resume", killed)
    of_whole, of_killed = (
        json.loads((run / "checkpoint" / "checkpoint.json").read_text()) for run in (tmp_path / "whole", killed)
    )
    assert of_killed["weights"] == of_whole["weights"]
    assert of_killed["decode"] == of_whole["decode"]
