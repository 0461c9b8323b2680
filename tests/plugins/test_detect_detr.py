"""RT-DETRv2: the way written here is transformers' own, its queries are never a tie, and its graph says what PyTorch says."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import timm
import torch
from torch import Tensor, nn
from transformers import RTDetrV2ForObjectDetection

from zoo.errors import MissingPart, ZooError
from zoo.specs import ImageInput
from zoo.testing import ArchitectureTests, give_signal, probe
from zoo_detect.detr import RTDetr, _anchors, build
from zoo_detect.more_records import RT_DETR

SMALL: dict[str, Any] = {"backbone": "resnet10t", "width": 64, "queries": 30, "decoder_layers": 2}
SPEC: ImageInput = RT_DETR.input.with_size(96, 128)
PLACES = 12 * 16 + 6 * 8 + 3 * 4
TARGETS = [
    {"boxes": torch.tensor([[8.0, 10, 70, 90], [60, 20, 127, 60]]), "classes": torch.tensor([0, 3])},
    {"boxes": torch.zeros(0, 4), "classes": torch.zeros(0, dtype=torch.int64)},
]


@pytest.fixture
def network() -> RTDetr:
    """A small one that carries signal to the end: heads that start at zero are drawn anew."""
    torch.manual_seed(0)
    made = give_signal(build(num_classes=5, in_channels=3, **SMALL), SPEC)
    assert isinstance(made, RTDetr)
    with torch.no_grad():
        decoder = made.model.decoder
        for head in (*decoder.class_embed, *(mlp.layers[-1] for mlp in decoder.bbox_embed), made.model.enc_score_head):
            head.weight.normal_(0, 1 / head.in_features**0.5)
            head.bias.zero_()
    return made


def place_scores(network: RTDetr, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The class logits (N, places, classes) that the queries are chosen by, and the raw outputs."""
    seen: list[Tensor] = []
    handle = network.model.enc_score_head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            raw = network(x)
    finally:
        handle.remove()
    return seen[0], raw


def test_fresh_weights_tell_places_apart() -> None:
    """What transformers draws leaves one score for all places, and the choice of the queries to chance."""
    torch.manual_seed(0)
    network = build(num_classes=5, in_channels=3, **SMALL).train()
    logits, _ = place_scores(network, probe(SPEC, 2, seed=1))
    for image in logits.amax(dim=-1):
        assert len(image.unique()) > 0.95 * PLACES
        assert float(image.std()) > 1e-3


def test_queries_are_the_best_places_in_the_order_of_the_places(network: RTDetr) -> None:
    logits, raw = place_scores(network, probe(SPEC, 3, seed=2))
    for image in range(3):
        best = np.argsort(-logits[image].amax(dim=-1).numpy(), kind="stable")[: SMALL["queries"]]
        assert torch.equal(raw["first_logits"][image], logits[image][np.sort(best)])


def test_the_way_through_is_transformers_own(network: RTDetr) -> None:
    """Their forward on the same layers, in float64; their queries come in the order of the scores."""

    class Backbone(nn.Module):
        def __init__(self, trunk: nn.Module) -> None:
            super().__init__()
            self.trunk = trunk

        def forward(self, x: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
            return [(level, mask) for level in self.trunk(x)]

    network = network.double()
    theirs = RTDetrV2ForObjectDetection(network.config).double().eval()
    theirs.model = copy.deepcopy(network.model)
    theirs.model.backbone = Backbone(theirs.model.backbone)
    # so large that the places at the borders are blanked
    x = probe(SPEC.with_size(416, 448), 2, seed=3).double()
    logits, raw = place_scores(network, x)
    scored: list[Tensor] = []
    theirs.model.enc_score_head.register_forward_hook(lambda module, inputs, output: scored.append(output))
    with torch.no_grad():
        expected = theirs(pixel_values=x)
    torch.testing.assert_close(logits, scored[0], rtol=0, atol=1e-9)
    assert float(logits.std(dim=1).min()) > 1e-3, "all places score the same"
    best = scored[0].amax(dim=-1).topk(SMALL["queries"], dim=1).indices
    order = best.argsort(dim=1)
    for image in range(2):
        first = scored[0][image][best[image].sort().values]
        torch.testing.assert_close(raw["first_logits"][image], first, rtol=0, atol=1e-9)
        first_boxes = expected.enc_topk_bboxes[image][order[image]]
        torch.testing.assert_close(raw["first_boxes"][image], first_boxes, rtol=0, atol=1e-9)
        ours = raw["logits"][image, -1], raw["boxes"][image, -1]
        for value, their in zip(ours, (expected.logits, expected.pred_boxes), strict=True):
            assert float(value.std(dim=0).min()) > 1e-3, "all queries say the same"
            torch.testing.assert_close(value, their[image][order[image]], rtol=0, atol=1e-9)


def test_places_start_where_transformers_starts_them(network: RTDetr) -> None:
    shapes = ((64, 80), (32, 40), (16, 20))  # so fine that the outermost places are too near to the borders
    boxes, valid = _anchors(shapes, torch.zeros(1, dtype=torch.float64))
    theirs, allowed = network.model.generate_anchors(shapes, dtype=torch.float64)
    assert torch.equal(valid, allowed[0]) and 0 < int((~valid).sum()) < len(valid)
    torch.testing.assert_close(boxes.sigmoid(), theirs[0].sigmoid(), rtol=0, atol=1e-12)


def test_decode(network: RTDetr) -> None:
    raw = {
        "logits": torch.tensor([[[[9.0]], [[0.0]]]]),
        "boxes": torch.tensor([[[[0.9, 0.9, 0.9, 0.9]], [[0.5, 0.25, 0.2, 0.5]]]]),
        "size": torch.tensor([200.0, 100, 200, 100]),
    }
    boxes, scores = network.decode(raw)
    torch.testing.assert_close(boxes, torch.tensor([[[80.0, 0, 120, 50]]]))
    torch.testing.assert_close(scores, torch.tensor([[[0.5]]]))


def test_learns_from_every_layer_and_from_images_without_objects(network: RTDetr) -> None:
    raw = network.train()(probe(SPEC, 2, seed=4))
    parts = network.loss(raw, TARGETS)
    assert len(parts) == 3 * (SMALL["decoder_layers"] + 1)
    assert all(p.ndim == 0 and float(p.detach()) > 0 for p in parts.values())
    torch.stack(list(parts.values())).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]
    empty = network.loss(network(probe(SPEC, 2, seed=4)), TARGETS[1:] * 2)
    assert bool(torch.isfinite(torch.stack(list(empty.values()))).all())


