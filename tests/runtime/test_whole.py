"""Images of any size: whole and in tiles give the same, and no seam is to be seen."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from zoo.errors import BundleError, ImageError, ZooError
from zoo.reading import Picture
from zoo.runtime.ort import open_session
from zoo.runtime.predictor import Predictor
from zoo.runtime.tensorrt import api
from zoo.runtime.tensorrt.cuda import Device
from zoo.runtime.tensorrt.session import TensorRTSession, load_engine
from zoo.runtime.tiles import _weights
from zoo.runtime.whole import blocks, made_of
from zoo.specs import ImageInput
from zoo.tasks.pictures import PictureTask
from zoo.tasks.restore import Restore

RNG = np.random.default_rng(0)
COLOUR = ImageInput(height=32, width=32, resize="crop", mean=(0.0,) * 3, std=(1.0,) * 3)

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def whole(
    run: Run, image: np.ndarray, *, scale: int = 1, fixed: tuple[int, int] | None = None, **how: Any
) -> np.ndarray:
    """(C, H, W) to (C', H * scale, W * scale), of the parts that come; each pixel must come once. ``fixed``: the one
    size that the graph takes."""
    height, width = image.shape[1:]
    if fixed is not None:
        how["sizes"] = (fixed,) * 3
    result = np.empty((0, 0, 0), np.float32)
    seen = np.zeros((height * scale, width * scale), int)
    for top, left, part in blocks(
        run, lambda x0, y0, x1, y1: image[:, y0:y1, x0:x1].copy(), height, width, scale=scale, **how
    ):
        if not result.size:
            result = np.full((len(part), *seen.shape), np.nan, np.float32)
        down, across = slice(top, top + part.shape[1]), slice(left, left + part.shape[2])
        result[:, down, across] = part
        seen[down, across] += 1
    assert (seen == 1).all()
    return result


def reference(run: Run, image: np.ndarray, scale: int, multiple: int, tile: int, overlap: int) -> np.ndarray:
    """The same with everything held: the image filled up, all tiles in turn added to a result of its size."""
    height, width = image.shape[1:]
    high, wide = (max(tile, -(-side // multiple) * multiple) for side in (height, width))
    grown = np.pad(image, ((0, 0), (0, high - height), (0, wide - width)), "symmetric")
    starts = [[*range(0, side - tile, tile - overlap), side - tile] for side in (high, wide)]
    spans = [[(at * scale, (at + tile) * scale) for at in axis] for axis in starts]
    shares = []
    for axis, side in zip(spans, (high, wide), strict=True):
        total = np.zeros(side * scale, np.float32)
        for (start, end), weight in zip(axis, _weights(axis), strict=True):
            total[start:end] += weight
        shares.append([w / total[start:end] for (start, end), w in zip(axis, _weights(axis), strict=True)])
    result = np.zeros((len(image), high * scale, wide * scale), np.float32)
    for (top, bottom), down in zip(spans[0], shares[0], strict=True):
        for (left, right), across in zip(spans[1], shares[1], strict=True):
            y, x = top // scale, left // scale
            made = run(grown[None, :, y : y + tile, x : x + tile])["output"][0]
            result[:, top:bottom, left:right] += made * (down[:, None] * across)
    return result[:, : height * scale, : width * scale]


def blur(scale: int, reach: int) -> Run:
    """A network without weights: the mean over (2 reach + 1)^2 pixels, zeros beyond the border, each pixel repeated."""

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        padded = np.pad(batch, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
        h, w = batch.shape[2:]
        size = 2 * reach + 1
        total = sum(padded[:, :, i : i + h, j : j + w] for i in range(size) for j in range(size)) / size**2
        return {"output": np.asarray(total, np.float32).repeat(scale, axis=2).repeat(scale, axis=3)}

    return run


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("shape", [(70, 90), (64, 64), (33, 129), (65, 200)])
def test_tiles_equal_the_whole(scale: int, shape: tuple[int, int]) -> None:
    """The network reaches 3 pixels, tiles share 16: exact everywhere, at the image's border too."""
    image = RNG.standard_normal((3, *shape)).astype(np.float32)
    at_once = whole(blur(scale, 3), image, scale=scale)
    # a tile taller than the image is filled by reflection, which a border of zeros is not: compare where neither is seen
    tiled = whole(blur(scale, 3), image, scale=scale, fixed=(64, 64), overlap=16)
    assert at_once.shape == tiled.shape == (3, scale * shape[0], scale * shape[1])
    rim = 3 * scale
    np.testing.assert_allclose(tiled[:, rim:-rim, rim:-rim], at_once[:, rim:-rim, rim:-rim], atol=2e-6)


@pytest.mark.parametrize("multiple", [4, 8])
@pytest.mark.parametrize("overlap", [None, 18, 48])
def test_tiles_begin_where_a_network_that_halves_its_input_begins(multiple: int, overlap: int | None) -> None:
    """Each cell of ``multiple`` pixels becomes its mean: on another grid that is another image."""

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        n, c, h, w = batch.shape
        cells = batch.reshape(n, c, h // multiple, multiple, w // multiple, multiple).mean(axis=(3, 5))
        return {"output": cells.repeat(multiple, axis=2).repeat(multiple, axis=3)}

    image = RNG.random((1, 203, 331), np.float32)
    at_once = whole(run, image, multiple=multiple)
    np.testing.assert_allclose(
        whole(run, image, multiple=multiple, fixed=(64, 64), overlap=overlap), at_once, atol=1e-6
    )
    with pytest.raises(ZooError, match=f"tiles of 50x50 pixels: this network takes multiples of {multiple}"):
        whole(run, image, multiple=multiple, fixed=(50, 50))


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize(("tile", "overlap", "multiple"), [(32, 8, 1), (32, 24, 8), (40, 0, 8), (8, 0, 8)])
@pytest.mark.parametrize("shape", [(100, 130), (33, 65), (20, 47), (5, 3)])
def test_part_by_part_is_what_the_whole_array_holds(
    scale: int, tile: int, overlap: int, multiple: int, shape: tuple[int, int]
) -> None:
    """To the bit: parts are added in the same order. The network sees further than tiles share, and what lies beyond
    a tile is zero to it, so each tile says something else."""
    image = RNG.standard_normal((3, *shape)).astype(np.float32)
    made = whole(blur(scale, 6), image, scale=scale, multiple=multiple, fixed=(tile, tile), overlap=overlap)
    np.testing.assert_array_equal(made, reference(blur(scale, 6), image, scale, multiple, tile, overlap))


def enlarge(batch: np.ndarray) -> dict[str, np.ndarray]:
    return {"output": batch.repeat(2, axis=2).repeat(2, axis=3)}


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_an_image_in_and_an_image_out(limit: int) -> None:
    pixels = RNG.integers(0, 256, (300, 410, 3), np.uint8)
    for source in (pixels, Image.fromarray(pixels), Picture(pixels, COLOUR)):
        made = made_of(enlarge, source, COLOUR, Restore(scale=2), limit=limit)
        np.testing.assert_array_equal(made.pixels, pixels.repeat(2, axis=0).repeat(2, axis=1))
        assert made.box == (0, 0, 410, 300)


def test_a_large_result_is_held_in_8_bits_alone() -> None:
    pixels = RNG.integers(0, 256, (992, 1472, 3), np.uint8)  # of which no row of tiles is shifted inward
    tracemalloc.start()
    try:
        made = made_of(enlarge, pixels, COLOUR, Restore(scale=2), limit=0, sizes=((128, 128),) * 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.pixels.nbytes < peak < 1.5 * made.pixels.nbytes, f"{peak / made.pixels.nbytes:.2f} times the result"


def test_a_network_that_sees_further_than_tiles_share_leaves_hardly_a_step() -> None:
    """Three blurs after each other see 12 pixels far, but little there, as networks do; tiles are exact up to 9."""

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        for _ in range(3):
            batch = blur(1, 4)(batch)["output"]
        return {"output": batch}

    ramp = np.broadcast_to(np.linspace(0, 1, 200, dtype=np.float32), (1, 200, 200)).copy()
    steps = {o: np.abs(np.diff(whole(run, ramp, fixed=(64, 64), overlap=o)[0, 100]))[20:-20] for o in (0, 24)}
    assert steps[24].max() < 1.5 * np.median(steps[24]), "a seam is a jump between neighbours"
    assert steps[0].max() > 4 * np.median(steps[0]), "without an overlap there is one"


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (7, 3)])
@pytest.mark.parametrize("fixed", [None, (32, 32)])
def test_smaller_than_anything(shape: tuple[int, int], fixed: tuple[int, int] | None) -> None:
    image = np.full((3, *shape), 0.5, np.float32)
    made = whole(lambda batch: {"output": batch}, image, multiple=8, fixed=fixed)
    np.testing.assert_allclose(made, image, atol=1e-6)


def test_sides_are_filled_up_to_the_multiple_and_cut_again() -> None:
    seen = []

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(batch.shape)
        return {"output": batch}

    image = RNG.standard_normal((3, 13, 21)).astype(np.float32)
    np.testing.assert_array_equal(whole(run, image, multiple=8), image)
    assert seen == [(1, 3, 16, 24)]


def test_beyond_the_limit_an_open_graph_is_given_tiles() -> None:
    shapes = set()

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        shapes.add(batch.shape[2:])
        return {"output": batch}

    image = RNG.standard_normal((1, 600, 700)).astype(np.float32)
    np.testing.assert_allclose(whole(run, image, limit=1000, multiple=4), image, atol=1e-6)
    assert shapes == {(512, 512)}


@pytest.mark.parametrize(
    ("shape", "limit", "seen"),
    [
        ((64, 128), 1 << 20, (64, 128)),  # the largest
        ((30, 121), 1 << 20, (32, 128)),  # within, when the sides are filled up to the multiple
        ((129, 40), 1 << 20, (40, 80)),  # too high
        ((20, 20), 1 << 20, (40, 80)),  # smaller than the least
        ((64, 128), 100, (40, 80)),  # more pixels than are wanted at once
    ],
)
def test_a_graph_that_takes_a_range_of_sizes(shape: tuple[int, int], limit: int, seen: tuple[int, int]) -> None:
    """Whole within it, else tiles of the usual size, as far as the network's multiple divides that."""
    shapes = set()

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        shapes.add(batch.shape[2:])
        return {"output": batch}

    image = RNG.standard_normal((1, *shape)).astype(np.float32)
    sizes = ((32, 32), (44, 85), (64, 128))
    np.testing.assert_allclose(whole(run, image, multiple=8, sizes=sizes, limit=limit), image, atol=1e-6)
    assert shapes == {seen}


def test_faults_are_one_line() -> None:
    image = np.zeros((1, 100, 100), np.float32)
    with pytest.raises(ZooError, match="overlap 60: tiles of 64x64 pixels overlap by"):
        whole(lambda batch: {"output": batch}, image, fixed=(64, 64), overlap=60)

    def broken(batch: np.ndarray) -> dict[str, np.ndarray]:
        raise RuntimeError("shape mismatch\nsecond line")

    with pytest.raises(BundleError, match=r"does not run on 100x100 pixels: shape mismatch$"):
        whole(broken, image)


@pytest.mark.parametrize("fixed", [None, (64, 64)])
@pytest.mark.parametrize(("made", "said"), [(4, "1x256x256"), (2, "1x128x128")])
def test_a_graph_of_another_scale_than_its_bundle_says(fixed: tuple[int, int] | None, made: int, said: str) -> None:
    """A larger image would be cut to its upper left corner, and look like an answer."""
    with pytest.raises(
        BundleError, match=rf"makes {said} of 1x64x64, .* scale 3 says .* 192x192: export it again"
    ) as error:
        whole(blur(made, 0), np.zeros((1, 64, 64), np.float32), scale=3, fixed=fixed)
    assert "\n" not in str(error.value)
    with pytest.raises(BundleError, match="makes 2x64x64 of 3x64x64"):
        whole(lambda batch: {"output": batch[:, :2]}, np.zeros((3, 64, 64), np.float32), fixed=fixed)


# -- the predictor ---------------------------------------------------------------------------------------------------


class Doubling:
    """A session whose network repeats each pixel, and that takes a range of sizes as an engine does."""

    runtime, device, output_names = "test", "nowhere", ("output",)

    def __init__(self, sides: tuple[int | None, int | None], profile: Any = None) -> None:
        self.input_shape, self.profile = (None, 3, *sides), profile
        self.seen: set[tuple[int, ...]] = set()

    def run(self, batch: np.ndarray, outputs: Any = None) -> dict[str, np.ndarray]:
        self.seen.add(batch.shape[2:])
        return enlarge(batch)


def predictor(session: Any, half: PictureTask | None = None, spec: ImageInput = COLOUR) -> Predictor:
    manifest = {"outputs": [{"name": "output"}]}
    bundle: Any = SimpleNamespace(name="sharper", path="sharper", manifest=manifest, input=spec, labels=())
    half, choice = half or Restore(scale=2, multiple=8), SimpleNamespace(lost={})
    artifact: Any = SimpleNamespace(name="fp32")
    return Predictor(bundle=bundle, artifact=artifact, session=session, task=half, choice=choice)  # type: ignore[arg-type]


PROFILE = ((1, 3, 64, 64), (1, 3, 100, 100), (4, 3, 1600, 1600))


def test_an_engine_is_given_sizes_that_it_was_built_for() -> None:
    """Beyond a megapixel too: its largest size is what it has memory for."""
    for shape, seen in (
        ((40, 90), (96, 96)),
        ((70, 90), (72, 96)),
        ((1100, 1000), (1104, 1000)),
        ((64, 1700), (96, 96)),
    ):
        session = Doubling((None, None), PROFILE)
        pixels = RNG.integers(0, 256, (*shape, 3), np.uint8)
        np.testing.assert_array_equal(predictor(session)(pixels).pixels, pixels.repeat(2, axis=0).repeat(2, axis=1))
        assert session.seen == {seen}


def test_tiles_of_a_size_of_ones_own() -> None:
    pixels = RNG.integers(0, 256, (200, 150, 3), np.uint8)
    doubled = pixels.repeat(2, axis=0).repeat(2, axis=1)
    for sides, profile, tile, seen in (
        ((None, None), None, 64, 64),
        ((None, None), None, None, 512),
        ((None, None), PROFILE, 72, 72),
        ((None, None), PROFILE, None, 96),
        ((80, 80), None, None, 80),
        ((80, 80), None, 80, 80),
    ):
        session = Doubling(sides, profile)
        np.testing.assert_array_equal(predictor(session).tiled(pixels, tile=tile, overlap=8).pixels, doubled)
        assert session.seen == {(seen, seen)}
    with pytest.raises(BundleError, match="sharper takes 80x80 pixels, not tiles of 64x64: leave out the tile's size"):
        predictor(Doubling((80, 80))).tiled(pixels, tile=64)
    with pytest.raises(BundleError, match="sharper takes 64x64 to 1600x1600 pixels, not tiles of 40x40: give"):
        predictor(Doubling((None, None), PROFILE)).tiled(pixels, tile=40)


def test_a_real_session_says_its_sizes(fake_tensorrt: Any) -> None:
    """On the fake TensorRT: the engine refuses what its profile excludes, and is not asked for it."""
    shape = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["output"])],
        "identity",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    assert open_session(model, threads=1).profile is None
    library, device = api.need("tensorrt"), Device()
    built = api.build(library, model, profile={"image": ((1, 3, 16, 16), (1, 3, 32, 32), (1, 3, 48, 48))})
    pixels = RNG.integers(0, 256, (50, 40, 3), np.uint8)
    with TensorRTSession(library, load_engine(library, built.plan, device), device) as session:
        for part in (pixels, pixels[:48], pixels[:5, :5]):
            np.testing.assert_array_equal(predictor(session, Restore())(part).pixels, part)
    device.close()


