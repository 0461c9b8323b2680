"""Every name of TensorRT's that the zoo's code uses exists in the real bindings of each version that it is meant for.

Three kinds of use, three checks. ``trt.Enum.MEMBER`` is looked up as it stands. What is called on objects (a builder, a
context) is in USED, class by class, and the list is held complete: each attribute in those files is TensorRT's and listed,
or Python's, or the zoo's own. Names that the code asks for before it uses them are in PROBED, with the versions that have them.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import hashlib
import importlib
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.runtime.tensorrt import api, session

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "zoo" / "runtime" / "tensorrt"
"""The one place that talks to NVIDIA's libraries."""
FILES = [path for path in sorted(PACKAGE.glob("*.py")) if path.name != "cuda.py"]  # which talks to CUDA's driver only
ALL = ("10.3", "10.16", "11", "rtx")

USED: dict[str, tuple[str, ...]] = {
    "Builder": ("build_serialized_network", "create_builder_config", "create_network", "create_optimization_profile"),
    "EngineInspector": ("get_engine_information",),
    "IBuilderConfig": (
        "add_optimization_profile",
        "clear_flag",
        "create_timing_cache",
        "get_timing_cache",
        "profiling_verbosity",
        "progress_monitor",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    ),
    "ICudaEngine": (
        "create_engine_inspector",
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_location",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
    ),
    "IExecutionContext": ("get_tensor_shape", "set_input_shape", "set_tensor_address"),
    "ILayer": ("get_output_type", "name", "type"),
    "ILogger": ("log",),
    "INetworkDefinition": ("get_input", "get_layer", "num_inputs", "num_layers"),
    "IOptimizationProfile": ("set_shape",),
    "IProgressMonitor": ("phase_finish", "phase_start", "step_complete"),
    "ITensor": ("name", "shape"),
    "ITimingCache": ("serialize",),
    "OnnxParser": ("get_error", "num_errors", "parse"),
    "Runtime": ("deserialize_cuda_engine",),
}
"""What the code calls, reads and overrides on objects, and therefore needs in every version."""

PROBED: dict[str, tuple[str, ...]] = {
    "__version__": ALL,
    "CudaGraphStrategy": ("rtx",),
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": ("rtx",),
    "ICudaEngine.create_runtime_config": ("10.16", "11", "rtx"),
    "IExecutionContext": ALL,
    "IExecutionContext.execute_async_v3": ALL,
    "IProgressMonitor": ALL,
    "IRuntimeConfig.cuda_graph_strategy": ("rtx",),
    "NetworkDefinitionCreationFlag": ALL,
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": ("10.3", "10.16"),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": ALL,
    "OnnxParser.get_subgraph_nodes": ALL,
    "OnnxParser.num_subgraphs": ALL,
    "OnnxParser.supports_model_v2": ALL,
    "ParserError.desc": ALL,
    "ParserError.node_name": ALL,
    "ParserError.node_operator": ALL,
    "init_libnvinfer_plugins": ALL,
}
"""What the code asks for with ``hasattr`` or a default, and which versions have it."""

ASKED_BY_VARIABLE: dict[str, tuple[str, ...]] = {
    "api.py:_ask": (),  # whose callers give the name as it stands, which is read as a probe
    "api.py:network": (
        "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    ),
}
"""The functions in which ``hasattr`` or ``getattr`` is given a variable, and what it stands for."""

PROBERS = ("_ask", "getattr", "hasattr")
"""Functions that are given an object and a name that it may lack."""

GUARDED = {
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": "CudaGraphStrategy",
    "ICudaEngine.create_runtime_config": "CudaGraphStrategy",
    "IRuntimeConfig.cuda_graph_strategy": "CudaGraphStrategy",
    "OnnxParser.get_subgraph_nodes": "OnnxParser.supports_model_v2",
    "OnnxParser.num_subgraphs": "OnnxParser.supports_model_v2",
}
"""Probed by way of another name, which no version has without them."""

CLASSES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
}
"""What a variable of this name holds, wherever it is asked for a name that TensorRT knows."""

