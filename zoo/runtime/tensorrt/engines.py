"""Engines are a cache: of one graph, for one library, GPU and driver. Found, or built, and proved before they are used.

The key of an engine is made of everything that it depends on, never of its bytes, which differ from build to build.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...download import cache_folder
from ...errors import BundleError, ExportError, MissingPart, OutputError, ZooError
from ...files import as_output_error, dump_json, sha256_bytes, sha256_file
from . import api, cuda
from .building import Facts, Shapes, build_engine
from .session import LANES, TensorRTSession, load_engine

__all__ = [
    "Check",
    "EngineFile",
    "Facts",
    "Obtained",
    "Recipe",
    "build_engine",
    "cache_key",
    "engine_folder",
    "obtain",
    "open_rtx",
    "open_tensorrt",
    "probe_rtx",
    "probe_tensorrt",
]

Check = Callable[[TensorRTSession], str]
"""Whether an engine computes what it should: the reason why not, or nothing."""

EngineFile = Path | bytes | Callable[[], "Path | bytes"]
"""An engine that came with a bundle, proved by the caller; a function where proving it takes time."""

LEAST_CC = (7, 5)
"""Of TensorRT-RTX: Turing."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an engine is to be built, as the manifest's ``build`` tells."""

    profiles: Shapes
    flags: Mapping[str, bool] = field(default_factory=dict)
    workspace_bytes: int | None = None
    engines: tuple[Mapping[str, Any], ...] = ()
    """Of the bundle: what is known of each."""

    @classmethod
    def from_build(cls, build: Mapping[str, Any]) -> Recipe:
        """Raises BundleError naming the first field that is wrong: a bundle comes from anywhere."""

        def need(ok: bool, rule: str) -> None:
            if not ok:
                raise BundleError(f"manifest: build: {rule}: export the bundle again")

        profiles, flags = build.get("profiles", {}), build.get("flags", {})
        need(isinstance(profiles, Mapping), "profiles is not an object")
        for name, shapes in profiles.items():
            three = isinstance(shapes, list) and len(shapes) == 3 and all(isinstance(s, list) for s in shapes)
            need(three and all(_counts(s) for s in shapes), f"profile of {name} is not three shapes of whole numbers")
            need(len({len(s) for s in shapes}) == 1, f"profile of {name} has shapes of different ranks")
        need(
            isinstance(flags, Mapping) and all(isinstance(v, bool) for v in flags.values()),
            "flags are not true or false",
        )
        workspace, engines = build.get("workspace_bytes"), build.get("engines", [])
        need(workspace is None or _counts([workspace]), "workspace_bytes is no size")
        need(
            isinstance(engines, list) and all(isinstance(e, Mapping) for e in engines),
            "engines is not a list of objects",
        )
        return cls(profiles=profiles, flags=flags, workspace_bytes=workspace, engines=tuple(engines))


def _counts(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)


@dataclass(frozen=True, kw_only=True)
class Obtained:
    """An engine that is open, and where it is from."""

    session: TensorRTSession
    origin: str
    """``bundle``, ``cache`` or ``built``."""
    path: Path | None
    """Where the engine lies; None where it came in a packed bundle."""
    facts: Mapping[str, Any]
    """As :class:`Facts`."""
    told: tuple[str, ...] = ()
    """What a person should know: engines that did not fit, and why."""


def engine_folder() -> Path:
    """Where engines are kept, beside the weights that were fetched: ``$ZOO_CACHE/engines``."""
    return cache_folder() / "engines"


def cache_key(
    model_sha256: str, library: api.Library, device: cuda.Device, recipe: Recipe
) -> tuple[str, dict[str, Any]]:
    """The name of an engine in the cache, and what went into it."""
    parts = {
        "model": model_sha256,
        "flavour": library.flavour,
        "version": library.version,
        "gpu": device.name,
        "compute_capability": ".".join(map(str, device.compute_capability)),
        "driver": device.driver_version,
        "profiles": {name: [list(s) for s in shapes] for name, shapes in sorted(recipe.profiles.items())},
        "flags": dict(sorted(recipe.flags.items())),
        "workspace_bytes": recipe.workspace_bytes,
    }
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())[:32], parts


