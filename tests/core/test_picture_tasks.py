"""The numpy halves whose networks make images: known pixels, figures against the literature and torchmetrics, placing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import Dataset, Sample
from zoo.data.degrading import Degraded
from zoo.data.targets import Picture
from zoo.errors import DataError, OutputError, UnknownName, ZooError
from zoo.inputs import frame, prepare
from zoo.parity.evidence import natural_images
from zoo.results import ImageResult
from zoo.specs import ImageInput
from zoo.tasks import measure, said, told
from zoo.tasks.classify import Classify
from zoo.tasks.generate import Generate, latents
from zoo.tasks.pictures import MOST_DB, PictureTask, luma, psnr, ssim
from zoo.tasks.restore import Restore
from zoo.tasks.translate import Translate

CROPPED = ImageInput(height=24, width=32, resize="crop", mean=(0, 0, 0), std=(1, 1, 1))


def made(pixels: np.ndarray, box: tuple[int, int, int, int] | None = None) -> ImageResult:
    return ImageResult(pixels=np.ascontiguousarray(pixels, np.uint8), box=box)


def data(*samples: tuple[object, object], labels: tuple[str, ...] = ()) -> Dataset:
    listed = tuple(Sample(id=f"{i}.png", image=image, target=target) for i, (image, target) in enumerate(samples))  # type: ignore[arg-type]
    return Dataset(samples=listed, labels=labels, split="val", root=Path("photos"), format="images")


def outputs(images: list[np.ndarray], spec: ImageInput) -> tuple[np.ndarray, list]:  # type: ignore[type-arg]
    """What a network of no layers makes of images: (N, C, H, W) shares of white, and their frames."""
    pairs = [prepare(image, spec) for image in images]
    return np.stack([tensor for tensor, _ in pairs]), [where for _, where in pairs]


# -- figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [1, 5, 51, 255])
def test_psnr_is_its_closed_form(off: int) -> None:
    black = np.zeros((8, 9, 3), np.uint8)
    assert psnr(black + np.uint8(off), black) == pytest.approx(20 * np.log10(255 / off), abs=1e-9)


def test_equal_images_have_the_most_that_is_told() -> None:
    image = natural_images(1, 20, 20)[0]
    nearly = image.astype(np.float64)
    nearly[0, 0, 0] += 1e-6
    assert psnr(image, image) == psnr(nearly, image) == MOST_DB


def test_psnr_of_half_wrong_pixels() -> None:
    theirs = np.zeros((10, 10, 1), np.uint8)
    ours = theirs.copy()
    ours[:5] = 10
    assert psnr(ours, theirs) == pytest.approx(10 * np.log10(255**2 / 50), abs=1e-9)


def test_luma_is_that_of_the_literature() -> None:
    colours = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luma(colours)[0] == pytest.approx([235, 16, 81.481, 144.553, 40.966], abs=1e-9)
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert np.array_equal(luma(grey), grey[:, :, 0])


@pytest.mark.parametrize(("height", "width", "noise"), [(40, 61, 5), (11, 11, 30), (33, 12, 80)])
def test_ssim_is_that_of_torchmetrics(height: int, width: int, noise: float) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.image")
    theirs = natural_images(1, height, width, 1, seed=height)[0][:, :, 0].astype(np.float64)
    ours = np.clip(theirs + noise * np.random.default_rng(0).normal(size=theirs.shape), 0, 255)
    a, b = (torch.from_numpy(np.pad(v, 5, mode="reflect"))[None, None] for v in (ours, theirs))
    _, full = functional.structural_similarity_index_measure(
        a, b, gaussian_kernel=True, sigma=1.5, kernel_size=11, data_range=255.0, return_full_image=True
    )
    # where the window needs nothing of what was put around the image
    known = full[0, 0].numpy()[10:-10, 10:-10]
    assert known.shape == (height - 10, width - 10)
    assert ssim(ours, theirs) == pytest.approx(float(known.mean()), abs=1e-7)


def test_ssim_of_equal_and_tiny_images() -> None:
    for shape in ((30, 30), (4, 7), (1, 1)):
        image = np.random.default_rng(1).uniform(0, 255, shape)
        assert ssim(image, image) == pytest.approx(1.0, abs=1e-12)
    assert ssim(np.full((4, 4), 255.0), np.zeros((4, 4))) < 0.001


def test_a_meter_tells_psnr_ssim_and_l1_of_the_judged() -> None:
    target = np.full((12, 12, 3), 100, np.uint8)
    results = [made(target + np.uint8(51)), made(target), made(target)]
    targets = [Picture(source=target), Picture(source=target), None]
    task = Translate()
    meter = task.meter(())
    meter.update(results[:1], targets[:1])
    other = task.meter(())
    other.update(results[1:], targets[1:])
    meter.merge(other)
    found = meter.compute()
    assert found["PSNR"] == pytest.approx((20 * np.log10(5) + 100) / 200, abs=1e-9)
    assert found["L1"] == pytest.approx(0.1, abs=1e-9)
    assert found["SSIM"] == pytest.approx((1 + ssim(luma(target + np.uint8(51)), luma(target))) / 2, abs=1e-9)
    assert found["images"] == 3


def test_without_targets_no_figure_is_told() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    for targets in ([None], [3]):  # a class is no image
        assert measure(Generate(), (), [made(image)], targets).compute() == {"images": 1, "classes": []}


def test_figures_are_told_in_their_units() -> None:
    assert said(Restore(), 0.37684) == "37.68 dB"
    assert said(Classify(), 0.931) == "93.10 %"
    assert told(Restore, "PSNR-Y", 0.37684) == "37.68 dB"
    assert told(Restore, "SSIM", 0.95) == "0.95"
    assert told(Generate, "KID", 0.00123456) == "0.0012346"
    assert told(Generate, "KID_interval_95", [0.001, 0.002]) == "0.001 to 0.002"
    assert told(Restore, "images", 5) == 5
    assert told(Classify, "macro F1", 0.5) == "50.00 %"


@pytest.mark.assets
@pytest.mark.parametrize(("scale", "decibels"), [(2, 33.67), (3, 30.41), (4, 28.43)])
def test_bicubic_on_set5_is_as_published(assets: Path, scale: int, decibels: float) -> None:
    """Through the task as a network would go: low and high files, luma, a rim of ``scale`` pixels left out."""
    half = Restore(scale=scale)
    folder = assets / "set5" / f"image_SRF_{scale}"
    files = sorted(folder.glob("*_LR.png"))
    assert len(files) == 5
    results, targets = [], []
    for file in files:
        with Image.open(file) as image:
            low = image.convert("RGB")
        large = low.resize((low.width * scale, low.height * scale), Image.Resampling.BICUBIC)
        results.append(made(np.asarray(large), (0, 0, *low.size)))
        targets.append(Picture(source=Path(str(file).replace("_LR", "_HR"))))
    pairs = data(*zip(files, targets, strict=True))
    assert half.samples(pairs, CROPPED, ()).samples == pairs.samples
    found = measure(half, (), results, targets).compute()
    assert 100 * found["PSNR-Y"] == pytest.approx(decibels, abs=0.05)
    assert found["PSNR-Y"] == pytest.approx(half.sample_scores(results, targets).mean(), abs=1e-12)


# -- from outputs to images ------------------------------------------------------------------------------------


def test_shares_of_white_become_pixels() -> None:
    values = np.array([-1e30, -0.1, 0, 0.4 / 255, 0.6 / 255, 0.5, 1, 1.5, np.inf, -np.inf, np.nan], np.float32)
    with np.errstate(all="raise"):
        pixels = PictureTask().pixels(values[None, None])
    assert pixels.shape == (1, 11, 1)
    assert pixels[0, :, 0].tolist() == [0, 0, 0, 0, 1, 128, 255, 255, 255, 0, 0]


@pytest.mark.parametrize("scale", [1, 3])
def test_decode_cuts_what_was_filled(scale: int) -> None:
    """A small image in the middle of the input: only what was made of it is the result, at the network's scale."""
    small, large = natural_images(1, 10, 12)[0], natural_images(1, 40, 50)[0]
    raw, frames = outputs([small, large], CROPPED)
    raw = raw.repeat(scale, axis=2).repeat(scale, axis=3)
    results = Restore(scale=scale).decode({"output": raw}, labels=(), frames=frames)
    assert [r.box for r in results] == [(0, 0, 12, 10), (9, 8, 41, 32)]
    for result, part in zip(results, (small, large[8:32, 9:41]), strict=True):
        assert np.array_equal(result.pixels, part.repeat(scale, axis=0).repeat(scale, axis=1))


