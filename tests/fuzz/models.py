"""Mutations of ONNX models: of the network's structure, of any field of the protobuf, and of the file's bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor as F
from onnx import AttributeProto, TensorProto, helper, numpy_helper

INTEGERS = (0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 100, 255, 1024, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45, 1e-30, 1e10)
STRINGS = (
    "",
    " ",
    "x",
    "\x1b[31mred\x1b[0m",
    "two\nlines",
    "tab\tand\rreturn",
    "\u202eesrever",
    "\x9b2J",
    "a" * 5000,
    "../../up",
    "/",
    "%s{}[bold]",
    "\x00",
    "ai.onnx",
    "images",
    "é\U0001f600",
)
OPERATORS = (
    "Identity", "Relu", "Neg", "Abs", "Sigmoid", "Softmax", "LogSoftmax", "Flatten", "GlobalAveragePool", "GlobalMaxPool",
    "Transpose", "Shape", "Add", "Mul", "Sub", "Div", "Max", "Min", "Sum", "Concat", "MatMul", "Gemm", "Conv",
    "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization", "InstanceNormalization", "Dropout", "Cast", "CastLike",
    "Reshape", "Squeeze", "Unsqueeze", "Expand", "Tile", "Pad", "Slice", "Gather", "ConstantOfShape", "Constant",
    "ReduceMean", "ReduceSum", "ReduceMax", "ArgMax", "Clip", "Resize", "Where", "Equal", "NonZero", "Range", "Split", "LRN",
    "PRelu", "LeakyRelu", "Exp", "Sqrt", "QuantizeLinear", "DequantizeLinear", "If", "Loop", "Scan", "Einsum",
    "SequenceConstruct", "NoSuchOperator",
)  # fmt: skip
ATTRIBUTES = (
    "axis", "axes", "keepdims", "group", "strides", "pads", "dilations", "kernel_shape", "auto_pad", "ceil_mode",
    "count_include_pad", "epsilon", "momentum", "training_mode", "alpha", "beta", "transA", "transB", "perm", "to", "value",
    "mode", "storage_order", "spatial", "start", "end", "allowzero", "broadcast", "nonsense",
)  # fmt: skip

Draw = random.Random


# -- the structure --------------------------------------------------------------------------------------------------------


def _tensors(graph: onnx.GraphProto) -> list[str]:
    names = [i.name for i in graph.input] + [t.name for t in graph.initializer]
    return names + [name for node in graph.node for name in node.output]


def _some_node(graph: onnx.GraphProto, draw: Draw) -> onnx.NodeProto:
    return draw.choice(list(graph.node)) if graph.node else graph.node.add()


def remove_node(model: onnx.ModelProto, draw: Draw) -> None:
    """With or without its readers reading its first operand instead."""
    graph = model.graph
    node = _some_node(graph, draw)
    if draw.random() < 0.7 and node.input and node.output:
        for other in graph.node:
            for i, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[i] = node.input[0]
        for output in graph.output:
            if output.name == node.output[0]:
                output.name = node.input[0]
    graph.node.remove(node)


def duplicate_node(model: onnx.ModelProto, draw: Draw) -> None:
    """With its outputs' own names or with others, which somebody may read."""
    graph = model.graph
    node = onnx.NodeProto()
    node.CopyFrom(_some_node(graph, draw))
    if draw.random() < 0.7:
        renamed = {name: f"{name}.again" for name in node.output}
        node.output[:] = renamed.values()
        readers = [n for n in graph.node if set(n.input) & set(renamed)]
        if readers:
            reader = draw.choice(readers)
            reader.input[:] = [renamed.get(name, name) for name in reader.input]
    if draw.random() < 0.5:
        node.name += ".again"
    graph.node.insert(draw.randrange(len(graph.node) + 1), node)


