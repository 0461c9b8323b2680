"""``zoo export`` as a person types it: from a checkpoint and photos to a verified bundle, and what happens where it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.bundle import open_bundle
from zoo.data import open_data

Zoo = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def exported(
    lenet_checkpoint: Path, grey_digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    import sys

    out = tmp_path_factory.mktemp("cli") / "digits"
    line = ["export", lenet_checkpoint, "--to", "onnx", "--precision", "fp32,int8", "--data", grey_digits, "--out", out]
    done = subprocess.run(
        [sys.executable, "-m", "zoo", *(str(a) for a in (*line, "--threads", 1))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done


def test_the_table_says_what_a_person_wants(exported: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = exported
    lines = done.stdout.splitlines()
    assert any(line.startswith("fp32") and line.endswith("verified") for line in lines), done.stdout
    assert any(line.startswith("int8") and line.endswith("verified") for line in lines), done.stdout
    assert f"report: {out / 'report.html'}" in lines
    assert f"  zoo pack {out}" in lines
    assert "against PyTorch" in done.stdout
    assert "val split of digits (360 images)" in done.stdout


def test_the_manifest_is_whole(
    exported: tuple[Path, subprocess.CompletedProcess[str]], lenet_checkpoint: Path, grey_digits: Path
) -> None:
    out, _ = exported
    with open_bundle(out) as bundle:
        assert bundle.check_files() == []
        manifest = bundle.manifest
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == present - {"zoo.json"}
    assert {"model.fp32.onnx", "model.int8.onnx", "model.modules.json", "golden.npz", "reference.npz", "parity.json", "report.html"} <= present
    assert manifest["default"] == "fp32"
    assert manifest["labels"] == ["0", "1", "2", "3", "4"]
    assert manifest["outputs"] == [
        {"name": "logits", "dtype": "float32", "shape": ["batch", 5]},
        {"name": "scores", "dtype": "float32", "shape": ["batch", 5]},
    ]
    for artifact in manifest["artifacts"]:
        assert artifact["status"] == "verified"
        assert "onnxruntime" in artifact["verified_on"]
        assert artifact["gates"] == {"numbers": "pass", "accuracy": "pass", "latency": "pass"}
    # the division of the data comes from the checkpoint, so nothing that was learnt from is judged
    val = open_data(grey_digits, val_share=0.4, seed=0).val
    assert manifest["data"]["fingerprint"] == val.fingerprint()
    assert manifest["data"]["images"] == len(val) == 360
    text = (out / "zoo.json").read_text() + (out / "parity.json").read_text()
    for path in (lenet_checkpoint.parent, grey_digits.parent):
        assert str(path) not in text, "local paths are nobody's business"


def test_int8_is_calibrated_on_the_training_split(exported: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    notes = open_bundle(exported[0]).artifact("int8").notes
    assert notes["calibration_images"] == 128
    assert "train split" in notes["calibration_source"]
    assert notes["float_layers"] == ["network.head"]


def test_the_report_is_self_contained(exported: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    page = (exported[0] / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "<script" not in page
    report = json.loads((exported[0] / "parity.json").read_text())
    assert [a["verdict"] for a in report["artifacts"]] == ["pass", "pass"]


def test_the_bundle_stands_on_its_own(
    exported: tuple[Path, subprocess.CompletedProcess[str]], grey_digits: Path, tmp_path: Path, zoo: Zoo
) -> None:
    out, _ = exported
    zoo("pack", out, "--out", tmp_path / "digits.zoo")
    zoo("selftest", tmp_path / "digits.zoo")
    zoo("verify", tmp_path / "digits.zoo", "--data", grey_digits)
    sample = open_data(grey_digits, val_share=0.4, seed=0).val[100]
    done = zoo("run", tmp_path / "digits.zoo", sample.image, "--json")
    assert f'"label": "{open_bundle(out).labels[sample.target]}"' in done.stdout


def test_without_data_it_says_that_accuracy_was_not_judged(tmp_path: Path, zoo: Zoo) -> None:
    out = tmp_path / "bundle"
    done = zoo("export", "lenet", "--weights", "none", "--precision", "fp32,int8", "--out", out, "--json", "--threads", 1)
    said = json.loads(done.stdout)
    assert "lenet means lenet5" in done.stderr
    assert "Accuracy was not judged" in done.stderr
    assert "weights are random" in done.stderr
    assert {a["status"] for a in said["artifacts"]} == {"built"}
    assert {a["gates"]["accuracy"] for a in said["artifacts"]} == {"not judged"}
    manifest = json.loads((out / "zoo.json").read_text())
    assert any("Accuracy was not judged" in s for s in manifest["parity"]["statements"])
    assert "Accuracy was not judged" in (out / "report.html").read_text()
    zoo("selftest", out)


def test_a_failed_gate_keeps_the_artefact_out(
    lenet_checkpoint: Path, grey_digits: Path, tmp_path: Path, zoo: Zoo
) -> None:
    """A network in training data's place: labels of the judged images are made wrong for int8 alone by a margin of -1."""
    plugin = tmp_path / "strict.py"
    plugin.write_text(
        "from zoo.hookspecs import hookimpl\n"
        "from zoo.parity import Finding\n"
        "@hookimpl\n"
        "def zoo_verify(candidate, reference, samples):\n"
        "    verdict = 'fail' if candidate.precision == 'int8' else 'pass'\n"
        "    return [Finding(gate='taste', verdict=verdict, message=f'{candidate.name} judged by a plugin')]\n"
    )
    run = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import strict\n"
        "from zoo.registry import get_registry; get_registry().add('strict', strict)\n"
        "from zoo.cli import main; main(sys.argv[1:])"
    )
    out = tmp_path / "bundle"
    line = ["export", lenet_checkpoint, "--precision", "fp32,int8", "--data", grey_digits, "--out", out, "--threads", 1]

    def export(*more: object) -> subprocess.CompletedProcess[str]:
        import sys

        return subprocess.run(
            [sys.executable, "-c", run, str(tmp_path), *(str(a) for a in (*line, *more))], capture_output=True, text=True
        )

    done = export()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "int8 failed and is not in the bundle: taste: int8 judged by a plugin" in done.stderr
    assert "failed, kept out" in done.stdout
    with open_bundle(out) as bundle:
        assert list(bundle.artifacts) == ["fp32"]
    assert not (out / "model.int8.onnx").exists()
    # the report, which stays, tells of both
    assert [a["verdict"] for a in json.loads((out / "parity.json").read_text())["artifacts"]] == ["pass", "fail"]

    shutil.rmtree(out)
    done = export("--precision", "int8")
    assert done.returncode == 1
    assert not out.exists()
    assert (tmp_path / "bundle.failed" / "report.html").exists()

    done = export("--waive", "taste differs")
    assert done.returncode == 0, done.stdout + done.stderr
    with open_bundle(out) as bundle:
        assert bundle.manifest["waived"] == {"int8": "taste differs"}
        assert bundle.artifact("int8").status == "built"
        assert bundle.artifact("fp32").status == "verified"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("lenett", "--weights", "none"), "did you mean lenet"),
        (("lenet5", "--weights", "none", "--to", "onyx"), "unknown export target 'onyx': did you mean onnx?"),
        (("lenet5", "--weights", "none", "--precision", "int9"), "unknown precision of onnx 'int9': did you mean int8"),
        (("lenet5", "--weights", "none", "--precision", "fp32,fp32"), "name each precision once"),
        (("lenet5", "--weights", "none", "--data", "nowhere"), "nowhere: no such file or folder"),
        (("lenet5", "--weights", "none", "--waive", " "), "--waive needs a reason"),
        (("lenet5", "--weights", "none", "--size", "8"), "lenet5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_gives_one_line_and_nothing_written(line: tuple[str, ...], says: str, tmp_path: Path, zoo: Zoo) -> None:
    done = zoo("export", *line, "--out", tmp_path / "out", check=2, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("zoo: error: ")
    assert says in last
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_in_use_is_refused_before_any_work(tmp_path: Path, zoo: Zoo) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    done = zoo("export", "lenet5", "--weights", "none", "--out", out, check=2)
    assert "already holds something" in done.stderr
    assert [p.name for p in out.iterdir()] == ["precious.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_data_of_other_labels_is_refused(lenet_checkpoint: Path, tmp_path: Path, zoo: Zoo) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 256, size=(30, 30), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{index}.png")
    done = zoo("export", lenet_checkpoint, "--data", tmp_path / "photos", "--out", tmp_path / "out", check=2)
    assert "label 'cat' is not one of the network's 5 labels" in done.stderr
    assert not (tmp_path / "out").exists()


def test_help_imports_no_torch(zoo: Zoo) -> None:
    import sys

    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "zoo", "export", "--help"], capture_output=True, text=True, check=True
    )
    assert "Examples:" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "onnx", "numpy", "onnxruntime"}