def test_the_part_that_was_made_is_compared_with_that_part_of_the_target() -> None:
    low = natural_images(1, 40, 50)[0]
    high = low.repeat(2, axis=0).repeat(2, axis=1)
    raw, frames = outputs([low], CROPPED)
    half = Restore(scale=2)
    results = half.decode({"output": raw.repeat(2, axis=2).repeat(2, axis=3)}, labels=(), frames=frames)
    assert half.sample_scores(results, [Picture(source=high)]).tolist() == [MOST_DB / 100]
    assert half.sample_scores(results, [Picture(source=high[2:])])[0] < 0.5


def test_the_rim_is_left_out_where_an_image_was_enlarged() -> None:
    target = np.full((20, 20, 3), 60, np.uint8)
    result = target.copy()
    result[:2], result[:, :2], result[-2:], result[:, -2:] = (200,) * 4
    assert Restore(scale=2).sample_scores([made(result, (0, 0, 10, 10))], [Picture(source=target)])[0] == 1
    assert Restore().sample_scores([made(result, (0, 0, 20, 20))], [Picture(source=target)])[0] < 0.2


def test_what_was_squashed_gets_its_own_size_back() -> None:
    spec = ImageInput(height=32, width=32, resize="squash", mean=(0, 0, 0), std=(1, 1, 1))
    image = np.full((48, 90, 3), (200, 100, 50), np.uint8)
    raw, frames = outputs([image], spec)
    (result,) = Translate().decode({"output": raw}, labels=(), frames=frames)
    assert (result.width, result.height, result.box) == (90, 48, (0, 0, 90, 48))
    assert np.abs(result.pixels.astype(int) - image).max() <= 1
    assert Translate().sample_scores([result], [Picture(source=image)])[0] > 0.48


