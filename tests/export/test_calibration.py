"""What int8 is calibrated on, and which ranges come of it: calibrators against known answers, bad sets of images against the audit."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from zoo.artifacts import Calibration
from zoo.data.targets import Boxes
from zoo.errors import ExportError, UnknownName
from zoo.inputs import preprocess_batch
from zoo.parity.evidence import natural_images
from zoo.specs import ImageInput
from zoo_export.precision.auditing import Concern, audit, saturation
from zoo_export.precision.ranges import BINS, CALIBRATORS, Histogram, Statistics, choose, measure

SPEC = ImageInput(height=64, width=64)


def seen(values: np.ndarray) -> Statistics:
    """Statistics of images (N, …), as a measurement gives them."""
    flat = values.reshape(len(values), -1)
    histogram = Histogram()
    for image in flat:
        histogram.add(image.astype(np.float32))
    return Statistics(
        low=float(values.min()),
        high=float(values.max()),
        mean_low=float(flat.min(axis=1).mean()),
        mean_high=float(flat.max(axis=1).mean()),
        histogram=histogram,
    )


def network() -> onnx.ModelProto:
    """(N, 2, 8, 8) to two float outputs of different kinds: y = max(2x, 0) and z = x + 3."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["twice"], "mul"),
        helper.make_node("Relu", ["twice"], ["y"], "relu"),
        helper.make_node("Add", ["x", "three"], ["z"], "add"),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 8, 8]) for name in ("y", "z")],
        [numpy_helper.from_array(np.float32(2), "two"), numpy_helper.from_array(np.float32(3), "three")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


# -- measuring -----------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_images() -> None:
    tensors = np.random.default_rng(0).normal(size=(12, 2, 8, 8)).astype(np.float32)
    found = measure(network(), ["x", "twice", "y", "z"], Calibration(tensors=tensors, source="made"))
    truth = {"x": tensors, "twice": 2 * tensors, "y": np.maximum(2 * tensors, 0), "z": tensors + 3}
    for name, values in truth.items():
        flat = values.reshape(12, -1)
        assert found[name].low == pytest.approx(values.min(), abs=1e-6)
        assert found[name].high == pytest.approx(values.max(), abs=1e-6)
        assert found[name].mean_low == pytest.approx(flat.min(axis=1).mean(), abs=1e-5)
        assert found[name].mean_high == pytest.approx(flat.max(axis=1).mean(), abs=1e-5)
        assert found[name].magnitudes.sum() == values.size


def test_a_histogram_that_grew_is_that_of_all_values_at_once() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=(3, 50)) * scale).astype(np.float32) for scale in (0, 0.01, 1, 0.3, 40, 0)]
    grown = Histogram()
    for part in parts:
        grown.add(part)
    values = np.concatenate(parts).reshape(-1)
    largest = float(np.abs(values).max())
    assert largest <= grown.limit < 2 * largest
    counts, _ = np.histogram(values, BINS, (-grown.limit, grown.limit))
    assert grown.counts.sum() == values.size
    # a value on the edge of two bins may fall on either side
    assert np.abs(np.cumsum(grown.counts) - np.cumsum(counts)).max() <= 2


def test_of_many_values_a_sample_is_counted() -> None:
    values = np.random.default_rng(0).normal(size=(3, 400, 500)).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    assert 30_000 < histogram.counts.sum() <= 65_536
    edges = np.linspace(-histogram.limit, histogram.limit, BINS + 1)[1:]
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    for at in (-1.0, 0.0, 1.5):
        assert share[np.searchsorted(edges, at)] == pytest.approx((values <= at).mean(), abs=0.01)


def test_one_image_at_a_time_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    honest = Calibration.batches
    monkeypatch.setattr(
        Calibration, "batches", lambda self, size=1: (sizes.append(len(b)) or b for b in honest(self, size))
    )
    measure(network(), ["y"], Calibration(tensors=np.ones((5, 2, 8, 8), np.float32), source="made"))
    assert sizes == [1] * 5


def test_what_is_not_finite_is_named() -> None:
    tensors = np.ones((3, 2, 8, 8), np.float32)
    tensors[1, 0, 0, 0] = np.nan
    with pytest.raises(ExportError, match="activation 'z' is not finite"):
        measure(network(), ["z"], Calibration(tensors=tensors, source="broken"))


@pytest.mark.parametrize("value", [0, 1e-40])
@pytest.mark.filterwarnings("error")
def test_a_tensor_of_nothing_has_a_range(value: float) -> None:
    tensors = np.full((3, 2, 8, 8), value, np.float32)
    found = measure(network(), ["x"], Calibration(tensors=tensors, source="black"))["x"]
    for name in CALIBRATORS:
        chosen = choose(name, found)
        assert chosen.magnitude == pytest.approx(0, abs=1e-30)
        assert chosen.saturation == 0


# -- calibrators ---------------------------------------------------------------------------------------------------


