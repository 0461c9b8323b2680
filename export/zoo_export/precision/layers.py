"""The layers of a graph as the precision passes see them: which carry weights, which make the answer, where they came from."""

from __future__ import annotations

import json
from dataclasses import dataclass

import onnx

from zoo.artifacts import Artifact

from ..graphs import MODULES

__all__ = ["WEIGHTED", "Sensitivity", "head_nodes", "read_modules", "weighted_nodes"]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How much one layer alone, in int8, disturbs the network's outputs."""

    node: str
    module: str
    """The torch module the node came from, where the exporter's sidecar tells it."""
    sqnr_db: float
    """Signal to quantisation noise at the first output; the lower, the worse."""


def read_modules(artifact: Artifact) -> dict[str, str]:
    """The exporter's sidecar beside the artefact (graph node to torch module); empty where there is none."""
    if artifact.path is None:
        return {}
    try:
        found = json.loads(artifact.path.with_name(MODULES).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def weighted_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes with trained weights, in graph order."""
    constants = {i.name for i in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in WEIGHTED and any(i in constants for i in n.input[1:2])]


def head_nodes(model: onnx.ModelProto) -> set[str]:
    """The last layer with weights on each way to an output, and everything after it."""
    weighted = set(weighted_nodes(model))
    maker = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    queue = [o.name for o in model.graph.output]
    while queue:
        node = maker.get(queue.pop())
        if node is None or node.name in found:
            continue
        found.add(node.name)
        if node.name not in weighted:
            queue += list(node.input)
    return found
