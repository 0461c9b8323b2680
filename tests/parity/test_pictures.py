"""The gates and the report of networks that make images: pixels, decibels, and the crops that changed most."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.builtin import GENERATE, RESTORE
from zoo.data import Dataset, Sample
from zoo.data.degrading import Degraded
from zoo.data.targets import Picture
from zoo.parity import Candidate, Finding, Reference, Samples
from zoo.parity.evidence import Kept, Observed, natural_images, observe, prepared_batches
from zoo.parity.gates import accuracy, judge, numbers, samples_needed, student_interval, student_t
from zoo.parity.pictures import pixels
from zoo.parity.report import ArtifactReport, Report, changed_most, find_flips, render
from zoo.parity.verify import bounds
from zoo.registry import get_registry
from zoo.results import ImageResult
from zoo.specs import ImageInput
from zoo.tasks.generate import Generate, latents
from zoo.tasks.pictures import PictureTask
from zoo.tasks.restore import Restore


def case(
    ours: list[np.ndarray],
    theirs: list[np.ndarray],
    *,
    targets: list[np.ndarray] | None = None,
    precision: str = "int8",
    half: PictureTask | None = None,
) -> tuple[Candidate, Reference, Samples]:
    """Two networks' images (H, W, C) uint8, and those that they should have made."""
    half = half or Restore()
    sides = []
    for images in (ours, theirs):
        results = Kept(half, ())
        results.extend([ImageResult(pixels=image, box=(0, 0, *image.shape[1::-1])) for image in images])
        sides.append((images, results))
    (_, candidates), (_, references) = sides
    task = GENERATE if isinstance(half, Generate) else RESTORE

    def raw(images: list[np.ndarray]) -> dict[str, np.ndarray]:
        return {"output": np.stack([i.transpose(2, 0, 1) for i in images]).astype(np.float32) / 255}

    return (
        Candidate(
            name=precision,
            precision=precision,
            outputs=raw(ours),
            results=candidates,
            tolerances=bounds(task, precision),
        ),
        Reference(name="PyTorch", outputs=raw(theirs), results=references),
        Samples(
            task=task,
            half=half,
            labels=(),
            ids=tuple(f"{i}.png" for i in range(len(theirs))),
            targets=None if targets is None else [Picture(source=t) for t in targets],
            source="made",
            tensors=np.zeros((2, 3, 8, 8), np.float32),
        ),
    )


def flat(*values: int) -> list[np.ndarray]:
    return [np.full((12, 12, 3), value, np.uint8) for value in values]


# -- pixels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "decibels"), [("fp32", 60), ("fp16", 48), ("bf16", 32), ("int8", 28)])
def test_the_pixels_gate_is_sharp_at_its_bound(precision: str, decibels: float) -> None:
    """The worst image decides: one is off by as much as the bound allows, then by one step of one value more."""
    theirs = [np.full((250, 250, 1), 100, np.uint8) for _ in range(3)]
    count = theirs[0].size
    allowed = int(255**2 * count / 10 ** (decibels / 10))  # the sum of squared steps
    step = int(np.sqrt(allowed / count))
    one_more = (allowed - step**2 * count) // (2 * step + 1)
    for beyond, verdict in ((0, "pass"), (1, "fail")):
        ours = [t.copy() for t in theirs]
        ours[1] += np.uint8(step)
        ours[1].reshape(-1)[: one_more + beyond] += np.uint8(1)
        (found,) = pixels(*case(ours, theirs, precision=precision))
        assert found.verdict == verdict, found.message
        assert found.figures["worst_psnr_db"] == pytest.approx(decibels, abs=0.01)
        assert f"{decibels} needed" in found.message and "of 3 images" in found.message
        json.dumps(found.to_dict(), allow_nan=False)


def test_equal_images_pass() -> None:
    images = natural_images(3, 20, 30)
    (found,) = pixels(*case(images, images, precision="fp32"))
    assert found, found.message
    assert found.figures["mean"] == found.figures["max"] == found.figures["share_beyond_1"] == 0
    assert found.figures["psnr_db"] == 100 and found.figures["ssim"] == pytest.approx(1)


