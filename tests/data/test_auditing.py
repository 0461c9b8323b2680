"""The examination before training: boxes cut or left out, masks that do not fit, and when it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import Dataset, Fault, Sample, audit
from zoo.data.auditing import clean, examine
from zoo.data.splitting import assemble, divide
from zoo.data.targets import VOID, Boxes, Mask
from zoo.errors import DataError
from zoo.specs import ImageInput

PIXELS = np.zeros((20, 40, 3), np.uint8)
LABELS = ("ant", "bee")


def dataset(targets: list[object], labels: tuple[str, ...] = LABELS, split: str = "train") -> Dataset:
    samples = tuple(Sample(id=f"{i}.png", image=PIXELS + i, target=t) for i, t in enumerate(targets))
    return Dataset(samples=samples, labels=labels, split=split, root=Path("data"), format="test")


def boxes(*rows: tuple[float, ...], ignore: list[bool] | None = None) -> Boxes:
    return Boxes.of([r[:4] for r in rows], [int(r[4]) for r in rows], ignore)


def test_clean() -> None:
    given = boxes(
        (1, 2, 3, 4, 0),  # good
        (-5, 2, 3, 4, 1),  # reaches beyond
        (39.9, 19.9, 40.3, 20.2, 0),  # by less than half a pixel: rounding
        (5, 5, 5, 9, 0),  # no width
        (9, 5, 5, 9, 0),  # inside out
        (40, 0, 50, 9, 1),  # beside the image
        (float("nan"), 0, 5, 9, 1),
        ignore=[False, True, *[False] * 5],
    )
    kept, reasons, cut = clean(given, 40, 20, LABELS)
    assert kept.boxes.tolist() == pytest.approx(np.asarray([[1, 2, 3, 4], [0, 2, 3, 4], [39.9, 19.9, 40, 20]]))
    assert kept.ignore.tolist() == [False, True, False]
    assert cut == 1
    assert reasons == [
        "box 4 (ant 5, 5, 5, 9) has no area",
        "box 5 (ant 9, 5, 5, 9) has no area",
        "box 6 (bee 40, 0, 50, 9) lies outside the 40x20 image",
        "box 7 (bee nan, 0, 5, 9) has no area",
    ]
    nothing = boxes()
    assert clean(nothing, 40, 20, LABELS) == (nothing, [], 0)


def test_boxes_of_arrays_are_looked_at_too() -> None:
    whole = audit(dataset([boxes(*[(1, 2, 3, 4, 0)] * 12, (0, 0, 99, 9, 1), (1, 1, 1, 1, 1))]))
    assert [f.reason for f in whole.faults] == ["0.png: box 14 (bee 1, 1, 1, 1) has no area"]
    assert whole[0].target.boxes[-1].tolist() == [0, 0, 40, 9]
    assert whole.notes == ("1 box reached beyond the image and was cut at its border (first: 0.png)",)


def test_a_class_that_loses_its_last_box() -> None:
    with pytest.raises(DataError, match=r"no box of class 'bee' can be used \(first: 0.png: box 13 \(bee 1, 1, 1, 1\)"):
        audit(dataset([boxes(*[(1, 2, 3, 4, 0)] * 12, (1, 1, 1, 1, 1))]))


def test_masks_in_arrays() -> None:
    good = np.zeros((20, 40), np.uint8)
    good[3:5] = 1
    good[7] = VOID
    targets = [Mask(source=good, values={})] * 19 + [Mask(source=good[:5], values={})]
    whole = audit(dataset(targets, ("background", "cell")))
    assert (len(whole), [f.id for f in whole.faults]) == (19, ["19.png"])
    one = examine(dataset(targets)[0], ("background", "cell"), decode=False)
    assert one.counts is not None and one.counts.tolist() == [20 * 40 - 120, 80]
    beyond = examine(Sample(id="x", image=PIXELS, target=Mask(source=good + 4, values={})), ("a", "b"), decode=False)
    assert beyond.reason == "x: its mask holds class 3; the classes are 0 to 1"


def test_what_only_decoding_shows(tmp_path: Path) -> None:
    """Inspection reads no pixels of most formats, but finds what copying breaks."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for suffix in ("png", "jpg"):
        whole = tmp_path / f"whole.{suffix}"
        Image.fromarray(noise).save(whole)
        data = whole.read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
        good, cut = (Sample(id=n, image=tmp_path / f"{n}.{suffix}", target=0) for n in ("whole", "cut"))
        for decode in (True, False):
            assert examine(good, LABELS, decode=decode).reason == ""
            assert examine(good, LABELS, decode=decode).size == (80, 60)
            assert examine(cut, LABELS, decode=decode).reason.startswith("cut: damaged: ")


