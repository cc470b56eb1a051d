"""Shifts that are constants: rounding by one of them takes fewer passes than by any shift, and none by 0.

DirectQuantize(m, shift)  ->  DirectQuantizeStatic(m, divisor=2^shift)
DirectQuantize(m, 0)      ->  Clip(m)
"""

from __future__ import annotations

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.onnxir.trace import Int, Int32, Value, function
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.quantizers.integer import LIFT, SHIFT_LIMIT, bounded


@function("DirectQuantizeStatic", "q")
def STATIC(m: Int32, *, divisor: Int32, offset: Int32, nearly: Int32, to: Int, least: Int32, greatest: Int32) -> Value:
    """q = round(m / divisor), half to even, in least..greatest; |m| < 2^28.

    floor((a + nearly + parity of floor(a / divisor)) / divisor) - offset, with a = m + `LIFT`, nearly = divisor/2 - 1, and
    offset = `LIFT` / divisor.
    """
    a = m + LIFT
    parity = a // divisor & 1
    r = (a + nearly + parity) // divisor - offset
    return bounded(r, least, greatest, to)


def specialize_constant_shifts(edit: Edit) -> None:
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


PASS = Form(
    "specialize-constant-shifts",
    "rounding by a constant shift as a division by a constant, none by 0",
    specialize_constant_shifts,
)
