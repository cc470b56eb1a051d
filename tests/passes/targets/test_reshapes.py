"""Shapes change once, and what something else wants keeps its name."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from wageubn_onnx.passes.targets.cpu.merge_reshapes import merge_reshapes
from wageubn_onnx.passes.targets.cpu.sink_into_branches import sink_into_branches

TEXT = """<ir_version: 9, opset_import: ["" : 18]>
    g (int32[2, 6] x, bool c) => (int32[2, 6] y, int32[2, 6] same, int32[3, 4] given, int32[2, 6] z)
    <int64[1] flat = {-1}, int64[1] twelve = {12}, int64[2] back = {2, 6}, int64[2] other = {3, 4}, int64[2] kept = {0, -1}> {
        line = Reshape (x, flat)
        again = Reshape (x, twelve)
        square = Reshape (line, other)
        as_it_was = Reshape (square, back)
        rows = Reshape (as_it_was, kept)
        pair = Add (again, line)
        matrix = Reshape (pair, back)
        shared = Reshape (matrix, other)
        y = Mul (rows, matrix)
        same = Reshape (line, back)
        given = Reshape (square, other)
        z = If (c) <then_branch = then () => (int32[2, 6] t) { t = Reshape (square, back) },
                    else_branch = or () => (int32[2, 6] e) { e = Reshape (shared, back) }>
    }"""


def test_each_shape_once() -> None:
    before = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(TEXT), strict_mode=True)
    after = sink_into_branches(merge_reshapes(before))
    onnx.checker.check_model(after, full_check=True)
    made = {n.output[0]: (n.op_type, *n.input) for n in after.graph.node}
    assert made == {
        "line": ("Reshape", "x", "flat"),
        "pair": ("Add", "line", "line"),
        "matrix": ("Reshape", "pair", "back"),
        "y": ("Mul", "x", "matrix"),
        "same": ("Reshape", "x", "back"),
        "given": ("Reshape", "x", "other"),
        "z": ("If", "c"),
    }
    for condition in (False, True):
        feeds = {"x": np.arange(12, dtype=np.int32).reshape(2, 6), "c": np.array(condition)}
        results = [
            onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
            for m in (before, after)
        ]
        for expected, found in zip(*results, strict=True):
            np.testing.assert_array_equal(found, expected)
