"""Flat columns: the same sums for every window, and no slice of rows left."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from wageubn_onnx.geometry import Window
from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.passes.targets.cpu.columns import flat_columns

Array = np.ndarray[Any, Any]
N, CHANNELS, ERRORS = 3, 2, 4  # images, channels of the maps and of the errors

# The sizes of the maps, and what slides over them: kernel, strides, pads before and after, dilations
WINDOWS = {
    "as ResNets have them": ((6, 5), Window((3, 3), (1, 1), (1, 1), (1, 1))),
    "with strides": ((6, 8), Window((3, 3), (2, 2), (1, 1), (1, 1))),
    "with strides, of odd sizes": ((7, 9), Window((3, 3), (2, 2), (1, 1), (1, 1))),
    "the stem's": ((10, 12), Window((7, 7), (2, 2), (3, 3), (3, 3))),
    "one element with strides": ((7, 6), Window((1, 1), (2, 2), (0, 0), (0, 0))),
    "without pads": ((6, 6), Window((3, 3), (1, 1), (0, 0), (0, 0))),
    "uneven": ((8, 7), Window((2, 5), (3, 1), (0, 3), (1, 2))),
    "padded before alone": ((5, 5), Window((3, 3), (1, 1), (2, 2), (0, 0))),
    "dilated": ((9, 9), Window((3, 3), (1, 1), (2, 2), (2, 2), (2, 2))),
    "dilated, with strides": ((9, 8), Window((3, 2), (2, 3), (1, 0), (3, 2), (3, 2))),
    "greater than the image": ((2, 3), Window((5, 5), (1, 1), (2, 2), (2, 2))),
}


def gradient(size: tuple[int, int], window: Window, pieces: int) -> onnx.ModelProto:
    """dw [C * taps, O] of maps x [N, C, H, W] and errors dy as the canonical step has it, both int8 with their sign bits flipped;
    in ``pieces`` sums of windows."""
    padded = [size[a] + window.before[a] + window.after[a] for a in range(2)]
    reach = [(window.kernel[a] - 1) * window.dilations[a] + 1 for a in range(2)]
    out = [(padded[a] - reach[a]) // window.strides[a] + 1 for a in range(2)]
    windows, rows = N * out[0] * out[1], CHANNELS * len(window.taps)
    ints = {"axes": [2, 3], "strides": window.strides, "pads": [0, 0, *window.before, 0, 0, *window.after]}
    ints |= {"rows": [rows, windows], "errors": [windows, ERRORS], "zero": [0], "one": [1]}
    taps, names = [], [f"tap{i}" for i in range(len(window.taps))] if len(window.taps) > 1 else ["gathered"]
    for i, tap in enumerate(window.taps):
        start = [tap[a] * window.dilations[a] for a in range(2)]
        ints |= {f"start{i}": start, f"stop{i}": [start[a] + (out[a] - 1) * window.strides[a] + 1 for a in range(2)]}
        taps.append(f"{names[i]} = Slice (padded, start{i}, stop{i}, axes, strides)")
    if len(names) > 1:
        taps.append(f"gathered = Concat <axis: int = 1> ({', '.join(names)})")
    sums = []
    for i, bounds in enumerate(np.array_split(np.arange(windows), pieces)):
        ints |= {f"from{i}": [bounds[0]], f"to{i}": [bounds[-1] + 1]}
        sums.append(
            f"left{i} = Slice (left, from{i}, to{i}, one) right{i} = Slice (right, from{i}, to{i}, zero)"
            f" sum{i} = MatMulInteger (left{i}, right{i}, flip, flip)"
        )
    if pieces == 1:
        sums = ["sum0 = MatMulInteger (left, right, flip, flip)"]
    constants = [f"int64[{len(value)}] {name} = {{{', '.join(map(str, value))}}}" for name, value in ints.items()]
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
        g (int8[{N}, {CHANNELS}, {size[0]}, {size[1]}] x, int8[{N}, {ERRORS}, {out[0]}, {out[1]}] dy)
            => ({", ".join(f"int32[{rows}, {ERRORS}] sum{i}" for i in range(pieces))})
            <uint8 flip = {{128}}, int8 none = {{0}}, {", ".join(constants)}> {{
            by_channel = Transpose <perm: ints = [1, 0, 2, 3]> (x)
            padded = Pad (by_channel, pads, none)
            {" ".join(taps)}
            rows_of_taps = Reshape (gathered, rows)
            bits = Cast <to: int = 2> (rows_of_taps)
            left = BitwiseXor (bits, flip)
            last = Transpose <perm: ints = [0, 2, 3, 1]> (dy)
            rows_of_errors = Reshape (last, errors)
            error_bits = Cast <to: int = 2> (rows_of_errors)
            right = BitwiseXor (error_bits, flip)
            {" ".join(sums)}
        }}"""
    model = onnx.parser.parse_model(text)
    for i, node in enumerate(model.graph.node):
        node.name = f"node{i}"
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def run(model: onnx.ModelProto, **feeds: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, feeds)]


@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("as_int8", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_sums_are_the_same(name: str, as_int8: bool, pieces: int) -> None:
    before = gradient(*WINDOWS[name], pieces)
    after = rewritten(before, {"im2col-by-shifts": lambda edit: flat_columns(edit, lambda image, kernel: as_int8)})
    random = np.random.default_rng(0)
    # small errors, whose products no kernel saturates
    feeds = {
        value.name: random.integers(*((-8, 8) if value.name == "dy" else (-128, 128)), shape).astype(np.int8)
        for value in before.graph.input
        for shape in [[d.dim_value for d in value.type.tensor_type.shape.dim]]
    }
    for a, b in zip(run(before, **feeds), run(after, **feeds), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.any()
    used = {name for node in after.graph.node if node.op_type == "MatMulInteger" for name in node.input[:2]}
    assert not used & {node.output[0] for node in before.graph.node}, "a product kept an operand of the canonical step"
