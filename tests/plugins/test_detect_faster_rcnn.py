"""Faster R-CNN: its own pieces against torchvision's and against the papers' loops, its loss against torchvision's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchvision")

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import box_iou
from torchvision.ops import roi_align as their_roi_align

from zoo.artifacts import Artifact
from zoo.errors import UnknownName, ZooError
from zoo.specs import Architecture, ImageInput
from zoo.testing import ArchitectureTests, give_signal, probe
from zoo_detect import faster_rcnn
from zoo_detect.faster_rcnn import FasterRCNN, build, matrix_nms, roi_align
from zoo_detect.more_records import FASTER_RCNN

SMALL: dict[str, Any] = {"backbone": "resnet10t", "width": 32, "hidden": 64}
SPEC: ImageInput = FASTER_RCNN.input.with_size(128, 192)
TARGETS = [
    {
        "boxes": torch.tensor([[8.0, 10, 70, 90], [60, 20, 127, 60], [20, 60, 52, 84]]),
        "classes": torch.tensor([0, 3, 2]),
    },
    {"boxes": torch.tensor([[40.0, 30, 56, 50]]), "classes": torch.tensor([1])},
    {"boxes": torch.zeros(0, 4), "classes": torch.zeros(0, dtype=torch.int64)},
]


@pytest.fixture
def network() -> FasterRCNN:
    """A small one whose heads, drawn anew, have something to say of each image."""
    torch.manual_seed(0)
    made = build(num_classes=4, in_channels=3, **SMALL)
    with torch.no_grad():
        for name, module in made.named_modules():
            if name.startswith(("rpn.", "classifier", "regressor")) and isinstance(module, (nn.Conv2d, nn.Linear)):
                gain = {"rpn.conv.0.0": 1.4, "rpn.cls_logits": 0.3, "rpn.bbox_pred": 0.3}.get(name, 1.0)
                module.weight.normal_(0, gain / module.weight[0].numel() ** 0.5)
    network = give_signal(made, SPEC)
    assert isinstance(network, FasterRCNN)
    return network


def some_boxes(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(2, count, 4) xyxy inside the image: large, tiny, thin, and some that touch the borders."""
    draw = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height], dtype=torch.float64)
    low = torch.rand(2, count, 2, generator=draw, dtype=torch.float64) * size
    extent = torch.rand(2, count, 2, generator=draw, dtype=torch.float64) ** 3 * size
    boxes = torch.cat([low, torch.minimum(low + extent, size)], dim=-1)
    boxes[:, 0] = torch.tensor([0, 0, width, height])
    boxes[:, 1] = torch.tensor([width - 1.0, height - 1.0, width, height])
    return boxes


