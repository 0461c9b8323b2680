"""From a PyTorch module to an ONNX file: the exporter that every other target stands on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxslim
import torch

from zoo.artifacts import Artifact
from zoo.errors import ExportError
from zoo.files import dump_json
from zoo.machine import versions
from zoo.specs import ImageInput

from .graphs import BYTES_LIMIT, MODULES, OPSET, clean, hushed, save, too_large

__all__ = ["INPUT", "assert_eval", "export", "to_model"]

INPUT = "image"
"""Name of the graph's only input, (batch, C, H, W) float32."""


def export(source: Artifact, out: Path, options: Mapping[str, Any]) -> Artifact:
    """Write ``source.module`` as ONNX to the file ``out``, and beside it ``model.modules.json``: which torch module
    each graph node came from, for telling a person where a difference begins.

    The module must be in eval mode throughout; what it computes is written as it stands. Two runs give the same
    bytes, from whatever directory. ``options``: ``dynamic_size`` leaves height and width of the input open.

    Raises ExportError: a submodule in training mode, an operator without ONNX form, control flow that depends on
    the data, a batch size that the network has fixed, more than 2 GiB of weights. ``scale``: how many times larger than
    the input's the outputs' sides are.
    """
    assert_eval(source.module)
    model, modules = to_model(
        source.module,
        source.input,
        source.task.outputs,
        dynamic_size=bool(options.get("dynamic_size")),
        scale=int(options.get("scale", 1)),
    )
    save(model, out)
    dump_json(out.with_name(MODULES), modules)
    return Artifact(
        format="onnx",
        precision="fp32",
        input=source.input,
        task=source.task,
        path=out,
        notes={
            "opset": OPSET,
            "nodes": len(model.graph.node),
            "parameters": sum(p.numel() for p in source.module.parameters()),
            "made_with": versions(("torch", "onnx", "onnxscript", "onnxslim")),
        },
    )


def assert_eval(module: torch.nn.Module) -> None:
    """Raises ExportError naming the first submodule that is in training mode."""
    for name, part in module.named_modules():
        if part.training:
            where = f"'{name}' ({type(part).__name__})" if name else type(part).__name__
            raise ExportError(
                f"{where} is in training mode; the exported network must be the evaluated one: call .eval() on the whole network"
            )


def to_model(
    module: torch.nn.Module, spec: ImageInput, outputs: Sequence[str], *, dynamic_size: bool = False, scale: int = 1
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The module as a checked, simplified, cleaned ONNX model, and the torch module path of each of its nodes.

    Raises ExportError as :func:`export` does, but takes the module in whatever mode it is.
    """
    weights = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    if weights > BYTES_LIMIT:
        raise too_large(weights)
    # two images, because torch.export takes sizes 0 and 1 for constants
    example = torch.zeros(2, *spec.shape).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    try:
        with hushed(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=(
                    {0: torch.export.Dim("batch"), 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
                    if dynamic_size
                    else {0: torch.export.Dim("batch")},
                ),
                verbose=False,
            )
            if program is None:
                raise ExportError("torch.onnx.export returned nothing")
            raw = program.model_proto
            modules = {node.name: _module_path(node) for node in raw.graph.node}
            model = onnxslim.slim(raw)
        _need_dynamic_batch(model)
        clean(model)
        _name_axes(model, dynamic_size, scale)
        onnx.checker.check_model(model, full_check=True)
    except (ExportError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # torch.export and onnx raise classes of many kinds
        raise ExportError(_reason(error)) from error
    return model, {node.name: modules.get(node.name, "") for node in model.graph.node}


def _need_dynamic_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0] if value.type.tensor_type.shape.dim else None
        if first is None or not first.dim_param:
            size = "no batch axis" if first is None else f"batch size {first.dim_value}"
            raise ExportError(
                f"'{value.name}' has {size} in the exported graph; a network must take any number of images: "
                "look for a reshape or view with a fixed first size in its forward"
            )


def _name_axes(model: onnx.ModelProto, dynamic_size: bool, scale: int) -> None:
    """Outputs whose first axis shape inference could not tie to the input's are tied here; so are open sides, of which
    the outputs' are ``scale`` times the input's."""
    for value in (*model.graph.input, *model.graph.output):
        axes = value.type.tensor_type.shape.dim
        axes[0].dim_param = "batch"
        if dynamic_size:
            larger = f"{scale}*" if scale > 1 and value in model.graph.output else ""
            for back, side in ((2, "height"), (1, "width")):
                axes[len(axes) - back].dim_param = larger + side


def _module_path(node: onnx.NodeProto) -> str:
    """The dotted torch module that a node came from, as ``named_modules`` of the exported module tells it."""
    # a weight's own name is the surer guide: after fusion a convolution carries the scope of its batch norm
    for name in node.input[1:]:
        owner, _, kind = name.rpartition(".")
        if kind in ("weight", "bias") and owner:
            return str(owner)
    for prop in node.metadata_props:
        if prop.key == "pkg.torch.onnx.name_scopes":
            scopes = re.findall(r"'([^']*)'", prop.value)
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


_ADVICE = (
    (
        r"No ONNX function found for <OpOverload\(op='([\w.]+)'",
        "operator {0} has no ONNX form: replace it in the network's forward by operators that have one",
    ),
    (
        r"data-dependent expression ([^\n(]+)",
        "the forward decides on the values of the data ({0}), which a graph cannot: take the decision out of the forward",
    ),
    (
        r"(?:Constraints violated|specialized|ConstraintViolation)[^\n]*",
        "the forward fixes the batch size: it must take any number of images",
    ),
)


def _reason(error: BaseException) -> str:
    """One line of what torch.onnx says in fifty."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    text = "\n".join(str(e) for e in chain)
    for pattern, advice in _ADVICE:
        found = re.search(pattern, text)
        if found:
            return "cannot export to ONNX: " + advice.format(*(g.strip() for g in found.groups()))
    root = chain[-1]
    first = next((line.strip() for line in str(root).splitlines() if line.strip()), "")
    return f"cannot export to ONNX: {type(root).__name__}: {first[:300]}"
