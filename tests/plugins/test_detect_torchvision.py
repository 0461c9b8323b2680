"""torchvision's one-stage detectors find, behind the zoo's interface, what torchvision's own forward finds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("torchvision")

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection
from torchvision.ops import batched_nms, box_iou

from zoo.specs import Architecture, ImageInput
from zoo.testing import ArchitectureTests, give_signal, probe
from zoo_detect import torchvision_detectors as ours
from zoo_detect.more_records import SPECS

CLASSES = 5
RECORDS = {record.name: record for record in SPECS if isinstance(record, Architecture)}


@dataclass(frozen=True)
class Case:
    """One detector: ours, torchvision's public constructor, and what torchvision's own image transform is told."""

    name: str
    build: Callable[..., Any]
    theirs: Callable[..., Any]
    height: int
    width: int
    background: int
    """How far torchvision's labels are ahead of ours."""
    options: dict[str, Any]

    @property
    def spec(self) -> ImageInput:
        return RECORDS[self.name].input.with_size(self.height, self.width)


# The sizes are those at which torchvision's transform resizes and pads nothing; not square where it allows it.
CASES = (
    Case("ssdlite", ours.build_ssdlite, detection.ssdlite320_mobilenet_v3_large, 320, 320, 1, {}),
    Case(
        "retinanet",
        ours.build_retinanet,
        detection.retinanet_resnet50_fpn,
        128,
        192,
        0,
        {"min_size": 128, "max_size": 192},
    ),
    Case("fcos", ours.build_fcos, detection.fcos_resnet50_fpn, 128, 192, 0, {"min_size": 128, "max_size": 192}),
)


def lively(network: nn.Module, spec: ImageInput) -> nn.Module:
    """Fresh heads say 0.01 to everything: here they are redrawn, so that scores and boxes differ from place to place."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, module in network.named_modules():
            if "head" in name and isinstance(module, nn.Conv2d):
                last = module.out_channels % CLASSES == 0 or (module.out_channels % 4 == 0 and "bbox" in name)
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (0.7 if last else 1.4) / fan_in**0.5, generator=draw)
    return give_signal(network, spec)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def pair(request: pytest.FixtureRequest) -> tuple[Case, Any, Any]:
    """Ours and torchvision's with the same weights, loaded strictly."""
    case: Case = request.param
    torch.manual_seed(0)
    network = lively(case.build(num_classes=CLASSES, in_channels=3), case.spec)
    twin = case.theirs(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + case.background,
        topk_candidates=10**6,
        **case.options,
    ).eval()
    twin.load_state_dict(network.model.state_dict())
    return case, network, twin


def photos(case: Case, count: int) -> tuple[list[Tensor], Tensor]:
    """Images as torchvision takes them, (3, H, W) in 0..1, and as the zoo does, preprocessed by the record."""
    x = probe(case.spec, count, seed=4)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (case.spec.mean, case.spec.std))
    return [image * std + mean for image in x.double()], x


def found(boxes: Tensor, scores: Tensor, twin: Any) -> dict[str, Tensor]:
    """What stands outside our networks: threshold, suppression within a class, the best so many."""
    at, label = (scores > twin.score_thresh).nonzero(as_tuple=True)
    kept = batched_nms(boxes[at], scores[at, label], label, twin.nms_thresh)[: twin.detections_per_img]
    return {"boxes": boxes[at][kept], "scores": scores[at, label][kept], "labels": label[kept]}


def test_finds_what_torchvision_finds(pair: tuple[Case, Any, Any]) -> None:
    case, network, twin = pair
    # in float64, where rounding cannot make two scores change places
    network, twin = copy.deepcopy(network).double(), copy.deepcopy(twin).double()
    images, x = photos(case, 3)
    with torch.no_grad():
        boxes, scores = network.decode(network(x.double()))
    for i, image in enumerate(images):
        # a threshold that leaves some hundred candidates, so that suppression has work and none of it is cut off
        twin.score_thresh = float(scores[i].flatten().quantile(1 - 400 / scores[i].numel()))
        with torch.no_grad():
            theirs = twin([image.double()])[0]
        mine = found(boxes[i], scores[i], twin)
        candidates = int((scores[i] > twin.score_thresh).sum())
        assert 10 < len(theirs["boxes"]) < candidates, "nothing was suppressed: the comparison would be blind"
        assert len(theirs["labels"].unique()) > 1
        assert torch.equal(mine["labels"] + case.background, theirs["labels"])
        torch.testing.assert_close(mine["scores"], theirs["scores"], rtol=0, atol=1e-9)
        torch.testing.assert_close(mine["boxes"], theirs["boxes"], rtol=0, atol=1e-6)


