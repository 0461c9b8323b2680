"""Normalisations that a network writes out in plain arithmetic, found by what they do: a mean of squares divides a map.

``x * rsqrt(mean(x * x) + eps)``, however many means there are and whether the root is a ``Pow``: instance, layer, group and
RMS norms of those who did not use the operator, or cannot (their exporter wrote it out).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from ..tensorrt.view import View

__all__ = ["Normalisations", "find_normalisations", "squared"]

SUMS = ("GlobalAveragePool", "ReduceMean", "ReduceSum")
FACTORS = (
    *SUMS, "Add", "Cast", "Clip", "Div", "Expand", "Identity", "Max", "Mul", "Pow", "Reciprocal", "Reshape", "Sqrt", "Squeeze",
    "Sub", "Unsqueeze",
)  # fmt: skip
"""What may stand between a mean of squares and the map that it divides."""


@dataclass(frozen=True, kw_only=True)
class Normalisations:
    """Node names."""

    statistics: frozenset[str]
    """Squares, their means, and what makes the divisor of them."""
    products: frozenset[str]
    """Where the map is divided, and where it is then given a gain by constants."""


def find_normalisations(view: View) -> Normalisations:
    """Those of the main graph."""
    statistics: set[str] = set()
    products: set[str] = set()
    for node in view.graph.node:
        square = squared(node, view)
        if square is None:
            continue
        statistics |= {square.name, node.name}
        queue = list(node.output)
        while queue:
            made = queue.pop()
            for reader in view.readers.get(made, []):
                if reader.op_type not in FACTORS or reader.name in statistics | products:
                    continue
                others = [name for name in reader.input if name and name != made and view.value(name) is None]
                if others and reader.op_type in ("Mul", "Div"):
                    products.add(reader.name)
                    products |= _gains(reader, view)
                elif not others:
                    statistics.add(reader.name)
                    queue += reader.output
    return Normalisations(statistics=frozenset(statistics), products=frozenset(products))


def _gains(node: NodeProto, view: View) -> set[str]:
    return {
        reader.name
        for reader in view.readers.get(node.output[0], [])
        if reader.op_type == "Mul" and any(view.value(name) is not None for name in reader.input)
    }


def squared(node: NodeProto, view: View) -> NodeProto | None:
    """The node that squares what this node sums, if it does."""
    maker = view.makers.get(node.input[0]) if node.op_type in SUMS else None
    if maker is None:
        return None
    if maker.op_type == "Mul" and maker.input[0] == maker.input[1]:
        return maker
    if maker.op_type == "Pow":
        exponent = view.value(maker.input[1])
        return maker if exponent is not None and bool(np.all(exponent == 2)) else None
    return None
