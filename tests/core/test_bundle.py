"""Bundles from strangers: each attack and each accident is refused in one line, before anything is trusted."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoo import bundle as module
from zoo.bundle import open_bundle, pack
from zoo.errors import BundleError, OutputError
from zoo.runtime import load

MODEL = "model.fp32.onnx"


def manifest(folder: Path) -> Any:
    return json.loads((folder / "zoo.json").read_text())


def change(folder: Path, edit: Callable[[Any], object]) -> None:
    data = manifest(folder)
    edit(data)
    (folder / "zoo.json").write_text(json.dumps(data))


def refuse(path: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def zipped(folder: Path, name: str = "x.zoo") -> Path:
    """Packs without any check: what an attacker would do."""
    out = folder.with_name(name)
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return out


def test_folder_and_file_are_the_same_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = open_bundle(tiny_bundle)
    with open_bundle(pack(folder, tmp_path / "a.zoo")) as packed:
        assert packed.manifest == folder.manifest
        assert packed.read(MODEL) == folder.read(MODEL) == (tiny_bundle / MODEL).read_bytes()
        assert folder.check_files() == packed.check_files() == []
    assert open_bundle(tiny_bundle / "zoo.json").name == "tiny"
    pack(folder, tmp_path / "b.zoo")
    assert (tmp_path / "a.zoo").read_bytes() == (tmp_path / "b.zoo").read_bytes()


def test_artefacts(tiny_bundle: Path) -> None:
    opened = open_bundle(tiny_bundle)
    assert opened.artifact().name == "fp32"
    with pytest.raises(BundleError, match="has no artefact 'int8': it has fp32"):
        opened.artifact("int8")


# -- altered, truncated, missing -----------------------------------------------------------------------------------


def test_one_bit_changed(tiny_bundle: Path) -> None:
    data = bytearray((tiny_bundle / MODEL).read_bytes())
    data[len(data) // 2] ^= 1
    (tiny_bundle / MODEL).write_bytes(data)
    refuse(tiny_bundle, MODEL, "was altered", "copy the bundle again")
    refuse(zipped(tiny_bundle), MODEL, "was altered")
    assert len(open_bundle(tiny_bundle).check_files()) == 1


def test_truncated(tiny_bundle: Path, tmp_path: Path) -> None:
    packed = pack(open_bundle(tiny_bundle), tmp_path / "a.zoo")
    whole = packed.read_bytes()
    for keep in (len(whole) // 2, 100, 0):
        packed.write_bytes(whole[:keep])
        refuse(packed, "is not a .zoo file, or only part of one")
    (tiny_bundle / MODEL).write_bytes((tiny_bundle / MODEL).read_bytes()[:-1])
    refuse(tiny_bundle, "bytes, the manifest says")


def test_missing(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / MODEL).unlink()
    refuse(tiny_bundle, MODEL, "is missing")
    (tiny_bundle / "zoo.json").unlink()
    refuse(tiny_bundle, "holds no zoo.json")
    refuse(tmp_path / "gone.zoo", "no such file or folder")


def test_not_a_network_though_the_hash_is_right(tiny_bundle: Path) -> None:
    from zoo.files import sha256_file

    (tiny_bundle / MODEL).write_bytes(b"hello")
    change(tiny_bundle, lambda m: m["files"][MODEL].update(bytes=5, sha256=sha256_file(tiny_bundle / MODEL)))
    refuse(tiny_bundle, "is not a network that onnxruntime")


# -- the schema ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.update(schema=99), "this version knows 1: pip install -U edgezoo"),
        (lambda m: m.update(schema=0), "export it again"),
        (lambda m: m.pop("schema"), "schema None"),
        (lambda m: m.pop("labels"), "labels is missing"),
        (lambda m: m.update(labels=[1, 2]), "labels are not all text"),
        (lambda m: m.update(artifacts=[]), "has no artefact"),
        (lambda m: m.update(default="fp64"), "default 'fp64' is not an artefact"),
        (lambda m: m["artifacts"].append(m["artifacts"][0]), "two artefacts are named fp32"),
        (lambda m: m["artifacts"][0].update(file="other"), "file other is not listed"),
        (lambda m: m["artifacts"][0].update(status="great"), "status is not one of"),
        (lambda m: m["artifacts"][0].pop("format"), "lacks name, format"),
        (lambda m: m["artifacts"][0].update(build=[]), "build is not an object"),
        (lambda m: m["artifacts"][0].update(build={"engines": {}}), "build.engines is not a list"),
        (
            lambda m: m["artifacts"][0].update(build={"engines": [{"file": "/etc/passwd"}]}),
            "engine of it is not listed",
        ),
        (lambda m: m["artifacts"][0].update(build={"engines": ["model"]}), "engine of it is not listed"),
        (lambda m: m["input"].update(height=-1), "input: ImageInput: height"),
        (lambda m: m["input"].update(colour="RGB"), "input: "),
        (lambda m: m["input"].update(mean="abc"), "input: "),
        (lambda m: m["files"][MODEL].update(sha256="xyz"), "is not a sha256"),
        (lambda m: m["files"][MODEL].update(bytes=-1), "is not a size"),
        (
            lambda m: m.update(files={f"f{i}": {"bytes": 1, "sha256": "0" * 64} for i in range(2000)}),
            "more than 1000 files",
        ),
    ],
)
def test_manifests_that_do_not_fit_the_schema(tiny_bundle: Path, edit: Callable[[Any], object], words: str) -> None:
    change(tiny_bundle, edit)
    refuse(tiny_bundle, words)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000, "\xff\xfe"])
def test_manifests_that_are_no_json_object(tiny_bundle: Path, text: str) -> None:
    (tiny_bundle / "zoo.json").write_bytes(text.encode("latin-1"))
    refuse(tiny_bundle, "zoo.json" if text not in ("[]", "null", '"x"') else "is not an object")


# -- paths, links, bombs -------------------------------------------------------------------------------------------

ESCAPES = ["../outside", "/etc/passwd", "a/../../outside", "C:\\windows", "a\\..\\b", "./model", "folder/"]


@pytest.mark.parametrize("name", ESCAPES)
def test_paths_that_escape(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle.parent / "outside").write_text("secret")
    original = manifest(tiny_bundle)
    change(tiny_bundle, lambda m: m["files"].update({name: {"bytes": 6, "sha256": "0" * 64}}))
    refuse(tiny_bundle, "leads out of the bundle")
    (tiny_bundle / "zoo.json").write_text(json.dumps(original))
    packed = zipped(tiny_bundle)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(name, "secret")
    refuse(packed, "leads out of the bundle")


def test_links_that_escape(tiny_bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    shutil.move(tiny_bundle / MODEL, outside)
    (tiny_bundle / MODEL).symlink_to(outside)
    refuse(tiny_bundle, "leads out of the bundle")


def test_links_in_an_archive(tiny_bundle: Path) -> None:
    packed = zipped(tiny_bundle)
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    refuse(packed, "is a link")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte that unpacks to a gigabyte, under the name of the network."""
    packed = tiny_bundle.with_name("bomb.zoo")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tiny_bundle / "zoo.json", "zoo.json")
        with archive.open(MODEL, "w", force_zip64=True) as member:
            for _ in range(1024):
                member.write(b"\0" * (1 << 20))
    assert packed.stat().st_size < 4 << 20
    refuse(packed, "unpacks to 1073741824 bytes, the manifest says")


