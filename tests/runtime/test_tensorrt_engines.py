"""Where engines come from: bundle, cache, builder; what makes one unfit; and that none is used unproved.

On the fake TensorRT, with builds in this process unless a test is about processes.
"""

from __future__ import annotations

import enum
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from zoo.errors import BundleError, ExportError, MissingPart, OutputError
from zoo.files import sha256_file
from zoo.runtime.ort import open_session
from zoo.runtime.tensorrt import api, building, engines
from zoo.runtime.tensorrt.cuda import Device, DeviceError
from zoo.runtime.tensorrt.engines import Obtained, Recipe, cache_key, engine_folder, obtain
from zoo.runtime.tensorrt.session import TensorRTSession

PROFILES = {"image": [[1, 3, 16, 16], [2, 3, 16, 16], [4, 3, 16, 16]]}
F = TensorProto.FLOAT


def conv(kind: int = F) -> bytes:
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3))
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["y"], name="conv")],
        "conv",
        [helper.make_tensor_value_info("image", kind, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(weight.astype(dtype), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()  # type: ignore[no-any-return]


MODEL = conv()
RECIPE = Recipe(profiles=PROFILES)
IMAGES = np.random.default_rng(1).normal(size=(3, 3, 16, 16)).astype(np.float32)
EXPECTED = open_session(MODEL, threads=1).run(IMAGES)["y"]


def right(session: TensorRTSession) -> str:
    """The check that a bundle's golden vectors are."""
    return "" if np.allclose(session.run(IMAGES)["y"], EXPECTED, atol=1e-4) else "it computes something else"


class Builds:
    """How often an engine was built."""

    count = 0


@pytest.fixture
def builds(fake_tensorrt: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Builds:
    """The fake, an empty cache, and builds in this process, which are quick and counted."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    counted = Builds()

    def converse(request: dict[str, Any], model: bytes, tell: Callable[[str], None]) -> dict[str, Any]:
        counted.count += 1
        return building._build(request, model, lambda **_: None)

    monkeypatch.setattr(building, "_converse", converse)
    return counted


def get(**options: Any) -> Obtained:
    given = {"model": MODEL, "recipe": RECIPE, "check": right, **options}
    return obtain(given.pop("model"), given.pop("recipe"), api.need("tensorrt"), Device(), **given)


def works(found: Obtained) -> bool:
    with found.session:
        return right(found.session) == ""


def cached(suffix: str) -> Path:
    (path,) = engine_folder().glob(f"*{suffix}")
    return path


def facts() -> dict[str, Any]:
    (path,) = (p for p in engine_folder().glob("*.json") if not p.name.endswith(".bundled.json"))
    return json.loads(path.read_text())  # type: ignore[no-any-return]


# -- the cache


def test_an_engine_is_built_once_and_then_found(builds: Builds, tmp_path: Path) -> None:
    told: list[str] = []
    first = get(progress=told.append)
    assert (first.origin, builds.count) == ("built", 1)
    assert first.path == cached(".engine")
    assert first.facts["seconds"] >= 0
    assert works(first)
    second = get(progress=told.append)
    assert (second.origin, builds.count) == ("cache", 1)
    assert works(second)
    assert second.told == ()
    known = facts()
    assert known["checked"] is True
    assert known["sha256"] == sha256_file(cached(".engine"))
    assert known["layer_counts"] == {"fp32": 1}
    file = tmp_path / "model.onnx"
    file.write_bytes(MODEL)
    assert get(model=file).origin == "cache", "a file is the same as its bytes"


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("version", lambda m: _version(m, "10.4.0")),
        ("gpu", lambda m: m.setenv("FAKE_GPU_NAME", "Another GPU")),
        ("driver", lambda m: m.setenv("FAKE_CUDA_VERSION", "13000")),
        ("profiles", {"recipe": Recipe(profiles={"image": [[1, 3, 16, 16]] * 3})}),
        ("flags", {"recipe": Recipe(profiles=PROFILES, flags={"tf32": True})}),
        ("workspace bytes", {"recipe": Recipe(profiles=PROFILES, workspace_bytes=1 << 20)}),
    ],
)
def test_whatever_an_engine_depends_on_makes_another(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, what: str, change: Any
) -> None:
    assert works(get())
    options = change if isinstance(change, dict) else {}
    if callable(change):
        change(monkeypatch)
    other = get(check=None, **options)
    assert (other.origin, builds.count) == ("built", 2)
    assert other.told[0].startswith(f"the cached engine is not for here: its {what} is ")
    other.session.close()
    assert len(list(engine_folder().glob("*.engine"))) == 2


def _version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", version)
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr(api, "_found", {})


def test_another_graph_is_another_engine_and_nobody_is_told(builds: Builds) -> None:
    get().session.close()
    half = get(model=conv(TensorProto.FLOAT16), check=None, precision="fp16")
    assert (half.origin, builds.count) == ("built", 2)
    assert half.told == ()
    half.session.close()


def test_the_key_says_everything_and_no_engine_bytes(builds: Builds) -> None:
    key, parts = cache_key("0" * 64, api.need("tensorrt"), Device(), RECIPE)
    assert parts == {
        "model": "0" * 64,
        "flavour": "tensorrt",
        "version": "10.3.0",
        "gpu": "Fake GPU",
        "compute_capability": "8.7",
        "driver": Device().driver_version,
        "profiles": PROFILES,
        "flags": {},
        "workspace_bytes": None,
    }
    assert key == cache_key("0" * 64, api.need("tensorrt"), Device(), RECIPE)[0]
    assert key != cache_key("1" + "0" * 63, api.need("tensorrt"), Device(), RECIPE)[0]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-10]), "is damaged"),
        (lambda p: p.write_bytes(b""), "is damaged"),
        (lambda p: p.unlink(), "cannot be read"),
    ],
)
def test_a_damaged_engine_is_built_anew(builds: Builds, damage: Callable[[Path], Any], says: str) -> None:
    get().session.close()
    damage(cached(".engine"))
    found = get()
    assert (found.origin, builds.count) == ("built", 2)
    assert "the cached engine is built anew: " in found.told[0]
    assert says in found.told[0]
    assert works(found)
    assert get().origin == "cache"


def test_an_engine_that_no_longer_loads_is_built_anew(builds: Builds) -> None:
    """As after an upgrade that the key does not show: the file is whole, and the library refuses it."""
    get().session.close()
    engine = cached(".engine")
    engine.write_bytes(engine.read_bytes().replace(b'"10.3.0"', b'"10.3.9"'))
    path = next(p for p in engine_folder().glob("*.json"))
    path.write_text(json.dumps({**facts(), "sha256": sha256_file(engine)}))
    found = get()
    assert (found.origin, builds.count) == ("built", 2)
    assert "is of version 10.3.9, this is 10.3.0" in found.told[0]
    assert works(found)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"sha256": 3}'])
def test_rubbish_in_place_of_the_facts_is_built_anew(builds: Builds, text: str) -> None:
    get().session.close()
    next(engine_folder().glob("*.json")).write_text(text)
    found = get()
    assert builds.count == 2
    assert works(found)


def test_force_builds_anew(builds: Builds) -> None:
    get().session.close()
    assert get(force=True).origin == "built"
    assert builds.count == 2


# -- the check


def test_a_new_engine_that_computes_something_else_is_not_used(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "wrong")
    with pytest.raises(
        ExportError, match=r"the engine that TensorRT 10\.3\.0 built on Fake GPU is not used: it computes"
    ):
        get()
    assert list(engine_folder().glob("*engine")) == []
    monkeypatch.setenv("FAKE_TENSORRT", "")
    with pytest.raises(
        ExportError, match="failed on Fake GPU: it computes something else: `zoo build --force` tries again"
    ):
        get()
    assert builds.count == 1, "a program that starts again does not take minutes to find it out again"
    assert works(get(force=True))
    assert get().origin == "cache"


def test_the_old_engine_stays_where_the_new_one_fails(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    get().session.close()
    before, known = cached(".engine").read_bytes(), facts()
    monkeypatch.setenv("FAKE_TENSORRT", "wrong")
    with pytest.raises(ExportError, match="is not used: it computes something else: the one before stays"):
        get(force=True)
    assert cached(".engine").read_bytes() == before
    assert facts() == known
    found = get()
    assert found.origin == "cache"
    assert works(found)


def test_a_rebuilt_engine_that_fails_is_remembered(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    get().session.close()
    cached(".engine").write_bytes(b"damaged")
    monkeypatch.setenv("FAKE_TENSORRT", "wrong")
    for _ in range(2):
        with pytest.raises(ExportError, match="it computes something else"):
            get()
    assert builds.count == 2


def test_a_failed_build_leaves_the_old_engine(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    get().session.close()
    before = cached(".engine").read_bytes()
    monkeypatch.setenv("FAKE_TENSORRT", "full")
    with pytest.raises(ExportError, match="OutOfMemory"):
        get(force=True)
    assert cached(".engine").read_bytes() == before
    assert get().origin == "cache"


def test_an_engine_that_nobody_checked_is_checked_when_somebody_can(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "wrong")
    get(check=None).session.close()
    assert facts()["checked"] is False
    for _ in range(2):
        with pytest.raises(ExportError, match="it computes something else"):
            get()
    asked: list[object] = []
    monkeypatch.setenv("FAKE_TENSORRT", "")
    get(force=True, check=None).session.close()
    for _ in range(2):
        get(check=lambda session: asked.append(session) or "").session.close()  # type: ignore[func-returns-value]
    assert len(asked) == 1, "and once is enough"


def test_a_silent_downgrade_is_no_engine(builds: Builds) -> None:
    """The graph is fp32, and the builder was asked for an engine of an int8 graph: what a library that drops Q/DQ gives."""
    with pytest.raises(ExportError, match=r"it computes no layer in int8, which the graph is written in \(1 in fp32\)"):
        get(precision="int8")
    assert works(get(precision="fp32", force=True))


def test_nothing_is_left_on_the_gpu_by_engines_that_failed(
    fake_tensorrt: Any, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fake_tensorrt.live()
    monkeypatch.setenv("FAKE_TENSORRT", "wrong")
    for _ in range(3):
        with pytest.raises(ExportError):
            get(force=True)
    live = fake_tensorrt.live()
    assert live.get("device memory", 0) == before.get("device memory", 0)


# -- engines of the bundle


def bundled(tmp_path: Path, **changed: Any) -> dict[str, Any]:
    """An engine as export leaves it in a bundle."""
    out = tmp_path / "model.engine"
    known = building.build_engine("tensorrt", MODEL, out, profiles=PROFILES)
    entry = {**known, "file": out.name, **changed}
    return {"recipe": Recipe(profiles=PROFILES, engines=(entry,)), "engines": [out]}


def test_the_bundles_engine_is_used_where_it_fits(builds: Builds, tmp_path: Path) -> None:
    given = bundled(tmp_path)
    asked: list[str] = []

    def check(session: TensorRTSession) -> str:
        asked.append(right(session))
        return asked[-1]

    for _ in range(2):
        found = get(**given, check=check)
        assert (found.origin, found.path, builds.count) == ("bundle", tmp_path / "model.engine", 1)
        assert works(found)
    assert asked == [""], "it is proved once on each machine"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"version": "10.2.0"}, "it is of version 10.2.0, this is TensorRT 10.3.0"),
        ({"gpu": "Orin"}, "it is for Orin, this is Fake GPU"),
        ({"flavour": "tensorrt-rtx"}, "it is of TensorRT-RTX, this is TensorRT 10.3.0"),
    ],
)
def test_a_bundles_engine_for_another_place_is_not_even_read(
    builds: Builds, tmp_path: Path, changed: dict[str, str], says: str
) -> None:
    given = bundled(tmp_path, **changed)

    def read() -> Path:
        raise AssertionError("it was read")

    found = get(**{**given, "engines": [read]})
    assert found.origin == "built"
    assert says in found.told[0]
    found.session.close()


def test_a_bundles_engine_that_does_not_load_or_fails_gives_way(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = bundled(tmp_path)
    (tmp_path / "model.engine").write_bytes(b"damaged")
    told: list[str] = []
    found = get(**given, progress=told.append)
    assert found.origin == "built"
    assert "the bundle's engine model.engine is not used: model.engine does not load" in told[0]
    found.session.close()
    again = get(**{**given, "engines": [lambda: (_ for _ in ()).throw(AssertionError("it was read again"))]})
    assert again.origin == "cache"
    assert "is not used: model.engine does not load" in again.told[0]
    again.session.close()
    monkeypatch.setenv("FAKE_TENSORRT", "wrong")
    given = bundled(tmp_path)
    monkeypatch.setenv("FAKE_TENSORRT", "")
    found = get(**given)
    assert found.origin == "cache"
    assert "is not used: it computes something else" in found.told[0]
    found.session.close()


def test_a_bundle_that_was_altered_is_refused_by_its_own_proof(builds: Builds, tmp_path: Path) -> None:
    given = bundled(tmp_path)

    def altered() -> Path:
        raise BundleError("model.engine was altered")

    found = get(**{**given, "engines": [altered]})
    assert "was altered" in found.told[0]
    assert found.origin == "built"
    found.session.close()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        ({"profiles": []}, "profiles is not an object"),
        ({"profiles": {"image": [[1, 3], [1, 3]]}}, "profile of image is not three shapes of whole numbers"),
        ({"profiles": {"image": [[1, 3], [1, 3], [1, "3"]]}}, "not three shapes"),
        ({"profiles": {"image": [[1, 3], [1, 3], [1, -3]]}}, "not three shapes"),
        ({"profiles": {"image": [[1, 3], [1, 3], [1, True]]}}, "not three shapes"),
        ({"profiles": {"image": [[1, 3], [1, 3], [1, 3, 3]]}}, "shapes of different ranks"),
        ({"flags": {"tf32": "yes"}}, "flags are not true or false"),
        ({"workspace_bytes": "1G"}, "workspace_bytes is no size"),
        ({"engines": ["x"]}, "engines is not a list of objects"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_one_line(build: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleError, match=f"manifest: build: .*{says}.*: export the bundle again"):
        Recipe.from_build(build)
    assert Recipe.from_build({}).profiles == {}


# -- several at once


def test_threads_build_once(builds: Builds) -> None:
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(get())
        except BaseException as error:
            found.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert builds.count == 1
    assert sorted(x.origin for x in found) == ["built", "cache", "cache", "cache"]
    assert all(works(x) for x in found)


def test_processes_build_once(fake_tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.onnx").write_bytes(MODEL)
    code = (
        "import sys; from pathlib import Path; from zoo.runtime.tensorrt import api, engines, cuda\n"
        f"recipe = engines.Recipe(profiles={PROFILES!r})\n"
        "found = engines.obtain(Path(sys.argv[1]), recipe, api.need('tensorrt'), cuda.Device(), progress=print)\n"
        "print('origin', found.origin)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(text.strip().splitlines()[-1] for text in said) == ["origin built", "origin cache"]
    assert sum("builds the engine" in text for text in said) == 1


def test_what_a_killed_builder_left_is_cleared_away(builds: Builds) -> None:
    get().session.close()
    engine = cached(".engine")
    left = engine.with_name(f".{engine.name}.99999.new")
    left.write_bytes(b"half")
    get(force=True).session.close()
    assert not left.exists()
    assert engine.exists()


def test_a_cache_that_cannot_be_written_is_named_with_the_cure(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = bundled(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        OutputError, match=r"engines cannot be kept in .*engines \(.*\): set ZOO_CACHE to a folder that"
    ):
        get()
    assert get(**given).origin == "bundle", "what the bundle brings needs no cache"


# -- as a runtime


def test_the_opener_takes_what_a_manifest_tells(builds: Builds) -> None:
    build = {"profiles": PROFILES, "flags": {"tf32": False}, "workspace_bytes": None, "engines": []}
    with engines.open_tensorrt(MODEL, recipe=build, threads=3, check=right) as session:
        assert right(session) == ""
        assert session.obtained.origin == "built"
    with pytest.raises(BundleError, match="profiles is not an object"):
        engines.open_tensorrt(MODEL, recipe={"profiles": 3})


def test_why_it_does_not_run_here(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.probe_tensorrt() == ""
    monkeypatch.delattr(api.need("tensorrt").trt.IExecutionContext, "execute_async_v3")
    assert "is older than 8.6" in engines.probe_tensorrt()
    monkeypatch.setenv("FAKE_GPU_COUNT", "0")
    assert engines.probe_tensorrt() == "the NVIDIA driver sees no GPU"
    with pytest.raises(DeviceError, match="sees no GPU"):
        engines.open_tensorrt(MODEL)
    monkeypatch.setenv("FAKE_GPU_COUNT", "1")
    monkeypatch.setattr(api, "MODULES", {"tensorrt": "no_such_module", "tensorrt-rtx": "no_such_module"})
    monkeypatch.setattr(api, "_found", {})
    assert engines.probe_tensorrt().startswith("TensorRT is not installed: pip install tensorrt")
    with pytest.raises(MissingPart, match="TensorRT-RTX is not installed"):
        engines.open_rtx(MODEL)


def test_rtx_is_for_rtx_gpus(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MODULES", {"tensorrt-rtx": "tensorrt"})
    assert "is for RTX GPUs of Turing and newer, not for Fake GPU" in engines.probe_rtx(), "the fake is a Jetson"


def test_a_library_that_decides_types_by_flags_is_given_float32_alone(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT 8.6 would build fp32 where the graph says fp16, and say nothing."""
    flags = enum.IntEnum("Flags", {"EXPLICIT_BATCH": 0})
    monkeypatch.setattr(api.need("tensorrt").trt, "NetworkDefinitionCreationFlag", flags)
    with pytest.raises(ExportError, match=r"fp16.*TensorRT 10 or newer"):
        get(precision="fp16")
    assert builds.count == 0
    assert works(get(precision="fp32"))
