"""The engine inspector's JSON: texts written after NVIDIA's documented forms, with the answers known beforehand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zoo.runtime.tensorrt.inspecting import built_precisions, counts, read

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
HALF = "Channel major FP16 format where channel % 8 == 0"
FLOAT = "Row major linear FP32"


def tensor(name: str, type_: str, new: bool) -> dict[str, Any]:
    shape = {"Name": name, "Location": "Device", "Dimensions": [1, 8, 4, 4]}
    if not new:
        return {**shape, "Format/Datatype": type_}
    return {**shape, "Format": "Row major linear format (kLINEAR)", "Datatype": type_}


def layer(name: str, kind: str, reads: list[str], writes: str, new: bool, **more: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(f"{name}.in{i}", type_, new) for i, type_ in enumerate(reads)],
        "Outputs": [tensor(f"{name}.out", writes, new)],
        **more,
    }


def engine(new: bool) -> str:
    """A small network: int8 stem, an fp16 block with a skip, an fp32 head, and what lies between them."""
    half, whole, byte = (HALF, FLOAT, INT8) if not new else ("Half", "Float", "Int8")
    meta = "[ONNX Layer: /stem/Conv]\x1e[ONNX Layer: /stem/Relu]"
    layers = [
        layer("/stem/Quant", "Reformat", [whole], byte, new, Metadata="[ONNX Layer: /stem/Conv]"),
        layer(
            "/stem/Conv + /stem/Relu",
            "CaskConvolution",
            [byte],
            half,
            new,
            ParameterType="Convolution",
            Weights={"Type": "Int8", "Count": 864},
            Bias={"Type": "Float", "Count": 32},
            Metadata=meta,
        ),
        layer("/block/Conv + /block/Add", "CaskConvolution", [half, whole], half, new, Weights={"Type": "Half"}),
        # Myelin's fused kernels: no weights are listed, the first input speaks
        layer("__myl_Fc_3", "gemm", [whole, whole], whole, new, Metadata="[ONNX Layer: /head/Gemm]"),
        layer("__myl_Add_4", "kgen", [whole], whole, new, Metadata="[ONNX Layer: /block/Conv]\x1f[ONNX Layer: /soft]"),
    ]
    if new:
        io = [{"Name": "image", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 4, 4]}]
        return json.dumps({"Layers": layers, "I/O Tensors": io})
    return json.dumps({"Layers": layers, "Bindings": ["image", "scores"]})


@pytest.mark.parametrize("new", [False, True], ids=["10", "11"])
def test_both_forms_tell_the_precision_of_each_node(new: bool) -> None:
    layers = read(engine(new))
    assert [(x.precision, x.weighted) for x in layers] == [
        ("fp32", False),
        ("int8", True),
        ("fp16", True),
        ("fp32", True),
        ("fp32", False),
    ]
    assert built_precisions(layers) == {
        "/stem/Conv": "int8",  # not fp32, though the reformat before it names it too
        "/stem/Relu": "int8",
        "/block/Conv": "fp16",  # not fp32, though a kernel after it names it too
        "/block/Add": "fp16",
        "/head/Gemm": "fp32",
        "/soft": "fp32",
    }
    assert counts(layers) == {"fp16": 1, "fp32": 1, "int8": 1}


def test_control_characters_as_they_are_do_not_break_it() -> None:
    text = '{"Layers": [{"Name": "a", "LayerType": "kgen", "Metadata": "[ONNX Layer: x]\x1f[ONNX Layer: y]"}]}'
    assert read(text)[0].nodes == ("x", "y")


def test_an_engine_without_detailed_profiling_tells_names_only() -> None:
    text = json.dumps(
        {"Layers": ["conv1.weight + QuantizeLinear_3 + Conv_4 + PWN(Relu_5)", "Reformat"], "Bindings": []}
    )
    first, second = read(text)
    assert first.nodes == ("conv1.weight", "QuantizeLinear_3", "Conv_4", "Relu_5")
    assert first.precision == second.precision == ""
    assert built_precisions((first, second)) == {}
    assert counts((first, second)) == {}


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear BFloat16", "bf16"),
        ("Row major linear FP8 format", "fp8"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Row major Int8 format.", "int8"),
        ("Row major linear INT4 format", "int4"),
        ("Row major Int32 format", "int32"),
        ("Float", "fp32"),
        ("Unknown format", ""),
    ],
)
def test_the_words_of_versions(text: str, precision: str) -> None:
    said = json.dumps([layer("x", "CaskConvolution", [text], text, new=False)])
    assert read(said)[0].precision == precision


def test_the_widest_speaks_where_a_node_is_split() -> None:
    parts = [layer(n, "gemm", [t], t, True, Metadata="[ONNX Layer: fc]") for n, t in (("a", "Half"), ("b", "Float"))]
    assert built_precisions(read(json.dumps(parts))) == {"fc": "fp32"}


@pytest.mark.parametrize("text", ["", "{", "{}", '"x"', '{"Layers": 3}', '{"Layers": [3]}'])
def test_what_is_no_such_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read(text)
