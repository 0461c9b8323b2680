"""Each rule on a graph that it must flag and on one that it must not, and what NVIDIA's parser says of both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, TensorProto, helper, numpy_helper

from zoo.errors import ExportError, GateFailed, UnknownName, ZooError
from zoo.runtime.tensorrt import api
from zoo_export.lint_cli import command
from zoo_export.tensorrt.asking import Answer
from zoo_export.tensorrt.fixes import fix
from zoo_export.tensorrt.lint import PARSER, lint, untold
from zoo_export.tensorrt.rules import ERROR, INFO, RULES, SEVERITIES, UNSUPPORTED, WARNING
from zoo_export.tensorrt.targets import FEATURES, Target, parse_target
from zoo_export.tensorrt.view import View

ROOT = Path(__file__).resolve().parents[2]
RTX = Target(flavour="tensorrt-rtx")
F, F16, I32, I64, I8, U8, D = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.DOUBLE,
)
PHOTO = (1, 3, 8, 8)
rng = np.random.default_rng(0)
KERNEL = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)

Value = tuple[str, int, Sequence[int | str | None] | None]


def value(name: str, kind: int = F, shape: Sequence[int | str | None] | None = PHOTO) -> Value:
    return name, kind, shape


X, Y, SMALLER = value("x"), value("y"), value("y", F, (1, 4, 6, 6))
ZERO, TENTH = np.int8(0), np.float32(0.1)


def graph(
    *nodes: onnx.NodeProto,
    x: Value | Sequence[Value] = X,
    y: Value | Sequence[Value] = Y,
    opset: int = 20,
    domain: str = "",
    **constants: Any,
) -> ModelProto:
    """A model from its nodes; a node without a name gets one, unless the graph is to show just that."""
    for number, node in enumerate(nodes):
        node.name = node.name or f"n{number}"
    ins, outs = ([v] if isinstance(v[0], str) else list(v) for v in (x, y))
    held = [
        c if isinstance(c, TensorProto) else numpy_helper.from_array(np.asarray(c), n) for n, c in constants.items()
    ]
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*i) for i in ins],
        [helper.make_tensor_value_info(*o) for o in outs],
        held,
    )
    domains = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(made, opset_imports=domains, ir_version=10)


node = helper.make_node


def floats(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def qdq(zero: Any = ZERO, scale: Any = TENTH) -> ModelProto:
    return graph(
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        s=scale,
        z=zero,
    )


def quantised(bias: bool = False, act: Any = ZERO, weight: Any = np.int8, zero: int = 0) -> ModelProto:
    """A quantised convolution as ONNX Runtime's quantiser writes it."""
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        node("DequantizeLinear", ["q", "s", "z"], ["xf"], name="dq"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], name="wdq", axis=0),
        node("Conv", ["xf", "wf"] + (["bf"] if bias else []), ["y"], name="conv"),
    ]
    held: dict[str, Any] = {}
    if bias:
        nodes.insert(3, node("DequantizeLinear", ["b", "bs"], ["bf"], name="bdq", axis=0))
        held = {"b": rng.integers(-(2**31), 2**31 - 1, 4).astype(np.int32), "bs": np.full(4, 0.0013, np.float32)}
    w = (rng.integers(-100, 100, (4, 3, 3, 3)) + zero).astype(weight)
    scales = {"s": np.float32(0.02), "z": act, "ws": np.full(4, 0.01, np.float32), "wz": np.full(4, zero, weight)}
    return graph(*nodes, y=SMALLER, w=w, **scales, **held)


def pool(kind: str = "MaxPool", outputs: Sequence[str] = ("y",), size: int = 7, **attributes: Any) -> ModelProto:
    return graph(
        node(kind, ["x"], list(outputs), kernel_shape=[2, 2], **attributes), y=value("y", F, (1, 3, size, size))
    )


def resize(**attributes: Any) -> ModelProto:
    return graph(
        node("Resize", ["x", "", "s"], ["y"], **attributes), y=value("y", F, (1, 3, 16, 16)), s=floats(1, 1, 2, 2)
    )


def conv(kernel: Any = KERNEL, x: Value = X, y: Value = SMALLER, **more: Any) -> ModelProto:
    return graph(node("Conv", ["x", "w", *more], ["y"]), x=x, y=y, w=kernel, **more)


def relu(x: Value = X, y: Value | None = None, opset: int = 20) -> ModelProto:
    return graph(node("Relu", ["x"], ["y"]), x=x, y=y or ("y", *x[1:]), opset=opset)


def unary(kind: str, domain: str = "", opset: int = 20, **attributes: Any) -> ModelProto:
    return graph(node(kind, ["x"], ["y"], domain=domain, **attributes), opset=opset, domain=domain)


def reduced(*before: onnx.NodeProto, x: Any = X, **constants: Any) -> ModelProto:
    return graph(
        *before, node("ReduceMean", ["x", "a"], ["y"], name="mean"), x=x, y=value("y", F, (1, 3, 1, 1)), **constants
    )


def topk(k: int) -> ModelProto:
    outputs = [value("y", F, (1, k)), value("i", I64, (1, k))]
    return graph(node("TopK", ["x", "k"], ["y", "i"]), x=value("x", F, (1, 5000)), y=outputs, k=[k])


def loop(condition: str, **constants: Any) -> ModelProto:
    """x + 1 three times; the body hands the condition on."""
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"], name="hand"), node("Add", ["a", "one"], ["b"], name="add")],
        "body",
        [
            helper.make_tensor_value_info(*v)
            for v in (value("i", I64, ()), value("go", TensorProto.BOOL, ()), value("a"))
        ],
        [helper.make_tensor_value_info(*v) for v in (value("on", TensorProto.BOOL, ()), value("b"))],
    )
    return graph(node("Loop", ["n", condition, "x"], ["y"], body=body), n=3, one=floats(1), **constants)


def branches(rank: int) -> ModelProto:
    def branch(name: str, *nodes: onnx.NodeProto, shape: Sequence[int]) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, F, shape)])

    then = branch("then", node("Relu", ["x"], ["then"], name="relu"), shape=(1, 3))
    other = (
        branch("other", node("Unsqueeze", ["x", "axis"], ["other"], name="axis"), shape=(1, 1, 3))
        if rank == 3
        else branch("other", node("Neg", ["x"], ["other"], name="neg"), shape=(1, 3))
    )
    inputs = [value("x", F, (1, 3)), value("c", TensorProto.BOOL, ())]
    choice = node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    return graph(choice, x=inputs, y=value("y", F, ("a", "b", "c")[:rank] if rank == 3 else (1, 3)), axis=[0])


def recurrent(
    kind: str, x: Sequence[int] = (6, 1, 4), y: Sequence[int] = (6, 1, 1, 5), ways: int = 1, **more: Any
) -> ModelProto:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * 5
    weights = {"W": rng.normal(size=(ways, gates, 4)), "R": rng.normal(size=(ways, gates, 5))}
    return graph(
        node(kind, ["x", "W", "R"], ["y"], hidden_size=5, **more),
        x=value("x", F, x),
        y=value("y", F, y),
        **{k: v.astype(np.float32) for k, v in weights.items()},
    )


