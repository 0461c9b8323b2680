"""Opens a network with its input, labels and history, from a name or from a checkpoint folder; and writes that folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import json
import os
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_model
from torch import nn

from .. import __version__
from ..download import cache_folder
from ..errors import CheckpointError, PluginError, UnknownName, ZooError
from ..files import dump_json, new_folder, sha256_file
from ..registry import get_registry
from ..specs import Architecture, ImageInput, Task, Weights, resolve
from ..tasks import TaskHalf
from .players import Players
from .weights import Fitted, State, class_count, fit, read_state

__all__ = [
    "Model",
    "checkpoint_labels",
    "deployable",
    "find_checkpoint",
    "half_of",
    "load_checkpoint",
    "open_model",
    "run_name",
    "save_checkpoint",
    "task_of",
]

SCHEMA = 1
UNTOLD = 10
"""Classes of a network where neither the user nor its weights tell how many."""
RECORD = "checkpoint.json"
TENSORS = "weights.safetensors"


@dataclass(kw_only=True)
class Model:
    """A network and everything that must travel with it."""

    architecture: Architecture
    network: nn.Module
    """(N, C, H, W) float32 to raw outputs; in eval mode when it was just opened."""
    input: ImageInput
    labels: tuple[str, ...]
    task: Task
    weights: str
    """Where the weights come from: ``checkpoint``, ``pretrained``, ``file`` or ``none`` (random)."""
    options: dict[str, Any]
    """The keyword arguments that ``build`` was called with, beside ``num_classes`` and ``in_channels``."""
    provenance: dict[str, Any]
    """JSON-ready: source, weights, licences, head (``kept`` or ``new``), data, seed, versions, metrics."""
    loaded: frozenset[str] = frozenset()
    """Names in the network's state_dict that came with the weights; the others are freshly initialised."""
    decode: dict[str, Any] = field(default_factory=dict)
    """Settings of the task's numpy half (a confidence threshold), chosen on the validation set."""

    @property
    def makes(self) -> ImageInput | None:
        """How images are brought to what the network makes of latents; None where it takes images."""
        recipe, shape = self.architecture.makes, getattr(self.network, "image_shape", None)
        return None if recipe is None or shape is None else recipe.with_channels(shape[0]).with_size(*shape[1:])

    @property
    def head(self) -> nn.Module:
        """The module that maps features to classes (a ModuleList of several). Raises PluginError where there is none."""
        try:
            parts = [self.network.get_submodule(name) for name in self.architecture.head.split(",")]
            return parts[0] if len(parts) == 1 else nn.ModuleList(parts)
        except AttributeError:
            raise PluginError(
                f"architecture '{self.architecture.name}': the network has no module '{self.architecture.head}' (its head)"
            ) from None


