"""The conformance kit for architectures: what every network of the zoo must do, whoever brings it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from ..artifacts import Artifact, Calibration
from ..discovery import find_entry_points
from ..errors import ZooError
from ..hookspecs import GROUP
from ..inputs import frame
from ..parity import FAIL, Candidate, Reference, Samples
from ..registry import get_registry
from ..runtime.tensorrt.api import find
from ..specs import Architecture, Exporter, ImageInput, Runtime, Task, absent, resolve
from ..tasks import TaskHalf
from ..train.players import Batch, Players, Rules
from .signal import carries_signal, give_signal, probe

__all__ = ["ArchitectureTests", "build_for_tensorrt"]

FEW = 6
"""Layers with weights below which what a pass leaves in float, the last of them at least, may be more than half."""
PICTURES = ("generate", "restore", "translate")
"""Tasks whose networks are players, and make images."""
BEYOND = 10.0
"""How far from 0 the values of random weights may lie, where 0 is black and 1 is white."""
STEPS = 20
"""Of a run, among which there is one in which all players of a loss take a turn."""


class ArchitectureTests:
    """Subclass it with the name of your architecture, in a class whose own name starts with ``Test``.

    ``size`` and ``options`` make a large network quick to test: the input's height and width in pixels, and
    keyword arguments for its ``build``. ``parameters`` of the record is checked without them.
    """

    name: ClassVar[str]
    size: ClassVar[int | None] = None
    options: ClassVar[Mapping[str, Any]] = {}
    change: ClassVar[float] = 0.01
    """By how much a layer's weights are changed where that must be noticed; branches that are scaled down need more."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Precisions that TensorRT cannot have this network in, and words of the reason: ``{"int8": "no layer"}``."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Losses that a network with these ``options`` cannot learn by, and words of the reason: ``{"wgan-gp": "batch norm"}``."""

    @pytest.fixture(scope="class")
    def record(self) -> Architecture:
        return get_registry().get(Architecture, self.name)

    @pytest.fixture(scope="class")
    def exported(self, record: Architecture, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Artifact]:
        """As :meth:`export` gives it; once for all tests of the class."""
        return self.export(record, tmp_path_factory.mktemp("kit"))

    def export(self, record: Architecture, folder: Path, **options: Any) -> tuple[Any, Artifact]:
        """The deployed network with weights that carry signal, and its ONNX artefact in ``folder``; the exporter's
        ``options``."""
        exporters = [e for e in get_registry().specs(Exporter) if e.writes == "onnx"]
        runtimes = [r for r in get_registry().runtimes("onnx") if not absent(r)]
        if not exporters or absent(exporters[0]) or not runtimes:
            pytest.skip("needs an ONNX exporter and a runtime: pip install 'edgezoo[edge,export]'")
        task = get_registry().get(Task, record.task)
        spec = self._spec(record)
        network = self.build(record, 10, record.input.channels)
        if isinstance(network, Players):
            give_signal(network.generator, spec)
        else:
            give_signal(network, spec)
        module = resolve(task.trainer, f"task '{task.name}'")().deployable(network).eval()
        source = Artifact(format="torch", precision="fp32", input=spec, task=task, module=module)
        return module, exporters[0].resolve()(source, folder / "model.fp32.onnx", options)

    def build(self, record: Architecture, classes: int, channels: int, **options: Any) -> nn.Module:
        """The network with seeded random weights, in eval mode."""
        torch.manual_seed(0)
        build = record.resolve()
        if not record.classes:
            classes = 0
        if record.makes is not None and self.size:
            options = {"size": self.size, **options}
        network = build(num_classes=classes, in_channels=channels, **{**record.options, **self.options, **options})
        assert isinstance(network, nn.Module), f"build gave a {type(network).__name__}, not a torch.nn.Module"
        return network.eval()

    def images(self, record: Architecture, count: int, channels: int | None = None) -> torch.Tensor:
        """(count, C, H, W) float32: natural statistics, preprocessed as the record says."""
        spec = self._spec(record)
        return probe(spec.with_channels(channels or spec.channels), count)

    def test_the_record_is_whole(self, record: Architecture) -> None:
        assert record.name == self.name, f"'{self.name}' is a short name of {record.name}: test it by its own"
        assert record.summary, "a line of summary is what `zoo list` shows"
        assert "\n" not in record.summary, "the summary is one line"
        assert record.license, "the licence of the code goes into every bundle"
        assert record.task in get_registry().names(Task)
        assert callable(record.resolve())

    def test_registering_imports_nothing_heavy(self, record: Architecture) -> None:
        owner = get_registry().owner(Architecture, record.name)
        entry = next((e for e in find_entry_points(GROUP) if e.name == owner.name), None)
        if entry is None:
            pytest.skip(f"plugin {owner.name} has no entry point: it is registered by hand")
        code = (
            f"import sys, importlib\nplugin = importlib.import_module({entry.value!r})\nlist(plugin.zoo_register())\n"
            "print(*sorted({'torch', 'torchvision', 'timm', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "", f"{entry.value} imports {done.stdout.strip()}: `zoo list` would wait for it"

    @pytest.mark.parametrize(("classes", "channels"), [(2, 3), (7, 1), (5, 4)])
    def test_builds_for_any_classes_and_channels(self, record: Architecture, classes: int, channels: int) -> None:
        if record.makes is not None or record.input.color == "RGBA":
            pytest.skip("its channels are not a user's to choose: latents, or colours and what is known")
        if record.task in PICTURES and channels == 4:
            pytest.skip("images that are made are grey or in colour")
        network = self.build(record, classes, channels)
        images = self.images(record, 2, channels)
        with torch.inference_mode():
            answers = self.answers(record, network, images)
        shapes = {name: tuple(value.shape) for name, value in answers.items()}
        if record.task == "classify":
            assert shapes["logits"] == (2, classes), f"gives {shapes['logits']} for 2 images and {classes} classes"
        elif record.task == "segment":
            wanted = (2, classes, *images.shape[2:])
            assert shapes["logits"] == wanted, f"gives {shapes['logits']}: logits of {classes} classes are {wanted}"
        elif record.task == "detect":
            assert shapes["boxes"] == (2, shapes["boxes"][1], 4)
            assert shapes["scores"] == (2, shapes["boxes"][1], classes)
            assert bool(((answers["scores"] >= 0) & (answers["scores"] <= 1)).all())
            assert bool((answers["boxes"][..., 2:] >= answers["boxes"][..., :2]).all()), "boxes are x1, y1, x2, y2"
        elif record.task in PICTURES:
            scale = self._decode(record, network).get("scale", 1)
            wanted = (2, channels, *(scale * side for side in images.shape[2:]))
            assert shapes["output"] == wanted, f"gives {shapes['output']}: scale {scale} makes {wanted}"
        for name, value in answers.items():
            assert value.dtype == torch.float32, name
            assert bool(torch.isfinite(value).all()), name

    def answers(self, record: Architecture, network: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the network says of (N, C, H, W) images, before anything that only a deployed graph does."""
        raw = network(images)
        if record.task == "detect":
            boxes, scores = network.decode(raw)
            return {"boxes": boxes, "scores": scores}
        return {"output" if record.task in PICTURES else "logits": raw}

    def test_makes_images_of_every_size(self, record: Architecture, tmp_path: Path) -> None:
        """(N, C', H * scale, W * scale) float32 in shares of white, of images that are not square too where nothing is
        resized: then in PyTorch as in the one graph whose size was left open."""
        if record.task not in PICTURES:
            pytest.skip("it makes no images")
        network = self.build(record, 10, record.input.channels)
        spec, settings = self._spec(record), self._decode(record, network)
        give_signal(network.generator if isinstance(network, Players) else network, spec)
        if record.makes is not None:
            shape = getattr(network, "image_shape", None)
            assert shape is not None, "a network of latents tells image_shape, (C, H, W) of what it makes"
            assert self.size in (None, shape[1]), f"image_shape tells of {shape[1]} pixels where size is {self.size}"
            _check_images(network, probe(spec, 2), (2, *shape))
            return
        scale, multiple = (settings.get(name, 1) for name in ("scale", "multiple"))
        channels = 3 if spec.color == "RGBA" else spec.channels
        _check_images(network, probe(spec, 2), (2, channels, spec.height * scale, spec.width * scale))
        if spec.resize != "crop":
            return
        side = -(-spec.height // multiple) * multiple
        wide = probe(spec.with_size(side, side + 3 * multiple), 2)
        made = _check_images(network, wide, (2, channels, side * scale, (side + 3 * multiple) * scale))
        _, graph = self.export(record, tmp_path, dynamic_size=True, scale=scale)
        session = get_registry().get(Runtime, "onnxruntime").resolve()(graph.path, threads=1)
        off = np.abs(session.run(wide.numpy())["output"] - made).max() / made.std()
        assert off < 1e-3, f"of {tuple(wide.shape[2:])} pixels ONNX Runtime is off by {off:.2g} of the spread"

    def test_only_the_head_depends_on_the_classes(self, record: Architecture) -> None:
        """Transfer learning keeps everything but the head: so everything else must keep its name and its shape."""
        if not record.classes:
            pytest.skip("it knows no classes")
        small = self.build(record, 3, record.input.channels).state_dict()
        large = self.build(record, 11, record.input.channels).state_dict()
        heads = tuple(record.head.split(","))
        differing = {
            k for k in {*small, *large} if k not in small or k not in large or small[k].shape != large[k].shape
        }
        outside = sorted(k for k in differing if not any(k == h or k.startswith(h + ".") for h in heads))
        assert differing, "nothing depends on the number of classes"
        assert not outside, (
            f"beside the head {record.head}, these depend on the number of classes: {', '.join(outside[:3])}"
        )

    def _play(self, record: Architecture, network: Players) -> None:
        """Each player's turn is finite, and reaches every parameter that it moves."""
        network.train()
        images = self.images(record, 4)
        with torch.no_grad():
            target = network(images).sigmoid()
        labels = torch.arange(4) if record.classes else None
        if record.makes is None and record.task == "restore" and record.input.color == "RGBA":
            assert target.shape[1] == 3
        batch = Batch(input=images, target=target, labels=labels)

        def perceptual(made: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"content": (made - wanted).square().mean(), "style": (made.mean() - 0.3).square()}

        unknown = set(self.refuses) - set(network.losses)
        assert not unknown, f"listed as refused, but no loss of this network: {', '.join(sorted(unknown))}"
        played: set[str] = set()
        for loss in network.losses:
            rules = Rules(loss=loss, perceptual=perceptual)
            turns = [[p for p in network.players if network.takes_turn(p, step, rules)] for step in range(STEPS)]
            movers = max(turns, key=len)
            assert movers, f"{loss}: nobody takes a turn in {STEPS} steps"
            reason, refusal = self.refuses.get(loss), ""
            try:
                self._take_turns(network, movers, batch, rules)
            except ZooError as error:
                refusal = str(error)
            if reason is None:
                assert not refusal, f"{loss} is refused, and not listed as such: {refusal}"
                played.update(movers)
            else:
                assert refusal, f"{loss} is listed as refused, but all turns were taken"
                assert reason in refusal, f"{loss} is refused for another reason than '{reason}': {refusal}"
        assert played == set(network.players), f"no turn of {set(network.players) - played} was seen under any loss"

    def _take_turns(self, network: Players, movers: Sequence[str], batch: Batch, rules: Rules) -> None:
        """The turns of one step. Raises ZooError where the loss does not go with how the network was built."""
        shared: dict[str, Any] = {}
        for player in movers:
            network.zero_grad(set_to_none=True)
            turn = network.play(player, batch, rules, shared)
            total = torch.stack(list(turn.losses.values())).sum()
            who = f"{rules.loss}, {player}"
            assert bool(torch.isfinite(total)), f"{who}: the loss is not finite: {turn.losses}"
            torch.autograd.backward(total)
            moved = {id(p) for part in network.parts(player) for p in part.parameters() if p.requires_grad}
            assert moved, f"{who}: moves nothing"
            _check_gradients({n: p for n, p in network.named_parameters() if id(p) in moved}, who)

    def test_gradients_reach_every_parameter(self, record: Architecture) -> None:
        network = self.build(record, 10 if record.makes else 3, record.input.channels)
        give_signal(network, self._spec(record))  # a branch that starts at zero has no gradient behind it
        if isinstance(network, Players):
            self._play(record, network)
            return
        images = self.images(record, 2)
        if record.task == "detect":
            side = float(images.shape[-1])
            target = {
                "boxes": torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.4, 0.3, 0.95, 0.9]]) * side,
                "classes": torch.tensor([0, 2]),
            }
            parts = network.train().loss(network(images), [target, {k: v[:0] for k, v in target.items()}])  # type: ignore[operator]
            total = torch.stack(list(parts.values())).sum()
            assert bool(torch.isfinite(total)), f"the loss is not finite: {parts}"
            torch.autograd.backward(total)
        else:
            network(images).square().sum().backward()
        # which of its levels a detector learns with is a matter of how large the objects are
        may_be_zero = record.task == "detect"
        _check_gradients({n: p for n, p in network.named_parameters() if p.requires_grad}, may_be_zero=may_be_zero)

    def test_is_deterministic(self, record: Architecture) -> None:
        one, two = (self.build(record, 10 if record.makes else 3, record.input.channels) for _ in range(2))
        images = self.images(record, 3)
        with torch.inference_mode():
            first, second, again = (self.answers(record, n, images) for n in (one, two, one))
        for name in first:
            assert torch.equal(first[name], again[name]), (
                "two evaluations of one network differ: is something random in eval mode?"
            )
            assert torch.equal(first[name], second[name]), (
                "the same seed builds different networks: draw from torch's own generator"
            )

    def test_images_of_a_batch_do_not_meet(self, record: Architecture) -> None:
        network = self.build(record, 10 if record.makes else 3, record.input.channels)
        give_signal(network.generator if isinstance(network, Players) else network, self._spec(record))
        images = self.images(record, 3)
        with torch.inference_mode():
            together, alone = self.answers(record, network, images), self.answers(record, network, images[:1])
        for name in together:
            spread = float(together[name].std()) + 1e-12
            difference = float((together[name][:1] - alone[name]).abs().max()) / spread
            assert difference < 1e-3, f"an image's answer changes by {difference:.2g} of the spread with its neighbours"

    def test_the_published_size_is_right(self, record: Architecture) -> None:
        if not record.parameters:
            pytest.skip("the record does not state its parameters")
        classes = ((record.weights[0].num_classes if record.weights else 0) or 10) if record.classes else 0
        network = record.resolve()(num_classes=classes, in_channels=record.input.channels, **record.options)
        assert sum(p.numel() for p in network.parameters()) == record.parameters

    def test_onnx_equals_pytorch(self, record: Architecture, exported: tuple[Any, Artifact]) -> None:
        """Exported with weights that carry signal; and a layer changed by 1 % must not pass for the same."""
        deployable, made = exported
        task, spec = made.task, made.input
        assert made.path is not None
        session = get_registry().get(Runtime, "onnxruntime").resolve()(made.path, threads=1)
        tensors = self.images(record, 6)
        expected = _run(deployable, tensors, task)
        half = task.resolve()(**self._decode(record, self.build(record, 10, record.input.channels)))
        assert carries_signal(expected[half.deciding].reshape(len(tensors), -1)) > 0.05, (
            "the answers hardly depend on the image: parity would be blind"
        )
        samples = Samples(
            task=task,
            half=half,
            labels=tuple("0123456789"),
            ids=tuple("012345"),
            targets=None,
            source="seeded",
            tensors=tensors.numpy(),
        )
        exact = _run(copy.deepcopy(deployable).double(), tensors.double(), task)
        reference = Reference(name=f"PyTorch {torch.__version__}", outputs=expected, exact=exact)

        def judge(outputs: Mapping[str, np.ndarray]) -> Any:
            candidate = Candidate(name="fp32", precision="fp32", outputs=outputs, tolerances=task.tolerances["fp32"])
            return next(f for f in get_registry().verify(candidate, reference, samples) if f.gate == "numbers")

        parts = [session.run(tensors[:1].numpy()), session.run(tensors[1:].numpy())]
        finding = judge({name: np.concatenate([p[name] for p in parts]) for name in task.outputs})
        assert finding, finding.message
        self._runs_without_torch(record, made.path, tensors.numpy(), spec, session, half)
        broken = copy.deepcopy(deployable)
        with torch.no_grad():
            weights = [m.weight for m in broken.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
            middle = weights[len(weights) // 2]
            # half of what comes in: all of it would fall out again in a normalisation of the image
            middle[:, : max(1, middle.shape[1] // 2)].mul_(1 + self.change)
        assert not judge(_run(broken, tensors, task)), f"a layer changed by {100 * self.change:g} % was not noticed"

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_tensorrt_takes_it(self, record: Architecture, exported: tuple[Any, Artifact], precision: str) -> None:
        """Linted, parsed and built for real by TensorRT-RTX, which needs no GPU; every layer has the type that was asked
        for or is named as kept; ONNX Runtime executes the very graph."""
        _, made = exported
        found = build_for_tensorrt(made, precision, self.images(record, 4).numpy())
        failed = [f.message for f in found.findings if f.verdict == FAIL]
        if precision in self.refused:
            assert any(self.refused[precision] in message for message in failed), (
                f"{precision} is listed as refused, but: {failed or 'it was built'}"
            )
            return
        assert not failed, failed

    def _runs_without_torch(
        self, record: Architecture, path: Path, tensors: np.ndarray, spec: ImageInput, session: Any, half: TaskHalf
    ) -> None:
        """A process that cannot import torch gives the same results from the same graph."""
        frames = [frame(spec.width, spec.height, spec)] * 2
        expected = half.decode(session.run(tensors[:2]), labels=tuple("0123456789"), frames=frames)
        np.save(path.with_suffix(".npy"), tensors[:2])
        code = (
            "import json, pathlib, sys\n"
            "sys.modules.update({n: None for n in ('torch', 'torchvision', 'timm', 'onnx', 'pluggy', 'click')})\n"
            "import numpy as np\n"
            "from zoo.inputs import frame\n"
            "from zoo.lookup import find_task\n"
            "from zoo.runtime.choosing import choose\n"
            "from zoo.specs import ImageInput\n"
            "path, task, spec = pathlib.Path(sys.argv[1]), sys.argv[2], ImageInput.from_dict(json.loads(sys.argv[3]))\n"
            "session = choose('onnx').runtime.resolve()(path, threads=1)\n"
            "half = find_task(task).resolve()(**json.loads(sys.argv[4]))\n"
            "frames = [frame(spec.width, spec.height, spec)] * 2\n"
            "outputs = session.run(np.load(path.with_suffix('.npy')))\n"
            "results = half.decode(outputs, labels=tuple('0123456789'), frames=frames)\n"
            "print(json.dumps([r.to_dict() for r in results]))\n"
        )
        arguments = [str(path), record.task, json.dumps(spec.to_dict()), json.dumps(half.settings)]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == json.loads(json.dumps([r.to_dict() for r in expected]))

    def _spec(self, record: Architecture) -> Any:
        if record.makes is not None:  # the size is the images', and what is told of classes comes behind the latents
            return record.input.with_channels(record.input.channels + (10 if record.classes else 0))
        return record.input.with_size(self.size) if self.size else record.input

    def _decode(self, record: Architecture, network: Any) -> dict[str, Any]:
        return {**record.decode, **(network.decode if isinstance(network, Players) else {})}


def build_for_tensorrt(made: Artifact, precision: str, images: np.ndarray) -> Artifact:
    """An fp32 ONNX artefact in ``precision``, linted, parsed and built by TensorRT-RTX: which needs no GPU for it. What
    is written lies beside the artefact, where the names of its modules are.

    ``images`` (N, C, H, W) float32 calibrate. Where nothing was refused, asserts that an engine is there, that at least
    half of the layers are in that precision (of few: that each that is not is named), and that ONNX Runtime executes the
    graph. Skips without TensorRT-RTX.
    """
    registry = get_registry()
    exporters = [e for e in registry.specs(Exporter) if e.writes == "tensorrt"]
    if not exporters or find("tensorrt-rtx") is None:
        pytest.skip("needs TensorRT-RTX, whose parser and builder are asked: pip install tensorrt-rtx")
    assert made.path is not None
    exporter, folder = exporters[0].resolve(), made.path.parent
    if precision != "fp32":
        convert = registry.precision(precision, "onnx", "tensorrt").resolve()
        calibration = Calibration(tensors=images, source=f"{len(images)} made images")
        made = convert(made, folder / f"model.{precision}.onnx", calibration)
    options = {"target": "tensorrt-rtx", "batch": (1, 1, 2)}
    found: Artifact = exporter(made, folder / f"model.{precision}.tensorrt", options)
    if any(f.verdict == FAIL for f in found.findings):
        return found
    found = exporter.complete(found, options)
    if any(f.verdict == FAIL for f in found.findings):
        return found
    assert found.path is not None
    (engine,) = found.build["engines"]
    assert found.path.with_name(engine["file"]).stat().st_size == engine["bytes"] > 0
    layers = found.notes["layers"]
    have = [layer for layer in layers if layer["graph"] == precision]
    assert have, f"no layer is {precision}"
    if len(layers) >= FEW:
        assert len(have) * 2 >= len(layers), f"{len(have)} of {len(layers)} layers are {precision}"
    else:
        others = {layer["module"] or layer["layer"] for layer in layers if layer["graph"] != precision}
        untold = sorted(others - set(made.notes.get("float_layers", ())))
        assert not untold, f"not {precision}, and not named among what is left in float: {', '.join(untold[:3])}"
    outputs = registry.get(Runtime, "onnxruntime").resolve()(found.path, threads=1).run(images[:2])
    assert all(np.isfinite(outputs[name]).all() for name in found.task.outputs)
    return found


def _check_images(network: nn.Module, x: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """What a network makes of inputs, after asserting its shape, its type, and that they may be shares of white."""
    with torch.inference_mode():
        made: torch.Tensor = network(x)
    assert tuple(made.shape) == shape, f"makes {tuple(made.shape)} of {tuple(x.shape)}: it should be {shape}"
    assert made.dtype == torch.float32, f"makes {made.dtype}, not float32"
    assert bool(torch.isfinite(made).all()), "what it makes is not finite"
    low, high = float(made.min()), float(made.max())
    # what lies beyond 0..1 is cut off; a network that is not trained goes there, but not as far as steps of 255 would
    assert -BEYOND <= low < high <= BEYOND, f"makes values from {low:.3g} to {high:.3g}: 0 is black, 1 is white"
    return made.numpy()


def _check_gradients(parameters: Mapping[str, nn.Parameter], who: str = "", *, may_be_zero: bool = False) -> None:
    """Asserts that each has a finite gradient, not all of zeros. A bias's may be: a normalisation behind it takes away what
    is added to all values alike, and so does a loss of differences."""
    start = f"{who}: " if who else ""
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    without = [n for n, g in gradients.items() if g is None]
    assert not without, f"{start}no gradient reaches {', '.join(without[:3])}"
    wild = [n for n, g in gradients.items() if g is not None and not bool(torch.isfinite(g).all())]
    assert not wild, f"{start}the gradient of {', '.join(wild[:3])} is not finite"
    still = [n for n, g in gradients.items() if g is not None and not bool(g.any()) and not n.endswith("bias")]
    assert may_be_zero or not still, f"{start}the gradient of {', '.join(still[:3])} is zero"


def _run(module: nn.Module, tensors: torch.Tensor, task: Task) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return {name: value.numpy() for name, value in zip(task.outputs, module(tensors), strict=True)}
