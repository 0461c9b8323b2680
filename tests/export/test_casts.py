"""fp16 and bf16 by casts: typed throughout, rounded where they say so, and float32 where half precision does not do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from zoo.artifacts import Artifact, Calibration
from zoo.builtin import CLASSIFY
from zoo.errors import ExportError
from zoo.parity.gates import compare
from zoo.registry import get_registry
from zoo.runtime.ort import open_session
from zoo.runtime.tensorrt import api
from zoo.specs import Architecture, ImageInput, Task, resolve
from zoo.testing.signal import give_signal, probe
from zoo.train.classify import Deployable
from zoo_export.graphs import clean
from zoo_export.onnx_export import export
from zoo_export.precision import casts, keeping
from zoo_export.precision.casts import HalfPrecision, twin
from zoo_export.precision.halves import emulate, prepare, to_half
from zoo_export.precision.keeping import Yardstick, by_constants, by_nature, by_range, formless, macs, measure_shapes
from zoo_export.precision.layers import layer_precisions
from zoo_export.tensorrt.lint import lint
from zoo_export.tensorrt.targets import Target
from zoo_export.tensorrt.view import View

F, F16, BF16, I64, BOOL = (getattr(TensorProto, n) for n in ("FLOAT", "FLOAT16", "BFLOAT16", "INT64", "BOOL"))
NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
SPEC = ImageInput(height=24, width=24)


def draw(*shape: int) -> np.ndarray:
    """The same numbers for the same shape, so that a graph can be made twice."""
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """Named after its first output."""
    return helper.make_node(
        op, inputs.split(" "), outputs.split(" "), name=f"{outputs.split(' ')[0]}_node", **attributes
    )


def graph(
    *nodes: NodeProto, outputs: str = "y", shape: tuple[int | str, ...] = (2, 3, 8, 8), **constants: Any
) -> ModelProto:
    """``image`` to the named outputs, whose types are inferred."""
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", F, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs.split(" ")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def half(model: ModelProto, precision: str = "fp16", keep: tuple[str, ...] = ()) -> ModelProto:
    """Converted, checked by ONNX itself, and by the linter's rule for operands of different types."""
    made = clean(to_half(prepare(model), precision, keep))
    onnx.checker.check_model(made, full_check=True)
    findings = lint(made, Target(flavour="tensorrt-rtx")).findings
    assert [f for f in findings if f.rule == "mixed-types"] == []
    return made


