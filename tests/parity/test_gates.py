"""The gates judge known differences as a statistician would, and say so in words."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from zoo.builtin import CLASSIFY, DETECT
from zoo.parity import Candidate, Reference, Samples
from zoo.parity.evidence import observe
from zoo.parity.gates import accuracy, compare, interleave, latency, numbers, paired_interval, samples_needed
from zoo.parity.report import find_flips
from zoo.parity.verify import bounds
from zoo.specs import ImageInput
from zoo.tasks.classify import Classify
from zoo.tasks.detect import Detect

GREY = ImageInput(height=4, width=4, mean=(0.0,) * 3, std=(1.0,) * 3).with_channels(1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def outputs(logits: np.ndarray) -> dict[str, np.ndarray]:
    return {"logits": logits.astype(np.float32), "scores": softmax(logits).astype(np.float32)}


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(400, 10)) * 4


def case(truth: np.ndarray, ours: np.ndarray, precision: str = "fp32", targets: object = "truth", **tolerances: float):
    noise = np.random.default_rng(1).normal(size=truth.shape) * 1e-6
    exact = {"logits": truth, "scores": softmax(truth)}
    labels, half = tuple("abcdefghij"), Classify()
    raw, theirs = outputs(truth + noise), outputs(ours)
    reference = Reference(name="PyTorch", outputs=raw, exact=exact, results=half.decode(raw, labels=labels))
    candidate = Candidate(
        name=precision,
        precision=precision,
        outputs=theirs,
        results=half.decode(theirs, labels=labels),
        tolerances=bounds(CLASSIFY, precision) | tolerances,
    )
    wanted = truth.argmax(axis=1) if isinstance(targets, str) else targets
    samples = Samples(
        task=CLASSIFY,
        half=half,
        labels=labels,
        ids=tuple(str(i) for i in range(len(truth))),
        targets=wanted,
        source="made",
        tensors=np.zeros((2, 1, 4, 4), np.float32),
    )
    return candidate, reference, samples


def test_an_honest_export_sits_at_about_one_unit(truth):
    ours = truth + np.random.default_rng(2).normal(size=truth.shape) * 1e-6
    found = numbers(*case(truth, ours))
    assert found, found.message
    assert 0.3 < found.figures["logits"]["units"] < 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scaled by 1.001", lambda x: x * 1.001),
        ("one class shifted", lambda x: x + np.eye(10)[3] * 1e-3),
        ("labels rolled", lambda x: np.roll(x, 1, axis=1)),
        ("one sample wrong", lambda x: np.where(np.arange(len(x))[:, None] == 17, -x, x)),
    ],
)
def test_small_faults_fail_the_numeric_gate(truth, name, change):
    assert numbers(*case(truth, change(truth))).verdict == "fail"


def test_a_missing_or_misshapen_or_infinite_output_is_named(truth):
    candidate, reference, samples = case(truth, truth)
    for broken, word in (
        ({"logits": candidate.outputs["logits"]}, "'scores' is missing"),
        ({**candidate.outputs, "scores": candidate.outputs["scores"][:, :5]}, "shape"),
        ({**candidate.outputs, "logits": candidate.outputs["logits"] * np.nan}, "not finite"),
    ):
        changed = Candidate(name="x", precision="fp32", outputs=broken, tolerances=candidate.tolerances)
        found = numbers(changed, reference, samples)
        assert found.verdict == "fail"
        assert word in found.message


def rows(candidate: Candidate, count: int) -> Candidate:
    return replace(candidate, outputs={name: value[:count] for name, value in candidate.outputs.items()})


def test_a_graph_that_loses_images_fails_both_gates(truth):
    """As it is gathered: batch after batch, each with a row too few."""
    candidate, reference, samples = case(truth, truth)
    frames = [None] * len(truth)
    batches = [(np.arange(i, min(i + 16, 400)), frames[i : i + 16]) for i in range(0, 400, 16)]

    def run(batch):
        return {name: value[batch][:-1] for name, value in candidate.outputs.items()}

    seen = observe(run, batches, samples.half, samples.labels, GREY)
    broken = replace(candidate, outputs=seen.outputs, results=seen.results)
    for gate in (numbers, accuracy):
        found = gate(broken, reference, samples)
        assert found.verdict == "fail"
        assert "375" in found.message and "400 images" in found.message and "loses images" in found.message


@pytest.mark.parametrize("count", [0, 1, 375, 399, 401])
def test_rows_are_counted(truth, count):
    candidate, reference, samples = case(np.concatenate([truth, truth[:1]]), np.concatenate([truth, truth[:1]]))
    samples = replace(samples, ids=samples.ids[:400], targets=samples.targets[:400])
    found = numbers(rows(candidate, count), reference, samples)
    assert found.verdict == "fail"
    assert f"{count} rows for 400 images" in found.message
    assert numbers(rows(candidate, 400), reference, samples)


def test_only_as_much_is_compared_as_was_kept(truth, monkeypatch):
    """Of large outputs only the first are kept, of each network as many as fitted; a bundle carries fewer still."""
    candidate, reference, samples = case(truth, truth)
    row = sum(value[0].nbytes for value in candidate.outputs.values())
    monkeypatch.setattr("zoo.parity.gates.OUTPUT_BYTES", 100 * row)
    few = replace(
        reference,
        outputs={n: v[:48] for n, v in reference.outputs.items()},
        exact={n: v[:32] for n, v in reference.exact.items()},
    )
    for count in (96, 85, 400):
        assert numbers(rows(candidate, count), reference, samples), count
        assert numbers(rows(candidate, count), few, samples), count
    assert numbers(rows(candidate, 84), reference, samples).verdict == "fail", "there was room for the next batch"
    wrong = replace(candidate, outputs={n: np.concatenate([v[:40], v[:56]]) for n, v in candidate.outputs.items()})
    assert numbers(wrong, few, samples).verdict == "fail", "what both have is compared to the last row"


def test_results_are_counted(truth):
    candidate, reference, samples = case(truth, truth)
    for results in (candidate.results[:-1], [*candidate.results, candidate.results[0]], ()):
        found = accuracy(replace(candidate, results=results), reference, samples)
        assert found.verdict == "fail"
        assert f"the candidate gave {len(results)} results for 400 images" in found.message


def test_int8_is_judged_by_its_share_of_the_spread(truth):
    rng = np.random.default_rng(3)
    assert numbers(*case(truth, truth + rng.normal(size=truth.shape) * 0.2, "int8"))
    assert numbers(*case(truth, truth + rng.normal(size=truth.shape) * 3.0, "int8")).verdict == "fail"


def test_images_that_were_not_run_in_float64_are_judged_as_well(truth):
    candidate, reference, samples = case(truth, np.where(np.arange(len(truth))[:, None] == 317, -truth, truth))
    few = replace(reference, exact={n: v[:16] for n, v in reference.exact.items()})
    found = numbers(candidate, few, samples)
    assert found.verdict == "fail"
    assert "over all 400 images" in found.message
    assert numbers(case(truth, truth)[0], few, samples)


# -- numbers of detectors that choose their rows -----------------------------------------------------------------

IMAGES, ROWS, EXACT = 40, 60, 12


@dataclass
class Detections:
    """What a detector of 60 rows says of 40 images, the first six of which are objects; and that it may choose others."""

    boxes: np.ndarray
    scores: np.ndarray

    def noisy(self, scale: float, seed: int) -> Detections:
        draw = np.random.default_rng(seed)
        scores = self.scores + draw.normal(size=self.scores.shape) * scale
        return Detections(self.boxes + draw.normal(size=self.boxes.shape) * 40 * scale, scores.clip(0, 1))

    def shuffled(self) -> Detections:
        order = np.random.default_rng(9).permuted(np.tile(np.arange(ROWS), (IMAGES, 1)), axis=1)[:, :, None]
        return Detections(*(np.take_along_axis(v, order, axis=1) for v in (self.boxes, self.scores)))

    def elsewhere(self, images: slice, rows: slice, moved: float = 0.0) -> Detections:
        """Other rows in some images, which moves the others there by a share of the spread."""
        boxes, scores = self.boxes.copy(), self.scores.copy()
        boxes[images] += 40 * moved * np.random.default_rng(7).normal(size=boxes[images].shape)
        boxes[images, rows] = [900, 900, 940, 940]
        return Detections(boxes, scores)

    def outputs(self, dtype: type = np.float32) -> dict[str, np.ndarray]:
        return {"boxes": self.boxes.astype(dtype), "scores": self.scores.astype(dtype)}


@pytest.fixture(scope="module")
def seen() -> Detections:
    draw = np.random.default_rng(3)
    low = draw.uniform(0, 400, (IMAGES, ROWS, 2))
    boxes = np.concatenate([low, low + draw.uniform(20, 90, (IMAGES, ROWS, 2))], axis=2)
    scores = draw.uniform(0, 0.05, (IMAGES, ROWS, 3))
    scores[:, :6, 1] = draw.uniform(0.6, 0.95, (IMAGES, 6))
    return Detections(boxes, scores)


def judged(seen: Detections, ours: Detections, precision: str = "fp32", rows: str = "chosen", theirs: object = None):
    reference = Reference(
        name="PyTorch",
        outputs=(theirs or seen.noisy(1e-7, 1)).outputs(),
        exact={n: v[:EXACT] for n, v in seen.outputs(np.float64).items()},
    )
    samples = Samples(
        task=DETECT,
        half=Detect(confidence=0.5, rows=rows),
        labels=("a", "b", "c"),
        ids=tuple(map(str, range(IMAGES))),
        targets=None,
        source="made",
        tensors=np.zeros((1, 3, 4, 4), np.float32),
    )
    tolerances = bounds(DETECT, precision)
    return numbers(
        Candidate(name=precision, precision=precision, outputs=ours.outputs(), tolerances=tolerances),
        reference,
        samples,
    )


def test_the_order_of_chosen_rows_means_nothing(seen):
    ours = seen.noisy(1e-7, 2).shuffled()
    found = judged(seen, ours)
    assert found, found.message
    assert 0.3 < found.figures["scores"]["units"] < 3
    assert found.figures["rows"] == {"matter": 2 * 6 * IMAGES, "paired": 1.0, "images_tied": 0}
    assert "100 % of 480 rows that matter paired" in found.message
    assert judged(seen, ours, rows="fixed").verdict == "fail", "a dense head in another order is a fault"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scores x 1.001", lambda d: Detections(d.boxes, d.scores * 1.001)),
        ("boxes x 1.0001", lambda d: Detections(d.boxes * 1.0001, d.scores)),
        ("boxes a pixel off", lambda d: Detections(d.boxes + 1, d.scores)),
        ("classes rolled", lambda d: Detections(d.boxes, np.roll(d.scores, 1, axis=2))),
        ("boxes of other rows", lambda d: Detections(np.roll(d.boxes, 1, axis=1), d.scores)),
        ("images rolled", lambda d: Detections(np.roll(d.boxes, 1, axis=0), np.roll(d.scores, 1, axis=0))),
        ("one row of each image", lambda d: d.elsewhere(slice(None), slice(7, 8))),
        ("one image wrong", lambda d: Detections(d.boxes, np.where(np.arange(IMAGES)[:, None, None] == 30, 0.5, d.scores))),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_faults_of_chosen_rows_fail_in_float32(seen, name, change):
    found = judged(seen, change(seen.noisy(1e-7, 2)).shuffled())
    assert found.verdict == "fail", found.message


def test_images_where_rounding_chose_another_row_are_set_aside_if_they_are_few(seen):
    unsure = slice(20, 30)  # rows that nobody is sure of
    ours = seen.noisy(1e-7, 2)
    found = judged(seen, ours.elsewhere(slice(5, 9), unsure, 1e-3).shuffled())
    assert found, found.message
    assert found.figures["rows"]["images_tied"] == 4
    assert "4 of 40 images set aside" in found.message
    assert found.figures["boxes"]["units"] < 3
    # PyTorch itself may be the one that chose others than it does in float64: that is no measure of rounding
    found = judged(seen, ours, theirs=seen.noisy(1e-7, 1).elsewhere(slice(2, 3), unsure, 1e-3))
    assert found, found.message
    assert found.figures["boxes"]["unit"] < 1e-3
    many = judged(seen, ours.elsewhere(slice(5, 10), unsure, 1e-3))
    assert many.verdict == "fail"
    assert "in 5 of 40 images rows differ by more than rounding, which 10 % may" in many.message
    far = judged(seen, ours.elsewhere(slice(5, 6), unsure, 0.3))
    assert far.verdict == "fail"
    assert "in 1 images where other places were chosen" in far.message


def test_int8_may_choose_others_but_not_lose_what_matters(seen):
    ours = seen.noisy(0.01, 2)
    found = judged(seen, ours.elsewhere(slice(None), slice(40, 60)).shuffled(), "int8")
    assert found, found.message
    assert found.figures["rows"] == {"matter": 480, "paired": 1.0}
    assert judged(seen, ours.elsewhere(slice(0, 8), slice(2, 3)).shuffled(), "int8"), "8 of 240 are lost"
    lost = judged(seen, ours.elsewhere(slice(0, 14), slice(2, 3)).shuffled(), "int8")
    assert lost.verdict == "fail"
    assert "5.83 % of the 480 rows that matter have no partner, 5 % allowed" in lost.message
    moved = Detections(ours.boxes + 30, ours.scores)
    assert judged(seen, moved.shuffled(), "int8").verdict == "fail"
    told = Detections(ours.boxes, np.roll(ours.scores, 1, axis=2))
    assert judged(seen, told.shuffled(), "int8").verdict == "fail"
    # of all that is compared nothing is diluted by what is not: the same error, with and without rows elsewhere
    loud = seen.noisy(0.05, 2)
    whole, part = (judged(seen, d, "int8") for d in (loud, loud.elsewhere(slice(None), slice(20, 60))))
    assert part.figures["boxes"]["max_abs"] <= whole.figures["boxes"]["max_abs"]
    assert part.figures["boxes"]["rms_share"] == pytest.approx(whole.figures["boxes"]["rms_share"], rel=0.1)


def test_rows_that_are_no_numbers_are_not_left_out_as_unpaired(seen):
    ours = seen.noisy(1e-7, 2)
    ours.boxes[3, 30] = np.nan
    for precision in ("fp32", "int8"):
        found = judged(seen, ours, precision)
        assert found.verdict == "fail"
        assert "4 values of 'boxes' are not finite" in found.message


def test_only_scores_have_a_largest_one() -> None:
    values = np.arange(12, dtype=np.float32)
    assert compare(values.reshape(3, 4), values.reshape(3, 4))["argmax_agreement"] == 1
    assert "argmax_agreement" not in compare(values.reshape(1, 3, 2, 2), values.reshape(1, 3, 2, 2))


def test_compare_gives_the_textbook_figures():
    a, b = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 2.0, 4.0]])
    found = compare(a, b)
    assert found["max_abs"] == 1.0
    assert found["mean_abs"] == pytest.approx(1 / 3)
    assert found["cosine"] == pytest.approx(float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)))
    assert found["psnr_db"] == pytest.approx(20 * np.log10(3 / np.sqrt(1 / 3)))
    assert sum(found["histogram"]["counts"]) + found["histogram"]["zeros"] == 3


def test_the_paired_interval_covers_as_it_claims():
    """Simulated: the one-sided 95 % lower end lies above the true difference in about 5 % of the runs."""
    rng = np.random.default_rng(5)
    worse, better, n, missed = 0.03, 0.01, 300, 0
    for _ in range(2000):
        draw = rng.random(n)
        differences = np.where(draw < worse, -1.0, np.where(draw < worse + better, 1.0, 0.0))
        missed += paired_interval(differences)[1] > better - worse
    assert 0.02 < missed / 2000 < 0.08


def test_accuracy_passes_fails_and_admits_ignorance(truth):
    rng = np.random.default_rng(4)

    def flipped(share: float, rows: int) -> tuple[np.ndarray, np.ndarray]:
        part = truth[:rows]
        return part, np.where(rng.random((rows, 1)) < share, -part, part)

    part, ours = flipped(0.0, 400)
    assert accuracy(*case(part, ours, "int8"))
    part, ours = flipped(0.15, 400)
    assert accuracy(*case(part, ours, "int8")).verdict == "fail"
    part, ours = flipped(0.0, 40)
    found = accuracy(*case(part, ours, "int8"))
    assert found.verdict == "inconclusive"
    assert found.figures["more_samples"] > 0
    assert "more samples" in found.message


def test_the_number_of_samples_asked_for_is_enough():
    differences = np.zeros(40)
    need = samples_needed(differences, 0.02)
    assert paired_interval(np.zeros(need))[1] >= -0.02
    assert paired_interval(np.zeros(need // 2))[1] < -0.02


def test_without_targets_accuracy_is_not_judged_and_says_so(truth):
    found = accuracy(*case(truth, truth, targets=None))
    assert found.verdict == "not judged"
    assert "--data" in found.message


def test_images_without_a_right_answer_are_left_out_and_counted(truth):
    ours = truth.copy()
    ours[::2] = np.roll(ours[::2], 1, axis=1)  # wrong wherever nobody knows
    targets = [int(row.argmax()) if i % 2 else None for i, row in enumerate(truth)]
    candidate, reference, samples = case(truth, ours, targets=targets)
    found = accuracy(candidate, reference, samples)
    assert found.verdict == "pass"
    assert found.figures["samples"] == 200 and found.figures["candidate"] == 1.0
    assert found.figures["changed_answers"] == 0 and "0 of 200 answers changed" in found.message
    assert "200 images without a right answer were left out" in found.message
    flips = find_flips(candidate, reference, samples, np.zeros((400, 4, 4, 1), np.uint8), GREY, limit=3)
    assert [flip.id for flip in flips] == ["0", "2", "4"]
    whole = accuracy(*case(truth, truth))
    assert "left out" not in whole.message and whole.figures["samples"] == 400


def test_latency_is_a_ratio_of_interleaved_medians(truth):
    import time

    def sleeper(ms: float):
        return lambda _x: time.sleep(ms / 1000)

    candidate, reference, samples = case(truth, truth)
    slow = replace(reference, call=sleeper(6))
    assert latency(replace(candidate, call=sleeper(2)), slow, samples)
    found = latency(replace(candidate, call=sleeper(12)), slow, samples)
    assert found.verdict == "fail"
    assert 1.5 < found.figures["ratio_p50"] < 2.5
    assert latency(candidate, reference, samples).verdict == "not judged"


def test_interleaving_takes_turns():
    order = []
    interleave(
        {"a": lambda _x: order.append("a"), "b": lambda _x: order.append("b")},
        np.zeros((1, 1, 1, 1), np.float32),
        warmup=0,
        rounds=6,
    )
    assert order == list("abbaabbaabba")
