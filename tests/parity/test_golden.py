"""The self-test passes on a good bundle and names the stage that differs on a broken one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zoo.parity.golden import STAGES, selftest
from zoo.parity.verify import verify_bundle


def edit(bundle: Path, change) -> None:
    manifest = json.loads((bundle / "zoo.json").read_text())
    change(manifest)
    (bundle / "zoo.json").write_text(json.dumps(manifest))


def failed(bundle: Path) -> list[str]:
    return [s.stage for s in selftest(bundle) if not s]


def test_a_good_bundle_passes_every_stage(tiny_bundle: Path):
    stages = selftest(tiny_bundle)
    assert all(stages)
    assert [s.stage for s in stages] == list(STAGES)


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("manifest", lambda m: m.update(schema=99)),
        ("manifest", lambda m: m["input"].update(std=[0, 0, 0])),
        ("files", lambda m: m["files"]["golden.npz"].update(bytes=1)),
        ("preprocess", lambda m: m["input"].update(color="BGR")),
        ("preprocess", lambda m: m["input"].update(mean=[0.5, 0.456, 0.406])),
        ("preprocess", lambda m: m["input"].update(std=[0.229, 0.24, 0.225])),
        ("preprocess", lambda m: m["input"].update(interpolation="nearest")),
        ("preprocess", lambda m: m["input"].update(interpolation="bicubic")),
        ("preprocess", lambda m: m["input"].update(resize="squash")),
        ("preprocess", lambda m: m["input"].update(crop=1.0)),
        ("decode", lambda m: m["labels"].insert(0, m["labels"].pop())),
    ],
)
def test_each_fault_is_named_by_its_stage(tiny_bundle: Path, stage: str, change):
    edit(tiny_bundle, change)
    assert failed(tiny_bundle) == [stage]


def test_altered_and_missing_files_are_named(tiny_bundle: Path):
    golden = tiny_bundle / "golden" / "001.png"
    data = bytearray(golden.read_bytes())
    data[-20] ^= 1
    golden.write_bytes(data)
    (tiny_bundle / "golden" / "002.png").unlink()
    stages = [s for s in selftest(tiny_bundle) if not s]
    assert [s.stage for s in stages] == ["files", "files"]
    assert "001.png was altered" in stages[0].message
    assert "002.png is missing" in stages[1].message


def test_a_bundle_without_golden_vectors_is_not_passed_silently(tiny_bundle: Path):
    edit(tiny_bundle, lambda m: m.pop("golden"))
    assert failed(tiny_bundle) == ["files"]


def test_verify_of_a_bundle_without_reference_says_what_it_lacks(tiny_bundle: Path):
    from zoo.bundle import open_bundle

    report = verify_bundle(open_bundle(tiny_bundle))
    assert report.artifacts[0].verdict == "not judged"
    assert any("Accuracy was not judged" in s for s in report.statements)


def test_verify_judges_against_a_network_at_hand(tiny_bundle: Path, tmp_path: Path):
    """A network that differs by a thousandth fails the numeric gate; the same network passes it."""
    from zoo.bundle import open_bundle
    from zoo.runtime.predictor import open_artifact

    bundle = open_bundle(tiny_bundle)
    session = open_artifact(bundle).session

    def changed(factor: float):
        def run(batch: np.ndarray) -> dict[str, np.ndarray]:
            logits = session.run(batch)["logits"].astype(np.float64) * factor
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            return {"logits": logits, "scores": e / e.sum(axis=1, keepdims=True)}

        return run

    def verdict(factor: float) -> str:
        report = verify_bundle(
            bundle, network=changed(factor), exact_network=changed(factor), network_name="made", threads=1
        )
        report.write(tmp_path)
        return report.artifacts[0].gates()["numbers"]

    assert verdict(1.0) == "pass"
    assert verdict(1.001) == "fail"
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "numbers" in page
