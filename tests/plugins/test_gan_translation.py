"""zoo-gan's translation, style and inpainting: who learns in which turn, and what is composed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor

from zoo.errors import ZooError
from zoo.train.players import Batch, Players, Rules
from zoo_gan import cyclegan, inpaint, pix2pix, style

SMALL: dict[str, tuple[Callable[..., Players], dict[str, Any], int]] = {
    "pix2pix": (pix2pix.build, {"depth": 5, "width": 4}, 3),
    "cyclegan": (cyclegan.build, {"width": 4, "blocks": 2, "pool": 3}, 3),
    "style": (style.build, {"width": 4, "blocks": 2}, 3),
    "inpaint-gated": (inpaint.build_gated, {"width": 4, "judge_width": 4}, 4),
    "inpaint-partial": (inpaint.build_partial, {"width": 4, "depth": 3}, 4),
}


def made(name: str) -> Players:
    torch.manual_seed(0)
    build, options, channels = SMALL[name]
    return build(num_classes=0, in_channels=channels, **options).eval()


def images(name: str, count: int = 2, height: int = 64, width: int = 64) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (count, 3, height, width), generator=draw) / 255 * 2 - 1
    if SMALL[name][2] == 4:
        known = torch.ones(count, 1, height, width)
        known[:, :, 16:40, 8:32] = 0
        x = torch.cat([x, known], dim=1)
    return x


def seen(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"content": (a - b).square().mean(), "style": (a.mean((2, 3)) - 0.3).square().mean()}


@pytest.mark.parametrize("name", SMALL)
def test_pictures_have_the_input_size_and_are_shares(name: str) -> None:
    for height, width in ((64, 64), (32, 96)):
        with torch.no_grad():
            picture = made(name)(images(name, 2, height, width))
        assert picture.shape == (2, 3, height, width)
        assert float(picture.min()) >= -1e-6
        assert float(picture.max()) <= 1 + 1e-6


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_the_moving_player_and_nobody_else(name: str) -> None:
    network = made(name).train()
    batch = Batch(input=images(name), target=torch.rand(2, 3, 64, 64))
    for loss in network.losses:
        rules, shared = Rules(loss=loss, perceptual=seen), dict[str, Any]()
        for player in network.players:
            if not network.takes_turn(player, 0, rules):
                continue
            network.zero_grad(set_to_none=True)
            turn = network.play(player, batch, rules, shared)
            assert all(bool(torch.isfinite(v)) for v in (*turn.losses.values(), *turn.figures.values()))
            torch.stack(list(turn.losses.values())).sum().backward()
            own = {id(p) for part in network.parts(player) for p in part.parameters()}
            reached = {id(p) for p in network.parameters() if p.grad is not None}
            assert reached == own, f"{loss}, {player}"


@pytest.mark.parametrize("name", SMALL)
def test_a_size_that_does_not_fit_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(ZooError, match=r"must divide by \d+: pad to 64x96"):
        made(name)(images(name, 1, 63, 95))


@pytest.mark.parametrize("name", ["inpaint-gated", "inpaint-partial"])
def test_known_pixels_are_the_input_to_the_bit_and_holes_are_painted(name: str) -> None:
    x = images(name)
    with torch.no_grad():
        picture, other = made(name)(x), x.clone()
        other[:, :3, 16:40, 8:32] = 0.7
        same = made(name)(other)
    known = (x[:, 3:] == 1).expand(-1, 3, -1, -1)
    before, after = (((v) * 255).round().to(torch.uint8) for v in (x[:, :3] * 0.5 + 0.5, picture))
    assert torch.equal(before[known], after[known])
    assert not torch.equal(before[~known], after[~known])
    assert torch.equal(picture, same), "what lies in a hole must not be seen"


def test_partial_convolution_is_the_papers_sum() -> None:
    torch.manual_seed(0)
    layer = inpaint.PartialConv((2, 1), 3, 3, 2)
    torch.nn.init.normal_(layer.bias)
    parts = [(torch.randn(1, c, 8, 8), (torch.rand(1, 1, 8, 8) < 0.15).float()) for c in (2, 1)]
    with torch.no_grad():
        values, mask = layer(*parts)
    x = np.concatenate([f.numpy()[0] for f, _ in parts])
    m = np.concatenate([k.expand_as(f).numpy()[0] for f, k in parts])
    x, m = (np.pad(v, ((0, 0), (1, 1), (1, 1))) for v in (x, m))
    weight, bias = layer.conv.weight.detach().numpy(), layer.bias.detach().numpy().reshape(-1)
    emptied = 0
    for i in range(4):
        for j in range(4):
            window = (slice(None), slice(2 * i, 2 * i + 3), slice(2 * j, 2 * j + 3))
            known = m[window].sum()
            emptied += known == 0
            expected = (weight * x[window] * m[window]).sum((1, 2, 3)) * (27 / known) + bias if known else 0 * bias
            np.testing.assert_allclose(values[0, :, i, j].numpy(), expected, atol=1e-4)
            assert float(mask[0, 0, i, j]) == (known > 0)
    assert 0 < emptied < 16


def test_cyclegan_judges_what_the_pool_gives() -> None:
    network = made("cyclegan").train()
    for _ in range(2):
        batch, shared = Batch(input=images("cyclegan"), target=torch.rand(2, 3, 64, 64)), dict[str, Any]()
        for player in network.players:
            network.play(player, batch, Rules(loss="lsgan"), shared)
    assert network.pool_a.images.shape == network.pool_b.images.shape == (3, 3, 64, 64)  # type: ignore[union-attr]
