"""BN's backward, e*A - xh*K - B: its per-channel coefficients on grids that make the sum exact in int32."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import (
    expect_also,
    finer,
    grid_of,
    insert,
    is_dynamic,
    is_quantized,
    on_grid,
    quotient,
    source,
    step_of,
)
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating

RATIO_BITS = 29  # 8 bits of gamma over a sigma of at least 1
RATIO_FRACTION = 20  # gamma/sigma first lands 20 bits below gamma's grid over sigma's
# Where every channel has its own grid, sigma is some 2^11..2^13 units of its own: 13 bits over 2^-17 hold any gamma over that
CHANNEL_FRACTION = 17


def quantize_bn_backward(g: Model, config: Config) -> None:
    """Insert after BN.A (twice: a fixed grid, then its own range), BN.K and BN.B (on the grid of e*A).

    A grid that would follow from what is in float does not exist, and its quantizer neither.
    """
    for ratio in g.by_role("BN.A"):
        layer = g.tag(ratio).layer
        form, error_form = config.profile.format("BN.A", layer), config.profile.format("E1", layer)
        if form.is_float:
            continue
        wide = Format(RATIO_BITS, rounding=form.rounding)
        # |A * mean(e*xh)| <= max|A| max|e| mean|xh|, and mean|xh| <= 1
        coefficient = Format(
            form.bits + error_form.bits - 1, rounding=form.rounding, greatest=2 ** (form.bits + error_form.bits - 2)
        )
        factors = source(ratio).inputs
        with g.beside(g.tag(ratio)):
            grid = quotient(g, *map(grid_of, factors)) if all(map(is_quantized, factors)) else None
            per_channel = None if grid is None or isinstance(grid, int) else finer(g, grid, CHANNEL_FRACTION)
        if per_channel is None:
            fixed = ratio
            if grid is not None:
                fixed = insert(g, ratio, on_grid, "BN.ratio", wide, finer(g, grid, RATIO_FRACTION))
                expect_also(g, ratio, "BN.ratio")
            a = insert(g, fixed, floating.shift, "BN.A", form, room=1)  # a saturated channel would lose its whole error
        else:
            a = insert(g, ratio, on_grid, "BN.A", form, per_channel)
        error = next(u.inputs[0] for u in a.outputs if g.tag(u.outputs[0]).role == "BN.e_A")
        roles = ("BN.K", "BN.B")  # neither where the statistics are frozen
        coefficients = [tensor for role in roles for tensor in g.by_role(role, layer=layer)]
        if not coefficients or not (is_dynamic(error) and is_dynamic(a)):
            continue
        with g.beside(g.tag(coefficients[0])):
            step = g.op("Mul", step_of(error), step_of(a), name="step_e_A")
        for tensor in coefficients:
            role = g.tag(tensor).role
            insert(g, tensor, floating.grid, step, role, coefficient)


PASS = Pass(
    "quantize-bn-backward", "the coefficients of BN's backward", quantize_bn_backward, ("BN.ratio", "BN.A", "BN.K", "BN.B")
)