def test_loses_what_torchvision_loses(pair: tuple[Case, Any, Any]) -> None:
    case, network, twin = pair
    images, x = photos(case, 2)
    boxes = torch.tensor([[8.0, 10, 70, 90], [60, 20, 127, 100], [20, 60, 52, 84]])
    targets = [
        {"boxes": boxes, "classes": torch.tensor([0, 4, 2])},
        {"boxes": torch.zeros(0, 4), "classes": torch.zeros(0, dtype=torch.int64)},
    ]
    theirs = [{"boxes": t["boxes"], "labels": t["classes"] + case.background} for t in targets]
    trained, twin = copy.deepcopy(network).train(), copy.deepcopy(twin).train()
    expected = twin([image.float() for image in images], theirs)
    raw = trained(x)
    parts = trained.loss(raw, targets)
    assert parts.keys() == expected.keys()
    if case.name == "ssdlite":  # torchvision's, and the floor that it lacks
        matches = twin.proposal_matcher(box_iou(boxes, torch.cat(raw["anchors"])))
        doubt = -raw["cls_logits"][1].log_softmax(dim=-1)[:, 0]
        expected["classification"] = expected["classification"] + doubt.sort().values[-3:].sum() / (matches >= 0).sum()
    for name in expected:
        torch.testing.assert_close(parts[name], expected[name], rtol=1e-4, atol=1e-5)
    assert all(p.ndim == 0 and float(p.detach()) > 0 for p in parts.values())
    torch.stack(list(parts.values())).sum().backward()
    assert not [n for n, p in trained.named_parameters() if p.grad is None]
    # no object anywhere: still a number, and one to go down
    empty = trained.loss(trained(x), targets[1:] * 2)
    total = torch.stack(list(empty.values())).sum()
    assert bool(torch.isfinite(total)) and float(total.detach()) > 0
    total.backward()


@pytest.mark.parametrize("pair", CASES[:1], ids=lambda case: case.name, indirect=True)
def test_ssdlite_learns_from_an_image_without_objects(pair: tuple[Case, Any, Any]) -> None:
    """In each image from the three anchors that look most like an object, beside one that has objects and without."""
    case, network, _ = pair
    nothing = {"boxes": torch.zeros(0, 4), "classes": torch.zeros(0, dtype=torch.int64)}
    something = {"boxes": torch.tensor([[8.0, 10, 70, 90]]), "classes": torch.tensor([1])}
    for targets in ([nothing, nothing], [something, nothing]):
        with torch.no_grad():
            raw = network(photos(case, 2)[1])
        raw["cls_logits"].requires_grad_()
        torch.stack(list(network.loss(raw, targets).values())).sum().backward()
        taught = raw["cls_logits"].grad.abs().sum(dim=-1) > 0
        backgrounds = raw["cls_logits"].detach().log_softmax(dim=-1)[..., 0]
        for image, target in enumerate(targets):
            if not len(target["boxes"]):
                hardest = backgrounds[image].argsort()[:3].sort().values
                assert torch.equal(taught[image].nonzero().flatten(), hardest)
                assert bool((raw["cls_logits"].grad[image][hardest][:, 0] < 0).all()), "towards the background"


def test_the_raw_outputs_keep_their_form_and_the_boxes_their_precision(pair: tuple[Case, Any, Any]) -> None:
    case, network, _ = pair
    _, x = photos(case, 2)
    with torch.no_grad():
        plain = network(x)
        trained = copy.deepcopy(network).train()(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
            boxes, scores = network.decode(half)
    assert plain.keys() == trained.keys() == half.keys()
    assert boxes.dtype == scores.dtype == torch.float32
    for exact, cast in zip(plain["anchors"], half["anchors"], strict=True):
        assert torch.equal(exact, cast), "anchors in half precision are pixels off"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_only_the_head_depends_on_the_classes(case: Case) -> None:
    record = RECORDS[case.name]
    assert record.resolve() is case.build
    few, many = (case.build(num_classes=n, in_channels=3).state_dict() for n in (1, 9))
    differing = {k for k in few if few[k].shape != many[k].shape}
    assert few.keys() == many.keys()
    heads = record.head.split(",")
    assert {k.rpartition(".")[0] for k in differing} == set(heads)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_takes_sixteen_channels_and_keeps_inside_the_input(case: Case) -> None:
    network = case.build(num_classes=2, in_channels=16).eval()
    with torch.no_grad():
        boxes, scores = network.decode(network(torch.randn(2, 16, 128, 96)))
    assert boxes.shape[:2] == scores.shape[:2] and boxes.shape[2] == 4 and scores.shape[2] == 2
    assert bool((boxes[..., 0::2] <= 96).all()) and bool((boxes[..., 1::2] <= 128).all()) and bool((boxes >= 0).all())


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_a_classifiers_weights_fit_the_backbone(name: str) -> None:
    record = RECORDS[name]
    network = record.resolve()(num_classes=2, in_channels=3)
    given = timm.create_model("resnet50", pretrained=False).state_dict()
    keys = network.get_submodule(record.backbone).load_state_dict(given, strict=False)
    assert not keys.missing_keys
    assert set(keys.unexpected_keys) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", RECORDS)
def test_macs_are_recomputed(name: str) -> None:
    record = RECORDS[name]
    if name == "rt-detrv2":
        pytest.importorskip("transformers")
    network = record.resolve()(num_classes=10, in_channels=3).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.decode(network(torch.zeros(1, *record.input.shape)))
    assert counter.get_total_flops() // 2 == record.macs


class TestSSDLite(ArchitectureTests):
    name = "ssdlite"
    size = 128


@pytest.mark.slow
class TestRetinaNet(ArchitectureTests):
    name = "retinanet"
    size = 128


@pytest.mark.slow
class TestFCOS(ArchitectureTests):
    name = "fcos"
    size = 128
