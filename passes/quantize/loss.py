"""Softmax, cross-entropy and its error on grids: 2^x and log2 from tables, probabilities in 2^-15."""

from __future__ import annotations

import math

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import insert, source
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating, tables

LOSS_LIMIT = 2**30
DEEPEST = 17  # 2^-17 is 0 on the grid of the probabilities


def quantize_loss(g: Model, config: Config) -> None:
    """exp(t) = 2^Q(t*log2 e), log(s) = ln 2 * log2 s, p = Q(exp/total, 16), loss on 2^-16; all of it in float where loss is."""
    form = config.profile.format("loss")
    if form.is_float:
        return
    for exponential in g.by_role("S.exp"):
        with g.context(layer="loss", path="S.t"):
            binary = g.op("Mul", source(exponential).inputs[0], g.constant(math.log2(math.e), name="log2e"), name="binary")
            low = -DEEPEST * 2**tables.EXP_INDEX
            quantized = floating.direct(g, binary, "S.t", Format(14), -tables.EXP_INDEX, lo=low, hi=0)
            with g.context(path="S.p"):
                g.replace_uses(exponential, floating.exponential(g, quantized))
    for total in g.by_role("S.total"):  # never below 1, since the greatest logit adds 2^0; said so that it can be proven
        insert(g, total, _at_least_1)
    for logarithm in g.by_role("S.log"):
        with g.context(layer="loss", path="loss"):
            binary = floating.logarithm(g, source(logarithm).inputs[0])
            g.replace_uses(logarithm, g.op("Mul", binary, g.constant(math.log(2), name="ln2"), name="log"))
    for probability in g.by_role("S.p"):
        insert(g, probability, floating.direct, "S.p", Format(tables.EXP_BITS + 1), -tables.EXP_BITS, lo=0, hi=2**tables.EXP_BITS)
    insert(g, g.named["loss"], floating.direct, "loss", form, form.exponent, lo=-LOSS_LIMIT, hi=LOSS_LIMIT)


def _at_least_1(g: Model, x: Tensor) -> Tensor:
    return g.op("Max", x, g.scalar(1.0), name="at_least_1")


PASS = Pass("quantize-loss", "softmax and cross-entropy on grids", quantize_loss, ("S.t", "S.p", "loss"))