@pytest.mark.parametrize("stride", [8, 64])
def test_roi_align_is_torchvisions(stride: int) -> None:
    height, width = 192, 256
    features = torch.randn(2, 5, height // stride, width // stride, dtype=torch.float64)
    boxes = some_boxes(40, height, width)
    size = torch.tensor([width, height, width, height], dtype=torch.float64)
    expected = their_roi_align(
        features,
        list(boxes),
        faster_rcnn.POOLED,
        spatial_scale=1 / stride,
        sampling_ratio=faster_rcnn.SAMPLES,
        aligned=True,
    ).reshape(2, 40, 5, faster_rcnn.POOLED, faster_rcnn.POOLED)
    torch.testing.assert_close(roi_align(features, boxes, size), expected, rtol=0, atol=1e-12)


def test_matrix_nms_is_the_papers() -> None:
    boxes = some_boxes(25, 100, 100, seed=1)
    boxes[:, 9] = boxes[:, 4]  # a box twice
    found = matrix_nms(boxes, sharpness=2.0)
    for image in range(2):
        iou = box_iou(boxes[image], boxes[image])
        for j in range(25):
            decay = 1.0
            for i in range(j):
                covered = max((float(iou[k, i]) for k in range(i)), default=0.0)
                decay = min(decay, math.exp(-2.0 * float(iou[i, j]) ** 2) / math.exp(-2.0 * covered**2))
            assert math.exp(found[image, j]) == pytest.approx(decay, abs=1e-6)
    assert float(found[0, 9]) < float(found[0, 4]), "the second of two equal boxes keeps its rank"


def test_each_level_proposes_its_number_in_the_order_of_its_anchors(network: FasterRCNN) -> None:
    with torch.no_grad():
        raw = network(probe(SPEC, 2, seed=3))
    counts = [min(k, len(a)) for k, a in zip(faster_rcnn.PROPOSALS, raw["anchors"], strict=True)]
    assert raw["proposals"].shape == (2, sum(counts), 4)
    for level, proposals in enumerate(raw["proposals"].split(counts, dim=1)):
        boxes = faster_rcnn._decode(
            network.anchor_coder, raw["anchor_deltas"][level], raw["anchors"][level], raw["size"]
        )
        same = (proposals[:, :, None] == boxes[:, None]).all(dim=-1)  # (N, K, A)
        for image in same:
            at = -1
            for row in image:  # of equal boxes (cut to the whole image, say) any may have been meant
                at = int(row[at + 1 :].nonzero()[0]) + at + 1


def test_places_that_hardly_look_like_an_object_are_told_apart_by_every_runtime(tmp_path: Path) -> None:
    """A trained network says -20 of most places. ONNX Runtime's sigmoid of that is 0, and its logarithm no number."""
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")

    class Choice(nn.Module):
        def forward(self, objectness: Tensor, boxes: Tensor) -> Tensor:
            return faster_rcnn._propose(objectness, boxes, 24)

    draw = torch.Generator().manual_seed(5)
    objectness = -18 - 12 * torch.rand(2, 75, generator=draw)
    low = 60 * torch.rand(2, 75, 2, generator=draw)
    boxes = torch.cat([low, low + 20 * torch.rand(2, 75, 2, generator=draw) + 20], dim=-1)
    expected = Choice()(objectness, boxes)
    best = objectness.topk(24).indices.sort().values[:, :, None].expand(-1, -1, 4)
    assert not torch.equal(expected, boxes.gather(1, best)), "nothing is covered: the scores alone would do"
    assert torch.equal(Choice()(objectness.double(), boxes.double()).float(), expected)
    program = torch.onnx.export(Choice(), (objectness, boxes), dynamo=True, verbose=False)
    onnx.save(program.model_proto, tmp_path / "choice.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "choice.onnx")
    names = [i.name for i in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (objectness.numpy(), boxes.numpy()), strict=True)))
    assert (found == expected.numpy()).all()


def test_loses_what_torchvision_loses(network: FasterRCNN) -> None:
    """Both stages, with torchvision's own assignment, sampling and losses on the same raw outputs."""
    network.train()
    raw = network(probe(SPEC, 3, seed=4))
    torch.manual_seed(7)
    parts = network.loss(raw, TARGETS)
    assert all(p.ndim == 0 and float(p.detach()) > 0 for p in parts.values())

    torch.manual_seed(7)
    theirs = [{"boxes": t["boxes"], "labels": t["classes"] + 1} for t in TARGETS]
    rpn = RegionProposalNetwork(network.anchors, network.rpn, 0.7, 0.3, 256, 0.5, {}, {}, 0.7)
    objectness, deltas = concat_box_prediction_layers(*network.rpn(raw["features"]))
    anchors = [torch.cat(raw["anchors"])] * 3
    labels, matched = rpn.assign_targets_to_anchors(anchors, theirs)
    expected = rpn.compute_loss(objectness, deltas, labels, rpn.box_coder.encode(matched, anchors))
    torch.testing.assert_close(parts["objectness"], expected[0])
    torch.testing.assert_close(parts["anchor_boxes"], expected[1])

    heads = RoIHeads(None, None, None, 0.5, 0.5, 128, 0.25, None, 0.05, 0.5, 100)
    objects = [t["boxes"] for t in theirs]
    rows = heads.add_gt_proposals(list(raw["proposals"]), objects)
    matches, labels = heads.assign_targets_to_proposals(rows, objects, [t["labels"] for t in theirs])
    sampled = heads.subsample(labels)
    # every sampled box is pooled anew: from the level that proposed it, or, an object, from that of its size
    counts = [min(k, len(a)) for k, a in zip(faster_rcnn.PROPOSALS, raw["anchors"], strict=True)]
    level_of = [level for level, k in enumerate(counts) for _ in range(k)]
    logits, deltas, goals = [], [], []
    for image, chosen in enumerate(sampled):
        for row in chosen.tolist():
            box = rows[image][row]
            if row < len(level_of):
                level = level_of[row]
            else:
                side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
                level = min(range(4), key=lambda level: abs(math.log2(side / faster_rcnn.SIZES[level])))
            pooled = their_roi_align(
                raw["features"][level][image : image + 1], [box[None]], 7, 1 / (8 * 2**level), 2, aligned=True
            )
            hidden = network.box_head(pooled)
            logits.append(network.classifier(hidden))
            deltas.append(network.regressor(hidden).repeat(1, 5))  # torchvision has one box a class
            goal = objects[image][matches[image][row]] if len(objects[image]) else box
            goals.append(heads.box_coder.encode_single(goal[None], box[None]))
    labels = [label[chosen] for label, chosen in zip(labels, sampled, strict=True)]
    classes, boxes = fastrcnn_loss(torch.cat(logits), torch.cat(deltas), labels, goals)
    torch.testing.assert_close(parts["classes"], classes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts["boxes"], boxes, rtol=1e-4, atol=1e-5)

    torch.stack(list(parts.values())).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


