"""How a quantizer is put where it belongs: what every pass of this folder is written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    with g.context(layer=g.tag(slot).layer):
        quantized = _value(quantizer(g, source(slot).inputs[0], *args, **kwargs))
    g.replace_uses(slot, quantized)
    return quantized


def insert(g: Model, tensor: Tensor, quantizer: Quantizer, *args: Any, **kwargs: Any) -> Tensor:
    """Put ``quantizer(g, tensor, *args, **kwargs)`` between ``tensor`` and everything that reads it; return its value."""
    with g.context(layer=g.tag(tensor).layer):
        quantized = _value(quantizer(g, tensor, *args, **kwargs))
    g.replace_uses(tensor, quantized)
    return quantized


def _value(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A dynamic quantizer returns its value and its step."""
    return result[0] if isinstance(result, tuple) else result


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


def form_exponent(form: Format, reach: float) -> int:
    """The exponent of a static format: of its fixed grid, or the least that holds ``reach``."""
    return exponent_for(reach, form.bits) if form.fraction is None else form.exponent


def static_exponent(g: Model, tensor: Tensor, form: Format) -> int:
    """The exponent of a forward tensor's format, from its expected range."""
    return form_exponent(form, float(moments(g, tensor).reach.max()))


def parameter(g: Model, slot: Tensor) -> State:
    """The state that a parameter's slot reads."""
    return g.states[source(slot).inputs[0].name]


def state_of(g: Model, tensor: Tensor, kind: str) -> State:
    """The parameter of that kind that belongs to the layer of ``tensor``."""
    layer = g.tag(tensor).layer
    (state,) = (s for s in g.states.values() if s.layer == layer and s.kind == kind)
    return state


def parameter_state(g: Model, config: Config, slot: Tensor, kind: str, least_reach: float) -> None:
    """Fill the slot of a parameter other than a weight: bits over twice its initial range, stored on the grid of U."""
    state = parameter(g, slot)
    form, stored = config.profile.format(kind, state.layer), config.profile.format("U", state.layer)
    exponent = form_exponent(form, 2.0 * max(float(abs(state.value).max()), least_reach))
    state.info |= {"exponent": stored.exponent, "limit": int(form.greatest * 2.0 ** (exponent - stored.exponent))}
    fill(g, slot, floating.direct, kind, form, exponent)


def random_for(g: Model, form: Format, key: str, slot: Tensor) -> Tensor | None:
    """16 random bits an element of ``slot`` where its format rounds stochastically: a hash of (seed, step, ``key``, element)."""
    if form.rounding != "stochastic":
        return None
    with g.context(layer=g.tag(slot).layer):
        return floating.random_bits(g, g.named["seed"], g.states["step"].tensor, key, list(slot.shape))