def obtain(
    model: Path | bytes,
    recipe: Recipe,
    library: api.Library,
    device: cuda.Device,
    *,
    engines: Sequence[EngineFile] = (),
    sha256: str = "",
    precision: str = "",
    check: Check | None = None,
    progress: Callable[[str], None] | None = None,
    force: bool = False,
    cuda_graph: bool = False,
    lanes: int = LANES,
) -> Obtained:
    """An open engine of an ONNX model: one of the bundle's that fits here, the cached one, or a new one.

    ``engines``: the files of ``recipe.engines``, in that order. ``sha256``: of ``model``, where it is known.
    ``precision``: that the graph is in; a new engine in which no layer is computed in it fails. ``check`` is asked of every engine that has not passed
    it on this machine before; one that fails is not used, and not built again until ``force``. ``force`` builds even
    where an engine is at hand; what was there before stays until the new one has passed.

    Two processes that want the same engine build it once. Raises ExportError with the library's reason where it cannot
    be built or fails the check, DeviceError where the GPU has no room, OutputError where the cache cannot be written.
    """
    if precision not in ("", "fp32") and not library.strongly_typed:
        raise ExportError(
            f"{library} does not keep the precision that a graph is written in ({precision}): TensorRT 10 or newer does"
        )
    tell = progress or (lambda line: None)
    digest = sha256 or (sha256_bytes(model) if isinstance(model, bytes) else sha256_file(model))
    key, parts = cache_key(digest, library, device, recipe)
    store = _Store(engine_folder(), key)
    told: list[str] = []
    spoilt = False  # whether what the cache holds is of no use to anybody

    def open_engine(plan: Path | bytes) -> TensorRTSession:
        engine = load_engine(library, plan, device)
        return TensorRTSession(library, engine, device, cuda_graph=cuda_graph, lanes=lanes)

    def failed(session: TensorRTSession) -> str:
        if check is None:
            return ""
        reason = check(session)
        if reason:
            session.close()
        return reason

    def remember(line: str) -> None:
        told.append(line)
        tell(line)

    def from_bundle() -> Obtained | None:
        for facts, file in zip(recipe.engines, engines, strict=False):
            misfit = _misfit(facts, library, device)
            if misfit:
                told.append(f"the bundle's engine {facts.get('file', '')} is not for here: {misfit}")
                continue
            mark = str(facts.get("sha256", ""))
            verdict = store.verdict(mark)
            if verdict:
                told.append(f"the bundle's engine {facts.get('file', '')} is not used: {verdict}")
                continue
            try:
                plan = file() if callable(file) else file
                session = open_engine(plan)
                reason = failed(session) if verdict is None else ""
            except BundleError as error:
                reason = str(error)
            store.judge(mark, reason)
            if reason:
                remember(f"the bundle's engine {facts.get('file', '')} is not used: {reason}")
                continue
            path = plan if isinstance(plan, Path) else None
            return Obtained(session=session, origin="bundle", path=path, facts=facts, told=tuple(told))
        return None

    def from_cache() -> Obtained | None:
        nonlocal spoilt
        facts = store.facts()
        if facts is None:
            return None
        if facts.get("failed"):
            raise ExportError(
                f"the engine that {library} builds of this graph failed on {device.name}: {facts['failed']}: "
                "`zoo build --force` tries again"
            )
        try:
            damage = store.damage(facts)
            if damage:
                raise BundleError(damage)
            session = open_engine(store.engine)
        except BundleError as error:
            spoilt = True
            remember(f"the cached engine is built anew: {error}")
            return None
        if not facts.get("checked") and check is not None:
            if reason := failed(session):
                store.fail(facts, reason)
                raise ExportError(f"the cached engine is not used: {reason}")
            store.save({**facts, "checked": True})
        return Obtained(session=session, origin="cache", path=store.engine, facts=facts, told=tuple(told))

    def build() -> Obtained:
        if not told and (other := store.sibling(parts)):
            remember(f"the cached engine is not for here: {other}")
        with store.candidate() as part:
            facts = build_engine(
                library.flavour,
                model,
                part,
                profiles=recipe.profiles,
                flags=recipe.flags,
                workspace_bytes=recipe.workspace_bytes,
                timing_cache=store.folder / f"timings-{library.flavour}-{library.version}.cache",
                progress=tell,
            )
            session = open_engine(part)
            record = {**parts, **facts, "built": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "checked": check is not None}
            if reason := _downgrade(precision, facts["layer_counts"]) or failed(session):
                session.close()
                old = store.facts()
                if spoilt or old is None or old.get("failed"):
                    store.fail(record, reason)
                raise ExportError(
                    f"the engine that {library} built on {device.name} is not used: {reason}"
                    + (": the one before stays" if force and store.engine.exists() else "")
                )
            store.keep(part, record)
        return Obtained(session=session, origin="built", path=store.engine, facts=record, told=tuple(told))

    if not force and (found := from_bundle() or from_cache()):
        return found
    with store.lock(tell):
        # another process may have built it while this one waited
        if not force and (found := from_cache()):
            return found
        return build()


