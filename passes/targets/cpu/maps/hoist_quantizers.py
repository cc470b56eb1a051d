"""Quantizers before what only moves elements: errors are interleaved, cut and padded in 8 bits, not in 32.

Quantize(Concat(a, Pad(b)))  ->  Concat(Quantize(a), Pad(Quantize(b)))
"""

from __future__ import annotations

import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu.form import Form

QUANTIZERS = ("DirectQuantize", "DirectQuantizeHalfUp", "GridQuantize", "GridQuantizeHalfUp")
MOVES = ("Concat", "Reshape", "Slice", "Unsqueeze", "Pad", "Expand")


def hoist_quantizers(edit: Edit) -> None:
    """The same mantissas: a quantizer with one shift for all elements gives each of them whatever its place is, and 0 for 0."""
    for node in edit.nodes:
        is_map = len(edit.shape(node.output[0])) == 4
        if node.op_type in QUANTIZERS and is_map and not edit.shape(node.input[1]) and _moves(edit, node.input[0]):
            edit.replace(node, "Identity", [_quantized(edit, node, node.input[0])])


def _moves(edit: Edit, name: str) -> bool:
    """Whether a move that nothing else reads makes tensor ``name``; of zeros that are repeated, whatever reads them."""
    maker = edit.maker(name, *MOVES)
    if maker is not None and maker.op_type == "Expand":
        return edit.scalar(maker.input[0]) == 0
    return maker is not None and len(edit.readers[name]) == 1


def _quantized(edit: Edit, quantizer: onnx.NodeProto, name: str) -> str:
    """Tensor ``name`` as ``quantizer`` gives it."""
    passed = attributes(quantizer)
    maker = edit.maker(name)
    lifted = edit.maker(maker.input[0], "Unsqueeze") if maker is not None and maker.op_type == "Cast" else None
    if lifted is not None:  # an 8-bit tensor that is widened after its move
        shape, dtype = edit.shape(lifted.input[0]), edit.dtype(name)
        wide = edit.declare(edit.before(quantizer, "Cast", lifted.input[:1], to=dtype), dtype, shape)
        made = edit.before(quantizer, "Unsqueeze", [_quantized(edit, quantizer, wide), lifted.input[1]])
    elif maker is None or not _moves(edit, name):
        made = edit.before(quantizer, f"wageubn.{quantizer.op_type}", [name, quantizer.input[1]], **passed)
    else:
        zero = edit.put(0, onnx.helper.tensor_dtype_to_np_dtype(passed["to"]))
        moved, rest = list(maker.input[:1]), list(maker.input[1:])
        if maker.op_type == "Concat":
            moved, rest = list(maker.input), []
        elif maker.op_type == "Pad":
            rest[1] = zero
        parts = [zero] if maker.op_type == "Expand" else [_quantized(edit, quantizer, part) for part in moved]
        made = edit.before(quantizer, maker.op_type, [*parts, *rest], **attributes(maker))
        if maker.op_type != "Expand":
            edit.drop(maker)
    return edit.declare(made, passed["to"], edit.shape(name))


PASS = Form("hoist-quantizers", "quantizers before concatenations, slices and pads, which then move 8 bits", hoist_quantizers)
