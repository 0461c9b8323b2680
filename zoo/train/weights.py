"""Foreign weights: reads what people leave on disks, and refuses what does not fit, naming the first keys that differ."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError
from .players import Players

__all__ = ["Fitted", "State", "adapt_channels", "class_count", "fit", "read_state"]

_NESTS = (
    "params_ema",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "params",
)
"""Where checkpoints in the wild keep the tensors; averaged weights first, as they are the ones that were published."""

_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""What DataParallel, torch.compile and training frameworks put before every key."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The tensors of one file, and where they come from."""

    tensors: Mapping[str, Tensor]
    source: str


class Fitted(NamedTuple):
    """What :func:`fit` put where."""

    head: bool
    """Whether the head came along."""
    loaded: frozenset[str]
    """Names in the network's state_dict that have the file's values."""


def read_state(path: Path) -> State:
    """Read ``.safetensors`` or a ``.pth``/``.th``/``.pt``/``.bin``/``.ckpt`` of tensors (``weights_only=True``), on the CPU.

    Nesting (``state_dict``, ``model``, averaged ones first) is taken off; prefixes come off in :func:`fit`, which
    knows the network. Raises CheckpointError where the file is absent, damaged, or holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a file of weights")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file of weights")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise CheckpointError(f"{path} is an empty file, not weights: download or copy it again")
    # a safetensors file opens with the length of its JSON header and the header's brace
    if path.suffix == ".safetensors" or (len(head) > 8 and head[8:9] == b"{" and head[:2] != b"PK"):
        try:
            return State(tensors=load_file(path, device="cpu"), source=str(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a whole safetensors file: {_line(error)}: download or copy it again"
            ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds more than tensors, and code from a file is not run: "
                "save its state_dict alone, best as safetensors, on a machine that trusts it"
            ) from None
        raise CheckpointError(f"{path} is not a file of weights: {_line(error)}") from None
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ValueError, … on damaged files
        raise CheckpointError(
            f"{path} is not a whole file of weights: {_line(error)}: download or copy it again"
        ) from None
    return State(tensors=_unnest(loaded, path), source=str(path))


def _unnest(loaded: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(loaded, Mapping):
            break
        inner = next((loaded[n] for n in _NESTS if isinstance(loaded.get(n), Mapping) and loaded[n]), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors under {', '.join(map(str, list(loaded)[:4])) or 'any key'}")
    return tensors


def _strip(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that every key has and no key of the network has."""
    found = dict(tensors)
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if all(k.startswith(prefix) for k in found) and not any(k.startswith(prefix) for k in wanted):
                found = {k.removeprefix(prefix): v for k, v in found.items()}
                changed = True
    return found


def class_count(state: State, head: str, build: Callable[[int], nn.Module] | None = None) -> int | None:
    """How many classes the state's head has; None where it has no head.

    ``build(n)`` gives the network for n classes. How its head grows from two classes to three tells what a length means:
    some have a value a class, some as many as there are anchors, some one more for the background. It is called with
    torch's default device set to ``meta``, and as it is only where it does not do there. Without it a class has one
    value. Raises CheckpointError where no number of classes has a head of that length.
    """
    if build is None:
        head = head.partition(",")[0]
        tensor = _named(state, f"{head}.bias", f"{head}.weight")
        return int(tensor.shape[0]) if tensor is not None and tensor.ndim else None
    two, three = (_shapes(build, n) for n in (2, 3))
    for key, small in two.items():
        tensor = _named(state, key)
        if small == three.get(key) or tensor is None or tensor.ndim != len(small):
            continue
        axis = next(i for i, (a, b) in enumerate(zip(small, three[key], strict=True)) if a != b)
        each, length = three[key][axis] - small[axis], tensor.shape[axis]
        besides = small[axis] - 2 * each
        classes, left = divmod(length - besides, each)
        if left or classes < 1:
            raise CheckpointError(
                f"{state.source}: {key} has {length} values, and a head has {each} a class"
                f"{f' and {besides} besides' if besides else ''}: these weights are of another network"
            )
        return int(classes)
    return None


