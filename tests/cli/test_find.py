"""`zoo list`, `show`, `plugins`: right, quick to answer, and without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from zoo.registry import Registry
from zoo.specs import Architecture


@pytest.mark.parametrize(
    "line",
    [["--help"], ["list"], ["list", "--json"], ["show", "resnet"], ["plugins"], ["doctor"], ["doctor", "--json"]],
)
def test_nothing_heavy_is_imported(line: list[str]) -> None:
    code = (
        f"import sys\nfrom zoo.cli import execute\nassert execute({line!r}) == 0\n"
        "heavy = {'torch', 'torchvision', 'timm', 'lightning', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'matplotlib', 'sklearn'}\n"
        "print('LOADED', *sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "LOADED"


def test_list_shows_all_and_finds_by_word_glob_and_short_name(zoo) -> None:
    lines = zoo("list").stdout.splitlines()
    assert len(lines) == 2 + len(Registry().names(Architecture)) > 1000
    assert [a["name"] for a in json.loads(zoo("list", "lenet5", "--json").stdout)] == ["lenet5"]
    assert "lenet5" in [a["name"] for a in json.loads(zoo("list", "lenet", "--json").stdout)]
    glob = [a["name"] for a in json.loads(zoo("list", "mobilenetv2_*", "--json").stdout)]
    assert "mobilenetv2_100" in glob
    assert all(n.startswith("mobilenetv2_") for n in glob)
    inception = [a["name"] for a in json.loads(zoo("list", "INCEPTION", "--json").stdout)]
    assert "inception_v3" in inception


def test_list_refuses_what_is_not_there(zoo) -> None:
    done = zoo("list", "resnt50", check=2)
    assert "did you mean resnet50" in done.stderr
    assert done.stdout == ""
    assert "unknown task 'clasify': did you mean classify?" in zoo("list", "--task", "clasify", check=2).stderr


def test_show_says_everything(zoo) -> None:
    out = zoo("show", "resnet").stdout
    for word in (
        "resnet means resnet50",
        "25,557,032",
        "4.09",
        "3x224x224",
        "bicubic",
        "arxiv.org/abs/1512.03385",
        "zoo-timm",
        "a1_in1k",
        "apache-2.0",
    ):
        assert word in out, word
    data = json.loads(zoo("show", "resnet", "--json").stdout)
    assert data["name"] == "resnet50"
    assert data["parameters"] == 25_557_032
    assert data["weights"][0]["input"]["height"] == 224
    assert "61,706" in zoo("show", "lenet").stdout


@pytest.mark.parametrize(("name", "drawn"), [("dcgan", "N(0, 1)"), ("dcgan-conditional", "N(0, 1), and a class")])
def test_show_says_what_a_generator_makes(zoo, name: str, drawn: str) -> None:
    lines = zoo("show", name).stdout.splitlines()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line}
    assert rows["input"] == f"100 latents, drawn from {drawn}"
    assert rows["makes"].startswith("3x32x32 RGB")
    assert rows["GMACs"].endswith("for one image of 3x32x32")
    assert "values" not in rows and max(map(len, lines)) < 120
    data = json.loads(zoo("show", name, "--json").stdout)
    assert (data["makes"]["height"], data["makes"]["color"], data["input"]["channels"]) == (32, "RGB", 100)
    assert json.loads(zoo("show", "resnet", "--json").stdout)["makes"] is None


def test_show_names_the_nearest(zoo) -> None:
    assert "mobilenetv2_100 or" in zoo("show", "mobilenetv2_10O", check=2).stderr


def test_plugins(zoo) -> None:
    found = {p["name"]: p for p in json.loads(zoo("plugins", "--json").stdout)}
    assert {"zoo", "classic", "timm", "export"} <= set(found)
    assert found["classic"]["brings"] == {"architecture": 1}
    assert all(p["error"] is None for p in found.values())


def test_blocked_plugins_are_shown_as_such(zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_BLOCK_PLUGINS", "timm")
    out = zoo("plugins").stdout
    assert "timm: blocked by ZOO_BLOCK_PLUGINS" in out
    assert zoo("show", "lenet5").returncode == 0
    assert "unknown architecture 'resnet50'" in zoo("show", "resnet50", check=2).stderr