def rewire(model: onnx.ModelProto, draw: Draw) -> None:
    """A node reads something else, or one operand more or less."""
    graph = model.graph
    node, name = _some_node(graph, draw), draw.choice([*_tensors(graph), ""])
    choice = draw.random()
    if choice < 0.6 and node.input:
        node.input[draw.randrange(len(node.input))] = name
    elif choice < 0.75:
        node.input.append(name)
    elif choice < 0.9 and node.input:
        del node.input[draw.randrange(len(node.input))]
    elif node.input:
        names = list(node.input)
        draw.shuffle(names)
        node.input[:] = names


def reorder(model: onnx.ModelProto, draw: Draw) -> None:
    """Nodes, or initializers, or a graph's ends."""
    graph = model.graph
    entries: Any = draw.choice([graph.node, graph.node, graph.initializer, graph.input, graph.output])
    copies = [_copy(entry) for entry in entries]
    draw.shuffle(copies)
    del entries[:]
    entries.extend(copies)


def another_operator(model: onnx.ModelProto, draw: Draw) -> None:
    _some_node(model.graph, draw).op_type = draw.choice(OPERATORS)


def insert_node(model: onnx.ModelProto, draw: Draw) -> None:
    """A node of some operator between a result and its readers, with constants for its other operands."""
    graph = model.graph
    if not graph.node:
        return
    place = draw.randrange(len(graph.node))
    node = graph.node[place]
    if not node.output:
        return
    name, made = node.output[0], f"{node.output[0]}.x{draw.randrange(1000)}"
    op, extra, attributes = _inserted(draw)
    operands = [name]
    for i, array in enumerate(extra):
        graph.initializer.append(numpy_helper.from_array(array, f"{made}.{i}"))
        operands.append(f"{made}.{i}")
    if len(extra) == 1 and draw.random() < 0.2:
        operands.reverse()
    readers = [n for n in graph.node if name in n.input]
    for reader in readers if draw.random() < 0.7 else readers[:1]:
        reader.input[:] = [made if i == name else i for i in reader.input]
    for output in graph.output:
        if output.name == name:
            output.name = made
    graph.node.insert(place + 1, helper.make_node(op, operands, [made], draw.choice(["", made]), **attributes))


