"""zoo-detect's own YOLO and FastestDet: their parts against known answers, the whole against real weights, the kit."""

from __future__ import annotations

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

timm = pytest.importorskip("timm")

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from zoo.artifacts import Artifact
from zoo.builtin import DETECT
from zoo.errors import UnknownName, ZooError
from zoo.inputs import preprocess
from zoo.specs import Architecture
from zoo.tasks.nms import box_ious, suppress
from zoo.testing import ArchitectureTests, give_signal, probe
from zoo.train.detect import Deployable
from zoo_detect import fastestdet, plugin
from zoo_detect.boxes import Objects, giou, iou, pad
from zoo_detect.labels import coco80
from zoo_detect.yolo import network as yolo
from zoo_detect.yolo.assigner import CELLS, assign
from zoo_detect.yolo.head import BINS, boxes_of, cells, distances_of
from zoo_detect.yolo.loss import distribution_loss, quality_loss

Target = dict[str, Tensor]


def nano(classes: int = 3, channels: int = 3) -> yolo.Yolo:
    torch.manual_seed(0)
    return yolo.build(num_classes=classes, in_channels=channels, backbone="mobilenetv2_100", width=96, depth=1)


def fastest(classes: int = 3, channels: int = 3) -> fastestdet.FastestDet:
    torch.manual_seed(0)
    return fastestdet.build(num_classes=classes, in_channels=channels)


BUILDS = pytest.mark.parametrize("build", [nano, fastest], ids=["yolo-nano", "fastestdet"])


def objects(*rows: tuple[float, float, float, float, int]) -> Target:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return {"boxes": table[:, :4], "classes": table[:, 4].long()}


NOTHING = objects()
FEW = objects((8, 10, 50, 60, 0), (30, 4, 62, 40, 2))
MANY = objects(
    (2, 2, 20, 20, 1), (10, 12, 40, 44, 0), (30, 30, 63, 63, 2), (44, 3, 52, 14, 1), (33.5, 35.5, 36.5, 37.5, 0)
)


# -- the parts ---------------------------------------------------------------------------------------------------------


def some_boxes(count: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw, dtype=torch.float64) * 40
    return torch.cat([corner, corner + torch.rand(count, 2, generator=draw, dtype=torch.float64) * 30 + 1], dim=1)


def test_overlaps_are_torchvisions() -> None:
    a, b = some_boxes(40, 0), some_boxes(30, 1)
    torch.testing.assert_close(iou(a[:, None], b), box_iou(a, b), atol=1e-8, rtol=0)
    torch.testing.assert_close(1 - giou(a[:30], b), generalized_box_iou_loss(a[:30], b), atol=1e-7, rtol=0)
    assert float(giou(a[:30], b).min()) < -0.1, "some boxes must lie apart"


def test_overlaps_of_empty_boxes_are_finite() -> None:
    point = torch.tensor([5.0, 5, 5, 5], requires_grad=True)
    total = iou(point, point.detach()) + giou(point, point.detach())
    total.backward()
    assert bool(torch.isfinite(total)) and bool(torch.isfinite(point.grad).all())  # type: ignore[arg-type]


def test_padding_keeps_every_object_and_marks_the_rest() -> None:
    padded = pad([FEW, NOTHING, MANY], torch.device("cpu"))
    assert padded.boxes.shape == (3, 5, 4)
    assert padded.real.sum(dim=1).tolist() == [2, 0, 5]
    for i, target in enumerate((FEW, NOTHING, MANY)):
        assert torch.equal(padded.boxes[i, padded.real[i]], target["boxes"])
        assert torch.equal(padded.classes[i, padded.real[i]], target["classes"])
    assert pad([NOTHING, NOTHING], torch.device("cpu")).real.tolist() == [[False], [False]]


