"""Q_I: the normalised image, 8 bits; its exponent covers what any pixel can become."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import fill, form_exponent
from wageubn_onnx.quantizers import floating


def quantize_inputs(g: Model, config: Config) -> None:
    """Fill the slot I."""
    form = config.profile.format("I", "input")
    exponent = form_exponent(form, float(g.notes["ranges"]["input"].reach.max()))
    for slot in g.by_role("I"):
        fill(g, slot, floating.direct, "I", form, exponent)


PASS = Pass("quantize-inputs", "Q_I on the normalised image", quantize_inputs, ("I",))
