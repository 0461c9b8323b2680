"""Bundles broken on purpose: each fault must be caught, and by the stage whose fault it is."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import zoo.inputs
import zoo.parity.golden
import zoo.runtime.predictor
from zoo.artifacts import Artifact, Calibration
from zoo.bundle import MANIFEST, open_bundle
from zoo.data import Dataset, open_data
from zoo.files import dump_json, sha256_file
from zoo.inputs import Frame, prepare
from zoo.lookup import find_task
from zoo.parity.golden import _source
from zoo.parity.verify import verify_bundle
from zoo.runtime.ort import open_session
from zoo.specs import ImageInput
from zoo.train.models import deployable, load_checkpoint
from zoo_export.graphs import clean, save
from zoo_export.pipeline import Request, export_bundle
from zoo_export.precision.int8_cpu import StaticInt8


@dataclass(frozen=True)
class Good:
    bundle: Path
    checkpoint: Path
    data: Path


@pytest.fixture(scope="module")
def good(colournet_checkpoint: Path, coloured_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Good:
    out = tmp_path_factory.mktemp("good") / "digits"
    export_bundle(
        Request(source=str(colournet_checkpoint), out=out, precisions=("fp32", "int8"), data=coloured_digits, threads=1)
    )
    return Good(out, colournet_checkpoint, coloured_digits)


@pytest.fixture(scope="module")
def val(good: Good) -> Dataset:
    return open_data(good.data, val_share=0.4, seed=0).val


@pytest.fixture
def bundle(good: Good, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(good.bundle, tmp_path / "digits"))


# -- how to break ------------------------------------------------------------------------------------------------


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    dump_json(folder / MANIFEST, manifest)


def rehash(folder: Path) -> None:
    """Make the manifest's sizes and hashes those of the files: the fault was there before the bundle was sealed."""

    def change(manifest: dict[str, Any]) -> None:
        for name, entry in manifest["files"].items():
            entry.update(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))

    edit(folder, change)


def remake_golden(folder: Path) -> None:
    """Record the golden outputs anew from the broken artefacts, as an export with that fault would have done: the
    self-test is blind to it then, and only the gates are left.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    samples = manifest["golden"]["samples"]
    with np.load(folder / "golden.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    spec = ImageInput.from_dict(manifest["input"])
    sources = [_source((folder / s["file"]).read_bytes(), Path(s["file"]).suffix) for s in samples]
    half = find_task(manifest["task"]).resolve()()
    for artifact in manifest["artifacts"]:
        outputs = open_session(folder / artifact["file"], threads=1).run(arrays["tensors"])
        arrays.update({f"{artifact['name']}/{name}": value for name, value in outputs.items()})
        decoded = half.decode(outputs, labels=manifest["labels"], frames=[prepare(s, spec)[1] for s in sources])
        for sample, result in zip(samples, decoded, strict=True):
            sample["results"][artifact["name"]] = result.to_dict()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    (folder / "golden.npz").write_bytes(buffer.getvalue())
    dump_json(folder / MANIFEST, manifest)


def set_input(**fields: Any) -> Callable[[Path, Good], None]:
    def fault(folder: Path, good: Good) -> None:
        edit(folder, lambda manifest: manifest["input"].update(fields))

    return fault


def swap_channels(folder: Path, good: Good) -> None:
    # the numbers stay with their channels' places; only the order in which pixels arrive changes
    edit(folder, lambda manifest: manifest["input"].update(color="BGR"))


def shift_labels(folder: Path, good: Good) -> None:
    edit(folder, lambda manifest: manifest.update(labels=manifest["labels"][1:] + manifest["labels"][:1]))


def rewrite(folder: Path, name: str, model: Any) -> None:
    save(clean(model), folder / name)
    remake_golden(folder)
    rehash(folder)


def in_training_mode(folder: Path, good: Good) -> None:
    """As torch's older exporter writes a network in training mode: batch statistics and live dropout."""
    model = load_checkpoint(good.checkpoint)
    file = folder / "model.fp32.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            deployable(model).train(),
            (torch.zeros(2, *model.input.shape),),
            str(file),
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            opset_version=17,
            input_names=["image"],
            output_names=list(model.task.outputs),
            dynamic_axes={name: {0: "batch"} for name in ("image", *model.task.outputs)},
        )
    graph = onnx.load(str(file))
    assert any(a.name == "training_mode" and a.i for node in graph.graph.node for a in node.attribute)
    rewrite(folder, "model.fp32.onnx", graph)