def test_bands_are_read_as_the_network_will(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.full((20, 40, 6), 1.5, np.float32))
    np.save(tmp_path / "1.npy", np.full((20, 40, 6), np.nan, np.float32))
    np.save(tmp_path / "2.npy", np.full((20, 40, 5), 1.5, np.float32))
    bands = ImageInput(height=8, width=8, channels=6, color="bands", pixel="float32", mean=(0.0,) * 6, std=(1.0,) * 6)
    good, nan, five = (Sample(id=f"{i}.npy", image=tmp_path / f"{i}.npy", target=0) for i in range(3))
    assert examine(good, LABELS, decode=True, input=bands).size == (40, 20)
    assert "NaN" in examine(nan, LABELS, decode=True, input=bands).reason
    assert "5 channels; the network takes 6 bands" in examine(five, LABELS, decode=True, input=bands).reason
    assert "array of float32" in examine(good, LABELS, decode=True).reason
    assert [examine(s, LABELS, decode=False).reason for s in (good, nan, five)] == [""] * 3


def test_tiff_of_many_bands(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    file = tmp_path / "0.tif"
    tifffile.imwrite(file, np.zeros((6, 20, 40), np.uint16), planarconfig="separate", photometric="minisblack")
    one = examine(Sample(id="0.tif", image=file, target=0), LABELS, decode=False)
    assert (one.reason, one.size) == ("", (40, 20))
    bands = ImageInput(height=8, width=8, channels=6, color="bands", pixel="uint16", mean=(0.0,) * 6, std=(1.0,) * 6)
    one = examine(Sample(id="0.tif", image=file, target=0), LABELS, decode=True, input=bands)
    assert (one.reason, one.size) == ("", (40, 20))


# -- dividing ----------------------------------------------------------------------------------------------------------


def test_divided_by_ids_and_seed_alone() -> None:
    data = dataset([boxes((1, 2, 3, 4, 0))] * 10 + [boxes()] * 5)
    train, val = divide(data, 0.2, 0)
    assert (len(train), len(val)) == (12, 3)
    assert sum(not len(s.target) for s in val) == 1  # images without objects give their share
    again = Dataset(samples=data.samples[::-1], labels=data.labels, split="", root=data.root, format="test")
    assert {s.id for s in divide(again, 0.2, 0)[1]} == {s.id for s in val}
    assert {s.id for s in divide(data, 0.2, 1)[1]} != {s.id for s in val}


def test_what_was_left_out_is_told_once() -> None:
    data = replace(dataset([boxes((1, 2, 3, 4, 0))] * 9), faults=(Fault(id="x", reason="x: has no mask"),))
    train, val = divide(data, 0.2, 0)
    assert (len(train.faults), len(val.faults)) == (1, 0)
    with pytest.raises(DataError, match=r"1 of 8 images of the train split cannot be used.*x: has no mask"):
        audit(train)
    assert len(audit(train, max_bad_share=0.2).faults) == 1


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_neither_part_is_empty(share: float) -> None:
    maps = dataset([Mask(source=PIXELS[:, :, 0], values={})] * 3, ("background", "cell"))
    things = dataset([boxes((1, 2, 3, 4, 0))] * 2 + [boxes()])
    for data in (maps, things):
        train, val = divide(data, share, 0)
        assert len(train) and len(val)
        assert len(train) + len(val) == 3
    assert all(any(len(s.target) for s in part) for part in divide(things, share, 0))


def test_one_image_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="data has one image: two are needed"):
        divide(dataset([Mask(source=PIXELS[:, :, 0], values={})]), 0.2, 0)
    with pytest.raises(DataError, match="data has one image with objects: two are needed"):
        divide(dataset([boxes((1, 2, 3, 4, 0)), boxes(), boxes()]), 0.2, 0)


def test_nothing_to_judge_by() -> None:
    train = dataset([boxes((1, 2, 3, 4, 0))] * 3)
    with pytest.raises(DataError, match="no image of the val split has an object"):
        assemble({"train": train, "val": dataset([boxes()] * 2, split="val")})
    with pytest.raises(DataError, match="no image of the train split has an object"):
        assemble({"train": dataset([boxes((1, 2, 3, 4, 0), ignore=[True])]), "val": train})
    with pytest.raises(DataError, match="the val split is empty"):
        assemble({"train": train, "val": dataset([], split="val")})
    assert (
        len(assemble({"train": dataset([boxes((1, 2, 3, 4, 0))], ("only",)), "val": train}).train) == 1
    )  # one class will do
    with pytest.raises(DataError, match=r"has one class \(only\): a mask needs at least two"):
        assemble({"": dataset([Mask(source=PIXELS[:, :, 0], values={})] * 2, ("only",))})