def open_model(
    source: str | os.PathLike[str],
    *,
    weights: str = "pretrained",
    num_classes: int | None = None,
    labels: Sequence[str] | None = None,
    channels: int | None = None,
    size: int | tuple[int, int] | None = None,
    pixel: str = "",
    options: Mapping[str, Any] | None = None,
) -> Model:
    """Open a network by architecture name or alias, or from a checkpoint folder (or a run folder that holds one).

    ``weights``: ``pretrained`` (the architecture's first), the name of one of its weights, ``none`` (random), or
    a file; a checkpoint brings its own. With ``labels`` (or ``num_classes``) other than those of the weights the
    head is new; with ``channels`` the first layer is adapted and keeps its weights; ``size`` is the input's
    height and width in pixels; ``pixel`` the type in which images are kept (``uint8``, ``uint16``, ``float32``);
    ``options`` are keyword arguments of the architecture's ``build``. Weights of an image
    classifier go into the architecture's backbone, where it has one.

    Raises UnknownName, CheckpointError, MissingPart, PluginError.
    """
    folder = find_checkpoint(source)
    if labels is not None and num_classes is not None and len(labels) != num_classes:
        raise CheckpointError(f"{len(labels)} labels for {num_classes} classes: give one label a class")
    if folder is not None:
        if weights not in ("pretrained", "checkpoint"):
            raise CheckpointError(f"{source} is a checkpoint and brings its own weights: leave out --weights {weights}")
        opened, state = _read_checkpoint(folder)
        if not opened.architecture.classes:
            labels, num_classes = (), None
        if opened.architecture.makes is not None and (size or channels):
            raise CheckpointError(f"{source} makes images of its own size: leave out --size and --channels")
        wanted = tuple(labels) if labels is not None else _numbered(num_classes) if num_classes else opened.labels
        recipe = _recipe(opened.input, channels, size, pixel)
        if options:
            raise CheckpointError(
                f"{source} is a checkpoint and brings its own build options: leave out {', '.join(options)}"
            )
        if wanted == opened.labels and recipe == opened.input:
            return opened
        built = _build(
            opened.architecture,
            recipe,
            wanted,
            weights="checkpoint",
            options=opened.options,
            state=state,
            keep_head=wanted == opened.labels,
            provenance=opened.provenance,
        )
        return replace(built, decode=opened.decode if wanted == opened.labels else {})
    architecture = get_registry().get(Architecture, os.fspath(source))
    own = dict(options or {})
    if not architecture.classes:
        labels, num_classes = (), None
    if architecture.makes is not None:  # size and channels are those of the images; the latents are the network's own
        own |= {k: v for k, v in (("size", size), ("image_channels", channels)) if v}
        size = channels = None
    provenance: dict[str, Any] = {
        "source": architecture.name,
        "licences": [architecture.license] if architecture.license else [],
        "versions": _versions(architecture),
    }
    if weights == "none":
        first = architecture.weights[0] if architecture.weights else None
        count = num_classes or (len(labels) if labels is not None else (first and first.num_classes) or UNTOLD)
        names = tuple(labels) if labels is not None else _label_set(first, count) if first else _numbered(count)
        recipe = _recipe(architecture.input, channels, size, pixel)
        provenance["weights"] = {"kind": "none"}
        return _build(
            architecture, recipe, names, weights="none", options=own, state=None, keep_head=False, provenance=provenance
        )
    tag = _tag(architecture, weights)
    if tag is not None:
        uri = _filled(tag.uri, architecture, own)
        path = get_registry().open_weights(uri, cache_folder())
        known: tuple[str, ...] = _label_set(tag, tag.num_classes)
        provenance["weights"] = {"kind": "pretrained", "name": tag.name, "uri": uri, "sha256": sha256_file(path)}
        license = tag.license or _license_of(tag.uri, architecture, own)
        if license and license not in provenance["licences"]:
            provenance["licences"].append(license)
        recipe = _recipe(tag.input or architecture.input, channels, size, pixel)
        state = replace(read_state(path), source=f"weights '{tag.name}' of {architecture.name}")
        keep = (labels is None and num_classes in (None, tag.num_classes)) or (
            labels is not None and tuple(labels) == known
        )
        kind = "pretrained"
    else:
        path = Path(weights)
        state = read_state(path)
        first = architecture.weights[0] if architecture.weights else None
        found = None
        if labels is None and architecture.head:
            found = class_count(
                state, architecture.head, lambda n: _network(architecture, n, architecture.input.channels, own)
            )
        known = _label_set(first, found) if first and first.num_classes == found else _numbered(found)
        provenance["weights"] = {"kind": "file", "name": path.name, "sha256": sha256_file(path)}
        recipe = _recipe(architecture.input, channels, size, pixel)
        keep, kind = True, "file"
        if architecture.head and not known and labels is None and num_classes is None:
            # a foreign layout is refused here, by the keys that differ; what is left lacks the head alone
            _build(
                architecture,
                recipe,
                _numbered(10),
                weights=kind,
                options=own,
                state=state,
                keep_head=True,
                provenance={},
            )
            raise CheckpointError(
                f"{path} has no head '{architecture.head}': it can be fine-tuned, but gives no classes as it is"
            )
    if labels is not None:
        names = tuple(labels)
    else:
        names = known if known and num_classes in (None, len(known)) else _numbered(num_classes or UNTOLD)
    return _build(
        architecture, recipe, names, weights=kind, options=own, state=state, keep_head=keep, provenance=provenance
    )