def test_a_generator_of_one_image_fails() -> None:
    """Without a single target: what latents should become nobody knows, but what they became is known."""
    theirs = natural_images(8, 16, 16)
    ours = [theirs[0]] * 8
    candidate, reference, samples = case(ours, theirs, precision="int8", half=Generate())
    found = {f.gate: f for f in get_registry().verify(candidate, reference, samples)}
    assert found["pixels"].verdict == "fail" and found["numbers"].verdict == "fail"
    assert found["accuracy"].verdict == "not judged"
    assert "nobody knows the right images" in found["accuracy"].message
    same = {f.gate: f for f in get_registry().verify(replace(candidate, **vars_of(theirs)), reference, samples)}
    assert same["pixels"].verdict == same["numbers"].verdict == "pass"


def vars_of(images: list[np.ndarray]) -> dict[str, object]:
    candidate = case(images, images, half=Generate())[0]
    return {"outputs": candidate.outputs, "results": candidate.results}


def test_images_of_another_size_fail_and_break_nothing() -> None:
    theirs = natural_images(2, 16, 16)
    candidate, reference, samples = case([t[:, :14] for t in theirs], theirs)
    (found,) = pixels(candidate, reference, samples)
    assert found.verdict == "fail"
    assert "0.png" in found.message and "14x16x3" in found.message and "16x16x3" in found.message
    assert find_flips(candidate, reference, samples, [], ImageInput(height=16, width=16)) == []
    assert next(iter(judge(candidate, reference, samples))).verdict == "fail"


def test_where_no_results_are_at_hand_pixels_are_not_told() -> None:
    candidate, reference, samples = case(*[natural_images(2, 16, 16)] * 2)
    for ours, theirs in (((), reference.results), (candidate.results, ())):
        sides = replace(candidate, results=ours), replace(reference, results=theirs)
        assert list(pixels(*sides, samples)) == []


@pytest.mark.parametrize(("ours", "theirs", "who"), [(2, 3, "candidate"), (3, 1, "reference"), (2, 2, "candidate")])
def test_images_that_got_lost_fail(ours: int, theirs: int, who: str) -> None:
    candidate, reference, samples = case(*[natural_images(3, 16, 16)] * 2)
    lost = replace(candidate, results=candidate.results[:ours]), replace(reference, results=reference.results[:theirs])
    (found,) = pixels(*lost, samples)
    assert found.verdict == "fail"
    assert f"the {who} made {min(ours, theirs)} images of 3 inputs" in found.message


# -- holes -----------------------------------------------------------------------------------------------------


def test_an_inpainter_is_judged_by_what_users_get() -> None:
    """What it makes of known pixels nobody sees: the gates count the holes alone, and the pixels put back elsewhere."""
    spec = ImageInput(
        height=32, width=32, channels=4, color="RGBA", resize="crop", mean=(0.5,) * 3 + (0.0,), std=(0.5,) * 3 + (1.0,)
    )
    half, good = Restore(holes=True), natural_images(4, 32, 32)
    data = Dataset(
        samples=tuple(Sample(id=f"{i}.png", image=image, target=None) for i, image in enumerate(good)),
        labels=(), split="val", root=Path("photos"), format="images",
    )  # fmt: skip
    damaged = half.samples(data, spec, ())
    batches = list(prepared_batches([s.image for s in damaged], spec))

    def painter(known: float) -> Observed:
        """Half grey in holes, and ``known`` where the image is known."""

        def run(x: np.ndarray) -> dict[str, np.ndarray]:
            return {"output": np.where(x[:, 3:] > 0.5, np.float32(known), np.float32(0.5)).repeat(3, axis=1)}

        return observe(run, batches, half, (), spec)

    black, white = painter(0.0), painter(1.0)
    for result, sample, image in zip(black.results, damaged, good, strict=True):
        holed = sample.image.read()  # type: ignore[union-attr]
        hole = np.asarray(holed)[:, :, 3] == 0
        assert 0.05 < hole.mean() < 0.5
        assert np.array_equal(result.pixels[~hole], image[~hole]) and (result.pixels[hole] == 128).all()
    candidate, reference, samples = case(good, good, targets=good, half=half)
    candidate = replace(candidate, outputs=black.outputs, results=black.results)
    reference = replace(reference, outputs=white.outputs, results=white.results)
    (same,), scored = pixels(candidate, reference, samples), accuracy(candidate, reference, samples)
    assert same.verdict == scored.verdict == "pass"
    assert same.figures["max"] == 0 and scored.figures["difference"] == 0
    assert scored.figures["candidate"] > 0.12, "dB of the holes alone would be fewer"
    assert numbers(candidate, reference, samples).verdict == "fail", "the graph itself is another"


