"""Weight gradients of 1x1 kernels and of matrices: the same sums, whichever side is transposed."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest

from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.cpu.swapped import swapped_gradients
from wageubn_onnx.quantizers import integer
from wageubn_onnx.runtime.kernels import kernels

SIZES = {
    "narrow errors": ((3, 8, 5, 4), 2),
    "narrow maps": ((3, 2, 9, 9), 8),
    "a large result": ((2, 6, 1, 1), 8),
    "matrices": ((4, 8), 5),
}


def gradient(maps: tuple[int, ...], o: int, dtype: str) -> onnx.ModelProto:
    """dw [O, I] of ``maps`` [N, I, ...] and int8 errors [N, O, ...] as the canonical step has it; maps of uint8 have 7 bits."""
    n, i, *size = maps
    errors, p = (n, o, *size), n * math.prod(size)
    to, least = (2, 0) if dtype == "uint8" else (3, -127)
    nodes = [f"x = {DOMAIN}.GridQuantize <to: int = {to}, least: int = {least}, greatest: int = 127> (m, shift)"]
    if size:
        nodes += ["first = Transpose <perm: ints = [1, 0, 2, 3]> (x)", "columns = Reshape (first, to_columns)"]
        nodes += ["last = Transpose <perm: ints = [0, 2, 3, 1]> (dy)", "rows = Reshape (last, to_rows)"]
    else:
        nodes += ["columns = Transpose <perm: ints = [1, 0]> (x)"]
    a, b = "columns", "rows" if size else "dy"
    if dtype == "int8":
        nodes += [f"{name}_bits = Cast <to: int = 2> ({name}) {name}_flipped = BitwiseXor ({name}_bits, flip)" for name in (a, b)]
        nodes += [f"product = MatMulInteger ({a}_flipped, {b}_flipped, flip, flip)"]
    else:
        nodes += [f"product = MatMulInteger ({a}, {b}, none, none8)"]
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 18, "{DOMAIN}" : 1]>
        g (int32[{", ".join(map(str, maps))}] m, int8[{", ".join(map(str, errors))}] dy) => (int32[{o}, {i}] dw)
        <uint8 flip = {{128}}, uint8 none = {{0}}, int8 none8 = {{0}}, int32 shift = {{0}},
            {dtype}[{", ".join(map(str, maps))}] x, int64[2] to_columns = {{{i}, {p}}}, int64[2] to_rows = {{{p}, {o}}}> {{
            {" ".join(nodes)}
            dw = Transpose <perm: ints = [1, 0]> (product)
        }}""")
    model.functions.extend([integer.GRID["half_even"], integer.ROUND_SHIFT["half_even"]])
    for node in model.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("name", SIZES)
def test_sums_are_the_same(name: str, dtype: str) -> None:
    if not kernels().is_exact(Kernel.INT8):
        pytest.skip("this machine or release has no exact int8 by uint8")
    before = gradient(*SIZES[name], dtype)
    after = rewritten(before, {"swap-weight-gradient-operands": lambda edit: swapped_gradients(edit, lambda image, kernel: True)})
    turned = {node.output[0]: node.op_type for node in after.graph.node}["dw"]
    assert turned == ("Transpose" if name == "narrow maps" else "MatMulInteger")
    random = np.random.default_rng(0)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in before.graph.input}
    for ends in (False, True):
        m = random.choice([-300, 300], shapes["m"]) if ends else random.integers(-300, 300, shapes["m"])
        dy = random.choice([-127, 127], shapes["dy"]) if ends else random.integers(-127, 128, shapes["dy"])
        results = [
            onnxruntime.InferenceSession(inline(model).SerializeToString(), providers=["CPUExecutionProvider"]).run(
                None, {"m": m.astype(np.int32), "dy": dy.astype(np.int8)}
            )[0]
            for model in (before, after)
        ]
        np.testing.assert_array_equal(*results)
        assert results[0].any()


def test_where_uint8_by_int8_is_slow_it_stays() -> None:
    before = gradient(*SIZES["narrow errors"], "int8")
    after = rewritten(
        before, {"swap-weight-gradient-operands": lambda edit: swapped_gradients(edit, lambda image, kernel: False)}
    )
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]
