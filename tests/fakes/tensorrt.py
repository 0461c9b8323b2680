"""A TensorRT that is not NVIDIA's: the names that the zoo uses, with ONNX Runtime's CPU for arithmetic.

It stands in where there is no GPU. What it does beside arithmetic is copied from what the real libraries were seen to
do: a graph that cannot be parsed gives False, one that cannot be built None, a wrong profile raises nothing and fails
at the build, an engine of another version or GPU deserialises to None, and the reason is only in the log. Its builder
half passes the same tests as TensorRT-RTX (tests/export/test_tensorrt_api.py); its runtime half is held to nothing.

The "GPU" is the library that FAKE_LIBCUDA names (tests/fakes/cuda.c). FAKE_TENSORRT is a comma-separated list of what
is to go wrong: crash, slow, full, wrong (computes something else), fails (to execute), uncapturable, silent (slow, and tells nothing, but
makes the file FAKE_BUILDING when it begins).
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import os
import signal
import threading
import time
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p

import numpy as np
import onnx
from onnx import TensorProto, helper

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "10.3.0")

MAGIC = b"FAKE ENGINE "
CONTEXT_BYTES = 1 << 16
MOST_K = 3840
WITHOUT_IMPORTER = ("Det", "Unique", "BitShift")


class _Enum(enum.Enum):
    def __int__(self) -> int:
        return list(type(self)).index(self)

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def _enum(name: str, *members: str) -> type[_Enum]:
    return _Enum(name, members)  # type: ignore[return-value, arg-type]


NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
BuilderFlag = _enum("BuilderFlag", "TF32")
MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE")
ProfilingVerbosity = _enum("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED")
LayerInformationFormat = _enum("LayerInformationFormat", "ONELINE", "JSON")
TensorLocation = _enum("TensorLocation", "DEVICE", "HOST")
TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
DataType = _enum("DataType", "FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8")
LayerType = _enum(
    "LayerType", "CONVOLUTION", "MATRIX_MULTIPLY", "QUANTIZE", "DEQUANTIZE", "ACTIVATION", "TOPK", "PLUGIN_V3"
)
_Severity = _enum("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

_TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
}
_KINDS = {
    "Conv": "CONVOLUTION",
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "TopK": "TOPK",
    "NonZero": "PLUGIN_V3",
}
_log = None


def _mood(what: str) -> bool:
    return what in os.environ.get("FAKE_TENSORRT", "").split(",")


def _gpu() -> ctypes.CDLL | None:
    path = os.environ.get("FAKE_LIBCUDA", "")
    if not path:
        return None
    library = ctypes.CDLL(path)
    count = c_int()
    return library if library.cuInit(0) == 0 and library.cuDeviceGetCount(byref(count)) == 0 and count.value else None


def _gpu_name() -> str:
    library, device, name = _gpu(), c_int(), ctypes.create_string_buffer(100)
    assert library is not None
    library.cuDeviceGet(byref(device), 0)
    library.cuDeviceGetName(name, 100, device)
    return name.value.decode()


class ILogger:
    Severity = _Severity

    def __init__(self) -> None:
        pass


def _listen(logger: ILogger) -> None:
    """The first logger of a process is the one that hears everything."""
    global _log
    if _log is None:
        _log = logger
    elif _log is not logger:
        _say("WARNING", "The logger passed into createInferBuilder differs from one already registered: it is ignored")


def _say(severity: str, text: str) -> None:
    assert _log is not None
    _log.log(_Severity[severity], text)


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    return True


class IProgressMonitor:
    def __init__(self) -> None:
        pass


# -- building


class Builder:
    def __init__(self, logger: ILogger) -> None:
        if _gpu() is None:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        _listen(logger)

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(_private=True)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        problem = _unbuildable(network, config)
        if problem:
            _say("ERROR", f"IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error ({problem})")
            return None
        if _mood("silent"):
            with open(os.environ["FAKE_BUILDING"], "w"):
                time.sleep(60)
        monitor, steps = config.progress_monitor, 100 if _mood("slow") else 2
        if monitor is not None:
            monitor.phase_start("Building engine", None, steps)
        for step in range(steps):
            if _mood("slow"):
                time.sleep(0.3)
            if monitor is not None:
                monitor.step_complete("Building engine", step)
        if monitor is not None:
            monitor.phase_finish("Building engine")
        if config._cache is not None:
            config._cache.known += b"+"
        assert network._model is not None
        payload = network._model.SerializeToString()
        header = {
            "version": __version__,
            "gpu": _gpu_name(),
            "profile": config._profiles[0]._shapes if config._profiles else {},
            "wrong": _mood("wrong"),
            "detailed": config.profiling_verbosity is ProfilingVerbosity.DETAILED,
            "tf32": config.get_flag(BuilderFlag.TF32),
            "workspace": config.get_memory_pool_limit(MemoryPoolType.WORKSPACE),
            "sha": hashlib.sha256(payload).hexdigest(),
        }
        return MAGIC + json.dumps(header).encode() + b"\n" + payload


def _unbuildable(network: INetworkDefinition, config: IBuilderConfig) -> str:
    if _mood("full"):
        return "OutOfMemory: Requested size was 1073741824 bytes."
    if network._model is None:
        return "the network has no output"
    for tensor in network._inputs:
        if -1 not in tensor.shape:
            continue
        if not config._profiles:
            return "Network has dynamic or shape inputs, but no optimization profile has been defined."
        shapes = config._profiles[0]._shapes.get(tensor.name)
        if shapes is None:
            return f"{tensor.name}: missing dimensions in profile"
        if any(a > b or b > c for a, b, c in zip(*shapes, strict=True)):
            return f"{tensor.name}: dimensions in profile are not in order"
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in network._model.graph.initializer}
    for node in network._model.graph.node:
        if node.op_type == "TopK" and node.input[1] in weights and weights[node.input[1]].max() > MOST_K:
            return f"{node.name}: K exceeds the maximum value allowed ({MOST_K})"
    return ""


class IBuilderConfig:
    def __init__(self, *, _private: bool = False) -> None:
        if not _private:
            raise TypeError("IBuilderConfig: No constructor defined!")
        self._flags = {BuilderFlag.TF32}
        self._limits: dict[_Enum, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self.profiling_verbosity: _Enum = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: IProgressMonitor | None = None

    def set_flag(self, flag: _Enum) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: _Enum) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: _Enum) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: _Enum, size: int) -> None:
        self._limits[pool] = size

    def get_memory_pool_limit(self, pool: _Enum) -> int:
        return self._limits.get(pool, 1 << 33)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, data: bytes) -> ITimingCache:
        return ITimingCache(data)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache.known and not cache.known.startswith(__version__.encode()):
            return False
        self._cache = cache
        cache.known = cache.known or __version__.encode()
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.known = bytes(data)

    def serialize(self) -> bytes:
        return self.known


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, least: object, usual: object, largest: object) -> None:
        self._shapes[name] = [list(shape) for shape in (least, usual, largest)]  # type: ignore[call-overload]


class _Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
        self.dtype = DataType[_TYPES.get(value.type.tensor_type.elem_type, "FLOAT")]


class _Layer:
    def __init__(self, node: onnx.NodeProto, output: _Enum) -> None:
        self.name = node.name
        self.type = LayerType[_KINDS.get(node.op_type, "ACTIVATION")]
        self._output = output

    def get_output_type(self, index: int) -> _Enum:
        return self._output


class INetworkDefinition:
    def __init__(self) -> None:
        self._model: onnx.ModelProto | None = None
        self._inputs: list[_Tensor] = []
        self._outputs: list[_Tensor] = []
        self._layers: list[_Layer] = []

    num_layers = property(lambda self: len(self._layers))
    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))

    def get_layer(self, index: int) -> _Layer:
        return self._layers[index]

    def get_input(self, index: int) -> _Tensor:
        return self._inputs[index]

    def get_output(self, index: int) -> _Tensor:
        return self._outputs[index]


class ParserError:
    def __init__(self, text: str, node: onnx.NodeProto | None = None) -> None:
        self._text, self._node = text, node

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return self._node.name if self._node is not None else ""

    def node_operator(self) -> str:
        return self._node.op_type if self._node is not None else ""


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        _listen(logger)
        self._network = network
        self._errors: list[ParserError] = []
        self._groups: list[list[int]] = []

    num_errors = property(lambda self: len(self._errors))
    num_subgraphs = property(lambda self: len(self._groups))

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def get_subgraph_nodes(self, index: int) -> list[int]:
        return self._groups[index]

    def supports_model_v2(self, data: bytes, path: str | None = None) -> bool:
        try:
            nodes = onnx.load_model_from_string(data).graph.node
        except Exception:  # protobuf's own
            return False
        self._groups = [[i] for i, node in enumerate(nodes) if node.op_type not in WITHOUT_IMPORTER]
        return len(self._groups) == len(nodes)

    def parse(self, data: bytes, path: str | None = None) -> bool:
        if _mood("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if not data:
            return True
        try:
            model = onnx.load_model_from_string(data)
            onnx.external_data_helper.load_external_data_for_model(model, os.path.dirname(path or "/nowhere/at/all"))
            model = onnx.shape_inference.infer_shapes(model)
        except Exception as error:
            _say("ERROR", f"ModelImporter: {error}")
            self._errors.append(ParserError("Failed to parse the ONNX model."))
            return False
        for node in model.graph.node:
            if node.op_type in WITHOUT_IMPORTER:
                self._errors.append(ParserError(f"Invalid Node - {node.name}\nfalse", node))
                return False
            if node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == TensorProto.INT16:
                os.write(2, b"unsupported type, says a line that does not pass by the logger\n")
                self._errors.append(ParserError("Assertion failed: unsupported type", node))
                return False
        if any(i.data_type == TensorProto.UINT8 for i in model.graph.initializer):
            _say("WARNING", "TensorRT does not support UINT8 zero points. Defaulting to INT8.")
        self._fill(model)
        return True

    def _fill(self, model: onnx.ModelProto) -> None:
        network, graph = self._network, model.graph
        network._model = model
        network._inputs = [_Tensor(v) for v in graph.input]
        network._outputs = [_Tensor(v) for v in graph.output]
        types = {v.name: _Tensor(v).dtype for v in (*graph.value_info, *graph.output, *graph.input)}
        network._layers = [_Layer(n, types.get(n.output[0], DataType.FLOAT)) for n in graph.node]


# -- running


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        if _gpu() is None:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        _listen(logger)

    def deserialize_cuda_engine(self, plan: object) -> ICudaEngine | None:
        data = bytes(memoryview(plan))  # type: ignore[arg-type]
        if not data.startswith(MAGIC):
            return self._refuse("Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.")
        text, _, payload = data[len(MAGIC) :].partition(b"\n")
        header = json.loads(text)
        if header["version"] != __version__:
            return self._refuse(f"The engine plan file is of version {header['version']}, this is {__version__}")
        if header["gpu"] != _gpu_name():
            return self._refuse(f"The engine plan file is generated on an incompatible device: {header['gpu']}")
        if header["sha"] != hashlib.sha256(payload).hexdigest():
            return self._refuse("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.")
        return ICudaEngine(header, payload)

    def _refuse(self, text: str) -> None:
        _say("ERROR", f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization ({text})")


class ICudaEngine:
    def __init__(self, header: dict[str, object], payload: bytes) -> None:
        import onnxruntime

        self._header = header
        self._model = onnx.load_model_from_string(payload)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self._session = onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
        graph = self._model.graph
        self._tensors = {v.name: _Tensor(v) for v in (*graph.input, *graph.output)}
        self._inputs = [v.name for v in graph.input]

    num_io_tensors = property(lambda self: len(self._tensors))
    num_optimization_profiles = property(lambda self: 1)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> _Enum:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> _Enum:
        return self._tensors[name].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def get_tensor_location(self, name: str) -> _Enum:
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        fixed = [list(self._tensors[name].shape)] * 3
        return self._header["profile"].get(name, fixed)  # type: ignore[attr-defined, no-any-return]

    def create_execution_context(self) -> IExecutionContext | None:
        scratch, library = c_uint64(), _gpu()
        assert library is not None
        if library.cuMemAlloc_v2(byref(scratch), c_size_t(CONTEXT_BYTES)):
            _say("ERROR", f"Error Code 2: OutOfMemory (Requested size was {CONTEXT_BYTES} bytes.)")
            return None
        return IExecutionContext(self, library, scratch)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, library: ctypes.CDLL, scratch: c_uint64) -> None:
        self._engine, self._library, self._scratch = engine, library, scratch
        self._shapes = {n: tuple(engine._tensors[n].shape) for n in engine._inputs}
        self._addresses: dict[str, int] = {}
        self._calls: list[object] = []
        self._warm: tuple[int, ...] | None = None
        self._busy = threading.Lock()

    def __del__(self) -> None:
        context = c_void_p()
        device = c_int()
        # a destructor runs wherever the last reference goes, so it brings its own context
        self._library.cuDeviceGet(byref(device), 0)
        if self._library.cuDevicePrimaryCtxRetain(byref(context), device) == 0:
            self._library.cuCtxPushCurrent_v2(context)
            self._library.cuMemFree_v2(self._scratch)
            self._library.cuCtxPopCurrent_v2(byref(context))
            self._library.cuDevicePrimaryCtxRelease_v2(device)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        if len(shape) != len(least) or not all(a <= n <= b for a, n, b in zip(least, shape, largest, strict=True)):
            _say(
                "ERROR", f"IExecutionContext::setInputShape: Error Code 3: {shape} is not in range [{least}, {largest}]"
            )
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        model = onnx.ModelProto()
        model.CopyFrom(self._engine._model)
        for value in model.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, self._shapes[value.name], strict=True):
                dim.dim_value = size
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
        return next(_Tensor(value).shape for value in found if value.name == name)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine._tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._busy.acquire(blocking=False):
            _say("ERROR", "two threads are in one execution context")
            return False
        try:
            time.sleep(0.0005)
            return self._enqueue(stream_handle)
        finally:
            self._busy.release()

    def _enqueue(self, stream: int) -> bool:
        if _mood("fails"):
            _say(
                "ERROR",
                "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access was encountered)",
            )
            return False
        capturing = c_int()
        self._library.cuStreamIsCapturing(c_void_p(stream), byref(capturing))
        shape = self._shapes[self._engine._inputs[0]]
        if capturing.value and (self._warm != shape or _mood("uncapturable")):
            self._library.cuStreamSynchronize(c_void_p(stream))  # the first run of a shape allocates and waits
            _say("ERROR", "Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)")
            return False
        self._warm = shape
        shapes, addresses, engine = dict(self._shapes), dict(self._addresses), self._engine

        def compute(_: object) -> None:
            fed = {n: _read(addresses[n], shapes[n], engine._tensors[n].dtype) for n in engine._inputs}
            names = [n for n in engine._tensors if n not in engine._inputs]
            for name, value in zip(names, engine._session.run(names, fed), strict=True):
                if engine._header["wrong"] and value.dtype.kind == "f":
                    value = value * 1.5 + 1
                value = np.ascontiguousarray(value)
                ctypes.memmove(addresses[name], value.ctypes.data, value.nbytes)

        call = ctypes.CFUNCTYPE(None, c_void_p)(compute)
        self._calls.append(call)  # a graph may call it again
        return self._library.cuLaunchHostFunc(c_void_p(stream), call, None) == 0


def _read(address: int, shape: tuple[int, ...], dtype: _Enum) -> np.ndarray:
    kind = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8, "INT8": np.int8}[dtype.name]
    array = np.empty(shape, kind)
    ctypes.memmove(array.ctypes.data, address, array.nbytes)
    return array


class EngineInspector:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: _Enum) -> str:
        graph = self._engine._model.graph
        inferred = onnx.shape_inference.infer_shapes(self._engine._model).graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
        made_by = {output: node.op_type for node in graph.node for output in node.output}
        words = {TensorProto.FLOAT: "FP32", TensorProto.FLOAT16: "FP16"}
        layers: list[object] = []
        for node in graph.node:
            if node.op_type not in ("Conv", "Gemm", "MatMul"):
                continue
            integer = made_by.get(node.input[0]) == "DequantizeLinear"
            word = "Int8" if integer else words[types[node.input[0]]]
            reads = {"Name": node.input[0], "Format/Datatype": f"Row major linear {word} format"}
            layers.append(
                {
                    "Name": node.name,
                    "LayerType": "CaskConvolution" if node.op_type == "Conv" else "gemm",
                    "Inputs": [reads],
                    "Outputs": [],
                    "Metadata": f"[ONNX Layer: {node.name}]",
                }
            )
        if not self._engine._header["detailed"]:
            layers = [layer["Name"] for layer in layers]  # type: ignore[index]
        return json.dumps({"Layers": layers, "Bindings": list(self._engine._tensors)})