def _inserted(draw: Draw) -> tuple[str, list[Any], dict[str, Any]]:
    def ints(*values: int) -> Any:
        return np.array(values, np.int64)

    channels = draw.choice([1, 3, 4, 5, 6, 8, 10, 16])
    shape = draw.choice([(), (1,), (channels,), (channels, 1, 1), (1, channels, 1, 1), (1, 1, 1, 1), (2, 1), (0,)])
    number = np.asarray(draw.choice([0, 1, 2, 0.5, -1, 1e30, 1e-30, np.nan, np.inf]), np.float32)
    constant = np.broadcast_to(number, shape).copy()
    big = draw.choice([1, 2, 3, 0, -1, 2**31, 2**62, 100000])
    around = [draw.choice([0, 0, 1, 2, -1, 2**31, 2**40]) for _ in range(8)]
    choices: list[tuple[str, list[Any], dict[str, Any]]] = [
        *(
            (op, [], {})
            for op in ("Identity", "Relu", "Neg", "Flatten", "Softmax", "Shape", "GlobalAveragePool", "GlobalMaxPool")
        ),
        *((op, [constant], {}) for op in ("Add", "Mul", "Sub", "Div", "Max", "Min", "Pow", "PRelu")),
        ("Pad", [ints(*around)], {"mode": draw.choice(["constant", "edge", "reflect", "wrap"])}),
        ("Pad", [ints(*around[:4]), constant, ints(2, 3)], {}),
        ("Tile", [ints(1, 1, 1, big)], {}),
        ("Expand", [ints(1, 1, 1, big)], {}),
        ("Expand", [ints(*[1] * draw.randrange(6))], {}),
        ("Reshape", [ints(*draw.choice([(0, -1), (-1,), (0, 0, 0, 0), (1, big), (0, 0, -1), (2**31, 2**31)]))], {}),
        ("Transpose", [], {"perm": draw.sample(range(4), 4)}),
        ("Transpose", [], {}),
        ("Slice", [ints(0), ints(big), ints(draw.randrange(-4, 5)), ints(draw.choice([1, 2, -1, 0, 2**31]))], {}),
        ("Gather", [ints(draw.choice([0, 1, -1, 99]))], {"axis": draw.choice([0, 1, 2, 3, -1, 7])}),
        ("Cast", [], {"to": draw.choice([1, 2, 3, 6, 7, 9, 10, 11, 16, 99])}),
        ("Clip", [np.float32(0), np.float32(draw.choice([6, np.inf, 0, -1, np.nan]))], {}),
        ("ReduceMean", [ints(*draw.choice([(2, 3), (1,), (-1, -2), (9,), ()]))], {"keepdims": draw.randrange(2)}),
        ("Concat", [constant], {"axis": draw.choice([0, 1, 2, 3, -1, 5])}),
        (
            "MaxPool",
            [],
            {"kernel_shape": [draw.choice([1, 2, 3, 20, 1000, 2**31])] * 2, "strides": [draw.choice([1, 2, 50, 2**31])] * 2},
        ),
        ("AveragePool", [], {"kernel_shape": [draw.choice([1, 2, 3])] * 2, "pads": [draw.choice([0, 1, 2, 99, 2**31])] * 4}),
        ("Dropout", [], {}),
        ("BatchNormalization", [np.ones(channels, np.float32)] * 4, {"epsilon": draw.choice([1e-5, 0.0, -1.0, float("nan")])}),
        ("Resize", [np.zeros(0, np.float32), np.array([1, 1, big, big], np.float32)], {"mode": "nearest"}),
        ("ConstantOfShape", [], {}),
        ("Squeeze", [ints(draw.choice([0, 2, 3, 9]))], {}),
        ("Unsqueeze", [ints(draw.choice([0, 2, 4, 9]))], {}),
    ]
    return draw.choice(choices)


def change_attribute(model: onnx.ModelProto, draw: Draw) -> None:
    """Another number, another type, one more or none."""
    node = _some_node(model.graph, draw)
    choice = draw.random()
    if choice < 0.5 and node.attribute:
        attribute = draw.choice(list(node.attribute))
        if attribute.ints and draw.random() < 0.8:
            place = draw.randrange(len(attribute.ints))
            attribute.ints[place] = _int64(draw.choice([*INTEGERS, *range(8), attribute.ints[place] + 1]))
        elif attribute.type == AttributeProto.INT:
            attribute.i = _int64(draw.choice([*INTEGERS, attribute.i + 1]))
        elif attribute.type == AttributeProto.FLOAT:
            attribute.f = draw.choice(FLOATS)
        else:
            attribute.name = draw.choice(ATTRIBUTES)
    elif choice < 0.65 and node.attribute:
        node.attribute.remove(draw.choice(list(node.attribute)))
    else:
        value = draw.choice(
            [
                draw.choice(INTEGERS),
                draw.choice(FLOATS),
                [1, 1],
                [2, 2, 2],
                [0, 0, 1, 1],
                [1.5],
                "SAME_UPPER",
                "VALID",
                b"\xff\xfe",
                ["a"],
                [3],
            ]
        )
        node.attribute.append(helper.make_attribute(draw.choice(ATTRIBUTES), _int64(value) if isinstance(value, int) else value))