CLASSES_IN = {"session.py": {"config": "IRuntimeConfig"}}
"""What it holds in one file."""

OWN = ("cls", "library", "self")
"""Variables that hold the zoo's own objects."""

OWN_IN = {"engines.py": ("engine", "recipe", "store"), "inspecting.py": ("layer",)}
"""The same in one file."""

PYTHON = ("returncode", "stderr", "stdout")
"""Python's, on objects whose class does not tell its attributes."""

COMMON = ("dtype", "itemsize", "read", "seek", "size", "start", "write")
"""Of numpy's arrays, Python's files and threads. TensorRT has them too, on objects that the zoo has nothing to do with."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """One place in the code where an attribute is read, assigned or called."""

    where: str
    name: str
    base: str = ""
    """``builder`` for ``builder.x`` and ``self._builder.x``; empty for ``f().x``."""
    assigned: bool = False
    call: tuple[int, tuple[str, ...]] | None = None
    """How many arguments by position, and which by keyword; None where it is not called, or with ``*`` or ``**``."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a file does with names."""

    uses: tuple[Use, ...]
    module: tuple[Use, ...]
    """Dotted paths below ``trt``, like ``MemoryPoolType.WORKSPACE``."""
    probes: tuple[Use, ...]
    """``hasattr(x, "name")`` and ``getattr(x, "name", default)``."""
    variable_probes: tuple[Use, ...]
    """Those with a variable; ``name`` is the function's that they are in."""
    overrides: tuple[Use, ...]
    """Methods of a class whose base is TensorRT's; ``call`` is what TensorRT calls them with."""
    imported: frozenset[str]
    constants: frozenset[str]


def read(source: str, file: str) -> Reading:
    """Read a file without running it."""
    tree = ast.parse(source)
    imported: set[str] = set()
    found: dict[str, list[Use]] = {"uses": [], "module": [], "probes": [], "variable_probes": [], "overrides": []}

    def visit(node: ast.AST, function: str, parent: ast.AST | None) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        if isinstance(node, ast.ClassDef) and any("trt" in _chain(b) or _chain(b) == ["base"] for b in node.bases):
            methods = [line for line in node.body if isinstance(line, ast.FunctionDef) and line.name[0] != "_"]
            for method in methods:
                call = (len(method.args.args) - 1, ())
                found["overrides"].append(Use(where=f"{file}:{method.lineno}", name=method.name, call=call))
        if isinstance(node, ast.Attribute):
            chain = _chain(node)
            call = _call(parent) if isinstance(parent, ast.Call) and parent.func is node else None
            if "trt" in chain[:-1]:
                if not isinstance(parent, ast.Attribute):
                    path = ".".join(chain[chain.index("trt") + 1 :])
                    found["module"].append(Use(where=where, name=path, call=call))
            else:
                base = chain[-2].strip("_") if len(chain) > 1 else ""
                stored = isinstance(node.ctx, ast.Store)
                found["uses"].append(Use(where=where, name=node.attr, base=base, assigned=stored, call=call))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PROBERS:
            asked = node.args[1]
            if not (isinstance(asked, ast.Constant) and isinstance(asked.value, str)):
                found["variable_probes"].append(Use(where=where, name=f"{file}:{function}"))
            elif node.func.id == "getattr" and len(node.args) == 2:  # no default: the same as x.name
                found["uses"].append(Use(where=where, name=asked.value))
            else:
                found["probes"].append(Use(where=where, name=asked.value))
        for child in ast.iter_child_nodes(node):
            visit(child, function, node)

    visit(tree, "", None)
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return Reading(
        imported=frozenset(imported), constants=frozenset(texts), **{key: tuple(uses) for key, uses in found.items()}
    )


