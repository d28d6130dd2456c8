"""Mutations of what an ONNX file has: sizes, attributes, operators, weights, and where weights are said to lie."""

from __future__ import annotations

import random
from typing import Any

_OPERATORS = (
    *("Relu", "Conv", "Add", "MatMul", "Concat", "Resize", "Tile", "Expand", "Pad", "Range", "ConstantOfShape"),
    *(
        "Reshape",
        "Gather",
        "Loop",
        "If",
        "Identity",
        "MaxPool",
        "ConvTranspose",
        "OneHot",
        "Softmax",
        "Einsum",
        "Custom",
    ),
)
_SIZES = (0, 1, -1, 2, 255, 65535, 65536, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
_TEXTS = ("", "x", "../a", "/etc/passwd", "a" * 5000, "é", "SAME_UPPER", "bij,bjk->bik")


def changed_graph(content: bytes, rng: random.Random) -> bytes:
    """A network with one thing changed.

    Args:
        content: The content of an ONNX file.
        rng: Where the choice comes from.

    Returns:
        Another one, which may not be valid.
    """
    import onnx

    model = onnx.load_from_string(content)
    rng.choice(_CHANGES)(model.graph, rng)
    changed: bytes = model.SerializeToString()
    return changed


def _input_size(graph: Any, rng: random.Random) -> None:
    dimension = rng.choice(rng.choice(graph.input).type.tensor_type.shape.dim)
    if rng.random() < 0.2:
        dimension.dim_param = rng.choice(_TEXTS)
    else:
        dimension.dim_value = rng.choice(_SIZES)


def _input_type(graph: Any, rng: random.Random) -> None:
    rng.choice(graph.input).type.tensor_type.elem_type = rng.randint(0, 24)


def _input_rank(graph: Any, rng: random.Random) -> None:
    shape = rng.choice(graph.input).type.tensor_type.shape
    for _ in range(rng.choice((1, 3, 100, 10_000))):
        shape.dim.add().dim_value = rng.choice((0, 1, 2, 65536))


def _attribute(graph: Any, rng: random.Random) -> None:
    attribute = rng.choice([each for node in graph.node for each in node.attribute])
    if attribute.ints and rng.random() < 0.8:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_SIZES)
    elif attribute.ints:
        attribute.ints.extend([1] * rng.choice((1, 3, 10_000)))
    else:
        attribute.i, attribute.f, attribute.s = rng.choice(_SIZES), float("nan"), rng.choice(_TEXTS).encode()
        attribute.type = rng.randint(0, 14)


def _operator(graph: Any, rng: random.Random) -> None:
    rng.choice(graph.node).op_type = rng.choice(_OPERATORS)


def _copies(graph: Any, rng: random.Random) -> None:
    """A chain in which each operator doubles what comes in."""
    source = rng.choice(graph.node).output[0]
    for number in range(rng.choice((1, 10, 40, 500))):
        name = f"copy {number} {source}"[:100]
        graph.node.add(op_type="Concat", input=[source, source], output=[name]).attribute.add(name="axis", i=0, type=2)
        source = name
    graph.output[0].name = source


def _wires(graph: Any, rng: random.Random) -> None:
    names = [name for node in graph.node for name in (*node.input, *node.output)] + [*_TEXTS]
    node = rng.choice(graph.node)
    side = rng.choice((node.input, node.output))
    if side:
        side[rng.randrange(len(side))] = rng.choice(names)


def _lose(graph: Any, rng: random.Random) -> None:
    part = rng.choice((graph.node, graph.initializer, graph.input, graph.output))
    if part:
        del part[rng.randrange(len(part))]


def _weight_size(graph: Any, rng: random.Random) -> None:
    weight = rng.choice(graph.initializer)
    if weight.dims and rng.random() < 0.7:
        weight.dims[rng.randrange(len(weight.dims))] = rng.choice(_SIZES)
    else:
        weight.data_type = rng.randint(0, 24)


def _outside(graph: Any, rng: random.Random) -> None:
    """A weight that lies in another file."""
    weight = rng.choice(graph.initializer)
    weight.ClearField("raw_data")
    weight.data_location = 1
    for key, value in (("location", rng.choice(_TEXTS)), ("offset", str(rng.choice(_SIZES))), ("length", "16")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value


def _sparse(graph: Any, rng: random.Random) -> None:
    """A sparse weight of any size in place of a dense one."""
    weight = graph.initializer.pop(rng.randrange(len(graph.initializer)))
    sparse = graph.sparse_initializer.add()
    sparse.values.name, sparse.values.data_type = weight.name, 1
    sparse.values.dims.append(1)
    sparse.values.float_data.append(1.0)
    sparse.indices.data_type = 7
    sparse.indices.dims.append(1)
    sparse.indices.int64_data.append(rng.choice(_SIZES))
    sparse.dims.extend(rng.choice(_SIZES) for _ in weight.dims)


_CHANGES = (
    *(_input_size, _input_type, _input_rank, _attribute, _attribute, _operator, _copies, _wires, _lose),
    *(_weight_size, _outside, _sparse),
)
