"""The losses of a class map against segmentation-models-pytorch and torch, with pixels that nobody labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
losses = pytest.importorskip("segmentation_models_pytorch.losses")

from zoo.data import Dataset, Sample
from zoo.data.targets import VOID, Mask
from zoo.errors import ZooError
from zoo.train.segment import Deployable, SegmentTrainer, dice_loss, focal_loss, jaccard_loss

HALF = SegmentTrainer()


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (3, 12, 10), generator=draw)
    target[:, :2] = VOID
    return torch.randn(3, 4, 12, 10, generator=draw), target


def test_dice_and_jaccard_are_those_of_smp(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = case
    # theirs is written as TP + s over TP + FP / 2 + FN / 2 + s: half of what ours adds
    theirs = losses.DiceLoss("multiclass", smooth=0.5, ignore_index=VOID)(logits, target)
    assert float(dice_loss(logits, target)) == pytest.approx(float(theirs), rel=1e-4)
    known = logits[:, :, 2:], target[:, 2:]  # theirs drops void pixels from Dice only
    theirs = losses.JaccardLoss("multiclass", smooth=1.0)(*known)
    assert float(jaccard_loss(*known)) == pytest.approx(float(theirs), rel=1e-3)
    assert float(jaccard_loss(logits, target)) == pytest.approx(float(jaccard_loss(*known)), rel=1e-6)


def test_focal_is_that_of_smp(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = case
    entropy = torch.nn.functional.cross_entropy(logits[:, :, 2:], target[:, 2:], reduction="none")
    wanted = ((1 - (-entropy).exp()) ** 2 * entropy).mean()
    assert float(focal_loss(logits, target)) == pytest.approx(float(wanted), rel=1e-5)


def test_classes_that_do_not_occur_do_not_count() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 1] = 20.0
    target = torch.ones(1, 4, 4, dtype=torch.int64)
    assert float(dice_loss(logits, target)) < 1e-4
    assert float(jaccard_loss(logits, target)) < 1e-4


@pytest.mark.parametrize("name", ["", *HALF.losses])
def test_each_loss_learns_and_is_finite_where_all_is_void(name: str, case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = case
    raw = logits.clone().requires_grad_()
    module = torch.nn.Identity()
    first = HALF.loss(module, raw, target, name=name)
    first.backward()
    assert raw.grad is not None
    assert bool((raw.grad[:, :, :2] == 0).all()), "void pixels are learnt from"
    better = HALF.loss(module, raw.detach() - 5 * raw.grad / raw.grad.abs().max(), target, name=name)
    assert float(better) < float(first.detach())
    empty = HALF.loss(module, logits, torch.full_like(target, VOID), name=name)
    assert bool(torch.isfinite(empty))


def test_the_deployed_classes_are_the_largest_logits(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, classes = Deployable(torch.nn.Identity())(case[0])
    assert classes.dtype == torch.uint8
    assert bool((classes.long() == logits.argmax(1)).all())


def test_rare_classes_weigh_more_but_not_without_bound() -> None:
    classes = np.zeros((10, 10), np.uint8)
    classes[0, 0], classes[:, 1:4] = 2, 1
    mask = Mask(source=classes, values={})
    sample = Sample(id="0", image=np.zeros((10, 10, 3), np.uint8), target=mask)
    data = Dataset(samples=(sample,), labels=("a", "b", "c"), split="train", root=Path("x"), format="masks")
    a, b, c = HALF.balance(data).tolist()
    assert a < b < c == pytest.approx(10.0)
    assert b == pytest.approx(1.0)


def test_mixing_maps_is_refused() -> None:
    assert HALF.mixer(3, mixup=0.0, cutmix=0.0) is None
    with pytest.raises(ZooError, match="not for segmentation"):
        HALF.mixer(3, mixup=0.2, cutmix=0.0)