def run(model: ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    return open_session(model.SerializeToString(), threads=1).run(image)


def kind(model: ModelProto, name: str) -> int:
    return View(model).dtype(name)


def operators(model: ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


@pytest.fixture(scope="module")
def library() -> api.Library:
    found = api.find("tensorrt-rtx")
    if found is None:
        pytest.skip("tensorrt-rtx is not installed: pip install tensorrt-rtx (Linux x86-64, Windows)")
    return found


# -- arithmetic ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_emulation_rounds_as_the_type_does(precision: str) -> None:
    """x + x + x and (x * 1.001) * 1.001, on numbers that round, overflow, and are subnormal."""
    values = [1 + 2**-13, np.pi, 70000, -65519.9, 1e-6, 2**-26, 2**-24, 0, 1 / 3, 2049, 3e-39, *draw(245).tolist()]
    image = np.asarray(values, np.float32).reshape(1, -1)
    model = graph(
        node("Add", "image image", "a"),
        node("Add", "a image", "sum"),
        node("Mul", "image c", "m"),
        node("Mul", "m c", "product"),
        outputs="sum product",
        shape=(1, 256),
        c=np.float32(1.001),
    )
    found = run(emulate(half(model, precision)), image)
    kind = NUMPY[precision]
    with np.errstate(over="ignore"):
        x, c = image.astype(kind), np.asarray(1.001, kind)
        np.testing.assert_array_equal(found["sum"], ((x + x) + x).astype(np.float32))
        np.testing.assert_array_equal(found["product"], ((x * c) * c).astype(np.float32))
    if precision == "fp16":
        assert np.isinf(found["sum"]).sum() == 2


def test_onnx_runtime_shows_none_of_it() -> None:
    """What the emulation is there for; a version that rounds makes it unnecessary."""
    model = graph(node("Add", "image image", "a"), node("Add", "a image", "y"), shape=(1, 2))
    image = np.asarray([[1 + 2**-13, 70000]], np.float32)
    assert run(half(model), image)["y"].tolist() == [[pytest.approx(3.00037, abs=1e-5), 210000]]
    assert run(emulate(half(model)), image)["y"].tolist() == [[3, np.inf]]
    with pytest.raises(Exception, match=r"bfloat16|Conv"):
        run(half(graph(node("Conv", "image w", "y"), w=draw(4, 3, 3, 3)), "bf16"), draw(2, 3, 8, 8))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_layer_adds_up_in_float32_what_is_rounded(precision: str) -> None:
    w, b = draw(5, 3), draw(5)
    model = graph(node("Gemm", "image w b", "h", transB=1), node("Relu", "h", "y"), shape=(2, 3), w=w, b=b)
    image = draw(2, 3)

    def round_(value: np.ndarray) -> np.ndarray:
        return np.asarray(value.astype(NUMPY[precision]).astype(np.float32))

    exact = round_(image) @ round_(w).T + round_(b)
    found = run(emulate(half(model, precision)), image)["y"]
    np.testing.assert_array_equal(found, np.maximum(round_(exact), 0))
    np.testing.assert_array_equal(found, round_(found))


def test_no_scale_becomes_zero() -> None:
    made = half(integer_layer(dead=True))
    scales = next(numpy_helper.to_array(i) for i in made.graph.initializer if i.name == "ws")
    assert scales.dtype == np.float16
    assert scales[2] == np.float16(2**-24)
    assert scales[0] == np.float16(0.02)


def test_the_emulation_does_not_round_inside_an_integer_layer() -> None:
    """Between a DequantizeLinear and the QuantizeLinear after the layer lies one integer kernel."""
    made = emulate(half(integer_layer()))
    ops = operators(made)
    # the image is rounded where it is cast, and what is added in half precision; nothing between
    assert ops.count("Squeeze") == 2
    assert ops.index("Conv") + 1 == ops.index("Relu")
    assert ops.index("Relu") + 1 == next(
        i for i, op in enumerate(ops) if op == "QuantizeLinear" and i > ops.index("Relu")
    )


def integer_layer(scale: float = 0.02, dead: bool = False) -> ModelProto:
    """Conv and Relu between Q/DQ pairs, symmetric; then an addition in float."""
    zero = np.int8(0)
    return graph(
        node("QuantizeLinear", "image s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w ws wz", "wd", axis=0),
        node("Conv", "d wd b", "c"),
        node("Relu", "c", "r"),
        node("QuantizeLinear", "r s z", "rq"),
        node("DequantizeLinear", "rq s z", "rd"),
        node("Add", "rd one", "y"),
        s=np.float32(0.03),
        z=zero,
        w=(draw(4, 3, 3, 3) * 40).astype(np.int8),
        ws=np.asarray([scale, scale, 1e-12 if dead else scale, scale], np.float32),
        wz=np.zeros(4, np.int8),
        # a bias beside such a scale overflows the 32 bits in which ONNX Runtime's kernel wants it
        b=draw(4) * np.asarray([1, 1, not dead, 1], np.float32),
        one=np.float32(1),
    )


# -- every kind of node --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A graph, the types that some of its values must have in fp16, and what TensorRT-RTX says of it."""

    model: Callable[[], ModelProto]
    types: dict[str, int]
    bf16: dict[str, int] = field(default_factory=dict)
    """Where they differ in bf16, beside the type itself."""
    builds: bool = True


def _branch(name: str, factor: float) -> onnx.GraphProto:
    """Multiplies ``h`` of the graph around it."""
    return helper.make_graph(
        [helper.make_node("Mul", ["h", f"{name}_c"], [f"{name}_out"], name=f"{name}_mul")],
        name,
        [],
        [helper.make_tensor_value_info(f"{name}_out", F, [2, 3, 8, 8])],
        [helper.make_tensor(f"{name}_c", F, [], [factor])],
    )


CASES: dict[str, Case] = {
    "a constant for half and for float": Case(
        lambda: graph(
            node("Mul", "image c", "a"), node("Range", "c stop step", "r"), node("Add", "a r", "y"),
            c=np.float32(1), stop=np.float32(9), step=np.float32(1),
        ),
        {"a": F16, "c": F, "r": F, "c.fp16": F16},
    ),
    "an output that is read again": Case(
        lambda: graph(node("Mul", "image c", "y"), node("Exp", "y", "z"), outputs="y z", c=draw(3, 1, 1)),
        {"y": F, "z": F, "y.fp16": F16, "z.fp16": F16},
    ),
    "casts of its own": Case(
        lambda: graph(
            node("Mul", "image c", "a"), node("Cast", "a", "i", to=I64), node("Cast", "i", "f", to=F),
            node("Add", "a f", "y"), c=np.float32(3),
        ),
        {"a": F16, "i": I64, "f": F16},
    ),
    "constants made by nodes": Case(
        lambda: graph(
            helper.make_node("Constant", [], ["c"], value=helper.make_tensor("v", F, [1], [2.0])),
            node("ConstantOfShape", "size", "ones", value=helper.make_tensor("v", F, [1], [1.0])),
            node("Mul", "image c", "a"), node("Add", "a ones", "y"), size=np.asarray([3, 1, 1]),
        ),
        {"c": F16, "ones": F16, "a": F16},
    ),
    "resize": Case(
        lambda: graph(
            node("Exp", "image", "e"), helper.make_node("Resize", ["e", "", "s"], ["y"], name="r", mode="linear"),
            s=np.asarray([1, 1, 2, 2], np.float32),
        ),
        {"e": F16, "s": F, "y.fp16": F16},
    ),
    "clip": Case(
        lambda: graph(node("Exp", "image", "e"), node("Clip", "e lo hi", "y"), lo=np.float32(0), hi=np.float32(6)),
        {"e": F16, "lo": F16, "hi": F16},
    ),
    "normalisations": Case(
        lambda: graph(
            node("Exp", "image", "e"), node("BatchNormalization", "e s b m v", "n"), node("LayerNormalization", "n t u", "l"),
            node("InstanceNormalization", "l s b", "y"), s=draw(3), b=draw(3), m=draw(3), v=np.abs(draw(3)) + 1, t=draw(8), u=draw(8),
        ),
        {"n": F16, "l": F16, "v": F16},
    ),
    "ranks": Case(
        lambda: graph(
            node("Exp", "image", "e"), node("TopK", "e k", "v i", axis=3), node("Neg", "v", "y"), outputs="y i", k=np.asarray([2])
        ),
        {"v": F16, "i": I64, "y": F},
        bf16={"v": F},
    ),
    "a sampler": Case(
        lambda: graph(node("Exp", "image", "e"), node("Tanh", "g", "t"), node("GridSample", "e t", "y"), g=draw(2, 4, 4, 2)),
        {"e": F16, "t": F16, "y.fp16": F16},
    ),
    "comparisons": Case(
        lambda: graph(
            node("Exp", "image", "e"), node("Greater", "e c", "b"), node("Where", "b e c", "w"), node("ArgMax", "w", "y", axis=1),
            c=np.float32(1),
        ),
        {"b": BOOL, "w": F16, "y": I64},
    ),
    "one-hot": Case(
        lambda: graph(
            node("ArgMax", "image", "a", axis=1, keepdims=0), node("OneHot", "a d v", "o", axis=1), node("Mul", "o c", "y"),
            d=np.asarray(3), v=np.asarray([0, 1], np.float32), c=np.float32(0.5),
        ),
        {"o": F16, "v": F16},
        bf16={"o": F, "v": F},
    ),
    "suppression": Case(
        lambda: graph(
            node("Exp", "image", "b"), node("ReduceMax", "b ax", "s", keepdims=0), node("Unsqueeze", "s one", "t"),
            node("NonMaxSuppression", "b t n", "y"), shape=(1, 8, 4), ax=np.asarray([2]), one=np.asarray([1]), n=np.asarray([3]),
        ),
        {"b": F16, "b.fp32": F, "y": I64},
        builds=False,
    ),
    "branches": Case(
        lambda: graph(
            node("Exp", "image", "h"), node("ReduceMax", "h", "m", keepdims=0), node("Greater", "m c", "big"),
            helper.make_node("If", ["big"], ["i"], name="if", then_branch=_branch("t", 2), else_branch=_branch("e", 3)),
            node("Add", "i h", "y"), c=np.float32(1),
        ),
        {"h": F16, "h.fp32": F, "i": F, "i.fp16": F16},
    ),
    "another domain": Case(
        lambda: _foreign(),
        {"e": F16, "y": F},
    ),
    "an integer layer": Case(
        integer_layer, {"s": F16, "ws": F16, "d": F16, "wd": F16, "c": F16, "rd": F16, "w": TensorProto.INT8, "b": F16}
    ),
    "an integer layer whose scales are too small": Case(
        # the layer adds up in integers anyway: it stays in float32 with all that it reads
        lambda: integer_layer(1e-6), {"s.fp16": F16, "ws": F, "wd": F, "d": F, "c": F, "rd": F16},
        bf16={"s.bf16": BF16, "s": BF16, "ws": BF16, "wd": BF16, "d": BF16, "c": BF16},
    ),
    "an integer layer with a dead channel": Case(
        # a scale that fp16 takes for zero, which TensorRT refuses
        lambda: integer_layer(dead=True), {"ws": F16, "wd": F16, "d": F16, "c": F16},
    ),
    "values that only move about": Case(
        lambda: graph(
            node("Transpose", "image", "t", perm=[0, 2, 3, 1]), node("Range", "zero eight one", "r"), node("Reshape", "r to", "p"),
            node("Mul", "t t", "h"), outputs="h p",
            zero=np.float32(0), eight=np.float32(8), one=np.float32(1), to=np.asarray([2, 4]),
        ),
        {"t": F16, "r": F, "p": F},
    ),
}  # fmt: skip


def _foreign() -> ModelProto:
    made = helper.make_graph(
        [
            node("Exp", "image", "e"),
            helper.make_node("QuickGelu", ["e"], ["y"], name="g", domain="com.microsoft", alpha=1.0),
        ],
        "test",
        [helper.make_tensor_value_info("image", F, [2, 3, 8, 8])],
        [helper.make_tensor_value_info("y", F, [2, 3, 8, 8])],
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )


def converted(case: Case, precision: str) -> ModelProto:
    """With what the rules about constants and integer layers keep, as the pass does it."""
    view = View(prepare(case.model()))
    why = {**formless(view, precision), **by_constants(view, precision)}
    return half(case.model(), precision, tuple(casts.with_integer_layers(view, why)))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_node_is_typed_and_runs(name: str, precision: str) -> None:
    case = CASES[name]
    made = converted(case, precision)
    own = {"fp16": F16, "bf16": BF16}[precision]
    wanted = {k.replace("fp16", precision): own if v == F16 else v for k, v in case.types.items()}
    if precision == "bf16":
        wanted |= case.bf16
    names = {*View(made).initializers, *View(made).makers}
    found = {value: kind(made, value) for value in wanted if value in names}
    assert found == {k: v for k, v in wanted.items() if k in names}
    assert len(found) >= len(wanted) - 1
    original = case.model()
    assert [o.type.tensor_type.elem_type for o in made.graph.output] == [
        kind(original, o.name) for o in original.graph.output
    ]
    image = np.abs(draw(*(d.dim_value for d in original.graph.input[0].type.tensor_type.shape.dim)))
    ours, theirs = run(emulate(made), image), run(original, image)
    for output, value in theirs.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(ours[output], value, rtol=0.1, atol=0.06 * float(np.abs(value).max()))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.builds and name != "another domain"])
