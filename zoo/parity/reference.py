"""What PyTorch said, carried in the bundle, so that a device without torch can judge an artefact against it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError
from ..files import write_bytes

__all__ = ["FILE", "StoredReference", "load_reference", "save_reference"]

FILE = "reference.npz"


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredReference:
    """What the reference gave. ``outputs`` are PyTorch's in float32, ``exact`` in float64."""

    name: str
    """What computed them: ``PyTorch 2.15.0 (eager, float32)``."""
    ids: tuple[str, ...]
    digests: tuple[str, ...]
    """sha256 of each sample's image bytes (:meth:`zoo.data.Sample.digest`)."""
    results: Mapping[str, np.ndarray]
    """The N samples' results as the task's half packs them."""
    outputs: Mapping[str, np.ndarray]
    """Of the first K <= N samples."""
    exact: Mapping[str, np.ndarray]
    """Of the first M <= K samples."""
    golden_outputs: Mapping[str, np.ndarray]
    """Of the golden tensors."""
    golden_exact: Mapping[str, np.ndarray]


def save_reference(folder: Path, reference: StoredReference) -> str:
    """Write ``reference.npz`` into a bundle folder; returns the file's name."""
    arrays: dict[str, Any] = {
        "name": np.asarray(reference.name),
        "ids": np.asarray(reference.ids, dtype=np.str_),
        "digests": np.asarray(reference.digests, dtype=np.str_),
    }
    for prefix, group in _groups(reference).items():
        for name, value in group.items():
            arrays[f"{prefix}/{name}"] = value
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(folder / FILE, buffer.getvalue())
    return FILE


def load_reference(bundle: Bundle) -> StoredReference | None:
    """The bundle's reference, or None where it carries none. Raises BundleError where it cannot be read."""
    if FILE not in bundle.manifest["files"]:
        return None
    try:
        with np.load(io.BytesIO(bundle.read(FILE)), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return StoredReference(
            name=str(arrays["name"]),
            ids=tuple(arrays["ids"].tolist()),
            digests=tuple(arrays["digests"].tolist()),
            results=_part(arrays, "result"),
            outputs=_part(arrays, "out"),
            exact=_part(arrays, "exact"),
            golden_outputs=_part(arrays, "golden_out"),
            golden_exact=_part(arrays, "golden_exact"),
        )
    except (ValueError, KeyError, OSError) as error:
        raise BundleError(f"{bundle.path}: {FILE} cannot be read ({error}): export it again") from None


def _groups(reference: StoredReference) -> dict[str, Mapping[str, np.ndarray]]:
    return {
        "result": reference.results,
        "out": reference.outputs,
        "exact": reference.exact,
        "golden_out": reference.golden_outputs,
        "golden_exact": reference.golden_exact,
    }


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in arrays.items() if name.startswith(f"{prefix}/")}


def take(outputs: Mapping[str, np.ndarray], indices: Sequence[int]) -> dict[str, np.ndarray]:
    """The named outputs of some samples."""
    return {name: value[list(indices)] for name, value in outputs.items()}
