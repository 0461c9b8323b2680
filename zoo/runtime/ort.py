"""ONNX Runtime as a backend. Full graph optimisation always: without it small networks run three times slower."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ..errors import BundleError
from ..files import as_output_error

__all__ = ["OrtSession", "open_cuda", "open_session", "open_tensorrt", "probe_cuda", "probe_tensorrt"]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
INSTALL = "pip install onnxruntime-gpu in place of onnxruntime"


class OrtSession:
    """A network in ONNX Runtime. Thread-safe."""

    profile = None

    def __init__(self, session: onnxruntime.InferenceSession, threads: int, runtime: str = "onnxruntime") -> None:
        self._session = session
        self.runtime = runtime
        self.input_name = session.get_inputs()[0].name
        self.input_shape = tuple(d if isinstance(d, int) else None for d in session.get_inputs()[0].shape)
        self.output_names = tuple(output.name for output in session.get_outputs())
        self._all = list(self.output_names)
        provider = session.get_providers()[0]
        count = f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""
        self.device = f"{provider.removesuffix('ExecutionProvider')} (onnxruntime {onnxruntime.__version__}{count})"

    def run(self, batch: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        names = self._all if outputs is None else list(outputs)
        return dict(zip(names, self._session.run(names, {self.input_name: batch}), strict=True))


def open_session(
    model: Path | bytes,
    *,
    threads: int | None = None,
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
    runtime: str = "onnxruntime",
    precision: str = "",
    **_: Any,
) -> OrtSession:
    """Open an ONNX file or its bytes. ``providers`` defaults to the CPU. ``precision``: of a graph that is meant for
    another library. Raises BundleError where it is no network, or where the first provider did not take it: ONNX Runtime
    says nothing of that and goes on with the next."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if precision == "mixed":
        # where Q/DQ pairs meet half precision, its optimiser (1.32, from the basic level on) makes another network of it
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads:
        options.intra_op_num_threads = threads
    wanted = list(providers or (CPU,))
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=wanted
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        what = "the artefact" if isinstance(model, bytes) else str(model)
        raise BundleError(
            f"{what} is not a network that onnxruntime {onnxruntime.__version__} opens: {_first_line(error)}"
        ) from error
    first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
    if first not in session.get_providers():
        raise BundleError(
            f"onnxruntime {onnxruntime.__version__} fell back to {session.get_providers()[0]}: its {first} does not load "
            "here (a library that it needs is missing, or of another version)"
        )
    return OrtSession(session, threads or 0, runtime)


# -- on a GPU


def probe_cuda() -> str:
    """Why ONNX Runtime's CUDA provider runs nothing here; empty where it is worth trying."""
    from .tensorrt import cuda

    return cuda.probe() or _provider(CUDA)


def probe_tensorrt() -> str:
    """The same for its TensorRT provider.

    The provider library is linked against one major version of TensorRT (PyPI's onnxruntime-gpu 1.3x: 10), whichever
    of them is installed.
    """
    from .tensorrt import cuda

    return cuda.probe() or _provider(TENSORRT) or _unlinked()


def open_cuda(model: Path | bytes, **options: Any) -> OrtSession:
    """Open in ONNX Runtime's CUDA provider; what it has no kernel for runs on the CPU.

    TF32 is off unless the recipe asks for it. ``check``: asked whether the session computes what it should.
    Raises BundleError where the provider does not load, or ``check`` has a reason.
    """
    recipe = options.get("recipe") or {}
    settings = {"use_tf32": int(bool(recipe.get("flags", {}).get("tf32")))}
    return _open_on_gpu(model, [(CUDA, settings), CPU], "onnxruntime-cuda", options)


def open_tensorrt(model: Path | bytes, **options: Any) -> OrtSession:
    """Open in ONNX Runtime's TensorRT provider, which builds engines of the parts that TensorRT takes and gives the
    others to CUDA and the CPU; it keeps its engines in a cache of its own, beside the zoo's.

    ``precision``: of the artefact. The graph has it written in already; TensorRT before 11 also wants a flag.
    Raises as :func:`open_cuda`.
    """
    from .tensorrt.engines import Recipe, engine_folder

    recipe = Recipe.from_build(options.get("recipe") or {})
    folder = engine_folder() / "onnxruntime"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_output_error(error, folder) from error
    settings = tensorrt_settings(recipe.profiles, recipe.workspace_bytes, str(options.get("precision", "")), folder)
    return _open_on_gpu(model, [(TENSORRT, settings), (CUDA, {"use_tf32": 0}), CPU], "onnxruntime-tensorrt", options)


def tensorrt_settings(
    profiles: Mapping[str, Sequence[Sequence[int]]], workspace_bytes: int | None, precision: str, folder: Path
) -> dict[str, Any]:
    """The provider's options, as onnxruntime.ai's page on the TensorRT provider names them."""
    settings: dict[str, Any] = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": precision in ("fp16", "mixed"),
        "trt_bf16_enable": precision == "bf16",
        "trt_int8_enable": precision in ("int8", "mixed"),
    }
    if workspace_bytes:
        settings["trt_max_workspace_size"] = workspace_bytes
    for which, name in enumerate(("min", "opt", "max")):
        text = ",".join(f"{n}:{'x'.join(map(str, shapes[which]))}" for n, shapes in profiles.items())
        if text:
            settings[f"trt_profile_{name}_shapes"] = text
    return settings


def _open_on_gpu(model: Path | bytes, providers: Sequence[Any], runtime: str, options: Mapping[str, Any]) -> OrtSession:
    with contextlib.suppress(Exception):  # the wheels of CUDA and cuDNN, where those are how it is installed
        onnxruntime.preload_dlls()
    session = open_session(
        model,
        threads=options.get("threads"),
        providers=providers,
        runtime=runtime,
        precision=str(options.get("precision", "")),
    )
    check: Callable[[OrtSession], str] | None = options.get("check")
    if check is not None and (reason := check(session)):
        raise BundleError(f"{runtime} is not used: {reason}")
    return session


def _provider(name: str) -> str:
    if name in onnxruntime.get_available_providers():
        return ""
    return f"onnxruntime {onnxruntime.__version__} comes without its {name.removesuffix('ExecutionProvider')} provider: {INSTALL}"


def _unlinked(folder: Path | None = None) -> str:
    """The TensorRT library that the provider is linked against and that cannot be loaded; empty where it can."""
    if sys.platform == "win32":
        return ""  # opening a session tells
    provider = (folder or Path(onnxruntime.__file__).parent / "capi") / "libonnxruntime_providers_tensorrt.so"
    try:
        linked = re.search(rb"libnvinfer\.so\.\d+", provider.read_bytes())
    except OSError:
        return f"onnxruntime {onnxruntime.__version__} lists a TensorRT provider that is not there: {INSTALL}"
    if linked is None:
        return ""
    name = linked[0].decode()
    with contextlib.suppress(OSError):
        ctypes.CDLL(name)
        return ""
    from .tensorrt.api import find

    if find("tensorrt") is not None:  # its package loads the library from where pip has put it
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return ""
    major = name.rpartition(".")[2]
    return f"onnxruntime {onnxruntime.__version__} needs {name}, which is not here: pip install 'tensorrt<{int(major) + 1}'"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
