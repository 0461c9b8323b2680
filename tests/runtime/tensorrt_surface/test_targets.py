"""What the exporter's own tables say of TensorRT's versions and types, held against the real bindings."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")

from zoo_export.tensorrt import exporting
from zoo_export.tensorrt.targets import FEATURES, Target, parse_target

TYPES = {
    "BFLOAT16": "DataType.BF16",
    "FLOAT4E2M1": "DataType.FP4",
    "FLOAT8E4M3FN": "DataType.FP8",
    "INT4": "DataType.INT4",
    "INT64": "DataType.INT64",
}
"""Rows of FEATURES about a type, and the type in the bindings."""

LAYERS = {
    "Attention": "INetworkDefinition.add_attention",
    "GroupNormalization": "INetworkDefinition.add_normalization",
    "LayerNormalization": "INetworkDefinition.add_normalization",
    "NonZero": "INetworkDefinition.add_non_zero",
    "RotaryEmbedding": "INetworkDefinition.add_rotary_embedding",
    "TensorScatter": "INetworkDefinition.add_kv_cache_update",
    "nms": "INetworkDefinition.add_nms",
}
"""Rows of FEATURES about an operator that has a layer of its own. Others are made of several layers or of a plugin."""


def target(surface) -> Target:
    flavour = "tensorrt-rtx" if surface.name == "rtx" else "tensorrt"
    return parse_target(f"{flavour}:{surface.version}")


def test_a_type_is_said_to_work_where_the_bindings_know_it(surface):
    said = {row for row in TYPES if target(surface).has(row)}
    assert said == {row for row, path in TYPES.items() if path in surface}


def test_an_operator_is_said_to_work_only_where_its_layer_exists(surface):
    said = {row for row in LAYERS if target(surface).has(row)}
    exist = {row for row, path in LAYERS.items() if path in surface}
    assert said <= exist
    if surface.name != "rtx":  # whose network has layers that its builder then has no runner for
        assert said == exist


def test_every_row_about_a_type_is_held_against_the_bindings():
    assert {row for row in FEATURES if row.isupper() and row not in ("DFT", "STFT")} == set(TYPES)


def test_the_types_and_layers_that_the_exporter_reads_back_exist(surface):
    """The report compares these words with what the parser's network says; a wrong one would never match."""
    assert {f"DataType.{name}" for name in exporting.PRECISION_OF} <= surface.names
    assert {f"LayerType.{name}" for name in (*exporting.WEIGHTED_LAYERS, "QUANTIZE", "DEQUANTIZE")} <= surface.names
