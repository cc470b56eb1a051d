"""BN's backward, e*A - xh*K - B: its per-channel coefficients on grids that make the sum exact in int32."""

from __future__ import annotations

from typing import Any

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import (
    delayed,
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
from wageubn_onnx.ranges import exponent_for

Array = np.ndarray[Any, Any]

RATIO_BITS = 29  # 8 bits of gamma over a sigma of at least 1
RATIO_FRACTION = 20  # gamma/sigma first lands 20 bits below gamma's grid over sigma's
# Where every channel has its own grid, sigma is some 2^11..2^13 units of its own: 13 bits over 2^-17 hold any gamma over that
CHANNEL_FRACTION = 17


def quantize_bn_backward(g: Model, config: Config) -> None:
    """Insert after BN.A (twice: a fixed grid, then its own range; once, where it is delayed), BN.K and BN.B (on the grid of e*A).

    A grid that would follow from what is in float does not exist, and its quantizer neither.
    """
    for ratio in g.by_role("BN.A"):
        layer = g.tag(ratio).layer
        form, error_form, slope = (config.profile.format(path, layer) for path in ("BN.A", "E1", "BN.K"))
        if form.is_float:
            continue
        wide = Format(RATIO_BITS, rounding=form.rounding)
        # |A * mean(e*xh)| <= max|A| max|e| mean|xh|, and mean|xh| <= 1
        exact = Format(form.bits + error_form.bits - 1, rounding=form.rounding, greatest=2 ** (form.bits + error_form.bits - 2))
        factors = source(ratio).inputs
        with g.beside(g.tag(ratio)):
            grid = quotient(g, *map(grid_of, factors)) if all(map(is_quantized, factors)) else None
            per_channel = None if grid is None or isinstance(grid, int) else finer(g, grid, CHANNEL_FRACTION)
        if per_channel is not None and not form.delayed:
            a = insert(g, ratio, on_grid, "BN.A", form, per_channel)
        else:
            fixed = ratio
            if grid is not None:
                fixed = insert(g, ratio, on_grid, "BN.ratio", wide, per_channel or finer(g, grid, RATIO_FRACTION))
                expect_also(g, ratio, "BN.ratio")
            if form.delayed:
                (a,) = delayed(g, ratio, [fixed], "BN.A", form, _first(g, layer, form))
                g.replace_uses(fixed, a)
            else:
                a = insert(g, fixed, floating.shift, "BN.A", form, room=1)  # a saturated channel would lose its whole error
        error = next(u.inputs[0] for u in a.outputs if g.tag(u.outputs[0]).role == "BN.e_A")
        roles = ("BN.K", "BN.B")  # neither where the statistics are frozen
        coefficients = [tensor for role in roles for tensor in g.by_role(role, layer=layer)]
        if not coefficients or not (is_dynamic(error) and is_dynamic(a)):
            continue
        with g.beside(g.tag(coefficients[0])):
            step = g.op("Mul", step_of(error), step_of(a), name="step_e_A")
            coarse = step if slope.function == "exact" else finer(g, step, -(config.profile.format("BN.x", layer).fraction or 0))
        for tensor in coefficients:
            role = g.tag(tensor).role
            own = role == "BN.K" and slope.function != "exact"
            insert(g, tensor, floating.grid, coarse if own else step, role, slope if own else exact)


def _first(g: Model, layer: str, form: Format) -> Array:
    """The exponents of gamma/sigma, one a channel, with the running variance for the batch's."""
    gamma, variance = (
        next(s.value for s in g.states.values() if s.layer == layer and s.kind == kind) for kind in ("gamma", "running_var")
    )
    reach = abs(gamma.astype(np.float64)) / np.sqrt(np.maximum(variance, np.finfo(np.float32).tiny))
    return np.reshape([exponent_for(r, form.bits) for r in reach], (1, -1, 1, 1))


PASS = Pass(
    "quantize-bn-backward", "the coefficients of BN's backward", quantize_bn_backward, ("BN.ratio", "BN.A", "BN.K", "BN.B")
)
