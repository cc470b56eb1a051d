"""Q_C: a product's accumulator becomes 16 bits before BN squares it; Q_Z is the same on the logits."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import delayed, form_exponent, insert, moments, state_of
from wageubn_onnx.quantizers import floating
from wageubn_onnx.ranges import SPREAD, exponent_for


def quantize_convolutions(g: Model, config: Config) -> None:
    """Insert after every tensor of role C.

    The exponent is static, or before a BN, where the profile delays it, a state: in `int_eval` an image's result is its own.
    """
    for tensor in g.by_role("C"):
        is_logits = tensor is g.named["logits"]
        role = "Z" if is_logits else "C"
        layer, found = g.tag(tensor).layer, moments(g, tensor)
        form = config.profile.format(role, layer)
        if form.delayed and isinstance(state_of(g, tensor, "W").info.get("scale_log2"), list):  # a BN follows
            reach = abs(found.mean) + SPREAD * found.deviation
            first = np.reshape([exponent_for(r, form.bits) for r in reach], (1, -1, 1, 1))
            g.replace_uses(tensor, *delayed(g, tensor, [tensor], "C", form, first))
            continue
        exponent = form_exponent(form, float(found.reach.max()) * (4.0 if is_logits else 1.0))
        insert(g, tensor, floating.direct, role, form, exponent)


PASS = Pass("quantize-convolutions", "Q_C on every product's output, Q_Z on the logits", quantize_convolutions, ("C", "Z"))
