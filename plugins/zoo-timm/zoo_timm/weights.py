"""Opens timm's published weights: fetched once from the Hugging Face hub, and brought to the network's own layout."""

from __future__ import annotations

import json
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.torch import save_model
from timm.models import get_pretrained_cfg

from zoo.download import fetch
from zoo.errors import CheckpointError
from zoo.files import as_output_error, beside

__all__ = ["open_weights"]

_TIMEOUT_S = 5.0
_CURE = "download the file elsewhere and give it with --weights FILE, or start from random weights with --weights none"


def open_weights(name: str, cache: Path) -> Path:
    """A safetensors file that loads strictly into timm's ``name`` (``architecture.tag``).

    The published file itself where it has the network's keys and shapes; otherwise timm's own loader (which
    renames keys, drops a background class, reads .npz) fills the network once and the result is kept in ``cache``.
    Raises CheckpointError: unknown name, no connection, refused by the hub.
    """
    try:
        cfg = get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        cfg = None
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise CheckpointError(f"timm {timm.__version__} publishes no weights '{name}'")
    converted = cache / "timm" / f"{name}.safetensors"
    if converted.is_file():
        return converted
    source = _from_hub(cfg.hf_hub_id, name, cache) if cfg.hf_hub_id else fetch(cfg.url, cache)
    if source.suffix == ".safetensors" and _header(source) == _wanted(name):
        return source
    # of the 65 configurations with a loader of their own, those on the hub hold ordinary tensors there
    overlay = {"file": str(source), "custom_load": bool(cfg.custom_load) and source.suffix == ".npz"}
    try:
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm raises whatever a layout that does not fit leads to
        raise CheckpointError(
            f"{source} is not what timm {timm.__version__} expects of '{name}': {_line(error)}"
        ) from error
    with beside(converted) as part:
        save_model(network, str(part))
    return converted


def _from_hub(repo: str, name: str, cache: Path) -> Path:
    files = ("model.safetensors", "pytorch_model.bin")
    for file in files:
        here = try_to_load_from_cache(repo, file, cache_dir=cache / "hub")
        if isinstance(here, str):
            return Path(here)
    _reach(name)
    for file in files:
        try:
            return Path(hf_hub_download(repo, file, cache_dir=cache / "hub", etag_timeout=_TIMEOUT_S))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled):
            raise CheckpointError(f"the weights '{name}' are not here and the hub cannot be reached: {_CURE}") from None
        except EntryNotFoundError:
            continue
        except GatedRepoError:
            raise CheckpointError(
                f"{repo} asks for a login: accept its terms at https://huggingface.co/{repo}, then `hf auth login`"
            ) from None
        except RepositoryNotFoundError:
            raise CheckpointError(f"the hub has no {repo} (any more): {_CURE}") from None
        except HfHubHTTPError as error:
            raise CheckpointError(f"the hub refuses {repo}: {_line(error)}: {_CURE}") from None
        except OSError as error:
            if error.filename is not None:
                raise as_output_error(error, Path(error.filename)) from error
            raise CheckpointError(f"the hub cannot be reached ({_line(error)}): {_CURE}") from None
        except Exception as error:  # the HTTP client's own errors share no base class with OSError
            raise CheckpointError(f"the hub cannot be reached ({_line(error)}): {_CURE}") from None
    raise CheckpointError(f"{repo} holds neither model.safetensors nor pytorch_model.bin: {_CURE}")


def _reach(name: str) -> None:
    """Raise at once where there is no way to the hub: its client tries for half a minute before it says so."""
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # an answer, whatever it says
    except (OSError, ValueError) as error:
        reason = _line(getattr(error, "reason", None) or error)
        raise CheckpointError(
            f"the weights '{name}' are not here and {constants.ENDPOINT} cannot be reached ({reason}): {_CURE}"
        ) from None


def _line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor, read from a safetensors file's first bytes."""
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        entries: dict[str, Any] = json.loads(stream.read(size))
    return {key: tuple(entry["shape"]) for key, entry in entries.items() if key != "__metadata__"}


def _wanted(name: str) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            network = timm.create_model(name, pretrained=False)
    except (NotImplementedError, RuntimeError, TypeError):  # some compute on values while they are built
        network = timm.create_model(name, pretrained=False)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
