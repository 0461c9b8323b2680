"""Pictures without labels, in pairs and of two domains: what is recognised as what, divided how, and what is faulty."""

from __future__ import annotations

import json
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import Dataset, Sample, audit, open_data
from zoo.data.degrading import Part
from zoo.data.inspecting import grid, inspect
from zoo.data.pictures import ROLES, PairsFormat, SideBySideFormat
from zoo.data.splitting import choose_format
from zoo.data.targets import Picture
from zoo.errors import DataError, UnknownName
from zoo.reading import read_image
from zoo.specs import ImageInput


def picture(path: Path, width: int = 12, height: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode() + path.parent.name.encode()))
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def pictures(root: Path, folder: str, count: int = 4, width: int = 12, height: int = 8, end: str = "") -> None:
    for i in range(count):
        picture(root / folder / f"{i}{end}.png", width, height)


def name(root: Path, task: str) -> str:
    return choose_format(root, task).name


# what is recognised


def test_a_flat_folder_is_images_without_labels(tmp_path: Path) -> None:
    pictures(tmp_path, ".", 10)
    for task in ("generate", "restore", "translate"):
        splits = open_data(tmp_path, task=task)
        assert (splits.train.format, splits.labels) == ("images", ())
        assert (len(splits.train), len(splits.val)) == (8, 2)
        assert splits.train.targets == [None] * 8
    again, other = open_data(tmp_path, task="restore"), open_data(tmp_path, task="restore", seed=1)
    ids = [s.id for s in splits.val]
    assert ids == [s.id for s in again.val] != [s.id for s in other.val]
    assert not {s.id for s in again.train} & set(ids)


def test_class_folders_keep_their_labels_where_images_are_generated(tmp_path: Path) -> None:
    pictures(tmp_path, "ant")
    pictures(tmp_path, "bee")
    assert open_data(tmp_path, task="generate").labels == ("ant", "bee")
    assert open_data(tmp_path, task="restore").train.format == "images"
    assert name(tmp_path, "") == name(tmp_path, "classify") == "folders"


def test_one_folder_of_images_is_no_class(tmp_path: Path) -> None:
    pictures(tmp_path, "img/deep", 5)
    splits = open_data(tmp_path, task="generate")
    assert (splits.train.format, splits.labels) == ("images", ())
    assert splits.val[0].id.startswith("img/deep/")


def test_folders_of_splits_are_no_classes(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("valid", 2), ("test", 1)):
        pictures(tmp_path, split, count)
    for task in ("generate", "restore"):
        splits = open_data(tmp_path, task=task)
        assert splits.train.format == "images"
        assert splits.test is not None
        assert (len(splits.train), len(splits.val), len(splits.test)) == (5, 2, 1)
    (tmp_path / "train").rename(tmp_path / "others")
    assert len(open_data(tmp_path, task="restore").train) + len(open_data(tmp_path, task="restore").val) == 8


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "val")
    pictures(tmp_path, "valid")
    with pytest.raises(DataError, match="both the val split"):
        open_data(tmp_path, task="restore", format="images")


def test_without_train_it_is_said(tmp_path: Path) -> None:
    pictures(tmp_path, "val")
    pictures(tmp_path, "test")
    with pytest.raises(DataError, match="no train split"):
        open_data(tmp_path, task="restore")


@pytest.mark.parametrize("names", ROLES)
def test_pairs_by_whatever_names(tmp_path: Path, names: tuple[str, str]) -> None:
    pictures(tmp_path, names[0].upper(), 5)
    pictures(tmp_path, names[1].capitalize(), 5, 24, 16)
    pictures(tmp_path, "docs", 1)
    train = open_data(tmp_path, task="restore").train
    assert train.format == "pairs"
    assert Path(train[0].id).parts[0] == names[0].upper()
    target = train[0].target
    assert isinstance(target, Picture) and target.size() == (24, 16)
    assert target.source == tmp_path / names[1].capitalize() / Path(train[0].id).name
    assert any("left aside: docs/" in note for note in train.notes)
    assert name(tmp_path, "translate") == "pairs"


