"""Which runtime opens an artefact, why others did not, and what happens where the best one cannot after all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo.runtime
from zoo import builtin, lookup
from zoo.errors import BundleError, ExportError, MissingPart
from zoo.parity.evidence import natural_images, stand_in
from zoo.parity.golden import selftest
from zoo.runtime import ort
from zoo.runtime.choosing import Choice, choose
from zoo.runtime.tensorrt import cuda
from zoo.specs import Runtime

ORDER = ["tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-cuda", "onnxruntime"]


def names(format: str) -> list[str]:
    return [spec.name for spec in lookup.runtimes_for(format)]


def never() -> str:
    """No runtime behind the one that is taken is asked: it may take long."""
    pytest.fail("it was asked")


def refuses() -> str:
    return "it does not feel like it"


def breaks() -> str:
    raise OSError("libfar.so: cannot open shared object file\nand more")


def runtime(name: str, **more: Any) -> Runtime:
    return Runtime(**{"name": name, "summary": "-", "load": f"{__name__}:open", "reads": ("far",), **more})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers runtimes in place of the core's, whose probes are functions of this module."""
    module = type(sys)("zoo_test_probes")
    module.never, module.refuses, module.breaks = never, refuses, breaks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def register(*specs: Runtime) -> None:
        monkeypatch.setattr(lookup, "SPECS", specs)

    return register


# -- choosing


def test_the_order_of_the_core() -> None:
    assert names("tensorrt") == ORDER
    assert names("onnx") == ["onnxruntime-cuda", "onnxruntime"]


def test_the_first_that_works_is_taken_and_the_others_have_reasons(here: Any) -> None:
    here(
        runtime("five", priority=5, requires=("no_such_package",), install="pip install five"),
        runtime("four", priority=4, probe="zoo_test_probes:refuses"),
        runtime("three", priority=3, probe="zoo_test_probes:breaks"),
        runtime("two", priority=2),
        runtime("one", priority=1, probe="zoo_test_probes:never"),
    )
    choice = choose("far")
    assert choice.runtime.name == "two"
    assert choice.lost == {
        "five": "no_such_package, which runtime 'five' needs, is not installed: pip install five",
        "four": "it does not feel like it",
        "three": "OSError: libfar.so: cannot open shared object file",
    }
    assert str(choice).startswith("two; not five: no_such_package")
    here(*lookup.SPECS[:4], runtime("one", priority=1))
    again = choose("far", lost={**choice.lost, "two": "it fell over"})
    assert again.runtime.name == "one"
    assert again.lost["two"] == "it fell over"


def test_where_none_works_all_are_named(here: Any) -> None:
    here(runtime("two", priority=2, probe="zoo_test_probes:refuses"), runtime("one", probe="zoo_test_probes:breaks"))
    with pytest.raises(
        BundleError, match=r"no runtime opens far artefacts on this machine: two: it does not feel .*; one: "
    ):
        choose("far")
    here(runtime("two", priority=2, probe="zoo_test_probes:refuses"), runtime("one", requires=("no_such_package",)))
    with pytest.raises(
        MissingPart, match=r"opens far artefacts \(two: it does not .*is not installed: pip install no-such"
    ):
        choose("far")
    here(runtime("one", requires=("no_such_package",), install="pip install one"))
    with pytest.raises(
        MissingPart, match="no_such_package, which runtime 'one' needs, is not installed: pip install one"
    ):
        choose("far")


def test_a_name_is_taken_or_refused_never_replaced(here: Any) -> None:
    here(
        runtime("two", priority=2, probe="zoo_test_probes:never"),
        runtime("one"),
        runtime("sick", probe="zoo_test_probes:refuses"),
        runtime("gone", requires=("no_such_package",), install="pip install gone"),
    )
    assert choose("far", "one") == Choice(runtime=choose("far", "one").runtime)
    assert choose("far", "one").runtime.name == "one"
    with pytest.raises(BundleError, match="runtime sick does not run on this machine: it does not feel like it"):
        choose("far", "sick")
    with pytest.raises(MissingPart, match="pip install gone"):
        choose("far", "gone")
    with pytest.raises(BundleError, match="runtime one reads far artefacts, and this one is near"):
        choose("near", "one")