def test_assigner_on_a_scene_worked_out_by_hand() -> None:
    """Four cells in a row; a box over the first two, and one over the last three. A second image without objects."""
    centres = torch.tensor([[4.0, 4], [12, 4], [20, 4], [28, 4]])
    scene = Objects(
        boxes=torch.tensor([[[0.0, 0, 16, 8], [8, 0, 32, 8], [0, 0, 32, 8]]]).repeat(2, 1, 1),
        classes=torch.tensor([[0, 1, 0]]).repeat(2, 1),
        real=torch.tensor([[True, True, False], [False, False, False]]),
    )
    # IoU with the first object 1/2 and 1, with the second 1/4 (of the second cell), 3/4 and 1/2
    boxes = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 16, 8], [8, 0, 26, 8], [20, 0, 32, 8]]]).repeat(2, 1, 1)
    scores = torch.tensor([[[0.8, 0.1], [0.5, 0.9], [0.1, 0.4], [0.2, 0.6]]]).repeat(2, 1, 1)
    found = assign(scores, boxes, centres, scene)
    # the second cell is in both boxes and covers the first better, though the other's score is higher
    assert found.objects[0].tolist() == [0, 0, 1, 1]
    first, last = 0.8 * 0.5**6 / 0.5, 0.6 * 0.5**6 / (0.4 * 0.75**6)
    torch.testing.assert_close(found.share[0], torch.tensor([first, 1, 1, last]))
    torch.testing.assert_close(found.quality[0], torch.tensor([first, 1, 0.75, last * 0.75]))
    assert not found.quality[1].any() and not found.share[1].any()


def test_assigner_keeps_its_rules_in_a_crowd() -> None:
    draw = torch.Generator().manual_seed(0)
    raw = nano()(torch.zeros(1, 3, 128, 128))
    centres, _ = cells(raw, torch.float32)
    count = len(centres)
    truth = some_boxes(6, 2).float() * 1.6
    boxes = some_boxes(3 * count, 3).float().reshape(3, count, 4) * 1.6
    scores = torch.rand(3, count, 2, generator=draw)
    classes = torch.randint(0, 2, (6,), generator=draw)
    targets = [{"boxes": truth[:n], "classes": classes[:n]} for n in (6, 1, 3)]
    together = assign(scores, boxes, centres, pad(targets, torch.device("cpu")))
    for i, target in enumerate(targets):
        alone = assign(scores[i : i + 1], boxes[i : i + 1], centres, pad([target], torch.device("cpu")))
        assert torch.equal(together.quality[i], alone.quality[0]), "padding changed an assignment"
        answers = alone.share[0] > 0
        assert answers.any()
        for index, box in enumerate(target["boxes"]):
            mine = answers & (alone.objects[0] == index)
            assert int(mine.sum()) <= CELLS
            assert bool(((centres[mine] >= box[:2]) & (centres[mine] <= box[2:])).all())


def test_a_box_between_the_cells_is_not_lost() -> None:
    centres = torch.tensor([[4.0, 4], [12, 4], [4, 12], [12, 12]])
    boxes = torch.cat([centres - 4, centres + 4], dim=1)[None]
    tiny = pad([objects((6, 6, 8, 8, 0))], torch.device("cpu"))
    found = assign(torch.full((1, 4, 1), 0.5), boxes, centres, tiny)
    assert found.share[0].tolist() == [1, 0, 0, 0]


def test_distances_come_back_from_their_distribution() -> None:
    """Boxes, as distances between two bins, decoded: the same boxes."""
    raw = nano()(torch.zeros(2, 3, 64, 96))
    centres, strides = cells(raw, torch.float32)
    truth = torch.tensor([3.0, 5, 90, 61]).expand(2, len(centres), 4)
    sides = (truth - centres.repeat(1, 2)) * torch.tensor([-1.0, -1, 1, 1]) / strides
    within = (sides >= 0).all(dim=2) & (sides <= BINS - 1).all(dim=2)
    lower = sides.clamp(0, BINS - 1.001).floor()
    logits = torch.full((*sides.shape, BINS), -1e4)
    logits.scatter_(3, lower.long()[..., None], torch.log(1 - (sides - lower))[..., None].clamp(min=-1e4))
    logits.scatter_(3, lower.long()[..., None] + 1, torch.log(sides - lower)[..., None].clamp(min=-1e4))
    decoded = boxes_of(distances_of(logits), centres, strides)
    assert float(within.float().mean()) > 0.5
    torch.testing.assert_close(decoded[within], truth[within], atol=1e-4, rtol=0)


