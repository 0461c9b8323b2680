"""Golden vectors: a few inputs with the tensor, the raw outputs and the result they must give, replayed on a device.

``make_golden`` writes them where the artefacts were made; ``selftest`` replays them with numpy and a runtime alone,
stage by stage, so that a failure names the stage: manifest, files, preprocess, open, network, decode.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..bundle import ArtifactEntry, Bundle, open_bundle
from ..errors import BundleError, ImageError, ZooError
from ..files import write_bytes
from ..inputs import Frame, Source, crop_resize, frame, prepare, read_image, size_of
from ..lookup import find_task, runtimes_for
from ..runtime.choosing import why_not
from ..runtime.predictor import open_artifact, open_half
from ..runtime.session import Session
from ..specs import ImageInput
from ..tasks import Aligned, TaskHalf
from .evidence import is_own, made_images
from .gates import compare

__all__ = ["STAGES", "Stage", "golden_arrays", "make_golden", "replay_network", "selftest"]

STAGES = ("manifest", "files", "preprocess", "open", "network", "decode")

PREPROCESS_MEAN_STEPS = 0.25
"""Mean error allowed in a replayed tensor, in steps of 1/255: Pillow versions differ by less than 0.05."""
PREPROCESS_MAX_STEPS = 3.0
"""Largest error of one value, in the same unit: one rounding a resizing pass, and one for luck."""

MAX_ORIGINAL_BYTES = 512 << 10
THINNED = 1 << 18
"""About how many values are kept of an output that decoding does not need (the logits of a class map)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage of the self-test found. Truthy where it passed."""

    stage: str
    passed: bool
    message: str
    artifact: str = ""

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "passed": self.passed, "artifact": self.artifact, "message": self.message}


def make_golden(
    folder: Path,
    spec: ImageInput,
    images: Sequence[tuple[str, Source]],
    sessions: Mapping[str, Session],
    half: TaskHalf,
    labels: Sequence[str],
) -> dict[str, Any]:
    """Write ``golden.npz`` and ``golden/*`` into a bundle folder; returns the manifest's ``golden`` object.

    To the given (id, image) pairs come three made ones that shrink, grow, and lie on their side (EXIF): an image
    that already has the network's size would let a wrong resize pass. ``sessions``: by artefact name.
    """
    named = [(name, *_portable(image, spec)) for name, image in images]
    named += [(name, data, suffix) for name, data, suffix in _made(spec)]
    entries: list[dict[str, Any]] = []
    tensors, frames = [], []
    for index, (name, data, suffix) in enumerate(named):
        file = f"golden/{index:03d}{suffix}"
        write_bytes(folder / file, data)
        tensor, where = prepare(_source(data, suffix), spec, name)
        tensors.append(tensor)
        frames.append(where)
        entries.append({"id": name, "file": file, "results": {}})
    arrays: dict[str, np.ndarray] = {"tensors": np.stack(tensors)}
    for artifact, session in sessions.items():
        outputs = session.run(arrays["tensors"])
        needed = half.decodes(session.output_names)
        for output, value in outputs.items():
            arrays[f"{artifact}/{output}"] = value if output in needed else thinned(value, len(named))
        for entry, result in zip(entries, half.decode(outputs, labels=labels, frames=frames), strict=True):
            entry["results"][artifact] = result.to_dict()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(folder / "golden.npz", buffer.getvalue())
    return {"file": "golden.npz", "samples": entries}


def thinned(value: np.ndarray, count: int) -> np.ndarray:
    """(n, …) as it is where it is small; else each image's values at equal steps (n, M), so that a large output of
    ``count`` golden images costs a bundle little."""
    step = -(-value[0].size * count // THINNED)
    return value if step <= 1 else value.reshape(len(value), -1)[:, ::step]


def _portable(image: Source, spec: ImageInput) -> tuple[bytes, str]:
    """The original file where it is small, otherwise the decoded pixels, shrunk, without loss."""
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        if path.stat().st_size <= MAX_ORIGINAL_BYTES and path.suffix.lower() in (
            ".jpg",
            ".jpeg",
            ".png",
            ".bmp",
            ".npy",
        ):
            return path.read_bytes(), path.suffix.lower()
    decoded = read_image(image, spec)
    if spec.resize == "crop":  # the pixels are seen as they are: what is needed of them is cut out
        where = frame(*size_of(decoded), spec)
        decoded = crop_resize(
            decoded, (where.place[2] - where.place[0], where.place[3] - where.place[1]), where.box, spec
        )
    if isinstance(decoded, np.ndarray):
        return _npy(decoded)
    if spec.resize != "crop":
        decoded.thumbnail((4 * spec.width, 4 * spec.height))
    return _png(decoded), ".png"


def _made(spec: ImageInput) -> Iterator[tuple[str, bytes, str]]:
    h, w = spec.height, spec.width
    if spec.color == "latent":
        for at, latent in enumerate(made_images(spec, 3, h, w, seed=9)):
            yield f"made: latent {at}", *_npy(latent)
        return
    shapes = {
        "made: shrinks": (2 * h + 7, 3 * w - 5),
        "made: grows": (h // 2 + 3, w // 3 + 5),
        "made: on its side": (h + 31, 2 * w + 1),
    }
    for seed, (name, (height, width)) in enumerate(shapes.items()):
        pixels = made_images(spec, 1, height, width, seed)[0]
        if spec.color == "bands" or spec.pixel != "uint8":
            yield name, *_npy(pixels if spec.pixel == "uint8" else pixels.astype(np.uint16) * 257)
            continue
        image = Image.fromarray(pixels)
        if name == "made: on its side":
            image.getexif()[0x0112] = 6
        yield name, _png(image), ".png"


def _npy(array: np.ndarray) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue(), ".npy"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=image.getexif())
    return buffer.getvalue()


def _source(data: bytes, suffix: str) -> Source:
    if suffix == ".npy":
        return np.load(io.BytesIO(data), allow_pickle=False)  # type: ignore[no-any-return]
    return data


def selftest(
    bundle: Bundle | str | os.PathLike[str],
    artifact: str | None = None,
    *,
    threads: int | None = None,
) -> list[Stage]:
    """Replay the golden vectors on this machine. All stages are reported up to the first that makes the rest
    meaningless; the list is never empty and its last failing element names the stage.

    ``artifact`` defaults to every artefact that a runtime here can open. Raises MissingPart where there is none.
    """
    found: list[Stage] = []
    if not isinstance(bundle, Bundle):
        try:
            bundle = open_bundle(bundle)
        except BundleError as error:
            return [Stage(stage="manifest", passed=False, message=str(error))]
    found.append(
        Stage(
            stage="manifest",
            passed=True,
            message=f"schema {bundle.manifest['schema']}, {len(bundle.artifacts)} artefacts",
        )
    )
    wrong = bundle.check_files()
    found += [Stage(stage="files", passed=False, message=line) for line in wrong]
    if wrong:
        return found
    found.append(
        Stage(
            stage="files",
            passed=True,
            message=f"{len(bundle.manifest['files'])} files have the sizes and hashes of the manifest",
        )
    )
    try:
        arrays, sources = golden_arrays(bundle)
        half = open_half(bundle)
    except (BundleError, ImageError) as error:
        return [*found, Stage(stage="files", passed=False, message=str(error))]
    try:
        samples = bundle.manifest["golden"]["samples"]
        prepared = [prepare(s, bundle.input, entry["id"]) for s, entry in zip(sources, samples, strict=True)]
    except ImageError as error:
        return [*found, Stage(stage="preprocess", passed=False, message=str(error))]
    found.append(_replay_preprocess(bundle, arrays["tensors"], [tensor for tensor, _ in prepared]))
    frames = [where for _, where in prepared]
    for name in [artifact] if artifact else list(bundle.artifacts):
        found += _replay_artifact(bundle, name, arrays, frames, half, threads)
    return found


def golden_arrays(bundle: Bundle) -> tuple[dict[str, np.ndarray], list[Source]]:
    """The golden tensors and outputs by their names in the file, and the images. Raises BundleError."""
    golden = bundle.manifest.get("golden")
    if not isinstance(golden, dict) or not golden.get("samples"):
        raise BundleError(f"{bundle.path} carries no golden vectors: export it again")
    try:
        with np.load(io.BytesIO(bundle.read(golden["file"])), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        sources = [_source(bundle.read(s["file"]), Path(s["file"]).suffix) for s in golden["samples"]]
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise BundleError(f"{bundle.path}: the golden vectors cannot be read ({error}): export it again") from None
    if len(arrays.get("tensors", ())) != len(sources):
        raise BundleError(f"{bundle.path}: {len(sources)} golden images but {len(arrays.get('tensors', ()))} tensors")
    return arrays, sources


def _replay_preprocess(bundle: Bundle, expected: np.ndarray, tensors: Sequence[np.ndarray]) -> Stage:
    spec = bundle.input

    def result(passed: bool, message: str) -> Stage:
        return Stage(stage="preprocess", passed=passed, message=message)

    if expected.shape[1:] != spec.shape:
        return result(False, f"the golden tensors are {expected.shape[1:]}, the manifest's input is {spec.shape}")
    # the unit in which resizing may differ: a step of the stored pixels; for measurements a 255th of their spread
    levels = {"uint8": 255, "uint16": 65535, "float32": 255}[spec.pixel]
    spread = np.ones(spec.channels) if spec.pixel == "float32" else np.asarray(spec.std)
    step = 1.0 / (levels * spread)[:, None, None]
    worst_mean = worst_max = 0.0
    culprit = ""
    for entry, ours, tensor in zip(bundle.manifest["golden"]["samples"], tensors, expected, strict=True):
        error = np.abs(ours.astype(np.float64) - tensor) / step
        if error.mean() >= worst_mean:
            worst_mean, culprit = float(error.mean()), entry["id"]
        worst_max = max(worst_max, float(error.max()))
    said = f"{len(tensors)} images: off by at most {worst_max:.2f}, on average {worst_mean:.3f} steps of 1/{levels}"
    if worst_mean <= PREPROCESS_MEAN_STEPS and worst_max <= PREPROCESS_MAX_STEPS:
        return result(True, said)
    return result(
        False,
        f"{said} (worst: {culprit}): this is not the preprocessing that the network was trained with; "
        f"size, channel order, mean, std, resize, crop or interpolation of the manifest's input differ",
    )


def _replay_artifact(
    bundle: Bundle,
    name: str,
    arrays: Mapping[str, np.ndarray],
    frames: Sequence[Frame],
    half: TaskHalf,
    threads: int | None,
) -> list[Stage]:
    def stage(which: str, passed: bool, message: str) -> Stage:
        return Stage(stage=which, passed=passed, message=message, artifact=name)

    try:
        predictor = open_artifact(bundle, name, threads=threads)
    except ZooError as error:
        entry = bundle.artifact(name)
        own = [r for r in runtimes_for(entry.format) if is_own(entry.format, r.name)]
        if entry.format == "onnx" or any(not why_not(r) for r in own):
            return [stage("open", False, str(error))]
        return [stage("open", True, f"not run: nothing on this machine executes it ({error})")]
    found = [stage("open", True, predictor.session.device)]
    found.append(replay_network(bundle, predictor.artifact, predictor.session, arrays))
    golden = _outputs_of(name, arrays)
    if not {o["name"] for o in bundle.manifest["outputs"]} <= set(golden):
        return found
    try:
        results = half.decode(golden, labels=bundle.labels, frames=frames)
        decoded = [result.to_dict() for result in results]
    except (IndexError, KeyError, ValueError) as error:
        return [*found, stage("decode", False, f"the golden outputs cannot be decoded: {error!r}")]
    for entry, ours in zip(bundle.manifest["golden"]["samples"], decoded, strict=True):
        if ours != entry["results"].get(name):
            said = f"{entry['id']} decodes to {_short(ours)}, at export it was {_short(entry['results'].get(name))}: the labels or the decoding differ"
            return [*found, stage("decode", False, said)]
    found.append(stage("decode", True, f"{len(decoded)} results as at export"))
    return found


def _outputs_of(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}


def replay_network(bundle: Bundle, entry: ArtifactEntry, session: Session, arrays: Mapping[str, np.ndarray]) -> Stage:
    """Run the golden tensors through an opened artefact and compare with what it gave at export.

    ``arrays``: as :func:`golden_arrays` gives them. An engine is compared with what ONNX Runtime gave of the same graph, or,
    where it does not round as an engine does, of a graph that does.
    """

    def result(passed: bool, message: str) -> Stage:
        return Stage(stage="network", passed=passed, message=message, artifact=entry.name)

    tensors, golden = arrays["tensors"], _outputs_of(entry.name, arrays)
    if not {o["name"] for o in bundle.manifest["outputs"]} <= set(golden):
        return result(False, f"no golden outputs for artefact {entry.name}: export it again")
    tolerances = find_task(bundle.task).tolerances
    table = tolerances.get(entry.precision, tolerances["fp32"])
    bound = table["golden" if entry.format == "onnx" else "engine"]
    half = open_half(bundle)
    worst = 0.0
    # one by one as a camera does, and all at once: a frozen batch axis must not go unseen
    for size in (1, len(tensors)):
        for start in range(0, len(tensors), size):
            try:
                outputs = session.run(tensors[start : start + size])
            except Exception as error:  # each runtime has exceptions of its own
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                return result(False, f"a batch of {size} does not run: {line[:200]}")
            parts = {output: expected[start : start + size] for output, expected in golden.items()}
            aligned = _aligned(half, outputs, parts)
            if aligned is not None:
                if not 1 - aligned.lost >= table.get("rows_paired", 1.0):
                    return result(
                        False,
                        f"{100 * aligned.lost:.3g} % of the {aligned.matter} rows that matter are not as at export",
                    )
                outputs = {**outputs, **aligned.outputs}
            for output, part in parts.items():
                ours = outputs.get(output)
                if ours is not None and ours.shape != part.shape:
                    ours = thinned(ours, len(tensors))
                if ours is None or ours.shape != part.shape:
                    return result(
                        False,
                        f"output '{output}' has shape {getattr(ours, 'shape', None)}, at export {part.shape} (batch {size})",
                    )
                if part.dtype.kind in "iub":
                    differing = float((ours != part).mean())
                    worst = max(worst, differing)
                    if differing > bound:
                        return result(False, f"output '{output}' differs in {100 * differing:.3g} % of its values")
                    continue
                found = compare(ours, part, where=aligned.paired if aligned and output in aligned.outputs else None)
                if found["not_finite"]:
                    return result(False, f"output '{output}' holds {found['not_finite']} values that are not finite")
                worst = max(worst, found["rms_share"])
                if found["rms_share"] > bound:
                    return result(
                        False,
                        f"output '{output}' differs by {100 * found['rms_share']:.3g} % of its spread ({100 * bound:g} % allowed): "
                        "another network, other weights, or kernels that compute something else",
                    )
    return result(
        True,
        f"batches of 1 and {len(tensors)}: within {100 * worst:.2g} % of the outputs' spread ({100 * bound:g} % allowed)",
    )


def _aligned(half: TaskHalf, outputs: Mapping[str, np.ndarray], golden: Mapping[str, np.ndarray]) -> Aligned | None:
    """The outputs beside the golden ones where a network chooses its rows, and both can be compared at all."""
    for name, value in golden.items():
        if name in outputs and (outputs[name].shape != value.shape or not np.isfinite(outputs[name]).all()):
            return None
    return half.aligned(outputs, golden) if set(golden) <= set(outputs) else None


def _short(result: Any) -> str:
    if isinstance(result, dict) and "label" in result:
        return f"'{result['label']}'"
    return repr(result)[:60]