def test_a_bomb_whose_header_lies(tiny_bundle: Path) -> None:
    """The archive's directory claims the manifest's size, the data behind it goes on: reading stops at the claim."""
    size = manifest(tiny_bundle)["files"][MODEL]["bytes"]
    packed = tiny_bundle.with_name("liar.zoo")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tiny_bundle / "zoo.json", "zoo.json")
        for path in sorted(tiny_bundle.rglob("*")):
            if path.is_file() and path.name not in ("zoo.json", MODEL):
                archive.write(path, path.relative_to(tiny_bundle).as_posix())
        archive.writestr(MODEL, b"\0" * (64 << 20))
    data = packed.read_bytes()
    lie = data.replace((64 << 20).to_bytes(4, "little"), size.to_bytes(4, "little"))
    assert lie != data
    packed.write_bytes(lie)
    refuse(packed, MODEL)


def test_a_bomb_in_the_manifest(tiny_bundle: Path) -> None:
    packed = tiny_bundle.with_name("bomb.zoo")
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zoo.json", "w", force_zip64=True) as member,
    ):
        for _ in range(80):
            member.write(b" " * (1 << 20))
    refuse(packed, "unpacks to more than 64 MiB")


def test_files_that_the_manifest_does_not_know(tiny_bundle: Path) -> None:
    packed = zipped(tiny_bundle)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("extra.so", b"x")
    refuse(packed, "extra.so is not in the manifest")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name(tiny_bundle: Path) -> None:
    packed = zipped(tiny_bundle)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(MODEL, b"x")
    refuse(packed, "two files of the same name")


def test_too_many_files(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 2)
    refuse(zipped(tiny_bundle), "more than 2")


def test_other_archives(tmp_path: Path, tiny_bundle: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("hello", "x")
    refuse(tmp_path / "a.zip", "without zoo.json")
    (tmp_path / "a.txt").write_text("hello")
    refuse(tmp_path / "a.txt", "is not a .zoo file")


# -- packing -------------------------------------------------------------------------------------------------------


def test_pack_proves_every_file_and_leaves_nothing_half_written(tiny_bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(tiny_bundle)
    (tiny_bundle / MODEL).write_bytes(b"\0" * (tiny_bundle / MODEL).stat().st_size)
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="was altered"):
        pack(opened, tmp_path / "out" / "a.zoo")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(OutputError, match="is a folder: give a file name"):
        pack(opened, tmp_path / "out")
