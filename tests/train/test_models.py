"""Opening by name, file and folder; writing a checkpoint folder and reading back the same network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("zoo_classic")

from zoo.errors import CheckpointError, UnknownName
from zoo.train.models import deployable, half_of, load_checkpoint, open_model, run_name, save_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    model = open_model("lenet", weights="none", labels=["a", "b", "c"], channels=3)
    save_checkpoint(tmp_path / "run" / "checkpoint", model, metrics={"top-1 accuracy": 0.5}, data={"name": "x"}, seed=3)
    return tmp_path / "run"


def test_round_trip(saved: Path) -> None:
    model = open_model(str(saved))  # a run's folder is as good as the checkpoint in it
    assert (model.architecture.name, model.labels, model.input.shape) == ("lenet5", ("a", "b", "c"), (3, 28, 28))
    assert model.weights == "checkpoint"
    assert model.provenance["metrics"] == {"top-1 accuracy": 0.5}
    assert model.provenance["seed"] == 3
    assert not model.network.training
    torch.manual_seed(3)
    first = open_model("lenet", weights="none", labels=["a", "b", "c"], channels=3)
    x = torch.rand(2, 3, 28, 28)
    assert torch.equal(first.network(x), model.network(x))
    logits, scores = deployable(model)(x)
    assert torch.equal(logits, model.network(x))
    assert torch.allclose(scores.sum(1), torch.ones(2))


def test_alias_resolves_to_the_architecture() -> None:
    assert open_model("lenet", weights="none").architecture.name == "lenet5"
    assert run_name("lenet") == "lenet5"


def test_other_labels_make_a_new_head_and_keep_the_rest(saved: Path) -> None:
    old = load_checkpoint(saved / "checkpoint")
    new = open_model(str(saved), labels=["p", "q"])
    assert new.labels == ("p", "q")
    assert new.provenance["head"] == "new"
    assert torch.equal(new.network.c3.weight, old.network.c3.weight)
    assert new.network.head.weight.std() < 0.02  # near zero: a new head must not shout down trained features
    grey = open_model(str(saved), channels=1)
    assert grey.provenance["head"] == "kept"
    assert torch.allclose(grey.network.c1.weight, old.network.c1.weight.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        ("lenett", {}, UnknownName, "did you mean lenet"),
        ("lenet5", {}, CheckpointError, "has no pretrained weights"),
        ("lenet5", {"weights": "imagenet"}, UnknownName, "weights of lenet5 'imagenet'"),
        ("lenet5", {"weights": "absent.pth"}, CheckpointError, "no such file"),
        ("./nowhere", {}, CheckpointError, "no such checkpoint folder"),
        ("lenet5", {"weights": "none", "labels": ["a"], "num_classes": 3}, CheckpointError, "1 labels for 3 classes"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(
    source: str, options: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        open_model(source, **options)


def test_broken_checkpoints(saved: Path, tmp_path: Path) -> None:
    folder = saved / "checkpoint"
    record = folder / "checkpoint.json"
    good = record.read_text()

    def refused(words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            open_model(str(saved))

    record.write_text(json.dumps({**json.loads(good), "schema": 99}))
    refused("schema 99")
    record.write_text("{")
    refused("not JSON")
    record.write_text(json.dumps({**json.loads(good), "labels": None}))
    refused("not a checkpoint's record")
    record.write_text(json.dumps({**json.loads(good), "architecture": "gone"}))
    with pytest.raises(UnknownName):
        open_model(str(saved))
    record.write_text(good)
    tensors = folder / "weights.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4] + b"abcd")
    refused("sha256 differs")
    tensors.unlink()
    refused("has no weights")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no checkpoint\.json"):
        open_model(str(tmp_path / "empty"))


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = open_model("lenet5", weights="none", num_classes=4)
    torch.save({"state_dict": {"module." + k: v for k, v in model.network.state_dict().items()}}, tmp_path / "w.pth")
    again = open_model("lenet5", weights=str(tmp_path / "w.pth"))
    assert again.weights == "file"
    assert len(again.labels) == 4  # as many as the file's head has
    assert torch.equal(again.network.head.weight, model.network.head.weight)
    assert again.provenance["weights"]["name"] == "w.pth"


@pytest.mark.assets
def test_real_weights_name_real_photos(assets: Path) -> None:
    pytest.importorskip("zoo_timm")
    from zoo.inputs import preprocess_batch

    model = open_model("mobilenetv2_100", weights=str(assets / "weights" / "mobilenetv2_100.imagenet1k.safetensors"))
    photos = sorted((assets / "imagenet-sample-200").rglob("*.jpg"))[:20]
    assert len(photos) == 20
    with torch.no_grad():
        found = model.network(torch.from_numpy(preprocess_batch(photos, model.input))).argmax(1)
    hits = sum(int(p.name[:4]) == int(i) for p, i in zip(photos, found, strict=True))
    assert hits >= 15
    assert model.labels[0].startswith("tench")


@pytest.mark.parametrize("name", ["retinanet", "ssdlite", "faster-rcnn", "yolo"])
def test_a_file_of_a_detectors_weights_tells_its_classes(name: str, tmp_path: Path) -> None:
    """Whatever its head has for each of them: anchors, a background, several levels."""
    pytest.importorskip("zoo_detect")
    first = open_model(name, weights="none", num_classes=4)
    file = tmp_path / "w.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in first.network.state_dict().items()}}, file)
    model = open_model(name, weights=str(file))
    assert model.labels == ("0", "1", "2", "3")
    assert model.provenance["head"] == "kept"
    assert torch.equal(
        torch.cat([p.flatten() for p in model.head.parameters()]),
        torch.cat([p.flatten() for p in first.head.parameters()]),
    )
    relabelled = open_model(name, weights=str(file), labels=["a", "b"])
    assert relabelled.labels == ("a", "b") and relabelled.provenance["head"] == "new"


def test_settings_that_follow_from_the_network_reach_the_task() -> None:
    pytest.importorskip("zoo_detect")
    model = open_model("faster-rcnn", weights="none", num_classes=2)
    assert half_of(model).settings["rows"] == "chosen"
    model.decode = {"confidence": 0.4}
    assert half_of(model).settings == {"confidence": 0.4, "iou": 0.6, "max_detections": 100, "rows": "chosen"}
    assert "rows" not in half_of(open_model("yolo", weights="none", num_classes=2)).settings
