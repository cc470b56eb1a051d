"""BN: Q_mu, Q_sigma, Q_BN, Q_gamma and Q_beta forward; the coefficients of its backward; its running statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import (
    expected_reach,
    form_exponent,
    insert,
    is_quantized,
    parameter_state,
    quantizer_of,
    source,
)
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating

LEAST_REACH = 0.25  # gamma and beta that start near zero may still grow this far
VARIANCE_LIMIT = 2**36  # of a stored running variance: a deviation of half of what Q_C holds


def quantize_batch_norm(g: Model, config: Config) -> None:
    """Everything of BN but the grids that depend on the error, which `quantize-bn-backward` adds."""
    _parameters(g, config)
    for sigma in g.by_role("BN.sigma"):
        _statistics(g, config, sigma)
    for xh in g.by_role("BN.x"):
        form = config.profile.format("BN.x", g.tag(xh).layer)
        insert(g, xh, floating.direct, "BN.x", form, form.exponent)


def _parameters(g: Model, config: Config) -> None:
    """gamma and beta: 8 bits over twice their initial range; stored with 23 fractional bits."""
    for kind in ("gamma", "beta"):
        for slot in g.by_role(kind):
            parameter_state(g, config, slot, kind, LEAST_REACH)


def _statistics(g: Model, config: Config, sigma: Tensor) -> None:
    """mu and sigma on their grids, epsilon on the grid of the variance under the root, the running statistics."""
    layer = g.tag(sigma).layer
    mean, deviation = (config.profile.format(path, layer) for path in ("BN.mu", "BN.sigma"))
    (mu,) = (t for t in g.by_role("BN.mu") if g.tag(t).layer == layer)
    exponent, fine = _grids(g, mu, mean, deviation)
    insert(g, mu, floating.direct, "BN.mu", mean, exponent)
    insert(g, sigma, floating.direct, "BN.sigma", deviation, fine, lo=1)
    _running_statistics(g, config, layer, exponent)
    if deviation.is_float:
        return
    epsilon = source(source(sigma).inputs[0]).inputs[1]
    unit = 2.0 ** (2 * fine - 2)  # a root rounded to `fine` needs its square to a quarter of the square of that
    greatest = 2.0**2 * (deviation.greatest + 1.0) ** 2  # beyond, sigma saturates in any case
    epsilon.values = (np.clip(np.round(epsilon.values / unit), 1, greatest) * unit).astype(np.float32)


def _grids(g: Model, mu: Tensor, mean: Format, deviation: Format) -> tuple[int, int]:
    """Exponents of mu, the grid of BN's input, and of sigma, one finer.

    An input of fewer bits (BN on the image, say) gets a mu and a sigma of 16 bits over its range; one in float the grids that
    it would have in 16 bits.
    """
    x = next(u for u in mu.outputs if u.op == "Sub" and u.inputs[1] is mu).inputs[0]
    if not is_quantized(x):
        reach = expected_reach(g, x)
        return form_exponent(mean, reach), form_exponent(deviation, reach) - 1
    quantizer = quantizer_of(x)
    missing = max(mean.bits - int(quantizer.attrs["bits"]), 0)
    exponent = int(quantizer.attrs["exponent"]) - missing
    return exponent, exponent - (0 if missing else 1)


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
        for role in (f"BN.{kind}.batch", f"BN.{kind}"):
            for tensor in g.by_role(role):
                if g.tag(tensor).layer == layer:
                    wide = replace(form, bits=limit.bit_length() + 1, least=least, greatest=limit)
                    insert(g, tensor, floating.direct, role, wide, grid, lo=least)


PASS = Pass(
    "quantize-batchnorm",
    "Q_mu, Q_sigma, Q_BN, Q_gamma, Q_beta, and the stored running statistics",
    quantize_batch_norm,
    ("BN.mu", "BN.sigma", "BN.x", "gamma", "beta", "BN.running_mean", "BN.running_var"),
)
