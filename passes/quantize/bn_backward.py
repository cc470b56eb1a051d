"""BN's backward, e*A - xh*K - B: its per-channel coefficients on grids that make the sum exact in int32."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import insert, source, step_of
from wageubn_onnx.quantizers import floating

RATIO_FRACTION = 20  # gamma/sigma first lands 20 bits below gamma's grid over sigma's


def quantize_bn_backward(g: Model, config: Config) -> None:
    """Insert after BN.A (twice: a fixed grid, then its own range), BN.K and BN.B (on the grid of e*A)."""
    bits = config.profile.coefficient_bits
    for ratio in g.by_role("BN.A"):
        layer = g.tag(ratio).layer
        gamma, sigma = (int(source(_unreshaped(i)).attrs["exponent"]) for i in source(ratio).inputs)
        grid = gamma - sigma - RATIO_FRACTION
        fixed = insert(g, ratio, lambda x, e=grid: floating.direct(g, x, "BN.ratio", 29, e))
        steps = []
        a = insert(g, fixed, lambda x, keep=steps: _shifted(g, x, bits, keep))
        error = next(u.inputs[0] for u in a.outputs if u.op == "Mul" and g.tag(u.outputs[0]).role == "BN.e_A")
        with g.context(layer=layer):
            step = g.op("Mul", step_of(error), steps[0], name="step_e_A")
        limit = 2 ** (bits - 1 + config.profile.error_bits - 1)  # |A * mean(e*xh)| <= max|A| max|e| mean|xh|, and mean|xh| <= 1
        for role in ("BN.K", "BN.B"):
            for tensor in g.by_role(role):
                if g.tag(tensor).layer == layer:
                    insert(g, tensor, lambda x, r=role: floating.grid(g, x, step, r, limit.bit_length(), limit))


def _shifted(g: Model, x: object, bits: int, keep: list[object]) -> object:
    value, step = floating.shift(g, x, "BN.A", bits)  # type: ignore[arg-type]
    keep.append(step)
    return value


def _unreshaped(tensor: object) -> object:
    node = source(tensor)  # type: ignore[arg-type]
    return node.inputs[0] if node.op == "Reshape" else tensor


PASS = Pass("quantize-bn-backward", "the coefficients of BN's backward", quantize_bn_backward, ("BN.ratio", "BN.A", "BN.K", "BN.B"))