def _chain(node: ast.expr) -> list[str]:
    """``self.trt.Builder`` as a list; what is no name at its root, like a call, as an empty word."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else ""]


def _call(node: ast.Call) -> tuple[int, tuple[str, ...]] | None:
    starred = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
    return None if starred else (len(node.args), tuple(str(k.arg) for k in node.keywords))


@functools.cache
def readings() -> dict[str, Reading]:
    return {path.name: read(path.read_text("utf-8"), path.name) for path in FILES}


def every(kind: str) -> Iterator[Use]:
    for reading in readings().values():
        yield from getattr(reading, kind)


def listed() -> set[str]:
    return {f"{cls}.{name}" for cls, names in USED.items() for name in names} | set(PROBED)


def words(paths: set[str] | frozenset[str]) -> set[str]:
    return {path.rpartition(".")[2] for path in paths}


@functools.cache
def pythons_words() -> frozenset[str]:
    """The attributes of Python's own types, and of the modules that the package imports and the classes in them."""
    places: list[object] = [kind for kind in vars(builtins).values() if isinstance(kind, type)]
    places += [types.ModuleType, types.FunctionType, type(threading.Lock()), type(hashlib.sha256())]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in names:
                with contextlib.suppress(ModuleNotFoundError):  # of another operating system
                    module = importlib.import_module(name)
                    places += [module, *(kind for kind in vars(module).values() if isinstance(kind, type))]
    return frozenset(PYTHON).union(*(dir(place) for place in places))


@functools.cache
def own_words() -> frozenset[str]:
    """What the core defines: modules, functions, methods, fields, and what it assigns to ``self``."""
    found: set[str] = set()
    for path in (ROOT / "zoo").rglob("*.py"):
        found.add(path.stem)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.add(node.name)
            if isinstance(node, ast.ClassDef | ast.Module):
                found.update(part.id for line in node.body for part in _targets(line) if isinstance(part, ast.Name))
            elif isinstance(node, ast.stmt):
                fields = (part for part in _targets(node) if isinstance(part, ast.Attribute))
                found.update(part.attr for part in fields if _chain(part)[:-1] == ["self"])
    return frozenset(found)


def _targets(line: ast.stmt) -> list[ast.expr]:
    """What a line assigns to."""
    targets = line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
    return [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]


def class_of(use: Use) -> str | None:
    """Which of TensorRT's classes the variable holds, as far as its name tells."""
    file = use.where.partition(":")[0]
    return None if use.base in owned(file) else {**CLASSES, **CLASSES_IN.get(file, {})}.get(use.base)


def owned(file: str) -> tuple[str, ...]:
    return (*OWN, *OWN_IN.get(file, ()))


def unlisted(reading: Reading, known: set[str]) -> list[str]:
    """Uses that are neither listed nor anybody else's. ``known``: the last words of all paths in the surfaces."""
    names = words(listed())
    everyday = set(COMMON).union(*(dir(kind) for kind in (str, bytes, list, dict, set)))
    wrong = []
    for use in (*reading.uses, *reading.probes, *reading.overrides):
        if use.name in names or use.name.startswith("__") or use.base in reading.imported:
            continue
        if use.base in owned(use.where.partition(":")[0]) and use.name in own_words() | pythons_words():
            continue
        if use.name in known and use.name not in everyday:
            wrong.append(f"{use.where} .{use.name} is one of TensorRT's names: put it into USED or PROBED")
        elif use.name not in known | pythons_words() | own_words():
            wrong.append(f"{use.where} .{use.name} is nobody's name: not TensorRT's, not Python's, not the zoo's")
    return wrong


def misplaced(reading: Reading, known: set[str]) -> list[str]:
    """Uses on a variable whose name says of which class it is, where that class is not listed to have them."""
    return [
        f"{use.where} {use.base}.{use.name}: {class_of(use)} is not listed with it"
        for use in reading.uses
        if class_of(use) and use.name in known and f"{class_of(use)}.{use.name}" not in listed()
    ]


def fits(overloads: list[list[tuple[str, bool]]], call: tuple[int, tuple[str, ...]]) -> bool:
    """Whether one of the overloads takes these arguments."""
    count, keywords = call
    return any(
        count + len(keywords) <= len(arguments)
        and set(keywords) <= {name for name, _ in arguments[count:]}
        and all(name in keywords for name, needed in arguments[count:] if needed)
        for arguments in overloads
    )


