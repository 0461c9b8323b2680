"""Post-training int8 for CPUs: static Q/DQ in the form that ONNX Runtime's fast kernels take.

Activations are uint8 with a zero point, weights int8 symmetric per output channel, biases int32 (B. Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018,
https://arxiv.org/abs/1712.05877).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ..graphs import hushed
from ..tensorrt.view import View
from .int8 import Int8Pass
from .layers import WEIGHTED, head_nodes
from .normalising import find_normalisations
from .ranges import Range
from .stem import fold_stride

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
"""What gets Q/DQ around it. Softmax and the normalisations, written out or not, are left out because 8 bits ruin them; Add because a
transformer's residual stream is spoilt by it (8 times the error on a randomly initialised ViT-Tiny at 64 px), while the additions between two quantised
convolutions run in integers all the same.
"""


class StaticInt8(Int8Pass):
    """The pass itself."""

    scheme = "static Q/DQ, uint8 activations (asymmetric), int8 weights (symmetric, per channel)"

    def prepare(self, model: ModelProto) -> ModelProto:
        return fold_stride(model)

    def tensors(self, model: ModelProto) -> Collection[str]:
        graph = model.graph
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        constants = {i.name for i in graph.initializer}
        return {
            name
            for node in graph.node
            if node.op_type in OPERATORS
            for name in (*node.input, *node.output)
            if name not in constants and kinds.get(name) == TensorProto.FLOAT
        }

    def quantise(
        self, model: ModelProto, ranges: Mapping[str, Range], layers: Collection[str], *, alone: bool = False
    ) -> ModelProto:
        in_float: set[str] = set()
        if not alone:
            norms = find_normalisations(View(model))
            in_float = {*head_nodes(model), *self.layers(model), *norms.statistics, *norms.products} - set(layers)
        data = {
            name: TensorData(lowest=np.float32(found.low), highest=np.float32(found.high))
            for name, found in ranges.items()
        }
        with hushed():
            quantizer = QDQQuantizer(
                copy.deepcopy(model),
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=data,
                nodes_to_quantize=sorted(layers) if alone else [],
                nodes_to_exclude=sorted(in_float),
                op_types_to_quantize=list(OPERATORS),
                extra_options={},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()  # the quantiser appends its nodes at the end
        return quantizer.model.model


convert = StaticInt8()
