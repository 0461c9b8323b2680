"""Augmentation, by drawing: what is painted must lie where the boxes and the class map say, whatever was drawn."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torchvision")

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from zoo.data.targets import VOID, Boxes
from zoo.errors import DataError
from zoo.geometry import boxes_to_input, map_to_input
from zoo.inputs import ImageInput, crop_resize, frame, resize
from zoo.parity.evidence import natural_images
from zoo.train.augment import MIN_SIDE, MIN_VISIBLE, JointAugment, default_joint_augment

SPEC = ImageInput(height=96, width=128, resize="letterbox", fill=(0, 0, 0))
RESIZES = ["letterbox", "squash", "shortest"]
COLOUR = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.4, "hue": 0.02}
GEOMETRY = {
    "jitter": JointAugment(scale=(0.5, 2.0)),
    "grow": JointAugment(scale=(1.5, 3.0)),
    "shrink": JointAugment(scale=(0.3, 0.6)),
    "flip": JointAugment(flip=True),
    "flip_vertical": JointAugment(flip_vertical=True),
    "rotate90": JointAugment(rotate90=True),
    "turns": JointAugment(flip=True, flip_vertical=True, rotate90=True),
    "mosaic": JointAugment(mosaic=1.0),
    "all": JointAugment(scale=(0.4, 2.0), flip=True, flip_vertical=True, rotate90=True, mosaic=0.5),
}
SIZES = [(200, 150), (90, 240), (60, 50), (128, 96)]
"""(width, height): larger and smaller than the input, wide and high, and the input's own."""


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng((3, 1, seed))


