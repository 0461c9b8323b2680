"""`zoo run` on bundles that make images, as a user types it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.errors import BundleError, ImageError
from zoo.parity.evidence import natural_images

pytest.importorskip("zoo_export")
pytest.importorskip("zoo_gan")

from zoo.runtime import load

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = ("--option", "blocks=1", "--option", "width=8", "--option", "scale=2", "--size", "32", "--dynamic-size")
WAIVED = ("--waive", "latency and random weights are not what is tested", "--overwrite")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


def made(zoo: Run, folder: Path, name: str, *options: object) -> Path:
    if not (folder / name / "zoo.json").is_file():
        zoo("export", name, "--weights", "none", *options, *WAIVED, "--out", folder / name)
    return folder / name


def test_the_same_seed_gives_the_same_grid(zoo: Run, bundles: Path, tmp_path: Path) -> None:
    gan = made(zoo, bundles, "dcgan", "--option", "size=16", "--option", "width=8", "--option", "image_channels=1")
    for name in ("one", "two"):
        zoo("run", gan, "--seed", 7, "--grid", "4x3", "--out", tmp_path / f"{name}.png")
    zoo("run", gan, "--seed", 8, "--grid", "4x3", "--out", tmp_path / "other.png")
    one, two, other = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other
    with Image.open(tmp_path / "one.png") as grid:
        assert grid.size == (4 * 18 - 2, 3 * 18 - 2)
    lines = zoo("run", gan, "--count", 3, "--out", tmp_path / "many", "--json").stdout.splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2]
    assert len(list((tmp_path / "many").iterdir())) == 3
    first = zoo_runtime_image(gan, 1, 0)
    with Image.open(tmp_path / "many" / "0-0000.png") as image:
        np.testing.assert_array_equal(np.asarray(image), first)


def zoo_runtime_image(bundle: Path, count: int, seed: int) -> np.ndarray:
    return np.asarray(load(bundle).generate(count, seed=seed)[0].image())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--grid", "0x3", "--out", "a.png"), "give columns x rows"),
        (("--grid", "2x2"), "--out FILE"),
        (("--count", "2", "--out", "a.png"), "need a folder"),
        (("--mask", "a.png", "--out", "b.png"), "leave out --mask"),
        (("photo.jpg",), "leave out photo.jpg"),
        (("--label", "cat", "--out", "a.png"), "cat"),
    ],
)
def test_what_means_nothing_to_a_generator(
    zoo: Run, bundles: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    gan = made(zoo, bundles, "dcgan", "--option", "size=16", "--option", "width=8", "--option", "image_channels=1")
    (tmp_path / "photo.jpg").write_bytes(b"")
    refused = zoo("run", gan, *arguments, check=2, cwd=tmp_path)
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_outside_the_hole_every_pixel_is_the_photos(zoo: Run, bundles: Path, tmp_path: Path, precision: str) -> None:
    """To the bit, in int8 too, and on a photo whose sides nothing divides."""
    painter = made(
        zoo, bundles, "inpaint-partial", "--option", "width=8", "--option", "depth=2", "--size", "32", "--precision", "fp32,int8"
    )  # fmt: skip
    pixels = natural_images(1, 61, 83, 3, seed=1)[0]
    hole = np.zeros((61, 83), np.uint8)
    hole[20:40, 30:60] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(hole).save(tmp_path / "hole.png")
    zoo(
        "run",
        painter,
        tmp_path / "photo.png",
        "--mask",
        tmp_path / "hole.png",
        "--artifact",
        precision,
        "--out",
        tmp_path / "whole.png",
    )
    with Image.open(tmp_path / "whole.png") as image:
        painted = np.asarray(image)
    np.testing.assert_array_equal(painted[hole == 0], pixels[hole == 0])
    assert (painted[hole > 0] != pixels[hole > 0]).mean() > 0.5, "nothing was painted"
    see_through = np.dstack((pixels, 255 - hole))
    model = load(painter, artifact=precision)
    np.testing.assert_array_equal(model(see_through).pixels, painted)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of all kinds and sizes; the names say how large their doubles are."""
    folder = tmp_path_factory.mktemp("odd")
    photo = natural_images(1, 40, 53, 3, seed=2)[0]
    for name, pixels in {"2x2": photo[:1, :1], "10x6": photo[:3, :5], "4000x2": np.resize(photo, (1, 2000, 3))}.items():
        Image.fromarray(pixels).save(folder / f"small.{name}.png")
    Image.fromarray(photo[:, :, 0]).save(folder / "grey.106x80.png")
    Image.fromarray(photo[:, :, 0].astype(np.uint16) * 257).save(folder / "grey16.106x80.png")
    Image.fromarray(np.dstack((photo, photo[:, :, 0]))).save(folder / "transparent.106x80.png")
    frames = [Image.fromarray(np.roll(photo, 9 * i, axis=1)).quantize(32) for i in range(3)]
    frames[0].save(folder / "palette.106x80.gif")
    frames[0].save(folder / "moving.106x80.gif", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo).save(folder / "turned.80x106.jpg", exif=turned)
    return folder


