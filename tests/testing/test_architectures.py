"""The conformance kit catches what it is for: networks that are broken in one way each."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from zoo.errors import ZooError
from zoo.hookspecs import hookimpl
from zoo.registry import Registry, get_registry
from zoo.specs import Architecture, ImageInput
from zoo.testing import ArchitectureTests, architectures
from zoo.train.players import Batch, Players, Rules, Turn

INPUT = ImageInput(height=8, width=8, resize="squash")


class Good(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class ThreeChannelsOnly(Good):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, 3)


class Probabilities(Good):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, :-1]


class AnotherLayerDependsOnTheClasses(Good):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.body[0] = nn.Conv2d(in_channels, num_classes, 3)
        self.body[1] = nn.BatchNorm2d(num_classes)
        self.head = nn.Linear(num_classes, num_classes)


class UnusedLayer(Good):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.forgotten = nn.Linear(2, 2)


class RandomInEval(Good):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.randn_like(x))


class ForeignRandomness(Good):
    calls = 0

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        ForeignRandomness.calls += 1
        with torch.no_grad():
            self.head.bias.fill_(ForeignRandomness.calls)


class BatchMixes(Good):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class Blind(Good):
    """Its answer hardly depends on the image: a comparison would pass anything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)) * 1e-6) + torch.arange(float(self.head.out_features))


class Fourier(Good):
    """Looks at frequencies, for which TensorRT-RTX has no operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.fft.rfft(x, n=x.shape[-1]).real)


class Painter(Players):
    """A generator of images against a critic of them; it learns by two losses."""

    players = ("critic", "generator")
    losses = ("l1", "adversarial")

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
        self.critic = nn.Conv2d(3, 1, 3)

    def takes_turn(self, player: str, step: int, rules: Rules) -> bool:
        return player == "critic" if rules.loss != "l1" and step % 5 else player == "generator" or rules.loss != "l1"

    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        made = self(batch.input)
        if player == "critic":
            return Turn(
                losses={"critic": self.critic(made.detach()).mean() - self.critic(batch.target).square().mean()}
            )
        error = (made - batch.target).abs().mean()
        return Turn(losses={"l1": error if rules.loss == "l1" else error - self.critic(made).mean()})


class Refusing(Painter):
    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        if rules.loss == "adversarial":
            raise ZooError("batch norm mixes the images")
        return super().play(player, batch, rules, shared)


class RefusingAll(Refusing):
    players = ("generator",)
    losses = ("adversarial",)


class Wild(Painter):
    """Its loss is finite, and the slope of it is not."""

    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        turn = super().play(player, batch, rules, shared)
        return Turn(losses={**turn.losses, "root": (self.generator[0].weight * 0).square().sum().sqrt()})


class Unmoved(Painter):
    """Of what its generator makes the critic looks at none, and neither does the loss."""

    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        turn = super().play(player, batch, rules, shared)
        return Turn(losses={name: loss * (player != "generator") for name, loss in turn.losses.items()})


class Watching(Painter):
    """Nobody moves under one of its losses."""

    def takes_turn(self, player: str, step: int, rules: Rules) -> bool:
        return rules.loss == "l1"


class Steps(Painter):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 255


class Turned(Painter):
    """Height and width change places, which no square image tells."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).transpose(2, 3)


class Grey(Painter):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, :1]


class Precise(Painter):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).double()


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers a network class as an architecture, and gives a test class for it."""

    def make(network: type[nn.Module], **fields: Any) -> ArchitectureTests:
        module = ModuleType("zoo_kit_networks")
        module.build = lambda *, num_classes, in_channels: network(num_classes, in_channels)
        monkeypatch.setitem(sys.modules, "zoo_kit_networks", module)
        values = {"name": "net", "summary": "A network", "load": "zoo_kit_networks:build", "task": "classify"}
        record = Architecture(**{**values, "input": INPUT, "head": "head", "license": "MIT", **fields})
        plugin = ModuleType("plugin")
        plugin.zoo_register = hookimpl(lambda: list(get_registry_specs()) + [record])
        registry = Registry(discover=False)
        added = registry.add("kit", plugin)
        assert not added.error, added.error
        monkeypatch.setattr(architectures, "get_registry", lambda: registry)
        tests = ArchitectureTests()
        type(tests).name = "net"  # type: ignore[misc]
        tests.record_made = registry.get(Architecture, "net")  # type: ignore[attr-defined]
        return tests

    yield make
    if "name" in vars(ArchitectureTests):
        del ArchitectureTests.name


def get_registry_specs() -> list[Any]:
    """The ONNX exporter, which the kit's last test needs."""
    from zoo.specs import Exporter

    return get_registry().specs(Exporter)


def run(tests: Any, check: str, *arguments: Any) -> None:
    getattr(tests, check)(tests.record_made, *arguments)


