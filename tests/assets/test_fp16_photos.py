"""MobileNetV2 with its ImageNet weights in half precision and as a mixed plan: what 200 photos lose, and what TensorRT-RTX builds.

Executed is what the graphs hold: every fp16 value rounded to fp16, every int8 value to int8. There is one photo a class, so the
plan is calibrated on mirror images of 64 of them and searched on the mirror images of the other 136; judged are the photos.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image, ImageOps

from zoo.artifacts import Artifact, Calibration
from zoo.inputs import preprocess_batch
from zoo.runtime.ort import open_session
from zoo.runtime.tensorrt import api
from zoo.train.models import deployable, open_model
from zoo_export.onnx_export import export
from zoo_export.precision.casts import HalfPrecision, twin
from zoo_export.precision.int8_tensorrt import SymmetricInt8
from zoo_export.precision.mixed import MixedPlan
from zoo_export.tensorrt.lint import lint
from zoo_export.tensorrt.targets import Target

pytestmark = [pytest.mark.assets, pytest.mark.slow]

FOREIGN_INT8 = 0.696
"""Top-1 of the int8 model that these weights came from, on the full sample of 1000 photos."""


@pytest.fixture(scope="module")
def fp32(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    model = open_model("mobilenetv2_100", weights=str(assets / "weights" / "mobilenetv2_100.imagenet1k.safetensors"))
    source = Artifact(format="torch", precision="fp32", input=model.input, task=model.task, module=deployable(model))
    return export(source, tmp_path_factory.mktemp("photos") / "model.fp32.onnx", {})


@pytest.fixture(scope="module")
def files(assets: Path) -> list[Path]:
    found = sorted((assets / "imagenet-sample-200").rglob("*.jpg"))
    assert len(found) == 200
    return found


@pytest.fixture(scope="module")
def labels(files: list[Path]) -> np.ndarray:
    return np.asarray([int(file.name.partition("_")[0]) for file in files])


@pytest.fixture(scope="module")
def photos(fp32: Artifact, files: list[Path]) -> np.ndarray:
    return preprocess_batch(files, fp32.input)


@pytest.fixture(scope="module")
def calibration(fp32: Artifact, files: list[Path], labels: np.ndarray) -> Calibration:
    mirrored = preprocess_batch([np.asarray(ImageOps.mirror(Image.open(f).convert("RGB"))) for f in files], fp32.input)
    order = np.random.default_rng(0).permutation(len(files))
    first, others = order[:64], order[64:]
    held_out, truth = mirrored[others], labels[others]

    def judge(run: object) -> np.ndarray:
        assert callable(run)
        parts = [run(held_out[i : i + 8])["logits"].argmax(axis=1) for i in range(0, len(held_out), 8)]
        return np.asarray(np.concatenate(parts) == truth, np.float64)

    return Calibration(tensors=mirrored[first].copy(), source="64 mirrored photos", judge=judge)


def answers(file: Path | None, photos: np.ndarray) -> np.ndarray:
    assert file is not None
    session = open_session(file)
    return np.concatenate([session.run(photos[i : i + 8])["logits"].argmax(1) for i in range(0, len(photos), 8)])


def assert_tensorrt_takes_it(artifact: Artifact) -> None:
    assert artifact.path is not None
    assert lint(onnx.load(str(artifact.path)), Target(flavour="tensorrt-rtx")).errors == ()
    library = api.find("tensorrt-rtx")
    if library is None:
        return  # the linter must do
    shapes = {"image": tuple((n, *artifact.input.shape) for n in (1, 4, 8))}
    built = api.build(library, artifact.path.read_bytes(), profile=shapes)
    assert built, built.reason
    counts = built.verdict.layers["CONVOLUTION"]
    assert counts["HALF"] >= 50, counts


@pytest.mark.parametrize(("precision", "points"), [("fp16", 0.5), ("bf16", 1.0)])
def test_half_precision_loses_next_to_nothing(
    precision: str, points: float, fp32: Artifact, photos: np.ndarray, labels: np.ndarray, calibration: Calibration,
    tmp_path: Path,
) -> None:  # fmt: skip
    artifact = HalfPrecision(precision)(fp32, tmp_path / "model.onnx", calibration)
    exact, found = answers(fp32.path, photos), answers(twin(artifact), photos)
    assert np.mean(exact == labels) > 0.75, (
        "these are not the weights of that network, or the preprocessing is not theirs"
    )
    assert 100 * (np.mean(exact == labels) - np.mean(found == labels)) <= points
    assert np.mean(exact != found) <= 0.02
    told = artifact.notes["layers"]
    assert told[precision] >= 50
    if precision == "fp16":
        assert_tensorrt_takes_it(artifact)


def test_a_mixed_plan_loses_at_most_a_point_and_is_found_in_five_minutes(
    fp32: Artifact, photos: np.ndarray, labels: np.ndarray, calibration: Calibration, tmp_path: Path
) -> None:
    plan = MixedPlan("tensorrt", SymmetricInt8(), HalfPrecision("fp16"))
    artifact = plan(fp32, tmp_path / "model.onnx", calibration)
    notes = artifact.notes
    assert notes["score_before"] - notes["score_after"] <= calibration.budget
    exact, found = answers(fp32.path, photos), answers(twin(artifact), photos)
    assert 100 * (np.mean(exact == labels) - np.mean(found == labels)) <= 1.0
    assert np.mean(found == labels) > FOREIGN_INT8
    assert notes["int8_layers"] >= 5
    assert notes["predicted_cost"]["of_fp16"] < 0.95
    # of one core; by the clock it is half of that where two are free
    assert notes["search"]["cpu_seconds"] < 300
    assert_tensorrt_takes_it(artifact)
