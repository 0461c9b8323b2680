"""What zoo-export registers: ONNX, TensorRT, the precision passes and the verbs. Records only; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Command, Exporter, Precision, Spec, hookimpl

_INSTALL = "pip install 'edgezoo[export]'"


def _precision(name: str, precision: str, target: str, load: str, summary: str) -> Precision:
    return Precision(
        name=name,
        summary=summary,
        load=f"zoo_export.precision.{load}",
        precision=precision,
        reads="onnx",
        target=target,
        requires=("onnx", "onnxruntime"),
        install=_INSTALL,
    )


SPECS: tuple[Spec, ...] = (
    Exporter(
        name="onnx",
        summary="PyTorch to ONNX (opset 20), dynamic batch, checked and simplified",
        load="zoo_export.onnx_export:export",
        reads="torch",
        writes="onnx",
        requires=("torch", "onnx", "onnxscript", "onnxslim"),
        install="pip install 'edgezoo[train,export]'",
    ),
    Exporter(
        name="tensorrt",
        summary="ONNX to what TensorRT 10.3 to 11 and TensorRT-RTX build engines of, linted, and the engine where one can be built",
        load="zoo_export.tensorrt.exporting:export",
        reads="onnx",
        writes="tensorrt",
        requires=("onnx",),
        install=_INSTALL,
    ),
    _precision("int8", "int8", "onnx", "int8_cpu:convert", "uint8 activations, int8 weights per channel, for CPUs"),
    _precision(
        "int8-tensorrt", "int8", "tensorrt", "int8_tensorrt:convert", "symmetric int8, biases in float, for TensorRT"
    ),
    _precision(
        "fp16", "fp16", "", "casts:convert_fp16", "half precision by casts; what does not bear it stays in float"
    ),
    _precision(
        "bf16", "bf16", "tensorrt", "casts:convert_bf16", "bfloat16 by casts; what does not bear it stays in float"
    ),
    _precision("mixed", "mixed", "onnx", "mixed:convert_cpu", "a plan of int8 and fp32 that keeps accuracy, for CPUs"),
    _precision(
        "mixed-tensorrt",
        "mixed",
        "tensorrt",
        "mixed:convert_tensorrt",
        "a plan of int8, fp16 and fp32 that keeps accuracy",
    ),
    Command(
        name="export",
        summary="Turn a network into a bundle for devices, and prove it",
        load="zoo_export.cli:command",
        group="export",
    ),
    Command(
        name="lint",
        summary="Say what TensorRT would refuse in a graph, and why",
        load="zoo_export.lint_cli:command",
        group="export",
    ),
)


@hookimpl
def zoo_register() -> Iterable[Spec]:
    return SPECS