def change_values(model: onnx.ModelProto, draw: Draw) -> None:
    """Of an initializer: some or all elements become special, or all get another dtype or sign."""
    tensor = _some_initializer(model, draw)
    if tensor is None:
        return
    array = numpy_helper.to_array(tensor).copy()
    choice = draw.random()
    if array.dtype.kind not in "fiu" or not array.size:
        return
    if choice < 0.5:
        value = draw.choice(FLOATS if array.dtype.kind == "f" else [v for v in INTEGERS if abs(v) < 2**62])
        with np.errstate(all="ignore"):
            np.put(
                array,
                [draw.randrange(array.size)] if draw.random() < 0.5 else range(array.size),
                np.asarray(value).astype(array.dtype),
            )
    elif choice < 0.7:
        array = -array
    elif choice < 0.85:
        with np.errstate(all="ignore"):
            array = array.astype(draw.choice([np.float16, np.float64, np.int8, np.int64, np.int32, np.uint8, bool]))
    else:
        array = array * array.dtype.type(draw.choice([2, 100]))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def change_shape(model: onnx.ModelProto, draw: Draw) -> None:
    """Of an initializer: another arrangement of the same numbers, fewer or more of them, or a mere claim."""
    tensor = _some_initializer(model, draw)
    if tensor is None:
        return
    array, choice = numpy_helper.to_array(tensor), draw.random()
    if choice < 0.2:
        array = array.T
    elif choice < 0.35:
        array = array.reshape(-1)
    elif choice < 0.45:
        array = array.reshape(*array.shape, 1) if draw.random() < 0.5 else array.reshape(1, *array.shape)
    elif choice < 0.6 and array.ndim and array.shape[0] > 1:
        array = array[: draw.randrange(array.shape[0])]
    elif choice < 0.7 and array.ndim:
        array = np.concatenate([array, array[:1]])
    else:
        tensor.dims[:] = draw.choice([[], [0], [2**31], [2**62], [2**32, 2**32], [-1], [*tensor.dims, 2], list(tensor.dims)[:-1]])
        return
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def change_declaration(model: onnx.ModelProto, draw: Draw) -> None:
    """The type or shape of an input, an output or an intermediate."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    if not values:
        return
    value = draw.choice([*values, *graph.input])
    tensor = value.type.tensor_type
    choice = draw.random()
    if choice < 0.2:
        tensor.elem_type = draw.choice([0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 99])
    elif choice < 0.3:
        tensor.ClearField("shape")
    elif choice < 0.8 and tensor.shape.dim:
        dim = draw.choice(list(tensor.shape.dim))
        if draw.random() < 0.2:
            dim.dim_param = draw.choice(STRINGS)
        else:
            dim.dim_value = _int64(draw.choice([*INTEGERS, dim.dim_value + 1, dim.dim_value * 2, 24, 64, 5000]))
    elif choice < 0.9:
        tensor.shape.dim.add().dim_value = draw.choice([1, 2, 3])
    elif tensor.shape.dim:
        del tensor.shape.dim[draw.randrange(len(tensor.shape.dim))]


def change_name(model: onnx.ModelProto, draw: Draw) -> None:
    """A tensor's name, everywhere or in one place, or a node's; to something odd or to a name that is taken."""
    graph = model.graph
    names = _tensors(graph)
    if not names:
        return
    new = draw.choice([*STRINGS, *STRINGS, *names])
    if draw.random() < 0.3:
        _some_node(graph, draw).name = new
        return
    old, everywhere = draw.choice(names), draw.random() < 0.8
    places: list[Any] = [*graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for place in places:
        if place.name == old:
            place.name = new
            if not everywhere:
                return
    for node in graph.node:
        for names_of in (node.input, node.output):
            for i, name in enumerate(names_of):
                if name == old:
                    names_of[i] = new
                    if not everywhere:
                        return


def change_opset(model: onnx.ModelProto, draw: Draw) -> None:
    if model.opset_import and draw.random() < 0.8:
        model.opset_import[0].version = _int64(draw.choice([*range(1, 26), 0, -1, 2**62]))
    elif draw.random() < 0.5:
        model.opset_import.append(
            helper.make_opsetid(draw.choice(["", "ai.onnx", "local", "com.microsoft"]), draw.choice([1, 17, 99]))
        )
    else:
        model.ir_version = draw.choice([0, 1, 3, 4, 8, 13, 99, 2**40])


def wrap_in_function(model: onnx.ModelProto, draw: Draw) -> None:
    """A node becomes the call of a function, which may call itself or lack something."""
    node = _some_node(model.graph, draw)
    inputs = [f"i{i}" for i in range(len(node.input))]
    outputs = [f"o{i}" for i in range(len(node.output))]
    body = onnx.NodeProto()
    body.CopyFrom(node)
    body.input[:], body.output[:] = inputs, outputs
    if draw.random() < 0.2:
        body.op_type, body.domain = "f", "local"
    version = model.opset_import[0].version if model.opset_import else 17
    opsets = [helper.make_opsetid("", draw.choice([version, version, 13])), helper.make_opsetid("local", 1)]
    model.functions.append(helper.make_function("local", "f", inputs, outputs, [body], opsets))
    if draw.random() < 0.8:
        model.opset_import.append(helper.make_opsetid("local", 1))
    node.op_type, node.domain = "f", "local"
    del node.attribute[:]


def wrap_in_branch(model: onnx.ModelProto, draw: Draw) -> None:
    """A node stands in both branches of an If."""
    graph = model.graph
    node = _some_node(graph, draw)
    if not node.output:
        return
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    result = helper.make_tensor_value_info(node.output[0] + ".in", TensorProto.FLOAT, None)
    inner.output[:] = [result.name]
    branch = helper.make_graph([inner], "branch", [], [result])
    graph.initializer.append(numpy_helper.from_array(np.array(draw.random() < 0.5), f"{result.name}.condition"))
    outputs = list(node.output)
    node.CopyFrom(helper.make_node("If", [f"{result.name}.condition"], outputs[:1], then_branch=branch, else_branch=branch))


def store_outside(model: onnx.ModelProto, draw: Draw) -> None:
    """An initializer's data lies in a file beside the model, which is not there."""
    tensor = _some_initializer(model, draw)
    if tensor is None:
        return
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {
        "location": draw.choice(["gone.data", "", ".", "/etc/passwd", "../x", "\x1b[2J", "model.onnx"]),
        "offset": "0",
        "length": "9",
    }
    for key, value in entries.items():
        if draw.random() < 0.9:
            tensor.external_data.add(key=key, value=value if key == "location" else draw.choice([value, "-1", "x", str(2**70)]))