def find_checkpoint(source: str | os.PathLike[str]) -> Path | None:
    """The checkpoint folder that ``source`` means, or None where it is a name.

    Raises CheckpointError where it is a path, but not that of a checkpoint or of a run that left one.
    """
    text = os.fspath(source)
    path = Path(text)
    for folder in (path, path / "checkpoint"):
        if (folder / RECORD).is_file():
            return folder
    known = text in get_registry().names(Architecture)
    looks_like_path = os.sep in text or text.startswith((".", "~")) or isinstance(source, Path)
    if known and not looks_like_path:
        return None
    if path.is_dir():
        if (path / "run.json").is_file():
            raise CheckpointError(
                f"{text} is a run that has no checkpoint yet: go on with `zoo finetune --resume {text}`"
            )
        try:
            get_registry().get(Architecture, text)  # a folder may happen to have an alias's name
        except UnknownName:
            raise CheckpointError(f"{text} holds no {RECORD}: give the folder that `zoo finetune` wrote") from None
        return None
    if path.is_file():
        raise CheckpointError(f"{text} is a file: give an architecture's name, and the file with --weights {text}")
    if looks_like_path:
        raise CheckpointError(f"{text}: no such checkpoint folder")
    return None


def run_name(source: str) -> str:
    """The architecture's own name for an architecture, an alias or a checkpoint: what a run is called by default.

    Raises UnknownName, CheckpointError.
    """
    folder = find_checkpoint(source)
    return get_registry().get(Architecture, source if folder is None else _read_record(folder).architecture).name


def task_of(source: str | os.PathLike[str]) -> str:
    """The task of an architecture or a checkpoint, without opening it. Raises UnknownName, CheckpointError."""
    folder = find_checkpoint(source)
    return get_registry().get(Architecture, os.fspath(source)).task if folder is None else _read_record(folder).task


def checkpoint_labels(folder: Path) -> tuple[str, ...]:
    """The labels of a checkpoint folder, without opening its weights. Raises CheckpointError."""
    return _read_record(folder).labels


def deployable(model: Model) -> nn.Module:
    """The module that is evaluated and exported: eval mode, (N, C, H, W) float32 to a tuple in the order of
    ``model.task.outputs``. It shares its parameters with ``model.network``."""
    trainer = resolve(model.task.trainer, f"task '{model.task.name}'")()
    return cast(nn.Module, trainer.deployable(model.network)).eval()


def half_of(model: Model) -> TaskHalf:
    """The numpy half of the model's task: with the architecture's decode settings, the network's and the model's own, the
    later over the earlier."""
    own = model.network.decode if isinstance(model.network, Players) else {}
    half: TaskHalf = model.task.resolve()(**{**model.architecture.decode, **own, **model.decode})
    return half


def save_checkpoint(
    folder: Path, model: Model, *, metrics: Mapping[str, Any], data: Mapping[str, Any], seed: int
) -> None:
    """Write ``weights.safetensors`` and ``checkpoint.json`` into ``folder``, whole or not at all; an old one is replaced.

    ``metrics`` and ``data`` (source, fingerprint, counts) are JSON-ready. Raises OutputError.
    """
    with new_folder(Path(folder), overwrite=True) as beside:
        # save_model, not save_file: it knows tensors that two modules share
        save_model(model.network, str(beside / TENSORS))
        provenance = {**model.provenance, "metrics": dict(metrics), "data": dict(data), "seed": seed}
        dump_json(
            beside / RECORD,
            {
                "schema": SCHEMA,
                "architecture": model.architecture.name,
                "task": model.task.name,
                "options": {k: v for k, v in model.options.items() if k != "img_size"},
                "labels": list(model.labels),
                "input": model.input.to_dict(),
                "decode": model.decode,
                "weights": {"file": TENSORS, "sha256": sha256_file(beside / TENSORS)},
                "provenance": provenance,
            },
        )