def test_tensorrt_rtx_builds_it(name: str, precision: str, library: api.Library) -> None:
    built = api.build(library, converted(CASES[name], precision).SerializeToString())
    assert built, built.reason


@pytest.mark.parametrize("operator", keeping.REFUSED["bf16"])
def test_what_tensorrt_refuses_in_bf16_stays_float32(operator: str, library: api.Library) -> None:
    more: dict[str, Any] = {"ConvTranspose": {"w": draw(3, 4, 2, 2)}, "GRU": {"w": draw(1, 15, 8), "r": draw(1, 15, 5)}}
    attributes = {"LpPool": {"kernel_shape": [2, 2]}, "GRU": {"hidden_size": 5}}.get(operator, {})
    names = " ".join(["image", *more.get(operator, {})])
    shape = (2, 3, 8) if operator == "GRU" else (2, 3, 8, 8)
    model = graph(node(operator, names, "y", **attributes), shape=shape, **more.get(operator, {}))
    assert not api.build(library, half(model, "bf16").SerializeToString()), "then it may leave the list"
    kept = formless(View(prepare(model)), "bf16")
    assert kept == {"y_node": f"TensorRT has no bf16 form of {operator}"}
    assert api.build(library, half(model, "bf16", tuple(kept)).SerializeToString())
    assert formless(View(prepare(model)), "fp16") == {}


