"""Q_E1 and Q_E2, the errors; sums of errors on a common exponent; accumulators too long for int32."""

from __future__ import annotations

import math

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import expect_also, fill, insert, is_shifted, quantizer_of, source, step_of
from wageubn_onnx.quantizers import floating

SAFE_BITS = 28  # what a run-time requantization takes in int32
FLAG_REACH = 127 * 128  # the greatest mantissa of a flag pair


def quantize_errors(g: Model, config: Config) -> None:
    """Fill every slot E1 (shift) and E2 (flag); insert on the operands of E.sum, and after E.acc where it is too long."""
    profile = config.profile
    for slot in g.by_role("E1"):
        fill(g, slot, floating.shift, "E1", profile.error_bits)
    for slot in g.by_role("E2"):
        fill(g, slot, floating.flag, "E2")
    for slot in g.by_role("E.bn"):  # most errors come to a BN through an activation's Q_E1
        if is_shifted(source(slot).inputs[0]):
            g.replace_uses(slot, source(slot).inputs[0])
        else:
            fill(g, slot, floating.shift, "E1", profile.error_bits)
    for total in g.by_role("E.sum"):
        node = source(total)
        with g.context(layer=g.tag(total).layer):
            a, b, _ = floating.align(g, node.inputs[0], node.inputs[1], "E.sum", profile.error_sum_bits)
        node.inputs = [a, b]
    for product in g.by_role("E.acc"):
        _shorten(g, config, product)


def _shorten(g: Model, config: Config, product: Tensor) -> None:
    """Drop the low bits of a data gradient whose sum of products may leave 28 bits."""
    error, weight = source(product).inputs
    count = weight.shape[0] * math.prod(weight.shape[2:])
    excess = (count * floating.signed(config.profile.weight_bits) * FLAG_REACH).bit_length() - SAFE_BITS
    if excess <= 0:
        return
    with g.context(layer=g.tag(product).layer):
        weight_step = 2.0 ** int(quantizer_of(weight).attrs["exponent"])
        step = g.op("Mul", step_of(error), g.scalar(weight_step * 2.0**excess), name="step_acc")
    insert(g, product, floating.grid, step, "E.acc", SAFE_BITS + 1)
    expect_also(g, product, "E.acc")


PASS = Pass(
    "quantize-errors", "Q_E1 and Q_E2 on every error, and the sums of errors", quantize_errors, ("E1", "E2", "E.sum", "E.acc")
)