@pytest.mark.parametrize(
    "layout",
    ["train/LR train/HR val/LR val/HR", "LR/train HR/train LR/val HR/val", "train_LR train_HR valid_LR valid_HR"],
)
def test_pairs_that_come_divided(tmp_path: Path, layout: str) -> None:
    for number, folder in enumerate(layout.split()):
        pictures(tmp_path, folder, 6 - number // 2 * 2, *((12, 8) if "LR" in folder else (36, 24)))
    splits = open_data(tmp_path, task="restore")
    assert (splits.train.format, len(splits.train), len(splits.val)) == ("pairs", 6, 4)
    assert all(s.target.size() == (36, 24) for s in (*splits.train, *splits.val))
    assert not audit(splits.train).faults


def test_pairs_by_the_ends_of_names(tmp_path: Path) -> None:
    pictures(tmp_path, "train", 4, end="_input")
    pictures(tmp_path, "train", 4, end="-Target")
    pictures(tmp_path, "val", 2, end="_input")
    pictures(tmp_path, "val", 2, end="-Target")
    picture(tmp_path / "train" / "cover.png")
    splits = open_data(tmp_path, task="translate")
    assert (splits.train.format, len(splits.train), len(splits.val)) == ("pairs", 4, 2)
    assert splits.train[1].id == "train/1_input.png"
    assert splits.train[1].target.source.name == "1-Target.png"
    assert any("1 image of no pair (first: cover.png)" in note for note in splits.train.notes)


def test_names_that_tell_their_factor(tmp_path: Path) -> None:
    """DIV2K's way: 0.png is 0x2.png in small."""
    pictures(tmp_path, "DIV2K_train_HR", 3, 24, 16)
    pictures(tmp_path, "DIV2K_train_LR_bicubic/X2", 3, end="x2")
    data = PairsFormat().open(tmp_path, "train")
    assert [(s.image.name, s.target.source.name) for s in data] == [(f"{i}x2.png", f"{i}.png") for i in range(3)]
    assert not data.faults


def test_folders_called_like_a_pair_without_partners_are_classes(tmp_path: Path) -> None:
    pictures(tmp_path, "low", end="l")
    pictures(tmp_path, "high", end="h")
    assert not PairsFormat().sniff(tmp_path)
    assert name(tmp_path, "generate") == name(tmp_path, "") == "folders"
    with pytest.raises(DataError, match="no two files make a pair"):
        open_data(tmp_path, task="restore", format="pairs")


def test_classes_called_a_and_b_stay_classes(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    pictures(tmp_path, "b")
    assert open_data(tmp_path).labels == open_data(tmp_path, task="generate").labels == ("a", "b")


@pytest.mark.parametrize(("format", "given"), [("", "left"), ("side-by-side", "left"), ("side-by-side-ba", "right")])
def test_two_images_in_each_file(tmp_path: Path, format: str, given: str) -> None:
    pictures(tmp_path, "train", 3, 16, 8)
    pictures(tmp_path, "val", 2, 16, 8)
    splits = open_data(tmp_path, task="translate", format=format)
    assert splits.train.format == (format or "side-by-side")
    sample = splits.train[2]
    assert isinstance(sample.image, Part)
    whole = np.asarray(Image.open(tmp_path / sample.id))
    halves = {"left": whole[:, :8], "right": whole[:, 8:]}
    other = {"left": "right", "right": "left"}[given]
    assert np.array_equal(np.asarray(read_image(sample.image, ImageInput(height=1, width=1))), halves[given])
    assert np.array_equal(sample.target.read(), halves[other])
    assert f"the {given} one is what a network is given" in splits.train.notes[0]
    audited = audit(splits.train)
    assert len(audited) == 3 and not audited.faults


def test_wide_images_are_pairs_only_where_all_are_and_no_classes(tmp_path: Path) -> None:
    pictures(tmp_path / "one", ".", 5, 16, 8)
    picture(tmp_path / "one" / "odd.png", 17, 8)
    assert not SideBySideFormat().sniff(tmp_path / "one")
    assert name(tmp_path / "one", "translate") == "images"
    pictures(tmp_path / "two", "ant", 5, 16, 8)
    pictures(tmp_path / "two", "bee", 5, 16, 8)
    assert name(tmp_path / "two", "") == "folders"
    assert name(tmp_path / "two", "translate") == "images"
    picture(tmp_path / "three" / "panorama.png", 16, 8)
    assert name(tmp_path / "three", "restore") == "images"


def test_an_odd_width_is_no_two_images(tmp_path: Path) -> None:
    pictures(tmp_path, ".", 3, 20, 8)
    picture(tmp_path / "odd.png", 21, 8)
    (tmp_path / "torn.png").write_bytes(b"no image")
    data = SideBySideFormat().open(tmp_path, None)
    assert len(data) == 3
    assert [f.id for f in data.faults] == ["odd.png", "torn.png"]
    assert "21 pixels wide" in data.faults[0].reason


def test_two_domains(tmp_path: Path) -> None:
    for folder, count in (("trainA", 10), ("trainB", 15), ("testA", 2), ("testB", 3)):
        pictures(tmp_path, folder, count)  # numbered alike, and still no pairs
    splits = open_data(tmp_path, task="translate")
    assert splits.train.format == "unpaired"
    assert splits.test is not None
    assert [(len(d), len(d.others)) for d in (splits.train, splits.val, splits.test)] == [(8, 12), (2, 3), (2, 3)]
    assert all(s.id.startswith("trainA/") for s in splits.train)
    assert all(s.id.startswith("trainB/") for s in (*splits.train.others, *splits.val.others))
    assert not {s.id for s in splits.train.others} & {s.id for s in splits.val.others}
    assert open_data(tmp_path, task="translate").val.fingerprint() == splits.val.fingerprint()
    fewer = open_data(tmp_path, task="translate", val_share=0.3).val
    assert fewer.fingerprint() != splits.val.fingerprint()


def test_a_domain_without_its_partner(tmp_path: Path) -> None:
    pictures(tmp_path, "trainA")
    with pytest.raises(DataError, match="trainB, is missing"):
        open_data(tmp_path, task="translate", format="unpaired")
    (tmp_path / "trainB").mkdir()
    with pytest.raises(DataError, match="trainB holds no images"):
        open_data(tmp_path, task="translate", format="unpaired")


def test_masks_are_not_taken_for_images(tmp_path: Path) -> None:
    pictures(tmp_path, "images")
    for i in range(4):
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(8, 12, dtype=np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    assert name(tmp_path, "") == name(tmp_path, "segment") == "masks"
    assert name(tmp_path, "translate") == "pairs"
    with pytest.raises(DataError, match="data for segment, not for generate: --format images"):
        open_data(tmp_path, task="generate")
    assert len(open_data(tmp_path, task="generate", format="images").train) == 6


def test_other_tasks_do_not_see_them(tmp_path: Path) -> None:
    pictures(tmp_path, "noisy")
    pictures(tmp_path, "clean")
    assert name(tmp_path, "classify") == "folders"
    with pytest.raises(UnknownName, match="pairs"):
        open_data(tmp_path, task="segment", format="pairs")
    pictures(tmp_path / "flat", ".")
    with pytest.raises(DataError, match="holds 4 images but no class folders"):
        open_data(tmp_path / "flat")


# few, none, and labels


def test_one_image_is_both(tmp_path: Path) -> None:
    file = picture(tmp_path / "one" / "photo.png")
    for root in (tmp_path / "one", file):
        splits = open_data(root, task="restore")
        assert [s.image for s in splits.train] == [s.image for s in splits.val] == [file]
        assert sum("both learnt from and judged by" in note for note in splits.val.notes) == 1
        assert len(splits.val.notes) == 1
        assert not splits.train.notes


def test_one_pair_is_both(tmp_path: Path) -> None:
    picture(tmp_path / "LR" / "1.png")
    picture(tmp_path / "HR" / "1.png", 24, 16)
    splits = open_data(tmp_path, task="restore")
    assert splits.train.samples == splits.val.samples
    assert any("is one image" in note for note in splits.val.notes)


def test_nothing_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty: give images"):
        open_data(tmp_path, task="restore")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="holds no images: give"):
        open_data(tmp_path, task="generate")


def test_labels_go_where_a_network_has_none(tmp_path: Path) -> None:
    pictures(tmp_path, "ant")
    pictures(tmp_path, "bee")
    train = open_data(tmp_path, task="generate").train
    plain = train.relabelled(())
    assert plain.labels == () and set(plain.targets) == {None}
    assert [s.id for s in plain] == [s.id for s in train]
    with pytest.raises(DataError, match="'bee' is not one of"):
        train.relabelled(("ant",))


def test_one_class_is_none_where_images_are_generated(tmp_path: Path) -> None:
    pictures(tmp_path, "img", 5)
    (tmp_path / "data.csv").write_text("path,label\n" + "".join(f"img/{i}.png,face\n" for i in range(5)))
    splits = open_data(tmp_path / "data.csv", task="generate")
    assert splits.labels == () and set(splits.train.targets) == {None}
    with pytest.raises(DataError, match="one class"):
        open_data(tmp_path / "data.csv")


def test_images_that_two_splits_share_are_noted(tmp_path: Path) -> None:
    pictures(tmp_path, "train", 4)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "copy.png").write_bytes((tmp_path / "train" / "2.png").read_bytes())
    assert "val/copy.png = train/2.png" in open_data(tmp_path, task="restore").val.notes[-1]


# faults


def test_a_missing_partner_is_a_fault(tmp_path: Path) -> None:
    pictures(tmp_path, "LR", 12)
    pictures(tmp_path, "HR", 13, 24, 16)
    (tmp_path / "HR" / "3.png").unlink()
    data = PairsFormat().open(tmp_path, None)
    assert len(data) == 11
    reasons = {f.id: f.reason for f in data.faults}
    assert "its partner, HR/3, is missing: add it" in reasons["LR/3.png"]
    assert "its partner, LR/12, is missing" in reasons["HR/12.png"]
    (tmp_path / "HR" / "12.png").unlink()
    assert len(audit(PairsFormat().open(tmp_path, None))) == 11
    pictures(tmp_path, "LR", 20)
    with pytest.raises(DataError, match=r"9 of 20 images .* cannot be used, more than 10 %"):
        audit(PairsFormat().open(tmp_path, None))


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((25, 16), "is 12x8, its partner 25x16: both sides must be"),
        ((24, 24), "is 12x8, its partner 24x24"),
        ((6, 4), "is 12x8, its partner 6x4"),
        ((36, 24), "its partner is 3 times as large as it, the partners of 11 others 2 times"),
    ],
)
def test_a_pair_that_is_none(tmp_path: Path, size: tuple[int, int], says: str) -> None:
    pictures(tmp_path, "LR", 12)
    pictures(tmp_path, "HR", 12, 24, 16)
    picture(tmp_path / "HR" / "5.png", *size)
    audited = audit(PairsFormat().open(tmp_path, None))
    assert len(audited) == 11
    assert [f.id for f in audited.faults] == ["LR/5.png"]
    assert says in audited.faults[0].reason


