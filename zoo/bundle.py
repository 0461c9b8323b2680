"""What goes to the device: a folder with ``zoo.json`` and artefacts, or the same packed as one ``.zoo`` file.

A bundle comes from anywhere, so opening one trusts nothing: paths, sizes, hashes and the schema are checked first.
The schema is documented field by field in docs/manifest.md.
"""

from __future__ import annotations

import json
import os
import re
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import BundleError, OutputError
from .files import beside, sha256_bytes, sha256_file
from .specs import ImageInput

__all__ = ["MANIFEST", "SCHEMA", "ArtifactEntry", "Bundle", "open_bundle", "pack", "validate"]

SCHEMA = 1
MANIFEST = "zoo.json"

# A packed bundle may claim any size; these bound what is believed before a byte is unpacked.
MAX_FILES = 1000
MAX_MANIFEST_BYTES = 64 << 20
MAX_FILE_BYTES = 8 << 30

_STATUSES = ("prepared", "built", "verified")
_SHA = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class ArtifactEntry:
    """One artefact as the manifest tells of it."""

    name: str
    format: str
    precision: str
    file: str
    status: str
    verified_on: str
    gates: Mapping[str, Any]
    notes: Mapping[str, Any]
    build: Mapping[str, Any]
    """Of formats whose engine is built on the device: profiles, flags, and the engines in the bundle."""