def _downgrade(precision: str, counts: Mapping[str, int] | None) -> str:
    """Whether a builder silently left the precision that the graph asks for; empty where it did not, or nobody knows."""
    if precision not in ("fp16", "bf16", "int8") or not counts or counts.get(precision):
        return ""
    found = ", ".join(f"{count} in {name}" for name, count in counts.items())
    return f"it computes no layer in {precision}, which the graph is written in ({found})"


def _misfit(facts: Mapping[str, Any], library: api.Library, device: cuda.Device) -> str:
    """Why a bundle's engine cannot be for this machine; empty where it is worth loading."""
    if facts.get("flavour") != library.flavour:
        return f"it is of {api.TITLES.get(str(facts.get('flavour')), facts.get('flavour'))}, this is {library}"
    if facts.get("version") != library.version:
        return f"it is of version {facts.get('version')}, this is {library}"
    if facts.get("gpu") and library.flavour == "tensorrt" and facts.get("gpu") != device.name:
        return f"it is for {facts.get('gpu')}, this is {device.name}"
    return ""


class _Store:
    """One engine of the cache: the file, what is known of it, and the lock under which it is replaced."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.engine = folder / f"{key}.engine"
        self._facts = folder / f"{key}.json"
        self._verdicts = folder / f"{key}.bundled.json"
        self._lock = folder / f"{key}.lock"

    def facts(self) -> dict[str, Any] | None:
        """None where there is no engine, or nobody knows what it is."""
        try:
            found = json.loads(self._facts.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def damage(self, facts: Mapping[str, Any]) -> str:
        """What is wrong with the file: a library may crash on an engine that was cut short."""
        try:
            whole = sha256_file(self.engine) == facts.get("sha256")
        except OSError as error:
            return f"{self.engine.name} cannot be read: {error.strerror}"
        return "" if whole else f"{self.engine.name} is damaged"

    @contextlib.contextmanager
    def candidate(self) -> Iterator[Path]:
        """A place for a new engine, which is gone at the end unless it was kept."""
        part = self.engine.with_name(f".{self.engine.name}.{os.getpid()}.new")
        try:
            yield part
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def keep(self, part: Path, facts: Mapping[str, Any]) -> None:
        """Put a new engine in the old one's place. A reader in between finds them not to agree, and builds anew."""
        try:
            os.replace(part, self.engine)
        except OSError as error:
            raise as_output_error(error, self.engine) from error
        self.save(facts)

    def save(self, facts: Mapping[str, Any]) -> None:
        dump_json(self._facts, facts)

    def fail(self, facts: Mapping[str, Any], reason: str) -> None:
        """Remember that an engine failed, so that no start of a program takes minutes to find it out again."""
        self.save({**facts, "failed": reason})

    def verdict(self, sha256: str) -> str | None:
        """What became of a bundle's engine on this machine: empty where it passed, None where nobody knows."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = json.loads(self._verdicts.read_text("utf-8")).get(sha256)
            return found if isinstance(found, str) and sha256 else None
        return None

    def judge(self, sha256: str, reason: str) -> None:
        with contextlib.suppress(ZooError):  # a cache that cannot be written costs a check each time
            dump_json(self._verdicts, {sha256: reason})

    def sibling(self, parts: Mapping[str, Any]) -> str:
        """Whether an engine of the same graph lies here for another version, GPU or driver: what differs."""
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                other = json.loads(path.read_text("utf-8"))
                if other.get("model") != parts["model"] or other.get("flavour") != parts["flavour"]:
                    continue
                for what in ("version", "gpu", "driver", "profiles", "flags", "workspace_bytes"):
                    if other.get(what) != parts[what]:
                        return f"its {what.replace('_', ' ')} is {other.get(what)}, now {parts[what]}"
        return ""

    @contextlib.contextmanager
    def lock(self, tell: Callable[[str], None]) -> Iterator[None]:
        """One builder at a time; the system lets go of the lock if its holder dies."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self._lock.open("a+b")
        except OSError as error:
            raise OutputError(
                f"engines cannot be kept in {self.folder} ({error.strerror}): set ZOO_CACHE to a folder that can be written"
            ) from error
        with file:
            told = False
            while not _try_lock(file.fileno()):
                if not told:
                    tell("another process builds this engine: waiting for it")
                    told = True
                time.sleep(0.2)
            for left in self.folder.glob(f".*{self.engine.name}.*"):  # by a builder that was killed
                with contextlib.suppress(OSError):
                    left.unlink()
            yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