def load_checkpoint(folder: Path) -> Model:
    """Open a checkpoint folder. Raises CheckpointError where it is missing, altered or of an unknown schema,
    UnknownName where the plugin of its architecture is not installed."""
    return _read_checkpoint(Path(folder))[0]


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What ``checkpoint.json`` says, its types checked; the weights are not touched."""

    architecture: str
    task: str
    labels: tuple[str, ...]
    input: ImageInput
    decode: dict[str, Any]
    sha256: str
    options: dict[str, Any]
    provenance: dict[str, Any]


def _read_record(folder: Path) -> _Record:
    path = folder / RECORD
    try:
        record = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    try:
        if record["schema"] != SCHEMA:
            raise CheckpointError(
                f"{path} has schema {record['schema']}; this version of zoo ({__version__}) reads {SCHEMA}: upgrade zoo"
            )
        return _Record(
            architecture=str(record["architecture"]),
            task=str(record["task"]),
            labels=tuple(str(label) for label in record["labels"]),
            input=ImageInput.from_dict(record["input"]),
            decode=dict(record.get("decode", {})),
            sha256=str(record["weights"]["sha256"]),
            options=dict(record["options"]),
            provenance=dict(record["provenance"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint's record: {type(error).__name__} {error}") from None


def _read_checkpoint(folder: Path) -> tuple[Model, State]:
    record = _read_record(folder)
    architecture = get_registry().get(Architecture, record.architecture)
    tensors = folder / TENSORS
    if not tensors.is_file():
        raise CheckpointError(f"{folder} has no {TENSORS}: copy the whole folder")
    if sha256_file(tensors) != record.sha256:
        raise CheckpointError(
            f"{tensors} is not the file that {RECORD} speaks of (its sha256 differs): copy the folder again"
        )
    state = read_state(tensors)
    model = _build(
        architecture,
        record.input,
        record.labels,
        weights="checkpoint",
        options=record.options,
        state=state,
        keep_head=True,
        provenance=record.provenance,
    )
    if model.provenance["head"] != "kept":
        raise CheckpointError(f"{tensors}: its head is not one of {len(record.labels)} classes")
    return replace(model, decode=record.decode), state


def _build(
    architecture: Architecture,
    recipe: ImageInput,
    labels: tuple[str, ...],
    *,
    weights: str,
    options: Mapping[str, Any],
    state: State | None,
    keep_head: bool,
    provenance: Mapping[str, Any],
) -> Model:
    task = get_registry().get(Task, architecture.task)
    build = architecture.resolve()
    size = (recipe.height, recipe.width)
    if (
        size != (architecture.input.height, architecture.input.width)
        and "img_size" in inspect.signature(build).parameters
    ):
        options = {**options, "img_size": size}  # for networks whose weights depend on it
    latent = recipe.color == "latent"
    if latent:
        # what tells the class comes behind what is drawn, and is no business of the build's
        recipe = recipe.with_channels(architecture.input.channels + len(labels))
    if state is not None and "state" in inspect.signature(build).parameters:
        options = {**options, "state": state.tensors}  # for networks that are recognised by their weights
    network = _network(architecture, len(labels), architecture.input.channels if latent else recipe.channels, options)
    options = {k: v for k, v in options.items() if k != "state"}
    fitted = Fitted(head=False, loaded=frozenset())
    if state is not None:
        state = replace(state, tensors=_untied(network, state))
        fitted = fit(
            network,
            state,
            head=architecture.head,
            backbone=architecture.backbone,
            keep_head=keep_head,
            channels=recipe.channels,
        )
        if not fitted.head and task.name == "classify":
            _start_small(network, architecture.head)
    return Model(
        architecture=architecture,
        network=network.eval(),
        input=recipe,
        labels=labels,
        task=task,
        weights=weights,
        options=dict(options),
        provenance={
            **provenance,
            "head": "kept" if fitted.head or (state is not None and not architecture.head) else "new",
        },
        loaded=fitted.loaded,
    )


def _network(architecture: Architecture, classes: int, channels: int, options: Mapping[str, Any]) -> nn.Module:
    """The network with random weights. Raises PluginError, or what the network says of its options."""
    try:
        network = architecture.resolve()(
            num_classes=classes, in_channels=channels, **{**architecture.options, **options}
        )
    except ZooError:
        raise  # the network says what it takes, and the cure
    except Exception as error:  # a stranger's code
        raise PluginError(
            f"architecture '{architecture.name}' cannot be built: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise PluginError(
            f"architecture '{architecture.name}': build gave a {type(network).__name__}, not a torch.nn.Module"
        )
    return network


def _filled(uri: str, architecture: Architecture, options: Mapping[str, Any]) -> str:
    """A weights' uri with the build options it speaks of put in: ``timm:{encoder}``."""
    try:
        return uri.format(**{**architecture.options, **options}) if "{" in uri else uri
    except (KeyError, IndexError, ValueError) as error:
        raise PluginError(f"architecture '{architecture.name}': weights uri '{uri}': {error}") from None