CHECKS = {
    "test_the_record_is_whole": (),
    "test_builds_for_any_classes_and_channels": (7, 1),
    "test_only_the_head_depends_on_the_classes": (),
    "test_gradients_reach_every_parameter": (),
    "test_is_deterministic": (),
    "test_images_of_a_batch_do_not_meet": (),
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_good_network_passes(kit: Any, check: str) -> None:
    run(kit(Good), check, *CHECKS[check])


@pytest.mark.parametrize(
    ("network", "check", "words"),
    [
        (Probabilities, "test_builds_for_any_classes_and_channels", r"gives \(2, 6\) for 2 images and 7 classes"),
        (AnotherLayerDependsOnTheClasses, "test_only_the_head_depends_on_the_classes", "beside the head head"),
        (UnusedLayer, "test_gradients_reach_every_parameter", "no gradient reaches forgotten.weight"),
        (RandomInEval, "test_is_deterministic", "random in eval mode"),
        (ForeignRandomness, "test_is_deterministic", "the same seed builds different networks"),
        (BatchMixes, "test_images_of_a_batch_do_not_meet", "with its neighbours"),
    ],
)
def test_broken_networks_are_caught(kit: Any, network: type[nn.Module], check: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        run(kit(network), check, *CHECKS[check])


def test_a_fixed_channel_count_is_caught(kit: Any) -> None:
    with pytest.raises(RuntimeError, match="channels"):
        run(kit(ThreeChannelsOnly), "test_builds_for_any_classes_and_channels", 7, 1)


PHOTO = ImageInput(height=12, width=12, resize="crop", mean=(0.0,) * 3, std=(1.0,) * 3)
RESTORES: dict[str, Any] = {"task": "restore", "input": PHOTO, "head": "", "classes": False}


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Painter, ""),
        (Refusing, "adversarial is refused, and not listed as such: batch norm mixes"),
        (Wild, "l1, generator: the gradient of generator.0.weight is not finite"),
        (Unmoved, "l1, generator: the gradient of generator.0.weight, generator.1.weight, .* is zero"),
        (Watching, "adversarial: nobody takes a turn"),
    ],
)
def test_each_turn_of_players_moves_all_that_it_should(kit: Any, network: type[nn.Module], words: str) -> None:
    tests = kit(network, **RESTORES)
    if not words:
        run(tests, "test_gradients_reach_every_parameter")
        return
    with pytest.raises(AssertionError, match=words):
        run(tests, "test_gradients_reach_every_parameter")


@pytest.mark.parametrize(
    ("network", "refuses", "words"),
    [
        (Refusing, {"adversarial": "batch norm"}, "no turn of {'critic'} was seen under any loss"),
        (RefusingAll, {"adversarial": "spectral norm"}, "for another reason than 'spectral norm': batch norm mixes"),
        (Painter, {"adversarial": "batch norm"}, "listed as refused, but all turns were taken"),
        (Painter, {"hinge": "batch norm"}, "listed as refused, but no loss of this network: hinge"),
    ],
)
def test_a_loss_is_refused_as_it_is_listed(
    kit: Any, monkeypatch: pytest.MonkeyPatch, network: type[nn.Module], refuses: dict[str, str], words: str
) -> None:
    tests = kit(network, **RESTORES)
    monkeypatch.setattr(tests, "refuses", refuses, raising=False)
    with pytest.raises(AssertionError, match=words):
        run(tests, "test_gradients_reach_every_parameter")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Steps, "0 is black, 1 is white"),
        (Turned, r"makes \(2, 3, 15, 12\) of \(2, 3, 12, 15\): it should be \(2, 3, 12, 15\)"),
        (Grey, r"makes \(2, 1, 12, 12\)"),
        (Precise, "float64, not float32"),
    ],
)
def test_what_is_made_is_an_image_of_the_right_size(
    kit: Any, tmp_path: Any, network: type[nn.Module], words: str
) -> None:
    with pytest.raises(AssertionError, match=words):
        run(kit(network, **RESTORES), "test_makes_images_of_every_size", tmp_path)


def test_a_graph_of_open_size_is_compared(kit: Any, tmp_path: Any) -> None:
    pytest.importorskip("onnx")
    tests = kit(Painter, **RESTORES)
    run(tests, "test_makes_images_of_every_size", tmp_path)
    export = tests.export
    tests.export = lambda record, folder, **options: export(record, folder)
    with pytest.raises(Exception, match=r"(?i)dimension"):
        run(tests, "test_makes_images_of_every_size", tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"license": ""}, "licence"), ({"summary": ""}, "summary"), ({"task": "clasify"}, "clasify")],
)
def test_records_that_lack_something_are_caught(kit: Any, fields: dict[str, str], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        run(kit(Good, **fields), "test_the_record_is_whole")


def test_a_wrong_parameter_count_is_caught(kit: Any) -> None:
    right = sum(p.numel() for p in Good(10, 3).parameters())
    run(kit(Good, parameters=right), "test_the_published_size_is_right")
    with pytest.raises(AssertionError):
        run(kit(Good, parameters=right + 1), "test_the_published_size_is_right")


def test_a_blind_network_cannot_pass_parity(kit: Any, tmp_path: Any) -> None:
    pytest.importorskip("onnx")
    tests = kit(Blind)
    exported = tests.export(tests.record_made, tmp_path)
    with pytest.raises(AssertionError, match="hardly depend on the image"):
        run(tests, "test_onnx_equals_pytorch", exported)


def test_what_tensorrt_refuses_is_told_or_listed(kit: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("tensorrt_rtx")
    tests = kit(Fourier)
    exported = tests.export(tests.record_made, tmp_path)
    with pytest.raises(AssertionError, match="DFT"):
        run(tests, "test_tensorrt_takes_it", exported, "fp32")
    monkeypatch.setattr(tests, "refused", {"fp32": "DFT"}, raising=False)
    run(tests, "test_tensorrt_takes_it", exported, "fp32")
