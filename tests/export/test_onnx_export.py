"""From torch to ONNX: the same bytes anywhere, no trace of this machine, and one clear line where it cannot be done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from zoo.artifacts import Artifact
from zoo.builtin import CLASSIFY
from zoo.errors import ExportError
from zoo.runtime.ort import open_session
from zoo.specs import ImageInput
from zoo.train.classify import Deployable
from zoo_export import onnx_export
from zoo_export.graphs import hushed, save
from zoo_export.onnx_export import export

SPEC = ImageInput(height=16, width=12)

# A script, so that two processes in two folders run it: torch puts the paths of its sources into every node.
SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn
from zoo.artifacts import Artifact
from zoo.builtin import CLASSIFY
from zoo.specs import ImageInput
from zoo.train.classify import Deployable
from zoo_export.precision.int8_cpu import convert
from zoo_export.onnx_export import export
from zoo.artifacts import Calibration
from zoo.testing.signal import probe

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Hardswish())
        self.head = nn.Linear(8, 5)
    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

torch.manual_seed(0)
spec = ImageInput(height=16, width=12)
source = Artifact(format="torch", precision="fp32", input=spec, task=CLASSIFY, module=Deployable(Net()).eval())
fp32 = export(source, Path(sys.argv[1]) / "model.fp32.onnx", {})
convert(fp32, Path(sys.argv[1]) / "model.int8.onnx", Calibration(tensors=probe(spec, 16).numpy(), source="made"))
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def source(network: nn.Module) -> Artifact:
    return Artifact(format="torch", precision="fp32", input=SPEC, task=CLASSIFY, module=Deployable(network).eval())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, nn.Module]:
    torch.manual_seed(0)
    given = source(Net())
    return export(given, tmp_path_factory.mktemp("onnx") / "model.fp32.onnx", {}), given.module


def test_two_runs_in_two_folders_give_the_same_bytes(tmp_path: Path) -> None:
    """fp32 and int8; the folders differ in depth, the processes in their hash seed."""
    results = []
    for seed, folder in enumerate((tmp_path / "one", tmp_path / "two" / "much" / "deeper")):
        folder.mkdir(parents=True)
        script = folder / f"net{seed}.py"
        script.write_text(SCRIPT)
        done = subprocess.run(
            [sys.executable, str(script), str(folder)],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "", "the exporter prints"
        assert done.stderr == "", "the exporter prints"
        assert {p.name for p in folder.iterdir()} == {
            script.name,
            "model.fp32.onnx",
            "model.int8.onnx",
            "model.modules.json",
        }
        results.append(
            [(folder / name).read_bytes() for name in ("model.fp32.onnx", "model.int8.onnx", "model.modules.json")]
        )
    assert results[0] == results[1]
    for data in (*results[0], *results[1]):
        for path in (str(tmp_path), str(Path(torch.__file__).parent), str(Path.home()), str(Path(__file__).parents[2])):
            assert path.encode() not in data, f"{path} is told"


def test_nothing_of_this_machine_is_told(exported: tuple[Artifact, nn.Module]) -> None:
    model = onnx.load(str(exported[0].path))
    assert not model.metadata_props
    assert not model.producer_version
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b".py" not in model.SerializeToString()
    assert b"site-packages" not in model.SerializeToString()


def test_the_file_is_what_was_promised(exported: tuple[Artifact, nn.Module]) -> None:
    artifact, _ = exported
    model = onnx.load(str(artifact.path))
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"image": ["batch", 3, 16, 12], "logits": ["batch", 5], "scores": ["batch", 5]}
    # dropout is gone and batch norm is folded
    assert {n.op_type for n in model.graph.node} == {"Conv", "Relu", "ReduceMean", "Gemm", "Softmax"}
    assert artifact.notes["opset"] == 20


def test_modules_sidecar_names_the_torch_modules(exported: tuple[Artifact, nn.Module]) -> None:
    artifact, module = exported
    assert artifact.path is not None
    named = json.loads((artifact.path.parent / "model.modules.json").read_text())
    model = onnx.load(str(artifact.path))
    assert list(named) == [node.name for node in model.graph.node]
    by_type = {node.op_type: named[node.name] for node in model.graph.node}
    assert by_type["Conv"] == "network.body.0"
    assert by_type["Gemm"] == "network.head"
    for path in named.values():
        module.get_submodule(path)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_gives_what_torch_gives(exported: tuple[Artifact, nn.Module], batch: int) -> None:
    artifact, module = exported
    assert artifact.path is not None
    tensors = np.random.default_rng(batch).normal(size=(batch, *SPEC.shape)).astype(np.float32)
    outputs = open_session(artifact.path, threads=1).run(tensors)
    with torch.no_grad():
        logits, scores = module(torch.from_numpy(tensors))
    np.testing.assert_allclose(outputs["logits"], logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(outputs["scores"], scores.numpy(), atol=1e-5)


def test_a_submodule_in_training_mode_is_refused(tmp_path: Path) -> None:
    given = source(Net())
    given.module.network.body[1].train()
    with pytest.raises(ExportError, match=r"'network\.body\.1' \(BatchNorm2d\) is in training mode"):
        export(given, tmp_path / "model.fp32.onnx", {})
    assert not list(tmp_path.iterdir())


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)[:, :5]


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


class NoOnnxForm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "says"),
    [(FixedBatch(), "batch"), (DataDependent(), "values of the data"), (NoOnnxForm(), "bessel_j0 has no ONNX form")],
    ids=["fixed batch", "data-dependent", "no ONNX form"],
)
def test_what_cannot_be_exported_gives_one_line(
    network: nn.Module, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=says) as caught:
        export(source(network), tmp_path / "model.fp32.onnx", {})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_more_than_two_gigabytes_is_refused_before_any_work(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = nn.Linear(2**15, 2**15)
    with pytest.raises(ExportError, match=r"4\.0 GiB of weights; one ONNX file holds 2 GiB"):
        export(source(network), tmp_path / "model.fp32.onnx", {})


def test_onnxslim_and_cleaning_keep_the_function(exported: tuple[Artifact, nn.Module], tmp_path: Path) -> None:
    """Against torch's own file, not simplified, not cleaned."""
    artifact, module = exported
    assert artifact.path is not None
    with hushed(), torch.no_grad():
        raw: Any = torch.onnx.export(
            module, (torch.zeros(2, *SPEC.shape),), dynamo=True, verbose=False, output_names=["logits", "scores"]
        )
    save(raw.model_proto, tmp_path / "raw.onnx")
    tensors = np.random.default_rng(0).normal(size=(2, *SPEC.shape)).astype(np.float32)
    ours = open_session(artifact.path, threads=1).run(tensors)
    theirs = open_session(tmp_path / "raw.onnx", threads=1).run(tensors)
    np.testing.assert_allclose(ours["logits"], theirs["logits"], atol=1e-6)


def test_no_space_leaves_nothing(
    exported: tuple[Artifact, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import zoo.files
    from zoo.errors import OutputError

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zoo.files.os, "replace", full)
    with pytest.raises(OutputError, match="no space left"):
        save(onnx.load(str(exported[0].path)), tmp_path / "model.fp32.onnx")
    assert not list(tmp_path.iterdir())


def test_assert_eval_accepts_an_evaluated_network() -> None:
    onnx_export.assert_eval(Net().eval())
