"""Q_C: a product's accumulator becomes 16 bits before BN squares it; Q_Z is the same on the logits."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import expected_reach, form_exponent, insert
from wageubn_onnx.quantizers import floating


def quantize_convolutions(g: Model, config: Config) -> None:
    """Insert after every tensor of role C. The exponent is static: in `int_eval` an image's result is its own."""
    for tensor in g.by_role("C"):
        is_logits = tensor is g.named["logits"]
        role = "Z" if is_logits else "C"
        form = config.profile.format(role, g.tag(tensor).layer)
        exponent = form_exponent(form, expected_reach(g, tensor) * (4.0 if is_logits else 1.0))
        insert(g, tensor, floating.direct, role, form, exponent)


PASS = Pass("quantize-convolutions", "Q_C on every product's output, Q_Z on the logits", quantize_convolutions, ("C", "Z"))
