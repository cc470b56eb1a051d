"""Square roots in two steps of 64: what the canonical nodes find bit by bit, in a quarter of the nodes.

A root that is rounded to the nearest is at least k where its radicand reaches the square of k - 1/2.
"""

from __future__ import annotations

from wageubn_onnx.passes.targets.cpu.edit import Edit
from wageubn_onnx.passes.targets.nodes import attributes
from wageubn_onnx.quantizers.integer import BOUNDS, RADICAND
from wageubn_onnx.quantizers.text import function

STEP = 64
GREATEST = STEP**2 - 1  # of a root

# q = round(sqrt(total/count * factor + offset) / 2), ties upward, in least..greatest <= GREATEST; int64 [1, C, 1, 1], the
# radicand in quarters of q's unit squared: q >= k where it reaches (2k - 1)^2
ROOT = function(
    "DirectQuantizeRootSteps", ("to", "least", "greatest"), "(total, count, factor, offset) => (q)",
    f"""
    last = Constant <value_ints: ints = [-1]> ()
    zero = Constant <value: tensor = int64 {{0}}> ()
    one = Constant <value: tensor = int32 {{1}}> ()
    step = Constant <value: tensor = int32 {{{STEP}}}> ()
    double_step = Constant <value: tensor = int32 {{{2 * STEP}}}> ()
    most = Constant <value: tensor = int64 {{{2**31 - 1}}}> ()
    coarse = Constant <value: tensor = int32[{STEP - 1}] {{{", ".join(str((2 * STEP * i - 1) ** 2) for i in range(1, STEP))}}}> ()
    evens = Constant <value: tensor = int32[{STEP - 1}] {{{", ".join(str(2 * i) for i in range(1, STEP))}}}> ()
    """ + BOUNDS + RADICAND + """
    narrow = Cast <to: int = 6> (v)
    steps_reached = GreaterOrEqual (narrow, coarse)
    steps_each = Cast <to: int = 6> (steps_reached)
    steps = ReduceSum (steps_each, last)
    base0 = Mul (steps, double_step)
    base = Sub (base0, one)
    candidates = Add (base, evens)
    squares = Mul (candidates, candidates)
    reached = GreaterOrEqual (narrow, squares)
    each = Cast <to: int = 6> (reached)
    fine = ReduceSum (each, last)
    before = Mul (steps, step)
    root = Add (before, fine)
    bounded = Clip (root, least, greatest)
    q = Cast <to: int = @to> (bounded)
    """,
)  # fmt: skip


def stepwise_roots(edit: Edit) -> None:
    """The same deviations."""
    edit.functions([ROOT])
    for node in edit.nodes:
        if node.op_type == "DirectQuantizeRootHalfUp":
            passed = {key: attributes(node)[key] for key in ("to", "least", "greatest")}
            if passed["least"] >= 0 and passed["greatest"] <= GREATEST:
                edit.replace(node, f"wageubn.{ROOT.name}", list(node.input), **passed)