def _shapes(build: Callable[[int], nn.Module], classes: int) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            network = build(classes)
    except Exception:  # a stranger's code, that looks at values while it builds: for real, then
        network = build(classes)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def _named(state: State, *names: str) -> Tensor | None:
    """The first of the names that the state has, under whatever prefix."""
    for name in names:
        for key, tensor in state.tensors.items():
            if key == name or key.endswith("." + name):
                return tensor
    return None


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution's (O, I, kH, kW) weight for another channel count: (O, ``channels``, kH, kW).

    One channel: the sum over the old ones, so that a grey image gives what it gave as RGB. Otherwise the old
    channels are repeated in turn and scaled by I / ``channels``, which gives a grey image what it gave where I
    divides ``channels``, and about that elsewhere (the rule of timm's ``adapt_input_conv``).
    """
    old = weight.shape[1]
    if channels == old:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeats = -(-channels // old)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (old / channels)


def fit(network: nn.Module, state: State, *, head: str, keep_head: bool, channels: int, backbone: str = "") -> Fitted:
    """Load ``state`` into ``network`` strictly.

    Three differences are allowed: the head (the module ``head``) where ``keep_head`` is false or its class count
    differs, which then keeps its fresh initialisation; a first layer for another number of input channels, which
    is adapted (:func:`adapt_channels`); and BatchNorm's batch counters, which old files lack. The weights of an image
    classifier, which the network's ``backbone`` was cut out of, go there; the rest keeps its fresh initialisation.
    Of players a file may hold the generator alone, under its own names (:meth:`zoo.train.players.Players.adopt`).
    Raises CheckpointError naming the first keys that are missing, unexpected or of another shape.
    """
    if backbone:
        part = network.get_submodule(backbone)
        own, whole = part.state_dict(), network.state_dict()
        inner = _classifier_keys(state.tensors, own)
        if len(inner) > sum(1 for k in _strip(state.tensors, whole) if k in whole):
            cut = State(tensors=inner, source=state.source)
            inside = fit(part, cut, head="", keep_head=False, channels=channels).loaded
            return Fitted(head=False, loaded=frozenset(f"{backbone}.{k}" for k in inside))
    wanted: dict[str, Tensor] = network.state_dict()
    tensors = _strip(state.tensors, wanted)
    if isinstance(network, Players) and not any(k in wanted for k in tensors):
        tensors = dict(network.adopt(state.tensors))
        # a file of a generator alone: whoever trains it starts fresh
        wanted = {k: v for k, v in wanted.items() if k.startswith("generator.") or k in tensors}
    heads = [h for h in head.split(",") if h]
    in_head = {k for k in {*wanted, *tensors} if any(k == h or k.startswith(h + ".") for h in heads)}
    head_fits = {k for k in in_head if k in wanted} == {k for k in in_head if k in tensors} and all(
        wanted[k].shape == tensors[k].shape for k in in_head if k in wanted and k in tensors
    )
    if keep_head and in_head and not head_fits and not any(k in tensors for k in in_head):
        keep_head = False
    with_head = keep_head and head_fits
    if not with_head:
        tensors = {k: v for k, v in tensors.items() if k not in in_head}
    missing: list[str] = []
    shapes: list[str] = []
    for key, target in wanted.items():
        if key in in_head and not with_head:
            continue
        found = tensors.get(key)
        if found is None:
            if not key.endswith("num_batches_tracked"):
                missing.append(key)
        elif found.shape != target.shape:
            if _is_first_layer(found, target, channels):
                tensors[key] = adapt_channels(found.float(), channels)
            else:
                shapes.append(f"{key} is {_shape(found)}, not {_shape(target)}")
    unexpected = [k for k in tensors if k not in wanted]
    if missing or unexpected or shapes:
        parts = []
        if missing:
            parts.append(f"{_count(missing, 'missing')}: {', '.join(missing[:3])}")
        if unexpected:
            parts.append(f"{_count(unexpected, 'unexpected')}: {', '.join(unexpected[:3])}")
        if shapes:
            parts.append(f"{_count(shapes, 'of another shape')}: {', '.join(shapes[:3])}")
        raise CheckpointError(f"{state.source} does not fit {type(network).__name__}: {'; '.join(parts)}")
    broken = next((k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())), None)
    if broken is not None:
        raise CheckpointError(f"{state.source}: {broken} holds NaN or infinity: these weights are damaged")
    network.load_state_dict(tensors, strict=False)
    return Fitted(head=with_head, loaded=frozenset(k for k in tensors if k in wanted))


def _classifier_keys(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a whole classifier that a backbone cut out of it has, under the backbone's names.

    timm's ``features_only`` networks write ``stages_0.`` for ``stages.0.``: names that differ in that alone meet.
    """
    flat = {k.replace("_", "."): k for k in own}
    found = {flat[k.replace("_", ".")]: v for k, v in _strip(tensors, own).items() if k.replace("_", ".") in flat}
    return found if len(flat) == len(own) else {k: v for k, v in tensors.items() if k in own}


def _is_first_layer(found: Tensor, target: Tensor, channels: int) -> bool:
    return (
        found.ndim == 4
        and target.ndim == 4
        and target.shape[1] == channels
        and found.shape[0] == target.shape[0]
        and found.shape[2:] == target.shape[2:]
        and found.shape[1] <= 64
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _count(keys: list[str], what: str) -> str:
    return f"{len(keys)} key{'s' if len(keys) != 1 else ''} {what}"


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
