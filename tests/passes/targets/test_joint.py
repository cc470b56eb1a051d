"""Tensors side by side are the tensors: whatever their sizes, from wherever they come, whoever reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.cpu.scalars.batch_small_tensors import batch_small_tensors

Array = np.ndarray[Any, Any]
INPUTS = "int32[3] a, int32[1, 5, 1, 1] b, int32[2, 2] c, int32 s, int32 t, int32 u, int32[2, 9] map"
CONSTANTS = """int32 one = {1}, int32 uno = {1}, int32 two = {2}, int32 four = {4}, int32[4] table = {5, 7, 11, 13},
    int64[1] flat = {-1}, int64[2] square = {2, 2}, int32[2, 1] row = {3, 4}, int32[1, 2] column = {5, 6}, int64[1] first = {0}"""
SHAPES = {"a": (3,), "b": (1, 5, 1, 1), "c": (2, 2), "s": (), "t": (), "u": (), "map": (2, 9)}

# each: what is computed, and how many nodes of which kind are left of it
BODIES = {
    "sums with one number": ("x = Add (a, one) y = Add (b, uno) z = Add (c, one)", "Add", 1),
    "with another number each": ("x = Add (a, one) y = Add (b, two) z = Add (c, four)", "Add", 1),
    "with what is given for each": ("x = Add (a, s) y = Add (b, t) z = Add (c, s)", "Add", 1),
    "numbers themselves": (
        "d = Mul (s, two) e = Mul (t, four) f = Mul (u, u) x = Add (a, d) y = Add (b, e) z = Add (c, f)", "Mul", 1,
    ),
    "one number a row": ("r = Neg (row) d = Add (c, r) e = Add (c, column) z = Mul (d, e) x = Neg (a) y = Neg (b)", "Add", 2),
    "limits that differ": ("x = Clip (a, one, two) y = Clip (b, one, four) z = Clip (c, uno, two)", "Clip", 2),
    "looked up": (
        """k = BitwiseAnd (a, two) l = BitwiseAnd (b, two) m = BitwiseAnd (c, two)
        x = Gather (table, k) y = Gather (table, l) z = Gather (table, m)""", "Gather", 1,
    ),
    "a constant's consequences": (
        "d = Neg (one) e = Neg (uno) f = Neg (one) x = Add (a, d) y = Add (b, e) z = Add (c, f)", "Add", 1,
    ),
    "in another order": (
        "d = Neg (a) e = Neg (b) f = Neg (c) x = Sub (d, one) g = Abs (e) h = Abs (d) z = Sub (f, g5) y = Sub (g, h0) "
        "g5 = Identity (one) h0 = Identity (two)", "Neg", 1,
    ),
    "some of them": ("d = Neg (a) e = Neg (b) f = Neg (c) x = Abs (d) z = Abs (f) y = Mul (e, two)", "Abs", 1),
    "shapes that change": (
        "d = Neg (a) e = Neg (c) g = Reshape (e, flat) h = Abs (g) x = Abs (d) z = Reshape (h, square) y = Abs (b)", "Neg", 1,
    ),
    "the end of something large": (
        """p = ReduceMax <keepdims: int = 0> (map) q = ReduceMin <keepdims: int = 0> (map)
        d = Sub (p, s) e = Sub (q, t) f = Sub (p, u) x = Add (a, d) y = Add (b, e) z = Add (c, f)""", "Sub", 1,
    ),
}  # fmt: skip


def model(body: str) -> onnx.ModelProto:
    outputs = "int32[3] x, int32[1, 5, 1, 1] y, int32[2, 2] z"
    parsed = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g ({INPUTS}) => ({outputs}) <{CONSTANTS}> {{ {body} }}'
    )
    nodes = {node.output[0]: node for node in parsed.graph.node}
    ordered: dict[str, onnx.NodeProto] = {}

    def put(name: str) -> None:
        if name in nodes and name not in ordered:
            for operand in nodes[name].input:
                put(operand)
            ordered[name] = nodes[name]

    for name in nodes:
        put(name)
    kept = list(ordered.values())
    del parsed.graph.node[:]
    parsed.graph.node.extend(kept)
    for node in parsed.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(parsed, strict_mode=True)


def results(model: onnx.ModelProto, seed: int) -> list[Array]:
    random = np.random.default_rng(seed)
    feeds = {name: np.asarray(random.integers(-9, 9, shape), np.int32) for name, shape in SHAPES.items()}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(found) for found in session.run(None, feeds)]


@pytest.mark.parametrize("name", BODIES)
def test_what_is_joined_is_the_same(name: str) -> None:
    body, kind, count = BODIES[name]
    before = model(body)
    after = tidy(inline(rewritten(before, {"joint": batch_small_tensors})))
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node if not node.name.startswith("joint/")].count(kind) == count
    for seed in range(3):
        for expected, found in zip(results(before, seed), results(after, seed), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_what_a_branch_reads_is_there() -> None:
    """A branch's tensors come from around it: those keep their names."""
    text = f"""<ir_version: 9, opset_import: ["" : 18]> g ({INPUTS}) => (int32[3] x, int32[1, 5, 1, 1] y, int32[2, 2] z)
        <{CONSTANTS}> {{
            d = Neg (a)
            e = Neg (b)
            z = Neg (c)
            is_more = Greater (s, t)
            x = If (is_more) <then_branch = then () => (int32[3] v) {{ v = Abs (d) }},
                              else_branch = other () => (int32[3] w) {{ w = Add (d, one) }}>
            y = Abs (e)
        }}"""
    before = onnx.parser.parse_model(text)
    for node in before.graph.node:
        node.name = node.output[0]
    before = onnx.shape_inference.infer_shapes(before, strict_mode=True)
    after = rewritten(before, {"joint": batch_small_tensors})
    assert [node.op_type for node in after.graph.node].count("Neg") == 1
    for seed in range(4):
        for expected, found in zip(results(before, seed), results(after, seed), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_large_tensors_stay_alone() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
        g (int32[2049] a, int32[2049] b) => (int32[2049] x, int32[2049] y) { x = Neg (a) y = Neg (b) }"""
    before = onnx.parser.parse_model(text)
    for node in before.graph.node:
        node.name = node.output[0]
    after = rewritten(before, {"joint": batch_small_tensors})
    assert [node.op_type for node in after.graph.node] == ["Neg", "Neg"]
