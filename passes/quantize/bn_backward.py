"""BN's backward, e*A - xh*K - B: its per-channel coefficients on grids that make the sum exact in int32."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import insert, is_dynamic, is_quantized, quantizer_of, source, step_of
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating

RATIO_BITS = 29  # 8 bits of gamma over a sigma of at least 1
RATIO_FRACTION = 20  # gamma/sigma first lands 20 bits below gamma's grid over sigma's


def quantize_bn_backward(g: Model, config: Config) -> None:
    """Insert after BN.A (twice: a fixed grid, then its own range), BN.K and BN.B (on the grid of e*A).

    A grid that would follow from what is in float does not exist, and its quantizer neither.
    """
    for ratio in g.by_role("BN.A"):
        layer = g.tag(ratio).layer
        form, error_form = config.profile.format("BN.A", layer), config.profile.format("E1", layer)
        wide = Format(RATIO_BITS, rounding=form.rounding)
        # |A * mean(e*xh)| <= max|A| max|e| mean|xh|, and mean|xh| <= 1
        coefficient = Format(
            form.bits + error_form.bits - 1, rounding=form.rounding, greatest=2 ** (form.bits + error_form.bits - 2)
        )
        fixed, factors = ratio, source(ratio).inputs
        if all(map(is_quantized, factors)) and not form.is_float:
            gamma, sigma = (int(quantizer_of(factor).attrs["exponent"]) for factor in factors)
            fixed = insert(g, ratio, floating.direct, "BN.ratio", wide, gamma - sigma - RATIO_FRACTION)
        a = insert(g, fixed, floating.shift, "BN.A", form, room=1)  # a saturated channel would lose its whole error
        error = next(u.inputs[0] for u in a.outputs if g.tag(u.outputs[0]).role == "BN.e_A")
        if not (is_dynamic(error) and is_dynamic(a)):
            continue
        with g.context(layer=layer):
            step = g.op("Mul", step_of(error), step_of(a), name="step_e_A")
        for role in ("BN.K", "BN.B"):
            (tensor,) = (t for t in g.by_role(role) if g.tag(t).layer == layer)
            insert(g, tensor, floating.grid, step, role, coefficient)


PASS = Pass(
    "quantize-bn-backward", "the coefficients of BN's backward", quantize_bn_backward, ("BN.ratio", "BN.A", "BN.K", "BN.B")
)