@pytest.mark.parametrize("options", [(), ("--tile", "32", "--overlap", "8")])
def test_images_of_all_kinds(zoo: Run, bundles: Path, odd: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    sharper = made(zoo, bundles, "srresnet", *SMALL)
    zoo("run", sharper, odd, *options, "--out", tmp_path / "made")
    found = {}
    for path in (tmp_path / "made").iterdir():
        with Image.open(path) as image:
            found[path.stem] = "{}x{}".format(*image.size)
    assert found == {path.stem: path.stem.partition(".")[2] for path in odd.iterdir()}


def test_what_cannot_be_written_is_one_line(zoo: Run, bundles: Path, odd: Path, tmp_path: Path) -> None:
    sharper = made(zoo, bundles, "srresnet", *SMALL)
    Image.new("RGB", (9000, 1)).save(tmp_path / "wide.png")
    (tmp_path / "folder.png").mkdir()
    for image, out, said in (
        (tmp_path / "wide.png", "a.webp", "a.webp cannot be written: 18000x2 pixels: .*16383.*: choose .png or .tif"),
        (tmp_path / "wide.png", "folder.png", "folder.png cannot be written: something else"),
        (tmp_path / "wide.png", "a.gif", r"--out a.gif: pictures are written as .png, .*\.tif"),
        (odd, "a.png", "--out a.png: 9 images need a folder"),
    ):
        assert re.search(said, zoo("run", sharper, image, "--out", out, check=2, cwd=tmp_path).stderr)
    zoo("run", sharper, tmp_path / "wide.png", "--out", "no/such/folder.tif", cwd=tmp_path)
    with Image.open(tmp_path / "no/such/folder.tif") as image:
        assert image.size == (18000, 2)
    refused = zoo("run", sharper, tmp_path / "wide.png", "--mask", "none.png", check=2)
    assert "srresnet fills no holes: leave out --mask" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "no", "wide.png"]


def on_a_terminal(*arguments: object) -> tuple[str, str]:
    """Standard output, and what a terminal is given on standard error."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "zoo", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        assert process.stdout is not None
        out, said = process.stdout.read(), b""
        with contextlib.suppress(OSError):  # what a terminal says at its end
            while block := os.read(ours, 4096):
                said += block
    os.close(ours)
    return out, said.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_bar_counts_tiles_and_images_on_a_terminal_alone(zoo: Run, bundles: Path, tmp_path: Path) -> None:
    """Also: a mask goes with tiles."""
    painter = made(
        zoo, bundles, "inpaint-partial", "--option", "width=8", "--option", "depth=2", "--size", "32", "--precision", "fp32,int8"
    )  # fmt: skip
    hole = np.zeros((61, 83), np.uint8)
    hole[20:40, 30:60] = 255
    pixels = natural_images(1, 61, 83, 3, seed=1)[0]
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(np.dstack((pixels, 255 - hole))[:30, 20:50]).save(tmp_path / "small.png")
    Image.fromarray(hole).save(tmp_path / "hole.png")
    one = ("run", painter, tmp_path / "photo.png", "--mask", tmp_path / "hole.png", "--overlap", 16)
    out, said = on_a_terminal(*one)
    assert "83 x 61 pixels" in out
    shares = [int(share) for share in re.findall(r"running  \[.*?(\d+)%", said)]
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert on_a_terminal(*one, "--json")[1] == ""
    assert zoo(*one).stderr == ""
    assert on_a_terminal("run", painter, tmp_path / "small.png")[1] == "", "one tile takes no time"
    said = on_a_terminal("run", painter, tmp_path / "small.png", tmp_path / "photo.png", "--threads", 1)[1]
    assert re.search(r"\r\x1b\[Kzoo: error: \S*photo.png has no hole[^\r]*\r\n", said), "over the bar, not behind it"
    assert "100%" in said


def test_json_names_every_file(zoo: Run, bundles: Path, tmp_path: Path) -> None:
    sharper = made(zoo, bundles, "srresnet", *SMALL)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(natural_images(1, 20, 24)[0]).save(tmp_path / folder / "same.png")
    out = tmp_path / "out"
    lines = zoo("run", sharper, tmp_path / "a", tmp_path / "b", "--out", out, "--json").stdout.splitlines()
    files = [json.loads(line)["file"] for line in lines]
    assert files == [str(out / "same.png"), str(out / "same-2.png")]
    assert sorted(files) == sorted(str(path) for path in out.iterdir())


def test_holes_that_are_none(zoo: Run, bundles: Path, tmp_path: Path) -> None:
    painter = made(
        zoo, bundles, "inpaint-partial", "--option", "width=8", "--option", "depth=2", "--size", "32", "--precision", "fp32,int8"
    )  # fmt: skip
    model = load(painter)
    photo = natural_images(1, 40, 40, 3)[0]
    with pytest.raises(ImageError, match="the image has no hole: give a mask"):
        model(photo)
    with pytest.raises(ImageError, match="the mask has 20x40 pixels, the image 40x40"):
        model(photo, mask=np.zeros((40, 20), np.uint8))
    with pytest.raises(BundleError, match="makes no images of random numbers"):
        model.generate(1)


def test_one_image_with_the_answer_drawn_on_it_is_a_file(zoo: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(natural_images(1, 40, 53, 3)[0]).save(tmp_path / "photo.png")
    zoo("run", tiny_bundle, tmp_path / "photo.png", "--out", tmp_path / "drawn.jpg")
    with Image.open(tmp_path / "drawn.jpg") as image:
        assert image.format == "JPEG"
