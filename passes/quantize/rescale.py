"""Bring trained weights into the fixed grid: every tensor's greatest weight lands in [1/2, 1).

A convolution that feeds only a BN is scale-invariant: output channel c is multiplied by 2^k[c], its running mean too, its running
variance and epsilon by 4^k[c], and the network computes what it did. Any other product keeps its weights, on a grid of
their own exponent.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, State, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import source

# 4^k scales epsilon too; a channel so weak that 2^8 does not lift it is drowned by epsilon anyway
GREATEST, LEAST = 8, -16


def rescale(g: Model, config: Config) -> None:
    """Rewrite the initial values of W and of the BN statistics; ``info['scale_log2']`` keeps k, [O] or a scalar."""
    if not config.profile.rescale:
        return
    for slot in g.by_role("W"):
        weight = g.states[source(slot).inputs[0].name]
        statistics = _batch_norm_after(g, slot)
        if statistics is None:
            weight.info["scale_log2"] = int(power(greatest(weight.value, None)))
            continue
        k = power(greatest(weight.value.reshape(len(weight.value), -1), 1)).astype(int)
        mean, variance, epsilon = statistics
        scale = np.exp2(k.astype(np.float32)).reshape(-1, *[1] * (weight.value.ndim - 1))
        weight.assign(weight.value * scale)  # exact, as the others
        mean.assign(np.ldexp(mean.value, k))
        variance.assign(np.ldexp(variance.value, 2 * k))
        epsilon.values = np.ldexp(epsilon.values, 2 * k.reshape(epsilon.shape))
        for state, log2 in ((weight, k), (mean, k), (variance, 2 * k)):
            state.info["scale_log2"] = log2.tolist()


def greatest(values: Any, axis: int | None) -> Any:
    """max|values|, without a copy of them."""
    return np.maximum(values.max(axis=axis), -values.min(axis=axis))


def power(greatest: Any) -> Any:
    """k with greatest * 2^k in [1/2, 1)."""
    _, exponent = np.frexp(greatest)
    return np.where(np.asarray(greatest) > 0, np.clip(-exponent, LEAST, GREATEST), 0)


def _batch_norm_after(g: Model, slot: Tensor) -> tuple[State, State, Any] | None:
    """Running mean, running variance and epsilon of the BN that alone reads this weight's convolution; None without one."""
    products = [user.outputs[0] for user in slot.outputs if user.op == "Conv"]
    readers = [user for product in products for user in product.outputs]
    layers = {g.tag(reader.outputs[0]).layer for reader in readers}
    if len(layers) != 1 or not all(reader.op in ("ReduceSum", "Sub") for reader in readers):
        return None
    layer = layers.pop()
    states = {s.kind: s for s in g.states.values() if s.layer == layer}
    (shifted,) = g.by_role("BN.eps", layer=layer)
    return states["running_mean"], states["running_var"], source(shifted).inputs[1]


PASS = Pass("rescale", "trained weights scaled by powers of two into the fixed weight grid", rescale)
