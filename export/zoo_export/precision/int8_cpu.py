"""Post-training int8 for CPUs: static Q/DQ in the form that ONNX Runtime's fast kernels take.

Activations are uint8 with a zero point, weights int8 symmetric per output channel, biases int32 (B. Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018,
https://arxiv.org/abs/1712.05877). An activation's range is the mean over the calibration images of each image's
minimum and maximum, in the spirit of that paper's moving averages: on MobileNetV2 with its ImageNet weights and 200
photos this leaves 0.13 of the logits' spread as error where the extremes over all images leave 0.22 to 0.23 (calibrated
on mirrored copies of the photos, or on photos of insects). It wants images like those to come: calibrated on blood
cells both are useless, and this one is the worse. The classifier layer, and what comes after it, stays in float: it
costs next to nothing there and hurts most in integers.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from zoo.artifacts import Artifact, Calibration
from zoo.errors import ExportError
from zoo.files import sha256_file
from zoo.machine import versions

from ..graphs import clean, hushed, load, save
from .layers import WEIGHTED, Sensitivity, head_nodes, read_modules, weighted_nodes

__all__ = ["StaticInt8", "convert"]

OPERATORS = (
    *WEIGHTED,
    "AveragePool",
    "Clip",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "Pad",
    "Relu",
    "Resize",
)
"""What gets Q/DQ around it. Softmax and the normalisations are left out because 8 bits ruin them; Add because a
transformer's residual stream is spoilt by it (8 times the error on a randomly initialised ViT-Tiny at 64 px), while the additions between two quantised
convolutions run in integers all the same.
"""


class StaticInt8:
    """The pass itself. Calling it converts; it remembers the ranges of the last network and images it saw, so that
    trying again with other layers in float calibrates once.
    """

    def __init__(self) -> None:
        self._seen: tuple[str, weakref.ref[np.ndarray], dict[str, TensorData]] | None = None

    def __call__(self, artifact: Artifact, out: Path, calibration: Calibration) -> Artifact:
        """Write the int8 form of an fp32 ONNX artefact to ``out``.

        Nodes named in ``calibration.keep_float`` stay in float beside the classifier. Raises ExportError: no
        calibration images, no layer that can be quantised, a node name that does not exist.
        """
        model, ranges = self._open(artifact, calibration)
        names = {node.name for node in model.graph.node}
        unknown = [name for name in calibration.keep_float if name not in names]
        if unknown:
            raise ExportError(f"{artifact.path}: no node is named '{unknown[0]}', so it cannot be kept in float")
        head = head_nodes(model)
        layers = [n for n in weighted_nodes(model) if n not in head]
        kept = [n for n in layers if n in calibration.keep_float]
        if len(kept) == len(layers):
            raise ExportError(
                "no layer can be quantised: the network has none beside its classifier, or all are kept in float"
            )
        quantised = _quantise(model, ranges, exclude=sorted({*head, *calibration.keep_float}))
        onnx.checker.check_model(clean(quantised), full_check=True)
        save(quantised, out)
        modules = read_modules(artifact)
        head_layers = [n for n in weighted_nodes(model) if n in head]
        return Artifact(
            format="onnx",
            precision="int8",
            input=artifact.input,
            task=artifact.task,
            path=out,
            notes={
                **artifact.notes,
                "nodes": len(quantised.graph.node),
                "scheme": "static Q/DQ, uint8 activations (asymmetric), int8 weights (symmetric, per channel)",
                "calibrator": "mean of each image's minimum and maximum",
                "calibration_images": len(calibration.tensors),
                "calibration_source": calibration.source,
                "int8_layers": len(layers) - len(kept),
                "float_layers": [modules.get(n) or n for n in (*kept, *head_layers)],
                "made_with": {**artifact.notes.get("made_with", {}), **versions(("onnxruntime",))},
            },
        )

    def sensitivity(self, artifact: Artifact, calibration: Calibration, probes: int = 16) -> list[Sensitivity]:
        """Each layer quantised alone, over ``probes`` calibration images; the one that hurts most comes first.

        Raises ExportError as a conversion does.
        """
        model, ranges = self._open(artifact, calibration)
        modules = read_modules(artifact)
        batch = calibration.tensors[:probes]
        truth = _first_output(model, batch)
        head = head_nodes(model)
        found = []
        for node in weighted_nodes(model):
            if node in head:
                continue
            noise = _first_output(_quantise(model, ranges, only=[node]), batch) - truth
            power, error = float((truth**2).mean()), float((noise**2).mean())
            ratio = 10 * math.log10(power / error) if power > 0 and error > 0 else math.inf
            found.append(Sensitivity(node=node, module=modules.get(node, ""), sqnr_db=ratio))
        return sorted(found, key=lambda s: s.sqnr_db)

    def _open(self, artifact: Artifact, calibration: Calibration) -> tuple[onnx.ModelProto, dict[str, TensorData]]:
        if artifact.path is None:
            raise ExportError("int8 needs an ONNX file to start from")
        if not len(calibration.tensors):
            raise ExportError("int8 needs calibration images: the training split gave none")
        model = load(artifact.path)
        digest = sha256_file(artifact.path)
        if self._seen is None or self._seen[0] != digest or self._seen[1]() is not calibration.tensors:
            ranges = _measure(model, calibration)
            self._seen = (digest, weakref.ref(calibration.tensors), ranges)
        return model, self._seen[2]


convert = StaticInt8()


def _measure(model: onnx.ModelProto, calibration: Calibration) -> dict[str, TensorData]:
    """For each float activation the mean over the images of its minimum and of its maximum; for the input itself,
    whose range is known and full, the extremes."""
    model = copy.deepcopy(model)
    graph = model.graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    constants = {i.name for i in graph.initializer}
    names = sorted(
        {
            name
            for node in graph.node
            if node.op_type in OPERATORS
            for name in (*node.input, *node.output)
            if name not in constants and kinds.get(name) == TensorProto.FLOAT
        }
    )
    if not names:
        raise ExportError("no layer can be quantised: the network has no operator with an integer form")
    del graph.output[:]
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            graph.node.append(helper.make_node(kind, [name], [f"{name}.{kind}"], name=f"{name}.{kind}", keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{name}.{kind}", TensorProto.FLOAT, []))
    session = _session(model)
    image = session.get_inputs()[0].name
    # image by image: the extremes of a batch would be those of its worst image
    values = np.asarray([session.run(None, {image: batch}) for batch in calibration.batches(1)], np.float32)
    low, high = values[:, 0::2].mean(axis=0), values[:, 1::2].mean(axis=0)
    if image in names:
        at = names.index(image)
        low[at], high[at] = values[:, 2 * at].min(), values[:, 2 * at + 1].max()
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = names[int(np.argmin(np.isfinite(low) & np.isfinite(high)))]
        raise ExportError(f"activation '{bad}' is not finite on the calibration images: train the network again")
    return {n: TensorData(lowest=a, highest=b) for n, a, b in zip(names, low, high, strict=True)}


def _quantise(
    model: onnx.ModelProto,
    ranges: dict[str, TensorData],
    *,
    only: Sequence[str] = (),
    exclude: Iterable[str] = (),
) -> onnx.ModelProto:
    with hushed():
        quantizer = QDQQuantizer(
            copy.deepcopy(model),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=list(only),
            nodes_to_exclude=list(exclude),
            op_types_to_quantize=list(OPERATORS),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # the quantiser appends its nodes at the end
    return quantizer.model.model


def _session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _first_output(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    session = _session(model)
    name = session.get_outputs()[0].name
    return np.asarray(session.run([name], {session.get_inputs()[0].name: batch})[0], np.float64)
