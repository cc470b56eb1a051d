"""Q_E1 and Q_E2, the errors; sums of errors on a common exponent; accumulators too long for int32."""

from __future__ import annotations

import math

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import (
    delayed,
    expect_also,
    fill,
    insert,
    is_error,
    quantizer_of,
    random_for,
    source,
    step_of,
)
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating
from wageubn_onnx.ranges import exponent_for

FLAG_REACH = 127 * 128  # the greatest mantissa of a flag pair


def quantize_errors(g: Model, config: Config) -> None:
    """Fill every slot E1 and E2; insert on the operands of E.sum, and after E.acc where it is too long."""
    for slot in g.by_role("E1", "E2"):
        _error(g, config, slot, g.tag(slot).role)
    for slot in g.by_role("E.bn"):  # most errors come to a BN through an activation's Q_E1, and a backward in float needs none
        if is_error(source(slot).inputs[0]) or config.profile.format("BN.A", g.tag(slot).layer).is_float:
            g.replace_uses(slot, source(slot).inputs[0])
        else:
            _error(g, config, slot, "E1")
    for total in g.by_role("E.sum"):
        node, layer = source(total), g.tag(total).layer
        form = config.profile.format("E.sum", layer)
        if form.is_float:
            continue
        with g.beside(g.tag(total)):
            if form.delayed:
                node.inputs = delayed(g, total, list(node.inputs), "E.sum", form, _first(g, total, form))
            else:
                node.inputs = list(floating.align(g, node.inputs[0], node.inputs[1], "E.sum", form)[:2])
    for product in g.by_role("E.acc"):
        _shorten(g, config, product)


def _error(g: Model, config: Config, slot: Tensor, role: str) -> None:
    layer = g.tag(slot).layer
    form = config.profile.format(role, layer)
    random = random_for(g, form, f"{layer}/{role}", slot)
    if form.function == "flag":
        fill(g, slot, floating.flag, role, form)
    elif form.delayed:
        g.replace_uses(slot, *delayed(g, slot, source(slot).inputs, role, form, _first(g, slot, form), random))
    else:
        fill(g, slot, floating.shift, role, form, random)


def _first(g: Model, tensor: Tensor, form: Format) -> int:
    """The exponent with which a delayed quantizer starts: what holds the greatest error of the dry run."""
    return exponent_for(g.notes["errors"][tensor.name], form.bits)


def _shorten(g: Model, config: Config, product: Tensor) -> None:
    """Drop the low bits of a data gradient whose sum of products may leave its bits; one with an operand in float has none."""
    node = source(product)
    error, weight = node.inputs
    layer = g.tag(product).layer
    count = weight.shape[0] // node.attrs.get("group", 1) * math.prod(weight.shape[2:])
    e2, w, form = (config.profile.format(path, layer) for path in ("E2", "W", "E.acc"))
    reach = FLAG_REACH if e2.function == "flag" else e2.greatest
    excess = (count * w.greatest * reach).bit_length() - (form.bits - 1)
    if excess <= 0 or any(f.is_float for f in (e2, w, form)):
        return
    with g.beside(g.tag(product)):
        weight_step = 2.0 ** int(quantizer_of(weight).attrs["exponent"])
        step = g.op("Mul", step_of(error), g.scalar(weight_step * 2.0**excess), name="step_acc")
    insert(g, product, floating.grid, step, "E.acc", form)
    expect_also(g, product, "E.acc")


PASS = Pass(
    "quantize-errors", "Q_E1 and Q_E2 on every error, and the sums of errors", quantize_errors, ("E1", "E2", "E.sum", "E.acc")
)