def both_ways(activations: Sequence[str]) -> ModelProto:
    return recurrent("RNN", y=(6, 2, 1, 5), ways=2, direction="bidirectional", activations=activations)


def attention(kind: int, heads: int = 64, **attributes: Any) -> ModelProto:
    shape = (1, 2, 16, heads)
    inputs = [value(n, kind, shape) for n in "qkv"]
    return graph(node("Attention", list("qkv"), ["y"], **attributes), x=inputs, y=value("y", kind, shape), opset=23)


def written_out() -> ModelProto:
    shape = (1, 2, 16, 64)
    return graph(
        node("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "t"], ["s"]),
        node("Softmax", ["s"], ["p"]),
        node("MatMul", ["p", "v"], ["y"]),
        x=[value(n, F, shape) for n in "qkv"],
        y=value("y", F, shape),
    )


def scatter(reduction: str) -> ModelProto:
    scattered = node("ScatterND", ["x", "i", "u"], ["y"], reduction=reduction)
    return graph(
        scattered, x=value("x", F, (8, 4)), y=value("y", F, (8, 4)), i=[[1], [2]], u=np.ones((2, 4), np.float32)
    )


def sampled(spatial: int) -> ModelProto:
    size = (4,) * spatial
    inputs = [value("x", F, (1, 3, *size)), value("g", F, (1, *size, spatial))]
    return graph(node("GridSample", ["x", "g"], ["y"], mode="linear"), x=inputs, y=value("y", F, (1, 3, *size)))


def nms() -> ModelProto:
    inputs = [value("b", F, (1, 100, 4)), value("s", F, (1, 2, 100))]
    return graph(
        node("NonMaxSuppression", ["b", "s", "m", "i", "t"], ["y"]),
        x=inputs,
        y=value("y", I64, ("n", 3)),
        m=[10],
        i=floats(0.5),
        t=floats(0.1),
    )


def unnamed(model: ModelProto) -> ModelProto:
    for one in model.graph.node:
        one.name = ""
    return model


REFUSES, WARNS, BUILD_REFUSES, TAKES, NEEDS_PROFILE = "refuses", "warns", "build refuses", "takes", "needs a profile"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One rule: a graph that it flags, one that it does not, and what the real parser and builder do with the first."""

    bad: Callable[[], ModelProto]
    good: Callable[[], ModelProto]
    parser: str = REFUSES
    severity: str = ERROR
    target: Target = RTX
    what: str = ""
    """A regular expression that the finding's text matches."""
    says: str = ""
    """One that what the parser or builder says matches, so that it refuses for the reason that the rule gives."""


OLD = parse_target("tensorrt:10.3")
CAST = "Cast"

CASES: dict[str, Case] = {
    "opset": Case(
        says="at least opset 7",
        bad=lambda: relu(opset=6),
        good=relu,
        parser=WARNS,
        severity=WARNING,
        what="opset 6; .* 9 to 25",
    ),
    "wiring": Case(
        says="not registered", bad=lambda: graph(node("Add", ["x", "lost"], ["y"])), good=relu, what="reads 'lost'"
    ),
    "node-names": Case(bad=lambda: unnamed(relu()), good=relu, parser=TAKES, severity=WARNING, what="1 of 1 nodes"),
    "rank": Case(
        says="convert ONNX dimensions",
        bad=lambda: relu(value("x", F, [1] * 9)),
        good=lambda: relu(value("x", F, [1] * 8)),
        what="1x1x1x1x1x1x1x1x1",
    ),
    "dynamic-shape": Case(
        bad=lambda: relu(value("x", F, ("batch", 3))), good=relu, parser=NEEDS_PROFILE, severity=INFO, what="batchx3"
    ),
    "symbolic-size": Case(
        bad=lambda: conv(x=value("x", F, (1, 3, "h", "w")), y=value("y", F, (1, 4, "a", "b"))),
        good=lambda: conv(x=value("x", F, ("n", 3, 8, 8)), y=value("y", F, ("n", 4, 6, 6))),
        parser=NEEDS_PROFILE,
        severity=WARNING,
        what=r"axes \[2, 3\]",
    ),
    "unnamed-axis": Case(
        bad=lambda: relu(value("x", F, (None, 3))),
        good=lambda: relu(value("x", F, ("n", 3))),
        parser=NEEDS_PROFILE,
        severity=WARNING,
        what=r"axes \[0\]",
    ),
    "shape-input": Case(
        says="shape inputs",
        bad=lambda: graph(
            node("Reshape", ["x", "s"], ["y"]), x=[X, value("s", I64, (2,))], y=value("y", F, ("a", "b"))
        ),
        good=lambda: graph(node("Reshape", ["x", "s"], ["y"]), y=value("y", F, (1, 192)), s=[1, 192]),
        parser=BUILD_REFUSES,
        severity=WARNING,
        what="'s' decides on the shape of Reshape",
    ),
    "external-data": Case(
        bad=lambda: external("gone.bin"), good=conv, what="file 'gone.bin' with 1 weights is missing"
    ),
    "precision": Case(
        bad=conv,
        good=lambda: conv(KERNEL.astype(np.float16), value("x", F16), value("y", F16, (1, 4, 6, 6))),
        parser=TAKES,
        target=replace(RTX, precision="fp16"),
        what="fp16 was asked for; .* 1 fp32",
    ),
    "dtype": Case(
        says="data type",
        bad=lambda: graph(node(CAST, ["x"], ["y"], to=TensorProto.INT16), y=value("y", TensorProto.INT16)),
        good=lambda: graph(node(CAST, ["x"], ["y"], to=I32), y=value("y", I32)),
        what="'y' is INT16",
    ),
    "uint8": Case(
        says="UInt8",
        bad=lambda: graph(
            node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
            node(CAST, ["t"], ["y"], to=F),
            x=value("x", U8, (1, 8, 8, 3)),
        ),
        good=lambda: graph(
            node(CAST, ["x"], ["t"], to=F),
            node("Transpose", ["t"], ["y"], perm=[0, 3, 1, 2]),
            x=value("x", U8, (1, 8, 8, 3)),
        ),
        what="UINT8 input 'x'",
    ),
    "double": Case(bad=lambda: relu(value("x", D)), good=relu, parser=TAKES, severity=WARNING, what="'x' is DOUBLE"),
    "int64": Case(
        says="Int64 binding",
        bad=lambda: graph(node("Add", ["x", "x"], ["y"]), x=value("x", I64), y=value("y", I64)),
        good=lambda: graph(node("Add", ["x", "x"], ["y"]), x=value("x", I32), y=value("y", I32)),
        parser=WARNS,
        severity=INFO,
        what="'x' stays INT64",
    ),
    "mixed-types": Case(
        says="same input types",
        bad=lambda: graph(node("Add", ["x", "c"], ["y"]), c=np.ones(1, np.float16)),
        good=lambda: graph(node("Add", ["x", "c"], ["y"]), c=floats(1)),
        what="FLOAT and FLOAT16",
    ),
    "quantised-constant": Case(
        says="Quantized constant",
        bad=lambda: graph(node(CAST, ["c"], ["cf"], to=F), node("Mul", ["x", "cf"], ["y"]), c=np.ones(1, np.int8)),
        good=lambda: graph(node(CAST, ["c"], ["cf"], to=F), node("Mul", ["x", "cf"], ["y"]), c=np.ones(1, np.int32)),
        parser=BUILD_REFUSES,
        what="reads the INT8 constant 'c'",
    ),
    "nan": Case(
        bad=lambda: conv(np.where(KERNEL > 1, np.nan, KERNEL)),
        good=conv,
        parser=TAKES,
        what=r"'w' has \d+ of 108 values NaN",
    ),
    "fp16-range": Case(bad=lambda: conv(KERNEL * 1e5), good=conv, parser=TAKES, severity=INFO, what="above 65504"),
    "zero-point": Case(says="zero point", bad=lambda: qdq(np.int8(1)), good=qdq, what="INT8, zero point 1"),
    "uint8-quantised": Case(
        says="INT8 instead", bad=lambda: qdq(np.uint8(0)), good=qdq, parser=WARNS, what="UINT8, zero point 0"
    ),
    "int32-bias": Case(says="Int32", bad=lambda: quantised(bias=True), good=quantised, what="INT32 'b'"),
    "scale": Case(says="positive", bad=lambda: qdq(scale=np.float32(0)), good=qdq, what="scale 0"),
    "runtime-zero-point": Case(
        says="zero_point",
        bad=lambda: graph(
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["y"]),
            x=[value("x"), value("z", I8, ())],
            s=TENTH,
        ),
        good=qdq,
        parser=BUILD_REFUSES,
        what="'z' is computed",
    ),
    "unsupported-op": Case(
        says="importer",
        bad=lambda: graph(node("Det", ["x"], ["y"]), y=value("y", F, (1, 3))),
        good=relu,
        what="is a Det",
    ),
    "newer-op": Case(
        bad=lambda: attention(F16), good=written_out, parser=TAKES, target=OLD, what="Attention needs TensorRT 10.14"
    ),
    "foreign-domain": Case(
        bad=lambda: unary("Gelu", "com.microsoft"),
        good=lambda: unary("Gelu"),
        parser=TAKES,
        what="Gelu of com.microsoft",
    ),
    "custom-op": Case(
        says="Plugin", bad=lambda: unary("QuickGelu", "com.microsoft"), good=relu, what="QuickGelu of com.microsoft"
    ),
    "plugin-op": Case(
        says="NonZero plugin",
        bad=lambda: graph(node("NonZero", ["x"], ["y"]), y=value("y", I64, (4, "n"))),
        good=relu,
        what="NonZero not in TensorRT-RTX",
    ),
    "nms": Case(says="no runners", bad=nms, good=lambda: topk(10), parser=BUILD_REFUSES, what="cannot be built"),
    "extra-outputs": Case(
        says="outputs for MaxPool", bad=lambda: pool(outputs=("y", "i")), good=pool, what="'i' too, which nothing reads"
    ),
    "training-mode": Case(
        says="training mode",
        bad=lambda: graph(node("Dropout", ["x", "r", "t"], ["y"]), r=np.float32(0.5), t=True),
        good=lambda: graph(node("Dropout", ["x", "r", "t"], ["y"]), r=np.float32(0.5), t=False),
        what="Dropout in training mode",
    ),
    "spatial-axes": Case(
        says="kernelSize",
        bad=lambda: conv(
            np.ones((4, 3, 1, 1, 1, 1), np.float32),
            value("x", F, (1, 3, 2, 2, 2, 2)),
            value("y", F, (1, 4, 2, 2, 2, 2)),
        ),
        good=lambda: conv(
            np.ones((4, 3, 1, 1, 1), np.float32), value("x", F, (1, 3, 2, 2, 2)), value("y", F, (1, 4, 2, 2, 2))
        ),
        what="Conv over 4 spatial axes",
    ),
    "pool-dilations": Case(
        says="dilations",
        bad=lambda: pool(dilations=[2, 2], size=6),
        good=lambda: pool(dilations=[1, 1]),
        what=r"dilations \[2, 2\]",
    ),
    "resize": Case(
        says="Antialiasing",
        bad=lambda: resize(mode="linear", antialias=1),
        good=lambda: resize(mode="cubic"),
        what="antialias",
    ),
    "gridsample-5d": Case(
        bad=lambda: sampled(3), good=lambda: sampled(2), parser=TAKES, target=OLD, what="1x3x4x4x4 needs TensorRT 11.2"
    ),
    "topk": Case(says="3840", bad=lambda: topk(3841), good=lambda: topk(3840), parser=BUILD_REFUSES, what="K = 3841"),
    "scatter-reduction": Case(
        says="reduction", bad=lambda: scatter("add"), good=lambda: scatter("none"), what="reduction add"
    ),
    "runtime-axes": Case(
        says="build-time constant",
        bad=lambda: reduced(node("Concat", ["b", "c"], ["a"], axis=0), b=[2], c=[3]),
        good=lambda: reduced(node("Identity", ["b"], ["a"]), b=[2, 3]),
        what="from constants",
    ),
    "loop-condition": Case(
        says="not registered", bad=lambda: loop(""), good=lambda: loop("yes", yes=True), what="reads as 'go'"
    ),
    "if-ranks": Case(
        says="equal ranks",
        bad=lambda: branches(3),
        good=lambda: branches(2),
        parser=BUILD_REFUSES,
        what="1x3 and 1x1x3",
    ),
    "rnn-layout": Case(
        bad=lambda: recurrent("RNN", (1, 6, 4), (1, 6, 1, 5), layout=1),
        good=lambda: recurrent("RNN"),
        parser=TAKES,
        what="layout 1",
    ),
    "rnn-variant": Case(
        says="activations",
        bad=lambda: both_ways(["Tanh", "Relu"]),
        good=lambda: both_ways(["Tanh", "Tanh"]),
        what="activations backward",
    ),
    "gru-reset": Case(
        bad=lambda: recurrent("GRU"), good=lambda: recurrent("GRU", linear_before_reset=1), parser="", severity=WARNING
    ),
    "attention": Case(
        says="Attention operation",
        bad=lambda: attention(F),
        good=written_out,
        parser=BUILD_REFUSES,
        what="4-D operands in FLOAT",
    ),
    "eyelike": Case(
        says="dynamically shaped",
        bad=lambda: graph(node("EyeLike", ["x"], ["y"]), x=value("x", F, ("n", 4)), y=value("y", F, ("n", 4))),
        good=lambda: graph(node("EyeLike", ["x"], ["y"]), x=value("x", F, (4, 4)), y=value("y", F, (4, 4))),
        what="EyeLike of nx4",
    ),
}


