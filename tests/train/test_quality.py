"""Made images against real ones: figures, the warning of collapse, and the gate of generators."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from zoo.errors import PluginError, UnknownName
from zoo.parity.evidence import natural_images
from zoo.train.extractor import open_extractor
from zoo.train.quality import collapsed, figures, quality

REAL = natural_images(60, 24, 24, 3, seed=1)
ALIKE = natural_images(60, 24, 24, 3, seed=2)
NOISE = [np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8) for i in range(60)]


def test_the_same_images_have_the_same_features_and_grey_ones_too() -> None:
    extractor = open_extractor()
    np.testing.assert_array_equal(extractor(REAL[:3]), open_extractor("random")(REAL[:3]))
    grey = [image[:, :, :1] for image in REAL[:3]]
    assert extractor(grey).shape == extractor(REAL[:3]).shape
    assert "random" in extractor.name, "whoever reads a KID must know whose it is"


def test_an_extractor_is_an_image_classifier() -> None:
    with pytest.raises(PluginError, match="task segment"):
        open_extractor("unet-classic:none")
    with pytest.raises(UnknownName):
        open_extractor("resnet-nope")


def test_another_kind_of_image_is_further_away() -> None:
    extractor = open_extractor()
    alike, noise = figures(ALIKE, REAL, extractor), figures(NOISE, REAL, extractor)
    assert alike["KID_interval_95"][0] < alike["KID"] + 1e-9
    assert noise["KID_interval_95"][0] > alike["KID_interval_95"][1]
    assert noise["FID"] > 3 * alike["FID"]  # which is above 0 for so few images even between alike sets
    assert noise["recall"] < 0.1


def test_collapse_is_noticed() -> None:
    extractor = open_extractor()
    assert collapsed(figures(ALIKE, REAL, extractor)) == ""
    one = [np.clip(REAL[0].astype(int) + i % 3, 0, 255).astype(np.uint8) for i in range(60)]
    assert "may have collapsed" in collapsed(figures(one, REAL, extractor))


def test_the_gate_passes_what_is_as_good_fails_what_is_not_and_says_when_it_cannot_tell() -> None:
    extractor = open_extractor()
    near = [np.clip(image.astype(int) + 1, 0, 255).astype(np.uint8) for image in ALIKE]
    assert quality(near, ALIKE, REAL, extractor, {"quality_least": 0.01}).verdict == "pass"
    broken = quality(NOISE, ALIKE, REAL, extractor, {})
    assert broken.verdict == "fail"
    assert "features of random" in broken.message
    some = [*ALIKE[:50], *NOISE[:10]]
    found = quality(some, ALIKE, REAL, extractor, {"quality_share": 0.0, "quality_least": 0.0})
    middle = found.figures["difference"]
    unsure = quality(some, ALIKE, REAL, extractor, {"quality_share": 0.0, "quality_least": middle + 1e-9})
    assert unsure.verdict == "inconclusive"
    assert "more images" in unsure.message