def test_what_stays_float32_has_casts_around_it_and_one_for_all_that_read() -> None:
    model = graph(
        node("Exp", "image", "a"), node("Sin", "a", "b"), node("Cos", "a", "c"), node("Add", "b c", "y")
    )  # fmt: skip
    made = half(model, keep=("b_node", "c_node"))
    assert operators(made) == ["Cast", "Exp", "Cast", "Sin", "Cos", "Cast", "Cast", "Add", "Cast"]
    assert operators(half(model, keep=("b_node", "c_node", "y_node"))) == ["Cast", "Exp", "Cast", "Sin", "Cos", "Add"]
    assert len({n.name for n in made.graph.node}) == len(made.graph.node)


def test_names_and_the_original_stay() -> None:
    model = prepare(graph(node("Exp", "image", "a"), node("Log", "a", "y")))
    before = model.SerializeToString(deterministic=True)
    made = to_half(model, "fp16")
    assert model.SerializeToString(deterministic=True) == before
    assert [n.name for n in made.graph.node if n.op_type != "Cast"] == ["a_node", "y_node"]
    assert [n.name for n in emulate(made).graph.node if n.op_type in ("Exp", "Log")] == ["a_node", "y_node"]


def test_nameless_nodes_and_local_functions_are_made_plain() -> None:
    function = helper.make_function(
        "own", "Twice", ["x"], ["z"], [helper.make_node("Add", ["x", "x"], ["z"])], [helper.make_opsetid("", 20)]
    )
    made = helper.make_graph(
        [helper.make_node("Twice", ["image"], ["a"], domain="own"), helper.make_node("Exp", ["a"], ["y"])],
        "test",
        [helper.make_tensor_value_info("image", F, [1, 2])],
        [helper.make_tensor_value_info("y", F, [1, 2])],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model = prepare(helper.make_model(made, opset_imports=imports, ir_version=10, functions=[function]))
    assert operators(model) == ["Add", "Exp"]
    assert len({n.name for n in model.graph.node} - {""}) == 2
    assert run(emulate(half(model)), np.asarray([[0, 1]], np.float32))["y"][0, 0] == 1


def test_bf16_does_not_change_what_a_group_normalisation_means() -> None:
    made = helper.make_graph(
        [helper.make_node("GroupNormalization", ["image", "s", "b"], ["y"], name="g", num_groups=1)],
        "test",
        [helper.make_tensor_value_info("image", F, [2, 4, 8, 8])],
        [helper.make_tensor_value_info("y", F, [2, 4, 8, 8])],
        [numpy_helper.from_array(draw(1), n) for n in ("s", "b")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(ExportError, match="GroupNormalization means something else from opset 21 on"):
        to_half(prepare(model), "bf16")


# -- what is kept --------------------------------------------------------------------------------------------------


def ranges(model: ModelProto, image: np.ndarray) -> dict[str, str]:
    return by_range(model, Calibration(tensors=image, source="made"), measure_shapes(model, image[:1]))


def test_values_beyond_the_range_and_what_reads_them_are_kept() -> None:
    model = prepare(graph(
        node("Mul", "image big", "a"), node("Mul", "a small", "b"), node("Exp", "b", "y"),
        shape=("n", 4), big=np.float32(30000), small=np.float32(1e-4),
    ))  # fmt: skip
    image = np.asarray([[0.1, 0.2, 0.3, 0.5]], np.float32)
    assert ranges(model, image) == {}, "15000 has its headroom"
    assert ranges(model, np.concatenate([image, 2 * image])) == {
        "a_node": "values reach 3e+04 (fp16 ends at 65504)",
        "b_node": "values reach 3e+04 (fp16 ends at 65504)",
    }


def test_sums_are_measured_by_their_magnitudes() -> None:
    """Ones against minus ones: every value is 0, and half the way there the sum is not."""
    w = np.concatenate([np.full((1, 64), 40), np.full((1, 64), -40)], axis=1).astype(np.float32)
    model = prepare(graph(node("Gemm", "image w", "h", transB=1), node("Relu", "h", "y"), shape=("n", 128), w=w))
    ones = np.ones((1, 128), np.float32)
    assert ranges(model, 10 * ones) == {}
    assert ranges(model, 20 * ones) == {"h_node": "sums reach 1.02e+05 (fp16 ends at 65504)"}
    # the bound from the extremes alone would not acquit this one
    assert ranges(model, np.concatenate([20 * ones[:, :2], ones[:, 2:]], axis=1)) == {}


def test_a_mean_is_a_sum_on_the_way() -> None:
    model = prepare(graph(node("GlobalAveragePool", "image", "y"), shape=("n", 1, 32, 32)))
    assert ranges(model, np.full((1, 1, 32, 32), 60, np.float32)) == {}
    assert set(ranges(model, np.full((1, 1, 32, 32), 70, np.float32))) == {"y_node"}


def test_constants_that_do_not_survive_keep_their_reader() -> None:
    model = prepare(graph(
        node("Add", "image eps", "a"), node("Mul", "a big", "b"), node("Conv", "b dead", "c"), node("Conv", "c alive", "d"),
        node("Clip", "d lo hi", "e"), node("Add", "e fine", "y"),
        eps=np.float32(1e-9), big=np.float32(1e5), dead=np.float32(1e-8) * draw(4, 3, 1, 1),
        alive=np.concatenate([draw(4, 2, 1, 1), 1e-8 * draw(4, 2, 1, 1)], axis=1),
        lo=np.float32(-3e38), hi=np.float32(3e38), fine=np.float32(1e-5),
    ))  # fmt: skip
    assert set(by_constants(View(model), "fp16")) == {"a_node", "b_node", "c_node"}
    assert by_constants(View(model), "bf16") == {}


def natural(model: ModelProto, precision: str = "fp16", shape: tuple[int, ...] = (2, 3, 8, 8)) -> dict[str, str]:
    model = prepare(model)
    return by_nature(View(model), precision, measure_shapes(model, np.ones(shape, np.float32)))


TAIL = node("Conv", "f w", "y")
"""A last layer, so that what is before it is not the answer."""


def test_statistics_are_kept_however_they_are_written() -> None:
    found = natural(graph(
        node("Mul", "image image", "sq"), node("ReduceMean", "sq ax", "m1"), node("Pow", "image two", "pw"),
        node("ReduceSum", "pw ax", "m2"), node("ReduceL2", "image ax", "m3"), node("ReduceMean", "image ax", "m4"),
        node("Add", "m1 m2", "s1"), node("Add", "s1 m3", "s2"), node("Add", "s2 m4", "s3"), node("Mul", "image s3", "f"), TAIL,
        ax=np.asarray([1]), two=np.float32(2), w=draw(4, 3, 1, 1),
    ))  # fmt: skip
    assert found == dict.fromkeys(
        ["sq_node", "m1_node", "pw_node", "m2_node", "m3_node"], "statistics: sums of squares"
    )


def test_long_sums_are_kept() -> None:
    model = graph(
        node("GlobalAveragePool", "image", "g"), node("Mul", "image g", "a"), node("Softmax", "a", "b", axis=3),
        node("AveragePool", "b", "f", kernel_shape=[2, 2]), TAIL, shape=("n", 3, 64, 40), w=draw(4, 3, 1, 1),
    )  # fmt: skip
    why = "a sum of more than 2048 terms, to which fp16 counts"
    assert natural(model, shape=(1, 3, 64, 40)) == {"g_node": why}
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 400
    assert set(natural(model, "fp16", (1, 3, 64, 400))) == {"g_node"}
    assert set(natural(model, "bf16", (1, 3, 64, 400))) == {"g_node", "b_node"}


def test_the_answer_is_kept_after_the_last_layer() -> None:
    found = natural(graph(
        node("Exp", "image", "e"), node("Conv", "e w", "c"), node("Sigmoid", "c", "s"), node("Mul", "s grid", "y"),
        w=draw(4, 3, 1, 1), grid=draw(8, 8),
    ))  # fmt: skip
    assert found == dict.fromkeys(["s_node", "y_node"], "makes the answer, after the last layer with weights")


def test_what_leads_to_a_decision_is_kept_if_it_rounds() -> None:
    """Scores that are computed are ranked in float32; a maximum over what a layer gives ranks as it is."""

    def model(*between: NodeProto) -> ModelProto:
        return graph(
            node("Conv", "image v", "c"), *between, node("TopK", "s k", "top i", axis=3),
            node("GatherElements", "c i", "f", axis=3), TAIL, v=draw(4, 3, 1, 1), w=draw(4, 4, 1, 1), k=np.asarray([2]),
        )  # fmt: skip

    why = "leads to a decision or a coordinate"
    assert natural(model(node("Sigmoid", "c", "t"), node("Neg", "t", "s"))) == dict.fromkeys(
        ["t_node", "s_node", "top_node"], why
    )
    assert natural(model(node("Relu", "c", "s"))) == {}


def test_coordinates_of_a_sampler_and_what_is_computed_from_them_are_kept() -> None:
    found = natural(graph(
        node("Conv", "image v", "c"), node("Transpose", "c", "t", perm=[0, 2, 3, 1]), node("Add", "t reference", "grid"),
        node("GridSample", "image grid", "s"), node("Sub", "grid reference", "distance"), node("Abs", "distance", "d"),
        node("ReduceMax", "d ax", "h"), node("MatMul", "s h", "f"), TAIL,
        v=draw(2, 3, 1, 1), reference=draw(8, 8, 2), ax=np.asarray([1, 3]), w=draw(4, 3, 1, 1),
    ))  # fmt: skip
    assert found.pop("grid_node") == "leads to a decision or a coordinate"
    assert set(found) == {"distance_node", "d_node", "h_node"}


@pytest.mark.parametrize(("precision", "side", "kept"), [("fp16", 128, False), ("fp16", 160, True), ("bf16", 32, True)])
def test_a_sampler_of_a_large_map_stays_float32(precision: str, side: int, kept: bool) -> None:
    """Its places are read in the type of the map: between 0.5 and 1 fp16 has steps of 2^-11, of 0.04 pixels at 160."""
    model = graph(
        node("GridSample", "image g", "f"), TAIL, shape=(1, 3, side, side), g=draw(1, 4, 4, 2), w=draw(4, 3, 1, 1)
    )
    assert set(natural(model, precision, (1, 3, side, side))) == ({"f_node"} if kept else set())


def test_macs_are_counted_from_shapes() -> None:
    model = prepare(graph(
        node("Conv", "image w", "c", group=3, pads=[1, 1, 1, 1]), node("ConvTranspose", "c t", "u", strides=[2, 2]),
        node("Reshape", "u to", "r"), node("MatMul", "r m", "p"), node("Gemm", "flat g b", "q", transA=1), node("Add", "p q", "y"),
        shape=("n", 3, 8, 8), w=draw(6, 1, 3, 3), t=draw(6, 2, 2, 2), to=np.asarray([-1, 16]), m=draw(16, 5),
        flat=draw(7, 1), g=draw(7, 5), b=draw(5),
    ))  # fmt: skip
    found = macs(model, measure_shapes(model, np.ones((1, 3, 8, 8), np.float32)))
    assert found == {
        "c_node": 6 * 64 * 9,
        "u_node": 6 * 64 * 2 * 4,
        "p_node": 32 * 16 * 5,
        "q_node": 7 * 5,
    }


def test_the_yardstick_does_not_take_changed_ranks_for_noise() -> None:
    """Two candidates all but equal change places; what is computed of each is right."""
    model = prepare(graph(
        node("Conv", "image w", "c"), node("TopK", "c k", "v i", axis=3), node("GatherElements", "far i", "g", axis=3),
        node("Add", "v g", "y"), shape=("n", 1, 1, 4), w=np.ones((1, 1, 1, 1), np.float32), k=np.asarray([2]),
        far=np.asarray([[[[100, 200, 300, 400]]]], np.float32),
    ))  # fmt: skip
    image = np.asarray([[[[1, 2.0001, 2, 0]]]], np.float32)
    made = half(model, keep=("top_node",))
    assert compare(run(emulate(made), image)["y"], run(model, image)["y"])["rms_share"] < 1e-3
    image = np.asarray([[[[1, 2, 2.0001, 0]]]], np.float32)
    assert compare(run(emulate(made), image)["y"], run(model, image)["y"])["rms_share"] > 1
    assert Yardstick.of(model, image).worst(emulate(made)) < 1e-3
    assert Yardstick.of(model, image).shares(model) == {"y": 0.0}


# -- the pass ------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Its values reach 1e5 in the middle, and one layer subtracts what a bias of 3000 has added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.loud = nn.Conv2d(8, 8, 3, padding=1)
        self.quiet = nn.Conv2d(8, 8, 3, padding=1)
        self.offset = nn.Conv2d(8, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.last = nn.Conv2d(8, 16, 3, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.quiet(torch.relu(self.loud(x))))
        x = self.offset(x) - 3000
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    network = give_signal(Net(), SPEC)
    with torch.no_grad():
        network.loud.weight.mul_(1e5)
        network.quiet.weight.div_(1e5)
        network.offset.bias.add_(3000)
    source = Artifact(format="torch", precision="fp32", input=SPEC, task=CLASSIFY, module=Deployable(network).eval())
    return export(source, tmp_path_factory.mktemp("casts") / "model.fp32.onnx", {})


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration(tensors=probe(SPEC, 16).numpy(), source="16 made images")


def error(fp32: Artifact, artifact: Artifact) -> float:
    tensors = probe(SPEC, 16, seed=9).numpy()
    assert fp32.path is not None
    theirs = open_session(fp32.path, threads=1).run(tensors)["logits"]
    ours = open_session(twin(artifact) or artifact.path, threads=1).run(tensors)["logits"]
    return float(compare(ours, theirs)["rms_share"]) if np.isfinite(ours).all() else np.inf


def test_the_pass_keeps_what_it_must_and_says_why(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    assert fp32.path is not None
    everything = clean(to_half(prepare(onnx.load(str(fp32.path))), "fp16"))
    onnx.save(everything, tmp_path / "all.onnx")
    assert error(fp32, replace(fp32, path=tmp_path / "all.onnx")) > 0.1, "the network is no test"
    artifact = HalfPrecision("fp16")(fp32, tmp_path / "model.fp16.onnx", calibration)
    assert error(fp32, artifact) < 0.01
    assert artifact.precision == "fp16"
    notes = artifact.notes
    reasons = {entry["why"]: entry["layers"] for entry in notes["kept_float"]}
    beyond = next(layers for why, layers in reasons.items() if why.startswith("values reach"))
    assert "network.loud" in beyond
    assert next(layers for why, layers in reasons.items() if why.startswith("a constant is too small")) == [
        "network.quiet"
    ]
    assert reasons["statistics: sums of squares"] == ["network.norm"]
    assert "network.offset" in reasons[casts.HURTS]
    assert notes["search"]["before"] > notes["search"]["limit"] > notes["search"]["after"]
    assert set(notes["float_layers"]) >= {"network.loud", "network.quiet", "network.offset"}
    assert notes["layers"]["fp16"] >= 3
    assert notes["layers"]["fp16"] + notes["layers"]["fp32"] == 6
    assert notes["calibration_source"] == "16 made images"
    json.dumps(dict(notes), allow_nan=False)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tensorrt_rtx_builds_it_with_the_layers_in_half(
    precision: str, fp32: Artifact, calibration: Calibration, tmp_path: Path, library: api.Library
) -> None:
    artifact = HalfPrecision(precision)(fp32, tmp_path / "model.onnx", calibration)
    assert artifact.path is not None
    shapes = {"image": ((1, 3, 24, 24), (2, 3, 24, 24), (4, 3, 24, 24))}
    built = api.build(library, artifact.path.read_bytes(), profile=shapes)
    assert built, built.reason
    layers = built.verdict.layers
    counted = sum(
        np.asarray([layers[k].get(t, 0) for t in ("HALF", "BF16", "FLOAT")]) for k in ("CONVOLUTION", "MATRIX_MULTIPLY")
    )
    told = artifact.notes["layers"]
    assert counted.tolist() == [told.get("fp16", 0), told.get("bf16", 0), told.get("fp32", 0)]
    assert layers["NORMALIZATION"] == {"FLOAT": 1}
    assert {t.type.tensor_type.elem_type for t in onnx.load(str(artifact.path)).graph.output} == {F}


def test_bf16_has_the_range_and_not_the_bits(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    artifact = HalfPrecision("bf16")(fp32, tmp_path / "model.bf16.onnx", calibration)
    whys = [entry["why"] for entry in artifact.notes["kept_float"]]
    assert not [why for why in whys if "65504" in why]
    assert casts.HURTS in whys
    assert error(fp32, artifact) < 0.08
    assert artifact.notes["opset"] == 22


def test_layers_that_a_person_names_stay_float32(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    convert = HalfPrecision("fp16")
    ranked = convert.sensitivity(fp32, calibration)
    assert [s.sqnr_db for s in ranked] == sorted(s.sqnr_db for s in ranked)
    named = ranked[0]
    artifact = convert(fp32, tmp_path / "x.onnx", replace(calibration, keep_float=(named.node,)))
    assert named.module in artifact.notes["float_layers"]
    assert {"why": "asked for", "nodes": 1, "layers": [named.module]} in artifact.notes["kept_float"]
    assert artifact.path is not None
    assert layer_precisions(onnx.load(str(artifact.path)))[named.node] == "fp32"


def test_measures_once_for_several_tries_and_writes_the_same_bytes(
    fp32: Artifact, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    honest = casts.by_range
    monkeypatch.setattr(casts, "by_range", lambda *a, **k: calls.append(1) or honest(*a, **k))
    convert = HalfPrecision("fp16")
    one = convert(fp32, tmp_path / "one.onnx", calibration)
    two = convert(fp32, tmp_path / "two.onnx", calibration)
    assert len(calls) == 1
    three = HalfPrecision("fp16")(fp32, tmp_path / "three.onnx", calibration)
    assert len(calls) == 2
    contents = {a.path.read_bytes() for a in (one, two, three) if a.path is not None}
    assert len(contents) == 1


def test_a_network_that_no_layers_would_mend_is_said_to_be_so(
    fp32: Artifact, calibration: Calibration, tmp_path: Path
) -> None:
    strict = {**CLASSIFY.tolerances, "fp16": {**CLASSIFY.tolerances["fp16"], "numbers_rms": 1e-6}}
    task = Task(
        name="classify", summary="", load=CLASSIFY.load, outputs=CLASSIFY.outputs, trainer="", tolerances=strict
    )
    artifact = HalfPrecision("fp16")(replace(fp32, task=task), tmp_path / "x.onnx", calibration)
    assert "half of the layers in float32 would not mend it" in artifact.notes["search"]["given_up"]
    assert casts.HURTS not in {entry["why"] for entry in artifact.notes["kept_float"]}


def test_what_cannot_be_converted_gives_one_line(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    convert = HalfPrecision("fp16")
    out = tmp_path / "x.onnx"
    with pytest.raises(ExportError, match="no node is named 'nonsense'"):
        convert(fp32, out, replace(calibration, keep_float=("nonsense",)))
    with pytest.raises(ExportError, match="needs calibration images"):
        convert(fp32, out, Calibration(tensors=calibration.tensors[:0], source="none"))
    with pytest.raises(ExportError, match="needs an ONNX file"):
        convert(replace(fp32, path=None), out, calibration)
    assert fp32.path is not None
    layers = tuple(layer_precisions(onnx.load(str(fp32.path))))
    with pytest.raises(ExportError, match=r"no layer can be fp16.*ask for fp32"):
        convert(fp32, out, replace(calibration, keep_float=layers))
    broken = calibration.tensors.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(ExportError, match="not finite on the calibration images"):
        HalfPrecision("fp16")(fp32, out, Calibration(tensors=broken, source="broken"))
    with pytest.raises(ExportError, match="half precision is one of fp16, bf16, not 'fp8'"):
        HalfPrecision("fp8")
    assert not out.exists()


def test_twins_are_for_half_precision_alone(fp32: Artifact, calibration: Calibration, tmp_path: Path) -> None:
    assert twin(fp32) is None
    assert twin(replace(fp32, path=None)) is None
    artifact = HalfPrecision("fp16")(fp32, tmp_path / "model.fp16.onnx", calibration)
    found = twin(artifact)
    assert found is not None
    assert found == twin(replace(artifact, format="tensorrt"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.fp16.onnx"]
    model = onnx.load(str(found))
    assert not {F16, BF16} & {i.data_type for i in model.graph.initializer}
    assert run(model, calibration.tensors[:3])["logits"].shape == (3, 5)


# -- networks of the zoo -------------------------------------------------------------------------------------------

NETWORKS: list[tuple[str, int, dict[str, Any]]] = [
    ("test_resnet", 64, {}),
    ("test_efficientnet", 64, {}),
    ("test_vit", 64, {"img_size": 64}),
    ("test_convnext", 64, {}),
    ("unet", 64, {"encoder": "test_efficientnet"}),
    ("fastestdet", 64, {}),
    ("rt-detrv2", 128, {"backbone": "resnet10t", "width": 64, "queries": 30, "decoder_layers": 2}),
    ("faster-rcnn", 128, {"backbone": "resnet10t", "width": 32, "hidden": 64}),
]
SLOW = ("unet", "fastestdet", "rt-detrv2", "faster-rcnn")


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [pytest.param(*n, id=n[0], marks=[pytest.mark.slow] if n[0] in SLOW else []) for n in NETWORKS],
)
def test_networks_convert_execute_and_build(
    name: str, side: int, options: dict[str, Any], tmp_path: Path, library: api.Library
) -> None:
    record = get_registry().get(Architecture, name)
    task = get_registry().get(Task, record.task)
    spec = record.input.with_size(side)
    torch.manual_seed(0)
    network = record.resolve()(num_classes=10, in_channels=3, **{**record.options, **options})
    module = resolve(task.trainer, "task")().deployable(give_signal(network, spec)).eval()
    source = Artifact(format="torch", precision="fp32", input=spec, task=task, module=module)
    fp32 = export(source, tmp_path / "model.fp32.onnx", {})
    assert fp32.path is not None
    given = Calibration(tensors=probe(spec, 6, seed=3).numpy(), source="made images")
    tensors = probe(spec, 4, seed=5).numpy()
    yard = Yardstick.of(prepare(onnx.load(str(fp32.path))), tensors)
    shares = {}
    for precision, of_type in (("fp16", "HALF"), ("bf16", "BF16")):
        artifact = HalfPrecision(precision)(fp32, tmp_path / f"model.{precision}.onnx", given)
        assert artifact.path is not None
        model = onnx.load(str(artifact.path))
        assert lint(model, Target(flavour="tensorrt-rtx", precision=precision)).errors == ()
        shares[precision] = yard.worst(emulate(model))
        shapes = {"image": tuple((n, *spec.shape) for n in (1, 2, 4))}
        built = api.build(library, artifact.path.read_bytes(), profile=shapes)
        assert built, built.reason
        counts = [built.verdict.layers.get(k, {}) for k in ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")]
        total = sum(sum(count.values()) for count in counts)
        assert sum(count.get(of_type, 0) for count in counts) >= total / 2, built.verdict.layers
    # of 8 bits in place of 11, an error 8 times as large, or less where layers were kept for it
    assert 0 < shares["fp16"] < shares["bf16"] < 1
    assert shares["fp16"] < 0.1
