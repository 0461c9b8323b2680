"""``zoo export`` as a person types it: from a checkpoint and photos to a verified bundle, and what happens where it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.bundle import open_bundle
from zoo.cli import execute
from zoo.data import open_data
from zoo.hookspecs import hookimpl
from zoo.parity import Candidate, Finding
from zoo.registry import get_registry
from zoo.train.models import load_checkpoint, save_checkpoint
from zoo_export.pipeline import Request, export_bundle

Zoo = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def exported(
    lenet_checkpoint: Path, grey_digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
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
    assert {
        "model.fp32.onnx",
        "model.int8.onnx",
        "model.modules.json",
        "golden.npz",
        "reference.npz",
        "parity.json",
        "report.html",
    } <= present
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
    done = zoo(
        "export", "lenet", "--weights", "none", "--precision", "fp32,int8", "--out", out, "--json", "--threads", 1
    )
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


class Strict:
    """A plugin that does not like int8."""

    @staticmethod
    @hookimpl
    def zoo_verify(candidate: Candidate, reference: object, samples: object) -> list[Finding]:
        verdict = "fail" if candidate.precision == "int8" else "pass"
        return [Finding(gate="taste", verdict=verdict, message=f"{candidate.name} judged by a plugin")]


@pytest.fixture
def strict() -> Iterator[None]:
    registry = get_registry()
    plugin = Strict()
    assert not registry.add("strict", plugin).error
    yield
    registry._manager.unregister(plugin)
    registry.plugins.pop()


@pytest.mark.usefixtures("strict")
def test_a_failed_gate_keeps_the_artefact_out(
    lenet_checkpoint: Path, grey_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    line = ["export", lenet_checkpoint, "--data", grey_digits, "--out", out, "--threads", 1, "--max-samples", 340]

    def export(*more: object) -> int:
        return execute([str(a) for a in (*line, *more)])

    assert export("--precision", "fp32,int8") == 1
    said = capsys.readouterr()
    assert "int8 failed and is not in the bundle: taste: int8 judged by a plugin" in said.err
    assert "failed, kept out" in said.out
    with open_bundle(out) as bundle:
        assert list(bundle.artifacts) == ["fp32"]
    assert not (out / "model.int8.onnx").exists()
    # the report, which stays, tells of both
    assert [a["verdict"] for a in json.loads((out / "parity.json").read_text())["artifacts"]] == ["pass", "fail"]

    shutil.rmtree(out)
    assert export("--precision", "int8") == 1
    assert not out.exists()
    assert (tmp_path / "bundle.failed" / "report.html").exists()
    assert "bundle.failed/report.html" in capsys.readouterr().err

    assert export("--precision", "int8", "--waive", "taste differs") == 0
    with open_bundle(out) as bundle:
        assert bundle.manifest["waived"] == {"int8": "taste differs"}
        assert bundle.artifact().status == "built"
    assert "waived: taste differs" in capsys.readouterr().out


def test_layers_that_hurt_go_back_to_float(colournet_checkpoint: Path, coloured_digits: Path, tmp_path: Path) -> None:
    """One channel 1000 times as strong as the others, and all but ignored by the next layer: the same function in
    float, but one range for the whole tensor leaves nothing of the others."""
    model = load_checkpoint(colournet_checkpoint)
    first, norm, second = (model.network.features[i] for i in (0, 1, 4))
    assert isinstance(first, torch.nn.Conv2d)
    with torch.no_grad():
        for parameter in (norm.weight, norm.bias):
            parameter[0] *= 1000
        second.weight[:, 0] /= 1000
    poisoned = tmp_path / "poisoned"
    save_checkpoint(poisoned, model, metrics={}, data=model.provenance["data"], seed=0)
    outcome = export_bundle(
        Request(
            source=str(poisoned), out=tmp_path / "out", precisions=("fp32", "int8"), data=coloured_digits, threads=1
        ),
        note=lambda text: None,
    )
    assert [m["status"] for m in outcome.manifest["artifacts"]] == ["verified", "verified"]
    notes = outcome.manifest["artifacts"][1]["notes"]
    hurt = {layer["layer"] for layer in notes["float_because_they_hurt"]}
    assert hurt == {"network.features.0", "network.features.4"}
    assert hurt | {"network.head"} == set(notes["float_layers"])
    assert notes["int8_layers"] == 1
    assert any("went back to float" in s and "network.features.0" in s for s in outcome.report.statements)
    assert "went back to float" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("lenett", "--weights", "none"), "did you mean lenet"),
        (("lenet5", "--weights", "none", "--to", "onyx"), "unknown export target 'onyx': did you mean onnx?"),
        (("lenet5", "--weights", "none", "--precision", "int9"), "unknown precision of onnx 'int9': did you mean int8"),
        (("lenet5", "--weights", "none", "--precision", "fp32,fp32"), "name each precision once"),
        (("lenet5", "--weights", "none", "--data", "nowhere"), "nowhere: no such file or folder"),
        (("lenet5", "--weights", "none", "--waive", " "), "--waive needs a reason"),
        (("lenet5", "--weights", "none", "--size", "8"), "lenet5 does not take 1x8x8 images"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_gives_one_line_and_nothing_written(
    line: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(["export", *line, "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("zoo: error: ")
    assert says in last
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_in_use_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    assert execute(["export", "lenet5", "--weights", "none", "--out", str(out)]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["precious.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_data_of_other_labels_is_refused(
    lenet_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 256, size=(30, 30), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{index}.png")
    line = ["export", lenet_checkpoint, "--data", tmp_path / "photos", "--out", tmp_path / "out"]
    assert execute([str(a) for a in line]) == 2
    assert "label 'cat' is not one of the network's 5 labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_images_are_listed_and_left_out(
    lenet_checkpoint: Path, grey_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(grey_digits, tmp_path / "digits"))
    victims = [Path(s.image) for s in open_data(data, val_share=0.4, seed=0).val[:3]]
    victims[0].write_bytes(b"")
    victims[1].write_bytes(victims[1].read_bytes()[:60])
    victims[2].write_text("not an image")
    line = ["export", lenet_checkpoint, "--data", data, "--out", tmp_path / "out", "--threads", 1]
    assert execute([str(a) for a in line]) == 0
    said = capsys.readouterr().err
    for victim in victims:
        assert f"left out: {data.name}/{victim.parent.name}/{victim.name}" in said or victim.name in said
    manifest = json.loads((tmp_path / "out" / "zoo.json").read_text())
    assert manifest["data"]["images"] == 357
    assert manifest["data"]["left_out"] == 3
    assert any("3 faulty images or boxes" in s for s in manifest["parity"]["statements"])


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import zoo_export.pipeline

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo_export.pipeline, "make_golden", interrupted)
    assert execute(["export", "lenet5", "--weights", "none", "--out", str(tmp_path / "out"), "--threads", "1"]) == 130
    assert capsys.readouterr().err.strip().endswith("zoo: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "zoo", "export", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Examples:" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "onnx", "numpy", "onnxruntime"}


def test_a_precision_that_is_slower_than_fp32_is_said_so() -> None:
    from types import SimpleNamespace

    from zoo.parity import Finding
    from zoo.parity.report import ArtifactReport
    from zoo_export.pipeline import _slower_than_fp32

    def made(name: str, ratio: float) -> SimpleNamespace:
        finding = Finding(gate="latency", verdict="pass", message="-", figures={"ratio_p50": ratio})
        return SimpleNamespace(report=ArtifactReport(name=name, precision=name, format="onnx", findings=[finding]))

    assert _slower_than_fp32([made("fp32", 0.2), made("int8", 0.1)]) == []
    (said,) = _slower_than_fp32([made("fp32", 0.2), made("int8", 0.3)])
    assert said.startswith("int8 takes 1.50 times as long as fp32")