def _start_small(network: nn.Module, name: str) -> None:
    """A new head on trained features starts near zero: the initialisation of some libraries is meant for training
    everything from nothing, and with few classes its logits are so large that the head first has to unlearn them."""
    with contextlib.suppress(AttributeError):
        head = network.get_submodule(name)
        if isinstance(head, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(head.weight, std=0.01)
            if head.bias is not None:
                nn.init.zeros_(head.bias)


def _untied(network: nn.Module, state: State) -> Mapping[str, torch.Tensor]:
    """safetensors keeps one name of tensors that several modules share: give the others back."""
    wanted = network.state_dict(keep_vars=True)
    by_storage: dict[int, list[str]] = {}
    for key, tensor in wanted.items():
        by_storage.setdefault(id(tensor), []).append(key)
    tensors = dict(state.tensors)
    for names in by_storage.values():
        present = [n for n in names if n in tensors]
        if len(names) > 1 and present:
            tensors.update({n: tensors[present[0]] for n in names if n not in tensors})
    return tensors


def _license_of(uri: str, architecture: Architecture, options: Mapping[str, Any]) -> str:
    """The licence of weights that a uri names by a build option (``timm:{encoder}``): that of the network's own."""
    fields = [name for _, name, _, _ in string.Formatter().parse(uri) if name]
    merged = {**architecture.options, **options}
    with contextlib.suppress(UnknownName, IndexError):
        return get_registry().get(Architecture, str(merged[fields[0]])).weights[0].license
    return ""


def _tag(architecture: Architecture, weights: str) -> Weights | None:
    """The registered weights that ``weights`` names; None where it is a file."""
    if weights == "pretrained":
        if not architecture.weights:
            raise CheckpointError(
                f"{architecture.name} has no pretrained weights: train it with --weights none, or give --weights FILE"
            )
        return architecture.weights[0]
    for tag in architecture.weights:
        if tag.name == weights:
            return tag
    if (
        Path(weights).exists()
        or os.sep in weights
        or Path(weights).suffix in (".safetensors", ".pth", ".th", ".pt", ".bin", ".ckpt")
    ):
        return None
    raise UnknownName(
        f"weights of {architecture.name}", weights, ["pretrained", "none", *(t.name for t in architecture.weights)]
    )


def _recipe(
    recipe: ImageInput, channels: int | None, size: int | tuple[int, int] | None, pixel: str = ""
) -> ImageInput:
    try:
        if pixel:
            recipe = replace(recipe, pixel=pixel)
        if channels:
            recipe = recipe.with_channels(channels)
        return recipe.with_size(*((size,) if isinstance(size, int) else size)) if size else recipe
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _label_set(tag: Weights | None, count: int) -> tuple[str, ...]:
    if tag is not None and ":" in tag.labels:
        names = tuple(resolve(tag.labels, f"weights '{tag.name}'")())
        if len(names) == count:
            return names
    return _numbered(count)


def _numbered(count: int | None) -> tuple[str, ...]:
    return tuple(str(i) for i in range(count or 0))


def _versions(architecture: Architecture) -> dict[str, str]:
    versions = {"python": sys.version.split()[0], "zoo": __version__, "torch": torch.__version__}
    plugin = get_registry().owner(Architecture, architecture.name)
    if plugin.distribution:
        versions[plugin.distribution] = plugin.version
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["timm"] = importlib.metadata.version("timm")
    return versions
