"""The registry with broken plugins: each is left out or trimmed, said so, and never takes a command down."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zoo.discovery import find_entry_points
from zoo.errors import MissingPart, PluginError, UnknownName
from zoo.hookspecs import GROUP, hookimpl
from zoo.registry import Registry
from zoo.specs import Architecture, Exporter, ImageInput, Precision, Runtime, Spec, Task, absent

INPUT = ImageInput(height=8, width=8)


def architecture(name: str, **fields: Any) -> Architecture:
    return Architecture(
        name=name, summary="A network", load="math:sqrt", task="classify", input=INPUT, head="head", **fields
    )


def module(*specs: object, **hooks: Any) -> ModuleType:
    found = ModuleType("plugin")

    @hookimpl
    def zoo_register() -> Iterator[Any]:
        return iter(specs)

    found.zoo_register = zoo_register
    for name, hook in hooks.items():
        setattr(found, name, hook)
    return found


@pytest.fixture
def registry() -> Registry:
    return Registry(discover=False)


def test_the_core_comes_through_the_same_door(registry: Registry) -> None:
    (core,) = registry.plugins
    assert core.distribution == "edgezoo"
    assert not core.error
    assert registry.get(Task, "classify").outputs == ("logits", "scores")


def test_names_and_short_names(registry: Registry) -> None:
    plugin = registry.add(
        "one", module(architecture("bignet", aliases=("big",)), architecture("smallnet")), "dist", "2.0"
    )
    assert not plugin.error
    assert registry.get(Architecture, "big").name == registry.get(Architecture, "bignet").name == "bignet"
    assert registry.owner(Architecture, "bignet").owner == "dist 2.0"
    assert [a.name for a in registry.architectures("net")] == ["bignet", "smallnet"]
    assert [a.name for a in registry.architectures("s*")] == ["smallnet"]
    assert [a.name for a in registry.architectures("BIG")] == ["bignet"]
    assert not list(registry.architectures(task="segment"))


def test_a_misspelt_name_gets_the_nearest(registry: Registry) -> None:
    registry.add("one", module(architecture("resnet50", aliases=("resnet",)), architecture("vgg16")))
    with pytest.raises(UnknownName, match=r"unknown architecture 'resnt50': did you mean resnet50"):
        registry.get(Architecture, "resnt50")
    with pytest.raises(UnknownName, match="unknown task 'clasify': did you mean classify"):
        registry.get(Task, "clasify")


def test_a_duplicate_name_names_both_owners(registry: Registry) -> None:
    registry.add("one", module(architecture("net", aliases=("n",))), "first", "1.0")
    second = registry.add("two", module(architecture("net"), architecture("other", aliases=("n",))), "second", "3.1")
    assert "architecture 'net' is already registered by first 1.0" in second.error
    assert "alias 'n' of 'other' is already taken by first 1.0" in second.error
    assert registry.owner(Architecture, "net").distribution == "first"
    assert registry.get(Architecture, "other")  # the rest of the plugin works


def test_what_is_no_record_is_refused_and_the_rest_kept(registry: Registry) -> None:
    plugin = registry.add("odd", module("resnet", architecture("net"), Spec(name="x", summary="", load="a:b")))
    assert "'resnet', which is not a spec record" in plugin.error
    assert plugin.error.count("not a spec record") == 2
    assert registry.get(Architecture, "net")


@pytest.mark.parametrize(
    "error", [RuntimeError("no licence"), SystemExit(3), MissingPart("torch", "pip install torch")]
)
def test_a_plugin_that_raises(registry: Registry, error: BaseException) -> None:
    broken = ModuleType("broken")

    @hookimpl
    def zoo_register() -> None:
        raise error

    broken.zoo_register = zoo_register
    plugin = registry.add("broken", broken)
    assert str(error) in plugin.error
    after = registry.add("after", module(architecture("net")))
    assert not after.error
    assert registry.get(Architecture, "net")


def test_a_generator_that_raises_midway(registry: Registry) -> None:
    broken = ModuleType("broken")

    @hookimpl
    def zoo_register() -> Iterator[Spec]:
        yield architecture("net")
        raise ValueError("half way")

    broken.zoo_register = zoo_register
    assert "half way" in registry.add("broken", broken).error
    assert "net" not in registry.names(Architecture)


def test_an_unknown_hook_is_an_error_of_its_own_plugin_alone(registry: Registry) -> None:
    @hookimpl
    def zoo_regsiter() -> None:
        return None

    plugin = registry.add("typo", module(architecture("lost"), zoo_regsiter=zoo_regsiter))
    assert "zoo_regsiter" in plugin.error
    after = registry.add("after", module(architecture("net")))
    assert not after.error, "a later plugin is blamed"
    assert "lost" not in registry.names(Architecture)


def test_a_hook_with_an_argument_that_does_not_exist(registry: Registry) -> None:
    @hookimpl
    def zoo_open_weights(url: str) -> None:
        return None

    assert "url" in registry.add("typo", module(zoo_open_weights=zoo_open_weights)).error
    assert not registry.add("after", module(architecture("net"))).error


def test_ctrl_c_is_not_swallowed(registry: Registry) -> None:
    broken = ModuleType("broken")

    @hookimpl
    def zoo_register() -> None:
        raise KeyboardInterrupt

    broken.zoo_register = zoo_register
    with pytest.raises(KeyboardInterrupt):
        registry.add("broken", broken)


def test_import_errors_reach_zoo_plugins_and_every_command_lives(tmp_path: Path) -> None:
    """Through real entry points, as `pip install` would leave them, in a process of its own."""
    plugins = {
        "gone": ("no_such_module_anywhere.plugin", None),
        "syntax": ("zoo_test_syntax", "def broken(:\n"),
        "exits": ("zoo_test_exits", "raise SystemExit('bye')\n"),
        "raises": (
            "zoo_test_raises",
            "from zoo import hookimpl\n@hookimpl\ndef zoo_register():\n    raise RuntimeError('no licence')\n",
        ),
        "unknown": ("zoo_test_unknown", "from zoo import hookimpl\n@hookimpl\ndef zoo_traain():\n    pass\n"),
        "twice": (
            "zoo_test_twice",
            "from zoo import Architecture, ImageInput, hookimpl\n@hookimpl\ndef zoo_register():\n"
            "    yield Architecture(name='lenet5', summary='s', load='a:b', task='classify', head='h',\n"
            "                       input=ImageInput(height=8, width=8))\n",
        ),
    }
    for name, (value, source) in plugins.items():
        if source is not None:
            (tmp_path / f"{value}.py").write_text(source)
        info = tmp_path / f"zoo_test_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: zoo-test-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[zoo]\nx-{name} = {value}\n")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        code = f"import sys\nsys.path.append({str(tmp_path)!r})\nfrom zoo.cli import main\nmain({list(words)!r})"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    done = run("plugins")
    assert done.returncode == 0, done.stderr
    for name, reason in {
        "gone": "No module named 'no_such_module_anywhere'",
        "syntax": "SyntaxError",
        "exits": "SystemExit: bye",
        "raises": "no licence",
        "unknown": "zoo_traain",
        "twice": "'lenet5' is already registered by zoo-classic",
    }.items():
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"x-{name}: "))
        assert reason in line, line
    assert run("show", "lenet5").returncode == 0
    assert run("list", "lenet").returncode == 0
    assert run("--help").returncode == 0


def test_entry_points_are_those_of_the_standard_library() -> None:
    import importlib.metadata

    theirs = {
        (e.name, e.value, e.dist.name, e.dist.version) for e in importlib.metadata.entry_points(group=GROUP) if e.dist
    }
    ours = {(e.name, e.value, e.distribution, e.version) for e in find_entry_points(GROUP)}
    assert ours == theirs
    assert {name for name, *_ in ours} >= {"classic", "timm", "export"}


# -- chains, precisions, runtimes ----------------------------------------------------------------------------------


def exporter(reads: str, writes: str, requires: tuple[str, ...] = ()) -> Exporter:
    return Exporter(name=f"{reads}-{writes}", summary="", load="a:b", reads=reads, writes=writes, requires=requires)


def test_the_chain_is_the_shortest_that_works(registry: Registry) -> None:
    registry.add(
        "one",
        module(exporter("torch", "onnx"), exporter("onnx", "engine"), exporter("onnx", "ir"), exporter("ir", "engine")),
    )
    assert [e.name for e in registry.chain("torch", "engine")] == ["torch-onnx", "onnx-engine"]
    assert registry.chain("onnx", "onnx") == []


def test_a_chain_broken_by_an_absent_package_says_which(registry: Registry) -> None:
    registry.add("one", module(exporter("torch", "onnx"), exporter("onnx", "engine", ("no_such_compiler",))))
    with pytest.raises(
        MissingPart, match="no_such_compiler, which exporter 'onnx-engine' needs, is not installed: pip install"
    ):
        registry.chain("torch", "engine")
    with pytest.raises(UnknownName, match="unknown export target 'onyx': did you mean onnx"):
        registry.chain("torch", "onyx")


def test_no_exporter_at_all(registry: Registry) -> None:
    with pytest.raises(MissingPart, match=r"edgezoo\[export\]"):
        registry.chain("torch", "onnx")


def test_precisions_and_runtimes(registry: Registry) -> None:
    registry.add(
        "one",
        module(
            Precision(name="int8", summary="", load="a:b", precision="int8", reads="onnx"),
            Runtime(name="fast", summary="", load="a:b", reads=("onnx",), requires=("no_such_runtime",), priority=99),
        ),
    )
    assert registry.precision("int8", "onnx").name == "int8"
    with pytest.raises(UnknownName, match="did you mean int8"):
        registry.precision("int4", "onnx")
    best = registry.runtimes("onnx")
    assert [r.name for r in best] == ["fast", "onnxruntime-cuda", "onnxruntime"]
    assert absent(best[0]) == ["no_such_runtime"]


def test_weights_are_asked_of_every_plugin(registry: Registry, tmp_path: Path) -> None:
    @hookimpl
    def zoo_open_weights(uri: str, cache: Path) -> Path | None:
        return cache / "w.safetensors" if uri.startswith("mine:") else None

    registry.add("one", module(zoo_open_weights=zoo_open_weights))
    assert registry.open_weights("mine:x", tmp_path) == tmp_path / "w.safetensors"
    from zoo.errors import CheckpointError

    with pytest.raises(CheckpointError, match="no plugin can open weights 'yours:x'"):
        registry.open_weights("yours:x", tmp_path)


def test_findings_of_every_plugin_are_collected(registry: Registry) -> None:
    from zoo.parity import Finding

    @hookimpl
    def zoo_verify(candidate: object, reference: object, samples: object) -> list[Finding]:
        return [Finding(gate="size", verdict="fail", message="too big")]

    core = registry._manager.get_plugin("zoo")
    registry._manager.unregister(core)
    registry.add("one", module(zoo_verify=zoo_verify))
    (finding,) = registry.verify(None, None, None)  # type: ignore[arg-type]
    assert (finding.gate, bool(finding)) == ("size", False)


def test_a_load_path_that_is_wrong_blames_its_owner() -> None:
    def load(path: str) -> Any:
        return Task(name="t", summary="", load=path, outputs=(), tolerances={}, trainer="").resolve()

    with pytest.raises(PluginError, match=r"not of the form package\.module:attribute"):
        load("math.sqrt")
    with pytest.raises(PluginError, match="has no attribute 'sqroot'"):
        load("math:sqroot")
    with pytest.raises(PluginError, match=r"there is no module zoo\.tasks\.clasify"):
        load("zoo.tasks.clasify:Classify")
    assert load("math:sqrt")(4) == 2
