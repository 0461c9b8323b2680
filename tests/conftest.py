"""What every test may use: the real data where it is at hand, one thread a test, and a registry that is its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Two xdist workers on two cores: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real images and weights that are not part of this repository. Skips where they are absent."""
    folder = Path(os.environ.get("ZOO_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"no test assets at {folder}: set ZOO_ASSETS")
    return folder


@pytest.fixture
def zoo() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line as a user does, in a process of its own; gives the finished process with its output."""

    def run(*args: object, check: int | None = 0, **kwargs: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *(str(a) for a in args)],
            capture_output=True,
            text=True,
            timeout=600,
            **kwargs,  # type: ignore[call-overload]
        )
        if check is not None:
            assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback (most recent call last)" not in done.stderr, done.stderr
        return done

    return run


def _tiny_graph(task: str):  # type: ignore[no-untyped-def]
    """A hand-written graph of (N, 3, 16, 16) images for a task of three classes, its outputs and its weights."""
    import numpy as np
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    conv = helper.make_node("Conv", ["image", "w0"], ["c"], strides=[2, 2])
    weights = {"w0": rng.normal(size=(6, 3, 3, 3)).astype(np.float32)}
    if task == "classify":
        weights |= {
            "w1": (rng.normal(size=(3, 6)) * 2).astype(np.float32),
            "b1": rng.normal(size=(3,)).astype(np.float32),
        }
        nodes = [
            conv,
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w1", "b1"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        ]
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("logits", "scores")]
    elif task == "segment":
        weights = {"w0": rng.normal(size=(3, 3, 3, 3)).astype(np.float32)}
        nodes = [
            helper.make_node("Conv", ["image", "w0"], ["logits"], pads=[1, 1, 1, 1]),
            helper.make_node("ArgMax", ["logits"], ["a"], axis=1, keepdims=0),
            helper.make_node("Cast", ["a"], ["classes"], to=TensorProto.UINT8),
        ]
        outputs = [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 16, 16]),
            helper.make_tensor_value_info("classes", TensorProto.UINT8, ["batch", 16, 16]),
        ]
    else:  # 49 cells that say a score for each of three classes and four sides
        centres = np.stack(np.meshgrid(np.arange(7) * 2 + 2, np.arange(7) * 2 + 2), axis=-1).reshape(1, 49, 2)
        weights |= {
            "w1": rng.normal(size=(7, 6, 1, 1)).astype(np.float32),
            "shape": np.array([0, 7, 49]),
            "centres": np.concatenate([centres, centres], axis=2).astype(np.float32),
            "outwards": np.array([-4, -4, 4, 4], np.float32),
            "splits": np.array([4, 3]),
        }
        nodes = [
            conv,
            helper.make_node("Conv", ["c", "w1"], ["h"]),
            helper.make_node("Reshape", ["h", "shape"], ["flat"]),
            helper.make_node("Transpose", ["flat"], ["cells"], perm=[0, 2, 1]),
            helper.make_node("Sigmoid", ["cells"], ["shares"]),
            helper.make_node("Split", ["shares", "splits"], ["sides", "scores"], axis=2),
            helper.make_node("Mul", ["sides", "outwards"], ["moves"]),
            helper.make_node("Add", ["moves", "centres"], ["boxes"]),
        ]
        outputs = [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", 49, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 49, 3]),
        ]
    return nodes, outputs, weights


def _make_tiny(folder: Path, task: str) -> Path:
    """A whole bundle around a hand-written graph, made without torch."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from zoo import __version__
    from zoo.files import dump_json, sha256_file
    from zoo.lookup import find_task
    from zoo.parity.evidence import natural_images
    from zoo.parity.golden import make_golden
    from zoo.runtime.ort import open_session
    from zoo.specs import ImageInput

    nodes, outputs, weights = _tiny_graph(task)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        outputs,
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir()
    onnx.save(model, folder / "model.fp32.onnx")
    spec = ImageInput(height=16, width=16, crop=0.875)
    if task != "classify":
        spec = ImageInput(height=16, width=16, resize="letterbox")
    labels = ["ant", "bee", "cat"]
    half = find_task(task).resolve()()
    images = [(f"image {i}", pixels) for i, pixels in enumerate(natural_images(3, 40, 31, seed=9))]
    golden = make_golden(folder, spec, images, {"fp32": open_session(folder / "model.fp32.onnx")}, half, labels)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    kinds = {TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8"}
    manifest = {
        "schema": 1,
        "name": "tiny",
        "made_by": f"edgezoo {__version__}",
        "task": task,
        "input": spec.to_dict(),
        "decode": half.settings,
        "outputs": [
            {
                "name": o.name,
                "dtype": kinds[o.type.tensor_type.elem_type],
                "shape": ["batch", *(d.dim_value for d in o.type.tensor_type.shape.dim[1:])],
            }
            for o in outputs
        ],
        "labels": labels,
        "artifacts": [
            {"name": "fp32", "format": "onnx", "precision": "fp32", "file": "model.fp32.onnx", "status": "built"}
        ],
        "default": "fp32",
        "golden": golden,
        "files": {
            p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files
        },
    }
    assert np.load(folder / "golden.npz")["tensors"].shape[0] == len(golden["samples"])
    dump_json(folder / "zoo.json", manifest)
    return folder


@pytest.fixture(scope="session")
def _tiny_bundles_made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("tiny")
    return {task: _make_tiny(place / task, task) for task in ("classify", "segment", "detect")}


@pytest.fixture
def tiny_bundle(_tiny_bundles_made: dict[str, Path], tmp_path: Path) -> Path:
    """A fresh copy of a small, good bundle folder: break it as you like."""
    return Path(shutil.copytree(_tiny_bundles_made["classify"], tmp_path / "tiny"))


@pytest.fixture
def tiny_bundles(_tiny_bundles_made: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The same for each task: classify, segment, detect."""
    return {task: Path(shutil.copytree(p, tmp_path / f"tiny-{task}")) for task, p in _tiny_bundles_made.items()}


# -- trained networks: small, quick, and with signal -------------------------------------------------------------

DIGITS_VAL_SHARE = 0.4
"""Leaves some 360 images to judge by: the accuracy gate needs about 330 to rule out a drop of half a point."""


def _write_digits(folder: Path, coloured: bool) -> Path:
    """The digits 0 to 4 that scikit-learn carries as PNG files, one folder a class, in sizes that really resize.

    Coloured: ink is red or blue and the class says which, so that a network must see colours.
    """
    import numpy as np
    from PIL import Image

    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits(n_class=5)
    draw = np.random.default_rng(0)
    for index, (ink, target) in enumerate(zip(digits.images / 16.0, digits.target, strict=True)):
        red = bool(draw.integers(2))
        name = f"{target} {'red' if red else 'blue'}" if coloured else str(target)
        if coloured:
            paper = draw.uniform(20, 60, size=(1, 1, 3))
            colour = np.asarray([220.0, 60.0, 50.0] if red else [50.0, 60.0, 220.0])
            pixels = paper * (1 - ink[:, :, None]) + colour * ink[:, :, None]
        else:
            pixels = 255 * ink
        image = Image.fromarray(pixels.round().astype(np.uint8))
        image = image.resize((int(draw.integers(36, 60)), int(draw.integers(40, 64))), Image.Resampling.BICUBIC)
        (folder / name).mkdir(parents=True, exist_ok=True)
        image.save(folder / name / f"{index:04d}.png")
    return folder


@pytest.fixture(scope="session")
def grey_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-per-folder data set: 901 grey digits of 5 classes."""
    return _write_digits(tmp_path_factory.mktemp("grey") / "digits", coloured=False)


@pytest.fixture(scope="session")
def coloured_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-per-folder data set: 901 coloured digits of 10 classes."""
    return _write_digits(tmp_path_factory.mktemp("coloured") / "digits", coloured=True)


def _train(source: str, data: Path, folder: Path, *, epochs: int) -> Path:
    """Train every weight of an architecture for a few seconds, and leave a checkpoint folder."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from zoo.data import open_data
    from zoo.inputs import preprocess_batch
    from zoo.train.models import open_model, save_checkpoint

    splits = open_data(data, val_share=DIGITS_VAL_SHARE, seed=0)
    torch.manual_seed(0)
    model = open_model(source, weights="none", labels=splits.labels)
    images = torch.from_numpy(preprocess_batch([s.image for s in splits.train], model.input))
    targets = torch.tensor(splits.train.targets)
    network = model.network.train()
    steps = epochs * (len(images) // 32)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        pick = torch.randint(len(images), (32,), generator=order)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(images[pick]), targets[pick]).backward()
        optimiser.step()
        schedule.step()
    network.eval()
    divided = {"val_share": DIGITS_VAL_SHARE, "split_seed": 0, "val": {"fingerprint": splits.val.fingerprint()}}
    save_checkpoint(folder, model, metrics={}, data=divided, seed=0)
    return folder


@pytest.fixture(scope="session")
def lenet_checkpoint(grey_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeNet that reads the grey digits."""
    return _train("lenet5", grey_digits, tmp_path_factory.mktemp("lenet") / "lenet", epochs=6)


@pytest.fixture(scope="session")
def colournet() -> str:
    """Name of a small convolutional network with batch norm and colour input, registered for this process only."""
    import types

    from zoo.registry import get_registry
    from zoo.specs import Architecture, ImageInput

    spec = Architecture(
        name="test-colournet",
        summary="Three convolutions with batch norm, for tests",
        task="classify",
        input=ImageInput(height=32, width=32, resize="shortest", crop=0.875),
        head="head",
        load="zoo_test_colournet:build",
    )

    def build(*, num_classes: int, in_channels: int) -> object:
        from torch import nn

        def block(before: int, after: int) -> list[nn.Module]:
            return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

        class ColourNet(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.features = nn.Sequential(
                    *block(in_channels, 8),
                    nn.MaxPool2d(2),
                    *block(8, 16),
                    nn.MaxPool2d(2),
                    *block(16, 32),
                    nn.MaxPool2d(2),
                )
                self.head = nn.Linear(32 * 4 * 4, num_classes)

            def forward(self, x):  # type: ignore[no-untyped-def]
                return self.head(self.features(x).flatten(1))

        return ColourNet()

    registry = get_registry()
    if spec.name not in registry.names(Architecture):
        module = types.ModuleType("zoo_test_colournet")
        module.build = build  # type: ignore[attr-defined]
        module.zoo_register = lambda: [spec]  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
        plugin = registry.add("test-colournet", module, "tests", "0")
        assert not plugin.error, plugin.error
        if spec.name not in registry.names(Architecture):  # zoo_register needs the marker that the real ones carry
            registry._file(spec, plugin)
    return spec.name


@pytest.fixture(scope="session")
def colournet_checkpoint(colournet: str, coloured_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour network, trained on the coloured digits."""
    return _train(colournet, coloured_digits, tmp_path_factory.mktemp("colournet") / "colournet", epochs=8)