def test_cells_lie_on_the_grid_in_the_order_of_the_maps() -> None:
    network = nano(classes=2)
    raw = network(torch.zeros(1, 3, 64, 96))
    centres, strides = cells(raw, torch.float32)
    assert [(strides == s).sum().item() for s in (8, 16, 32)] == [96, 24, 6]
    assert centres[0].tolist() == [4, 4] and centres[1].tolist() == [12, 4] and centres[12].tolist() == [4, 12]
    assert centres[96].tolist() == [8, 8] and centres[-1].tolist() == [80, 48]
    # a mark on one cell of the middle map arrives at that cell's place
    marked = [(logits.clone(), boxes) for logits, boxes in raw]
    marked[1][0][0, 1, 2, 5] = 9.0
    _, scores = network.decode(tuple(marked))
    at = int(scores[0, :, 1].argmax())
    assert centres[at].tolist() == [5 * 16 + 8, 2 * 16 + 8]


def test_fresh_networks_say_little_and_start_four_strides_wide() -> None:
    network = nano().eval()
    with torch.no_grad():
        raw = network(probe(plugin.YOLO[0].input.with_size(64), 2))
        boxes, scores = network.decode(raw)
    _, strides = cells(raw, torch.float32)
    assert 0.005 < float(scores.mean()) < 0.02
    torch.testing.assert_close(
        (boxes[..., 2:] - boxes[..., :2]) / strides, torch.full((2, 84, 2), 4.0), atol=0.4, rtol=0
    )


def test_distribution_loss_is_the_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    bins = torch.randn(5, BINS, generator=draw, dtype=torch.float64)
    distances = [0.0, 0.25, 7.5, 14.9, 15.0]
    found = distribution_loss(bins, torch.tensor(distances, dtype=torch.float64))
    for row, y, value in zip(bins, distances, found, strict=True):
        p = torch.exp(row) / torch.exp(row).sum()
        i = min(int(y), BINS - 2)
        expected = -((i + 1 - y) * math.log(p[i]) + (y - i) * math.log(p[i + 1]))
        assert float(value) == pytest.approx(expected, abs=1e-9)
    beyond = distribution_loss(bins[:1], torch.tensor([99.0], dtype=torch.float64))
    torch.testing.assert_close(beyond, distribution_loss(bins[:1], torch.tensor([15.0], dtype=torch.float64)))


def test_quality_loss_is_the_focal_loss_where_the_quality_is_0_or_1() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=draw) * 4
    hard = (torch.rand(50, generator=draw) < 0.5).float()
    expected = sigmoid_focal_loss(logits, hard, alpha=-1, gamma=2)
    torch.testing.assert_close(quality_loss(logits, hard), expected)
    even = torch.logit(torch.tensor(0.3))
    assert float(quality_loss(even, torch.tensor(0.3))) == pytest.approx(0, abs=1e-9)


def test_fastestdet_decodes_as_its_formula_says() -> None:
    raw = torch.full((1, 5 + 2, 4, 6), -9.0)
    raw[0, :, 2, 3] = torch.tensor([1.0, 0.5, -0.25, 0.2, -1.0, 2.0, 0.5])
    boxes, scores = fastest(classes=2).decode(raw)
    assert boxes.shape == (1, 24, 4)
    cell = 2 * 6 + 3
    x, y = (3 + math.tanh(0.5)) * 16, (2 + math.tanh(-0.25)) * 16
    w, h = 96 / (1 + math.exp(-0.2)), 64 / (1 + math.exp(1.0))
    assert boxes[0, cell].tolist() == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], abs=1e-4)
    objectness, share = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-1.5))
    assert scores[0, cell].tolist() == pytest.approx(
        [objectness**0.6 * share**0.4, objectness**0.6 * (1 - share) ** 0.4], abs=1e-6
    )
    assert int(scores[0].amax(dim=1).argmax()) == cell