def test_letterboxed_fill_is_no_part_of_the_result() -> None:
    spec = ImageInput(height=32, width=32, resize="letterbox", mean=(0, 0, 0), std=(1, 1, 1), fill=(255, 0, 255))
    image = np.full((16, 64, 3), 90, np.uint8)
    raw, frames = outputs([image], spec)
    (result,) = Translate().decode({"output": raw}, labels=(), frames=frames)
    assert result.pixels.shape == (16, 64, 3)
    assert np.abs(result.pixels.astype(int) - 90).max() <= 1


def test_grey_networks_make_grey_images() -> None:
    raw = np.full((1, 1, 24, 32), 0.5, np.float32)
    (result,) = Restore().decode({"output": raw}, labels=(), frames=[frame(32, 24, CROPPED)])
    assert result.pixels.shape == (24, 32, 1)
    assert result.image().mode == "L"
    coloured = np.full((24, 32, 3), 128, np.uint8)
    assert Restore().sample_scores([result], [Picture(source=coloured)])[0] == 1


# -- restoring -------------------------------------------------------------------------------------------------


def test_good_images_are_damaged_the_same_way_every_time() -> None:
    good = natural_images(2, 31, 41)
    half = Restore(scale=2)
    first, again = (half.samples(data(*((g, None) for g in good)), CROPPED, ()) for _ in range(2))
    for sample, other, image in zip(first, again, good, strict=True):
        assert isinstance(sample.image, Degraded) and isinstance(sample.target, Picture)
        assert sample.image.size == (20, 15)
        assert np.array_equal(np.asarray(sample.image.read()), np.asarray(other.image.read()))  # type: ignore[union-attr]
        assert np.array_equal(sample.target.read(), image[:30, :40])
    assert [
        str(Restore(**k).settings["degrade"]) for k in ({"scale": 3}, {"holes": True}, {"degrade": "jpeg:30"}, {})
    ] == [
        "bicubic:3",
        "holes",
        "jpeg:30",
        "noise:25",
    ]


def test_a_network_of_another_scale_is_told_in_one_line() -> None:
    low, high = np.zeros((20, 30, 3), np.uint8), np.zeros((80, 120, 3), np.uint8)
    fours = data((low, Picture(source=high)))
    assert Restore(scale=4).samples(fours, CROPPED, ()).samples == fours.samples
    for half, word in ((Restore(scale=3), "enlarges 3 times"), (Translate(), "keeps the size")):
        with pytest.raises(DataError) as caught:
            half.samples(fours, CROPPED, ())
        line = str(caught.value)
        assert "0.png" in line and "30x20" in line and "120x80" in line and word in line
        assert "take a network that enlarges 4 times" in line and "\n" not in line
    odd = data((low, Picture(source=high[:79])))
    with pytest.raises(DataError, match="cut the second to fit"):
        Restore(scale=4).samples(odd, CROPPED, ())
    with pytest.raises(DataError, match=r"the target has 60x40 pixels .* makes 90x60"):
        Restore(scale=3).sample_scores(
            [made(np.zeros((60, 90, 3)), (0, 0, 30, 20))], [Picture(source=np.zeros((40, 60, 3), np.uint8))]
        )