def test_minmax_and_mean() -> None:
    values = np.array([[-1.0, 0, 4], [-3, 1, 2], [-2, 0, 9]])
    found = seen(values)
    assert (choose("minmax", found).low, choose("minmax", found).high) == (-3, 9)
    assert (choose("mean", found).low, choose("mean", found).high) == (-2, 5)
    assert choose("mean", found).magnitude == 5
    assert choose("minmax", found).saturation == 0
    many = np.random.default_rng(0).normal(size=(20, 1000)).astype(np.float32)
    chosen = choose("mean", seen(many))
    outside = float(((many < chosen.low) | (many > chosen.high)).mean())
    assert 0 < outside == pytest.approx(chosen.saturation, abs=1e-4)


def test_percentile_leaves_one_value_in_ten_thousand_outside() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, size=(10, 20_000))
    values[3, :5] = 4
    chosen = choose("percentile", seen(values))
    # 20 of 200,000: the five outliers and the largest 15 of the others
    expected = np.sort(np.abs(values).reshape(-1))[-20]
    assert chosen.magnitude == pytest.approx(expected, abs=4 * seen(values).width)
    assert chosen.saturation == pytest.approx(1e-4, abs=5e-4)
    assert choose("percentile", seen(np.maximum(values, 0))).low == 0, "no farther than the values reach"


def kullback_leibler_threshold(counts: np.ndarray) -> int:
    """The calibrator of TensorRT's talk, in so many words, with SciPy's divergence; index of the first bin outside."""
    scipy_stats = pytest.importorskip("scipy.stats")
    best = (np.inf, 0)
    for kept in [len(counts) * k // 128 for k in range(8, 129)]:
        reference = counts[:kept].astype(float)
        reference[-1] += counts[kept:].sum()
        spread = np.zeros(kept)
        for level in range(128):
            bins = [b for b in range(kept) if b * 128 // kept == level and counts[b]]
            for b in bins:
                spread[b] = sum(counts[c] for c in bins) / len(bins)
        if ((spread == 0) & (reference > 0)).any():
            continue
        best = min(best, (float(scipy_stats.entropy(reference, spread)), kept))
    return best[1]


@pytest.mark.parametrize("outliers", [0, 3, 30])
def test_entropy_is_that_of_tensorrts_talk(outliers: int) -> None:
    rng = np.random.default_rng(outliers)
    values = np.maximum(rng.normal(size=(1, 50_000)), 0)
    values[0, :outliers] = rng.uniform(8, 30, outliers)
    found = seen(values)
    counts = found.magnitudes.copy()
    counts[0] = 0
    expected = min(found.high, kullback_leibler_threshold(counts) * found.width)
    assert choose("entropy", found).high == pytest.approx(expected)
    assert choose("entropy", found).low == 0
    if outliers > 10:
        assert choose("entropy", found).high < 0.9 * found.high


def test_mse_is_what_quantising_the_values_themselves_says() -> None:
    rng = np.random.default_rng(1)
    values = rng.laplace(size=(1, 300_000)).astype(np.float32)
    values[0, 0] = 25
    found = seen(values)

    def error(threshold: float) -> float:
        scale = threshold / 127
        return float(((np.clip(np.round(values / scale), -128, 127) * scale - values) ** 2).mean())

    tried = [error(found.magnitude * (k / 128)) for k in range(8, 129)]
    assert error(choose("mse", found).magnitude) <= 1.02 * min(tried)
    assert error(choose("mse", found).magnitude) < 0.8 * error(found.magnitude)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.5, 2.0), (-9.0, 0.3), (-9.0, 9.0)])
def test_saturation_is_the_share_outside(low: float, high: float) -> None:
    from zoo_export.precision.ranges import saturation as share_outside

    values = np.random.default_rng(2).normal(size=(4, 10_000)).astype(np.float32)
    expected = float(((values < low) | (values > high)).mean())
    assert share_outside(seen(values), low, high) == pytest.approx(expected, abs=2e-4)


def test_a_pile_of_values_at_the_end_of_a_range_is_not_clipped() -> None:
    """As a SiLU's: a twentieth of its values within one bin of its least, far from the largest."""
    from zoo_export.precision.ranges import saturation as share_outside

    values = np.concatenate([np.full(5_000, -0.278), np.linspace(0, 100, 95_000)])[None].astype(np.float32)
    found = seen(values)
    assert share_outside(found, found.low, 90) == pytest.approx(0.095, abs=1e-3)


def test_an_unknown_calibrator_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown calibrator 'percentil': did you mean percentile"):
        choose("percentil", seen(np.ones((2, 3))))


# -- the audit -----------------------------------------------------------------------------------------------------


def photos(count: int, spec: ImageInput = SPEC, seed: int = 0) -> np.ndarray:
    return preprocess_batch(natural_images(count, spec.height + 9, spec.width + 5, 3, seed), spec)