def test_fastestdet_asks_the_four_cells_around_the_middle() -> None:
    """Perfect boxes there leave no box loss; and no other cell is asked."""
    network = fastest(classes=3)
    truth = objects((20, 24, 50, 68, 1))  # its middle (35, 46) is 2.1875 cells right, 2.875 down
    raw = torch.zeros(1, 8, 4, 6)
    for column in (2, 3):
        for row in (2, 3):
            x, y = math.atanh(35 / 16 - column), math.atanh(46 / 16 - row)
            raw[0, 1:5, row, column] = torch.tensor([x, y, math.log(30 / (96 - 30)), math.log(44 / (64 - 44))])
    raw.requires_grad_()
    parts = network.loss(raw, [truth])
    assert float(parts["box"].detach()) == pytest.approx(0, abs=1e-5)
    assert float(parts["class"].detach()) == pytest.approx(fastestdet.CLASS_WEIGHT * math.log(3), abs=1e-5)
    parts["class"].backward()
    asked = raw.grad[0, 5:].abs().sum(dim=0).nonzero().tolist()  # type: ignore[index]
    assert 1 <= len(asked) <= 4 and all(row in (2, 3) and column in (2, 3) for row, column in asked)


# -- the whole ---------------------------------------------------------------------------------------------------------


@BUILDS
@pytest.mark.parametrize("targets", [[FEW, MANY], [NOTHING, MANY], [NOTHING, NOTHING]], ids=["mixed", "one", "none"])
def test_losses_are_finite_in_bfloat16_and_their_gradients_too(build: Any, targets: list[Target]) -> None:
    network = build().train()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        parts = network.loss(network(x), targets)
    assert all(p.ndim == 0 and p.dtype == torch.float32 and bool(torch.isfinite(p)) for p in parts.values())
    torch.stack(list(parts.values())).sum().backward()
    gradients = {n: p.grad for n, p in network.named_parameters()}
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients.values())
    assert any(bool(g.any()) for n, g in gradients.items() if n.startswith("backbone"))  # type: ignore[union-attr]


@BUILDS
def test_each_part_of_the_loss_reaches_the_image_side(build: Any) -> None:
    network = build().train()
    parts = network.loss(network(torch.randn(2, 3, 64, 64)), [FEW, MANY])
    first = next(network.parameters())
    for name, part in parts.items():
        (gradient,) = torch.autograd.grad(part, first, retain_graph=True)
        assert float(gradient.abs().sum()) > 0, f"{name} teaches nothing"


@BUILDS
def test_without_objects_only_what_tells_them_apart_learns(build: Any) -> None:
    network = build().train()
    parts = network.loss(network(torch.randn(2, 3, 64, 64)), [NOTHING, NOTHING])
    nought = {name for name, part in parts.items() if float(part.detach()) == 0}
    assert nought == parts.keys() - {"class" if build is nano else "objectness"}


@BUILDS
def test_raw_outputs_have_one_form_and_boxes_full_precision(build: Any) -> None:
    network = build()
    x = torch.randn(2, 3, 64, 96)

    def shapes(raw: Any) -> Any:
        return tuple(raw.shape) if isinstance(raw, Tensor) else [shapes(r) for r in raw]

    with torch.no_grad():
        plain, trained = network.eval()(x), network.train()(x)
        with torch.autocast("cpu", torch.bfloat16):
            boxes, scores = network.decode(network(x))
    assert shapes(plain) == shapes(trained)
    assert boxes.dtype == scores.dtype == torch.float32
    assert boxes.shape == (2, 126 if build is nano else 24, 4)


