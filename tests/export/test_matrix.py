"""One member of each family, with weights that carry signal: exported, equal, run without torch, and broken on purpose."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo.artifacts import Artifact
from zoo.parity import FAIL, Candidate, Reference, Samples
from zoo.parity.gates import numbers
from zoo.parity.verify import bounds
from zoo.registry import get_registry
from zoo.runtime.ort import open_session
from zoo.specs import Architecture, ImageInput, Task
from zoo.testing import build_for_tensorrt
from zoo.testing.signal import carries_signal, give_signal, probe
from zoo.train.classify import ClassifyTrainer
from zoo_export.onnx_export import export

# name, side in pixels, what makes it small
FAMILIES: list[tuple[str, int, dict[str, Any]]] = [
    ("lenet5", 28, {}),
    ("vgg11_bn", 64, {"mlp_ratio": 0.0625}),
    ("resnet18", 64, {}),
    ("inception_v3", 107, {}),
    ("mobilenetv2_050", 64, {}),
    ("mobilenetv3_small_050", 64, {}),
    ("efficientnet_b0", 64, {}),
    ("densenet121", 64, {}),
    ("convnext_atto", 64, {}),
    ("vit_tiny_patch16_224", 64, {"img_size": 64}),
]

CLASSES = 10


@dataclass
class Exported:
    network: Any
    deployable: Any
    spec: ImageInput
    path: Path
    samples: Samples
    reference: Reference


SLOW = ("inception_v3", "densenet121")
"""Hundreds of nodes: some 20 seconds each to export."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(f, id=f[0], marks=[pytest.mark.slow] if f[0] in SLOW else []) for f in FAMILIES],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    name, side, options = request.param
    registry = get_registry()
    architecture = registry.get(Architecture, name)
    spec = architecture.input.with_size(side)
    torch.manual_seed(0)
    network = architecture.resolve()(
        num_classes=CLASSES, in_channels=spec.channels, **{**architecture.options, **options}
    )
    give_signal(network, spec, seed=1)
    module = ClassifyTrainer().deployable(network).eval()
    task = registry.get(Task, "classify")
    tensors = probe(spec, 12, seed=5).numpy()
    reference = Reference(
        name="PyTorch",
        outputs=run(module, tensors),
        exact=run(copy.deepcopy(module).double(), tensors.astype(np.float64)),
    )
    folder = tmp_path_factory.mktemp(name)
    source = Artifact(format="torch", precision="fp32", input=spec, task=task, module=module)
    artifact = export(source, folder / "model.fp32.onnx", {})
    assert artifact.path is not None
    samples = Samples(
        task=task,
        half=task.resolve()(),
        labels=tuple(str(i) for i in range(CLASSES)),
        ids=tuple(str(i) for i in range(len(tensors))),
        targets=None,
        source="natural images",
        tensors=tensors,
    )
    return Exported(network, module, spec, artifact.path, samples, reference)


def run(module: Any, tensors: np.ndarray) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        logits, scores = module(torch.from_numpy(tensors))
    return {"logits": logits.numpy(), "scores": scores.numpy()}


def judge(exported: Exported, outputs: dict[str, np.ndarray]) -> Any:
    candidate = Candidate(
        name="fp32", precision="fp32", outputs=outputs, tolerances=bounds(exported.samples.task, "fp32")
    )
    return numbers(candidate, exported.reference, exported.samples)


def test_the_network_carries_signal(exported: Exported) -> None:
    """Otherwise the rest of this file proves nothing."""
    share = carries_signal(exported.reference.outputs["logits"])
    assert share > 0.1, f"only {share:.3f} of the logits depends on the image"


def test_onnx_equals_pytorch_at_any_batch(exported: Exported) -> None:
    session = open_session(exported.path, threads=1)
    assert session.output_names == ("logits", "scores")
    tensors = exported.samples.tensors
    parts = [session.run(tensors[:1]), session.run(tensors[1:4]), session.run(tensors[4:])]
    finding = judge(exported, {name: np.concatenate([p[name] for p in parts]) for name in session.output_names})
    assert finding, finding.message


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_takes_it(exported: Exported, precision: str) -> None:
    made = Artifact(
        format="onnx", precision="fp32", input=exported.spec, task=exported.samples.task, path=exported.path
    )
    found = build_for_tensorrt(made, precision, exported.samples.tensors[:4])
    assert not [f.message for f in found.findings if f.verdict == FAIL]


def test_runs_without_torch(exported: Exported, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", exported.samples.tensors[:2])
    code = (
        "import sys, numpy, pathlib\n"
        "sys.modules.update({name: None for name in ('torch', 'onnx', 'timm', 'click', 'pluggy')})\n"
        "from zoo.runtime.ort import open_session\n"
        "numpy.save(sys.argv[3], open_session(pathlib.Path(sys.argv[1]), threads=1).run(numpy.load(sys.argv[2]))['logits'])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(exported.path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")], check=True
    )
    expected = exported.reference.outputs["logits"][:2]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-3 * float(np.abs(expected).max()))


def scale(layer: Any, factor: float) -> None:
    layer.weight.mul_(factor)


def weighted(network: Any) -> list[Any]:
    return [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]


MUTATIONS: dict[str, Callable[[Any], None]] = {
    "first layer x 1.01": lambda net: scale(weighted(net)[0], 1.01),
    "a layer at one third x 1.01": lambda net: scale(weighted(net)[len(weighted(net)) // 3], 1.01),
    "a layer in the middle x 1.01": lambda net: scale(weighted(net)[len(weighted(net)) // 2], 1.01),
    "a layer at two thirds x 1.01": lambda net: scale(weighted(net)[2 * len(weighted(net)) // 3], 1.01),
    "last layer x 1.01": lambda net: scale(weighted(net)[-1], 1.01),
    "one channel of the first layer off": lambda net: weighted(net)[0].weight[0].zero_(),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_controls(exported: Exported, mutation: str) -> None:
    """A network broken on purpose must not pass for the one it was made from."""
    broken = copy.deepcopy(exported.deployable)
    with torch.no_grad():
        MUTATIONS[mutation](broken.network)
    finding = judge(exported, run(broken, exported.samples.tensors))
    assert not finding, f"{mutation} was not caught: {finding.message}"


def test_the_unbroken_network_passes(exported: Exported) -> None:
    """The control of the controls: what catches mutations must let the honest copy pass."""
    finding = judge(exported, run(copy.deepcopy(exported.deployable), exported.samples.tensors))
    assert finding, finding.message
