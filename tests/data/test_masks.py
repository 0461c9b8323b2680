"""Images and masks: layouts, what values mean, files that name classes, and masks that do not fit."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import audit, open_data
from zoo.data.masks import VOC_LABELS, MaskFormat, VocMaskFormat
from zoo.data.targets import VOID
from zoo.errors import DataError

SHAPE = (20, 30)
BASE = np.zeros(SHAPE, np.uint8)
BASE[4:9, 5:12] = 1
BASE[12:18, 3:20] = 2
"""Three classes: 0 everywhere else."""


def pair(root: Path, name: str, mask: np.ndarray | Image.Image, images: str = "images", masks: str = "masks") -> None:
    """An image and its mask (an array of grey or RGB values, or a Pillow image)."""
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    Image.new("RGB", image.size, (hash(name) % 256, 3, len(list((root / images).iterdir())))).save(
        root / images / f"{name}.png"
    )
    image.save(root / masks / f"{name}.png")


def several(root: Path, mask: np.ndarray | Image.Image, count: int = 4, **folders: str) -> Path:
    for i in range(count):
        pair(root, str(i), mask, **folders)
    return root


def paint(*colours: tuple[int, int, int]) -> np.ndarray:
    """BASE in colours, (H, W, 3)."""
    return np.asarray(colours, np.uint8)[BASE]


def palette(classes: np.ndarray) -> Image.Image:
    image = Image.fromarray(classes)
    image.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50] + [9] * 759)
    return image


# -- what values mean ------------------------------------------------------------------------------------------------


def test_black_and_white(tmp_path: Path) -> None:
    splits = open_data(several(tmp_path, (BASE > 0).astype(np.uint8) * 255), task="segment")
    assert (len(splits.train), len(splits.val)) == (3, 1)
    assert splits.train.format == "masks"
    assert splits.labels == ("background", "object")
    assert (splits.train[0].target.read() == (BASE > 0)).all()
    assert splits.train.notes == ()
    assert not audit(splits.train).faults


@pytest.mark.parametrize("image", [BASE, palette(BASE)], ids=["grey", "palette"])
def test_indices(tmp_path: Path, image: np.ndarray | Image.Image) -> None:
    several(tmp_path, image)
    pair(tmp_path, "void", palette(np.where(BASE == 2, 255, BASE).astype(np.uint8)))
    whole = MaskFormat().open(tmp_path, None)
    assert whole.labels == ("background", "class 1", "class 2")
    assert (whole[0].target.read() == BASE).all()
    assert (whole[4].target.read() == np.where(BASE == 2, VOID, BASE)).all()
    assert "class indices 0 to 2 without names" in whole.notes[0]
    assert not audit(whole).faults


def test_a_palette_may_have_gaps(tmp_path: Path) -> None:
    several(tmp_path, palette(BASE * 40))
    whole = MaskFormat().open(tmp_path, None)
    assert len(whole.labels) == 81
    assert set(np.unique(whole[0].target.read())) == {0, 40, 80}


def test_grey_levels(tmp_path: Path) -> None:
    several(tmp_path, np.asarray([0, 128, 255], np.uint8)[BASE])
    whole = MaskFormat().open(tmp_path, None)
    assert whole.labels == ("background", "class 1", "class 2")
    assert (whole[0].target.read() == BASE).all()
    assert "3 grey values without names" in whole.notes[0]


def test_colours(tmp_path: Path) -> None:
    several(tmp_path, paint((0, 0, 0), (255, 0, 0), (0, 0, 255)), masks="gt")
    whole = MaskFormat().open(tmp_path, None)
    assert whole.labels == ("background", "class 1", "class 2")
    assert (whole[0].target.read() == np.asarray([0, 2, 1])[BASE]).all()  # in the order of their values
    assert "(#000000, #0000ff, #ff0000)" in whole.notes[0]


def test_the_border_of_pascal_voc_is_void(tmp_path: Path) -> None:
    several(tmp_path, paint((0, 0, 0), (128, 0, 0), (224, 224, 192)))
    whole = MaskFormat().open(tmp_path, None)
    assert whole.labels == ("background", "object")
    assert (whole[0].target.read() == np.asarray([0, 1, VOID])[BASE]).all()


def test_numbers_of_objects(tmp_path: Path) -> None:
    several(tmp_path / "deep", (BASE.astype(np.uint16) * 300))
    several(tmp_path / "bytes", np.arange(600, dtype=np.uint8).reshape(SHAPE) % 90, masks="instances")
    for name in ("deep", "bytes"):
        whole = MaskFormat().open(tmp_path / name, None)
        assert whole.labels == ("background", "object")
        assert set(np.unique(whole[0].target.read())) == {0, 1}
        assert "instance ids" in whole.notes[0]
        assert not audit(whole).faults


def test_a_blurred_mask_is_black_and_white(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    big = np.kron(BASE > 0, np.ones((13, 13), bool))
    for i in range(3):
        Image.new("RGB", big.shape[::-1], (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(big.astype(np.uint8) * 255).save(tmp_path / "masks" / f"{i}.jpg", quality=60)
    whole = MaskFormat().open(tmp_path, None)
    assert whole.labels == ("background", "object")
    assert (whole[0].target.read() != big).mean() < 0.01
    assert "blurred" in whole.notes[0]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros(SHAPE, np.uint8), "nothing but 0"),
        (np.where(BASE > 0, 255, 0).astype(np.uint8) * 0 + 255, "nothing but 255"),
        (
            np.linspace(0, 255, 600).astype(np.uint8).reshape(SHAPE),
            "grey values from 0 to 255, too many for a class each",
        ),
        (np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8), "more than 254 colours"),
    ],
)
def test_values_that_mean_nothing(tmp_path: Path, mask: np.ndarray, words: str) -> None:
    several(tmp_path, mask)
    with pytest.raises(DataError) as caught:
        open_data(tmp_path, task="segment")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_grey_and_colours_do_not_mix(tmp_path: Path) -> None:
    several(tmp_path, BASE)
    pair(tmp_path, "9", paint((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    with pytest.raises(DataError, match="some masks are grey or indexed and some in colours"):
        open_data(tmp_path, task="segment")


# -- files that name classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.csv", "name,value\nsky,1\nbackground,0\nroad,2\n"),
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, sky\n2, road\n"),
        ("classes.txt", "background\nsky\nroad\n"),
        ("classes.txt", "sky\nroad\n"),  # the background goes without saying
        ("codes.txt", "background\nsky\nroad"),
        ("classes.json", '["background", "sky", "road"]'),
        ("classes.json", '{"sky": 1, "background": 0, "road": 2}'),
        ("classes.json", '{"0": "background", "1": "sky", "2": "road"}'),
        ("classes.json", '[{"name": "background", "id": 0}, {"name": "sky", "id": 1}, {"name": "road", "id": 2}]'),
    ],
)
def test_named_by_index(tmp_path: Path, name: str, text: str) -> None:
    several(tmp_path, BASE)
    (tmp_path / name).write_text(text)
    splits = open_data(tmp_path, task="segment")
    assert splits.labels == ("background", "sky", "road")
    assert (splits.train[0].target.read() == BASE).all()
    assert splits.train.notes == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_dict.csv", "name,r,g,b\nroad,0,0,200\nbackground,9,9,9\nsky,100,0,0\nnowhere,1,1,1\n"),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nroad:0,0,200::\nbackground:9,9,9::\nsky:100,0,0::\nnowhere:1,1,1::",
        ),
        ("label_colors.txt", "0 0 200\troad\n9 9 9\tbackground\n100 0 0\tsky\n1 1 1 nowhere\n"),
        (
            "meta.json",
            json.dumps(
                {
                    "classes": [
                        {"title": t, "color": c}
                        for t, c in (
                            ("road", "#0000C8"),
                            ("background", "#090909"),
                            ("sky", "#640000"),
                            ("nowhere", "#010101"),
                        )
                    ]
                }
            ),
        ),
        (
            "obj_class_to_machine_color.json",
            '{"road": [0, 0, 200], "background": [9, 9, 9], "sky": [100, 0, 0], "nowhere": [1, 1, 1]}',
        ),
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_named_by_colour(tmp_path: Path, name: str, text: str, indexed: bool) -> None:
    colours = ((9, 9, 9), (100, 0, 0), (0, 0, 200))
    image: np.ndarray | Image.Image = paint(*colours)
    if indexed:  # the colours count, not the palette's order
        image = Image.fromarray(BASE)
        image.putpalette([v for c in colours for v in c] + [7] * 759)
    several(tmp_path, image)
    (tmp_path / name).write_text(text)
    splits = open_data(tmp_path, task="segment")
    assert splits.labels == ("background", "road", "sky", "nowhere")
    assert (splits.train[0].target.read() == np.asarray([0, 2, 1])[BASE]).all()
    assert not audit(splits.train).faults


def test_one_name_for_black_and_white(tmp_path: Path) -> None:
    several(tmp_path, (BASE > 0).astype(np.uint8) * 255)
    for text in ("nucleus", "background\nnucleus"):
        (tmp_path / "classes.txt").write_text(text)
        splits = open_data(tmp_path, task="segment")
        assert splits.labels == ("background", "nucleus")
        assert (splits.train[0].target.read() == (BASE > 0)).all()  # and 255 is not void


def test_void_is_not_learnt(tmp_path: Path) -> None:
    several(tmp_path, BASE)
    (tmp_path / "classes.txt").write_text("Void\nsky\nroad\n")
    splits = open_data(tmp_path, task="segment")
    assert splits.labels == ("sky", "road")
    assert (splits.train[0].target.read() == np.asarray([VOID, 0, 1])[BASE]).all()


def test_a_value_that_no_class_has(tmp_path: Path) -> None:
    several(tmp_path, BASE)
    (tmp_path / "classes.csv").write_text("background,0\nsky,1\n")
    with pytest.raises(DataError, match=r"cannot be used, more than 10 % .*value 2 is no class"):
        audit(open_data(tmp_path, task="segment").train)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("classes.csv", "name,value\nsky,1,2\nroad,x\n", "is no list of classes"),
        ("classes.txt", "a\nb\nc\nd\na\n", "two classes have one name"),
        ("classes.csv", "name,value\na,1\nb,1\n", "two classes have one value"),
        ("classes.txt", "only\n", "names 1 classes, but the masks hold 3"),
        ("classes.json", "{", "cannot be read"),
        ("classes.json", "[1, 2]", "is no list of classes"),
        ("classes.csv", "", "names no class"),
        ("classes.json", '[{"name": "a", "id": 1}, {"name": "b"}]', "some classes have a value"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, name: str, text: str, words: str) -> None:
    several(tmp_path, BASE)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        open_data(tmp_path, task="segment")
    assert words in str(caught.value) and str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_names_alone_do_not_say_which_colour(tmp_path: Path) -> None:
    several(tmp_path, paint((0, 0, 0), (100, 0, 0), (0, 0, 200)))
    (tmp_path / "classes.txt").write_text("background\nsky\nroad\n")
    with pytest.raises(DataError, match="the masks are in colours: write name,r,g,b"):
        open_data(tmp_path, task="segment")


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folders",
    [
        ("{}/images", "{}/masks"),
        ("images/{}", "masks/{}"),
        ("{}", "{}_labels"),
        ("{}", "{}annot"),
        ("{}/img", "{}/ann"),
    ],
)
def test_layouts_with_splits(tmp_path: Path, folders: tuple[str, str]) -> None:
    for split, count in (("train", 3), ("val", 2)):
        several(tmp_path, BASE, count, images=folders[0].format(split), masks=folders[1].format(split))
    splits = open_data(tmp_path, task="segment")
    assert (len(splits.train), len(splits.val)) == (3, 2)
    assert splits.train[0].id == folders[0].format("train") + "/0.png"
    assert splits.val[0].target.source == tmp_path / folders[1].format("val") / "0.png"


def test_side_by_side_as_roboflow_exports_them(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        for i in range(2):
            Image.new("RGB", SHAPE[::-1], (i, 5, 0)).save(tmp_path / split / f"{i}.jpg")
            Image.fromarray(BASE).save(tmp_path / split / f"{i}_mask.png")
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, sky\n2, road\n")
    splits = open_data(tmp_path, task="segment")
    assert [s.id for s in splits.train] == ["train/0.jpg", "train/1.jpg"]
    assert splits.labels == ("background", "sky", "road")


def test_masks_with_a_word_behind_their_name(tmp_path: Path) -> None:
    several(tmp_path, BASE, 3)
    for file in (tmp_path / "masks").iterdir():
        file.rename(file.with_name(f"{file.stem}_L.png"))
    assert len(MaskFormat().open(tmp_path, None)) == 3


def test_what_is_left_aside_is_told(tmp_path: Path) -> None:
    several(tmp_path, (BASE > 0).astype(np.uint8) * 255)
    several(tmp_path, BASE.astype(np.uint16), images="paired", masks="instances")
    whole = MaskFormat().open(tmp_path, None)
    assert whole[0].target.source.parent.name == "masks"
    assert whole.notes == ("left aside: instances/, paired/",)


def test_images_and_masks_without_the_other(tmp_path: Path) -> None:
    several(tmp_path, BASE)
    (tmp_path / "masks" / "0.png").unlink()
    (tmp_path / "images" / "1.png").unlink()
    whole = MaskFormat().open(tmp_path, None)
    assert [s.id for s in whole] == ["images/2.png", "images/3.png"]
    assert whole.faults[0].reason == "images/0.png: has no mask: a mask has the name of its image"
    assert whole.notes[0] == "1 mask of masks/ has no image"


def test_a_split_without_masks(tmp_path: Path) -> None:
    for split in ("train", "val"):
        several(tmp_path, BASE, 2, images=f"images/{split}", masks=f"masks/{split}")
    (tmp_path / "masks" / "val").rename(tmp_path / "masks" / "validated")
    with pytest.raises(DataError, match=r"images/val: its masks, .*masks/val, are missing"):
        open_data(tmp_path, task="segment")


def test_a_mask_too_large_to_decode(tmp_path: Path) -> None:
    several(tmp_path, BASE, 20)
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 20_000, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "masks" / "7.png").write_bytes(start + struct.pack(">I", 99) + b"IDAT")
    (fault,) = audit(MaskFormat().open(tmp_path, None)).faults
    assert fault.id == "images/7.png" and "\n" not in fault.reason


def test_pascal_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    void = BASE.copy()
    void[0] = 255
    several(root, palette(void), 6, images="JPEGImages", masks="SegmentationClass")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, text in {"train": "0\n1\n2\n", "val": "3\n4\n", "test": "77\n"}.items():
        (lists / f"{split}.txt").write_text(text)
    splits = open_data(root, task="segment")
    assert splits.train.format == "voc-segment"
    assert (len(splits.train), len(splits.val), splits.test) == (3, 2, None)
    assert splits.labels == VOC_LABELS
    assert (splits.train[0].target.read() == void).all()
    assert not audit(splits.train).faults
    # CVAT writes the same with a label map of its own
    (root / "labelmap.txt").write_text("background:200,0,0::\ncell:0,100,0::\nedge:0,0,50::\nrest:9,9,9::\n")
    assert VocMaskFormat().open(root, "train").labels == ("background", "cell", "edge", "rest")
    (lists / "train.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="no image of train is in JPEGImages"):
        open_data(root, task="segment")


# -- what is wrong -----------------------------------------------------------------------------------------------------


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    several(tmp_path, BASE, 40)
    Image.fromarray(BASE[:, :10]).save(tmp_path / "masks" / "3.png")
    Image.fromarray(BASE.T.copy()).save(tmp_path / "masks" / "4.png")
    (tmp_path / "masks" / "5.png").write_bytes(b"no mask")
    whole = audit(MaskFormat().open(tmp_path, None))
    assert [f.reason.partition(": ")[2] for f in sorted(whole.faults, key=lambda f: f.id)][:2] == [
        "its mask is 10x20, the image 30x20: give the mask of this image",
        "its mask is 20x30, the image 30x20: the image is turned upright by its EXIF orientation",
    ]
    assert "not a readable mask" in whole.faults[-1].reason
    assert len(whole) == 37


def test_nothing_but_background_in_train(tmp_path: Path) -> None:
    several(tmp_path, BASE * 0, 3, images="train/images", masks="train/masks")
    several(tmp_path, BASE, 3, images="val/images", masks="val/masks")
    (tmp_path / "classes.txt").write_text("background\nsky\nroad\n")
    with pytest.raises(DataError, match=r"nothing but 0|no mask of the train split holds anything but background"):
        audit(open_data(tmp_path, task="segment").train)
    (tmp_path / "classes.csv").write_text("background,0\nsky,1\nroad,2\n")
    with pytest.raises(DataError, match="no mask of the train split holds anything but background"):
        audit(open_data(tmp_path, task="segment").train)


def test_class_folders_are_no_masks(tmp_path: Path) -> None:
    several(tmp_path, BASE, images="ants", masks="bees")
    assert not MaskFormat().sniff(tmp_path)
    with pytest.raises(DataError, match=r"looks like folders .*, which is data for classify, not for segment"):
        open_data(tmp_path, task="segment")


@pytest.mark.assets
def test_nuclei(assets: Path) -> None:
    splits = open_data(assets / "dsb2018-nuclei", task="segment")
    assert (len(splits.train), len(splits.val)) == (128, 32)
    assert splits.labels == ("background", "object")
    assert splits.train[0].target.source.parent.name == "masks"
    assert splits.train.notes == ("left aside: instances/, paired_pix2pix_256/",)
    assert not audit(splits.val).faults
    assert open_data(assets / "dsb2018-nuclei", task="segment").train.fingerprint() == splits.train.fingerprint()
