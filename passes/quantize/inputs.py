"""Q_I: the normalised image, 8 bits; its exponent covers what any pixel can become."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import fill
from wageubn_onnx.quantizers import floating
from wageubn_onnx.ranges import exponent_for


def quantize_inputs(g: Model, config: Config) -> None:
    """Fill the slot I."""
    bits = config.profile.input_bits
    exponent = exponent_for(float(g.notes["ranges"]["input"].reach.max()), bits)
    for slot in g.by_role("I"):
        fill(g, slot, floating.direct, "I", bits, exponent)


PASS = Pass("quantize-inputs", "Q_I on the normalised image", quantize_inputs, ("I",))
