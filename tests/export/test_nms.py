"""Suppression inside the graph gives the boxes that suppression on the host gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from zoo.artifacts import Artifact
from zoo.builtin import CLASSIFY, DETECT
from zoo.errors import ExportError
from zoo.inputs import ImageInput, frame
from zoo.runtime.ort import open_session
from zoo.tasks.detect import Detect
from zoo_export.nms import embed

SPEC = ImageInput(height=64, width=64, resize="letterbox")


def graph(path: Path, anchors: int, classes: int) -> Artifact:
    """A detector that hands over what it is given: one input of (N, A, 4 + C) rows."""
    width = 4 + classes
    ends = {"boxes": (0, 4), "scores": (4, width)}
    nodes = []
    constants = [helper.make_tensor("axis", TensorProto.INT64, [1], [2])]
    for name, (start, end) in ends.items():
        constants.append(helper.make_tensor(f"{name}_from", TensorProto.INT64, [1], [start]))
        constants.append(helper.make_tensor(f"{name}_to", TensorProto.INT64, [1], [end]))
        nodes.append(helper.make_node("Slice", ["image", f"{name}_from", f"{name}_to", "axis"], [name], name=name))
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", anchors, end - start])
        for name, (start, end) in ends.items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", anchors, width])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], outputs, constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, path)
    return Artifact(format="onnx", precision="fp32", input=SPEC, task=DETECT, path=path)


def candidates(rng: np.random.Generator, count: int, anchors: int, classes: int) -> np.ndarray:
    corner = rng.uniform(0, 44, (count, anchors, 2))
    size = rng.uniform(4, 20, (count, anchors, 2))
    scores = rng.uniform(0, 1, (count, anchors, classes)) ** 3
    return np.concatenate([corner, corner + size, scores], axis=2).astype(np.float32)


@pytest.mark.parametrize(("anchors", "classes"), [(300, 5), (60, 1), (7, 3)], ids=["full", "one class", "few"])
def test_the_graph_suppresses_as_the_host_does(anchors: int, classes: int, tmp_path: Path) -> None:
    half = Detect(confidence=0.3, iou=0.5, max_detections=100)
    made = embed(graph(tmp_path / "raw.onnx", anchors, classes), tmp_path / "nms.onnx", **half.settings)
    assert made.path is not None
    session = open_session(made.path, threads=1)
    rows = candidates(np.random.default_rng(0), 3, anchors, classes)
    raw = session.run(rows)
    assert raw["detections"].shape == (3, 100, 6)
    assert half.decodes(session.output_names) == ["detections"]
    labels, frames = tuple(map(str, range(classes))), [frame(64, 64, SPEC)] * 3
    host = half.decode({k: raw[k] for k in ("boxes", "scores")}, labels=labels, frames=frames)
    inside = half.decode({"detections": raw["detections"]}, labels=labels, frames=frames)
    assert sum(map(len, host)) > 5
    for ours, theirs in zip(inside, host, strict=True):
        np.testing.assert_array_equal(ours.classes, theirs.classes)
        np.testing.assert_allclose(ours.scores, theirs.scores)
        np.testing.assert_allclose(ours.boxes, theirs.boxes)


def test_an_image_without_objects_gives_rows_of_zeros(tmp_path: Path) -> None:
    made = embed(graph(tmp_path / "raw.onnx", 20, 2), tmp_path / "nms.onnx", iou=0.5, max_detections=10)
    assert made.path is not None
    found = open_session(made.path, threads=1).run(np.zeros((2, 20, 6), np.float32))["detections"]
    assert not found.any()


def test_a_detector_that_needs_no_suppression_gets_none(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="needs no suppression: leave it out"):
        embed(graph(tmp_path / "raw.onnx", 20, 2), tmp_path / "out.onnx", **Detect(nms=False).settings)
    assert not (tmp_path / "out.onnx").exists()


def test_other_graphs_are_refused(tmp_path: Path) -> None:
    artifact = graph(tmp_path / "raw.onnx", 20, 2)
    model = onnx.load(tmp_path / "raw.onnx")
    del model.graph.output[1]
    onnx.save(model, tmp_path / "half.onnx")
    other = Artifact(format="onnx", precision="fp32", input=SPEC, task=CLASSIFY, path=tmp_path / "half.onnx")
    with pytest.raises(ExportError, match="boxes"):
        embed(other, tmp_path / "out.onnx", iou=0.5, max_detections=10)
    assert not (tmp_path / "out.onnx").exists()
    assert artifact.path is not None