@BUILDS
def test_learns_a_scene_by_heart(build: Any) -> None:
    """Two images, each a bright box on noise: it is found again, and nothing else with half its score."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 64, 64, generator=draw) * 0.2
    targets = [objects((8, 8, 40, 32, 0)), objects((30, 20, 58, 60, 2))]
    for image, target in zip(x, targets, strict=True):
        left, top, right, bottom = target["boxes"][0].int().tolist()
        image[:, top:bottom, left:right] += torch.tensor([1.5, -1, 0.5] if target["classes"][0] else [-1, 1, 2])[
            :, None, None
        ]
    network = build().train()
    # FastestDet's outputs pass a batch norm, whose gain has a long way to go
    rate, steps = (2e-3, 60) if build is nano else (5e-3, 100)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = torch.stack(list(network.loss(network(x), targets).values())).sum()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0]
    network.eval()
    with torch.no_grad():
        boxes, scores = network.decode(network(x))
    for b, s, target in zip(boxes, scores, targets, strict=True):
        # half of the best, not a fixed confidence: running statistics of so few values lag behind the batch's
        half = float(s.max()) / 2
        assert half > 0.1
        found, confidence, classes = suppress(b.numpy(), s.numpy(), confidence=half, iou=0.5, max_detections=10)
        assert classes.tolist() == target["classes"].tolist(), confidence
        assert float(box_ious(found, target["boxes"].numpy())[0, 0]) > 0.5


@BUILDS
def test_a_size_that_does_not_divide_is_refused_with_the_cure(build: Any) -> None:
    with pytest.raises(ZooError, match=r"input is 3x250x300; .* must divide by 32: make it 256x320"):
        build()(torch.zeros(1, 3, 250, 300))


# -- backbones ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mobilenetv4_conv_medium", "resnet50", "convnext_atto", "vgg11_bn", "regnety_002", "pvt_v2_b0"]
)
def test_a_classifiers_weights_fit_any_backbone(name: str) -> None:
    network = yolo.build(num_classes=2, in_channels=3, backbone=name, width=32, depth=1)
    trunk = network.get_submodule(plugin.YOLO[0].backbone)
    given = timm.create_model(name, pretrained=False).state_dict()
    assert not trunk.load_state_dict(given, strict=False).missing_keys
    with torch.no_grad():
        boxes, _ = network.eval().decode(network(torch.zeros(1, 3, 64, 64)))
    assert boxes.shape == (1, 84, 4)


def test_backbones_that_do_not_exist_or_do_not_fit_are_named() -> None:
    with pytest.raises(UnknownName, match=r"unknown timm backbone 'mobilnetv2_100': did you mean mobilenetv2_100"):
        yolo.build(num_classes=2, in_channels=3, backbone="mobilnetv2_100", width=32, depth=1)
    with pytest.raises(ZooError, match=r"'vit_tiny_patch16_224' gives its last maps at strides \(16, 16, 16\)"):
        yolo.build(num_classes=2, in_channels=3, backbone="vit_tiny_patch16_224", width=32, depth=1)


@pytest.mark.assets
def test_real_imagenet_weights_fill_the_whole_backbone(assets: Path) -> None:
    from safetensors.torch import load_file

    given = load_file(assets / "weights" / "mobilenetv2_100.imagenet1k.safetensors")
    trunk = nano().get_submodule(plugin.YOLO[0].backbone)
    wanted = trunk.state_dict()
    assert not [k for k in wanted if k not in given or given[k].shape != wanted[k].shape]
    trunk.load_state_dict({k: given[k] for k in wanted})


# -- FastestDet's published weights ------------------------------------------------------------------------------------

RECORD = plugin.FASTESTDET


@pytest.fixture(scope="module")
def published(assets: Path) -> fastestdet.FastestDet:
    state = torch.load(assets / "weights" / "fastestdet.coco80.pth", map_location="cpu", weights_only=True)
    network = fastest(classes=80)
    network.load_state_dict(state)
    return network.eval()


def theirs(assets: Path, x: np.ndarray) -> np.ndarray:
    """(N, 3, 352, 352) to (N, 85, 22, 22) by the graph that was published, which takes one image at a time."""
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(
        str(assets / "weights" / "fastestdet.coco80.352.onnx"), providers=["CPUExecutionProvider"]
    )
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: image[None]})[0] for image in x])


def photos(assets: Path) -> list[Path]:
    folder = assets / "imagenet-sample-200" / "images"
    named = ["Norfolk_terrier", "zebra", "Indian_elephant", "beer_bottle", "basketball", "water_ouzel"]
    found = [next(folder.glob(f"*_{name}.jpg")) for name in named]
    return [*found, *sorted((assets / "bccd" / "JPEGImages").glob("*.jpg"))[:2]]


def decoded_by_hand(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image's published outputs (85, 22, 22) to boxes (484, 4) in input pixels and scores (484, 80)."""
    boxes, scores = [], []
    for row in range(22):
        for column in range(22):
            cell = raw[:, row, column].astype(np.float64)
            x, y = (column + np.tanh(cell[1])) * 16, (row + np.tanh(cell[2])) * 16
            w, h = 352 / (1 + np.exp(-cell[3])), 352 / (1 + np.exp(-cell[4]))
            boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            scores.append(cell[0] ** 0.6 * cell[5:] ** 0.4)
    return np.asarray(boxes, np.float32), np.asarray(scores, np.float32)