def test_a_torn_partner_is_a_fault(tmp_path: Path) -> None:
    pictures(tmp_path, "LR", 24)
    pictures(tmp_path, "HR", 24, 24, 16)
    for i in (1, 2):
        file = tmp_path / "HR" / f"{i}.png"
        file.write_bytes(file.read_bytes()[:-400] if i == 1 else b"torn")
    data = PairsFormat().open(tmp_path, None)
    audited = audit(data)
    assert [f.id for f in audited.faults] == ["LR/1.png", "LR/2.png"]
    assert all("its partner cannot be read" in f.reason for f in audited.faults)
    found = inspect(tmp_path, task="restore").faults
    assert [f.id for _, f in found] == ["LR/1.png", "LR/2.png"]


def test_a_partner_that_changed_is_one_line(tmp_path: Path) -> None:
    file = picture(tmp_path / "two.png", 10, 10)
    with pytest.raises(DataError, match="is 10x10, too small for its part"):
        Picture(source=file, box=(0, 0, 20, 10)).read()
    assert Picture(source=file, box=(2, 3, 5, 9)).read(1).shape == (6, 3, 1)


def test_torn_images_of_the_other_domain_are_faults(tmp_path: Path) -> None:
    pictures(tmp_path, "trainA", 12)
    pictures(tmp_path, "trainB", 12)
    (tmp_path / "trainB" / "7.png").write_bytes(b"torn")
    data = open_data(tmp_path, task="translate", val_share=0.01).train
    audited = audit(data)
    assert len(audited) == 11 and len(audited.others) == len(data.others) - len(audited.faults)
    for file in (tmp_path / "trainB").iterdir():
        file.write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot be read"):
        audit(data)
    with pytest.raises(DataError, match="no image of the other domain"):
        audit(data, max_bad_share=1)


