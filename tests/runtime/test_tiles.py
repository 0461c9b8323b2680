"""Tiled inference: that it covers everything, equals the whole image at once, and puts cut objects together."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper, numpy_helper

import zoo.runtime
from zoo.errors import BundleError, ImageError, ZooError
from zoo.files import dump_json, sha256_file
from zoo.inputs import normalise, prepare
from zoo.parity.evidence import natural_images
from zoo.results import Detections
from zoo.runtime.predictor import Predictor
from zoo.runtime.tiles import _joined, _weights, predict_tiled, tiles
from zoo.specs import ImageInput

# -- tiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (31, 200), (32, 32), (33, 40), (100, 75), (640, 97)], ids=str)
@pytest.mark.parametrize(("tile", "overlap"), [(32, 0), (32, 8), (32, 24), ((48, 20), 5)], ids=str)
def test_tiles_cover_the_image_and_stay_inside(
    size: tuple[int, int], tile: int | tuple[int, int], overlap: int
) -> None:
    width, height = size
    wide, high = (tile, tile) if isinstance(tile, int) else tile
    times = np.zeros((height, width), int)
    boxes = tiles(width, height, tile, overlap)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left, bottom - top) == (min(wide, width), min(high, height))
        times[top:bottom, left:right] += 1
    assert times.min() == 1
    assert len(set(boxes)) == len(boxes)
    for (l0, t0, r0, _), (l1, t1, _, _) in pairwise(boxes):
        if t0 == t1:
            assert r0 - l1 >= min(overlap, width) and l1 > l0


def test_impossible_overlaps_are_refused() -> None:
    for overlap in (-1, 25, 32):
        with pytest.raises(ZooError, match=r"tiles of 32x32 pixels overlap by 0\.\.24"):
            tiles(100, 100, 32, overlap)


# -- bundles of hand-written graphs --------------------------------------------------------------------------------


def bundle(
    folder: Path, task: str, spec: ImageInput, nodes: list[Any], weights: dict[str, np.ndarray], shapes: dict[str, Any]
) -> Predictor:
    """A bundle around a graph from ``image`` to the outputs of ``shapes``, opened."""
    graph = helper.make_graph(
        nodes,
        task,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shapes.pop("image"))],
        [
            helper.make_tensor_value_info(n, TensorProto.UINT8 if n == "classes" else TensorProto.FLOAT, s)
            for n, s in shapes.items()
        ],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    entry = {"name": "fp32", "format": "onnx", "precision": "fp32", "file": "model.onnx", "status": "built"}
    manifest = {
        "schema": 1,
        "name": "test",
        "made_by": "test",
        "task": task,
        "input": spec.to_dict(),
        "outputs": [{"name": n, "dtype": "float32", "shape": list(s)} for n, s in shapes.items()],
        "labels": ["background", "ant", "bee"] if task == "segment" else ["ant", "bee"],
        "artifacts": [entry],
        "default": "fp32",
        "files": {
            "model.onnx": {
                "bytes": (folder / "model.onnx").stat().st_size,
                "sha256": sha256_file(folder / "model.onnx"),
            }
        },
    }
    dump_json(folder / "zoo.json", manifest)
    return zoo.runtime.load(folder, threads=1)


SPEC = ImageInput(height=64, width=64, resize="letterbox", interpolation="bilinear")
REACH = 6


def segmenter(folder: Path, spec: ImageInput = SPEC, *, fixed: bool = False, stride: int = 1) -> Predictor:
    """Two convolutions of 7 x 7, which reach REACH pixels to each side; with a ``stride`` on the shrunken image, and a
    skip connection, as that of a U-Net, which only takes multiples of it."""
    rng = np.random.default_rng(0)
    weights = {
        "w0": (rng.normal(size=(8, spec.channels, 7, 7)) / 12).astype(np.float32),
        "b0": np.zeros(8, np.float32),
        "w1": (rng.normal(size=(3, 8, 7, 7)) / 6).astype(np.float32),
    }
    for name in ("w0", "w1"):  # answer to structure, so that no class is everywhere
        weights[name] -= weights[name].mean(axis=(1, 2, 3), keepdims=True)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c"], pads=[3] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w1"], ["y"], pads=[3] * 4),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["classes"], to=TensorProto.UINT8),
    ]
    if stride == 1:
        for node in nodes:
            node.input[:] = ["image" if n == "x" else n for n in node.input]
            node.output[:] = ["logits" if n == "y" else n for n in node.output]
    else:
        weights["up"] = np.array([1, 1, stride, stride], np.float32)
        weights["w2"] = (rng.normal(size=(3, spec.channels, 1, 1)) / 20).astype(np.float32)
        pool = helper.make_node("AveragePool", ["image"], ["x"], kernel_shape=[stride] * 2, strides=[stride] * 2)
        grow = helper.make_node(
            "Resize",
            ["y", "", "up"],
            ["grown"],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )
        skip = helper.make_node("Conv", ["image", "w2"], ["skip"])
        both = helper.make_node("Add", ["grown", "skip"], ["logits"])
        nodes = [pool, *nodes[:3], grow, skip, both, *nodes[3:]]
    high, wide = (spec.height, spec.width) if fixed else ("height", "width")
    shapes = {
        "image": ["batch", spec.channels, high, wide],
        "logits": ["batch", 3, high if stride == 1 else None, wide if stride == 1 else None],
        "classes": ["batch", high if stride == 1 else None, wide if stride == 1 else None],
    }
    return bundle(folder, "segment", spec, nodes, weights, shapes)


def at_once(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """(K, H, W) logits of the whole image at its own pixels."""
    spec = replace(predictor.input, height=image.shape[0], width=image.shape[1])
    return predictor.session.run(normalise(image, spec)[None])["logits"][0]


def clear(logits: np.ndarray) -> np.ndarray:
    """(H, W) bool: where the first class leads by more than rounding."""
    first, second = np.sort(logits, axis=0)[:-3:-1]
    return np.asarray(first - second > 1e-4)


@pytest.fixture(scope="module")
def open_segmenter(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return segmenter(tmp_path_factory.mktemp("tiles") / "segment")


# -- class maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(150, 230), (64, 64), (65, 200), (64, 300)], ids=str)
@pytest.mark.parametrize(("tile", "overlap"), [(None, 16), (64, 17), (64, 40), (50, 16)], ids=str)
def test_tiled_is_the_whole_image_at_once(
    open_segmenter: Predictor, size: tuple[int, int], tile: int | None, overlap: int
) -> None:
    """Where the reach is at most 3/8 of the overlap: everywhere."""
    image = natural_images(1, *size, seed=1)[0]
    wanted = at_once(open_segmenter, image)
    found = predict_tiled(open_segmenter, image, tile=tile, overlap=overlap)
    assert found.classes.shape == size
    assert found.labels == ("background", "ant", "bee")
    sure = clear(wanted)
    assert sure.mean() > 0.99
    assert len(set(wanted.argmax(axis=0)[sure].tolist())) == 3
    np.testing.assert_array_equal(found.classes[sure], wanted.argmax(axis=0)[sure])


def blends(length: int, tile: int, overlap: int) -> np.ndarray:
    """(length,) bool: the middle quarters of the overlaps."""
    found = np.zeros(length, bool)
    spans = tiles(length, 1, (tile, tile), overlap)
    for (_, _, end, _), (start, _, _, _) in pairwise(spans):
        middle, half = (start + end) / 2, (end - start) / 8
        found[int(np.floor(middle - half)) : int(np.ceil(middle + half))] = True
    return found


def test_a_narrower_overlap_differs_only_where_it_is_said_to(open_segmenter: Predictor) -> None:
    """Reach 6, overlap 13 (the receptive field): off only in the blended quarters. Overlap 4: only within the reach."""
    image = natural_images(1, 150, 230, seed=2)[0]
    wanted = at_once(open_segmenter, image)
    sure = clear(wanted)
    exact = predict_tiled(open_segmenter, image, overlap=13).classes
    blended = blends(150, 64, 13)[:, None] | blends(230, 64, 13)
    assert (exact == wanted.argmax(axis=0))[sure & ~blended].all()
    narrow = predict_tiled(open_segmenter, image, overlap=4).classes
    near = np.zeros((150, 230), bool)
    for left, top, right, bottom in tiles(230, 150, 64, 4):
        for edge in (left, right):
            if edge not in (0, 230):
                near[:, max(0, edge - REACH) : edge + REACH] = True
        for edge in (top, bottom):
            if edge not in (0, 150):
                near[max(0, edge - REACH) : edge + REACH] = True
    wrong = (narrow != wanted.argmax(axis=0)) & sure
    assert not wrong[~near].any()
    assert wrong.sum() > 20  # the control: the test can tell


@pytest.mark.parametrize("length", [65, 100, 150, 230, 400])
@pytest.mark.parametrize("overlap", [0, 1, 5, 16, 48])
def test_weights_leave_a_tile_at_its_border_and_miss_no_pixel(length: int, overlap: int) -> None:
    spans = [(left, right) for left, _, right, _ in tiles(length, 1, (64, 64), overlap)]
    total = np.zeros(length)
    for (start, end), weights in zip(spans, _weights(spans), strict=True):
        assert weights.dtype == np.float32 and (weights >= 0).all() and (weights <= 1).all()
        total[start:end] += weights
        margin = int(3 / 8 * overlap)
        assert not weights[:margin].any() or start == 0
        assert not weights[64 - margin :].any() or end == length
    if (length - 64) % (64 - overlap) == 0:
        np.testing.assert_allclose(total, 1, atol=1e-6)
    assert (total > 1 - 1e-6).all() and (total < 1.26).all()  # the last tile may blend with the last but two


def test_a_network_that_halves_needs_tiles_at_its_step(tmp_path: Path) -> None:
    """Steps of 108 are multiples of 4, and 344 = 128 + 2 * 108: equal to the whole image. Steps of 109 are not."""
    predictor = segmenter(tmp_path, stride=4)
    image = natural_images(1, 128, 344, seed=3)[0]
    wanted = at_once(predictor, image)
    sure = clear(wanted)
    far = slice(108 + 20 + 4 * REACH, 216 - 4 * REACH)  # of the middle tile, beyond its reach from any border
    for overlap, equal in ((20, True), (19, False)):
        found = predict_tiled(predictor, image, tile=128, overlap=overlap)
        assert (found.classes == wanted.argmax(axis=0))[:, far][sure[:, far]].all() == equal
    with pytest.raises(BundleError, match=r"does not run on a tile of 62x62: .* takes multiples of 2\^n"):
        predict_tiled(predictor, image, tile=62, overlap=8)


@pytest.mark.parametrize("size", [(40, 30), (20, 200), (63, 64)], ids=str)
def test_small_images_are_padded_as_letterbox_does_and_cut_back(
    open_segmenter: Predictor, size: tuple[int, int]
) -> None:
    image = natural_images(1, *size, seed=4)[0]
    found = predict_tiled(open_segmenter, image, overlap=16).classes
    assert found.shape == size
    if max(size) <= 64:
        spec = replace(SPEC, height=64, width=64)
        # letterbox would enlarge it: place it by hand where letterbox would place one of this size
        left, top = (64 - size[1]) // 2, (64 - size[0]) // 2
        canvas = np.empty((64, 64, 3), np.uint8)
        canvas[...] = [round(255 * m) for m in spec.mean]
        canvas[top : top + size[0], left : left + size[1]] = image
        wanted = open_segmenter.session.run(prepare(canvas, spec)[0][None])["classes"][0]
        np.testing.assert_array_equal(found, wanted[top : top + size[0], left : left + size[1]])


def test_deep_bands_are_read_by_tiles(tmp_path: Path) -> None:
    spec = ImageInput(height=64, width=64, channels=5, color="bands", mean=(0.5,) * 5, std=(0.2,) * 5, pixel="uint16")
    predictor = segmenter(tmp_path / "bundle", spec)
    image = natural_images(1, 100, 130, 5, seed=5)[0].astype(np.uint16) * 257
    np.save(tmp_path / "a.npy", image)
    wanted = at_once(predictor, image)
    for source in (image, tmp_path / "a.npy"):
        found = predict_tiled(predictor, source, overlap=16)
        assert (found.classes == wanted.argmax(axis=0))[clear(wanted)].all()


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A strip of 3000 x 688 pixels: the answer, the shared rows of probabilities, and some tiles; no whole image."""
    predictor = segmenter(tmp_path / "bundle")
    np.save(tmp_path / "a.npy", np.tile(natural_images(1, 86, 100, seed=1)[0], (8, 30, 1)))
    tracemalloc.start()
    found = predict_tiled(predictor, tmp_path / "a.npy", overlap=16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    answer, shared, tile = 3000 * 688, 4 * 3 * 3000 * 16, 4 * 3 * 64 * 64
    assert found.classes.nbytes == answer
    assert peak < answer + shared + 30 * tile
    assert peak < 0.8 * 3000 * 688 * 3


# -- objects -------------------------------------------------------------------------------------------------------

TRUTH = ImageInput(
    height=64,
    width=64,
    channels=6,
    color="bands",
    resize="letterbox",
    mean=(0.0,) * 6,
    std=(1.0,) * 6,
    pixel="float32",
)
"""Two bands of scores, four of how far an object's borders are: a perfect detector only has to read them."""


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Tells of each pixel's object what a network can know of it: its box as far as the tile shows it."""
    side = 64
    y, x = np.divmod(np.arange(side * side, dtype=np.float32), side)
    weights = {
        "grid": np.stack([x, y, x, y], axis=1)[None],
        "sign": np.array([-1, -1, 1, 1], np.float32),
        "flat": np.array([0, 6, side * side], np.int64),
        "split": np.array([2, 4], np.int64),
        "low": np.array(0, np.float32),
        "high": np.array(side, np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["f"]),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Split", ["t", "split"], ["scores", "away"], axis=2),
        helper.make_node("Mul", ["away", "sign"], ["signed"]),
        helper.make_node("Add", ["signed", "grid"], ["whole"]),
        helper.make_node("Clip", ["whole", "low", "high"], ["boxes"]),
    ]
    shapes = {
        "image": ["batch", 6, side, side],
        "boxes": ["batch", side * side, 4],
        "scores": ["batch", side * side, 2],
    }
    return bundle(tmp_path_factory.mktemp("tiles") / "detect", "detect", TRUTH, nodes, weights, shapes)


def scene(size: tuple[int, int], boxes: list[tuple[int, int, int, int]], kinds: list[int]) -> np.ndarray:
    """(H, W, 6) float32 for the detector; an object scores 0.8, a little more in the middle."""
    image = np.zeros((*size, 6), np.float32)
    for (left, top, right, bottom), kind in zip(boxes, kinds, strict=True):
        y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
        part = image[top:bottom, left:right]
        middle = np.minimum(np.minimum(x - left, right - x), np.minimum(y - top, bottom - y))
        part[:, :, kind] = 0.8 + 0.1 * middle / max(right - left, bottom - top)
        part[:, :, 2:] = np.stack([x - left, y - top, right - x, bottom - y], axis=2)
    return image


def scattered(size: tuple[int, int], largest: int, seed: int) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """Objects that do not overlap, of any place and shape."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(size, bool)
    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(300):
        h, w = (int(v) for v in rng.integers(7, largest, 2))
        top, left = (int(rng.integers(0, max(1, s - n))) for s, n in zip(size, (h, w), strict=True))
        bottom, right = min(size[0], top + h), min(size[1], left + w)
        if not taken[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1].any():
            taken[top:bottom, left:right] = True
            boxes.append((left, top, right, bottom))
    return boxes, [int(v) for v in rng.integers(0, 2, len(boxes))]


def test_tiles_are_counted(open_segmenter: Predictor, detector: Predictor) -> None:
    for predictor, image in ((open_segmenter, natural_images(1, 64, 112)[0]), (detector, scene((64, 112), [], []))):
        told: list[tuple[int, int]] = []
        predict_tiled(predictor, image, overlap=16, progress=lambda *done, told=told: told.append(done))
        total = len(tiles(112, 64, (predictor.input.width, predictor.input.height), 16))
        assert total > 1
        assert told == [(at + 1, total) for at in range(total)]


@pytest.mark.parametrize("overlap", [16, 32])
@pytest.mark.parametrize("largest", [14, 60, 180])
@pytest.mark.parametrize("seed", range(4))
def test_every_object_is_told_once_and_whole(detector: Predictor, overlap: int, largest: int, seed: int) -> None:
    """Smaller than the overlap, larger than it, and larger than a tile."""
    boxes, kinds = scattered((230, 310), largest, seed)
    found = predict_tiled(detector, scene((230, 310), boxes, kinds), overlap=overlap)
    assert (found.width, found.height) == (310, 230)
    assert (np.diff(found.scores) <= 0).all()
    told = sorted(
        (*box, kind) for box, kind in zip(found.boxes.round().astype(int).tolist(), found.classes.tolist(), strict=True)
    )
    assert told == sorted((*box, kind) for box, kind in zip(boxes, kinds, strict=True))
    assert len(told) > (3 if largest == 180 else 20)


def test_without_the_rule_objects_would_come_in_pieces(detector: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: suppression alone leaves the pieces of cut objects."""
    boxes, kinds = scattered((230, 310), 60, 0)
    monkeypatch.setattr("zoo.runtime.tiles._cut", lambda boxes, *_: np.zeros(len(boxes), bool))
    assert len(predict_tiled(detector, scene((230, 310), boxes, kinds), overlap=16)) > len(boxes) + 10


def test_neighbours_of_a_class_are_not_joined(detector: Predictor) -> None:
    """Two objects meet at x = 56, in the middle of an overlap (48..64): each tile sees one whole, the other cut."""
    boxes = [(20, 10, 56, 40), (56, 10, 100, 40), (20, 45, 100, 60)]
    for kinds in ([0, 0, 0], [0, 1, 0]):
        found = predict_tiled(detector, scene((64, 112), boxes, kinds), overlap=16)
        assert sorted(map(tuple, found.boxes.round().astype(int).tolist())) == sorted(boxes)


def join(*of_tiles: list[tuple[float, float, float, float, float, int]]) -> list[tuple[float, ...]]:
    """Boxes (x0, y0, x1, y1, score, class) of tiles of 64 that begin at 0, 48, 96, …, put together."""
    areas = [(48 * k, 0, 48 * k + 64, 64) for k in range(len(of_tiles))]
    parts = [
        Detections(
            boxes=np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
            scores=np.array([row[4] for row in rows], np.float32),
            classes=np.array([row[5] for row in rows], np.int64),
            labels=("ant", "bee"),
            width=areas[-1][2],
            height=64,
        )
        for rows in of_tiles
    ]
    boxes, scores, classes = _joined(parts, areas, areas[-1][2], 64)
    return sorted(
        (*b, round(s, 3), c) for b, s, c in zip(boxes.tolist(), scores.tolist(), classes.tolist(), strict=True)
    )


def test_detectors_are_not_exact() -> None:
    """The rule, on boxes as networks give them."""
    # a piece that sticks out of the whole by a little is no part of it: the whole stays as its tile saw it
    assert join([(51, 9, 63, 42, 0.9, 0)], [(52, 11, 90, 40, 0.7, 0)]) == [(52, 11, 90, 40, 0.7, 0)]
    # two pieces of an object that no tile saw whole become one, with the better score
    assert join([(10, 10, 64, 40, 0.6, 0)], [(48, 11, 90, 41, 0.8, 0)]) == [(10, 10, 90, 41, 0.8, 0)]
    # of two classes they are two
    two = [(10, 10, 64, 40, 0.6, 0), (48, 11, 90, 41, 0.8, 1)]
    assert join(two[:1], two[1:]) == two
    # a small object on a large one that is cut: within the shared pixels they are not alike
    large, small = (5, 5, 64, 60, 0.9, 0), (50, 20, 60, 30, 0.8, 0)
    assert join([large, small], [(48, 5, 100, 60, 0.7, 0), small]) == [(5, 5, 100, 60, 0.9, 0), small, small]
    # where one piece is of an object that was seen whole, the pieces that belong to that piece are too
    for whole in ((50, 9, 100, 41, 0.7, 0), (58, 9, 109, 41, 0.7, 0)):
        pieces = [(20, 10, 64, 40, 0.9, 0)], [(48, 10, 112, 40, 0.8, 0), whole], [(96, 10, 140, 40, 0.6, 0)]
        assert join(*pieces) == [whole]
    # a piece that no other tile confirms is told as it is
    assert join([(30, 10, 64, 40, 0.9, 0)], []) == [(30, 10, 64, 40, 0.9, 0)]
    assert join([], []) == []


def test_images_without_objects_and_small_ones(detector: Predictor) -> None:
    assert len(predict_tiled(detector, np.zeros((200, 90, 6), np.float32), overlap=16)) == 0
    small = predict_tiled(detector, scene((40, 30), [(5, 6, 20, 30)], [1]), overlap=16)
    np.testing.assert_allclose(small.boxes, [(5, 6, 20, 30)])
    assert small.classes.tolist() == [1]
    touching = predict_tiled(detector, scene((40, 100), [(0, 0, 100, 40)], [1]), overlap=16)
    np.testing.assert_allclose(touching.boxes, [(0, 0, 100, 40)])


# -- what cannot be done -------------------------------------------------------------------------------------------


def test_a_graph_of_one_size_says_how_to_get_another(tmp_path: Path, detector: Predictor) -> None:
    predictor = segmenter(tmp_path, fixed=True)
    image = natural_images(1, 100, 90, seed=6)[0]
    assert predict_tiled(predictor, image, overlap=16).classes.shape == (100, 90)
    assert predict_tiled(predictor, image, tile=64, overlap=16).classes.shape == (100, 90)
    for each in (predictor, detector):
        with pytest.raises(
            BundleError, match=r"takes 64x64 pixels and no others, not tiles of 96x96: .*--dynamic-size"
        ):
            predict_tiled(each, image, tile=96, overlap=16)


def test_impossible_wishes_are_one_line(open_segmenter: Predictor, tiny_bundle: Path, tmp_path: Path) -> None:
    image = natural_images(1, 100, 90, seed=6)[0]
    with pytest.raises(ZooError, match=r"overlap 64: tiles of 64x64 pixels overlap by 0\.\.48"):
        predict_tiled(open_segmenter, tmp_path / "never opened.jpg", overlap=64)
    with pytest.raises(ZooError, match=r"tiles of 0 pixels: .*height and width lie in 1\.\.16384"):
        predict_tiled(open_segmenter, image, tile=0, overlap=0)
    with pytest.raises(ZooError, match="for the task classify: tiles are for segment and detect"):
        predict_tiled(zoo.runtime.load(tiny_bundle), image, overlap=4)
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        predict_tiled(open_segmenter, tmp_path / "gone.jpg", overlap=16)


def test_what_is_too_large_at_once_goes_by_tiles(
    open_segmenter: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = natural_images(1, 150, 230, seed=7)[0]
    Image.fromarray(image).save(tmp_path / "large.png")
    wanted = predict_tiled(open_segmenter, image).classes
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10000)
    with pytest.raises(ImageError, match="tile it first"):
        open_segmenter(tmp_path / "large.png")
    np.testing.assert_array_equal(predict_tiled(open_segmenter, tmp_path / "large.png").classes, wanted)
    assert Image.MAX_IMAGE_PIXELS == 10000