# -- as a runtime


def probe_tensorrt() -> str:
    """Why TensorRT runs nothing here; empty where it does."""
    return _probe("tensorrt")


def probe_rtx() -> str:
    """The same for TensorRT-RTX."""
    return _probe("tensorrt-rtx")


def _probe(flavour: str) -> str:
    # the driver first: it is there or not within a millisecond, and importing the library takes hundreds
    if reason := cuda.probe():
        return reason
    library = api.find(flavour)
    if library is None:
        return api.why_not(flavour)
    if not hasattr(getattr(library.trt, "IExecutionContext", None), "execute_async_v3"):
        return f"{library} is older than 8.6"
    if flavour == "tensorrt-rtx":
        device = cuda.Device()
        if device.compute_capability < LEAST_CC or device.integrated:
            return f"{library} is for RTX GPUs of Turing and newer, not for {device.name}"
    return ""


def open_tensorrt(model: Path | bytes, **options: Any) -> TensorRTSession:
    """Open a graph that was prepared for TensorRT, building its engine where none is at hand.

    Options: ``recipe`` (the manifest's ``build``), and ``engines``, ``sha256``, ``precision``, ``check``, ``progress``,
    ``force``, ``cuda_graph`` and ``lanes`` as of :func:`obtain`; others are ignored. The session has what :func:`obtain` tells as
    ``obtained``. It runs on the first GPU that CUDA_VISIBLE_DEVICES shows.

    Raises BundleError, DeviceError, ExportError, MissingPart.
    """
    return _open("tensorrt", model, **options)


def open_rtx(model: Path | bytes, **options: Any) -> TensorRTSession:
    """As :func:`open_tensorrt`, with TensorRT-RTX."""
    return _open("tensorrt-rtx", model, **options)


def _open(
    flavour: str,
    model: Path | bytes,
    *,
    recipe: Mapping[str, Any] | None = None,
    engines: Sequence[EngineFile] = (),
    sha256: str = "",
    precision: str = "",
    check: Check | None = None,
    progress: Callable[[str], None] | None = None,
    force: bool = False,
    cuda_graph: bool = False,
    lanes: int = LANES,
    **_: Any,
) -> TensorRTSession:
    made = Recipe.from_build(recipe or {})
    device = cuda.Device()
    library = api.find(flavour)
    if library is None:
        raise MissingPart(api.TITLES[flavour], api.INSTALL[flavour])
    found = obtain(
        model,
        made,
        library,
        device,
        engines=engines,
        sha256=sha256,
        precision=precision,
        check=check,
        progress=progress,
        force=force,
        cuda_graph=cuda_graph,
        lanes=lanes,
    )
    found.session.obtained = found
    return found.session
