"""How far a set of made images is from a set of real ones, by their features: KID, FID, precision and recall, diversity.

Features are (N, D) arrays of any extractor, one row an image; figures of different extractors cannot be compared.
"""

from __future__ import annotations

import numpy as np

__all__ = ["diversity", "fid", "kid", "paired_kid", "precision_recall"]

RESAMPLED = 400
"""Bootstrap resamplings of an interval."""


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M): the cubic kernel of KID, (x.y / D + 1)^3."""
    return np.asarray((a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3)


def _mmd(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, n: np.ndarray, m: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy from kernel matrices, rows weighted ``n`` (made) and ``m`` (real) times.

    A row that was drawn twice is not compared with itself: the bootstrap would count it as a likeness.
    """

    def within(k: np.ndarray, w: np.ndarray) -> float:
        weights = w * (w.sum() - w)  # pairs of different rows
        return float((w @ k @ w - (w * w) @ np.diag(k)) / max(weights.sum(), 1e-12))

    return within(xx, n) + within(yy, m) - 2 * float(n @ xy @ m) / float(n.sum() * m.sum())


def kid(made: np.ndarray, real: np.ndarray, *, seed: int = 0) -> tuple[float, float, float]:
    """Kernel inception distance (Binkowski et al. 2018, arXiv:1801.01401): the unbiased squared MMD under the cubic kernel.

    ``made`` (N, D), ``real`` (M, D), N and M at least 2. Returns the value, which may be a little below 0 where both are
    alike, and a 95 % interval by the bootstrap over the images of both sets. Raises ValueError on fewer images.
    """
    n, m = len(made), len(real)
    if min(n, m) < 2:
        raise ValueError(f"{min(n, m)} images are too few for KID: 2 at least")
    xx, yy, xy = _kernel(made, made), _kernel(real, real), _kernel(made, real)
    value = _mmd(xx, yy, xy, np.ones(n), np.ones(m))
    rng = np.random.default_rng(seed)
    drawn = [_mmd(xx, yy, xy, _weights(rng, n), _weights(rng, m)) for _ in range(RESAMPLED)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return value, float(low), float(high)


def _weights(rng: np.random.Generator, count: int) -> np.ndarray:
    """How often each of ``count`` rows is drawn by a bootstrap."""
    return np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)


def paired_kid(
    candidate: np.ndarray, reference: np.ndarray, real: np.ndarray, *, seed: int = 0
) -> tuple[float, float, float]:
    """KID(candidate) - KID(reference) of two networks on the same inputs, row by row, and its one-sided 95 % bounds
    (low, high): inputs and real images are drawn again together for both, so that what they share falls out."""
    kernels = [(_kernel(x, x), _kernel(x, real)) for x in (candidate, reference)]
    yy = _kernel(real, real)
    n, m = len(candidate), len(real)

    def difference(w: np.ndarray, v: np.ndarray) -> float:
        ours, theirs = (_mmd(xx, yy, xy, w, v) for xx, xy in kernels)
        return ours - theirs

    rng = np.random.default_rng(seed)
    drawn = [difference(_weights(rng, n), _weights(rng, m)) for _ in range(RESAMPLED)]
    low, high = np.quantile(drawn, (0.05, 0.95))
    return difference(np.ones(n), np.ones(m)), float(low), float(high)


def fid(made: np.ndarray, real: np.ndarray) -> float:
    """Frechet inception distance (Heusel et al. 2017, arXiv:1706.08500): that of two Gaussians with the sets' means and
    covariances. It is biased upwards, the more the fewer the images are beside the features' dimension: compare only
    figures of the same number of images."""
    means = [v.astype(np.float64).mean(axis=0) for v in (made, real)]
    one, two = (np.cov(v.astype(np.float64), rowvar=False).reshape(v.shape[1], v.shape[1]) for v in (made, real))
    # the trace of sqrt(one @ two) is that of sqrt(root @ two @ root), which is symmetric
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ two @ root).clip(0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(one) + np.trace(two) - 2 * cross)


def precision_recall(made: np.ndarray, real: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991): the share of made images that lie within
    the k-th neighbour's distance of a real one, and the other way round."""
    return _within(made, real, k), _within(real, made, k)


def _within(points: np.ndarray, set_: np.ndarray, k: int) -> float:
    own = _distances(set_, set_)
    reach = np.sort(own, axis=1)[:, min(k, len(set_) - 1)]
    return float((_distances(points, set_) <= reach).any(axis=1).mean())


def diversity(features: np.ndarray) -> float:
    """The mean distance between two different images of a set."""
    n = len(features)
    return float(_distances(features, features).sum() / max(1, n * (n - 1)))


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    if a is b or (a.shape == b.shape and np.array_equal(a, b)):
        np.fill_diagonal(squares, 0.0)  # rounding leaves a little
    return np.asarray(np.sqrt(squares.clip(0)))
