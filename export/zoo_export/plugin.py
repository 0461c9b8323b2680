"""What zoo-export registers: torch to ONNX, int8 for CPUs, and the verb. Records only; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Command, Exporter, Precision, Spec, hookimpl

_INSTALL = "pip install 'edgezoo[export]'"

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
    Precision(
        name="int8",
        summary="Static int8 for CPUs: uint8 activations, int8 weights per channel, classifier in float",
        load="zoo_export.precision.int8_cpu:convert",
        precision="int8",
        reads="onnx",
        requires=("onnx", "onnxruntime"),
        install=_INSTALL,
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
