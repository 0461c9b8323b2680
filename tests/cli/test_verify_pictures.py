"""`zoo verify` on a bundle that makes images out of nothing: quality against real ones, as a user types it."""

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


def test_quality_is_judged_where_features_are_named(zoo: Run, tmp_path: Path) -> None:
    photos, bundle = tmp_path / "photos", tmp_path / "bundle"
    photos.mkdir()
    for at, image in enumerate(natural_images(60, 16, 16, 3, seed=3)):
        Image.fromarray(image).save(photos / f"{at:02d}.png")
    small = ("--option", "size=16", "--option", "width=8")
    waived = ("--waive", "latency is not what is tested", "--max-samples", 40)
    zoo("export", "dcgan", "--weights", "none", *small, *waived, "--data", photos, "--out", bundle)
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