def test_on_this_machine_onnx_runs_where_it_was_judged() -> None:
    assert choose("onnx").runtime.name == "onnxruntime"
    with pytest.raises(BundleError, match="no runtime reads near artefacts"):
        choose("near")


def test_a_usable_gpu_does_not_take_onnx_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "probe_cuda", lambda: "")
    choice = choose("onnx")
    assert choice.runtime.name == "onnxruntime"
    assert choice.lost == {
        "onnxruntime-cuda": "onnx artefacts run where they were judged unless it is asked for by name"
    }
    assert choose("onnx", "onnxruntime-cuda").runtime.name == "onnxruntime-cuda"


@pytest.mark.skipif(not cuda.probe(), reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_the_cpu_runs_a_tensorrt_artefact_and_says_why() -> None:
    choice = choose("tensorrt")
    assert choice.runtime.name == "onnxruntime"
    assert list(choice.lost) == ORDER[:-1]
    assert "no NVIDIA driver is installed" in choice.lost["onnxruntime-cuda"]


def test_asking_loads_no_inference_library() -> None:
    """`tensorrt` takes a quarter of a second to import, onnxruntime a tenth; the driver is asked first, in a millisecond."""
    code = (
        "import sys; from zoo.lookup import runtimes_for; from zoo.runtime.choosing import why_not\n"
        "assert all(why_not(s) for s in runtimes_for('tensorrt')[:2])\n"
        "print(*sorted({'tensorrt','tensorrt_rtx','onnxruntime','torch','onnx','pluggy'} & set(sys.modules)))"
    )
    env = {"PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("format", "name", "is_one"),
    [
        ("onnx", "onnxruntime", False),
        ("onnx", "onnxruntime-cuda", False),
        ("tensorrt", "onnxruntime", True),
        ("tensorrt", "onnxruntime-cuda", True),
        ("tensorrt", "onnxruntime-tensorrt", False),
        ("tensorrt", "tensorrt", False),
        ("tensorrt", "tensorrt-rtx", False),
    ],
)
def test_who_stands_in_for_an_engine(tiny_bundle: Path, format: str, name: str, is_one: bool) -> None:
    session = ort.open_session(tiny_bundle / "model.fp32.onnx", runtime=name)
    assert bool(stand_in(format, session)) is is_one


# -- ONNX Runtime's providers


def test_a_provider_that_fell_back_is_noticed(tiny_bundle: Path) -> None:
    """The CPU's wheel has no CUDA provider, warns, and goes on with the CPU: so does a wheel whose libraries are missing."""
    model = tiny_bundle / "model.fp32.onnx"
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(BundleError) as caught:
        ort.open_cuda(model)
    assert "fell back to CPUExecutionProvider: its CUDAExecutionProvider does not load here" in str(caught.value)


def test_its_tensorrt_provider_is_asked_what_it_is_linked_against(tmp_path: Path, fake_driver: Path) -> None:
    provider = tmp_path / "libonnxruntime_providers_tensorrt.so"
    assert "lists a TensorRT provider that is not there" in ort._unlinked(tmp_path)
    provider.write_bytes(b"\0libnvinfer.so.98765\0")
    assert "needs libnvinfer.so.98765, which is not here: pip install 'tensorrt<98766'" in ort._unlinked(tmp_path)
    provider.write_bytes(b"\0no such name\0")
    assert ort._unlinked(tmp_path) == ""


def test_a_wheel_without_the_provider_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "probe", lambda: "")
    assert "comes without its CUDA provider: pip install onnxruntime-gpu" in ort.probe_cuda()
    assert "comes without its Tensorrt provider" in ort.probe_tensorrt()