def test_a_damage_of_another_scale_is_refused() -> None:
    with pytest.raises(DataError, match="shrinks by 2, the network enlarges by 3"):
        Restore(scale=3, degrade="bicubic:2").samples(data((np.zeros((30, 30, 3), np.uint8), None)), CROPPED, ())


@pytest.mark.parametrize("box", [None, (3, 2, 33, 22)])
def test_known_pixels_are_the_originals_to_the_bit(box: tuple[int, int, int, int] | None) -> None:
    rng = np.random.default_rng(0)
    pixels = natural_images(1, 24, 40)[0]
    known = rng.random((24, 40)) < 0.6
    image = Image.fromarray(np.dstack([pixels, np.where(known, 255, 0).astype(np.uint8)]))
    left, top, right, bottom = box or (0, 0, 40, 24)
    painted = made(rng.integers(0, 256, (bottom - top, right - left, 3)), box)
    result = Restore(holes=True).compose(image, painted)
    inside = known[top:bottom, left:right]
    assert 0 < inside.mean() < 1
    assert np.array_equal(result.pixels[inside], pixels[top:bottom, left:right][inside])
    assert np.array_equal(result.pixels[~inside], painted.pixels[~inside])
    assert result.box == box
    assert Restore().compose(image, painted) is painted
    assert Restore(holes=True).compose(image.convert("RGB"), painted) is painted


