"""Which layers learn when: groups by depth, gradual opening, and BatchNorm that keeps what it knows."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from zoo.train.transfer import Policy, layer_groups, learning_rate_factor, set_trainable, trained_norms


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 8))
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)) for _ in range(6))
        )
        self.top = nn.ModuleDict({"norm": nn.BatchNorm2d(8), "fc": nn.Linear(8, 3)})


def test_groups_cover_every_parameter_once_from_the_head_to_the_image() -> None:
    net = Net()
    groups = layer_groups(net, list(net.top["fc"].parameters()), count=4)
    assert len(groups) == 5
    flat = [id(p) for group in groups for p in group]
    assert sorted(flat) == sorted(id(p) for p in net.parameters())
    assert {id(p) for p in groups[0]} == {id(p) for p in net.top["fc"].parameters()}
    names = {id(p): n for n, p in net.named_parameters()}
    where = {names[id(p)]: g for g, group in enumerate(groups) for p in group}
    assert where["token"] == where["stem.0.weight"] == 4
    assert where["top.norm.weight"] == 1
    depths = [where[f"stages.{i}.0.weight"] for i in range(6)]
    assert depths == sorted(depths, reverse=True)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv2_035", "convnext_atto"])
def test_groups_of_real_networks_are_balanced(name: str) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, num_classes=2)
    head = network.get_classifier()
    groups = layer_groups(network, list(head.parameters()))
    sizes = [sum(p.numel() for p in g) for g in groups[1:]]
    assert len(sizes) == 4
    assert sum(map(len, groups)) == len(list(network.parameters()))
    assert max(sizes) < 0.6 * sum(sizes)


def test_policy_opens_one_after_another_and_ends_open() -> None:
    opened = [Policy(epochs=10, groups=5, gradual=True).open_groups(e) for e in range(10)]
    assert opened == sorted(opened)
    assert opened[0] == 2
    assert opened[5:] == [5] * 5
    assert Policy(epochs=1, groups=5, gradual=True).open_groups(0) == 5
    assert [Policy(epochs=3, groups=1, gradual=False).open_groups(e) for e in range(3)] == [1, 1, 1]
    assert [Policy(epochs=6, groups=5, gradual=True, head_first=2).open_groups(e) for e in range(6)][:2] == [1, 1]


def test_frozen_layers_are_frozen_whole() -> None:
    net = Net()
    groups = layer_groups(net, list(net.top["fc"].parameters()), count=4)
    set_trainable(net, groups, 2)
    assert not net.stem[1].training
    assert not net.stages[0][2].training  # dropout in a frozen block would only blur its features
    assert net.top["norm"].training
    assert not net.stem[0].weight.requires_grad
    assert net.top["fc"].weight.requires_grad
    set_trainable(net, groups, 5, keep_statistics=trained_norms(net, frozenset(net.state_dict())))
    assert all(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert net.stages[0][2].training


def test_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate_factor(s, 100) for s in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.009 < rates[-1] < 0.02
    assert learning_rate_factor(0, 1) == 1.0
