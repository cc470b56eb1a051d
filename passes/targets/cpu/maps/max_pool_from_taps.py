"""Max pooling and its gradient from slices: 8-bit maxima and comparisons are vectorised.

    y = MaxPool(x)                      ->   y, chosen = MaxPoolWithChoice(x)
    dx = MaxPoolGradient(x, y, dy)      ->   dx = MaxPoolGradientByChoice(chosen, dy)

The canonical gradient finds the tap again by logic on bool, which is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx

from wageubn_onnx.geometry import Window, as_dtype, scatter_taps, tap_slices
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel

T = onnx.TensorProto


def pools_from_taps(edit: Edit) -> None:
    """The same maxima of uint8 maps, and the same gradients."""
    for gradient in edit.calls("MaxPoolGradient"):
        x, y, dy = gradient.input
        pool, window = edit.maker(y, "MaxPool"), Window.of(attributes(gradient))
        if pool is None or edit.dtype(x) != T.UINT8 or (edit.bound(x) or 255) == 255 or len(window.taps) == 1:
            continue
        dtype = onnx.helper.tensor_dtype_to_np_dtype(edit.dtype(gradient.output[0]))
        choice = partial(_choice, window=window, out=edit.shape(y)[2:])
        errors = partial(_gradient, window=window, size=edit.shape(x)[2:], dtype=dtype)
        (chosen,) = edit.compose(pool, "MaxPoolWithChoice", [x], choice, [y])
        edit.compose(gradient, "MaxPoolGradientByChoice", [chosen, dy], errors, [gradient.output[0]])
        edit.drop(pool)
        edit.drop(gradient)


def _choice(g: Model, of: list[Tensor], window: Window, out: Sequence[int]) -> list[Tensor]:
    """The maxima of uint8 maps and the number of each one's tap, from 1 on.

    A tap is chosen where it is greater than all before it, so that the first of equals stays. Beside padding, whose zeros must
    not be chosen, maps are greater by one meanwhile.
    """
    (x,), one = of, g.scalar(1, np.uint8)
    greatest, *others = tap_slices(g, g.op("Add", x, one, name="raised") if window.padded else x, window, out)
    chosen: Tensor = one
    for number, tap in enumerate(others, 2):
        greater = as_dtype(g, g.op("Greater", tap, greatest, name="greater"), np.uint8)
        chosen = g.op("Max", chosen, g.op("Mul", greater, g.scalar(number, np.uint8), name="number"), name="chosen")
        greatest = g.op("Max", greatest, tap, name="greatest")
    return [g.op("Sub", greatest, one, name="y") if window.padded else greatest, chosen]


def _gradient(g: Model, of: list[Tensor], window: Window, size: Sequence[int], dtype: Any) -> list[Tensor]:
    """The errors at the chosen taps, summed in ``dtype``, that of the canonical sums."""
    chosen, dy = of
    narrow = dy.dtype.itemsize == 1
    bits = as_dtype(g, dy, np.uint8 if narrow else np.int32)  # older runtimes choose among uint8 but not int8
    zero, parts = g.scalar(0, bits.dtype), list[Tensor]()
    for number in range(1, len(window.taps) + 1):
        part = g.op("Where", g.op("Equal", chosen, g.scalar(number, np.uint8), name="is_chosen"), bits, zero, name="part")
        parts.append(as_dtype(g, part, dy.dtype) if narrow else part)
    return [scatter_taps(g, parts, window, size, dtype)]


PASS = Form(
    "max-pool-from-taps",
    "max pooling tap by tap, with the choice that its gradient needs",
    pools_from_taps,
    needs=(Kernel.UNSIGNED,),
)