def test_a_recipe_becomes_the_providers_options(tmp_path: Path) -> None:
    profiles = {"image": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 16, 16]]}
    settings = ort.tensorrt_settings(profiles, 1 << 20, "int8", tmp_path)
    assert settings["trt_profile_min_shapes"] == "image:1x3x8x8"
    assert settings["trt_profile_opt_shapes"] == "image:2x3x8x8"
    assert settings["trt_profile_max_shapes"] == "image:4x3x16x16"
    assert settings["trt_max_workspace_size"] == 1 << 20
    assert (settings["trt_int8_enable"], settings["trt_fp16_enable"]) == (True, False)
    assert "trt_profile_min_shapes" not in ort.tensorrt_settings({}, None, "fp32", tmp_path)


# -- a bundle


def photo() -> np.ndarray:
    return natural_images(1, 40, 40, seed=5)[0]


def test_an_engine_answers_as_the_graph_does(fake_tensorrt: Any, tensorrt_bundle: Path) -> None:
    told: list[str] = []
    model = zoo.runtime.load(tensorrt_bundle, progress=told.append)
    assert model.session.runtime == model.choice.runtime.name == "tensorrt"
    assert model.choice.lost == {}
    assert told == ["TensorRT builds the engine; this may take minutes"]
    plain = zoo.runtime.load(tensorrt_bundle, artifact="fp32")
    assert plain.session.runtime == "onnxruntime"
    np.testing.assert_allclose(model(photo()).scores, plain(photo()).scores, atol=1e-5)
    assert len(model([photo()] * 7)) == 7
    assert all(selftest(tensorrt_bundle)), [s.message for s in selftest(tensorrt_bundle) if not s]


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("crash", "the builder crashed on this graph"),
        ("full", "not enough memory to build"),
        ("wrong", "is not used: it fails the golden vectors: output 'logits' differs"),
        ("fails", "is not used: it fails the golden vectors: a batch of 1 does not run: TensorRT 10.3.0 failed on"),
    ],
)
def test_where_the_engine_cannot_be_had_the_next_runtime_takes_over(
    fake_tensorrt: Any, tensorrt_bundle: Path, monkeypatch: pytest.MonkeyPatch, mood: str, reason: str
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", mood)
    model = zoo.runtime.load(tensorrt_bundle)
    assert model.session.runtime == "onnxruntime"
    assert reason in model.choice.lost["tensorrt"]
    assert list(model.choice.lost) == ORDER[:-1]
    assert all("\n" not in line for line in model.choice.lost.values())
    assert model(photo()).label in ("ant", "bee", "cat")
    with pytest.raises(ExportError) as caught:
        zoo.runtime.load(tensorrt_bundle, runtime="tensorrt")
    assert mood != "crash" or reason in str(caught.value)


def test_what_is_wrong_with_the_bundle_is_said_by_the_last(fake_tensorrt: Any, tensorrt_bundle: Path) -> None:
    from zoo.files import dump_json, sha256_file

    path = tensorrt_bundle / "model.fp32.tensorrt.onnx"
    path.write_bytes(b"not a network")
    manifest = json.loads((tensorrt_bundle / "zoo.json").read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    dump_json(tensorrt_bundle / "zoo.json", manifest)
    with pytest.raises(BundleError, match="is not a network that onnxruntime"):
        zoo.runtime.load(tensorrt_bundle)


def test_a_packed_bundle_builds_from_its_bytes(fake_tensorrt: Any, tensorrt_bundle: Path, tmp_path: Path) -> None:
    from zoo.bundle import open_bundle, pack

    packed = pack(open_bundle(tensorrt_bundle), tmp_path / "packed.zoo")
    first = zoo.runtime.load(packed)
    assert first.session.obtained.origin == "built"  # type: ignore[attr-defined]
    assert zoo.runtime.load(tensorrt_bundle).session.obtained.origin == "cache"  # type: ignore[attr-defined]


def test_every_runtime_of_the_core_resolves() -> None:
    from zoo.specs import resolve

    for spec in builtin.RUNTIMES:
        assert callable(spec.resolve())
        if spec.probe:
            assert isinstance(resolve(spec.probe, spec.name)(), str)