def candidates(use: Use) -> list[str]:
    """The listed paths that a use may mean."""
    if cls := class_of(use):
        return [f"{cls}.{use.name}"]
    return [path for path in listed() if path.rpartition(".")[2] == use.name]


def test_names_of_the_module_exist(surface):
    needed = (use for use in every("module") if use.name not in PROBED)
    wrong = [f"{use.where} trt.{use.name}" for use in needed if use.name not in surface]
    assert not wrong, f"not in {surface.version}: {wrong}"


def test_names_on_objects_exist(surface):
    wrong = [f"{cls}.{name}" for cls, names in USED.items() for name in names if f"{cls}.{name}" not in surface]
    assert not wrong, f"not in {surface.version}: {wrong}"


def test_probed_names_are_where_they_are_said_to_be(surface):
    have = {path for path in PROBED if path in surface}
    assert have == {path for path, versions in PROBED.items() if surface.name in versions}
    assert have >= {path for path, guard in GUARDED.items() if guard in surface}


def test_every_probed_name_is_somewhere_and_is_really_asked_for():
    asked = {use.name for use in every("probes")}
    asked |= {path.rpartition(".")[2] for paths in ASKED_BY_VARIABLE.values() for path in paths}
    for path, versions in PROBED.items():
        assert versions, f"{path} is in no version: the code that asks for it is dead"
        assert GUARDED.get(path, path).rpartition(".")[2] in asked, f"nothing asks for {path}: move it to USED"


def test_variables_that_are_asked_for_are_spelt_out():
    functions = {use.name for use in every("variable_probes")}
    assert functions == set(ASKED_BY_VARIABLE)
    for function, paths in ASKED_BY_VARIABLE.items():
        constants = readings()[function.partition(":")[0]].constants
        assert words(set(paths)) <= constants, f"{function} does not ask for all of {paths}"
        assert set(paths) <= set(PROBED)


def test_the_lists_are_complete(surfaces):
    known = set().union(*(words(surface.names) for surface in surfaces.values()))
    wrong = [text for reading in readings().values() for text in unlisted(reading, known)]
    wrong += [text for reading in readings().values() for text in misplaced(reading, known)]
    assert not wrong, "\n".join(wrong)


def test_the_lists_hold_nothing_that_is_not_used():
    used = {use.name for kind in ("uses", "probes", "overrides") for use in every(kind)}
    used |= {part for use in every("module") for part in use.name.split(".")}
    used |= {path.rpartition(".")[2] for paths in ASKED_BY_VARIABLE.values() for path in paths}
    assert not words(listed()) - used


def test_calls_have_arguments_that_the_bindings_take(surface):
    wrong = []
    for use in (*every("uses"), *every("module"), *every("overrides")):
        paths = [path for path in candidates(use) if path in surface.calls] or [use.name] * (use.name in surface.calls)
        if use.call is not None and paths and not any(fits(surface.calls[path], use.call) for path in paths):
            wrong.append(f"{use.where} {use.name}: {use.call} where {paths} take {[surface.calls[p] for p in paths]}")
    assert not wrong, f"in {surface.version}: {wrong}"


def test_properties_that_are_assigned_to_are_writable(surface):
    for use in every("uses"):
        paths = [path for path in candidates(use) if path in surface]
        if use.assigned and use.base not in OWN and paths:
            assert any(path in surface.writable for path in paths), f"{use.where} {paths} in {surface.version}"


def test_words_that_the_code_compares_with_exist(surface):
    """It takes members of enumerations by their text, ``DataType.HALF``; a word that is none would never match."""
    words = {f"DataType.{name}" for name in session.DTYPES} | {f"ILogger.Severity.{name}" for name in api.HEARD}
    assert words | {"TensorLocation.HOST"} <= surface.names


