"""How a quantizer is put where it belongs: what every pass of this folder is written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, Model, State, Tensor
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating
from wageubn_onnx.ranges import Moments, exponent_for

Quantizer = Callable[..., Tensor | tuple[Tensor, ...]]

# Operators that keep a tensor's grid: what comes out lies on the grid of their first operand (of Where: of its second)
ON_THE_SAME_GRID = (
    "Identity",
    "Reshape",
    "Transpose",
    "Flatten",
    "MaxPool",
    "Where",
    "Expand",
    "Slice",
    "Concat",
    "Pad",
    "Unsqueeze",
    "Relu",
)
DYNAMIC = ("Shift", "Flag", "Align")  # their last output is their step


def source(tensor: Tensor) -> gs.Node:
    """The node that makes ``tensor``."""
    node: gs.Node = tensor.inputs[0]
    return node


def fill(g: Model, slot: Tensor, quantizer: Quantizer, *args: Any, **kwargs: Any) -> Tensor:
    """Put ``quantizer(g, x, *args, **kwargs)`` in the place that an Identity kept for it; return its value."""
    return _place(g, slot, source(slot).inputs[0], quantizer, *args, **kwargs)


def insert(g: Model, tensor: Tensor, quantizer: Quantizer, *args: Any, **kwargs: Any) -> Tensor:
    """Put ``quantizer(g, tensor, *args, **kwargs)`` between ``tensor`` and everything that reads it; return its value."""
    return _place(g, tensor, tensor, quantizer, *args, **kwargs)


def _place(g: Model, old: Tensor, x: Tensor, quantizer: Quantizer, *args: Any, **kwargs: Any) -> Tensor:
    """Let what reads ``old`` read the quantized ``x``. A format in float is no quantizer: then ``old`` stays."""
    if any(isinstance(a, Format) and a.is_float for a in args):
        return old
    with g.context(layer=g.tag(old).layer):
        result = quantizer(g, x, *args, **kwargs)
    quantized: Tensor = result[0] if isinstance(result, tuple) else result  # a dynamic one also returns its step
    g.replace_uses(old, quantized)
    return quantized


def expect_also(g: Model, tensor: Tensor, role: str) -> None:
    """Hold the layer to a quantizer that only its width asked for."""
    roles = g.notes["expected"].setdefault(g.tag(tensor).layer, [])
    roles[:] = sorted({*roles, role})


def quantizer_of(tensor: Tensor) -> gs.Node:
    """The quantize node on whose grid ``tensor`` lies; raises WageubnError where there is none."""
    node = source(tensor) if tensor.inputs else None
    while node is not None and node.domain != DOMAIN:
        if node.op not in ON_THE_SAME_GRID:
            node = None
            break
        operand = node.inputs[1 if node.op == "Where" else 0]
        node = source(operand) if operand.inputs else None
    if node is None:
        raise WageubnError(f"tensor {tensor.name!r} reaches a product or a BN without a quantizer; this is a fault of a pass")
    return node


def is_quantized(tensor: Tensor) -> bool:
    """Whether `quantizer_of` finds one."""
    try:
        quantizer_of(tensor)
    except WageubnError:
        return False
    return True


def is_shifted(tensor: Tensor) -> bool:
    """Whether ``tensor`` lies on the 8-bit grid of a shift quantizer."""
    return is_quantized(tensor) and quantizer_of(tensor).op.startswith("ShiftQuantize")


def is_dynamic(tensor: Tensor) -> bool:
    """Whether ``tensor`` lies on a grid found at run time, so that `step_of` has an answer."""
    return is_quantized(tensor) and quantizer_of(tensor).op.startswith(DYNAMIC)


def step_of(tensor: Tensor) -> Tensor:
    """The run-time step of the dynamic quantizer on whose grid ``tensor`` lies."""
    node = quantizer_of(tensor)
    if not node.op.startswith(DYNAMIC):
        raise WageubnError(f"tensor {tensor.name!r} lies on the static grid of {node.name!r}; this is a fault of a pass")
    step: Tensor = node.outputs[-1]
    return step


def moments(g: Model, tensor: Tensor) -> Moments:
    """The expected moments of a forward tensor, by its layer."""
    found: Moments = g.notes["ranges"][g.tag(tensor).layer]
    return found


def expected_reach(g: Model, tensor: Tensor) -> float:
    """The greatest magnitude expected of a forward tensor; of a product, in the weights' scale after `rescale`."""
    layer, reach = g.tag(tensor).layer, moments(g, tensor).reach
    for state in g.states.values():
        if state.layer == layer and state.kind == "W" and isinstance(state.info["scale_log2"], list):
            reach = np.ldexp(reach, state.info["scale_log2"])
    return float(reach.max())


def form_exponent(form: Format, reach: float) -> int:
    """The exponent of a static format: of its fixed grid, or the least that holds ``reach``."""
    return exponent_for(reach, form.bits) if form.fraction is None else form.exponent


def static_exponent(g: Model, tensor: Tensor, form: Format) -> int:
    """The exponent of a forward tensor's format, from its expected range."""
    return form_exponent(form, expected_reach(g, tensor))


def parameter(g: Model, slot: Tensor) -> State:
    """The state that a parameter's slot reads."""
    return g.states[source(slot).inputs[0].name]


def state_of(g: Model, tensor: Tensor, kind: str) -> State:
    """The parameter of that kind that belongs to the layer of ``tensor``."""
    layer = g.tag(tensor).layer
    (state,) = (s for s in g.states.values() if s.layer == layer and s.kind == kind)
    return state


def own_exponent(state: State) -> int:
    """k where `rescale` left a weight on its own exponent, 2^-k times the fixed grid; 0 for all others."""
    k = state.info.get("scale_log2")
    return k if isinstance(k, int) else 0


def parameter_state(g: Model, config: Config, slot: Tensor, kind: str, least_reach: float) -> None:
    """Fill the slot of a parameter other than a weight: bits over twice its initial range, stored on the grid of U."""
    state = parameter(g, slot)
    form, stored = config.profile.format(kind, state.layer), config.profile.format("U", state.layer)
    exponent = form_exponent(form, 2.0 * max(float(abs(state.value).max()), least_reach))
    if form.bounded and not form.is_float:
        state.info["limit"] = int(form.greatest * 2.0 ** (exponent - stored.exponent))
    state.info["exponent"] = stored.exponent
    fill(g, slot, floating.direct, kind, form, exponent)


def random_for(g: Model, form: Format, key: str, slot: Tensor) -> Tensor | None:
    """16 random bits an element of ``slot`` where its format rounds stochastically: a hash of (seed, step, ``key``, element)."""
    if form.is_float or form.rounding != "stochastic":
        return None
    with g.context(layer=g.tag(slot).layer):
        return floating.random_bits(g, g.named["seed"], g.states["step"].tensor, key, list(slot.shape))