def test_tiles_of_a_picture_beyond_pillows_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    pixels = RNG.integers(0, 256, (100, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    with pytest.raises(ImageError, match="larger than 5000 pixels: shrink or tile it first"):
        predictor(Doubling((None, None)))(tmp_path / "large.png")
    tiled = predictor(Doubling((None, None))).tiled(tmp_path / "large.png", tile=64)
    np.testing.assert_array_equal(tiled.pixels, pixels.repeat(2, axis=0).repeat(2, axis=1))


class Painting(Doubling):
    """Paints everything white."""

    def run(self, batch: np.ndarray, outputs: Any = None) -> dict[str, np.ndarray]:
        self.seen.add(batch.shape[2:])
        return {"output": np.ones_like(batch[:, :3])}


def test_a_hole_is_where_the_mask_is_white_or_the_image_transparent() -> None:
    pixels = RNG.integers(0, 200, (100, 90, 4), np.uint8)
    pixels[:, :, 3] = 255
    pixels[10:30, 20:50, 3] = 0
    mask = np.zeros((100, 90), np.uint8)
    mask[20:60, 40:80] = 255
    hole = (mask > 0) | (pixels[:, :, 3] == 0)
    wanted = np.where(hole[:, :, None], 255, pixels[:, :, :3])
    spec = ImageInput(height=32, width=32, channels=4, color="RGBA", resize="crop", mean=(0.0,) * 4, std=(1.0,) * 4)
    model = predictor(Painting((None, None)), Restore(holes=True), spec)
    np.testing.assert_array_equal(model(pixels, mask=mask).pixels, wanted)
    session = Painting((None, None))
    model = predictor(session, Restore(holes=True), spec)
    np.testing.assert_array_equal(model.tiled(pixels, tile=48, mask=mask).pixels, wanted)
    assert session.seen == {(48, 48)}
    with pytest.raises(ImageError, match="a mask is for one image"):
        model([pixels, pixels], mask=mask)
    with pytest.raises(ImageError, match="sharper fills no holes: leave out the mask"):
        predictor(Doubling((None, None))).tiled(pixels[:, :, :3], mask=mask)
