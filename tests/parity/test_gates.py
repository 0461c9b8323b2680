"""The gates judge known differences as a statistician would, and say so in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zoo.builtin import CLASSIFY
from zoo.parity import Candidate, Reference, Samples
from zoo.parity.evidence import observe
from zoo.parity.gates import accuracy, compare, interleave, latency, numbers, paired_interval, samples_needed
from zoo.parity.verify import bounds
from zoo.tasks.classify import Classify


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

    seen = observe(run, batches, samples.half, samples.labels)
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
