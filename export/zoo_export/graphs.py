"""ONNX files that are the same bytes wherever and whenever they are made, and that tell nothing of this machine."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from zoo.errors import ExportError
from zoo.files import write_bytes

__all__ = [
    "BYTES_LIMIT",
    "MODULES",
    "OPSET",
    "clean",
    "hushed",
    "load",
    "parse_modules",
    "read_modules",
    "save",
    "too_large",
]

OPSET = 20
"""The newest opset that ONNX Runtime 1.31 and every TensorRT since 10.2 read; torch's own default."""
IR_VERSION = 10
MODULES = "model.modules.json"
"""The exporter's sidecar: which torch module each graph node came from."""
BYTES_LIMIT = 2**31 - 2**20
"""A protobuf message ends at 2 GiB; one MiB is kept for the graph itself."""


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove in place what differs between machines or tells of them: metadata, doc strings, tool versions.

    Torch leaves stack traces with absolute paths in every node. Shapes of intermediate values are inferred afresh,
    because the tools on the way leave stale and doubled ones.
    """
    graph = model.graph
    _forget(model)
    _forget(graph)
    for values in (graph.node, graph.initializer, graph.input, graph.output, model.functions):
        for value in values:
            _forget(value)
    for node in graph.node:
        for attribute in node.attribute:
            attribute.doc_string = ""
    del graph.value_info[:]
    graph.name = "zoo"
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "edgezoo", ""
    model.domain, model.model_version = "", 0
    used = {node.domain for node in graph.node} | {""}
    kept = sorted((o.domain, o.version) for o in model.opset_import if o.domain in used)
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in dict(kept).items())
    inferred = onnx.shape_inference.infer_shapes(model)
    seen: set[str] = {o.name for o in graph.output}
    for value in inferred.graph.value_info:
        if value.name not in seen:
            seen.add(value.name)
            graph.value_info.append(value)
    return model


def _forget(value: Any) -> None:
    value.doc_string = ""
    del value.metadata_props[:]


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the model with its map fields in order. Raises ExportError over 2 GiB, OutputError where it cannot write."""
    try:
        data = model.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf's class for "too large" differs between its implementations
        raise too_large(model.ByteSize()) from error
    write_bytes(path, data)


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file. Raises ExportError where it is not one."""
    try:
        return onnx.load(str(path))
    except Exception as error:
        raise ExportError(f"{path} is not an ONNX file: {str(error).splitlines()[0]}") from error


def read_modules(file: Path) -> dict[str, str]:
    """The exporter's sidecar beside an ONNX file: graph node to torch module. Empty where there is none."""
    try:
        return parse_modules(file.with_name(MODULES).read_bytes())
    except OSError:
        return {}


def parse_modules(data: bytes) -> dict[str, str]:
    """The sidecar's content; what is not a name for a name is left out."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def too_large(size: int) -> ExportError:
    return ExportError(
        f"the network has {size / 2**30:.1f} GiB of weights; one ONNX file holds 2 GiB: choose a smaller network"
    )


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep libraries from printing, warning and logging: what matters to a person comes as an error or a report."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