# -- decibels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, 6.3138), (2, 2.9200), (3, 2.3534), (4, 2.1318), (5, 2.0150), (6, 1.9432), (8, 1.8595), (10, 1.8125),
        (20, 1.7247), (30, 1.6973), (60, 1.6706), (120, 1.6577), (10**6, 1.6449),
    ],
)  # fmt: skip
def test_students_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=1e-3)


def test_students_interval_by_hand() -> None:
    mean, low, high = student_interval(np.array([0.01, 0.02, 0.03, 0.04]))
    half = 2.3534 * np.std([0.01, 0.02, 0.03, 0.04], ddof=1) / 2
    assert mean == pytest.approx(0.025)
    assert (low, high) == (pytest.approx(0.025 - half, abs=1e-6), pytest.approx(0.025 + half, abs=1e-6))
    assert student_interval(np.array([0.3])) == (0.3, -1.0, 1.0)
    assert student_interval(np.zeros(9)) == (0, 0, 0)


def test_students_interval_covers_as_it_claims() -> None:
    rng = np.random.default_rng(0)
    missed = [student_interval(rng.normal(0.1, 0.02, 4))[1] > 0.1 for _ in range(4000)]
    assert 0.04 < np.mean(missed) < 0.06


def decibels(ours: list[int], theirs: list[int]) -> Finding:
    """Images off by so many steps from black: a step more at 10 is 0.83 dB less; int8 may lose 0.5 dB."""
    return accuracy(*case(flat(*ours), flat(*theirs), targets=flat(*[0] * len(ours))))


def test_a_drop_within_the_margin_passes_and_beyond_it_fails() -> None:
    good = decibels([10] * 6, [10] * 6)
    assert good.verdict == "pass"
    assert "PSNR-Y 29.45 dB against 29.45 dB (+0.00 dB, at worst +0.00; -0.50 allowed; 0 of 6" in good.message
    bad = decibels([11] * 6, [10] * 6)
    assert bad.verdict == "fail" and "%" not in bad.message and "points" not in bad.message
    assert bad.figures["difference"] == pytest.approx(-20 * np.log10(11 / 10) / 100, abs=1e-9)
    assert bad.figures["unit"] == "dB" and bad.figures["worse"] == 6
    better = decibels([9] * 6, [10] * 6)
    assert better.verdict == "pass" and better.figures["better"] == 6