def painted(size: tuple[int, int], channel: int, seed: int) -> tuple[Image.Image, Boxes]:
    """A black image with one rectangle in one of its channels, and the rectangle as a box of that class."""
    width, height = size
    draw = rng(seed)
    w, h = (int(draw.integers(s // 4, s // 2)) for s in size)
    x, y = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y : y + h, x : x + w, channel] = 220
    return Image.fromarray(pixels), Boxes.of([(x, y, x + w, y + h)], [channel])


def outline(where: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def iou(a: Any, b: Any) -> float:
    inside = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(inside / (sum(areas) - inside))


def check_boxes(pixels: np.ndarray, target: Boxes, level: float, largest: float) -> int:
    """Every box lies around paint of its channel, and paint without a box is less than the rule's share of an object
    of ``largest`` pixels."""
    rest = pixels > level
    for box, kind in zip(target.boxes, target.classes, strict=True):
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        inside = np.zeros(pixels.shape[:2], bool)
        inside[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1] = True
        around = outline(rest[:, :, kind] & inside)
        assert np.abs(np.subtract(around, box)).max() <= 1.5
        assert iou(around, box) > (0.9 if min(x1 - x0, y1 - y0) >= 20 else 0.5)
        rest[:, :, kind] &= ~inside
    for channel in range(3):
        if rest[:, :, channel].any():
            x0, y0, x1, y1 = outline(rest[:, :, channel])
            assert min(x1 - x0, y1 - y0) <= MIN_SIDE + 1 or rest[:, :, channel].sum() < MIN_VISIBLE * largest
    return len(target)


# -- boxes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize_by", RESIZES)
@pytest.mark.parametrize("what", GEOMETRY)
def test_boxes_follow_what_is_painted(what: str, resize_by: str) -> None:
    spec = replace(SPEC, resize=resize_by)
    # one channel an image: paint of several in a mosaic is told apart
    samples = [painted(size, k % 3, k) for k, size in enumerate(SIZES[:3] * 2)]
    found = 0
    for seed in range(40):
        image, target = GEOMETRY[what](seed % 6, samples.__getitem__, spec, rng(seed), 6)
        pixels = np.asarray(image)
        assert pixels.shape == (96, 128, 3) and pixels.dtype == np.uint8
        assert target.boxes.dtype == np.float32
        assert (target.boxes >= 0).all() and (target.boxes <= (128, 96, 128, 96)).all()
        if what not in ("mosaic", "all"):
            width, height = SIZES[seed % 3]
            where = frame(width, height, spec)
            shape = np.divide(np.subtract(where.place[2:], where.place[:2]), np.subtract(where.box[2:], where.box[:2]))
            if what in ("rotate90", "turns"):  # sideways it may come out larger
                shape = np.maximum(shape, shape[::-1]) * max(width / height, height / width)
            area = np.prod(samples[seed % 6][1].boxes[0, 2:] - samples[seed % 6][1].boxes[0, :2])
            largest = float(area * shape.prod()) * GEOMETRY[what].scale[1] ** 2
            found += check_boxes(pixels, target, 110, largest)
        else:  # two images of a mosaic may have the same channel, and touch: every box by itself
            for box, kind in zip(target.boxes, target.classes, strict=True):
                x0, y0, x1, y1 = (round(float(v)) for v in box)
                assert (pixels[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1, kind] > 110).all()
                found += 1
    assert found > (20 if what != "grow" else 10)


def test_colours_leave_boxes_where_they_are() -> None:
    """All at once: red, green and blue are still told apart, and lie in their boxes."""
    augment = JointAugment(scale=(0.6, 1.6), flip=True, rotate90=True, **COLOUR)
    samples = [painted(size, k, k) for k, size in enumerate(SIZES[:3])]
    changed = found = 0
    for seed in range(30):
        image, target = augment(seed % 3, samples.__getitem__, SPEC, rng(seed), 3)
        pixels = np.asarray(image).astype(int)
        for channel, box in zip(target.classes, target.boxes, strict=True):
            others = np.delete(pixels, channel, axis=2).max(axis=2)
            around = outline((pixels[:, :, channel] > 60) & (pixels[:, :, channel] > 1.8 * others))
            assert iou(around, box) > 0.85
            changed += abs(int(pixels[:, :, channel].max()) - 220) > 10
            found += 1
    assert found >= 20
    assert changed >= 10


def test_mixup_keeps_the_boxes_of_both() -> None:
    augment = JointAugment(mixup=1.0, scale=(0.8, 1.2), flip=True)
    samples = [painted(size, k, k) for k, size in enumerate(SIZES[:3])]
    both = 0
    for seed in range(30):
        image, target = augment(seed % 3, samples.__getitem__, SPEC, rng(seed), 3)
        pixels = np.asarray(image)
        assert len(target) == 2
        if target.classes[0] != target.classes[1]:
            both += check_boxes(pixels, target, 30, 0)
            tops = [int(pixels[:, :, c].max()) for c in target.classes]
            assert sum(tops) == pytest.approx(220, abs=2)  # the two shares are of one
            assert min(tops) > 22
    assert both >= 20


def test_mosaic_shows_four_images_around_a_point() -> None:
    grey = [(Image.new("RGB", (100, 80), (50 + 40 * k,) * 3), Boxes.of([(0, 0, 100, 80)], [k])) for k in range(4)]
    augment = JointAugment(mosaic=1.0, scale=(1.2, 1.2))  # so large that each fills its part
    centres = set()
    shown: list[int] = []
    for seed in range(40):
        image, target = augment(1, grey.__getitem__, SPEC, rng(seed), 4)
        pixels = np.asarray(image)[:, :, 0]
        corners = [pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]]
        assert 90 in corners  # the image that was asked for is among them
        shown += [int(c) for c in corners]
        x0, y0, x1, y1 = target.boxes[0].astype(int).tolist()
        x, y = x1 if x0 == 0 else x0, y1 if y0 == 0 else y0
        parts = [pixels[:y, :x], pixels[:y, x:], pixels[y:, :x], pixels[y:, x:]]
        for part, corner in zip(parts, corners, strict=True):
            assert (part == corner).all()
        assert 0.25 <= x / 128 <= 0.75 and 0.25 <= y / 96 <= 0.75
        centres.add((x, y))
    assert len(centres) > 30
    assert set(shown) == {50, 90, 130, 170}


def test_what_is_hardly_left_of_a_box_is_dropped() -> None:
    """The rule, for each of many boxes over a cut image, from the views' own geometry."""
    draw = rng(0)
    corners = draw.uniform(0, 190, (400, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(1, 60, (400, 2))], axis=1).clip(0, 200).astype(np.float32)
    sample = (Image.new("RGB", (200, 200)), Boxes.of(boxes, np.arange(400), np.arange(400) % 7 == 0))
    augment = JointAugment(scale=(1.0, 4.0))
    dropped = kept = 0
    for seed in range(5):
        _, target = augment(0, lambda _: sample, SPEC, rng(seed), 1)
        view = augment._view(200, 200, SPEC, (0, 0, 128, 96), rng(seed))
        whole = view.boxes(boxes)
        left, top, right, bottom = view.frame.place
        cut = whole.clip((left, top, left, top), (right, bottom, right, bottom))
        for at in range(400):
            sides = cut[at, 2:] - cut[at, :2]
            enough = sides.prod() >= MIN_VISIBLE * (whole[at, 2:] - whole[at, :2]).prod() and sides.min() >= MIN_SIDE
            assert (at in target.classes) == enough
            dropped, kept = dropped + (not enough), kept + enough
        np.testing.assert_array_equal(target.boxes, cut[target.classes])
        np.testing.assert_array_equal(target.ignore, target.classes % 7 == 0)
    assert dropped > 300 and kept > 300


# -- class maps ----------------------------------------------------------------------------------------------------

PAINT = np.array([(10, 10, 10), (230, 20, 20), (20, 230, 20), (20, 20, 230)], np.uint8)


def mapped(size: tuple[int, int], seed: int) -> tuple[Image.Image, np.ndarray]:
    """Blobs of four classes without any symmetry, and the image painted from them."""
    coarse = natural_images(1, size[1] // 12, size[0] // 12, 1, seed)[0][:, :, 0]
    field = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    classes = np.searchsorted(np.quantile(field, (0.4, 0.6, 0.8)), field).astype(np.uint8)
    return Image.fromarray(PAINT[classes]), classes


def blurred_edges(classes: np.ndarray) -> np.ndarray:
    """Where a class meets another within three pixels: there resampling mixes the paint."""
    edge = np.zeros(classes.shape, bool)
    edge[1:] |= classes[1:] != classes[:-1]
    edge[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    for _ in range(3):
        edge[1:] |= edge[:-1]
        edge[:-1] |= edge[1:]
        edge[:, 1:] |= edge[:, :-1]
        edge[:, :-1] |= edge[:, 1:]
    return edge


@pytest.mark.parametrize("resize_by", RESIZES)
@pytest.mark.parametrize("what", GEOMETRY)
def test_class_maps_follow_what_is_painted(what: str, resize_by: str) -> None:
    spec = replace(SPEC, resize=resize_by, fill=(255, 0, 255))
    samples = [mapped(size, k) for k, size in enumerate(SIZES)]
    compared = 0
    for seed in range(24):
        image, classes = GEOMETRY[what](seed % 4, samples.__getitem__, spec, rng(seed), 4)
        pixels = np.asarray(image)
        assert classes.shape == (96, 128) and classes.dtype == np.uint8
        np.testing.assert_array_equal(classes == VOID, (pixels == (255, 0, 255)).all(axis=2))
        sure = (classes != VOID) & ~blurred_edges(classes)
        nearest = np.abs(pixels[sure][:, None].astype(int) - PAINT).sum(axis=2).argmin(axis=1)
        if sure.any():
            assert (nearest == classes[sure]).mean() > 0.995
        compared += int(sure.sum())
    assert compared > 24 * 80


def test_a_shifted_map_would_be_seen() -> None:
    """The control of the test above."""
    image, classes = JointAugment(flip=True)(0, lambda _: mapped((200, 150), 0), SPEC, rng(0), 1)
    for wrong in (np.roll(classes, 8, axis=1), classes[:, ::-1], classes[::-1]):
        sure = (wrong != VOID) & ~blurred_edges(wrong)
        nearest = np.abs(np.asarray(image)[sure][:, None].astype(int) - PAINT).sum(axis=2).argmin(axis=1)
        assert (nearest == wrong[sure]).mean() < 0.97


def test_mixup_refuses_class_maps() -> None:
    with pytest.raises(DataError, match="a class map cannot say so"):
        JointAugment(mixup=1.0)(0, lambda _: mapped((40, 30), 0), SPEC, rng(0), 1)


# -- torchvision's own geometry ------------------------------------------------------------------------------------


def theirs(view: Any, sample: Any, size: tuple[int, int], spec: ImageInput) -> Any:
    """The whole sample turned, resized, cut, padded and mirrored by torchvision."""
    height, width = (view.frame.height, view.frame.width)
    left, top, right, bottom = view.frame.place
    x0, y0, x1, y1 = view.frame.box
    scaled = round(height * (bottom - top) / (y1 - y0)), round(width * (right - left) / (x1 - x0))
    for _ in range(view.quarters):  # against the clock: transpose, then mirror top and bottom
        sample = F.rotate(sample, 90, expand=True)
    how = {} if isinstance(sample, tv_tensors.BoundingBoxes) else {"interpolation": F.InterpolationMode.NEAREST_EXACT}
    if isinstance(sample, tv_tensors.Image):
        how = {"antialias": True}
    sample = F.resize(sample, list(scaled), **how)
    off = round(x0 * scaled[1] / width), round(y0 * scaled[0] / height)
    sample = F.crop(sample, off[1], off[0], bottom - top, right - left)
    sample = F.horizontal_flip(sample) if view.mirror else sample
    sample = F.vertical_flip(sample) if view.upside else sample
    return F.pad(sample, [left, top, spec.width - right, spec.height - bottom], fill=VOID)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_geometry_is_torchvisions(size: tuple[int, int]) -> None:
    augment = GEOMETRY["all"]
    image, classes = mapped(size, 5)
    draw = rng(9)
    corners = draw.uniform(0, 0.8, (20, 2)) * size
    boxes = np.concatenate([corners, corners + draw.uniform(0.05, 0.2, (20, 2)) * size], axis=1).astype(np.float32)
    tv_boxes = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=(size[1], size[0]))
    tv_mask, tv_image = tv_tensors.Mask(classes), tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    seen = set()
    for seed in range(60):
        view = augment._view(*size, SPEC, (0, 0, 128, 96), rng(seed))
        seen.add((view.quarters, view.mirror, view.upside))
        left, top, right, bottom = view.frame.place
        cut = view.boxes(boxes).clip((left, top, left, top), (right, bottom, right, bottom))
        there = theirs(view, tv_boxes, size, SPEC)
        assert there.canvas_size == (96, 128)
        np.testing.assert_allclose(cut, there.numpy(), atol=2e-3)
        part, box = view.source()
        ours = view.turned(np.asarray(Image.fromarray(classes).resize(part, Image.Resampling.NEAREST, box=box)))
        wanted = theirs(view, tv_mask, size, SPEC).numpy()[top:bottom, left:right]
        # a sample that falls on the border of two pixels may be either's
        assert ((ours == wanted) | blurred_edges(wanted)).all()
        assert (ours == wanted).mean() > 0.9
        drawn = view.turned(np.asarray(crop_resize(image, part, box, SPEC))).astype(int)
        there = theirs(view, tv_image, size, SPEC).numpy().transpose(1, 2, 0)[top:bottom, left:right]
        assert np.abs(drawn - there).mean() < 0.5
        assert (np.abs(drawn - there) <= 3).mean() > 0.98  # torchvision does not look beyond the cut
    assert len(seen) == 16


# -- all off, all kinds of images, all seeds -----------------------------------------------------------------------


@pytest.mark.parametrize("resize_by", RESIZES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nothing_on_is_preprocessing(size: tuple[int, int], resize_by: str) -> None:
    spec = replace(SPEC, resize=resize_by, crop=0.9 if resize_by != "letterbox" else 1.0)
    assert not JointAugment()
    where = frame(*size, spec)
    image, classes = mapped(size, 1)
    boxes = Boxes.of([(0, 0, 3, 4), (-5, -5, 500, 500), (7.5, 8.5, 8, 9)], [0, 1, 2])
    for target in (classes, boxes):
        found, moved = JointAugment()(0, lambda _, target=target: (image, target), spec, rng(0), 1)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(resize(image, spec)))
        if target is boxes:
            np.testing.assert_array_equal(moved.boxes, boxes_to_input(boxes.boxes, where))
            np.testing.assert_array_equal(moved.classes, [0, 1, 2])
        else:
            np.testing.assert_array_equal(moved, map_to_input(classes, where, 96, 128, VOID))
    # a mirroring alone is that of preprocessing's picture, at its place
    mirrored = JointAugment(flip=True)
    left, top, right, bottom = where.place
    plain = np.asarray(resize(image, spec))
    flipped = plain.copy()
    flipped[top:bottom, left:right] = plain[top:bottom, left:right][:, ::-1]
    for seed in range(6):
        drawn = np.asarray(mirrored(0, lambda _: (image, classes), spec, rng(seed), 1)[0])
        assert np.array_equal(drawn, plain) or np.array_equal(drawn, flipped)


def kinds() -> dict[str, tuple[Any, ImageInput]]:
    photo = natural_images(1, 60, 90, 3, seed=3)[0]
    alpha = np.dstack([photo, np.full(photo.shape[:2], 77, np.uint8)])
    unit = np.full((4,), 0.3), np.full((4,), 0.2)
    return {
        "L": (Image.fromarray(photo).convert("L"), SPEC.with_channels(1)),
        "RGB": (Image.fromarray(photo), SPEC),
        "BGR": (Image.fromarray(photo), replace(SPEC, color="BGR")),
        "RGBA": (Image.fromarray(alpha), SPEC.with_channels(4)),
        "one band": (photo[:, :, :1], replace(SPEC.with_channels(1), color="bands")),
        "four bands": (alpha, replace(SPEC.with_channels(4), color="bands")),
        "nine bands": (np.dstack([photo] * 3), SPEC.with_channels(9)),
        "16 bits": (photo.astype(np.uint16) * 257, replace(SPEC, pixel="uint16")),
        "16 bits grey": (photo[:, :, :1].astype(np.uint16) * 257, replace(SPEC.with_channels(1), pixel="uint16")),
        "16 bits alpha": (alpha.astype(np.uint16) * 257, replace(SPEC.with_channels(4), pixel="uint16")),
        "float": (alpha * np.float32(0.1) - 9, replace(SPEC.with_channels(4), color="bands", pixel="float32")),
        "float colours": (photo / np.float32(255), replace(SPEC, pixel="float32", mean=tuple(unit[0][:3]))),
    }


EVERYTHING = JointAugment(scale=(0.5, 2.0), flip=True, flip_vertical=True, rotate90=True, mosaic=0.4, **COLOUR)


@pytest.mark.parametrize("what", kinds())
@pytest.mark.parametrize("target", ["boxes", "no boxes", "map"])
def test_every_kind_of_image(what: str, target: str) -> None:
    image, spec = kinds()[what]
    truth: Any = {
        "boxes": Boxes.of([(10, 10, 70, 50)], [0]),
        "no boxes": Boxes.of([], []),
        "map": np.zeros((60, 90), np.uint8),
    }[target]
    augment = EVERYTHING if target == "map" else replace(EVERYTHING, mixup=0.4)
    different = set()
    for seed in range(12):
        found, moved = augment(0, lambda _: (image, truth), spec, rng(seed), 1)
        pixels = np.asarray(found)
        assert pixels.shape == (96, 128, spec.channels)
        assert pixels.dtype == spec.pixel
        assert np.isfinite(pixels).all()
        different.add(pixels.tobytes())
        if target == "map":
            assert set(np.unique(moved)) <= {0, VOID}
        else:
            assert moved.boxes.shape == (len(moved), 4)
    assert len(different) == 12


def test_alpha_and_range_survive_the_colours() -> None:
    for what in ("RGBA", "16 bits alpha"):
        image, spec = kinds()[what]
        level = 77 if what == "RGBA" else 77 * 257
        sample = (image, Boxes.of([], []))
        found, _ = JointAugment(**COLOUR)(0, lambda _, s=sample: s, replace(spec, resize="squash"), rng(1), 1)
        assert (np.asarray(found)[:, :, 3] == level).all()
    image, spec = kinds()["float"]
    negative, _ = JointAugment(contrast=0.5)(0, lambda _: (image, Boxes.of([], [])), spec, rng(1), 1)
    assert negative.min() < -3  # a measurement is not cut at zero


@pytest.mark.parametrize("what", ["16 bits", "float colours"])
def test_deep_colours_change_as_eight_bits_do(what: str) -> None:
    """The arrays' way against Pillow's, for the same draws."""
    image, spec = kinds()[what]
    shallow = Image.fromarray(natural_images(1, 60, 90, 3, seed=3)[0])
    colour = COLOUR if what == "16 bits" else COLOUR | {"hue": 0.0, "brightness": 0.1, "contrast": 0.0}
    for seed in range(4):
        augment = JointAugment(**colour)
        deep, _ = augment(0, lambda _: (image, Boxes.of([], [])), spec, rng(seed), 1)
        wanted, _ = augment(0, lambda _: (shallow, Boxes.of([], [])), SPEC, rng(seed), 1)
        difference = np.abs(np.asarray(deep) / spec.peak * 255 - np.asarray(wanted).astype(float))
        assert difference.mean() < 6  # contrast is about each band's mean, and about that of the grey image
        still, _ = JointAugment()(0, lambda _: (shallow, Boxes.of([], [])), SPEC, rng(seed), 1)
        assert np.abs(np.asarray(wanted).astype(float) - np.asarray(still)).mean() > 2 * difference.mean() or seed


def test_what_is_drawn_depends_on_seed_epoch_and_image_alone() -> None:
    samples = [(Image.fromarray(p), Boxes.of([(5, 5, 60, 40)], [k])) for k, p in enumerate(natural_images(8, 60, 80))]
    augment = replace(EVERYTHING, mixup=0.5)

    def one(at: tuple[int, int, int]) -> tuple[bytes, bytes]:
        image, boxes = augment(at[2], samples.__getitem__, SPEC, np.random.default_rng(at), 8)
        return np.asarray(image).tobytes(), boxes.boxes.tobytes()

    places = [(seed, epoch, index) for seed in range(2) for epoch in range(2) for index in range(8)]
    states = torch.get_rng_state().clone(), np.random.get_state()[1].copy()
    alone = [one(at) for at in places]
    torch.manual_seed(5)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, reversed(places)))[::-1] == alone
    assert len(set(alone)) == len(places)
    torch.set_rng_state(states[0])
    one(places[0])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def test_probabilities_are_kept() -> None:
    image = Image.fromarray(natural_images(1, 96, 128, 3, seed=8)[0])
    plain, mirrored = np.asarray(image), np.asarray(image)[:, ::-1]
    shown = [
        np.asarray(JointAugment(flip=True)(0, lambda _: (image, Boxes.of([], [])), SPEC, rng(seed), 1)[0])
        for seed in range(200)
    ]
    assert all(np.array_equal(s, plain) or np.array_equal(s, mirrored) for s in shown)
    assert 70 < sum(np.array_equal(s, mirrored) for s in shown) < 130
    read: list[int] = []

    def sample(at: int) -> tuple[Image.Image, Boxes]:
        read.append(at)
        return image, Boxes.of([], [])

    for seed in range(200):
        JointAugment(mosaic=0.3)(0, sample, SPEC, rng(seed), 9)
    assert 35 < (len(read) - 200) / 3 < 90
    assert set(read) == set(range(9))


def test_records_go_through_json_and_are_checked() -> None:
    for task in ("detect", "segment"):
        for spec in (SPEC, SPEC.with_channels(1), SPEC.with_channels(6), replace(SPEC, pixel="float32")):
            augment = default_joint_augment(task, spec)
            assert augment
            assert JointAugment(**json.loads(json.dumps(asdict(augment)))) == augment
            assert (augment.mosaic > 0) == (task == "detect")
            assert augment.rotate90 == (spec.color == "bands")
            assert bool(augment.brightness) == (spec.pixel == "uint8")
    off = replace(EVERYTHING, mixup=0.5).without_mosaic()
    assert off.mosaic == off.mixup == 0
    assert replace(off, mosaic=EVERYTHING.mosaic) == EVERYTHING
    for wrong, words in (
        ({"scale": (2.0, 1.0)}, "the smaller first"),
        ({"scale": (0.0, 1.0)}, "0.01..100"),
        ({"mosaic": 1.5}, "mosaic lies in 0..1, not 1.5"),
        ({"hue": 0.6}, "hue lies in 0..0.5"),
    ):
        with pytest.raises(ValueError, match=words):
            JointAugment(**wrong)
