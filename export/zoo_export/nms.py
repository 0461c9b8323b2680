"""Puts a detector's non-maximum suppression into its ONNX graph, out of standard operators and of fixed size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from zoo.artifacts import Artifact
from zoo.errors import ExportError

from .graphs import clean, load, save

__all__ = ["embed"]

FLOOR = 0.001
"""Candidates below this score are not looked at. The confidence that a user is shown stays the host's to choose."""

# NonMaxSuppression gives a list whose length depends on the data; scattering its rows into a mask over all candidates
# makes a fixed number of rows of it. Boxes are taken as y1 x1 y2 x2 there, which changes no overlap.
_FRAGMENT = """
nms_fragment (float[batch, anchors, 4] boxes, float[batch, anchors, classes] scores)
    => (float[batch, {rows}, 6] detections) {{
  nms_by_class = Transpose <perm = [0, 2, 1]> (scores)
  nms_kept = NonMaxSuppression (boxes, nms_by_class, nms_limit, nms_iou, nms_floor)
  nms_shape = Shape (nms_by_class)
  nms_blank = ConstantOfShape <value = float[1] {{0.0}}> (nms_shape)
  nms_count = Shape <start = 0, end = 1> (nms_kept)
  nms_ones = ConstantOfShape <value = float[1] {{1.0}}> (nms_count)
  nms_mask = ScatterND (nms_blank, nms_kept, nms_ones)
  nms_left = Mul (nms_by_class, nms_mask)
  nms_flat = Flatten <axis = 1> (nms_left)
  nms_best, nms_at = TopK (nms_flat, nms_rows)
  nms_class = Div (nms_at, nms_anchors)
  nms_anchor = Mod (nms_at, nms_anchors)
  nms_row = Unsqueeze (nms_anchor, nms_last)
  nms_rows4 = Concat <axis = 2> (nms_row, nms_row, nms_row, nms_row)
  nms_boxes = GatherElements <axis = 1> (boxes, nms_rows4)
  nms_score = Unsqueeze (nms_best, nms_last)
  nms_class_f = Cast <to = 1> (nms_class)
  nms_label = Unsqueeze (nms_class_f, nms_last)
  nms_found = Concat <axis = 2> (nms_boxes, nms_score, nms_label)
  nms_real = Greater (nms_score, nms_zero)
  nms_real_f = Cast <to = 1> (nms_real)
  {last}
}}
"""


def embed(artifact: Artifact, out: Path, *, iou: float, max_detections: int, nms: bool = True, **_: Any) -> Artifact:
    """Write the artefact to ``out`` with a further output ``detections`` (N, ``max_detections``, 6) float32: x1, y1,
    x2, y2 in input pixels, score, class; class-aware suppression by ``iou``, best first, then rows of zeros.

    ``boxes`` and ``scores`` stay outputs, so that they can still be compared with PyTorch's. Raises ExportError where
    the graph has not these two, or not for a fixed number of candidates.
    """
    if not nms:
        raise ExportError("--nms graph: this detector tells each object once and needs no suppression: leave it out")
    if artifact.path is None or artifact.format != "onnx":
        raise ExportError(f"--nms graph is for onnx artefacts, not for {artifact.format}")
    model = load(artifact.path)
    shapes = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    if "boxes" not in shapes or "scores" not in shapes or not all(shapes["scores"][1:]):
        raise ExportError(f"{artifact.path}: no outputs boxes (N, A, 4) and scores (N, A, C) of fixed A and C")
    anchors, classes = shapes["scores"][1:]
    rows = min(max_detections, anchors * classes)
    last = "detections = Mul (nms_found, nms_real_f)"
    if rows < max_detections:
        last = "nms_masked = Mul (nms_found, nms_real_f)\n  detections = Pad (nms_masked, nms_pads)"
    fragment = parser.parse_graph(_FRAGMENT.format(rows=max_detections, last=last))
    constants: dict[str, Any] = {
        "nms_limit": ([max_detections], TensorProto.INT64),
        "nms_iou": ([iou], TensorProto.FLOAT),
        "nms_floor": ([FLOOR], TensorProto.FLOAT),
        "nms_rows": ([rows], TensorProto.INT64),
        "nms_anchors": ([anchors], TensorProto.INT64),
        "nms_last": ([2], TensorProto.INT64),
        "nms_zero": ([0.0], TensorProto.FLOAT),
        "nms_pads": ([0, 0, 0, 0, max_detections - rows, 0], TensorProto.INT64),
    }
    used = {name for node in fragment.node for name in node.input}
    for name, (values, kind) in constants.items():
        if name in used:
            dtype = helper.tensor_dtype_to_np_dtype(kind)
            model.graph.initializer.append(numpy_helper.from_array(dtype.type(values), name))
    for index, node in enumerate(fragment.node):
        node.name = f"nms_{index}_{node.op_type}"
        model.graph.node.append(node)
    model.graph.output.append(
        helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["batch", max_detections, 6])
    )
    onnx.checker.check_model(clean(model), full_check=True)
    save(model, out)
    return replace(artifact, path=out, notes={**artifact.notes, "nms": {"in": "graph", "iou": iou}})
