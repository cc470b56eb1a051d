"""Products in whole columns give the same integers, whatever is asked of them; kernels in uint8 the same maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.passes.targets.cpu.products.pad_products import WHOLE, pad_convolutions, pad_matrix_products
from wageubn_onnx.passes.targets.cpu.products.uint8_constant_kernels import uint8_constant_kernels

Array = np.ndarray[Any, Any]
CONV = "ConvInteger <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]"
# what is made of a uint8 [3, 4, R, C], how many columns or places it has, and in which whole columns
PRODUCTS = {
    "a rest": ("uint8[3, 33, 20]", "uint8[20, 17]", "y = MatMulInteger (a, b, z, z)", 17),
    "one column": ("uint8[40, 9]", "uint8[9, 1]", "y = MatMulInteger (a, b, z, z)", 1),
    "without zero points": ("uint8[1, 9]", "uint8[2, 9, 24]", "y = MatMulInteger (a, b)", 24),
    "whole already": ("uint8[5, 9]", "uint8[9, 32]", "y = MatMulInteger (a, b, z, z)", 32),
    "in a branch": (
        "uint8[33, 9]", "uint8[9, 5]",
        """t = Cast <to: int = 9> (z)
        y = If (t) <then_branch = g1 () => (int32[33, 5] p) { p = MatMulInteger (a, b, z, z) },
            else_branch = g2 () => (int32[33, 5] q) { q = MatMulInteger (a, b) }>""", 5,
    ),
}  # fmt: skip
CONVOLUTIONS = {
    "a rest": ("uint8[2, 4, 7, 7]", "uint8[33, 4, 3, 3]", f"y = {CONV}> (a, b, n, z)", (7, 7)),
    "one place": ("uint8[2, 4, 1, 1]", "uint8[33, 4, 1, 1]", "y = ConvInteger (a, b, z, z)", (1, 1)),
    "strides": ("uint8[1, 4, 13, 10]", "uint8[5, 4, 3, 3]", f"y = {CONV}, strides: ints = [2, 2]> (a, b, z, z)", (7, 5)),
    "dilations": ("uint8[1, 4, 9, 9]", "uint8[5, 4, 3, 3]", f"y = {CONV}, dilations: ints = [2, 2]> (a, b, z, z)", (7, 7)),
    "groups": ("uint8[2, 4, 5, 6]", "uint8[8, 1, 3, 3]", f"y = {CONV}, group: int = 4> (a, b, z, z)", (5, 6)),
    "whole already": ("uint8[2, 4, 4, 8]", "uint8[3, 4, 3, 3]", f"y = {CONV}> (a, b, z, z)", (4, 8)),
}


def model(a: str, b: str, body: str, result: str = "int32 y") -> onnx.ModelProto:
    text = f"""<ir_version: 9, opset_import: ["" : 18]> g ({a} a, {b} b) => ({result})
        <uint8 z = {{128}}, uint8 n = {{0}}> {{ {body} }}"""
    parsed = onnx.parser.parse_model(text)
    for node in parsed.graph.node:
        node.name = node.output[0]
    parsed.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, None))
    return onnx.shape_inference.infer_shapes(parsed, strict_mode=True)


def products(graph: onnx.GraphProto, kind: str) -> list[onnx.NodeProto]:
    inner = (a.g for node in graph.node for a in node.attribute if a.HasField("g"))
    return [n for n in graph.node if n.op_type == kind] + [n for branch in inner for n in products(branch, kind)]


def outputs(made: onnx.ModelProto, names: list[str]) -> list[Array]:
    """Of random operands, of which the model wants a and b; everything checked first."""
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(made, strict_mode=True))
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {i.name: random.integers(0, 256, i.shape).astype(np.uint8) for i in session.get_inputs()}
    return list(session.run(names, feeds))


def same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for x, y in zip(outputs(before, ["y"]), outputs(after, ["y"]), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    a, b, body, columns = PRODUCTS[name]
    before = model(a, b, body)
    after = pad_matrix_products(before)
    same(before, after)
    made = products(after.graph, "MatMulInteger")
    assert len(made) == len(products(before.graph, "MatMulInteger"))
    is_whole = columns % WHOLE == 0
    assert all(node.input[1].endswith("/whole/right") != is_whole for node in made)
    typed = onnx.shape_inference.infer_shapes(after, strict_mode=True)
    sizes = {v.name: v.type.tensor_type.shape.dim[-1].dim_value for v in typed.graph.value_info if v.type.tensor_type.shape.dim}
    assert all(sizes[node.input[1]] % WHOLE == 0 for node in made if node.input[1] in sizes)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    a, b, body, places = CONVOLUTIONS[name]
    before = model(a, b, body)
    after = pad_convolutions(before)
    same(before, after)
    (node,) = products(after.graph, "ConvInteger")
    made = next(v for v in (*after.graph.value_info, *after.graph.output) if v.name == node.output[0])
    height, width = (d.dim_value for d in made.type.tensor_type.shape.dim[2:])
    assert height * width % WHOLE == 0 and height >= places[0] and width >= places[1]
    assert ((height, width) == places) == (name == "whole already")


def test_an_open_size_is_named() -> None:
    with pytest.raises(WageubnError, match="node 'y': the size of b is open"):
        pad_matrix_products(model("uint8[3, 4]", "uint8[4, N]", "y = MatMulInteger (a, b, z, z)"))


def test_constant_kernels_beside_a_late_bias_become_unsigned() -> None:
    """And no other: a kernel of a bias that is a constant, and one found at run time, stay int8."""
    conv = "com.microsoft.QLinearConv <channels_last: int = 1, group: int = 16> "
    ones = ", ".join(str((i % 7) - 3) for i in range(16))
    text = f"""<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>
        g (uint8[1, 2, 5, 16] x, int32[16] late, int8[16, 1, 1, 1] found) => (uint8 a, uint8 b, uint8 c)
        <uint8 z = {{128}}, float s = {{1.0}}, float[16] t = {{{", ".join(["0.125"] * 16)}}}, int8 none = {{0}},
            int8[16, 1, 1, 1] w = {{{ones}}}, int32[16] known = {{{", ".join(map(str, range(-80, 80, 10)))}}}> {{
            a = {conv} (x, s, z, w, t, none, s, z, late)
            b = {conv} (x, s, z, w, t, none, s, z, known)
            c = {conv} (x, s, z, found, t, none, s, z, late)
        }}"""
    before = onnx.parser.parse_model(text)
    for output in before.graph.output:
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.UINT8, [1, 2, 5, 16]))
    after = uint8_constant_kernels(before)
    names = {node.output[0]: (node.input[3], node.input[5]) for node in after.graph.node}
    assert names == {"a": ("w/unsigned", "zero/unsigned"), "b": ("w", "none"), "c": ("found", "none")}
    session = onnxruntime.InferenceSession(after.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    x, late = random.integers(0, 256, (1, 2, 5, 16)).astype(np.uint8), random.integers(-200, 200, 16).astype(np.int32)
    found = random.integers(-127, 128, (16, 1, 1, 1)).astype(np.int8)
    (a,) = session.run(["a"], {"x": x, "late": late, "found": found})
    w = np.array([(i % 7) - 3 for i in range(16)])
    right = np.clip(np.rint(((x.astype(int) - 128) * w + late) / 8) + 128, 0, 255)
    np.testing.assert_array_equal(a, right)
