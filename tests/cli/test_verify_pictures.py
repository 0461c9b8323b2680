"""Bundles that make images whose right answer nobody knows, exported and verified as a user types it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from zoo.parity.evidence import natural_images

pytest.importorskip("zoo_export")
pytest.importorskip("zoo_gan")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


WAIVED = ("--waive", "latency is not what is tested", "--max-samples", 40)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for at, image in enumerate(natural_images(60, 32, 32, 3, seed=3)):
        Image.fromarray(image).save(folder / f"{at:02d}.png")
    return folder


def test_quality_is_judged_where_features_are_named(zoo: Run, photos: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    small = ("--option", "size=16", "--option", "width=8")
    zoo("export", "dcgan", "--weights", "none", *small, *WAIVED, "--data", photos, "--out", bundle)
    said = zoo("verify", bundle, "--data", photos, "--features", "random", "--json")
    (found,) = json.loads(said.stdout)["artifacts"]
    (quality,) = (f for f in found["findings"] if f["gate"] == "quality")
    assert quality["verdict"] == "pass"
    assert quality["figures"]["reference"]["images_made"] > 10
    assert quality["figures"]["reference"]["KID"] > 0, "an untrained network's images are not like photos"
    without = json.loads(zoo("verify", bundle, "--data", photos, "--json").stdout)["artifacts"]
    assert "quality" not in {f["gate"] for f in without[0]["findings"]}, "torch is loaded for those who ask for it"
    failed = zoo("verify", bundle, "--features", "random", check=2)
    assert "give those of a generator with --data" in failed.stderr


def test_of_photos_without_a_right_answer_pixels_decide(zoo: Run, photos: Path, tmp_path: Path) -> None:
    """Also where a search asks what each layer in int8 costs."""
    bundle, small = (
        tmp_path / "bundle",
        ("--option", "width=4", "--option", "blocks=1", "--size", "32", "--budget", "5"),
    )
    zoo(
        "export",
        "style",
        "--weights",
        "none",
        *small,
        *WAIVED,
        "--precision",
        "fp32,mixed",
        "--data",
        photos,
        "--out",
        bundle,
    )
    reports = [
        json.loads((bundle / "parity.json").read_text()),
        json.loads(zoo("verify", bundle, "--data", photos, "--json").stdout),
    ]
    for report in reports:
        for artifact in report["artifacts"]:
            found = {f["gate"]: f for f in artifact["findings"]}
            assert found["accuracy"]["figures"] == {"known": 0}, "and not that data should be given, for it was"
            assert found["pixels"]["verdict"] == "pass"