@pytest.mark.parametrize("mean", [0.5, 0.0])
def test_known_pixels_are_found_in_the_tensor_to_the_bit(mean: float) -> None:
    """As :func:`test_known_pixels_are_the_originals_to_the_bit`, of a small image in the middle and of a large one's middle."""
    spec = ImageInput(
        height=24, width=32, channels=4, color="RGBA", resize="crop",
        mean=(mean,) * 3 + (0.0,), std=(1 - mean,) * 3 + (1.0,),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    images = [np.dstack([i, rng.integers(0, 256, i.shape[:2])]).astype(np.uint8)
              for size in ((10, 12), (40, 50)) for i in natural_images(1, *size)]  # fmt: skip
    pairs = [prepare(Image.fromarray(image), spec) for image in images]
    tensor, frames = np.stack([t for t, _ in pairs]), [where for _, where in pairs]
    half = Restore(holes=True)
    painted = half.decode({"output": rng.random((2, 3, 24, 32), np.float32)}, labels=(), frames=frames)
    found = half.composed(painted, tensor, frames, spec)
    for ours, before, image in zip(found, painted, images, strict=True):
        wanted = half.compose(Image.fromarray(image), before)
        assert np.array_equal(ours.pixels, wanted.pixels) and ours.box == before.box
        assert not np.array_equal(ours.pixels, before.pixels)
    assert Restore().composed(painted, tensor, frames, spec) == painted


# -- generating ------------------------------------------------------------------------------------------------


def test_latents_depend_on_seed_and_place_alone() -> None:
    spec = ImageInput.latent(16)
    few, many = latents(spec, (), 3, seed=7), latents(spec, (), 40, seed=7)
    assert all(np.array_equal(a, b) for a, b in zip(few, many, strict=False))
    assert few[0].shape == (1, 1, 16) and few[0].dtype == np.float32
    assert not np.array_equal(few[0], few[1])
    assert not np.array_equal(few[0], latents(spec, (), 1, seed=8)[0])
    values = np.concatenate(latents(ImageInput.latent(64), (), 200)).ravel()
    assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.03
    tensor, _ = prepare(few[0], spec)
    assert np.array_equal(tensor[:, 0, 0], few[0][0, 0])


def test_latents_of_classes_are_one_hot() -> None:
    spec, labels = ImageInput.latent(8 + 3), ("cat", "dog", "hen")
    drawn = np.concatenate(latents(spec, labels, 7)).reshape(7, 11)
    assert np.array_equal(drawn[:, 8:], np.eye(3, dtype=np.float32)[np.arange(7) % 3])
    dogs = np.concatenate(latents(spec, labels, 7, label="dog")).reshape(7, 11)
    assert np.array_equal(dogs[:, 8:], np.tile([0, 1, 0], (7, 1)))
    assert np.array_equal(dogs[:, :8], drawn[:, :8]), "the same noise, another class"
    with pytest.raises(UnknownName, match="dgo"):
        latents(spec, labels, 1, label="dgo")
    with pytest.raises(ZooError, match="is told no classes: leave out the label 'dog'"):
        latents(spec, (), 1, label="dog")


def test_generators_are_judged_on_latents_beside_real_images() -> None:
    spec = ImageInput.latent(4 + 2)
    real = data(*((image, i % 2) for i, image in enumerate(natural_images(3, 8, 8))), labels=("a", "b"))
    found = Generate().samples(real, spec, ("a", "b"), 5)
    assert len(found) == 5 and found.others == real.samples
    assert found.targets == [None] * 5
    assert len({s.id for s in found}) == 5
    results = Generate().decode(
        {"output": np.zeros((5, 3, 8, 8), np.float32)}, labels=("a", "b"), frames=[frame(1, 1, spec)] * 5
    )
    assert [(r.width, r.height, r.box) for r in results] == [(8, 8, None)] * 5
    assert Generate().draw(Image.new("RGB", (1, 1)), results[0]).size == (8, 8)


# -- beside another network's ----------------------------------------------------------------------------------


def test_differences_are_in_steps_of_255() -> None:
    theirs = natural_images(2, 16, 16)
    theirs = [np.clip(t, 10, 200) for t in theirs]
    ours = [theirs[0], theirs[1].copy()]
    ours[1][:8] += 3
    task = Translate()
    found = task.differences([made(o) for o in ours], [made(t) for t in theirs])
    assert found["mean"] == pytest.approx(0.75)
    assert found["max"] == 3
    assert found["share_beyond_1"] == pytest.approx(0.25)
    assert found["worst_psnr_db"] == pytest.approx(10 * np.log10(255**2 / 4.5))
    assert found["psnr_db"] == pytest.approx((100 + found["worst_psnr_db"]) / 2)
    assert found["worst_ssim"] < 1 and found["ssim"] == pytest.approx((1 + found["worst_ssim"]) / 2)


def test_the_same_answer_is_one_that_nobody_can_tell_apart() -> None:
    image = np.full((6, 6, 3), 100, np.uint8)
    others = [image, image + np.uint8(2), image + np.uint8(3), image[:, :5]]
    assert Translate().same_answer([made(o) for o in others], [made(image)] * 4).tolist() == [True, True, False, False]


def test_results_travel_as_arrays() -> None:
    rng = np.random.default_rng(0)
    results = [
        made(rng.integers(0, 256, (5, 7, 3)), (1, 2, 8, 7)),
        made(rng.integers(0, 256, (4, 4, 1))),
        made(rng.integers(0, 256, (1, 9, 3)), (0, 0, 9, 1)),
    ]
    task = Translate()
    back = task.unpack(task.pack(results), ())
    for ours, theirs in zip(back, results, strict=True):
        assert np.array_equal(ours.pixels, theirs.pixels) and ours.box == theirs.box
        assert ours.to_dict() == theirs.to_dict()
    assert task.unpack(task.pack([]), ()) == []


# -- results ---------------------------------------------------------------------------------------------------


def test_before_and_after_stand_side_by_side() -> None:
    image = Image.fromarray(natural_images(1, 30, 40)[0])
    sheet = made(np.full((20, 20, 3), 7), (5, 5, 15, 15)).draw(image)
    assert sheet.size == (40, 20)
    pixels = np.asarray(sheet)
    assert (pixels[:, 20:] == 7).all()
    assert np.array_equal(pixels[::2, :20:2], np.asarray(image)[5:15, 5:15])


def test_an_image_is_saved_or_the_reason_told(tmp_path: Path) -> None:
    result = made(natural_images(1, 9, 11)[0])
    result.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert np.array_equal(np.asarray(image), result.pixels)
    for name in ("out.unknown", "nowhere/out.png"):
        with pytest.raises(OutputError, match="cannot be written"):
            result.save(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": 0}, "scale 0: it is a whole number from 1 on"),
        ({"multiple": 0}, "multiple 0: it is a whole number from 1 on"),
        ({"scale": 1.5}, "scale 1.5: it is a whole number"),
        ({"scale": "2"}, "scale '2': it is a whole number"),
        ({"holes": True, "scale": 2}, "filled at its own size: scale is 1, not 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ZooError, match=words):
        Restore(**settings)  # type: ignore[arg-type]


def test_settings_are_those_that_a_task_knows() -> None:
    assert Restore(**Restore(scale=2, multiple=4, degrade="area").settings).settings["scale"] == 2
    assert Translate(**Translate(multiple=4).settings).multiple == 4
    for task in (Translate, Restore, Generate):
        with pytest.raises(TypeError, match="colour"):
            task(colour="red")  # type: ignore[call-arg]