@pytest.mark.assets
def test_fastestdet_equals_the_published_graph(assets: Path, published: fastestdet.FastestDet) -> None:
    x = np.stack([preprocess(p, RECORD.input) for p in photos(assets)])
    with torch.no_grad():
        raw = published(torch.from_numpy(x))
        ours = torch.cat([raw[:, :1].sigmoid(), raw[:, 1:5], raw[:, 5:].softmax(dim=1)], dim=1).numpy()
        boxes, scores = (t.numpy() for t in published.decode(raw))
    expected = theirs(assets, x)
    # sizes are logits of up to 6.4, of which float32 itself, in PyTorch and in ONNX Runtime, leaves 1e-4 undecided
    assert float(np.abs(ours - expected).max()) < 1e-4 * float(np.abs(expected).max())
    assert float(np.abs(ours - expected)[:, [0, *range(5, 85)]].max()) < 1e-4
    total = 0
    for i, raw_of_image in enumerate(expected):
        wanted = suppress(*decoded_by_hand(raw_of_image), confidence=0.5, iou=0.45, max_detections=100)
        found = suppress(boxes[i], scores[i], confidence=0.5, iou=0.45, max_detections=100)
        assert found[2].tolist() == wanted[2].tolist()
        np.testing.assert_allclose(found[0], wanted[0], atol=0.01)
        np.testing.assert_allclose(found[1], wanted[1], atol=1e-4)
        total += len(found[2])
    assert total > 10


@pytest.mark.assets
def test_fastestdet_sees_what_is_on_the_photos(assets: Path, published: fastestdet.FastestDet) -> None:
    names = (assets / "weights" / "coco80.names").read_text("utf-8").split("\n")
    assert [a == b for a, b in zip(coco80(), names, strict=False)].count(True) == 74, "the file spells six otherwise"
    x = torch.from_numpy(np.stack([preprocess(p, RECORD.input) for p in photos(assets)[:6]]))
    with torch.no_grad():
        _, scores = published.decode(published(x))
    best = [coco80()[k] for k in scores.amax(dim=1).argmax(dim=1).tolist()]
    assert best == ["dog", "zebra", "elephant", "bottle", "person", "bird"]


def test_coco_has_eighty_names() -> None:
    assert len(coco80()) == 80 == len(set(coco80()))
    assert (coco80()[0], coco80()[16], coco80()[79]) == ("person", "dog", "toothbrush")