class Bundle:
    """An opened bundle. Every file is hashed against the manifest when it is read, not before.

    Use :func:`open_bundle`. Packed bundles stay packed: files come as bytes, nothing is unpacked to disk.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], archive: zipfile.ZipFile | None) -> None:
        self.path = path
        self.manifest = manifest
        self._archive = archive

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def task(self) -> str:
        return str(self.manifest["task"])

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.manifest["labels"])

    @cached_property
    def input(self) -> ImageInput:
        return ImageInput.from_dict(self.manifest["input"])

    @property
    def makes(self) -> ImageInput:
        """Of a network that makes images: the size and colours that real ones are brought to, to be compared with them."""
        if self.input.color != "latent":
            return self.input
        channels, height, width = self.manifest["outputs"][0]["shape"][1:]
        return ImageInput(height=height, width=width).with_channels(channels)

    @cached_property
    def artifacts(self) -> dict[str, ArtifactEntry]:
        return {
            a["name"]: ArtifactEntry(
                name=a["name"],
                format=a["format"],
                precision=a["precision"],
                file=a["file"],
                status=a["status"],
                verified_on=a.get("verified_on", ""),
                gates=a.get("gates", {}),
                notes=a.get("notes", {}),
                build=a.get("build", {}),
            )
            for a in self.manifest["artifacts"]
        }

    def artifact(self, name: str | None = None) -> ArtifactEntry:
        """The named artefact, or the manifest's default. Raises BundleError naming those that exist."""
        wanted = name or str(self.manifest["default"])
        if wanted not in self.artifacts:
            raise BundleError(f"{self.path} has no artefact '{wanted}': it has {', '.join(self.artifacts)}")
        return self.artifacts[wanted]

    def read(self, name: str) -> bytes:
        """The bytes of one file, proved against the manifest's size and hash. Raises BundleError."""
        entry = self._entry(name)
        if self._archive is not None:
            try:
                with self._archive.open(name) as member:
                    data = member.read(entry["bytes"] + 1)
            except (KeyError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
                raise BundleError(
                    f"{self.path}: {name} cannot be read: {error}: pack or copy the bundle again"
                ) from None
        else:
            try:
                data = self._on_disk(name).read_bytes()
            except OSError as error:
                raise BundleError(
                    f"{self.path}: {name} cannot be read: {error.strerror}: copy the bundle again"
                ) from None
        self._prove(name, len(data), sha256_bytes(data))
        return data

    def open_file(self, name: str) -> Path | bytes:
        """The same proof, but a folder's file stays on disk and comes as a path, which spares memory."""
        if self._archive is not None:
            return self.read(name)
        path = self._on_disk(name)
        try:
            size, digest = path.stat().st_size, sha256_file(path)
        except OSError as error:
            raise BundleError(f"{self.path}: {name} cannot be read: {error.strerror}: copy the bundle again") from None
        self._prove(name, size, digest)
        return path

    def check_files(self) -> list[str]:
        """Prove every file; returns what is wrong, one line a file."""
        wrong = []
        for name in self.manifest["files"]:
            try:
                self.open_file(name)
            except BundleError as error:
                wrong.append(str(error))
        return wrong

    def _entry(self, name: str) -> Mapping[str, Any]:
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise BundleError(f"{self.path}: {name} is not in the manifest")
        return entry  # type: ignore[no-any-return]

    def _on_disk(self, name: str) -> Path:
        path = self.path / name
        try:
            # a symbolic link inside the folder must not lead out of it
            path.resolve(strict=True).relative_to(self.path.resolve())
            if not stat.S_ISREG(path.stat().st_mode):
                raise BundleError(f"{self.path}: {name} is not a plain file")
        except ValueError:
            raise BundleError(f"{self.path}: {name} leads out of the bundle: do not use this bundle") from None
        except OSError as error:
            raise BundleError(f"{self.path}: {name} is missing ({error.strerror}): copy the bundle again") from None
        return path

    def _prove(self, name: str, size: int, digest: str) -> None:
        entry = self._entry(name)
        if size != entry["bytes"]:
            raise BundleError(
                f"{self.path}: {name} has {size} bytes, the manifest says {entry['bytes']}: copy the bundle again"
            )
        if digest != entry["sha256"]:
            raise BundleError(
                f"{self.path}: {name} was altered (sha256 {digest[:12]}…, the manifest says {entry['sha256'][:12]}…): copy the bundle again"
            )

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle folder or ``.zoo`` file. Raises BundleError; reads the manifest only."""
    path = Path(path)
    if path.name == MANIFEST and path.is_file():
        path = path.parent
    if path.is_dir():
        file = path / MANIFEST
        if not file.is_file():
            raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST}; `zoo export` makes one")
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{file} is larger than {MAX_MANIFEST_BYTES >> 20} MiB: not a manifest")
        return Bundle(path, _parse(file.read_bytes(), path), None)
    if not path.exists():
        raise BundleError(f"{path}: no such file or folder; `zoo export` makes a bundle, `zoo pack` a .zoo file")
    archive: zipfile.ZipFile | None = None
    try:
        archive = zipfile.ZipFile(path)
        _check_archive(archive, path)
        manifest = _parse(archive.read(MANIFEST), path)
        for info in archive.infolist():
            entry = manifest["files"].get(info.filename)
            if info.filename == MANIFEST:
                continue
            if entry is None:
                raise BundleError(f"{path}: {info.filename} is not in the manifest: do not use this bundle")
            if info.file_size != entry["bytes"]:
                raise BundleError(
                    f"{path}: {info.filename} unpacks to {info.file_size} bytes, the manifest says {entry['bytes']}: do not use this bundle"
                )
        return Bundle(path, manifest, archive)
    except BundleError:
        if archive is not None:
            archive.close()
        raise
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if archive is not None:
            archive.close()
        raise BundleError(f"{path} is not a .zoo file, or only part of one ({error}): copy it again") from None


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    infos = archive.infolist()
    if len(infos) > MAX_FILES:
        raise BundleError(f"{path} holds {len(infos)} files, more than {MAX_FILES}: not a bundle")
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise BundleError(f"{path} holds two files of the same name: do not use this bundle")
    for info in infos:
        _check_name(info.filename, path)
        if info.file_size > MAX_FILE_BYTES:
            raise BundleError(
                f"{path}: {info.filename} unpacks to {info.file_size} bytes, more than {MAX_FILE_BYTES >> 30} GiB"
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise BundleError(f"{path}: {info.filename} is a link: do not use this bundle")
    if MANIFEST not in names:
        raise BundleError(f"{path} is a zip file without {MANIFEST}: not a bundle")
    if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: {MANIFEST} unpacks to more than {MAX_MANIFEST_BYTES >> 20} MiB: not a bundle")


def _check_name(name: str, path: Path) -> None:
    pure = PurePosixPath(name)
    if (
        not name
        or pure.is_absolute()
        or "\\" in name
        or ":" in name
        or "\0" in name
        or any(p in ("..", ".") for p in name.split("/"))
        or name.endswith("/")
    ):
        raise BundleError(f"{path}: the file name {name!r} leads out of the bundle: do not use this bundle")


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {MANIFEST} is not JSON: {error}") from None
    validate(manifest, path)
    return manifest  # type: ignore[no-any-return]


def validate(manifest: Any, path: Path | str = MANIFEST) -> None:
    """Check a manifest against the schema. Raises BundleError naming the first field that is wrong."""

    def need(ok: bool, rule: str) -> None:
        if not ok:
            raise BundleError(f"{path}: manifest: {rule}")

    need(isinstance(manifest, dict), "is not an object")
    schema = manifest.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        cure = "pip install -U edgezoo" if newer else "export it again"
        raise BundleError(f"{path}: manifest schema {schema!r}, this version knows {SCHEMA}: {cure}")
    for key, kind in {
        "name": str,
        "task": str,
        "input": dict,
        "outputs": list,
        "labels": list,
        "artifacts": list,
        "default": str,
        "files": dict,
    }.items():
        need(isinstance(manifest.get(key), kind), f"{key} is missing or not a {kind.__name__}")
    need(isinstance(manifest.get("decode", {}), dict), "decode is not an object")
    try:
        ImageInput.from_dict(manifest["input"])
    except (ValueError, TypeError) as error:
        need(False, f"input: {error}")
    need(all(isinstance(x, str) for x in manifest["labels"]), "labels are not all text")
    need(len(manifest["files"]) <= MAX_FILES, f"lists more than {MAX_FILES} files")
    for name, entry in manifest["files"].items():
        _check_name(name, Path(path))
        need(
            isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and 0 <= entry["bytes"] <= MAX_FILE_BYTES,
            f"files.{name}.bytes is not a size",
        )
        need(
            isinstance(entry.get("sha256"), str) and _SHA.fullmatch(entry["sha256"]) is not None,
            f"files.{name}.sha256 is not a sha256",
        )
    need(len(manifest["artifacts"]) > 0, "has no artefact")
    names = set()
    for a in manifest["artifacts"]:
        need(
            isinstance(a, dict)
            and all(isinstance(a.get(k), str) for k in ("name", "format", "precision", "file", "status")),
            "an artefact lacks name, format, precision, file or status",
        )
        need(a["file"] in manifest["files"], f"artefact {a['name']}: file {a['file']} is not listed in files")
        need(a["status"] in _STATUSES, f"artefact {a['name']}: status is not one of {', '.join(_STATUSES)}")
        need(a["name"] not in names, f"two artefacts are named {a['name']}")
        need(isinstance(a.get("build", {}), dict), f"artefact {a['name']}: build is not an object")
        engines = a.get("build", {}).get("engines", [])
        need(isinstance(engines, list), f"artefact {a['name']}: build.engines is not a list")
        for engine in engines:
            need(
                isinstance(engine, dict) and engine.get("file") in manifest["files"],
                f"artefact {a['name']}: an engine of it is not listed in files",
            )
        names.add(a["name"])
    need(manifest["default"] in names, f"default '{manifest['default']}' is not an artefact")


def pack(bundle: Bundle, out: Path) -> Path:
    """Write a bundle as one ``.zoo`` file: stored, not squeezed (weights do not shrink), and the same bytes every
    time. Every file is proved on the way. Raises BundleError, OutputError.
    """
    out = Path(out)
    if out.is_dir():
        raise OutputError(f"{out} is a folder: give a file name, like {out / (bundle.name + '.zoo')}")
    with beside(out) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        text = json.dumps(bundle.manifest, indent=2, ensure_ascii=False) + "\n"
        _add(archive, MANIFEST, text.encode())
        for name in bundle.manifest["files"]:
            _add(archive, name, bundle.read(name))
    return out


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)
