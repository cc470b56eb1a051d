"""BN: Q_mu, Q_sigma, Q_BN, Q_gamma and Q_beta forward; the coefficients of its backward; its running statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import (
    Grid,
    finer,
    grid_of,
    insert,
    is_quantized,
    on_grid,
    parameter_state,
    quantizer_of,
    source,
    squared,
    static_exponent,
)
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating

LEAST_REACH = 0.25  # gamma and beta that start near zero may still grow this far
ROOM = 2  # bits by which the greatest channel's range may grow before its stored statistics saturate
RATE_STEP = 2.0**-15  # of 1 - momentum: with a finer one the advance of a running variance would leave what int64 holds exactly
VARIANCE_LIMIT = 2**36  # of a stored running variance: a deviation of half of what Q_C holds


def quantize_batch_norm(g: Model, config: Config) -> None:
    """Everything of BN but the grids that depend on the error, which `quantize-bn-backward` adds."""
    _parameters(g, config)
    for sigma in g.by_role("BN.sigma"):
        _statistics(g, config, sigma)
    for xh in g.by_role("BN.x"):
        form, readers = config.profile.format("BN.x", g.tag(xh).layer), xh.outputs if config.profile.exact_backward else []
        backward = [user for user in readers if g.tag(user.outputs[0]).role != "BN.scaled"]
        insert(g, xh, floating.direct, "BN.x", form, form.exponent, keep=backward)


def _parameters(g: Model, config: Config) -> None:
    """gamma and beta: 8 bits over twice their initial range; stored with 23 fractional bits."""
    for kind in ("gamma", "beta"):
        for slot in g.by_role(kind):
            parameter_state(g, config, slot, kind, LEAST_REACH)


def _statistics(g: Model, config: Config, sigma: Tensor) -> None:
    """mu and sigma on their grids, epsilon in its place, the running statistics."""
    layer, outside = g.tag(sigma).layer, config.profile.epsilon
    mean, deviation = (config.profile.format(path, layer) for path in ("BN.mu", "BN.sigma"))
    (mu,) = g.by_role("BN.mu", layer=layer)
    entry = next(u for u in mu.outputs if u.op == "Sub" and u.inputs[1] is mu).inputs[0]
    with g.beside(g.tag(mu)):
        grid, missing = _mean_grid(g, entry, mean)
        fine = finer(g, grid, 0 if missing else 1) if deviation.fraction is None else deviation.exponent
    exponent = grid if isinstance(grid, int) else _greatest_exponent(g, entry) + ROOM - missing
    insert(g, mu, on_grid, "BN.mu", mean, grid)
    divisor = insert(g, sigma, on_grid, "BN.sigma", deviation, fine, lo=None if outside else 1)
    _running_statistics(g, config, layer, exponent)
    if outside:
        root = source(sigma)
        root.inputs = source(root.inputs[0]).inputs[:1]
        insert(g, divisor, _plus, outside)
    elif not deviation.is_float:
        _under_root(g, sigma, deviation, fine, fine if isinstance(fine, int) else exponent - (0 if missing else 1))


def _plus(g: Model, x: Tensor, value: float) -> Tensor:
    return g.op("Add", x, g.scalar(value), name="sigma_eps")


def _under_root(g: Model, sigma: Tensor, deviation: Format, fine: Grid, exponent: int) -> None:
    """Epsilon on the grid of the variance: a root rounded to ``fine`` needs its square to a quarter of the square of that."""
    total = source(source(sigma).inputs[0])
    greatest = 4 * (deviation.greatest + 1) ** 2  # beyond, sigma saturates in any case
    positive = replace(deviation, bits=greatest.bit_length() + 1, least=0, greatest=greatest)
    with g.beside(g.tag(sigma)):
        epsilon, unit = total.inputs[1], 2.0 ** (2 * exponent - 2)
        epsilon.values = (np.clip(np.round(epsilon.values / unit), 1, greatest) * unit).astype(np.float32)
        if not isinstance(fine, int):
            under_root = finer(g, squared(g, fine), 2)
            total.inputs[1] = on_grid(g, epsilon, "BN.epsilon", positive, under_root, lo=1)
            # between the batch's variance and the stored one, whose grid is static; in inference the stored one stands alone
            variance = total.inputs[0]
            readers = [user for user in variance.outputs if user is not total] or [total]
            rounded = on_grid(g, variance, "BN.var", positive, under_root, lo=0)
            for reader in readers:
                reader.inputs[0] = rounded


def _greatest_exponent(g: Model, entry: Tensor) -> int:
    """Of the channels' exponents with which a Q_C starts."""
    step = source(quantizer_of(entry).inputs[1])
    return int(next(state.value for state in g.states.values() if state.tensor is step.inputs[0]).max())


def _mean_grid(g: Model, entry: Tensor, mean: Format) -> tuple[Grid, int]:
    """mu's grid, and by how many bits it is finer than that of BN's input.

    All of mu's bits lie over the range of the input: an input of fewer bits (BN on the image, or Q_C in 8 bits) has the coarser
    grid, one of more (a residual sum before a mu of 13 bits) the finer one. One in float gets what it would have in 16 bits.
    """
    if mean.fraction is not None or not is_quantized(entry):
        return static_exponent(g, entry, mean), 0
    missing = mean.bits - int(quantizer_of(entry).attrs["bits"])
    return finer(g, grid_of(entry), missing), missing


def _running_statistics(g: Model, config: Config, layer: str, exponent: int) -> None:
    """Stored with 8 more fractional bits than the batch's mean, and twice as many for the variance's square."""
    form = config.profile.format("BN.running", layer)
    if form.is_float:
        return
    extra, mean_limit = form.bits - config.profile.format("BN.mu", layer).bits, form.greatest
    for kind, grid, least, limit in (
        ("running_mean", exponent - extra, -mean_limit, mean_limit),
        ("running_var", 2 * exponent - extra, 0, VARIANCE_LIMIT),
    ):
        (state,) = (s for s in g.states.values() if s.layer == layer and s.kind == kind)
        state.info |= {"exponent": grid, "least": least, "limit": limit}
        wide = replace(form, bits=limit.bit_length() + 1, least=least, greatest=limit)
        for role in (f"BN.{kind}.batch", f"BN.{kind}"):
            for tensor in g.by_role(role, layer=layer):
                if source(tensor).op == "Add":
                    _round_rate(source(source(tensor).inputs[1]).inputs[1])
                insert(g, tensor, floating.direct, role, wide, grid, lo=least)


def _round_rate(rate: Tensor) -> None:
    """1 - momentum, in place."""
    rate.values = np.asarray(np.round(rate.values / RATE_STEP) * RATE_STEP, np.float32)


PASS = Pass(
    "quantize-batchnorm",
    "Q_mu, Q_sigma, Q_BN, Q_gamma, Q_beta, and the stored running statistics",
    quantize_batch_norm,
    ("BN.mu", "BN.sigma", "BN.var", "BN.epsilon", "BN.x", "gamma", "beta", "BN.running_mean", "BN.running_var"),
)
