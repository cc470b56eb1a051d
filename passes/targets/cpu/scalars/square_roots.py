"""Square roots in two steps of 64: what the canonical nodes find bit by bit, in a quarter of the nodes.

    DirectQuantizeRootHalfUp(total, count, ...)  ->  steps = ReduceSum(radicand >= 63 squares)
                                                     64 * steps + ReduceSum(radicand >= 63 squares from there on)

A root that is rounded to the nearest is at least k where its radicand reaches the square of k - 1/2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.onnxir.trace import Int, Int32, Int64, Value, cast, function, reduce_sum
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.quantizers.integer import bounded, radicand

STEP = 64
GREATEST = STEP**2 - 1  # of a root

COARSE = np.array([(2 * STEP * i - 1) ** 2 for i in range(1, STEP)], np.int32)
EVENS = np.array([2 * i for i in range(1, STEP)], np.int32)


def _reached(x: Value, thresholds: np.ndarray[Any, Any] | Value) -> Value:
    """How many of them, along the last axis, each channel's number reaches."""
    return reduce_sum(cast(x >= thresholds, np.int32), np.array([-1], np.int64))


@function("DirectQuantizeRootSteps", "q")
def ROOT(total: Int64, count: Int64, factor: Int64, offset: Int64, *, to: Int, least: Int32, greatest: Int32) -> Value:
    """q = round(sqrt(total/count * factor + offset) / 2), ties upward, in least..greatest <= `GREATEST`; operands [1, C, 1, 1].

    The radicand is in quarters of q's unit squared: q >= k where it reaches (2k - 1)^2.
    """
    narrow = cast(radicand(total, count, factor, offset, 2**31 - 1).v, np.int32)
    steps = _reached(narrow, COARSE)
    candidates = steps * (2 * STEP) - 1 + EVENS
    root = steps * STEP + _reached(narrow, candidates * candidates)
    return bounded(root, least, greatest, to)


def square_roots_in_two_steps(edit: Edit) -> None:
    """The same deviations."""
    edit.functions([ROOT])
    for node in edit.nodes:
        if node.op_type == "DirectQuantizeRootHalfUp":
            passed = {key: attributes(node)[key] for key in ("to", "least", "greatest")}
            if passed["least"] >= 0 and passed["greatest"] <= GREATEST:
                edit.replace(node, f"wageubn.{ROOT.name}", list(node.input), **passed)


PASS = Form(
    "square-roots-in-two-steps",
    "square roots by two comparisons with 63 thresholds, in place of bit by bit",
    square_roots_in_two_steps,
)
