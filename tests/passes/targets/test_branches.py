"""What one branch alone reads is computed there, and only that."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from wageubn_onnx.passes.targets.cpu.sink_into_branches import sink_into_branches

TEXT = """<ir_version: 9, opset_import: ["" : 18]>
    g (int32[4] x, bool c) => (int32[4] y, int32[4] given) <int32 one = {1}> {
        source = Add (x, one)
        chain = Mul (source, source)
        once = Sub (chain, one)
        both = Abs (x)
        unread = Add (once, both)
        outside = Neg (source)
        given = Add (outside, both)
        inside = Mul (outside, x)
        y = If (c) <then_branch = then () => (int32[4] t) { t = Add (once, both) },
                    else_branch = other () => (int32[4] e) { d = Sub (inside, both) e = Mul (d, source) }>
    }"""


@pytest.mark.parametrize("condition", [False, True])
def test_a_branch_computes_what_it_alone_reads(condition: bool) -> None:
    before = onnx.parser.parse_model(TEXT)
    after = sink_into_branches(before)
    onnx.checker.check_model(after, full_check=True)
    assert [n.output[0] for n in after.graph.node] == ["source", "both", "outside", "given", "y"]
    then, other = (a.g for a in after.graph.node[-1].attribute)
    assert [n.output[0] for n in then.node] == ["chain", "once", "t"]
    assert [n.output[0] for n in other.node] == ["inside", "d", "e"]
    feeds = {"x": np.array([3, -1, 0, 7], np.int32), "c": np.array(condition)}
    results = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
        for m in (before, after)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