def test_arrays_without_labels_pass_the_audit() -> None:
    samples = tuple(Sample(id=str(i), image=np.full((4, 4), i, np.uint8), target=None) for i in range(3))
    data = Dataset(samples=samples, labels=(), split="val", root=Path("made"), format="made")
    assert audit(data) is data
    assert audit(data, input=ImageInput.latent(8)) is data


# zoo data inspect


def test_inspect_tells_of_pairs(tmp_path: Path, zoo: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    pictures(tmp_path, "pairs/low", 21)
    pictures(tmp_path, "pairs/high", 20, 24, 16)
    sheet = tmp_path / "sheet.png"
    said = zoo("data", "inspect", tmp_path / "pairs", "--grid", sheet).stdout
    assert "pairs, data for restore" in said
    assert "20 pairs x2; 1 image without partner" in said
    assert "its partner, high/20, is missing" in said
    assert Image.open(sheet).size[0] > 1000
    found = json.loads(zoo("data", "inspect", tmp_path / "pairs", "--task", "restore", "--json").stdout)
    whole = found["splits"]["whole"]
    assert whole["ratios"] == [{"ratio": 2, "pairs": 20}] and whole["without_partner"] == 1
    assert found["usable"] and found["labels"] == []


def test_inspect_of_two_domains_and_of_none(tmp_path: Path) -> None:
    pictures(tmp_path / "two", "trainA", 3)
    pictures(tmp_path / "two", "trainB", 5)
    found = inspect(tmp_path / "two", task="translate")
    assert found.to_dict()["splits"]["train"]["other_domain"] == 5
    assert found.sizes() == {(12, 8): 8}
    assert grid(found).width > 1000
    pictures(tmp_path / "flat", ".", 3)
    flat = inspect(tmp_path / "flat")
    assert (flat.format.name, flat.task, flat.others, flat.refusal) == ("images", "generate", (), "")


def test_a_grid_puts_the_partner_beside_the_image(tmp_path: Path) -> None:
    for folder, side, colour in (("LR", 40, "red"), ("HR", 80, "blue")):
        for i in range(2):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", (side, side), colour).save(tmp_path / folder / f"{i}.png")
    sheet = np.asarray(grid(inspect(tmp_path, task="restore"), cells=1))
    row = sheet[40]
    red, blue = ((row == colour).all(axis=1) for colour in ((255, 0, 0), (0, 0, 255)))
    assert red.sum() == blue.sum() == 80
    assert np.flatnonzero(red).max() < np.flatnonzero(blue).min()


# real ones


@pytest.mark.assets
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set5(assets: Path, scale: int) -> None:
    data = PairsFormat().open(assets / "set5" / f"image_SRF_{scale}", None)
    assert PairsFormat().splits(data.root) == ()
    assert len(audit(data)) == 5 and not audit(data).faults
    for sample in data:
        with Image.open(sample.image) as low:  # type: ignore[arg-type]
            assert sample.target.size() == (scale * low.width, scale * low.height)
    splits = open_data(data.root, task="restore")
    assert (splits.train.format, len(splits.train), len(splits.val)) == ("pairs", 4, 1)


@pytest.mark.assets
def test_set5_of_all_factors_is_refused(assets: Path) -> None:
    with pytest.raises(DataError, match="a network has one scale"):
        audit(PairsFormat().open(assets / "set5", None))


@pytest.mark.assets
def test_nuclei_side_by_side_are_made_from_their_masks(assets: Path) -> None:
    splits = open_data(assets / "dsb2018-nuclei" / "paired_pix2pix_256", task="translate")
    assert (splits.train.format, len(splits.train), len(splits.val)) == ("side-by-side", 128, 32)
    masks = 0
    for sample in splits.val:
        given = np.asarray(read_image(sample.image, ImageInput(height=1, width=1).with_channels(1)))
        masks += set(np.unique(given)) <= {0, 255}
        assert len(np.unique(sample.target.read())) > 20  # a photo
    assert masks == 32
    assert name(assets / "dsb2018-nuclei", "translate") == "pairs"


@pytest.mark.assets
def test_fashion_and_hymenoptera_to_generate(assets: Path) -> None:
    fashion = open_data(assets / "fashion-mnist", task="generate")
    assert (fashion.train.format, len(fashion.labels), len(fashion.train)) == ("idx", 10, 48000)
    assert set(fashion.test.relabelled(()).targets) == {None}  # type: ignore[union-attr]
    insects = open_data(assets / "hymenoptera", task="generate")
    assert (insects.train.format, insects.labels, len(insects.train)) == ("folders", ("ants", "bees"), 244)
    plain = open_data(assets / "hymenoptera", task="generate", format="images")
    assert (plain.labels, len(plain.train), len(plain.val)) == ((), 244, 153)
    assert name(assets / "hymenoptera", "restore") == "images"
    assert name(assets / "hymenoptera", "") == "folders"