def perturb(folder: Path, good: Good) -> None:
    model = onnx.load(str(folder / "model.fp32.onnx"))
    weights = [i for i in model.graph.initializer if len(i.dims) == 4]
    chosen = weights[len(weights) // 2]
    values = numpy_helper.to_array(chosen)
    noise = np.random.default_rng(0).choice([0.99, 1.01], size=values.shape).astype(np.float32)
    chosen.CopyFrom(numpy_helper.from_array(values * noise, chosen.name))
    rewrite(folder, "model.fp32.onnx", model)


def softmax_twice(folder: Path, good: Good) -> None:
    model = onnx.load(str(folder / "model.fp32.onnx"))
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.output[0] = "once"
    model.graph.node.append(onnx.helper.make_node("Softmax", ["once"], ["scores"], name="again", axis=1))
    rewrite(folder, "model.fp32.onnx", model)


def freeze_batch(folder: Path, good: Good) -> None:
    model = onnx.load(str(folder / "model.fp32.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    save(clean(model), folder / "model.fp32.onnx")
    rehash(folder)


def calibrate_on_noise(folder: Path, good: Good) -> None:
    # what goes by the name of dummy input: uniform in 0..1, which no preprocessed image looks like
    spec = open_bundle(folder).input
    noise = np.random.default_rng(0).random((64, *spec.shape), dtype=np.float32)
    fp32 = Artifact(
        format="onnx", precision="fp32", input=spec, task=find_task("classify"), path=folder / "model.fp32.onnx"
    )
    calibration = Calibration(tensors=noise, source="noise")
    StaticInt8()(fp32, folder / "model.int8.onnx", calibration)
    remake_golden(folder)
    rehash(folder)


def truncate(folder: Path, good: Good) -> None:
    file = folder / "model.fp32.onnx"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def truncate_before_sealing(folder: Path, good: Good) -> None:
    truncate(folder, good)
    rehash(folder)


def other_network(folder: Path) -> None:
    """The same graph with weights drawn anew."""
    model = onnx.load(str(folder / "model.fp32.onnx"))
    draw = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if len(tensor.dims) >= 2:
            values = numpy_helper.to_array(tensor)
            drawn = draw.normal(0, values.std(), size=values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))
    save(clean(model), folder / "model.fp32.onnx")


def replace_artifact(folder: Path, good: Good) -> None:
    other_network(folder)


def replace_and_rehash(folder: Path, good: Good) -> None:
    other_network(folder)
    rehash(folder)


FAULTS: dict[str, tuple[Callable[[Path, Good], None], str, str]] = {
    # fault: how, the artefact that shows it, the stage or gate that must name it
    "channel order swapped": (swap_channels, "fp32", "preprocess"),
    "wrong mean": (set_input(mean=[0.5, 0.456, 0.406]), "fp32", "preprocess"),
    "wrong scale": (set_input(std=[0.5, 0.5, 0.5]), "fp32", "preprocess"),
    "scale slightly wrong": (set_input(std=[0.235, 0.224, 0.225]), "fp32", "preprocess"),
    "nearest instead of bilinear": (set_input(interpolation="nearest"), "fp32", "preprocess"),
    "bicubic instead of bilinear": (set_input(interpolation="bicubic"), "fp32", "preprocess"),
    "resized 4 pixels too large before the crop": (set_input(crop=0.8), "fp32", "preprocess"),
    "squashed instead of cropped": (set_input(resize="squash"), "fp32", "preprocess"),
    "labels shifted by one": (shift_labels, "fp32", "decode"),
    "exported in training mode": (in_training_mode, "fp32", "network"),  # an answer that depends on its neighbours
    "weights of one layer perturbed by 1 %": (perturb, "fp32", "numbers"),
    "softmax applied twice": (softmax_twice, "fp32", "numbers"),
    "batch axis frozen": (freeze_batch, "fp32", "network"),
    "int8 calibrated on noise": (calibrate_on_noise, "int8", "numbers"),
    "artefact truncated": (truncate, "fp32", "files"),
    "artefact truncated before it was sealed": (truncate_before_sealing, "fp32", "open"),
    "artefact replaced": (replace_artifact, "fp32", "files"),
    "artefact replaced, hashes and all": (replace_and_rehash, "fp32", "network"),
}


def failures(report: Any, artifact: str) -> Sequence[str]:
    """Names of the stages and gates that said no, in the order of the data's way."""
    found = next(a for a in report.artifacts if a.name == artifact)
    return [line.partition(":")[0] for line in found.failures]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_caught_and_named(fault: str, bundle: Path, good: Good, val: Dataset) -> None:
    how, artifact, stage = FAULTS[fault]
    how(bundle, good)
    with open_bundle(bundle) as opened:
        report = verify_bundle(opened, data=val, threads=1)
    assert not report, f"{fault} was not caught"
    assert failures(report, artifact)[:1] == [stage], report.failed[0].failures


@pytest.mark.parametrize("fault", ["crop off by 4 px", "resize without antialiasing"])
def test_a_device_that_preprocesses_otherwise_is_caught(
    fault: str, bundle: Path, val: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These cannot be said in a manifest: it is the device's own code that errs."""
    if fault == "crop off by 4 px":
        honest = zoo.inputs.frame

        def shifted(width: int, height: int, spec: ImageInput) -> Frame:
            where = honest(width, height, spec)
            left, top, right, bottom = where.box
            by = 4 * (right - left) / spec.width
            move = min(by, width - right) if right + by <= width else -min(by, left)
            return replace(where, box=(left + move, top, right + move, bottom))

        monkeypatch.setattr(zoo.inputs, "frame", shifted)
    else:
        honest_resize = zoo.inputs.resize

        def crude(image: Any, spec: ImageInput) -> Any:
            where = zoo.inputs.frame(*image.size, spec)
            corner = image.crop(tuple(round(v) for v in where.box))
            array = np.asarray(corner)
            rows = np.linspace(0, array.shape[0] - 1, spec.height).round().astype(int)
            columns = np.linspace(0, array.shape[1] - 1, spec.width).round().astype(int)
            return array[rows][:, columns]

        assert honest_resize is zoo.inputs.resize
        monkeypatch.setattr(zoo.inputs, "resize", crude)
    with open_bundle(bundle) as opened:
        report = verify_bundle(opened, data=val, threads=1)
    assert not report, f"{fault} was not caught"
    assert failures(report, "fp32")[:1] == ["preprocess"]


def test_the_unbroken_bundle_passes(bundle: Path, val: Dataset) -> None:
    with open_bundle(bundle) as opened:
        report = verify_bundle(opened, data=val, threads=1)
    assert report, [a.failures for a in report.failed]
    for artifact in report.artifacts:
        assert all(artifact.stages)
        verdicts = artifact.gates()
        assert verdicts["numbers"] == verdicts["accuracy"] == "pass", verdicts
    assert [a.name for a in report.artifacts] == ["fp32", "int8"]


def test_remaking_the_golden_vectors_alone_is_no_fault(bundle: Path, val: Dataset) -> None:
    """The control of ``rewrite``: what it does beside the fault must not be what is caught."""
    model = onnx.load(str(bundle / "model.fp32.onnx"))
    rewrite(bundle, "model.fp32.onnx", model)
    with open_bundle(bundle) as opened:
        assert verify_bundle(opened, data=val, threads=1)


@pytest.mark.parametrize(
    ("fault", "command", "code", "says"),
    [
        ("wrong mean", "verify", 1, "preprocess"),
        ("artefact truncated", "verify", 1, "model.fp32.onnx"),
        ("labels shifted by one", "selftest", 1, "decode"),
        ("artefact replaced", "run", 2, "model.fp32.onnx"),
    ],
)
def test_the_command_line_says_so(
    fault: str, command: str, code: int, says: str, bundle: Path, good: Good, val: Dataset, zoo: Callable[..., Any]
) -> None:
    FAULTS[fault][0](bundle, good)
    extra: Mapping[str, Sequence[object]] = {"run": (val[0].image,)}
    done = zoo(command, bundle, *extra.get(command, ()), check=code)
    assert says in done.stdout + done.stderr
