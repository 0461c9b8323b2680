"""Finds where two graphs of one network part: layer by layer, in bounded memory, named by their torch modules.

Both graphs are cut into the same pieces, which run one after another in ONNX Runtime; only what later pieces read is kept
between them. The candidate runs twice: on its own values, which shows how errors grow, and on the reference's, which
shows what each layer adds by itself. NVIDIA's Polygraphy (``debug reduce``) halves a graph until it passes; this looks at
every layer instead, because a precision pass spreads its error over many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, shape_inference

from zoo.errors import BundleError, ExportError, MissingPart, ZooError

from .graphs import MODULES, load, parse_modules
from .precision.halves import HALF, emulate

if TYPE_CHECKING:
    from zoo.bundle import Bundle
    from zoo.runtime.session import Session

__all__ = ["MEMORY_BYTES", "Bisection", "Layer", "bisect", "bisect_artifact", "layer_bound"]

MEMORY_BYTES = 128 << 20
"""What is compared at once may take this much, beside the weights and what the network itself keeps for later layers."""
FP32_BOUND = 1e-5
"""Equal float32 graphs, cut alike, give equal bits; one that runs whole beside one in pieces, whose kernels are fused
otherwise, was seen to differ by up to 1e-6 in MobileNetV2 and 8e-6 in ResNet-50 (random weights)."""
IMAGES, ENGINE_IMAGES = 8, 2
"""So many images are run where the bundle is asked, fewer through an engine, of which the fewer have to be built: an
error of a layer shows on any of them."""
WORST = 5

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_TYPES = {
    f"tensor({name})": getattr(TensorProto, kind)
    for name, kind in {
        "float": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "double": "DOUBLE", "bool": "BOOL",
        "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
        "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    }.items()
}  # fmt: skip
"""ONNX Runtime's words for the types of tensors."""

