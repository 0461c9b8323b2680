"""Made images against real ones: figures, the warning of collapse, and the gate of generators."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from zoo.errors import DataError, PluginError, UnknownName
from zoo.parity.evidence import natural_images
from zoo.results import ImageResult
from zoo.train.extractor import open_extractor
from zoo.train.quality import QualityGate, collapsed, figures

REAL = natural_images(60, 24, 24, 3, seed=1)
ALIKE = natural_images(60, 24, 24, 3, seed=2)
NOISE = [np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8) for i in range(60)]


def made(images: list[np.ndarray]) -> list[ImageResult]:
    return [ImageResult(pixels=image) for image in images]


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
    gate = QualityGate(made(ALIKE), REAL, open_extractor())
    assert gate(made(ALIKE), {"quality_share": 0.0}).verdict == "pass"
    broken = gate(made(NOISE), {})
    assert broken.verdict == "fail"
    assert "features of random" in broken.message
    some = [*ALIKE[:50], *(128 + image // 2 for image in ALIKE[50:])]
    found = gate(made(some), {"quality_share": 0.0})
    middle, known = found.figures["difference"], abs(found.figures["reference"]["KID"])
    assert middle > gate.unseen
    unsure = gate(made(some), {"quality_share": (middle + 1e-9) / known})
    assert unsure.verdict == "inconclusive"
    assert "more images" in unsure.message


def test_what_nobody_sees_passes_by_itself_and_what_one_sees_does_not() -> None:
    """Whatever the scale of the features: with a hundredth of the contrast, KID is a ten-thousandth and less."""
    for scale in (1.0, 0.01):
        extractor = open_extractor()
        seen = extractor._network
        extractor._network = lambda x, seen=seen, scale=scale: seen(x) * scale  # type: ignore[assignment,misc]
        gate = QualityGate(made(ALIKE), REAL, extractor)
        moved = {step: [(i + np.int16(step)).clip(0, 255).astype(np.uint8) for i in ALIKE] for step in (1, 24)}
        half = [*moved[1][:30], *ALIKE[30:]]
        assert gate(made(half), {"quality_share": 0.0}).verdict == "pass"
        assert gate(made(moved[24]), {"quality_share": 0.0}).verdict == "fail"


def test_one_image_is_no_set() -> None:
    with pytest.raises(DataError, match="1 made and 60 real images are too few"):
        QualityGate(made(ALIKE[:1]), REAL, open_extractor())