def test_a_query_on_the_object_costs_no_more_than_its_class(network: RTDetr) -> None:
    """The targets reach transformers' loss as it wants them: a box that is right costs nothing."""
    boxes = torch.full((1, 2, 30, 4), 0.05)
    boxes[0, :, 7] = torch.tensor([(8 + 70) / 2 / 128, (10 + 90) / 2 / 96, 62 / 128, 80 / 96])
    logits = torch.full((1, 2, 30, 5), -12.0)
    logits[0, :, 7, 0] = 12.0
    raw = {
        "logits": logits,
        "boxes": boxes,
        "first_logits": logits[:, 0],
        "first_boxes": boxes[:, 0],
        "size": torch.tensor([128.0, 96, 128, 96]),
    }
    target = {"boxes": TARGETS[0]["boxes"][:1], "classes": TARGETS[0]["classes"][:1]}
    assert float(torch.stack(list(network.loss(raw, [target]).values())).sum()) < 1e-3
    elsewhere = {"boxes": target["boxes"] + 20, "classes": target["classes"]}
    assert float(torch.stack(list(network.loss(raw, [elsewhere]).values())).sum()) > 1


def test_boxes_keep_their_precision_under_autocast(network: RTDetr) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        raw = network(probe(SPEC, 2, seed=3))
        boxes, scores = network.decode(raw)
        parts = network.loss(raw, TARGETS)
    assert boxes.dtype == scores.dtype == raw["first_boxes"].dtype == torch.float32
    assert not torch.equal(raw["first_boxes"], raw["first_boxes"].bfloat16().float()), "two pixels at 512"
    assert bool(torch.isfinite(torch.stack([p.float() for p in parts.values()])).all())


def test_takes_any_classes_and_channels_and_only_the_head_depends_on_the_classes() -> None:
    few, many = (build(num_classes=n, in_channels=16, **SMALL) for n in (1, 9))
    with torch.no_grad():
        boxes, scores = many.eval().decode(many(torch.randn(2, 16, 32, 64)))
    assert boxes.shape == (2, 30, 4) and scores.shape == (2, 30, 9)
    a, b = few.state_dict(), many.state_dict()
    assert a.keys() == b.keys()
    differing = {k.rpartition(".")[0] for k in a if a[k].shape != b[k].shape}
    heads = RT_DETR.head.split(",")
    assert all(any(d == h or d.startswith(h + ".") for h in heads) for d in differing)
    assert all(any(d == h or d.startswith(h + ".") for d in differing) for h in heads)


def test_has_fewer_queries_where_there_are_fewer_places() -> None:
    with torch.no_grad():
        network = build(num_classes=2, in_channels=3, **{**SMALL, "queries": 100}).eval()
        boxes, _ = network.decode(network(torch.randn(1, 3, 32, 64)))
    assert boxes.shape[1] == 8 * 4 + 4 * 2 + 2


def test_a_classifiers_weights_fit_the_backbone() -> None:
    network = RT_DETR.resolve()(num_classes=2, in_channels=3)
    given = timm.create_model("mobilenetv3_large_100", pretrained=False).state_dict()
    keys = network.get_submodule(RT_DETR.backbone).load_state_dict(given, strict=False)
    assert not keys.missing_keys
    assert {k.partition(".")[0] for k in keys.unexpected_keys} == {"conv_head", "classifier"}


def test_a_size_that_does_not_do_is_refused_in_one_line(network: RTDetr) -> None:
    with pytest.raises(ZooError, match=r"input is 3x100x128; .* must divide by 32: make it 128x128"):
        network(torch.zeros(1, 3, 100, 128))


@pytest.mark.parametrize("package", ["transformers", "scipy"])
def test_says_what_is_missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "zoo_detect.detr")
    for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPart, match=f"{package}, which architecture 'rt-detrv2' needs.* pip install {package}"):
        RT_DETR.resolve()


class TestRTDetr(ArchitectureTests):
    name = "rt-detrv2"
    size = 128
    options = SMALL