Graph: TypeAlias = "Path | bytes | ModelProto"
"""An ONNX file, its bytes, or the model."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One output of one graph node, in both graphs."""

    index: int
    """Its place among the layers that were checked, from 0, in the reference's order."""
    node: str
    operator: str
    module: str
    """The torch module that the node came from; empty where nobody knows."""
    output: str
    """The tensor's name in the reference."""
    error: float
    """RMS of the difference / RMS of the reference, over all images; inf where the candidate is not finite."""
    added: float
    """The same with the reference's values as the layer's inputs: what it adds by itself. Where an engine was asked,
    which cannot be cut, how much larger ``error`` is than that of the worst layer before it."""
    not_finite: int = 0
    """So many of the candidate's values are inf or NaN where the reference's are not."""
    note: str = ""

    @property
    def where(self) -> str:
        """What a person finds it by."""
        kind = f"{self.operator} '{self.node}'"
        return f"{self.module} ({kind})" if self.module else kind

    @property
    def sqnr_db(self) -> float:
        """Signal to noise, 20 log10(1 / error)."""
        return _decibels(self.error)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: what is not finite is null."""
        return {
            "index": self.index,
            "node": self.node,
            "operator": self.operator,
            "module": self.module,
            "output": self.output,
            "error": _json(self.error),
            "added": _json(self.added),
            "sqnr_db": _json(self.sqnr_db),
            "not_finite": self.not_finite,
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """How two graphs of one network compare, layer by layer. Truthy where nothing diverges."""

    candidate: str
    reference: str
    bound: float
    """Largest error (share of a layer's RMS) that is no divergence."""
    images: int
    layers: tuple[Layer, ...]
    """All that both graphs have, in the reference's order."""
    outputs: Mapping[str, float]
    """By graph output, its error when both graphs run whole and unobserved."""
    only_candidate: tuple[str, ...] = ()
    """Operator and name of nodes that the reference lacks, rounding and casting aside."""
    only_reference: tuple[str, ...] = ()

    @property
    def first(self) -> Layer | None:
        """The first layer whose error is beyond the bound."""
        return next((layer for layer in self.layers if not layer.error <= self.bound), None)

    @property
    def worst(self) -> tuple[Layer, ...]:
        """The layers that add most by themselves, the worst first."""
        return tuple(sorted(self.layers, key=lambda x: -x.added)[:WORST])

    @property
    def jump(self) -> Layer | None:
        """The layer that adds most by itself."""
        return self.worst[0] if self.layers else None

    @property
    def output_error(self) -> float:
        """Of the worst graph output."""
        return max(self.outputs.values(), default=0.0)

    def __bool__(self) -> bool:
        return self.first is None and self.output_error <= self.bound

    @property
    def message(self) -> str:
        """One line for a person."""
        allowed = f"{_percent(self.bound)} allowed"
        first, jump = self.first, self.jump
        if first is None or jump is None:
            top = max(self.layers, key=lambda x: x.error, default=None)
            at = (
                f": at most {_percent(top.error)} off, at {top.where} ({allowed})"
                if top and top.error
                else " to the bit"
            )
            said = f"{self.candidate} goes with {self.reference} through all {len(self.layers)} layers{at}"
            return said if self else f"{said}; but {self._unexplained()}"
        said = (
            f"{self.candidate} parts from {self.reference} at {first.where}, layer {first.index + 1} of "
            f"{len(self.layers)}: {_off(first)}, {allowed}"
        )
        if jump is first:
            said += f"; {_percent(jump.added)} is its own doing"
        elif jump.added > first.added:
            said += f"; {jump.where} adds most: {_percent(jump.added)}"
        if self.output_error <= self.bound:
            said += f". The outputs are within it all the same ({_percent(self.output_error)})"
        return said

    def _unexplained(self) -> str:
        name, error = max(self.outputs.items(), key=lambda item: item[1])
        said = f"output '{name}' is off by {_percent(error)}"
        for nodes, who, whom in (
            (self.only_candidate, self.candidate, self.reference),
            (self.only_reference, self.reference, self.candidate),
        ):
            if nodes:
                more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
                return f"{said}: {who} has {', '.join(nodes[:3])}{more}, which {whom} lacks"
        return f"{said}: observing the layers undid the fusion that is at fault"

    def to_dict(self) -> dict[str, Any]:
        first, jump = self.first, self.jump
        return {
            "candidate": self.candidate,
            "reference": self.reference,
            "passed": bool(self),
            "message": self.message,
            "bound": self.bound,
            "images": self.images,
            "first": first.to_dict() if first else None,
            "jump": jump.to_dict() if jump else None,
            "worst": [layer.to_dict() for layer in self.worst],
            "layers": [layer.to_dict() for layer in self.layers],
            "outputs": {name: _json(error) for name, error in self.outputs.items()},
            "only_candidate": list(self.only_candidate),
            "only_reference": list(self.only_reference),
        }


def layer_bound(tolerances: Mapping[str, float], *, engine: bool = False) -> float:
    """The error of a layer that is no divergence, for a precision with these tolerances (see :mod:`zoo.parity.gates`);
    through an ``engine``, whose kernels are another library's, no less than what is allowed of that."""
    bound = tolerances.get("numbers_rms", FP32_BOUND)
    return max(bound, tolerances.get("engine", 0.0)) if engine else bound


def bisect(
    candidate: Graph,
    reference: Graph,
    tensors: np.ndarray,
    modules: Mapping[str, str],
    *,
    bound: float,
    memory_bytes: int = MEMORY_BYTES,
    names: tuple[str, str] = ("the artefact", "the fp32 graph"),
    threads: int | None = None,
    engine: Callable[[bytes], Session] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Bisection:
    """Compare every layer of ``candidate`` with that of the same name in ``reference`` on ``tensors`` (N, C, H, W).

    ``modules``: graph node to torch module, the exporter's ``model.modules.json``. ``bound``: the largest error (share
    of a layer's RMS) that is no divergence, see :func:`layer_bound`. ``memory_bytes`` bounds what is held for comparing:
    fewer images and layers at a time need less. ``names``: the candidate's and the reference's, for the message.
    ``engine`` opens the graph where it really runs, and is given it once as it is and then with more and more of the
    layers as outputs; without it the candidate runs in ONNX Runtime. More outputs may keep layers from being fused, so
    an engine's fault may vanish when it is looked at: the message says so. ``progress(done, total)``.

    An activation that is quantised is compared after it, as the next layer sees it; the rounding belongs to the layer
    that made it. Raises ExportError: a graph that does not run, graphs that have no layer in common, no tensors.
    """
    if not len(tensors):
        raise ExportError("bisecting needs at least one image")
    given, theirs = _Network(_open(candidate), names[0]), _executable(_Network(_open(reference), names[1]))
    ours = given if engine is not None else _executable(given)
    for network in (ours, theirs):
        network.check(tensors)
    probes = _match(theirs, ours)
    if not probes:
        raise ExportError(
            f"{names[0]} and {names[1]} have no layer in common: they do not come from the same export, or not by "
            "passes that keep the names of nodes"
        )
    sizes = theirs.sizes(tensors)
    # each group of images means building every engine again
    room = memory_bytes if engine is None else 3 * len(tensors) * sum(sizes.values())
    group = _group(max(sizes[p.theirs] for p in probes), len(tensors), room, (ours, theirs))
    blocks = _blocks(probes, sizes, memory_bytes // (3 * group))
    outputs = _outputs(ours, theirs, tensors, group, threads, engine)
    walk: _Engine | _Walk
    if engine is not None:
        walk = _Engine(ours, theirs, blocks, threads, engine)
    else:
        walk = _Walk(ours, theirs, blocks, threads)
    total, done = len(probes) * len(tensors), 0
    for start in range(0, len(tensors), group):
        batch = np.ascontiguousarray(tensors[start : start + group], np.float32)
        for block in walk.run(batch):
            done += block * len(batch)
            if progress:
                progress(done, total)
    return Bisection(
        candidate=names[0],
        reference=names[1],
        bound=bound,
        images=len(tensors),
        layers=walk.layers(modules),
        outputs=outputs,
        only_candidate=given.nodes_beside(theirs, made=False),
        only_reference=theirs.nodes_beside(given, made=True),
    )


def bisect_artifact(
    bundle: Bundle,
    name: str,
    tensors: np.ndarray,
    *,
    checkpoint: Path | None = None,
    threads: int | None = None,
    engine: Callable[[bytes], Session] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Bisection:
    """Compare an artefact of a bundle with its fp32 ONNX graph, or with a fresh export of ``checkpoint`` (needs torch).

    Only the first few of ``tensors`` are run. Raises BundleError where there is nothing to compare with or
    the artefact is no ONNX graph, and what :func:`bisect`, `zoo export` and opening a checkpoint raise.
    """
    from zoo.lookup import find_task

    entry = bundle.artifact(name)
    if not entry.file.endswith(".onnx"):
        raise BundleError(f"artefact {name} is {entry.file}: only ONNX graphs can be looked into")
    modules = _modules(bundle)
    reference: Graph
    if checkpoint is not None:
        reference, modules = _exported(checkpoint)
        says = "the checkpoint's network"
    else:
        plain = [a for a in bundle.artifacts.values() if a.format == "onnx" and a.precision == "fp32"]
        if not plain or plain[0].name == name:
            what = "is what the others are compared with" if plain else "has no fp32 ONNX graph beside it"
            raise BundleError(f"artefact {name} {what}: --checkpoint compares it with PyTorch's network")
        reference, says = bundle.read(plain[0].file), f"artefact {plain[0].name}"
    tolerances = find_task(bundle.task).tolerances
    return bisect(
        bundle.read(entry.file),
        reference,
        tensors[: IMAGES if engine is None else ENGINE_IMAGES],
        modules,
        bound=layer_bound(tolerances.get(entry.precision, tolerances["fp32"]), engine=engine is not None),
        names=(name, says),
        threads=threads,
        engine=engine,
        progress=progress,
    )


def _modules(bundle: Bundle) -> dict[str, str]:
    return parse_modules(bundle.read(MODULES)) if MODULES in bundle.manifest["files"] else {}


@lru_cache(maxsize=1)  # asked for once an artefact
def _exported(checkpoint: Path) -> tuple[ModelProto, dict[str, str]]:
    """The graph of a checkpoint as `zoo export` writes it now. Needs torch."""
    try:
        from zoo.train.models import deployable, open_model

        from .onnx_export import to_model
    except ModuleNotFoundError as error:
        raise MissingPart(f"{error.name}, which --checkpoint needs,", "pip install 'edgezoo[train,export]'") from error
    model = open_model(checkpoint)
    return to_model(deployable(model), model.input, model.task.outputs)


def _open(graph: Graph) -> ModelProto:
    if isinstance(graph, ModelProto):
        return graph
    if isinstance(graph, Path):
        return load(graph)
    try:
        return onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's class for this differs between its implementations
        raise ExportError("the graph is not an ONNX file, or only part of one: export it again") from error


def _decibels(share: float) -> float:
    if math.isinf(share):
        return -math.inf
    return 20 * math.log10(1 / share) if share > 0 else math.inf


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if math.isfinite(share) else "beyond measure"


def _off(layer: Layer) -> str:
    if layer.note:
        return layer.note
    if layer.not_finite:
        values = "values are" if layer.not_finite > 1 else "value is"
        return f"{layer.not_finite} {values} not finite"
    return f"off by {_percent(layer.error)} of its RMS"


# -- graphs ----------------------------------------------------------------------------------------------------


class _Network:
    """A graph as something that can be cut: who makes and who reads each tensor."""

    def __init__(self, model: ModelProto, name: str) -> None:
        self.model, self.name = model, name
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.constants = {i.name: i for i in model.graph.initializer}
        self.inputs = [i for i in model.graph.input if i.name not in self.constants]
        if len(self.inputs) != 1:
            raise ExportError(f"{name} has {len(self.inputs)} inputs: only graphs of one input can be bisected")
        self.outputs = [o.name for o in model.graph.output]
        self.reads = [tuple(dict.fromkeys(_reads(node))) for node in self.nodes]
        self.names = {node.name for node in self.nodes if node.name}
        self.maker = {t: i for i, node in enumerate(self.nodes) for t in node.output if t}
        self.readers: dict[str, list[int]] = {}
        for index, names in enumerate(self.reads):
            for tensor in names:
                self.readers.setdefault(tensor, []).append(index)
        self.types = {
            v.name: v.type.tensor_type.elem_type
            for v in (*model.graph.value_info, *_inferred(model).value_info, *model.graph.output)
            if v.type.tensor_type.elem_type
        }

    def check(self, tensors: np.ndarray) -> None:
        """Raises ExportError where the graph does not take such images."""
        dims = [d.dim_value for d in self.inputs[0].type.tensor_type.shape.dim][1:]
        if dims and (
            len(dims) != tensors.ndim - 1 or any(a not in (0, b) for a, b in zip(dims, tensors.shape[1:], strict=True))
        ):
            raise ExportError(f"{self.name} takes {_by(dims)} images, and these are {_by(tensors.shape[1:])}")

    @property
    def fixed_batch(self) -> int:
        """Images that it takes at once, 0 for any number."""
        shape = self.inputs[0].type.tensor_type.shape
        return int(shape.dim[0].dim_value) if shape.dim else 0

    def closure(self, tensors: Iterable[str], done: set[int]) -> list[int]:
        """The nodes that ``tensors`` need beside those that are done, in order."""
        found: set[int] = set()
        queue = list(tensors)
        while queue:
            index = self.maker.get(queue.pop())
            if index is not None and index not in done and index not in found:
                found.add(index)
                queue += self.reads[index]
        return sorted(found)

    def seen(self, tensor: str) -> str:
        """What the next layer reads of a tensor: the result of its quantising and dequantising where all readers get
        that, else the tensor itself."""
        at = tensor
        for operator in ("QuantizeLinear", "DequantizeLinear"):
            readers = [self.nodes[i] for i in self.readers.get(at, ())]
            if len(readers) != 1 or readers[0].op_type != operator or at in self.outputs:
                return tensor
            at = readers[0].output[0]
        return at

    def piece(self, nodes: Sequence[NodeProto], inputs: Mapping[str, int], outputs: Iterable[str]) -> bytes:
        """A model of some of the nodes; ``inputs``: names and element types, ``outputs``: names."""
        reads = {t for node in nodes for t in _reads(node)}
        # ONNX Runtime finds the types of outputs by itself
        graph = GraphProto(
            name="piece",
            node=nodes,
            input=[_value(name, kind) for name, kind in inputs.items()],
            output=[ValueInfoProto(name=name) for name in outputs],
            initializer=[value for name, value in self.constants.items() if name in reads],
        )
        model = ModelProto(graph=graph, ir_version=self.model.ir_version, functions=self.model.functions)
        model.opset_import.extend(self.model.opset_import)
        return model.SerializeToString()  # type: ignore[no-any-return]

    def sizes(self, tensors: np.ndarray) -> dict[str, int]:
        """Bytes of each tensor for one image, in float32; what shape inference cannot tell is taken for the largest."""
        graph = self.model.graph
        bare = ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import)
        bare.functions.extend(self.model.functions)
        bare.graph.node.extend(graph.node)
        bare.graph.initializer.extend(graph.initializer)
        bare.graph.input.append(
            helper.make_tensor_value_info(self.inputs[0].name, TensorProto.FLOAT, (1, *tensors.shape[1:]))
        )
        graph = _inferred(bare)
        found = {v.name: 4 * _elements(v) for v in graph.value_info}
        largest = max([4 * tensors[0].size, *found.values()])
        return {t: found.get(t) or largest for t in self.maker}

    def nodes_beside(self, other: _Network, *, made: bool) -> tuple[str, ...]:
        """Operator and name of the nodes that the other has not, but for what a precision pass puts in. ``made``: nor
        those whose tensor the other makes in another way, as where clipping does for an activation."""
        plumbing = {"QuantizeLinear", "DequantizeLinear", "Cast", "Constant", "Identity"}
        return tuple(
            f"{n.op_type} '{n.name or n.output[0]}'"
            for n in self.nodes
            if n.op_type not in plumbing
            and n.name not in other.names
            and not ((made or not n.name) and set(n.output) & set(other.maker))
        )


def _executable(network: _Network) -> _Network:
    """The network itself, or where it holds half precision its emulation, for ONNX Runtime's CPU would not round."""
    if not set(network.types.values()) & set(HALF.values()):
        return network
    return _Network(emulate(network.model), network.name)


def _reads(node: NodeProto) -> list[str]:
    """The tensors that a node reads, those of its branches and loop bodies from outside of them included."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for body in bodies:
            own = {*(i.name for i in body.input), *(i.name for i in body.initializer)}
            for inner in body.node:
                found += [name for name in _reads(inner) if name not in own]
                own |= set(inner.output)
            found += [o.name for o in body.output if o.name not in own]
    return found


def _inferred(model: ModelProto) -> GraphProto:
    """The graph with the types and shapes of all tensors, without its weights: they would be copied several times."""
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(graph.input)
    bare.graph.output.extend(graph.output)
    bare.graph.value_info.extend(graph.value_info)
    given = {i.name for i in graph.input}
    for weight in graph.initializer:
        if math.prod(weight.dims) <= 1024:  # a shape, perhaps
            bare.graph.initializer.append(weight)
        elif weight.name not in given:
            bare.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    try:
        return shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception:  # a graph that onnx cannot infer may run all the same
        return bare.graph


def _elements(value: ValueInfoProto) -> int:
    """Of a tensor for one image; 0 where it is not known."""
    dims = value.type.tensor_type.shape.dim
    return math.prod(d.dim_value for d in dims) if dims else 0


def _value(name: str, kind: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


# -- what is compared ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """A layer that both graphs have."""

    node: NodeProto
    theirs: str
    ours: str
    """The tensor in the reference, and in the candidate as its readers see it."""


@dataclass(kw_only=True)
class _Sum:
    """Errors of one tensor, added up over groups of images."""

    error: float = 0.0
    signal: float = 0.0
    not_finite: int = 0
    note: str = ""

    def add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        if ours.shape != theirs.shape:
            self.note = f"its shape is {_by(ours.shape)}, that of the reference {_by(theirs.shape)}"
            return
        # image by image: doubles of a whole batch would be most of the memory
        for a, b in zip(np.atleast_1d(ours), np.atleast_1d(theirs), strict=True):
            known = np.isfinite(b)
            good = known & np.isfinite(a)
            self.not_finite += int(known.sum() - good.sum())
            b = np.where(known, b, 0).astype(np.float64)
            self.signal += float((b * b).sum())
            b -= np.where(good, a, 0)
            b *= good
            self.error += float((b * b).sum())

    @property
    def share(self) -> float:
        if self.note or self.not_finite:
            return math.inf
        if self.error == 0:
            return 0.0
        return math.sqrt(self.error / self.signal) if self.signal else math.inf


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(s) for s in shape) or "a number"


def _match(reference: _Network, candidate: _Network) -> list[_Probe]:
    """Floating-point tensors that both have by name, else those of nodes that both have by name."""
    named: dict[str, NodeProto | None] = {}
    for node in candidate.nodes:
        named[node.name] = None if node.name in named else node  # a name of several means nothing
    found, taken = [], set()
    for node in reference.nodes:
        if node.op_type == "Constant":
            continue
        twin = named.get(node.name) if node.name else None
        for index, theirs in enumerate(node.output):
            if not theirs or reference.types.get(theirs) not in _FLOATS:
                continue
            if theirs in candidate.maker:
                ours = theirs
            elif twin is not None and index < len(twin.output):
                ours = twin.output[index]
                if ours in reference.maker:
                    # int8 passes drop an activation that clipping does as well: its tensor is made by the layer before
                    theirs = ours
            else:
                continue
            ours = candidate.seen(ours)
            if ours and ours not in taken and candidate.types.get(ours, TensorProto.FLOAT) in _FLOATS:
                taken.add(ours)
                found.append(_Probe(node=node, theirs=theirs, ours=ours))
    return found


def _group(largest: int, images: int, memory_bytes: int, networks: Sequence[_Network]) -> int:
    """Images at a time: as many as let the largest tensor be held three times."""
    fixed = max(network.fixed_batch for network in networks)
    if fixed:
        if images % fixed:
            raise ExportError(f"the graph takes {fixed} images at a time, and {images} were given")
        return fixed
    return max(1, min(images, memory_bytes // max(1, 3 * largest)))


def _blocks(probes: Sequence[_Probe], sizes: Mapping[str, int], limit: int) -> list[list[_Probe]]:
    """The layers in order, as many together as ``limit`` bytes an image allow."""
    blocks: list[list[_Probe]] = []
    held = 0
    for probe in probes:
        size = sizes[probe.theirs]
        if not blocks or held + size > limit:
            blocks.append([])
            held = 0
        blocks[-1].append(probe)
        held += size
    return blocks


# -- running ---------------------------------------------------------------------------------------------------


def _session(model: bytes, name: str, threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # a session lives for one run
    if threads:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise _not_running(name, error) from error


def _not_running(name: str, error: BaseException) -> ExportError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ExportError(f"{name} does not run in ONNX Runtime, so it cannot be bisected: {line[:200]}")


class _Cut:
    """One graph in pieces. A piece gets what it reads from ``values``, and leaves there what later pieces read."""

    def __init__(self, network: _Network, wanted: Sequence[Sequence[str]], threads: int | None) -> None:
        self.network, self.threads = network, threads
        done: set[int] = set()
        self.pieces: list[list[int]] = []
        for tensors in wanted:
            piece = network.closure(tensors, done)
            done.update(piece)
            self.pieces.append(piece)
        self.wanted = [set(tensors) for tensors in wanted]
        self.last: dict[str, int] = {}
        """By tensor, the last piece that reads it."""
        for number, piece in enumerate(self.pieces):
            for index in piece:
                self.last.update(dict.fromkeys(network.reads[index], number))
        self.values: dict[str, Any] = {}

    def start(self, batch: np.ndarray) -> None:
        self.values = {self.network.inputs[0].name: onnxruntime.OrtValue.ortvalue_from_numpy(batch)}

    def run(self, number: int) -> dict[str, Any]:
        """The wanted tensors of a piece as ONNX Runtime's values."""
        session, inputs, outputs = self._make(number)
        if not outputs:
            return {}
        found = _run(session, self.network.name, outputs, {name: self.values[name] for name in inputs})
        self.values |= {t: v for t, v in found.items() if self.last.get(t, -1) > number}
        return {t: v for t, v in found.items() if t in self.wanted[number]}

    def forget(self, number: int) -> None:
        """Let go of what no piece after ``number`` reads."""
        self.values = {t: v for t, v in self.values.items() if self.last.get(t, -1) > number}

    def _make(self, number: int) -> tuple[Any, list[str], list[str]]:
        network, piece = self.network, self.pieces[number]
        made = {t for i in piece for t in network.nodes[i].output if t}
        reads = dict.fromkeys(t for i in piece for t in network.reads[i])
        inputs = {t: _kind(self.values[t], t) for t in reads if t not in made and t in self.values}
        outputs = [t for t in made if t in self.wanted[number] or self.last.get(t, -1) > number]
        model = network.piece([network.nodes[i] for i in piece], inputs, sorted(outputs))
        session = _session(model, network.name, self.threads) if outputs else None
        return session, list(inputs), sorted(outputs)


def _run(session: Any, name: str, outputs: Sequence[str], feeds: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(zip(outputs, session.run_with_ort_values(list(outputs), dict(feeds)), strict=True))
    except Exception as error:
        raise _not_running(name, error) from error


def _kind(value: Any, name: str) -> int:
    kind: int | None = _TYPES.get(value.data_type())
    if kind is None:
        raise ExportError(f"tensor '{name}' is a {value.data_type()}, which bisecting does not carry between layers")
    return kind


@dataclass(kw_only=True)
class _Tally:
    """What was seen of one probe."""

    whole: _Sum = field(default_factory=_Sum)
    alone: _Sum = field(default_factory=_Sum)


class _Walk:
    """Both graphs piece by piece in ONNX Runtime, the candidate on its own values and on the reference's."""

    def __init__(
        self, ours: _Network, theirs: _Network, blocks: Sequence[Sequence[_Probe]], threads: int | None
    ) -> None:
        self.ours, self.threads = ours, threads
        self.reference = _Cut(theirs, [[p.theirs for p in block] for block in blocks], threads)
        self.candidate = _Cut(ours, [[p.ours for p in block] for block in blocks], threads)
        # a layer that the candidate computes earlier than the reference does cannot be waited for
        self.blocks = [
            [p for p in block if self.candidate.network.maker[p.ours] in piece]
            for block, piece in zip(blocks, map(set, self.candidate.pieces), strict=True)
        ]
        self.twins = {p.ours: p.theirs for block in self.blocks for p in block}
        for p_ours, p_theirs in self.twins.items():  # what the candidate's layers read is kept of the reference too
            need = self.candidate.last.get(p_ours, -1)
            self.reference.last[p_theirs] = max(self.reference.last.get(p_theirs, -1), need)
        self.tallies = {p.ours: _Tally() for block in self.blocks for p in block}
        self.before = _before(ours, set(self.tallies))

    def run(self, batch: np.ndarray) -> Iterable[int]:
        """Gives how many layers each piece held."""
        self.reference.start(batch)
        self.candidate.start(batch)
        for number, block in enumerate(self.blocks):
            theirs = self.reference.run(number)
            ours = self.candidate.run(number)
            alone = self._alone(number, ours, {**self.reference.values, **theirs})
            for probe in block:
                tally, truth = self.tallies[probe.ours], _array(theirs[probe.theirs])
                tally.whole.add(_array(ours[probe.ours]), truth)
                if probe.ours in alone:
                    tally.alone.add(_array(alone[probe.ours]), truth)
            del theirs, ours, alone
            self.reference.forget(number)
            self.candidate.forget(number)
            yield len(block)

    def _alone(self, number: int, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
        """The block's layers with the reference's values as their inputs."""
        if not self.blocks[number]:
            return {}
        session, given, outputs = self._make_alone(number, ours, theirs)
        feeds = {
            name: theirs[self.twins[source]] if source in self.twins else self.candidate.values[source]
            for name, source in given.items()
        }
        try:
            found = _run(session, self.ours.name, [f"made/{t}" for t in outputs], feeds)
        except ExportError:  # the reference's tensors have other shapes here, which the comparison says
            return {}
        return {t: found[f"made/{t}"] for t in outputs}

    def _make_alone(
        self, number: int, ours: Mapping[str, Any], theirs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, str], list[str]]:
        """The candidate's piece, each layer's output under another name, so that its readers get what is fed in its
        place. Gives the session, by input the tensor whose value it takes, and the layers."""
        network, piece = self.ours, self.candidate.pieces[number]
        layers = [p.ours for p in self.blocks[number]]
        made = {t for i in piece for t in network.nodes[i].output if t}
        kinds = {t: _kind(v, t) for t, v in {**self.candidate.values, **ours}.items()}
        nodes: list[NodeProto] = []
        inputs: dict[str, int] = {}
        given: dict[str, str] = {}
        for tensor in dict.fromkeys(t for i in piece for t in network.reads[i]):
            if tensor in self.twins and (tensor in layers or tensor not in made):
                kind = _kind(theirs[self.twins[tensor]], tensor)
                name = tensor if kind == kinds[tensor] else f"given/{tensor}"
                if name != tensor:
                    nodes.append(helper.make_node("Cast", [name], [tensor], to=kinds[tensor], name=name))
                inputs[name], given[name] = kind, tensor
            elif tensor not in made and tensor in self.candidate.values:
                inputs[tensor], given[tensor] = kinds[tensor], tensor
        for index in piece:
            node = NodeProto()
            node.CopyFrom(network.nodes[index])
            node.output[:] = [f"made/{t}" if t in layers else t for t in node.output]
            nodes.append(node)
        model = network.piece(nodes, inputs, [f"made/{t}" for t in layers])
        return _session(model, network.name, self.threads), given, layers

    def layers(self, modules: Mapping[str, str]) -> tuple[Layer, ...]:
        found: list[Layer] = []
        for probe in (p for block in self.blocks for p in block):
            tally = self.tallies[probe.ours]
            came = [self.tallies[t].whole for t in self.before[probe.ours]]
            added = tally.alone.share if tally.alone.signal or tally.alone.note else _growth(tally.whole, came)
            found.append(_layer(len(found), probe, modules, tally.whole, added))
        return tuple(found)


def _growth(seen: _Sum, came: Iterable[_Sum]) -> float:
    """How much larger an error is than the worst of those that went in."""
    before = max((x.share for x in came), default=0.0)
    return 0.0 if math.isinf(before) else max(0.0, seen.share - before)


def _layer(index: int, probe: _Probe, modules: Mapping[str, str], seen: _Sum, added: float) -> Layer:
    return Layer(
        index=index,
        node=probe.node.name or probe.theirs,
        operator=probe.node.op_type,
        module=modules.get(probe.node.name, ""),
        output=probe.theirs,
        error=seen.share,
        added=added,
        not_finite=seen.not_finite,
        note=seen.note,
    )


def _array(value: Any) -> np.ndarray:
    found: np.ndarray = value.numpy()
    return found


def _outputs(
    ours: _Network,
    theirs: _Network,
    tensors: np.ndarray,
    group: int,
    threads: int | None,
    engine: Callable[[bytes], Session] | None,
) -> dict[str, float]:
    """By graph output, its error where both graphs run as they are and nobody looks inside."""
    sums = {name: _Sum() for name in theirs.outputs if name in ours.outputs and theirs.types.get(name) in _FLOATS}
    whole = _opened(ours, threads, engine), _opened(theirs, threads, None)
    for start in range(0, len(tensors), group):
        batch = np.ascontiguousarray(tensors[start : start + group], np.float32)
        found, truth = (run(batch) for run in whole)
        for name, total in sums.items():
            total.add(found[name], truth[name])
    return {name: total.share for name, total in sums.items()}


def _opened(
    network: _Network, threads: int | None, engine: Callable[[bytes], Session] | None
) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    """The whole graph as a function of a batch."""
    model = network.model.SerializeToString()
    if engine is not None:
        return engine(model).run
    session, image = _session(model, network.name, threads), network.inputs[0].name

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        try:
            return dict(zip(network.outputs, session.run(network.outputs, {image: batch}), strict=True))
        except Exception as error:
            raise _not_running(network.name, error) from error

    return run


class _Engine:
    """The reference piece by piece; the candidate as a whole for each piece, with the piece's layers as more outputs."""

    def __init__(
        self,
        ours: _Network,
        theirs: _Network,
        blocks: Sequence[Sequence[_Probe]],
        threads: int | None,
        engine: Callable[[bytes], Session],
    ) -> None:
        self.ours, self.blocks, self.engine = ours, blocks, engine
        self.reference = _Cut(theirs, [[p.theirs for p in block] for block in blocks], threads)
        self.sums = {p.ours: _Sum() for block in blocks for p in block}
        self.before = _before(ours, set(self.sums))

    def run(self, batch: np.ndarray) -> Iterable[int]:
        """Gives how many layers each piece held."""
        self.reference.start(batch)
        for number, block in enumerate(self.blocks):
            theirs = self.reference.run(number)
            try:
                ours = self._build(block).run(batch)
            except ZooError:
                raise
            except Exception as error:  # each runtime has exceptions of its own
                raise ExportError(f"{self.ours.name} does not run with its layers as outputs: {error}") from error
            for probe in block:
                self.sums[probe.ours].add(ours[f"shown/{probe.ours}"], _array(theirs[probe.theirs]))
            del theirs, ours
            self.reference.forget(number)
            yield len(block)

    def _build(self, block: Sequence[_Probe]) -> Session:
        model = ModelProto()
        model.CopyFrom(self.ours.model)
        for probe in block:  # by way of a cast, which changes nothing of a float32 tensor
            name = f"shown/{probe.ours}"
            model.graph.node.append(helper.make_node("Cast", [probe.ours], [name], name=name, to=TensorProto.FLOAT))
            model.graph.output.append(_value(name, TensorProto.FLOAT))
        return self.engine(model.SerializeToString())

    def layers(self, modules: Mapping[str, str]) -> tuple[Layer, ...]:
        found: list[Layer] = []
        for probe in (p for block in self.blocks for p in block):
            seen = self.sums[probe.ours]
            added = _growth(seen, (self.sums[t] for t in self.before[probe.ours]))
            found.append(_layer(len(found), probe, modules, seen, added))
        return tuple(found)


def _before(network: _Network, layers: set[str]) -> dict[str, set[str]]:
    """By layer, the layers that it reads."""
    found: dict[str, set[str]] = {}
    for layer in layers:
        found[layer] = set()
        visited: set[int] = set()
        queue = [layer]
        while queue:
            index = network.maker.get(queue.pop())
            if index is None or index in visited:
                continue
            visited.add(index)
            for tensor in network.reads[index]:
                if tensor in layers:
                    found[layer].add(tensor)
                else:
                    queue.append(tensor)
    return found
