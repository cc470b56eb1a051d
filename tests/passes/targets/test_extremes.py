"""Exponents from a tensor's extremes are those from the tensor, whichever end of it is the farther one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.cpu.scalars.split_exponent_reductions import split_exponent_reductions
from wageubn_onnx.quantizers import integer
from wageubn_onnx.runtime.kernels import kernels

FARTHEST = [127, 126, 90, 89, 88, 64, 12, 11, 10, 2, 1, 0]  # sizes about where an exponent moves, a channel each
COUNT = len(FARTHEST)


def model(kind: str, least: int) -> onnx.ModelProto:
    """What ``kind`` says of a map that was quantized to ``least`` .. 127."""
    shape = f"1, {COUNT}, 1, 1" if kind == "FollowExponents" else ""
    text = f"""<ir_version: 9, opset_import: ["" : 18, "{DOMAIN}" : 1]>
        g (int32[3, {COUNT}, 4, 5] m, int32[{shape}] held) => (int32[{shape}] next)
        <int32 none = {{0}}, int8[3, {COUNT}, 4, 5] q> {{
            q = {DOMAIN}.GridQuantize <to: int = 3, least: int = {least}, greatest: int = 127> (m, none)
            next = {DOMAIN}.{kind}
                <greatest: int = 127, small: int = 89, up: int = 1, lowest: int = -20, highest: int = 20> (q, held)
        }}"""
    parsed = onnx.parser.parse_model(text)
    parsed.functions.extend(
        [integer.GRID["half_even"], integer.ROUND_SHIFT["half_even"], integer.FOLLOW, integer.FOLLOW_CHANNELS]
    )
    for node in parsed.graph.node:
        node.name = node.output[0]
    return parsed


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("least", [-127, -128])
@pytest.mark.parametrize("kind", ["FollowExponents", "FollowExponent"])
@pytest.mark.parametrize("by_size", [True, False])
def test_next_exponents(by_size: bool, kind: str, least: int, sign: int) -> None:
    if by_size and not kernels().is_exact(Kernel.UNSIGNED):
        pytest.skip("this release of onnxruntime lacks unsigned arithmetic")
    before = model(kind, least)
    after = tidy(inline(rewritten(before, {"split-exponent-reductions": lambda edit: split_exponent_reductions(edit, by_size)})))
    sized = by_size and kind == "FollowExponents" and least == -127
    kinds = [node.op_type for node in after.graph.node]
    assert (kinds.count("ReduceMax"), kinds.count("ReduceMin")) == ((1, 0) if sized else (1, 1))
    random = np.random.default_rng(0)
    top = np.array(FARTHEST, np.int32)
    held = random.integers(-19, 20, (1, COUNT, 1, 1) if kind == "FollowExponents" else (), np.int32)
    for far in (top, np.where(top == 127, 128, top), top // 3):
        m = sign * random.integers(-(far // 2)[:, None, None], far[:, None, None] + 1, (3, COUNT, 4, 5)).astype(np.int32)
        m[1, :, 2, 3] = sign * far
        feeds = {"m": m, "held": np.asarray(held, np.int32)}
        results = [
            onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
            for made in (inline(before), after)
        ]
        np.testing.assert_array_equal(results[1], results[0])
        assert (results[0] != held).any()
