"""Channels last: what follows a QLinearConv keeps its numbers, whatever it is; sums of products and roots at their ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.nodes import MICROSOFT
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.cpu.flip_signs_by_addition import flip_signs_by_addition
from wageubn_onnx.passes.targets.cpu.machine import LAST, Kernel
from wageubn_onnx.passes.targets.cpu.maps.batchnorm_statistics import lean_moments
from wageubn_onnx.passes.targets.cpu.maps.channels_last import channels_last
from wageubn_onnx.passes.targets.cpu.maps.mask_by_multiplication import mask_by_multiplication
from wageubn_onnx.passes.targets.cpu.scalars.square_roots import GREATEST, square_roots_in_two_steps
from wageubn_onnx.quantizers.integer import DIRECT_ROOT
from wageubn_onnx.runtime.kernels import kernels

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(not kernels().is_exact(*LAST, Kernel.QLINEAR_MUL), reason="the fused kernels are not exact here")

CONSTANTS = """
    int64[2] two_three = {2, 3}, int64[1] four = {4}, int64[3] sums = {0, 2, 3}, int64[2] ones = {1, 1}, int64[2] fives = {5, 6},
    int64[2] steps = {2, 1}, int64[8] pads = {0, 0, 1, 0, 0, 0, 0, 2}, int64[4] flat = {2, 3, 1, 30},
    int64[4] wide = {2, 3, 5, 12}, int64[2] rows = {6, 30}, int64[1] first = {0},
    uint8[1, 3, 1, 1] offset = {1, 2, 3}, uint8 zero = {0}, float one = {1.0},
    int8 none = {0}, int8[3, 1, 1, 1] kernel = {1, 2, -1}"""
# What reads q, the map [2, 3, 5, 6] of the first QLinearConv, and makes y
READERS = {
    "elementwise": "c = Cast <to: int = 6> (q) o = Cast <to: int = 6> (offset) y = Add (c, o)",
    "two maps": "y = Max (q, x)",
    "channels side by side": "y = Concat <axis: int = 1> (q, x)",
    "rows side by side": "y = Concat <axis: int = -1> (x, q)",
    "flattened maps": "a = Reshape (q, flat) b = Reshape (x, flat) y = Concat <axis: int = 2> (a, b)",
    "flattened images": "y = Reshape (q, rows)",
    "interleaved": "a = Unsqueeze (q, four) b = Unsqueeze (x, four) c = Concat <axis: int = 4> (a, b) y = Reshape (c, wide)",
    "cut": "y = Slice (q, ones, fives, two_three, steps)",
    "padded": "y = Pad (q, pads, zero)",
    "turned": "y = Transpose <perm: ints = [1, 0, 2, 3]> (q)",
    "turned to the last": "t = Transpose <perm: ints = [0, 2, 3, 1]> (q) y = Reshape (t, rows)",
    "turned and given": "y = Transpose <perm: ints = [0, 2, 3, 1]> (q)",
    "a channel's greatest": "y = ReduceMax (q, sums)",
    "a channel's least": "y = ReduceMin (q, sums)",
    "a channel's ends with signs": """i = Cast <to: int = 3> (q) a = ReduceMax (i, sums) b = ReduceMin (i, sums)
        y = Concat <axis: int = 2> (a, b)""",
    "masked": "t = ReduceMax <keepdims: int = 0> (x) m = Less (q, t) y = Where (m, q, zero)",
    "the greatest": "y = ReduceMax <keepdims: int = 0> (q)",
    "a channel's sum": "c = Cast <to: int = 6> (q) y = ReduceSum <keepdims: int = 0> (c, sums)",
    "sums of columns": "c = Cast <to: int = 6> (q) y = ReduceSum <keepdims: int = 0> (c, first)",
    "sums of images": "c = Cast <to: int = 6> (q) y = ReduceSum (c, two_three)",
    "a second convolution": "y = QLinearConv <group: int = 3> (q, one, zero, kernel, one, none, one, zero)",
    "a choice": """b = Greater (q, x) t = ReduceMax <keepdims: int = 0> (q) s = Greater (t, zero)
        y = If (s) <then_branch = then () => (uint8[2, 3, 5, 6] p) { p = Max (q, x) },
                    else_branch = else () => (uint8[2, 3, 5, 6] r) { m = Min (q, offset) r = Max (m, x) }>""",
    "a choice of something else": """t = ReduceMax <keepdims: int = 0> (q) s = Greater (t, zero)
        y = If (s) <then_branch = then () => (int64[4] p) { p = Shape (q) },
                    else_branch = else () => (int64[4] r) { r = Shape (x) }>""",
    "what no rule knows": "d = Add (x, offset) y = Mod (q, d)",
}


def model(readers: str) -> onnx.ModelProto:
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
        g (uint8[2, 3, 5, 6] x) => (y) <{CONSTANTS}> {{
            q = QLinearConv <group: int = 3> (x, one, zero, kernel, one, none, one, zero)
            {readers}
        }}"""
    return onnx.parser.parse_model(text)


