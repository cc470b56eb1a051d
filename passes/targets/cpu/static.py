"""Shifts that are constants: rounding by one of them takes fewer passes than by any shift, and none by 0."""

from __future__ import annotations

import numpy as np
import onnx

from wageubn_onnx.passes.targets.cpu.edit import Edit
from wageubn_onnx.passes.targets.nodes import attributes
from wageubn_onnx.quantizers.integer import BOUNDS, SHIFT_LIMIT
from wageubn_onnx.quantizers.text import function

LIFT = 2**29  # makes mantissas positive; an even multiple of every divisor, so that parities stay

# r = round(m / divisor), half to even, of int32 |m| < 2^28: floor((a + divisor/2 - 1 + parity of floor(a/divisor)) / divisor)
STATIC = function(
    "DirectQuantizeStatic", ("divisor", "offset", "nearly", "to", "least", "greatest"), "(m) => (q)",
    f"""
    lift = Constant <value: tensor = int32 {{{LIFT}}}> ()
    one = Constant <value: tensor = int32 {{1}}> ()
    divisor64 = Constant <value_int: int = @divisor> ()
    divisor = Cast <to: int = 6> (divisor64)
    offset64 = Constant <value_int: int = @offset> ()
    offset = Cast <to: int = 6> (offset64)
    nearly64 = Constant <value_int: int = @nearly> ()
    nearly = Cast <to: int = 6> (nearly64)
    a = Add (m, lift)
    quotient = Div (a, divisor)
    parity = BitwiseAnd (quotient, one)
    raised = Add (a, nearly)
    c = Add (raised, parity)
    rounded = Div (c, divisor)
    r = Sub (rounded, offset)
    """ + BOUNDS + """
    bounded = Clip (r, least, greatest)
    q = Cast <to: int = @to> (bounded)
    """,
)  # fmt: skip


def static_shifts(edit: Edit) -> None:
    """The same mantissas of direct quantizers that round half to even by a constant shift."""
    edit.functions([STATIC])
    for node in edit.nodes:
        shift = edit.scalar(node.input[1]) if node.op_type == "DirectQuantize" else None
        if shift is not None and 0 <= shift <= SHIFT_LIMIT:
            passed = {key: attributes(node)[key] for key in ("to", "least", "greatest")}
            if shift:
                passed |= {"divisor": 2**shift, "offset": LIFT >> shift, "nearly": 2 ** (shift - 1) - 1}
                edit.replace(node, f"wageubn.{STATIC.name}", node.input[:1], **passed)
                continue
            clip = [node.input[0], *(edit.put(passed[key], np.int32) for key in ("least", "greatest"))]
            if passed["to"] == onnx.TensorProto.INT32:
                edit.replace(node, "Clip", clip)
            else:
                edit.replace(node, "Cast", [edit.before(node, "Clip", clip)], to=passed["to"])
