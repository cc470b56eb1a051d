"""Q_C: a product's accumulator becomes 16 bits before BN squares it; Q_Z is the same on the logits."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import delayed, form_exponent, insert, moments
from wageubn_onnx.quantizers import floating
from wageubn_onnx.ranges import SPREAD, exponent_for


def quantize_convolutions(g: Model, config: Config) -> None:
    """Insert after every tensor of role C.

    The exponent is static, or before a BN, where the profile delays it, a state: in `int_eval` an image's result is its own.
    """
    for tensor in g.by_role("C"):
        is_logits = tensor is g.named["logits"]
        role = "Z" if is_logits else "C"
        form, scale = config.profile.format(role, g.tag(tensor).layer), _scale_log2(g, tensor)
        if form.delayed and isinstance(scale, list):
            found = moments(g, tensor)
            reach = np.ldexp(abs(found.mean) + SPREAD * found.deviation, scale)
            first = np.reshape([exponent_for(r, form.bits) for r in reach], (1, -1, 1, 1))
            insert(g, tensor, lambda g, x, form, first: delayed(g, [x], "C", form, first)[0], form, first)
            continue
        reach = np.ldexp(moments(g, tensor).reach, scale if isinstance(scale, list) else 0)
        insert(g, tensor, floating.direct, role, form, form_exponent(form, float(reach.max()) * (4.0 if is_logits else 1.0)))


def _scale_log2(g: Model, tensor: Tensor) -> int | list[int]:
    """What `rescale` did to the weights of this product: one number a channel where a BN follows."""
    layer = g.tag(tensor).layer
    (scale,) = (s.info["scale_log2"] for s in g.states.values() if s.layer == layer and s.kind == "W")
    return scale  # type: ignore[no-any-return]


PASS = Pass("quantize-convolutions", "Q_C on every product's output, Q_Z on the logits", quantize_convolutions, ("C", "Z"))