def run(made: onnx.ModelProto, **feeds: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("name", READERS)
def test_what_follows_keeps_its_numbers(name: str) -> None:
    before = tidy(model(READERS[name]))
    after = mask_by_multiplication(channels_last(before))
    assert all(node.domain == MICROSOFT for node in after.graph.node if node.op_type == "QLinearConv")
    kinds = {node.op_type for node in after.graph.node}
    assert ("NhwcMaxPool" in kinds) == (name in ("a channel's greatest", "a channel's least", "a channel's ends with signs"))
    assert "Where" not in kinds
    x = np.random.default_rng(0).integers(1, 250, (2, 3, 5, 6)).astype(np.uint8)
    np.testing.assert_array_equal(run(before, x=x), run(after, x=x))


def test_maps_are_turned_once() -> None:
    """At the input and at the output; between them nothing is."""
    after = channels_last(
        tidy(model("a = Max (q, x) b = Concat <axis: int = 1> (a, q) c = Slice (b, ones, fives, two_three) y = Add (c, c)"))
    )
    assert [node.op_type for node in after.graph.node].count("Transpose") == 2


@pytest.mark.parametrize("axes", ["0, 2, 3", "2, 3"])
def test_sums_of_products_are_exact(axes: str) -> None:
    count = len(axes.split(","))
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
        g (int8[4, 3, 8, 9] x, int8[4, 3, 8, 9] y) => (s) <int64[{count}] axes = {{{axes}}}> {{
            a = Cast <to: int = 6> (x)
            b = Cast <to: int = 6> (y)
            p = Mul (a, b)
            s = ReduceSum (p, axes)
        }}"""
    before = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    for index, node in enumerate(before.graph.node):
        node.name = str(index)
    after = rewritten(before, {"batchnorm-statistics-by-products": lambda edit: lean_moments(edit, by_steps=True)})
    assert "QLinearMul" in [node.op_type for node in after.graph.node]
    random = np.random.default_rng(0)
    for values in ((-128, 128), (-128, -127), (127, 128), (-3, 4)):
        x, y = (random.integers(*values, (4, 3, 8, 9)).astype(np.int8) for _ in range(2))
        y[:2] = -128
        np.testing.assert_array_equal(run(before, x=x, y=y), run(after, x=x, y=y))


def test_roots_are_the_canonical_ones_at_every_tie() -> None:
    text = f"""<ir_version: 9, opset_import: ["" : 18, "wageubn" : 1]>
        g (int64[1, N, 1, 1] total, int64 count, int64 factor, int64 offset) => (int16[1, N, 1, 1] q) {{
            q = wageubn.DirectQuantizeRootHalfUp <to: int = 5, least: int = 1, greatest: int = {GREATEST}>
                (total, count, factor, offset)
        }}"""
    before = onnx.parser.parse_model(text)
    before.graph.node[0].name = "root"
    before.functions.append(DIRECT_ROOT["half_up"])
    after = rewritten(before, {"square-roots-in-two-steps": square_roots_in_two_steps})
    ties = (2 * np.arange(1, GREATEST + 3, dtype=np.int64) - 1) ** 2
    radicands = np.concatenate([ties - 1, ties, ties + 1, [0, 2**31 - 1, 2**31, 2**32, 2**45]])
    for count, factor, offset in ((1, 1, 0), (7, 4, 1000)):
        total = np.maximum(radicands - offset, 0) * count // factor
        scalars = {"count": count, "factor": factor, "offset": offset}
        feeds = {"total": total.reshape(1, -1, 1, 1), **{name: np.array(value, np.int64) for name, value in scalars.items()}}
        np.testing.assert_array_equal(run(inline(before), **feeds), run(inline(after), **feeds))


def test_flips_are_additions_and_part_of_what_follows() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
        g (uint8[256] x) => (uint8[256] flipped, uint8[256] minus) <uint8 flip = {128}, uint8 zero = {0}> {
            flipped = BitwiseXor (x, flip)
            minus = Sub (zero, flipped)
        }"""
    before = onnx.parser.parse_model(text)
    after = flip_signs_by_addition(before)
    assert [(node.op_type, *node.input) for node in after.graph.node] == [("Add", "x", "flip"), ("Sub", "flip", "x")]
    bits = np.arange(256).astype(np.uint8)
    session = onnxruntime.InferenceSession(after.SerializeToString(), providers=["CPUExecutionProvider"])
    flipped, minus = session.run(None, {"x": bits})
    np.testing.assert_array_equal(flipped, bits ^ 128)
    np.testing.assert_array_equal(minus, -(bits ^ 128))