OLD_HABITS = """
def build(library, builder, config, context):
    if builder.platform_has_fast_fp16:
        config.set_flag(library.trt.BuilderFlag.FP16)
    context.execute_async_v2(bindings, stream_handle=0)
"""
"""What exporters did before 11: two names that it dropped and one that 10 dropped already."""


def test_what_11_removed_is_found_missing(surface):
    reading = read(OLD_HABITS, "old.py")
    assert [use.name for use in reading.module] == ["BuilderFlag.FP16"]
    for path in ("BuilderFlag.FP16", "Builder.platform_has_fast_fp16"):
        assert (path in surface) == surface.name.startswith("10."), path
    assert "IExecutionContext.execute_async_v2" not in surface
    assert "IExecutionContext.execute_async_v3" in surface


def test_old_habits_are_found_in_code(surfaces):
    known = set().union(*(words(surface.names) for surface in surfaces.values()))
    said = unlisted(read(OLD_HABITS, "old.py"), known)
    assert "old.py:5 .execute_async_v2 is nobody's name: not TensorRT's, not Python's, not the zoo's" in said
    assert any(".platform_has_fast_fp16 is" in line for line in said)
    said = misplaced(read("def f(builder): builder.get_layer(0)", "new.py"), known)
    assert said == ["new.py:1 builder.get_layer: Builder is not listed with it"]


CALLS = {
    "profile.set_shape('image', (1, 3), (2, 3), (4, 3))": True,
    "profile.set_shape('image', min=(1, 3), opt=(2, 3), max=(4, 3))": True,
    "profile.set_shape('image', (1, 3), (4, 3))": False,
    "profile.set_shape('image', (1, 3), (2, 3), largest=(4, 3))": False,
    "context.execute_async_v3(stream)": True,
    "context.execute_async_v3(bindings, stream)": False,
    "context.set_input_shape('image', (1, 3))": True,
    "engine.create_execution_context()": True,
    "runtime.deserialize_cuda_engine(plan, None)": False,
}
"""Lines of code, and whether the bindings take their arguments."""


def test_arguments_are_held_against_the_signatures(surface):
    for line, taken in CALLS.items():
        (use,) = read(line, "line.py").uses
        assert use.call is not None
        assert fits(surface.calls[f"{CLASSES[use.base]}.{use.name}"], use.call) is taken, line


def test_the_fake_has_no_name_that_the_real_ones_lack(surface):
    """It stands in for the names that the zoo uses: one that exists nowhere else would hide a mistake."""
    wrong = []
    for node in ast.parse((ROOT / "tests" / "fakes" / "tensorrt.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _chain(node.value.func) == ["_enum"]:
            name, *members = (argument.value for argument in node.value.args if isinstance(argument, ast.Constant))
            path = name if name in surface else f"ILogger.{name}"
            wrong += [f"{path}.{member}" for member in members if f"{path}.{member}" not in surface]
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            for line in node.body:
                names = [line.name] if isinstance(line, ast.FunctionDef) else []
                names += [part.id for part in _targets(line) if isinstance(part, ast.Name)]
                paths = [f"{node.name}.{name}" for name in names if name[0] != "_"]
                wrong += [path for path in paths if path not in surface]
                if isinstance(line, ast.FunctionDef) and paths and paths[0] in surface.calls:
                    call = (len(line.args.args) - 1, ())
                    wrong += [f"{path} takes {call}" for path in paths if not fits(surface.calls[path], call)]
    assert not wrong, f"not in {surface.version}: {wrong}"


def test_nothing_else_talks_to_the_libraries():
    for folder in ("zoo", "export", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text("utf-8")
            if path in FILES or not ("tensorrt" in text or "trt" in text):
                continue
            for node in ast.walk(ast.parse(text)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [str(node.module)]
                roots = {name.partition(".")[0] for name in names}
                where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                assert not roots & {"tensorrt", "tensorrt_rtx"}, f"{where} imports TensorRT"
                assert not (isinstance(node, ast.Attribute) and node.attr == "trt"), f"{where} uses the module itself"