def _some_initializer(model: onnx.ModelProto, draw: Draw) -> onnx.TensorProto | None:
    found = [t for t in model.graph.initializer if t.raw_data]
    return draw.choice(found) if found else None


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def _int64(value: int) -> int:
    return max(-(2**63), min(value, 2**63 - 1))


# -- any field of the protobuf --------------------------------------------------------------------------------------------


def _messages(message: Any) -> list[Any]:
    """``message`` and all within it."""
    found, pending = [], [message]
    while pending:
        each = pending.pop()
        found.append(each)
        for field, value in each.ListFields():
            if field.type == F.TYPE_MESSAGE:
                pending += list(value) if field.is_repeated else [value]
    return found


def change_field(model: onnx.ModelProto, draw: Draw) -> None:
    """Some field of some message is cleared, set, repeated, shortened, shuffled or taken from elsewhere."""
    messages = _messages(model)
    message = draw.choice(messages)
    fields = [field for field, _ in message.ListFields()] if draw.random() < 0.8 else list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = draw.choice(fields)
    if field.is_repeated:
        _change_list(getattr(message, field.name), field, draw, messages)
    elif draw.random() < 0.25:
        message.ClearField(field.name)
    elif field.type == F.TYPE_MESSAGE:
        others = [m for m in messages if m.DESCRIPTOR is field.message_type]
        if others:
            getattr(message, field.name).CopyFrom(_copy(draw.choice(others)))
    else:
        _set(message, field, _value(field, getattr(message, field.name), draw))