def test_a_spread_too_large_is_inconclusive_and_says_how_many_more() -> None:
    found = decibels([10, 11] * 2, [10] * 4)
    assert found.verdict == "inconclusive"
    more = found.figures["more_samples"]
    assert 10 < more < 400 and f"about {more} more samples would settle it" in found.message
    count = 4 + more + more % 2
    assert decibels([10, 11] * (count // 2), [10] * count).verdict == "pass"
    assert decibels([10, 11] * (count // 8), [10] * (count // 8 * 2)).verdict == "inconclusive"


def test_one_image_settles_nothing() -> None:
    for ours in (10, 11, 200):
        found = decibels([ours], [10])
        assert found.verdict == "inconclusive"
        assert "one image tells nothing of the spread" in found.message
        assert found.figures["more_samples"] is None
        json.dumps(found.to_dict(), allow_nan=False)


def test_more_samples_do_not_help_where_the_drop_is_beyond_the_margin() -> None:
    assert samples_needed(np.array([-0.02, -0.01, 0.0]), 0.005, continuous=True) == 10**9
    need = samples_needed(np.array([-0.01, 0.01]), 0.005, continuous=True)
    spread = np.std([-0.01, 0.01], ddof=1)
    assert student_t(need - 1) * spread / np.sqrt(need) <= 0.005
    assert student_t(need // 2) * spread / np.sqrt(need // 2) > 0.005


def test_without_right_images_nothing_is_judged_by_them() -> None:
    candidate, reference, samples = case(flat(1, 2), flat(1, 2))
    for targets, figures in ((None, {}), ([None, None], {"known": 0})):
        found = accuracy(candidate, reference, replace(samples, targets=targets))
        assert found.verdict == "not judged" and found.figures == figures


# -- the crops that changed most -------------------------------------------------------------------------------


def opened(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        return np.asarray(image.convert("RGB"))


def test_the_part_with_the_largest_mean_is_found() -> None:
    difference = np.zeros((100, 150, 3), np.uint8)
    difference[30:70, 80:120] = 9
    difference[0, 0] = 255  # one value is no part
    left, top, right, bottom = changed_most(difference)
    assert (right - left, bottom - top) == (64, 64)
    assert left <= 80 and top <= 30 and right >= 120 and bottom >= 70
    assert changed_most(difference, 40) == (80, 30, 120, 70)
    assert changed_most(difference[:20]) == (0, 0, 64, 20)
    assert changed_most(difference[:20, :30]) == (0, 0, 30, 20)


@pytest.mark.parametrize("channels", [1, 3])
def test_flips_are_the_crops_that_changed_most(channels: int) -> None:
    theirs = [np.clip(i, 40, 180) for i in natural_images(4, 100, 120, channels)]
    ours = [t.copy() for t in theirs]
    ours[0] += np.uint8(2)  # nobody sees it
    ours[1][3, 5] += np.uint8(40)
    ours[2][20:84, 50:114] += np.uint8(10)
    targets = [t + np.uint8(5) for t in theirs]
    candidate, reference, samples = case(ours, theirs, targets=targets)
    # no input is read: of latents there is none to see, and files may be gone
    sources = [Degraded(source=Path("gone.png"), recipe="noise:5")] * 4
    spec = ImageInput(height=100, width=120, resize="crop")
    flips = find_flips(candidate, reference, samples, sources, spec)
    assert [f.id for f in flips] == ["2.png", "1.png"]
    flip = flips[0]
    expected, told, difference = (opened(uri) for uri in flip.pictures)
    assert expected.shape == told.shape == difference.shape == (192, 192, 3)
    for picture, of in ((expected, theirs[2]), (told, ours[2])):
        crop = of[20:84, 50:114].repeat(3, axis=0).repeat(3, axis=1)
        assert np.array_equal(picture, np.broadcast_to(crop, picture.shape))
    assert (difference == 80).all()
    assert "shown from 50, 20 on" in flip.candidate_said and "10 at most" in flip.candidate_said
    assert "120 x 100 pixels, PSNR-Y" in flip.reference_said and "dB" in flip.reference_said
    assert opened(flips[1].pictures[2]).max() == 255, "40 steps, eight times as bright, are white"


def test_of_equal_images_nothing_is_shown_and_of_many_the_first_eight() -> None:
    theirs = natural_images(12, 30, 20)
    spec = ImageInput.latent(4)
    drawn = latents(spec, (), 12)
    assert find_flips(*case(theirs, theirs, half=Generate()), drawn, spec) == []
    ours = [np.clip(t, 0, 200) for t in theirs]
    ours = [o + np.uint8(3 + i) for i, o in enumerate(ours)]
    theirs = [np.clip(t, 0, 200) for t in theirs]
    flips = find_flips(*case(ours, theirs, half=Generate()), drawn, spec)
    assert [f.id for f in flips] == [f"{i}.png" for i in range(11, 3, -1)]
    assert opened(flips[0].pictures[0]).shape == (90, 60, 3), "all of a small image"
    assert len(find_flips(*case(ours, theirs, half=Generate()), drawn, spec, limit=2)) == 2


# -- the page --------------------------------------------------------------------------------------------------


def artefact(*findings: Finding) -> ArtifactReport:
    return ArtifactReport(name="int8", precision="int8", format="onnx", findings=findings, device="CPU")


def page(report: Report) -> str:
    text = render(report)
    assert "<html" in text
    return text


def test_the_page_says_what_is_shown_and_in_which_unit() -> None:
    theirs = natural_images(4, 80, 80)
    ours = [np.clip(t.astype(int) + 20 * (i % 2), 0, 255).astype(np.uint8) for i, t in enumerate(theirs)]
    candidate, reference, samples = case(ours, theirs, targets=[t ^ np.uint8(3) for t in theirs])
    judged = accuracy(candidate, reference, samples)
    flips = find_flips(candidate, reference, samples, [], ImageInput(height=80, width=80))
    report = Report(
        subject="sr", reference="PyTorch", samples="4 images", artifacts=[artefact(judged)], machine={}, flips=flips
    )
    text = page(report)
    assert "From left to right the reference, the candidate" in text
    assert "64 x 64 pixels that changed most, 3 times as large" in text and "8 times as bright" in text
    assert text.count("<figure class=crops>") == len(flips) == 2
    assert text.count("data:image/png") == 6
    assert "difference in PSNR-Y, dB, with its interval" in text and "points" not in text
    json.dumps(report.to_dict(), allow_nan=False)


def gate(name: str, verdict: str) -> Finding:
    figures = {"latency": {"ratio_p50": 1.0}}.get(name, {})
    return Finding(gate=name, verdict=verdict, message="", figures=figures)


@pytest.mark.parametrize(
    ("accuracy", "quality", "verdict", "status"),
    [
        ("not judged", "pass", "pass", "verified"),
        ("not judged", "fail", "fail", "built"),
        ("not judged", "inconclusive", "inconclusive", "built"),
        ("not judged", "", "not judged", "built"),
        ("pass", "", "pass", "verified"),
        ("fail", "pass", "fail", "built"),
    ],
)
def test_quality_takes_the_place_of_accuracy_where_no_image_is_the_right_one(
    accuracy: str, quality: str, verdict: str, status: str
) -> None:
    findings = [gate("numbers", "pass"), gate("accuracy", accuracy), gate("pixels", "pass"), gate("latency", "pass")]
    report = artefact(*findings, *([gate("quality", quality)] if quality else []))
    assert (report.verdict, report.status) == (verdict, status)


@pytest.mark.parametrize(
    ("pixels", "known", "status"), [("pass", 0, "verified"), ("fail", 0, "built"), ("pass", None, "built")]
)
def test_pixels_decide_of_a_users_images_that_have_neither_right_answers_nor_real_ones(
    pixels: str, known: int | None, status: str
) -> None:
    """Style: what it should be is what the trained network makes. Without any images of the user's nothing was proved."""
    asked = Finding(
        gate="accuracy", verdict="not judged", message="", figures={} if known is None else {"known": known}
    )
    report = artefact(gate("numbers", "pass"), asked, gate("pixels", pixels), gate("latency", "pass"))
    assert report.status == status


def test_quality_is_a_table_of_both() -> None:
    told = {"KID": 0.00123, "KID_interval_95": [0.001, 0.002], "FID": 12.5, "precision": 0.7, "extractor": "random"}
    ours = {**told, "KID": 0.00456}
    found = Finding(gate="quality", verdict="pass", message="fine", figures={"reference": told, "candidate": ours})
    skipped = Finding(gate="quality", verdict="not judged", message="no real images", figures={"margin": 0.1})
    for finding, words in ((found, ("0.00123", "0.00456", "0.001; 0.002", "KID interval 95", "random")), (skipped, ())):
        report = Report(subject="gan", reference="PyTorch", samples="-", artifacts=[artefact(finding)], machine={})
        text = page(report)
        assert all(word in text for word in words) and finding.message in text
