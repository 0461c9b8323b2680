"""Foreign weights are cleaned up and fitted, or refused by the first keys that differ."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file
from torch import nn

from zoo.errors import CheckpointError
from zoo.registry import get_registry
from zoo.specs import Architecture
from zoo.train.weights import State, adapt_channels, class_count, fit, read_state


def network(classes: int = 3, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        collections.OrderedDict(
            stem=nn.Conv2d(channels, 4, 3),
            norm=nn.BatchNorm2d(4),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(4, classes),
        )
    )


def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in network().state_dict().items()}


def same(module: nn.Module, state: dict[str, torch.Tensor], *, but: str = "-") -> bool:
    return all(torch.equal(v, state[k]) for k, v in module.state_dict().items() if not k.startswith(but))


def test_safetensors_and_pth_hold_the_same(tmp_path: Path) -> None:
    state = trained()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        module = network()
        assert fit(module, read_state(tmp_path / name), head="head", keep_head=True, channels=3).head
        assert same(module, state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "best_prec1": 91.7},
        lambda s: {"model": {"module." + k: v for k, v in s.items()}},
        lambda s: {"state_dict": {"module._orig_mod." + k: v for k, v in s.items()}},
        lambda s: {"state_dict": {k: v + 1 if v.is_floating_point() else v for k, v in s.items()}, "state_dict_ema": s},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["nested", "module prefix", "two prefixes", "averaged weights first", "no batch counters"],
)
def test_clean_ups(tmp_path: Path, wrap) -> None:  # type: ignore[no-untyped-def]
    state = trained()
    torch.save(wrap(state), tmp_path / "w.pth")
    module = network()
    assert fit(module, read_state(tmp_path / "w.pth"), head="head", keep_head=True, channels=3).head
    assert same(module, state)


def test_a_head_of_another_class_count_stays_fresh(tmp_path: Path) -> None:
    state = trained()
    torch.save(state, tmp_path / "w.pth")
    found = read_state(tmp_path / "w.pth")
    assert class_count(found, "head") == 3
    module = network(classes=7)
    before = module.head.weight.clone()
    assert not fit(module, found, head="head", keep_head=True, channels=3).head
    assert torch.equal(module.head.weight, before)
    assert same(module, state, but="head")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("retinanet", "model.head.classification_head.cls_logits.bias"),  # nine anchors
        ("fcos", "model.head.classification_head.cls_logits.bias"),
        ("ssdlite", "model.head.classification_head.module_list.0.1.bias"),  # six anchors, and the background
        ("faster-rcnn", "classifier.bias"),  # the background
        ("rt-detrv2", "model.enc_score_head.bias"),  # a list of heads
        ("yolo", "head.classes.0.bias"),
        ("fastestdet", "detect_head.cls_layers.conv5x5.4.bias"),
    ],
)
def test_classes_are_counted_whatever_a_head_has_for_each(name: str, first: str) -> None:
    pytest.importorskip("zoo_detect")
    if name == "rt-detrv2":
        pytest.importorskip("transformers")
    record = get_registry().get(Architecture, name)

    def build(classes: int) -> nn.Module:
        made: nn.Module = record.resolve()(num_classes=classes, in_channels=3, **record.options)
        return made

    state = {f"module.{k}": v for k, v in build(5).state_dict().items()}
    assert class_count(State(tensors=state, source="w.pth"), record.head, build) == 5
    headless = {k: v for k, v in state.items() if not any(k.startswith(f"module.{h}.") for h in record.head.split(","))}
    assert len(headless) < len(state)
    assert class_count(State(tensors=headless, source="w.pth"), record.head, build) is None
    if name in ("retinanet", "ssdlite"):
        heads = {k: v[:-1] for k, v in state.items() if k not in headless}
        with pytest.raises(
            CheckpointError, match=rf"^w\.pth: {first.rpartition('.')[0]}.* values, and a head has \d a"
        ):
            class_count(State(tensors=heads, source="w.pth"), record.head, build)


def test_a_network_that_looks_at_its_values_is_built_for_real() -> None:
    def build(classes: int) -> nn.Module:
        made = network(classes)
        made.scale = float(made.stem.weight.detach().std())
        return made

    assert class_count(State(tensors=build(7).state_dict(), source="w.pth"), "head", build) == 7


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_the_first_layer_answers_grey_images_as_before(tmp_path: Path, channels: int) -> None:
    state = trained()
    torch.save(state, tmp_path / "w.pth")
    module = network(channels=channels)
    assert fit(module, read_state(tmp_path / "w.pth"), head="head", keep_head=True, channels=channels).head
    grey = torch.rand(2, 1, 8, 8)
    wanted = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), state["stem.weight"])
    found = nn.functional.conv2d(grey.expand(-1, channels, -1, -1), module.stem.weight)
    if channels in (1,):  # repeated channels keep the sum only where the count divides
        assert torch.allclose(found, wanted, atol=1e-5)
    assert module.stem.weight.shape[1] == channels
    assert torch.equal(adapt_channels(state["stem.weight"], channels), module.stem.weight)


def test_six_channels_keep_the_sum() -> None:
    weight = torch.randn(4, 3, 3, 3)
    assert torch.allclose(adapt_channels(weight, 6).sum(1), weight.sum(1), atol=1e-5)


def test_a_layout_that_does_not_fit_is_refused_by_its_keys(tmp_path: Path) -> None:
    state = trained()
    state["extra.weight"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(5)
    del state["stem.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as refused:
        fit(network(), read_state(tmp_path / "w.pth"), head="head", keep_head=True, channels=3)
    text = str(refused.value)
    assert "1 key missing: stem.bias" in text
    assert "1 key unexpected: extra.weight" in text
    assert "norm.weight is 5, not 4" in text
    assert "\n" not in text


def test_nan_is_refused(tmp_path: Path) -> None:
    state = trained()
    state["stem.bias"][0] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"stem\.bias holds NaN"):
        fit(network(), read_state(tmp_path / "w.pth"), head="head", keep_head=True, channels=3)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a file ran",)


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": trained(), "hook": Harmful()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="not run"):
        read_state(tmp_path / "w.pth")
    assert "code from a file ran" not in capsys.readouterr().out


def test_damaged_files_give_one_line(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "whole.pth")
    save_file(trained(), tmp_path / "whole.safetensors")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:700])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-50])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("cut.pth", "cut.safetensors", "empty.pth", "text.pth", "list.pth", "absent.pth"):
        with pytest.raises(CheckpointError) as refused:
            read_state(tmp_path / name)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.assets
def test_a_checkpoint_as_found_in_the_wild(assets: Path) -> None:
    """{state_dict, best_prec1}, ``module.`` prefix, CUDA storages; its network is written out here."""

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(after)

    class ResNet20(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
            self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
            self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
            self.linear = nn.Linear(64, 10)

    state = read_state(assets / "weights" / "cifar10_resnet20.th")
    assert all(t.device.type == "cpu" for t in state.tensors.values())
    module = ResNet20()
    assert fit(module, state, head="linear", keep_head=True, channels=3).head
    assert torch.equal(module.linear.bias, state.tensors["module.linear.bias"])


@pytest.mark.assets
def test_a_foreign_layout_without_a_head_is_refused(assets: Path) -> None:
    pytest.importorskip("zoo_timm")
    from zoo.train.models import open_model

    with pytest.raises(CheckpointError, match=r"keys missing: conv_stem\.weight.*keys unexpected: first_conv"):
        open_model("mobilenetv2_100", weights=str(assets / "weights" / "shufflenetv2_0.5x.nohead.pth"))
