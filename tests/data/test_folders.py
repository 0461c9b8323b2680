"""Class-per-folder trees: the good, the divided, the misnamed and the broken."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import audit, open_data
from zoo.errors import DataError, UnknownName


def picture(path: Path, side: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(rng.integers(0, 255, (side, side + 2, 3), dtype=np.uint8)).save(path)
    return path


def tree(root: Path, counts: dict[str, int]) -> Path:
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(root / folder / f"{i}.png")
    return root


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_divided_by_whatever_name(tmp_path: Path, name: str) -> None:
    tree(tmp_path, {"train/ant": 3, "train/bee": 4, f"{name}/ant": 1, f"{name}/bee": 2, "test/bee": 1})
    splits = open_data(tmp_path)
    assert [len(splits.train), len(splits.val)] == [7, 3]
    assert splits.test is not None and len(splits.test) == 1
    assert splits.labels == splits.val.labels == splits.test.labels == ("ant", "bee")
    assert splits.test[0].target == 1
    assert splits.test[0].id == "test/bee/0.png"
    assert splits.val.source == f"val split of {tmp_path.name} (3 images)"


def test_undivided_is_stratified_seeded_and_stable(tmp_path: Path) -> None:
    tree(tmp_path, {"ant": 10, "bee": 30, "cat": 2})
    one, two, other = open_data(tmp_path), open_data(tmp_path), open_data(tmp_path, seed=1)
    ids = [s.id for s in one.val]
    assert ids == [s.id for s in two.val] != [s.id for s in other.val]
    assert [one.val.targets.count(t) for t in range(3)] == [2, 6, 1]
    assert not {s.id for s in one.train} & set(ids)
    assert len(one.train) + len(one.val) == 42
    for i in range(5):  # more images of one class leave the others where they were
        picture(tmp_path / "ant" / f"more{i}.png")
    assert {s.id for s in open_data(tmp_path).val if s.target} == {i for i in ids if not i.startswith("ant")}


def test_the_share_is_obeyed(tmp_path: Path) -> None:
    tree(tmp_path, {"ant": 10, "bee": 10})
    assert len(open_data(tmp_path, val_share=0.5).val) == 10
    with pytest.raises(DataError, match="between 0 and 1"):
        open_data(tmp_path, val_share=1.5)


def test_a_vehicle_called_train_is_a_class(tmp_path: Path) -> None:
    tree(tmp_path, {"bus": 4, "car": 4, "train": 4})
    assert open_data(tmp_path).labels == ("bus", "car", "train")


def test_hidden_and_other_files_are_ignored_but_counted(tmp_path: Path) -> None:
    tree(tmp_path, {"ant": 4, "bee": 4})
    for name in ("ant/.DS_Store", "ant/._0.png", "bee/notes.txt", "README.md"):
        (tmp_path / name).write_text("x")
    tree(tmp_path, {".cache/x": 2, "__MACOSX/ant": 2})
    splits = open_data(tmp_path)
    assert len(splits.train) + len(splits.val) == 8
    assert splits.train.notes == ("4 files that are hidden or no images were ignored",)


def test_deep_folders_and_links_that_lead_back(tmp_path: Path) -> None:
    tree(tmp_path, {"ant/2024/may": 3, "bee": 3})
    (tmp_path / "ant" / "loop").symlink_to(tmp_path / "ant")
    assert len(open_data(tmp_path).train) + len(open_data(tmp_path).val) == 6


def refuse(root: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data(root)
    for word in words:
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    refuse(tmp_path / "photso", "no such file or folder", f"did you mean {tmp_path / 'photos'}?")


def test_empty(tmp_path: Path) -> None:
    refuse(tmp_path, "is empty")


def test_no_class_folders(tmp_path: Path) -> None:
    tree(tmp_path, {".": 3})
    refuse(tmp_path, "holds 3 images but no class folders")


def test_one_class(tmp_path: Path) -> None:
    refuse(tree(tmp_path, {"ant": 3}), "has one class (ant)", "at least two")


def test_a_class_without_images(tmp_path: Path) -> None:
    tree(tmp_path, {"ant": 3, "bee": 3, "cat": 0})
    (tmp_path / "cat" / "notes.txt").write_text("x")
    refuse(tmp_path, "cat holds no images (1 other files)")


def test_a_class_of_one_image_cannot_be_divided(tmp_path: Path) -> None:
    refuse(tree(tmp_path, {"ant": 3, "bee": 1}), "class 'bee' has one image")


def test_an_unexpected_split_is_not_passed_over(tmp_path: Path) -> None:
    """It must not train without its validation set, and say nothing."""
    refuse(
        tree(tmp_path, {"train/ant": 3, "train/bee": 3, "holdout/ant": 1, "holdout/bee": 1}), "holdout", "val/|valid/"
    )


def test_splits_without_a_known_name_are_not_taken_for_classes(tmp_path: Path) -> None:
    tree(tmp_path, {f"{s}/{c}": 2 for s in ("training_set", "test_set") for c in ("ant", "bee")})
    refuse(tmp_path, "test_set/ and training_set/", "hold the same folders (ant, bee)", "train/|training/")


def test_two_names_for_one_split(tmp_path: Path) -> None:
    tree(tmp_path, {"train/ant": 2, "train/bee": 2, "val/ant": 1, "valid/ant": 1})
    refuse(tmp_path, "val/ and valid/, both the val split")


def test_a_class_that_train_does_not_have(tmp_path: Path) -> None:
    tree(tmp_path, {"train/ant": 2, "train/bee": 2, "val/wasp": 1})
    refuse(tmp_path, "val/wasp", "train has no class 'wasp'")


def test_no_train(tmp_path: Path) -> None:
    refuse(tree(tmp_path, {"val/ant": 2, "val/bee": 2}), "has val but no train split")


def test_empty_val(tmp_path: Path) -> None:
    refuse(tree(tmp_path, {"train/ant": 2, "train/bee": 2, "val/ant": 0}), "the val split is empty")


def test_packed_and_other_files(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    refuse(tmp_path / "photos.zip", "unpack it first")
    (tmp_path / "photos.xyz").write_bytes(b"PK")
    refuse(tmp_path / "photos.xyz", "is a file of no known kind")


def test_unknown_format(tmp_path: Path) -> None:
    tree(tmp_path, {"ant": 3, "bee": 3})
    assert open_data(tmp_path, format="folders").train.format == "folders"
    with pytest.raises(UnknownName, match="did you mean folders"):
        open_data(tmp_path, format="folder")


def test_shared_images_are_told(tmp_path: Path) -> None:
    tree(tmp_path, {"train/ant": 3, "train/bee": 3, "val/ant": 2, "val/bee": 2})
    (tmp_path / "val/ant/copy.png").write_bytes((tmp_path / "train/bee/1.png").read_bytes())
    (note,) = open_data(tmp_path).val.notes
    assert "1 of 5 images of the val split are also in train (first: val/ant/copy.png = train/bee/1.png)" in note


def damage(root: Path) -> dict[str, str]:
    """Four kinds of broken images among the ants; id and the word that the reason must hold."""
    (root / "ant/empty.jpg").write_bytes(b"")
    (root / "ant/text.png").write_text("not an image")
    whole = picture(root / "ant/cut.jpg", 200).read_bytes()
    (root / "ant/cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    huge = Image.new("1", (20000, 20000))
    huge.save(root / "ant/huge.png")
    return {"empty.jpg": "empty file", "text.png": "not an image", "cut.jpg": "truncated", "huge.png": "larger than"}


def test_audit_lists_and_skips(tmp_path: Path) -> None:
    tree(tmp_path, {"ant": 40, "bee": 20})
    wanted = damage(tmp_path)
    whole = open_data(tmp_path, val_share=0.01).train
    seen: list[tuple[int, int]] = []
    kept = audit(whole, progress=lambda done, total: seen.append((done, total)))
    reasons = {Path(f.id).name: f.reason for f in kept.faults}
    left = {Path(s.id).name for s in whole} & set(wanted)
    assert set(reasons) == left
    assert len(left) >= 3
    for name, reason in reasons.items():
        assert wanted[name] in reason, reason
    assert len(kept) == len(whole) - len(left)
    assert seen[-1] == (len(whole), len(whole))


def test_audit_refuses_above_a_share(tmp_path: Path) -> None:
    tree(tmp_path, {"ant": 6, "bee": 6})
    damage(tmp_path)
    with pytest.raises(DataError, match=r"\d of \d+ images of the train split cannot be read, more than 10 %"):
        audit(open_data(tmp_path, val_share=0.1).train)


def test_audit_refuses_a_class_that_vanishes(tmp_path: Path) -> None:
    tree(tmp_path, {"train/ant": 60, "train/bee": 1, "val/ant": 1})
    (tmp_path / "train/bee/0.png").write_bytes(b"")
    with pytest.raises(DataError, match="no image of class 'bee' can be read"):
        audit(open_data(tmp_path).train)


def test_audit_of_bands(tmp_path: Path) -> None:
    for c in "ab":
        (tmp_path / c).mkdir()
        for i in range(12):
            np.save(tmp_path / c / f"{i}.npy", np.full((4, 4, 6), i, np.uint8))
    np.save(tmp_path / "a" / "99.npy", np.zeros((4, 4, 6), np.float64))
    whole = open_data(tmp_path, val_share=0.01)
    faults = audit(whole.train).faults + audit(whole.val, max_bad_share=1).faults
    assert [f.id for f in faults] == ["a/99.npy"]
    assert "float64" in faults[0].reason


@pytest.mark.assets
def test_hymenoptera(assets: Path) -> None:
    splits = open_data(assets / "hymenoptera")
    assert (len(splits.train), len(splits.val), splits.labels) == (244, 153, ("ants", "bees"))
    assert not audit(splits.train).faults