# -- the graphs --------------------------------------------------------------------------------------------------------


def exported(record: Architecture, size: int, folder: Path) -> tuple[Deployable, Path]:
    """The deployable, with weights that carry signal, and its ONNX file."""
    exporter = pytest.importorskip("zoo_export.onnx_export")
    torch.manual_seed(0)
    spec = record.input.with_size(size)
    network = give_signal(record.resolve()(num_classes=4, in_channels=3, **record.options), spec)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # fresh heads say 0.01 to everything: redrawn, so that answers differ from place to place
        for name, module in network.named_modules():
            if name.startswith("head.") and isinstance(module, nn.Conv2d) and module.groups == 1:
                module.weight.normal_(0, 1.0 / module.in_channels**0.5, generator=draw)
    deployable = Deployable(network).eval()
    source = Artifact(format="torch", precision="fp32", input=spec, task=DETECT, module=deployable)
    return deployable, exporter.export(source, folder / "model.onnx", {}).path


@pytest.fixture(scope="module", params=[plugin.YOLO[0], RECORD], ids=lambda record: record.name)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Deployable, Path]:
    record = request.param
    return record, *exported(record, 96, tmp_path_factory.mktemp(record.name))


def test_onnx_equals_pytorch_at_any_batch(graph: tuple[Any, Deployable, Path]) -> None:
    from zoo.parity.gates import compare
    from zoo.runtime.ort import open_session

    record, deployable, path = graph
    session = open_session(path, threads=1)
    x = probe(record.input.with_size(96), 6, seed=5)
    with torch.no_grad():
        expected = deployable(x)
        exact = copy.deepcopy(deployable).double()(x.double())
    parts = [session.run(part.numpy()) for part in x.split([1, 2, 3])]
    bounds = DETECT.tolerances["fp32"]
    for name, value, truth in zip(DETECT.outputs, expected, exact, strict=True):
        got = np.concatenate([part[name] for part in parts])
        assert float(value.std(dim=0).mean()) > (1.0 if name == "boxes" else 0.01), "the images hardly matter"
        units = compare(got, value.numpy(), truth.numpy(), bounds["numbers_floor"])["units"]
        assert units <= bounds["numbers_units"], f"{name}: {units:.2g} units of float32 error"


def test_the_graph_is_small_and_its_grid_is_folded(graph: tuple[Any, Deployable, Path]) -> None:
    onnx = pytest.importorskip("onnx")
    record, _, path = graph
    model = onnx.load(path)
    count = Counter(node.op_type for node in model.graph.node)
    assert not count.keys() & {"Range", "Expand", "Shape", "Where", "NonZero", "Gather", "Cast", "ScatterND", "Tile"}
    assert sum(count.values()) <= 190
    assert {node.domain for node in model.graph.node} == {""}
    if record.name == "yolo-nano":
        assert count["Concat"] == 2, "maps of a size are added; what is concatenated is the answers"
        assert count["Sigmoid"] == 1, "no activation but ReLU"


def test_tensorrt_takes_the_graph(graph: tuple[Any, Deployable, Path]) -> None:
    """Parsed and built by TensorRT-RTX, which needs no GPU for that."""
    trt = pytest.importorskip("tensorrt_rtx")
    record, _, path = graph
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(path.read_bytes()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    shape = record.input.with_size(96).shape
    profile.set_shape("image", (1, *shape), (2, *shape), (4, *shape))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None and engine.nbytes > 0


# -- the kit -----------------------------------------------------------------------------------------------------------


class TestYoloNano(ArchitectureTests):
    name = "yolo-nano"
    size = 64


@pytest.mark.slow
class TestYoloSmall(ArchitectureTests):
    name = "yolo-small"
    size = 64


@pytest.mark.slow
class TestYoloMedium(ArchitectureTests):
    name = "yolo-medium"
    size = 96


class TestFastestDet(ArchitectureTests):
    name = "fastestdet"
    size = 64
