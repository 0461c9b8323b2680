"""The first convolution of a network as integer kernels like it: few channels and a stride made many channels and none.

An integer kernel gathers the bytes under its window channel by channel, and three channels at a time it gathers most of the
time (a fifth of an int8 ResNet-18's time went there, none of it faster than in float32). With each block of stride x stride
pixels put into the channels, the same sums are those of a smaller window without a stride.
"""

from __future__ import annotations

import copy

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

__all__ = ["fold_stride"]

CHANNELS = 4
"""Up to so many input channels a convolution is a stem: colours, and perhaps a depth."""


def fold_stride(model: ModelProto) -> ModelProto:
    """A copy in which the strided convolutions of the graph's input read SpaceToDepth of it, at stride 1.

    Exact but for the order in which floats are summed; node names and outputs stay. Left as it is where the sizes are
    open or do not divide by the stride, where channels are grouped or the window is dilated.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    constants = {i.name: i for i in graph.initializer}
    taken = set(constants) | {name for node in graph.node for name in (*node.input, *node.output)}
    nodes: list[NodeProto] = []
    blocks: dict[tuple[str, int], str] = {}
    for node in graph.node:
        stride = _stride(node, shapes.get(node.input[0]) if node.input else None, constants)
        if stride:
            source = node.input[0]
            if (source, stride) not in blocks:
                name = f"{source}.blocks{stride}"
                while name in taken:
                    name += "_"
                taken.add(name)
                nodes.append(helper.make_node("SpaceToDepth", [source], [name], name, blocksize=stride))
                blocks[source, stride] = name
            weight = f"{node.input[1]}.blocks{stride}"
            while weight in taken:
                weight += "_"
            taken.add(weight)
            value, pads = _folded(node, numpy_helper.to_array(constants[node.input[1]]), stride, shapes[source][2:])
            graph.initializer.append(numpy_helper.from_array(value, weight))
            node.input[0], node.input[1] = blocks[source, stride], weight
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("kernel_shape", value.shape[2:]))
            node.attribute.append(helper.make_attribute("pads", pads))
        nodes.append(node)
    if not blocks:
        return model
    copies = [copy.deepcopy(node) for node in nodes]
    used = {name for node in copies for name in node.input} | {o.name for o in graph.output}
    kept = [copy.deepcopy(i) for i in graph.initializer if i.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(kept)
    return shape_inference.infer_shapes(model)


def _stride(node: NodeProto, shape: list[int] | None, constants: dict[str, object]) -> int:
    """The stride that can be folded into the channels; 0 where none can."""
    if node.op_type != "Conv" or shape is None or len(shape) != 4 or node.input[1] not in constants:
        return 0
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    strides = given.get("strides", [1, 1])
    usual = (
        given.get("group", 1) == 1
        and set(given.get("dilations", [1])) == {1}
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and strides[0] == strides[1] > 1
    )
    fits = 0 < shape[1] <= CHANNELS and all(size > 0 and size % strides[0] == 0 for size in shape[2:])
    return strides[0] if usual and fits else 0


def _folded(node: NodeProto, weight: np.ndarray, stride: int, sizes: list[int]) -> tuple[np.ndarray, list[int]]:
    """(M, C·s², ceil(k/s), …) weights in the channel order of SpaceToDepth, and the pads that go with them.

    Output i of a strided convolution reads inputs s·i - pad + k. With zeros put before the window until it starts on a
    block, and behind it until it ends on one, k = s·a + b is row b of block i - begin + a.
    """
    pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [0, 0, 0, 0])
    folded, begins, ends = weight, [], []
    for axis in (0, 1):
        size, kernel, before, after = sizes[axis], weight.shape[2 + axis], pads[axis], pads[2 + axis]
        lead = -before % stride
        tail = -(lead + kernel) % stride
        begin = (before + lead) // stride
        outputs = (size + before + after - kernel) // stride + 1
        begins.append(begin)
        # what the last output reads beyond the last block; negative where the window ends inside
        ends.append(outputs - 1 - begin + (lead + kernel + tail) // stride - size // stride)
        folded = np.pad(folded, [(0, 0), (0, 0), *((lead, tail) if a == axis else (0, 0) for a in (0, 1))])
    m, c, height, width = folded.shape
    blocks = folded.reshape(m, c, height // stride, stride, width // stride, stride).transpose(0, 3, 5, 1, 2, 4)
    value = np.ascontiguousarray(blocks.reshape(m, c * stride**2, height // stride, width // stride))
    return value, [*begins, *ends]