def external(location: str) -> ModelProto:
    model = conv()
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=KERNEL.nbytes)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return model


def judge(model: ModelProto, target: Target = RTX, **options: Any) -> dict[str, list[Any]]:
    """Findings by rule, of the pure rules alone."""
    found: dict[str, list[Any]] = {}
    for finding in lint(model, target, ask=False, **options).findings:
        found.setdefault(finding.rule, []).append(finding)
    return found


def test_every_rule_has_a_case_and_a_page() -> None:
    assert set(CASES) == set(RULES)
    page = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z0-9-]+)` \| (error|warning|info) \|", page, flags=re.M)
    assert dict(listed) == {r.id: r.severity for r in RULES.values()} | {PARSER: ERROR}
    assert len(listed) == len(RULES) + 1
    fixed = set(re.findall(r"^\| `([a-z0-9-]+)` .*\*Fixed\*", page, flags=re.M))
    assert fixed == {r.id for r in RULES.values() if r.fixes} == {id for id, _ in FIXABLE}
    for one in RULES.values():
        assert one.severity in SEVERITIES
        assert one.why
        assert one.cure


@pytest.mark.parametrize("id", CASES)
def test_a_rule_flags_the_bad_graph_and_not_the_good_one(id: str) -> None:
    case = CASES[id]
    found = judge(case.bad(), case.target).get(id, [])
    assert found, "the rule does not fire"
    assert found[0].severity == case.severity
    assert re.search(case.what, found[0].what), found[0].what
    assert found[0].why
    assert found[0].cure
    left = judge(case.good(), case.target)
    assert id not in left, left[id]
    wrong = [f for fs in left.values() for f in fs if f.severity == ERROR]
    assert not wrong


@pytest.fixture(scope="module")
def library() -> api.Library:
    found = api.find("tensorrt-rtx")
    if found is None:
        pytest.skip("tensorrt-rtx is not installed: pip install tensorrt-rtx (Linux x86-64, Windows)")
    return found


def profile(model: ModelProto) -> dict[str, Any]:
    """Shapes 8, 8, 16 for each open axis."""
    found = {}
    for i in View(model).inputs:
        shape = View(model).shape(i.name) or ()
        if any(isinstance(size, str) for size in shape):
            found[i.name] = tuple(tuple(n if isinstance(s, str) else s for s in shape) for n in (8, 8, 16))
    return found


def build(library: api.Library, model: ModelProto) -> api.Built:
    return api.build(library, model.SerializeToString(), profile=profile(model))


def check_verdict(library: api.Library, model: ModelProto, parser: str, says: str = "") -> None:
    """That the real library does with a graph what the case says, and for the reason that it gives."""
    verdict = api.parse(library, model.SerializeToString())
    if parser == REFUSES:
        assert not verdict
        said = [c.text for c in verdict.complaints]
    elif parser == BUILD_REFUSES:
        assert verdict, verdict.complaints
        built = build(library, model)
        assert not built
        said = [built.reason]
    else:
        built = build(library, model)
        assert built, built.reason
        said = list(built.verdict.warnings)
        assert parser == TAKES or (parser == WARNS and said)
    assert not says or any(re.search(says, text) for text in said), said


@pytest.mark.parametrize("id", CASES)
def test_the_real_parser_and_builder_agree(id: str, library: api.Library) -> None:
    case = CASES[id]
    good = build(library, case.good())
    assert good, good.reason
    bad = case.bad()
    if id == "gru-reset":  # building it does not end
        assert api.parse(library, bad.SerializeToString())
    elif case.parser == NEEDS_PROFILE:
        with pytest.raises(ExportError, match="least, usual and largest"):
            api.build(library, bad.SerializeToString())
        assert build(library, bad)
    else:
        check_verdict(library, bad, case.parser, case.says)


def cast_twice() -> ModelProto:
    return graph(node(CAST, ["x"], ["t"], to=U8), node(CAST, ["t"], ["y"], to=F))


def dequantised(weight: Any, zero: Any) -> ModelProto:
    """A convolution whose weight alone is quantised."""
    nodes = [node("DequantizeLinear", ["w", "s", "z"], ["f"]), node("Conv", ["x", "f"], ["y"])]
    return graph(*nodes, y=SMALLER, w=weight, s=TENTH, z=zero)


def aligned(to: str, opset: int = 19) -> ModelProto:
    inputs = ["x", "roi", "s"] if to == "tf_crop_and_resize" else ["x", "", "s"]
    held = {"roi": floats(0, 0, 0, 0, 1, 1, 1, 1)} if "roi" in inputs else {}
    resized = node("Resize", inputs, ["y"], mode="linear", coordinate_transformation_mode=to)
    return graph(resized, y=value("y", F, (1, 3, 16, 16)), opset=opset, s=floats(1, 1, 2, 2), **held)


def normed(*outputs: str) -> ModelProto:
    return graph(node("LayerNormalization", ["x", "s"], ["y", *outputs]), s=np.ones(8, np.float32))


def batch_normed(**attributes: Any) -> ModelProto:
    ones = dict.fromkeys("sbmv", np.ones(3, np.float32))
    outputs = ["y", "rm", "rv"] if attributes else ["y"]
    return graph(node("BatchNormalization", ["x", *"sbmv"], outputs, **attributes), **ones)


def mixed(kind: str, other: Any, y: Value = Y, **attributes: Any) -> ModelProto:
    return graph(node(kind, ["x", "c"], ["y"], **attributes), y=y, c=other)


def axes(kind: str, y: Sequence[str]) -> ModelProto:
    return graph(node(kind, ["x", "a"], ["y"]), x=[X, value("a", I64, (1,))], y=value("y", F, y))


def roi_align() -> ModelProto:
    inputs = [X, value("r", F, (5, 4)), value("b", I64, (5,))]
    return graph(
        node("RoiAlign", ["x", "r", "b"], ["y"], output_height=2, output_width=2),
        x=inputs,
        y=value("y", F, (5, 3, 2, 2)),
    )


def scattered_elements() -> ModelProto:
    scattered = node("ScatterElements", ["x", "i", "u"], ["y"], reduction="add")
    size = value("x", F, (8, 4)), value("y", F, (8, 4))
    return graph(scattered, x=size[0], y=size[1], i=[[1, 2, 3, 0]], u=np.ones((1, 4), np.float32))


def with_function(kind: str) -> ModelProto:
    model = graph(
        node("Own", ["x"], ["y"], domain="own"), domain="own", y=value("y", F, (1, 3) if kind == "Det" else PHOTO)
    )
    inner = [node(kind, ["a"], ["b"], name="inner")]
    model.functions.append(helper.make_function("own", "Own", ["a"], ["b"], inner, [helper.make_opsetid("", 20)]))
    return model


def by_input(kind: str, size: Sequence[int], y: Sequence[int | str], dtype: int = I64) -> ModelProto:
    outputs = [value("y", F, y)] + ([value("i", I64, y)] if kind == "TopK" else [])
    inputs = ["x", "", "s"] if kind == "Resize" else ["x", "s"]
    return graph(node(kind, inputs, [o[0] for o in outputs]), x=[X, value("s", dtype, size)], y=outputs)


HALF = np.ones(1, np.float16)
WEIGHT = rng.integers(0, 255, (4, 3, 3, 3))
VARIANTS: list[tuple[str, Callable[[], ModelProto], str]] = [
    ("shape-input", lambda: by_input("TopK", (1,), (1, 3, 8, "k")), BUILD_REFUSES),
    ("shape-input", lambda: by_input("Expand", (4,), ("a", "b", "c", "d")), BUILD_REFUSES),
    ("shape-input", lambda: by_input("Resize", (4,), ("a", "b", "c", "d"), F), REFUSES),
    (
        "wiring",
        lambda: graph(node("Relu", ["x"], ["t"]), node("Neg", ["x"], ["t"]), node("Neg", ["t"], ["y"])),
        REFUSES,
    ),
    ("dtype", lambda: relu(value("x", TensorProto.UINT32)), REFUSES),
    ("dtype", lambda: mixed("Add", np.ones(1, np.int16), Y), REFUSES),
    ("dtype", lambda: graph(node("Constant", [], ["c"], value_string="text"), node("Relu", ["x"], ["y"])), REFUSES),
    ("uint8", cast_twice, REFUSES),
    ("mixed-types", lambda: conv(KERNEL, value("x", F16), value("y", F16, (1, 4, 6, 6))), REFUSES),
    ("mixed-types", lambda: mixed("MatMul", np.ones((8, 8), np.float16)), REFUSES),
    ("mixed-types", lambda: mixed("Concat", np.ones(PHOTO, np.float16), value("y", F, (1, 6, 8, 8)), axis=1), REFUSES),
    ("mixed-types", lambda: mixed("PRelu", HALF), REFUSES),
    ("zero-point", lambda: qdq(np.uint8(128)), REFUSES),
    ("zero-point", lambda: quantised(weight=np.uint8, zero=128), REFUSES),
    ("zero-point", lambda: quantised(zero=1), REFUSES),
    ("uint8-quantised", lambda: dequantised(WEIGHT.astype(np.uint8), np.uint8(0)), REFUSES),
    (
        "uint8-quantised",
        lambda: graph(node("QuantizeLinear", ["x", "s"], ["q"]), node("DequantizeLinear", ["q", "s"], ["y"]), s=TENTH),
        TAKES,
    ),
    ("scale", lambda: qdq(scale=-TENTH), REFUSES),
    ("foreign-domain", lambda: unary("Relu", "org.pytorch.aten"), TAKES),
    ("custom-op", lambda: unary("EfficientNMS_TRT", "TRT"), REFUSES),
    ("unsupported-op", lambda: with_function("Det"), REFUSES),
    ("plugin-op", roi_align, ""),  # refused without a GPU, which this machine may have
    ("extra-outputs", lambda: normed("m", "i"), REFUSES),
    ("training-mode", lambda: batch_normed(training_mode=1), REFUSES),
    (
        "spatial-axes",
        lambda: graph(
            node("MaxPool", ["x"], ["y"], kernel_shape=[2] * 4),
            x=value("x", F, (1, 3, 4, 4, 4, 4)),
            y=value("y", F, (1, 3, 3, 3, 3, 3)),
        ),
        REFUSES,
    ),
    ("pool-dilations", lambda: pool("AveragePool", dilations=[2, 2], size=6), REFUSES),
    ("resize", lambda: aligned("half_pixel_symmetric"), REFUSES),
    ("resize", lambda: aligned("tf_crop_and_resize"), REFUSES),
    ("scatter-reduction", scattered_elements, REFUSES),
    ("runtime-axes", lambda: reduced(x=[X, value("a", I64, (2,))]), REFUSES),
    ("runtime-axes", lambda: axes("Squeeze", "abc"), REFUSES),
    ("runtime-axes", lambda: axes("Unsqueeze", "abcde"), REFUSES),
    ("rnn-variant", lambda: recurrent("LSTM", input_forget=1), REFUSES),
    ("attention", lambda: attention(F16, 8), BUILD_REFUSES),
    ("attention", lambda: attention(F16, 264), BUILD_REFUSES),
    ("attention", lambda: attention(F16, softcap=5.0), REFUSES),
]


@pytest.mark.parametrize(("id", "bad"), [v[:2] for v in VARIANTS])
def test_other_forms_of_a_fault_are_flagged(id: str, bad: Callable[[], ModelProto]) -> None:
    assert id in judge(bad())


@pytest.mark.parametrize(("id", "bad", "parser"), [v for v in VARIANTS if v[2]])
def test_the_real_parser_on_other_forms(
    id: str, bad: Callable[[], ModelProto], parser: str, library: api.Library
) -> None:
    check_verdict(library, bad(), parser)


ALLOWED: list[Callable[[], ModelProto]] = [
    lambda: pool(outputs=("y", "")),
    lambda: graph(node("Identity", ["x"], ["y"]), x=value("x", U8), y=value("y", U8)),
    lambda: with_function("Relu"),
    lambda: aligned("align_corners"),
    lambda: aligned("asymmetric"),
    lambda: aligned("pytorch_half_pixel"),
    lambda: mixed("Pow", np.float16(2)),
    lambda: graph(
        node("ArgMax", ["x"], ["a"], axis=1, keepdims=0), node(CAST, ["a"], ["y"], to=U8), y=value("y", U8, (1, 8, 8))
    ),
    lambda: conv(KERNEL[..., 0], value("x", F, (1, 3, 8)), value("y", F, (1, 4, 6))),
    lambda: graph(
        node("Concat", ["b", "c"], ["a"], axis=0),
        node("Unsqueeze", ["x", "a"], ["y"]),
        y=value("y", F, (1, 1, *PHOTO)),
        b=[0],
        c=[1],
    ),
    lambda: quantised(),
    lambda: attention(F16),
    lambda: batch_normed(),
    lambda: unary("Swish", opset=24),
]


@pytest.mark.parametrize("good", ALLOWED)
def test_what_tensorrt_takes_is_not_refused(good: Callable[[], ModelProto]) -> None:
    assert not [f for fs in judge(good()).values() for f in fs if f.severity == ERROR]


@pytest.mark.parametrize("good", ALLOWED)
def test_the_real_builder_takes_it_too(good: Callable[[], ModelProto], library: api.Library) -> None:
    built = build(library, good())
    assert built, built.reason


def test_the_list_of_operators_is_the_parsers(library: api.Library) -> None:
    builder = library.builder()
    assert builder is not None
    network = library.network(builder)
    parser = library.parser(network)
    schemas = onnx.defs.get_all_schemas_with_history()
    standard = {schema.name for schema in schemas if schema.domain == ""}
    refused = {name for name in standard if not parser.supports_operator(name)}
    assert refused - {"DeformConv", "DFT"} == UNSUPPORTED & standard


@pytest.mark.parametrize("id", CASES)
@pytest.mark.parametrize("part", ["input", "output", "attribute"])
def test_a_node_that_lacks_something_is_told_of_and_breaks_no_rule(id: str, part: str) -> None:
    model = CASES[id].bad()
    for one in View(model).nodes:
        del getattr(one, part)[:]
    found = judge(model)
    assert part == "attribute" or "wiring" in found or id in ("custom-op", "foreign-domain", "wiring")
    fix(model)


def test_a_graph_that_goes_round_in_a_circle_is_told_of() -> None:
    circle = graph(
        node("Identity", ["b"], ["a"]), node("Identity", ["a"], ["b"]), node("ReduceMean", ["x", "a"], ["y"])
    )
    assert "runtime-axes" in judge(circle)


# -- targets


@pytest.mark.parametrize(
    ("target", "model", "id", "severity"),
    [
        ("tensorrt:11.2", lambda: sampled(3), "gridsample-5d", ""),
        ("tensorrt:11.1", lambda: sampled(3), "gridsample-5d", ERROR),
        ("tensorrt", nms, "nms", INFO),
        ("tensorrt:8.6", lambda: relu(value("x", I64)), "int64", WARNING),
        ("tensorrt:10", lambda: relu(value("x", I64)), "int64", INFO),
        ("tensorrt:10.15", lambda: attention(F16), "newer-op", ""),
        ("tensorrt:8.6", lambda: relu(value("x", TensorProto.BFLOAT16)), "dtype", ERROR),
        ("tensorrt:10.3", lambda: relu(opset=21), "opset", WARNING),
        ("tensorrt:10.15", lambda: relu(opset=21), "opset", ""),
        ("tensorrt", scattered_elements, "scatter-reduction", WARNING),
        ("tensorrt", roi_align, "plugin-op", WARNING),
        ("tensorrt-rtx:1.4", roi_align, "plugin-op", ERROR),
        ("tensorrt:10.3", lambda: unary("EfficientNMS_TRT", "TRT"), "custom-op", WARNING),
        ("tensorrt", lambda: recurrent("GRU"), "gru-reset", ""),
    ],
)
def test_a_rule_depends_on_flavour_and_version(
    target: str, model: Callable[[], ModelProto], id: str, severity: str
) -> None:
    found = judge(model(), parse_target(target)).get(id, [])
    assert [f.severity for f in found][:1] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tensort", "did you mean tensorrt"),
        ("", "there are: tensorrt, tensorrt-rtx"),
        ("tensorrt:7.2", "8.5 is the oldest"),
        ("tensorrt:1.7", "did you mean tensorrt-rtx:1.7"),
        ("tensorrt-rtx:10.3", "did you mean tensorrt:10.3"),
        ("tensorrt:new", "write it like tensorrt:10.3"),
        ("tensorrt:", "write it like tensorrt:10.3"),
    ],
)
def test_a_misspelt_target_gets_the_nearest(text: str, says: str) -> None:
    with pytest.raises(ZooError, match=says):
        parse_target(text)


def test_a_target_means_an_installed_version() -> None:
    assert parse_target("tensorrt").means("11.4.0.106")
    assert parse_target("tensorrt:10.3").means("10.3.0.30")
    assert not parse_target("tensorrt:10.3").means("10.30.0")


def test_every_row_of_the_table_has_a_source() -> None:
    for name, feature in FEATURES.items():
        assert feature.name == name
        assert feature.source
        assert feature.tensorrt or feature.rtx


# -- the report


def test_a_report_is_truthy_on_pass_and_tells_what_it_saw() -> None:
    good, bad = lint(quantised(), RTX, ask=False), lint(qdq(np.uint8(128)), RTX, ask=False)
    assert good
    assert not bad
    assert good.precisions == {"int8": 1}
    assert [f.rule for f in bad.errors] == ["zero-point", "zero-point"]
    told = json.loads(json.dumps(bad.to_dict()))
    assert told["passed"] is False
    assert set(told["findings"][0]) == {"rule", "severity", "node", "module", "what", "why", "cure"}
    assert lint(qdq(np.uint8(128)), RTX, ask=False, ignore=["zero-point"])
    with pytest.raises(UnknownName, match="did you mean zero-point"):
        lint(relu(), RTX, ignore=["zero-pont"])


def test_a_node_that_a_pass_put_in_is_told_by_the_layer_that_it_feeds() -> None:
    found = judge(quantised(act=np.uint8(128)), modules={"conv": "body.0"})["zero-point"]
    assert [(f.node, f.module) for f in found] == [("q", "body.0"), ("dq", "body.0")]


def test_an_int8_layer_that_was_asked_for_and_is_not_there_is_an_error() -> None:
    wanted = replace(RTX, precision="int8")
    assert "precision" in judge(conv(), wanted)
    assert "precision" not in judge(quantised(), wanted)
    assert "1 fp32" in judge(conv(), wanted)["precision"][0].what
    assert "layers in the graph: none" in judge(relu(), wanted)["precision"][0].what


def test_weights_in_another_file_are_told(tmp_path: Path) -> None:
    onnx.save(conv(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    found = lint(tmp_path / "m.onnx", RTX, ask=False).findings
    assert [(f.rule, f.severity) for f in found] == [("external-data", INFO)]
    (tmp_path / "m.bin").unlink()
    found = lint(tmp_path / "m.onnx", RTX, ask=False).findings
    assert [(f.rule, f.severity) for f in found] == [("external-data", ERROR)]


def test_a_constant_beside_the_graph_is_read(tmp_path: Path) -> None:
    onnx.save(qdq(np.uint8(128)), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    assert [f.rule for f in lint(tmp_path / "m.onnx", RTX, ask=False).errors] == ["zero-point", "zero-point"]


UNKNOWN_FAULT = graph(
    node("Resize", ["x", "", "s"], ["y"], name="up", mode="nearest"),
    x=value("x", I32),
    y=value("y", I32, (1, 3, 16, 16)),
    s=floats(1, 1, 2, 2),
)
"""Resize of integers, which the parser refuses and no rule tells of."""


def test_the_parser_has_the_last_word(library: api.Library) -> None:
    assert lint(UNKNOWN_FAULT, RTX, ask=False)
    own = lint(UNKNOWN_FAULT, RTX)
    assert not own
    assert [(f.rule, f.node) for f in own.errors] == [(PARSER, "up")]
    assert "Int32" in own.errors[0].what
    assert "refuses it" in own.asked
    sibling = lint(UNKNOWN_FAULT, OLD)
    if api.find("tensorrt") is None:
        assert sibling, "another product's parser warns only"
        assert [(f.rule, f.severity) for f in sibling.findings] == [(PARSER, WARNING)]
        assert "not TensorRT 10.3" in sibling.asked


@pytest.mark.parametrize("id", CASES)
def test_what_a_rule_told_the_parser_does_not_tell_again(id: str, library: api.Library) -> None:
    model = CASES[id].bad()
    verdict = api.parse(library, model.SerializeToString(), nodes=len(model.graph.node))
    assert bool(verdict) == (CASES[id].parser != REFUSES)
    found = lint(model, CASES[id].target, ask=False).findings
    assert untold(Answer(flavour="tensorrt-rtx", version="1", verdict=verdict), View(model), found) == []


def test_a_graph_that_crashes_the_parser_is_an_error_and_not_our_end(library: api.Library) -> None:
    model = graph(node("Relu", ["x"], [], name="cut"), node("Relu", ["x"], ["y"]))
    report = lint(model, RTX)
    assert not report
    assert "wiring" in {f.rule for f in report.errors}
    assert report.verdict is not None
    assert not report.verdict
    (crash,) = [f for f in report.errors if f.rule == PARSER]
    assert "crashes on this graph (SIG" in crash.what


# -- exact rewrites


def computed(model: ModelProto, data: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of the graph as it is written: no fusion, no folding."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, data)  # type: ignore[no-any-return]


def chained(*names: str) -> ModelProto:
    model = graph(*(node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(3)), x=value("t0"), y=value("t3"))
    for one, name in zip(model.graph.node, names, strict=True):
        one.name = name
    return model


FIXABLE: list[tuple[str, Callable[[], ModelProto]]] = [
    ("node-names", lambda: chained("", "", "")),
    ("node-names", lambda: chained("a", "a", "a_0")),
    ("unnamed-axis", lambda: relu(value("x", F, (None, 3, None)))),
    ("extra-outputs", lambda: pool(outputs=("y", "i"))),
    ("extra-outputs", lambda: normed("m", "i")),
    ("loop-condition", lambda: loop("")),
    ("runtime-axes", lambda: reduced(node("Concat", ["b", "c"], ["a"], axis=0), b=[2], c=[3])),
    ("runtime-axes", lambda: reduced(node("Range", ["b", "c", "d"], ["a"]), b=2, c=4, d=1)),
    (
        "quantised-constant",
        lambda: graph(node(CAST, ["c"], ["cf"], to=F), node("Mul", ["x", "cf"], ["y"]), c=np.full(1, -7, np.int8)),
    ),
    ("double", lambda: graph(node(CAST, ["c"], ["cf"], to=F), node("Mul", ["x", "cf"], ["y"]), c=np.asarray([0.1]))),
    ("int32-bias", lambda: quantised(bias=True)),
    ("zero-point", lambda: qdq(np.uint8(128))),
    ("zero-point", lambda: quantised(act=np.uint8(128), weight=np.uint8, zero=128)),
]


@pytest.mark.parametrize(("id", "made"), FIXABLE)
def test_a_fix_heals_and_changes_no_bit(id: str, made: Callable[[], ModelProto]) -> None:
    model = made()
    before = model.SerializeToString(deterministic=True)
    assert id in judge(model)
    fixed, done = fix(model)
    assert done
    assert model.SerializeToString(deterministic=True) == before, "fix changed what it was given"
    onnx.checker.check_model(fixed, full_check=True)
    left = judge(fixed)
    assert id not in left
    assert not [f for fs in left.values() for f in fs if f.severity == ERROR]
    assert fix(fixed)[1] == [], "what is fixed stays fixed"
    shape = [4 if isinstance(size, str) else size for size in View(model).shape(model.graph.input[0].name) or ()]
    data = {model.graph.input[0].name: (rng.normal(size=shape) * 5).astype(np.float32)}
    if id == "node-names":  # ONNX Runtime refuses two nodes of one name, but takes nodes without any
        model = unnamed(model)
    for one, two in zip(computed(model, data), computed(fixed, data), strict=True):
        assert one.dtype == two.dtype
        assert np.array_equal(one, two)


@pytest.mark.parametrize(("id", "made"), FIXABLE)
def test_the_real_builder_takes_what_was_fixed(id: str, made: Callable[[], ModelProto], library: api.Library) -> None:
    built = build(library, fix(made())[0])
    assert built, built.reason


def read_indices() -> ModelProto:
    shape = (1, 3, 7, 7)
    return graph(
        node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]), y=[value("y", F, shape), value("i", I64, shape)]
    )


def given_out() -> ModelProto:
    return graph(node("QuantizeLinear", ["x", "s", "z"], ["y"]), y=value("y", U8), s=TENTH, z=np.uint8(128))


def in_double() -> ModelProto:
    nodes = [node(CAST, ["x"], ["d"], to=D), node("Add", ["d", "c"], ["e"]), node(CAST, ["e"], ["y"], to=F)]
    return graph(*nodes, c=np.asarray([0.1]))


@pytest.mark.parametrize(
    "made",
    [
        lambda: qdq(np.uint8(127)),
        lambda: qdq(np.uint8(0)),
        given_out,
        read_indices,
        in_double,
        lambda: batch_normed(training_mode=1),
        lambda: reduced(x=[X, value("a", I64, (2,))]),
        relu,
    ],
)
def test_what_cannot_be_mended_exactly_is_left_alone(made: Callable[[], ModelProto]) -> None:
    model = made()
    fixed, done = fix(model)
    assert done == []
    assert fixed.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


# -- the command


def run(*args: object) -> tuple[int, Result]:
    """Exit code as the zoo gives it, and click's result."""
    result = CliRunner().invoke(command, [str(a) for a in args], standalone_mode=False)
    if isinstance(result.exception, ZooError):
        return result.exception.exit_code, result
    assert result.exception is None, result.exception
    return 0, result


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(quantised(bias=True, act=np.uint8(128)), path)
    (tmp_path / "model.modules.json").write_text('{"conv": "features.0"}')
    return path


def test_the_command_shows_a_table_and_exits_1(bad_file: Path) -> None:
    code, result = run(bad_file, "--for", "tensorrt:10.3")
    assert code == 1
    assert isinstance(result.exception, GateFailed)
    assert re.search(r"error +zero-point +2 +q +features\.0 +UINT8, zero point 128", result.stdout)
    assert re.search(r"error +int32-bias +1 +bdq +features\.0", result.stdout)
    assert "cure: leave the bias in float" in result.stdout
    assert "for TensorRT 10.3, opset 20" in result.stdout
    assert "the first, zero-point at q: UINT8, zero point 128" in str(result.exception)


def test_the_command_passes_a_good_graph(tmp_path: Path) -> None:
    onnx.save(conv(), tmp_path / "good.onnx")
    code, result = run(tmp_path / "good.onnx", "--no-parser")
    assert code == 0
    assert "verdict: no errors" in result.stdout
    assert run(tmp_path / "good.onnx", "--no-parser", "--expect", "fp16")[0] == 1


def test_json_holds_every_finding(bad_file: Path) -> None:
    code, result = run(bad_file, "--json", "--ignore", "int32-bias")
    told = json.loads(result.stdout)
    assert code == 1
    assert told["passed"] is False
    (model,) = told["models"]
    errors = [f for f in model["findings"] if f["severity"] == ERROR]
    assert [(f["rule"], f["module"]) for f in errors] == [("zero-point", "features.0")] * 2


def test_fix_writes_a_graph_that_passes(bad_file: Path) -> None:
    out = bad_file.with_name("mended.onnx")
    code, result = run(bad_file, "--for", "tensorrt-rtx", "--fix", out, "--expect", "int8")
    assert code == 0, result.stdout
    assert "fixed: node q: UINT8 around 128 is INT8 around 0 now" in result.stderr
    assert lint(out, RTX)
    code, result = run(out, "--fix", out)
    assert "nothing: no exact rewrite applies" in result.stderr


def test_a_bundle_is_linted_artefact_by_artefact(tiny_bundle: Path, tmp_path: Path) -> None:
    from zoo.bundle import open_bundle, pack
    from zoo.files import dump_json, sha256_file

    assert run(tiny_bundle)[0] == 0
    bad = tiny_bundle / "model.int8.onnx"
    onnx.save(quantised(act=np.uint8(3)), bad)
    manifest = json.loads((tiny_bundle / "zoo.json").read_text())
    manifest["artifacts"].append({**manifest["artifacts"][0], "name": "int8", "precision": "int8", "file": bad.name})
    manifest["files"][bad.name] = {"bytes": bad.stat().st_size, "sha256": sha256_file(bad)}
    dump_json(tiny_bundle / "zoo.json", manifest)
    packed = pack(open_bundle(tiny_bundle), tmp_path / "packed.zoo")
    for bundle in (tiny_bundle, packed):
        code, result = run(bundle, "--no-parser")
        assert code == 1
        assert "fp32: for TensorRT" in result.stdout
        assert "int8: for TensorRT" in result.stdout
        assert run(bundle, "--artifact", "fp32", "--no-parser")[0] == 0
        assert run(bundle, "--artifact", "int8", "--no-parser")[0] == 1
        code, result = run(bundle, "--artifact", "int4")
        assert (code, "it has fp32, int8" in str(result.exception)) == (2, True)
        code, result = run(bundle, "--fix", tmp_path / "out.onnx")
        assert (code, "choose one with --artifact" in str(result.exception)) == (2, True)


@pytest.mark.parametrize(
    ("name", "content", "options", "says"),
    [
        ("gone.onnx", None, (), "No such file"),
        ("empty.onnx", b"", (), "holds no graph"),
        ("text.onnx", b"not a network", (), "is not an ONNX file"),
        ("short.onnx", "half", (), "is not an ONNX file"),
        ("good.onnx", "good", ("--for", "tensort"), "did you mean tensorrt"),
        ("good.onnx", "good", ("--expect", "fp15"), "did you mean fp16"),
        ("good.onnx", "good", ("--ignore", "zero-pont"), "did you mean zero-point"),
        ("good.onnx", "good", ("--artifact", "int8"), "one graph, not a bundle"),
        ("good.onnx", "good", ("--fix", "/dev/null/out.onnx"), "cannot be written"),
    ],
)
def test_bad_input_gets_one_line_and_exit_2(
    tmp_path: Path, name: str, content: Any, options: tuple[str, ...], says: str
) -> None:
    whole = conv().SerializeToString()
    data = {"half": whole[: len(whole) // 2], "good": whole}.get(content, content) if content else content
    if data is not None:
        (tmp_path / name).write_bytes(data)
    code, result = run(tmp_path / name, *options)
    assert code == 2
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)
    assert run(tmp_path)[0] == 2, "a folder that is no bundle"


# -- the zoo's own exports, and a foreign int8 network


@pytest.fixture(scope="module", params=[("lenet5", 28), ("mobilenetv2_050", 64)], ids=lambda p: p[0])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    from zoo.artifacts import Artifact
    from zoo.builtin import CLASSIFY
    from zoo.testing.signal import give_signal
    from zoo.train.classify import Deployable
    from zoo.train.models import open_model
    from zoo_export.onnx_export import export

    name, size = request.param
    torch.manual_seed(0)
    model = open_model(name, weights="none", num_classes=5, size=size)
    module = Deployable(give_signal(model.network, model.input)).eval()
    source = Artifact(format="torch", precision="fp32", input=model.input, task=CLASSIFY, module=module)
    return export(source, tmp_path_factory.mktemp(name) / "model.fp32.onnx", {})


def test_our_own_fp32_has_no_errors(exported: Any) -> None:
    for target in ("tensorrt", "tensorrt:10.3", "tensorrt-rtx"):
        report = lint(exported.path, parse_target(target))
        assert report, report.errors
        assert {f.rule for f in report.findings} <= {"dynamic-shape", "fp16-range"}
        assert set(report.precisions) == {"fp32"}


def test_int8_as_it_is_written_for_cpus_is_refused(exported: Any) -> None:
    from zoo.artifacts import Calibration
    from zoo.testing.signal import probe
    from zoo_export.precision.int8_cpu import StaticInt8

    calibration = Calibration(tensors=probe(exported.input, 8).numpy(), source="made")
    made = StaticInt8()(exported, exported.path.with_name("model.int8.onnx"), calibration)
    report = lint(made.path, parse_target("tensorrt"))
    assert not report
    rules = {f.rule for f in report.errors}
    assert "int32-bias" in rules
    assert rules <= {"zero-point", "uint8-quantised", "int32-bias"}
    assert rules & {"zero-point", "uint8-quantised"}
    assert all(f.module.startswith("network.") for f in report.errors if f.rule == "int32-bias")
    if api.find("tensorrt-rtx"):
        assert report.verdict is not None
        assert not report.verdict


@pytest.mark.assets
def test_the_foreign_int8_network_is_refused_for_the_right_reasons(assets: Path) -> None:
    for target in ("tensorrt:10.3", "tensorrt-rtx"):
        report = lint(assets / "weights" / "mobilenet_v2.int8-qlinear.onnx", parse_target(target))
        assert not report
        found = {rule: [f for f in report.errors if f.rule == rule] for rule in {f.rule for f in report.errors}}
        assert set(found) == {"unsupported-op", "custom-op", "zero-point", "uint8-quantised"}
        assert sum("QLinearConv" in f.what for f in found["unsupported-op"]) == 52
        assert sum("QLinearMatMul" in f.what for f in found["unsupported-op"]) == 1
        assert sum("QLinearAdd" in f.what for f in found["custom-op"]) == 11
        assert all("quantise the float network again" in f.cure for f in found["unsupported-op"])
        assert {f.what for f in found["zero-point"]} >= {"UINT8, zero point 114"}
