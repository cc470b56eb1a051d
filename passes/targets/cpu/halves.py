"""Weights of 24 bits as the upper 8 and the lower 16 of them, on which onnxruntime works several times as fast as on 32.

What rounds them to 8 bits needs of the lower half only whether it lies above, at or below its middle; weight decay
(`narrow-gradients`) starts from the same halves.
"""

from __future__ import annotations

import json

import onnx

from wageubn_onnx.graph import PREFIX
from wageubn_onnx.passes.targets.cpu.edit import Edit
from wageubn_onnx.passes.targets.nodes import attributes
from wageubn_onnx.quantizers.text import function

REACH = 2**23  # below it the size of what has halves

# w = 2^16 * (high - 128) + low of int32 -2^23 <= w < 2^23; high uint8, low uint16
_LIFTED = f"""
    lift = Constant <value: tensor = int32 {{{REACH}}}> ()
    unit = Constant <value: tensor = int32 {{65536}}> ()
    lifted = Add (w, lift)
    """
HIGH = function("HighHalf", (), "(w) => (high)", _LIFTED + "quotient = Div (lifted, unit) high = Cast <to: int = 2> (quotient)")
LOW = function("LowHalf", (), "(w) => (low)", _LIFTED + "low = Cast <to: int = 4> (lifted)")

# q = round(w / 2^16), half to even, in least..greatest, int8; bottom and top are those limits + 128
ROUND = function(
    "HalvesQuantize", ("bottom", "top"), "(high, low) => (q)",
    """
    bottom64 = Constant <value_int: int = @bottom> ()
    bottom = Cast <to: int = 2> (bottom64)
    top64 = Constant <value_int: int = @top> ()
    top = Cast <to: int = 2> (top64)
    middle = Constant <value: tensor = uint16 {32768}> ()
    flip = Constant <value: tensor = uint8 {128}> ()
    most = Constant <value: tensor = uint8 {255}> ()
    is_above = Greater (low, middle)
    above = Cast <to: int = 2> (is_above)
    is_tie = Equal (low, middle)
    tie = Cast <to: int = 2> (is_tie)
    parity = Mul (high, flip)
    odd_tie = Min (parity, tie)
    up = Add (above, odd_tie)
    room = Sub (most, high)
    within = Min (up, room)
    rounded = Add (high, within)
    raised = Max (rounded, bottom)
    bounded = Min (raised, top)
    turned = Add (bounded, flip)
    q = Cast <to: int = 3> (turned)
    """,
)  # fmt: skip


def halved_weights(edit: Edit) -> None:
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
