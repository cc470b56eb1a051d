"""Weights of 24 bits as the upper 8 and the lower 16 of them, on which onnxruntime works several times as fast as on 32.

    DirectQuantize(w, 16)  ->  HalvesQuantize(HighHalf(w), LowHalf(w))

What rounds them to 8 bits needs of the lower half only whether it lies above, at or below its middle; weight decay
(`narrow-weight-gradients`) starts from the same halves.
"""

from __future__ import annotations

import json

import numpy as np
import onnx

from wageubn_onnx.graph import PREFIX
from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.onnxir.trace import Int32, Uint8, Uint16, Value, cast, equal, function, maximum, minimum
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel

REACH = 2**23  # below it the size of what has halves


@function("HighHalf", "high")
def HIGH(w: Int32) -> Value:
    """w = 2^16 * (high - 128) + low, -2^23 <= w < 2^23; uint8."""
    return cast((w + REACH) // 2**16, np.uint8)


@function("LowHalf", "low")
def LOW(w: Int32) -> Value:
    """The same; uint16."""
    return cast(w + REACH, np.uint16)


@function("HalvesQuantize", "q")
def ROUND(high: Uint8, low: Uint16, *, bottom: Uint8, top: Uint8) -> Value:
    """q = round(w / 2^16), half to even, int8; bottom and top are its bounds + 128."""
    above, tie = cast(low > 2**15, np.uint8), cast(equal(low, 2**15), np.uint8)
    parity = high * 128  # uint8 wraps
    up = above + minimum(parity, tie)
    rounded = high + minimum(up, 255 - high)
    bounded = minimum(maximum(rounded, bottom), top)
    return cast(bounded + 128, np.int8)


def split_weights_high_low(edit: Edit) -> None:
    """The same 8-bit weights."""
    edit.functions([HIGH, LOW, ROUND])
    small = with_halves(edit.model)
    for node in edit.nodes:
        if node.op_type == "DirectQuantize" and edit.scalar(node.input[1]) == 16 and node.input[0] in small:
            passed = attributes(node)
            if passed["to"] == onnx.TensorProto.INT8:
                limits = {"bottom": passed["least"] + 128, "top": passed["greatest"] + 128}
                edit.replace(node, f"wageubn.{ROUND.name}", halves(edit, node, node.input[0]), **limits)


def with_halves(model: onnx.ModelProto) -> set[str]:
    """The states of a step that are known to lie below `REACH`."""
    ranges = json.loads(next((p.value for p in model.metadata_props if p.key == PREFIX + "ranges"), "{}"))
    return {name for name, bounds in ranges.items() if max(map(abs, bounds)) < REACH}


def halves(edit: Edit, anchor: onnx.NodeProto, name: str) -> list[str]:
    """The upper and the lower half of ``name``: those of an earlier pass, or made before ``anchor``."""
    made = []
    for half, suffix, dtype in ((HIGH, "high", onnx.TensorProto.UINT8), (LOW, "low", onnx.TensorProto.UINT16)):
        made.append(f"{name}/{suffix}")
        if edit.maker(made[-1]) is None:
            edit.declare(edit.before(anchor, f"wageubn.{half.name}", [name], made[-1]), dtype, edit.shape(name))
    return made


PASS = Form(
    "split-weights-high-low", "weights of 24 bits as their high 8 and low 16", split_weights_high_low, needs=(Kernel.UNSIGNED,)
)
