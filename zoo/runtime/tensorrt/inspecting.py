"""What an engine says that it is made of: the precision of each layer after the builder fused and chose kernels.

TensorRT's engine inspector writes JSON. Up to version 10 a tensor has one field ``Format/Datatype`` and the engine a
list of names ``Bindings``; from 11 on these are ``Format`` and ``Datatype``, and a list of objects ``I/O Tensors``
(NVIDIA, *Migrating IEngineInspector Usage from TensorRT 10.x to 11.x*). An engine that was built without detailed
profiling lists names in place of objects, which tell no precision.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Layer", "built_precisions", "counts", "inspect", "read"]

_TYPES = (
    ("int8", re.compile(r"int8", re.I)),
    ("bf16", re.compile(r"bf16|bfloat16", re.I)),
    ("fp16", re.compile(r"fp16|half|float16", re.I)),
    ("fp8", re.compile(r"fp8|float8", re.I)),
    ("int4", re.compile(r"int4", re.I)),
    ("int64", re.compile(r"int64", re.I)),
    ("int32", re.compile(r"int32", re.I)),
    ("bool", re.compile(r"bool", re.I)),
    ("fp32", re.compile(r"fp32|float", re.I)),
)
"""The zoo's words for what versions call ``Row major linear FP32``, ``Half``, ``Thirty-two wide channel vectorized row
major Int8 format``; the first that matches."""

_WEIGHTED = re.compile(r"conv|gemm|matmul|matrix|fully|mha|attention", re.I)
_MOVES = re.compile(r"reformat|no-?op|copy|shuffle|signal|wait|constant", re.I)
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")
"""``Metadata``: one such mark for each node that was fused, apart by the control characters 1E and 1F."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an engine."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    """Names of the ONNX nodes that were fused into it."""
    precision: str
    """``fp32``, ``fp16``, ``bf16``, ``int8``, …: of its weights where it has any, else of what it reads. Empty where
    the engine does not tell."""
    weighted: bool
    """Whether it is a convolution or a matrix product."""


def read(text: str) -> tuple[Layer, ...]:
    """The layers of an inspector's JSON, of either form. Raises ValueError where it is no such JSON."""
    said = json.loads(text, strict=False)  # names may hold control characters
    if isinstance(said, Mapping):
        said = said.get("Layers")
    if not isinstance(said, list):
        raise ValueError("an engine inspector's JSON has a list 'Layers'")
    return tuple(_layer(entry) for entry in said)


def inspect(library: Any, engine: Any) -> tuple[Layer, ...]:
    """The layers of a loaded engine; none where the library tells nothing of them."""
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return ()
    try:
        return read(inspector.get_engine_information(library.trt.LayerInformationFormat.JSON))
    except ValueError:
        return ()


def built_precisions(layers: Iterable[Layer]) -> dict[str, str]:
    """The precision in which each ONNX node is computed, by its name.

    A node may be part of several layers: a convolution also names the kernel that adds its bias. The layer with the
    weights speaks for it, then any that computes, then those that only move data; among equals the widest type.
    """
    best: dict[str, tuple[int, int, str]] = {}
    for layer in layers:
        if not layer.precision:
            continue
        rank = 0 if layer.weighted else 2 if _MOVES.search(layer.kind) else 1
        mine = (rank, -_BITS.get(layer.precision, 0), layer.precision)
        for node in layer.nodes:
            best[node] = min(best.get(node, mine), mine)
    return {node: precision for node, (_, _, precision) in best.items()}


_BITS = {"int4": 4, "int8": 8, "fp8": 8, "fp16": 16, "bf16": 16, "fp32": 32}


def counts(layers: Iterable[Layer]) -> dict[str, int]:
    """How many convolutions and matrix products are computed in each precision."""
    found = Counter(layer.precision for layer in layers if layer.weighted and layer.precision)
    return dict(sorted(found.items()))


def _layer(entry: Any) -> Layer:
    if isinstance(entry, str):
        return Layer(name=entry, kind="", nodes=_parts(entry), precision="", weighted=False)
    if not isinstance(entry, Mapping):
        raise ValueError(f"a layer is neither a name nor an object but {type(entry).__name__}")
    name = str(entry.get("Name", ""))
    kind = str(entry.get("LayerType", ""))
    nodes = tuple(dict.fromkeys(_NODE.findall(str(entry.get("Metadata", ""))))) or _parts(name)
    weights = entry.get("Weights")
    weights = weights.get("Type", "") if isinstance(weights, Mapping) else ""
    weighted = bool(weights) or _WEIGHTED.search(f"{kind} {entry.get('ParameterType', '')}") is not None
    types = [_type(weights), *_types(entry.get("Inputs")), *_types(entry.get("Outputs"))]
    return Layer(name=name, kind=kind, nodes=nodes, precision=next((t for t in types if t), ""), weighted=weighted)


def _parts(name: str) -> tuple[str, ...]:
    """Without metadata a fused layer is called by its nodes: ``conv1.weight + QuantizeLinear_3 + Conv_4 + PWN(Relu_5)``."""
    parts = (part.strip() for part in name.split(" + "))
    return tuple(part[4:-1] if part.startswith("PWN(") and part.endswith(")") else part for part in parts if part)


def _types(tensors: Any) -> list[str]:
    found = []
    for tensor in tensors if isinstance(tensors, Sequence) and not isinstance(tensors, str) else ():
        if isinstance(tensor, Mapping):
            fields = {str(key).lower(): value for key, value in tensor.items()}
            # 11 writes Datatype in layers and DataType in I/O tensors
            found.append(
                _type(str(fields.get("datatype") or fields.get("format/datatype") or fields.get("format") or ""))
            )
    return found


def _type(text: str) -> str:
    return next((name for name, pattern in _TYPES if pattern.search(text)), "")
