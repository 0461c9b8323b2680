"""Bundles of maps and boxes, broken on purpose: the self-test names the stage that is to blame."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from zoo.bundle import open_bundle
from zoo.errors import BundleError
from zoo.files import dump_json, sha256_file
from zoo.parity.golden import selftest
from zoo.runtime import load

TASKS = ("segment", "detect")


def edit(bundle: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads((bundle / "zoo.json").read_text())
    change(manifest)
    dump_json(bundle / "zoo.json", manifest)


def reweigh(bundle: Path, factor: float) -> None:
    file = bundle / "model.fp32.onnx"
    model = onnx.load(file)
    first = next(i for i in model.graph.initializer if i.name == "w0")
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) * np.float32(factor), "w0"))
    onnx.save(model, file)
    entry = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    edit(bundle, lambda m: m["files"].update({"model.fp32.onnx": entry}))


def failed(bundle: Path) -> str:
    stages = selftest(bundle)
    return next((s.stage for s in stages if not s), "")


@pytest.mark.parametrize("task", TASKS)
def test_a_good_bundle_passes(tiny_bundles: dict[str, Path], task: str) -> None:
    assert failed(tiny_bundles[task]) == ""


@pytest.mark.parametrize("task", TASKS)
def test_other_weights_are_noticed_by_the_network_stage(tiny_bundles: dict[str, Path], task: str) -> None:
    reweigh(tiny_bundles[task], 1.01)
    assert failed(tiny_bundles[task]) == "network"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "change",
    [{"resize": "squash"}, {"color": "BGR"}, {"mean": [0.5, 0.5, 0.5]}, {"interpolation": "nearest"}, {"fill": [0, 0, 0]}],
    ids=["resize", "colours", "mean", "interpolation", "fill"],
)  # fmt: skip
def test_another_preprocessing_is_noticed(tiny_bundles: dict[str, Path], task: str, change: dict) -> None:
    edit(tiny_bundles[task], lambda m: m["input"].update(change))
    assert failed(tiny_bundles[task]) == "preprocess"


@pytest.mark.parametrize("task", TASKS)
def test_shifted_labels_are_noticed_by_the_decode_stage(tiny_bundles: dict[str, Path], task: str) -> None:
    edit(tiny_bundles[task], lambda m: m["labels"].reverse())
    assert failed(tiny_bundles[task]) == "decode"


def test_another_confidence_is_noticed_by_the_decode_stage(tiny_bundles: dict[str, Path]) -> None:
    edit(tiny_bundles["detect"], lambda m: m["decode"].update(confidence=0.95))
    assert failed(tiny_bundles["detect"]) == "decode"


@pytest.mark.parametrize("decode", [{"confidence": "much"}, {"confidnce": 0.5}, {"confidence": 7}])
def test_impossible_decode_settings_are_one_line(tiny_bundles: dict[str, Path], decode: dict) -> None:
    edit(tiny_bundles["detect"], lambda m: m.update(decode=decode))
    with pytest.raises(BundleError, match="decode"):
        load(tiny_bundles["detect"])


def test_a_users_settings_are_laid_over_the_bundles(tiny_bundles: dict[str, Path]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    all_of_them = load(tiny_bundles["detect"], decode={"confidence": 0.01})(image)
    few = load(tiny_bundles["detect"], decode={"confidence": 0.8})(image)
    assert len(all_of_them) > len(few)
    assert (few.scores > 0.8).all()
    with open_bundle(tiny_bundles["segment"]) as bundle, pytest.raises(BundleError, match="no decode setting"):
        load(bundle.path, decode={"confidence": 0.5})


def test_classes_of_one_pixel_may_differ_but_not_many(tiny_bundles: dict[str, Path]) -> None:
    """The class map is judged by how many pixels agree, not by the distance between class numbers."""
    bundle = tiny_bundles["segment"]
    with np.load(bundle / "golden.npz") as archive:
        arrays = {k: archive[k] for k in archive.files}
    arrays["fp32/classes"][0, :2] = (arrays["fp32/classes"][0, :2] + 1) % 3
    np.savez_compressed(bundle / "golden.npz", **arrays)
    entry = {"bytes": (bundle / "golden.npz").stat().st_size, "sha256": sha256_file(bundle / "golden.npz")}
    edit(bundle, lambda m: m["files"].update({"golden.npz": entry}))
    assert failed(bundle) == "network"


@pytest.mark.parametrize("rows", ["fixed", "chosen"])
def test_golden_rows_in_another_order_are_a_fault_unless_they_are_chosen(
    tiny_bundles: dict[str, Path], rows: str
) -> None:
    bundle = tiny_bundles["detect"]
    edit(bundle, lambda m: m["decode"].update(rows=rows))
    assert failed(bundle) == ""
    with np.load(bundle / "golden.npz") as archive:
        arrays = {k: archive[k] for k in archive.files}
    for name in ("fp32/boxes", "fp32/scores"):
        arrays[name] = arrays[name][:, ::-1]
    np.savez_compressed(bundle / "golden.npz", **arrays)
    entry = {"bytes": (bundle / "golden.npz").stat().st_size, "sha256": sha256_file(bundle / "golden.npz")}
    edit(bundle, lambda m: m["files"].update({"golden.npz": entry}))

    def network_passes() -> bool:
        return next(bool(s) for s in selftest(bundle) if s.stage == "network")

    assert network_passes() == (rows == "chosen")
    reweigh(bundle, 1.01)
    assert not network_passes(), "other weights are noticed all the same"