def kinds(concerns: Sequence[Concern]) -> dict[str, str]:
    assert json.dumps([c.to_dict() for c in concerns])
    assert all("\n" not in c.message for c in concerns)
    return {c.kind: c.severity for c in concerns}


def test_a_good_set_raises_no_concern() -> None:
    assert audit(photos(32)) == []
    targets = [k % 4 for k in range(32)]
    digests = [f"train {k}" for k in range(32)]
    assert audit(photos(32), targets=targets, labels="abcd", digests=digests, judged_digests={"val 0"}) == []


@pytest.mark.parametrize(("count", "severity"), [(1, "warning"), (3, "warning"), (8, "info"), (31, "info")])
def test_few_images(count: int, severity: str) -> None:
    concerns = audit(photos(count))
    assert kinds(concerns) == {"size": severity}
    assert f"{count} calibration image" in concerns[0].message


def test_no_images_at_all() -> None:
    assert kinds(audit(photos(1)[:0])) == {"size": "warning"}


def test_images_of_one_colour() -> None:
    tensors = photos(32)
    tensors[[3, 9]] = 0.5
    concerns = audit(tensors)
    assert kinds(concerns) == {"flat": "warning"}
    assert "2 of 32 calibration images are of one colour" in concerns[0].message
    assert "flat" in kinds(audit(np.zeros((32, 3, 64, 64), np.float32)))


def test_images_that_are_all_alike() -> None:
    copies = np.repeat(photos(1), 32, axis=0)
    assert kinds(audit(copies)) == {"alike": "warning"}
    grain = np.random.default_rng(0).normal(0, 0.02, copies.shape).astype(np.float32)
    assert kinds(audit(copies + grain)) == {"alike": "warning"}
    assert kinds(audit(photos(32), digests=["a", "b"] * 16)) == {"repeated": "info"}


@pytest.mark.parametrize("size", [24, 64, 224])
def test_noise_is_no_photo(size: int) -> None:
    rng = np.random.default_rng(0)
    for noise in (rng.normal(size=(32, 3, size, size)), rng.uniform(size=(32, 1, size, size))):
        assert kinds(audit(noise.astype(np.float32))) == {"noise": "warning"}
    assert audit(photos(32, ImageInput(height=size, width=size))) == []


@pytest.mark.parametrize("drawn", [64, 300])
def test_noise_that_was_resized_is_noise(drawn: int) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (drawn, drawn, 3), dtype=np.uint8) for _ in range(32)]
    assert kinds(audit(preprocess_batch(images, ImageInput(height=160, width=160)))) == {"noise": "warning"}


def test_noise_among_photos_is_counted() -> None:
    tensors = photos(32)
    tensors[:6] = np.random.default_rng(0).normal(size=tensors[:6].shape)
    concerns = audit(tensors)
    assert kinds(concerns) == {"noise": "warning"}
    assert "6 of 32 calibration images look like noise" in concerns[0].message


def test_classes_that_are_not_shown() -> None:
    tensors = photos(32)
    labels = [f"class {k}" for k in range(10)]
    some = audit(tensors, targets=[k % 7 for k in range(32)], labels=labels)
    assert kinds(some) == {"classes": "info"}
    assert "show 7 of 10 classes (none of class 7, class 8, class 9)" in some[0].message
    assert kinds(audit(tensors, targets=[3] * 32, labels=labels)) == {"classes": "warning"}
    # 32 images cannot show a thousand classes; but they can show more than two
    thousand = [f"class {k}" for k in range(1000)]
    assert audit(tensors, targets=list(range(0, 960, 30)), labels=thousand) == []
    assert kinds(audit(tensors, targets=[1, 2] * 16, labels=thousand)) == {"classes": "warning"}


def test_boxes_show_the_classes_that_are_in_them() -> None:
    boxes = [Boxes.of([[0, 0, 4, 4], [1, 1, 5, 5]], [k % 2, 2]) for k in range(32)]
    assert audit(photos(32), targets=boxes, labels=("a", "b", "c")) == []
    assert kinds(audit(photos(32), targets=boxes, labels=("a", "b", "c", "d"))) == {"classes": "info"}
    assert audit(photos(32), targets=[object()] * 32, labels=("a", "b")) == [], "a target that says nothing of classes"


def test_images_that_are_judged_too() -> None:
    digests = [f"image {k}" for k in range(32)]
    concerns = audit(photos(32), digests=digests, judged_digests=set(digests[:5]))
    assert kinds(concerns) == {"overlap": "warning"}
    assert "5 of 32 calibration images are judged too" in concerns[0].message


def test_saturated_tensors_are_told() -> None:
    assert saturation({"a": 0.0099, "b": 0.0}) == []
    (concern,) = saturation({"a": 0.2, "b": 0.015, "c": 0.001})
    assert (concern.kind, concern.severity) == ("saturation", "warning")
    assert "of 2 tensors (a 20 %, b 1.5 %)" in concern.message
