"""Distances between sets of features: against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.tasks.distances import diversity, fid, kid, paired_kid, precision_recall

RNG = np.random.default_rng(0)


def normal(count: int, size: int = 6, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return (shift + scale * RNG.standard_normal((count, size))).astype(np.float32)


def test_kid_is_the_unbiased_mmd_of_the_paper() -> None:
    """Written out with loops: Binkowski et al. 2018, equation 4."""
    x, y = normal(9, 4), normal(7, 4, shift=0.5)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(a.astype(float) @ b.astype(float) / 4 + 1) ** 3

    same = sum(k(x[i], x[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    other = sum(k(y[i], y[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    across = sum(k(a, b) for a in x for b in y) / (9 * 7)
    value, low, high = kid(x, y)
    assert value == pytest.approx(same + other - 2 * across, rel=1e-9)
    assert low <= high


def test_kid_is_near_zero_for_one_distribution_and_covers_it() -> None:
    covered = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        value, low, high = kid(rng.standard_normal((120, 8)), rng.standard_normal((120, 8)), seed=seed)
        assert abs(value) < 0.3
        covered += low <= 0 <= high
    assert covered >= 15, "an interval of 95 % that misses the truth so often is none"
    assert kid(normal(200, 8), normal(200, 8, shift=1.0))[1] > 0


def test_kid_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="1 images are too few"):
        kid(normal(1), normal(5))


def test_fid_of_gaussians_has_a_closed_form() -> None:
    """|mu|^2 + sum (s1 - s2)^2 for diagonal covariances; many samples of few dimensions, where the bias is small."""
    made, real = normal(40_000, 3, shift=1.0, scale=2.0), normal(40_000, 3)
    assert fid(made, real) == pytest.approx(3 * 1.0 + 3 * (2 - 1) ** 2, rel=0.03)
    assert fid(real, real) == pytest.approx(0, abs=1e-6)


def test_fid_agrees_with_scipy_where_it_is_installed() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = normal(300, 12, shift=0.2), normal(200, 12, scale=1.3)
    one, two = np.cov(a.astype(float), rowvar=False), np.cov(b.astype(float), rowvar=False)
    shift = ((a.astype(float).mean(0) - b.astype(float).mean(0)) ** 2).sum()
    expected = shift + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)
    assert fid(a, b) == pytest.approx(expected, rel=1e-6)


def test_precision_and_recall_tell_quality_from_coverage() -> None:
    real = normal(300, 4)
    assert precision_recall(real, real) == (1.0, 1.0)
    far = normal(300, 4, shift=50.0)
    assert precision_recall(far, real) == (0.0, 0.0)
    collapsed = np.repeat(real[:1], 300, axis=0) + 1e-3 * normal(300, 4)
    precision, recall = precision_recall(collapsed, real)
    assert precision > 0.9
    assert recall < 0.1


def test_diversity_is_the_mean_distance() -> None:
    points = np.asarray([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert diversity(points) == pytest.approx((5 + 0 + 5) / 3)


def test_paired_kid_sees_a_small_loss_that_the_intervals_of_each_would_not() -> None:
    real, reference = normal(200, 8), normal(200, 8, shift=0.4)
    worse = reference + np.float32(0.05)
    difference, low, high = paired_kid(worse, reference, real)
    assert low > 0, "the same inputs, a little worse each"
    assert difference == pytest.approx(kid(worse, real)[0] - kid(reference, real)[0], rel=1e-6)
    assert high - low < kid(worse, real)[2] - kid(worse, real)[1]
    assert paired_kid(reference, reference, real) == (0.0, 0.0, 0.0)