def _change_list(values: Any, field: Any, draw: Draw, messages: list[Any]) -> None:
    choice = draw.random()
    entries = [_copy(v) if field.type == F.TYPE_MESSAGE else v for v in values]
    if choice < 0.3 and entries:
        del entries[draw.randrange(len(entries))]
    elif choice < 0.5 and entries:
        entries.insert(draw.randrange(len(entries) + 1), draw.choice(entries))
    elif choice < 0.6 and len(entries) > 1:
        i, j = draw.sample(range(len(entries)), 2)
        entries[i], entries[j] = entries[j], entries[i]
    elif choice < 0.65:
        entries = []
    elif field.type == F.TYPE_MESSAGE:
        others = [m for m in messages if m.DESCRIPTOR is field.message_type]
        entries.append(_copy(draw.choice(others)) if others else field.message_type._concrete_class())
    elif entries:
        i = draw.randrange(len(entries))
        entries[i] = _value(field, entries[i], draw)
    del values[:]
    try:
        values.extend(entries)
    except (TypeError, ValueError):  # out of the field's range
        return


def _value(field: Any, old: Any, draw: Draw) -> Any:
    if field.type == F.TYPE_STRING:
        return draw.choice(STRINGS)
    if field.type == F.TYPE_BYTES:
        return (
            flipped(old, draw)
            if draw.random() < 0.5
            else old[: draw.randrange(len(old) + 1)] + b"\xff" * draw.choice([0, 0, 1, 4])
        )
    if field.type in (F.TYPE_FLOAT, F.TYPE_DOUBLE):
        return draw.choice(FLOATS)
    return draw.choice([*INTEGERS, old + 1])


def _set(message: Any, field: Any, value: Any) -> None:
    try:
        setattr(message, field.name, value)
    except (TypeError, ValueError):  # out of the field's range
        return


# -- bytes ----------------------------------------------------------------------------------------------------------------


def flipped(content: bytes, draw: Draw) -> bytes:
    """Some bytes are others."""
    if not content:
        return b"\x80"
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        changed[draw.randrange(len(changed))] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
    return bytes(changed)


def spoiled(content: bytes, draw: Draw) -> bytes:
    """Bytes are flipped, cut off, taken out, repeated or put elsewhere; those at the front, where structure is, more often."""
    choice, size = draw.random(), len(content)
    front = min(size, 2000)
    a, b = sorted(draw.randrange((front if draw.random() < 0.5 else size) + 1) for _ in range(2))
    if choice < 0.5:
        return flipped(content[:front], draw) + content[front:] if draw.random() < 0.5 else flipped(content, draw)
    if choice < 0.7:
        return content[:b]
    if choice < 0.8:
        return content[:a] + content[b:]
    if choice < 0.9:
        return content[:b] + content[a:]
    return draw.choice(
        [b"", b"\x00" * 100, b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04" + content, content[::-1]]
    )


Mutation = Callable[[onnx.ModelProto, Draw], None]
STRUCTURAL: tuple[Mutation, ...] = (
    remove_node,
    duplicate_node,
    rewire,
    rewire,
    reorder,
    another_operator,
    insert_node,
    insert_node,
    insert_node,
    change_attribute,
    change_attribute,
    change_attribute,
    change_values,
    change_values,
    change_shape,
    change_declaration,
    change_declaration,
    change_name,
    change_opset,
    wrap_in_function,
    wrap_in_branch,
    store_outside,
)


def mutated(model: onnx.ModelProto, draw: Draw) -> tuple[bytes, str]:
    """A file's contents made of ``model``, which is left alone, and what was done."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    done = []
    if draw.random() < 0.1:
        return spoiled(made.SerializeToString(), draw), "bytes"
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        mutation = change_field if draw.random() < 0.3 else draw.choice(STRUCTURAL)
        mutation(made, draw)
        done.append(mutation.__name__)
    return made.SerializeToString(), ", ".join(done)