def test_images_without_objects_are_background(network: FasterRCNN) -> None:
    raw = network.train()(probe(SPEC, 2, seed=4))
    parts = network.loss(raw, TARGETS[2:] * 2)
    assert float(parts["anchor_boxes"].detach()) == float(parts["boxes"].detach()) == 0
    total = torch.stack(list(parts.values())).sum()
    assert bool(torch.isfinite(total)) and float(total.detach()) > 0
    total.backward()


def test_boxes_keep_their_precision_under_autocast(network: FasterRCNN) -> None:
    x = probe(SPEC, 2, seed=3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        raw = network(x)
        boxes, scores = network.decode(raw)
        parts = network.loss(raw, TARGETS[:2])
    assert boxes.dtype == scores.dtype == torch.float32
    assert all(a.dtype == torch.float32 for a in raw["anchors"])
    assert bool(torch.isfinite(torch.stack([p.float() for p in parts.values()])).all())


def test_takes_any_classes_and_channels_and_only_the_head_depends_on_the_classes() -> None:
    few, many = (build(num_classes=n, in_channels=16, **SMALL) for n in (1, 9))
    with torch.no_grad():
        boxes, scores = many.eval().decode(many(torch.randn(2, 16, 96, 64)))
    assert boxes.shape == (*scores.shape[:2], 4) and scores.shape[2] == 9
    a, b = few.state_dict(), many.state_dict()
    assert a.keys() == b.keys()
    assert {k.rpartition(".")[0] for k in a if a[k].shape != b[k].shape} == {FASTER_RCNN.head}


def test_a_classifiers_weights_fit_the_backbone() -> None:
    network = FASTER_RCNN.resolve()(num_classes=2, in_channels=3)
    given = timm.create_model("mobilenetv3_large_100", pretrained=False).state_dict()
    keys = network.get_submodule(FASTER_RCNN.backbone).load_state_dict(given, strict=False)
    assert not keys.missing_keys
    assert {k.partition(".")[0] for k in keys.unexpected_keys} == {"conv_head", "classifier"}


def test_a_backbone_that_does_not_do_is_refused_in_one_line() -> None:
    with pytest.raises(UnknownName, match="mobilenetv3_large_100"):
        build(num_classes=2, in_channels=3, backbone="mobilenetv3_larg_100")
    with pytest.raises(ZooError, match=r"strides .* a detector needs \(8, 16, 32\)"):
        build(num_classes=2, in_channels=3, backbone="vit_tiny_patch16_224")


class TestFasterRCNN(ArchitectureTests):
    name = "faster-rcnn"
    size = 128
    options = SMALL

    def test_onnx_equals_pytorch(self, record: Architecture, exported: tuple[Any, Artifact]) -> None:
        """And in operators that every runtime has: nothing that counts what is left."""
        super().test_onnx_equals_pytorch(record, exported)
        operators = {node.op_type for node in pytest.importorskip("onnx").load(exported[1].path).graph.node}
        assert not operators & {"RoiAlign", "GridSample", "NonMaxSuppression", "NonZero", "If", "Loop", "ScatterND"}
