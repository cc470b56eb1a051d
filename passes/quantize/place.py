"""How a quantizer is put where it belongs: what every pass of this folder is written with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx import composites
from wageubn_onnx.composites import Composite
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, Model, State, Tensor
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating, tables
from wageubn_onnx.ranges import Moments, exponent_for

Quantizer = Callable[..., Tensor | tuple[Tensor, ...]]
Grid = int | Tensor  # the exponent of a static grid, or the step of one that is found at run time

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


def insert(g: Model, tensor: Tensor, quantizer: Quantizer, *args: Any, keep: Sequence[gs.Node] = (), **kwargs: Any) -> Tensor:
    """Put ``quantizer(g, tensor, *args, **kwargs)`` between ``tensor`` and all that read it but ``keep``; return its value."""
    return _place(g, tensor, tensor, quantizer, *args, keep=keep, **kwargs)


def _place(
    g: Model, old: Tensor, x: Tensor, quantizer: Quantizer, *args: Any, keep: Sequence[gs.Node] = (), **kwargs: Any
) -> Tensor:
    """Let what reads ``old`` read the quantized ``x``. A format in float is no quantizer: then ``old`` stays."""
    if any(isinstance(a, Format) and a.is_float for a in args):
        return old
    with g.beside(g.tag(old)):
        result = quantizer(g, x, *args, **kwargs)
    quantized: Tensor = result[0] if isinstance(result, tuple) else result  # a dynamic one also returns its step
    g.replace_uses(old, quantized, keep)
    return quantized


def expect_also(g: Model, tensor: Tensor, role: str) -> None:
    """Hold the layer to a quantizer that only its width asked for."""
    roles = g.notes["expected"].setdefault(g.tag(tensor).layer, [])
    roles[:] = sorted({*roles, role})


def quantizer_of(tensor: Tensor) -> gs.Node:
    """The quantize node on whose grid ``tensor`` lies; raises WageubnError where there is none."""
    node = _quantizer_behind(tensor)
    if node is None:
        raise WageubnError(f"tensor {tensor.name!r} reaches a product or a BN without a quantizer; this is a fault of a pass")
    return node


def _quantizer_behind(tensor: Tensor) -> gs.Node | None:
    """The quantizer on whose grid ``tensor`` lies, if there is one; also behind nodes, and bodies of composites, that keep it."""
    while tensor.inputs:
        node = source(tensor)
        called = composites.of(node)
        if called is not None:
            operand = _operand_behind(called, called.results[node.outputs.index(tensor)])
            if operand is None:
                return None
            tensor = node.inputs[operand]
        elif node.domain == DOMAIN:
            return node
        elif node.op in ON_THE_SAME_GRID:
            tensor = node.inputs[1 if node.op == "Where" else 0]
        else:
            return None
    return None


def _operand_behind(called: Composite, tensor: Tensor) -> int | None:
    """The operand of a composite on whose grid ``tensor``, of its body, lies."""
    while tensor.inputs:
        node = source(tensor)
        if node.op not in ON_THE_SAME_GRID:
            return None
        tensor = node.inputs[1 if node.op == "Where" else 0]
    return next((i for i, formal in enumerate(called.formal) if formal is tensor), None)


def is_quantized(tensor: Tensor) -> bool:
    """Whether `quantizer_of` finds one."""
    try:
        quantizer_of(tensor)
    except WageubnError:
        return False
    return True


def is_error(tensor: Tensor) -> bool:
    """Whether ``tensor`` lies on the grid of a Q_E1."""
    return is_quantized(tensor) and quantizer_of(tensor).attrs["role"] == "E1"


# -- grids ----------------------------------------------------------------------------------------------------------------


def grid_of(tensor: Tensor) -> Grid:
    """The grid on which ``tensor`` lies."""
    node = quantizer_of(tensor)
    if node.op.startswith("GridQuantize"):
        return node.inputs[1]
    if node.op.startswith(DYNAMIC):
        return node.outputs[-1]
    return int(node.attrs["exponent"])


def is_dynamic(tensor: Tensor) -> bool:
    """Whether ``tensor`` lies on a grid found at run time, so that `step_of` has an answer."""
    return is_quantized(tensor) and not isinstance(grid_of(tensor), int)


def step_of(tensor: Tensor) -> Tensor:
    """The run-time step of the grid on which ``tensor`` lies."""
    grid = grid_of(tensor)
    if isinstance(grid, int):
        raise WageubnError(f"tensor {tensor.name!r} lies on a static grid; this is a fault of a pass")
    return grid


def finer(g: Model, grid: Grid, bits: int) -> Grid:
    """The grid of 2^-bits times the step."""
    return grid - bits if isinstance(grid, int) else g.op("Mul", grid, g.scalar(2.0**-bits), name="step")


def quotient(g: Model, a: Grid, b: Grid) -> Grid:
    """The grid of a's step over b's."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return g.op("Div", *(g.scalar(2.0**x) if isinstance(x, int) else x for x in (a, b)), name="step")


def squared(g: Model, grid: Grid) -> Grid:
    """The grid of the step's square."""
    return 2 * grid if isinstance(grid, int) else g.op("Mul", grid, grid, name="step")


def on_grid(g: Model, x: Tensor, role: str, form: Format, grid: Grid, lo: int | None = None, hi: int | None = None) -> Tensor:
    """Direct quantization on any grid."""
    if isinstance(grid, int):
        return floating.direct(g, x, role, form, grid, lo=lo, hi=hi)
    return floating.grid(g, x, grid, role, form, lo=lo, hi=hi)


GUARD = (tables.RANGE_LEAST, tables.RANGE_GREATEST)  # of the range R of an error
HELD = (-32, 24)  # of a channel's exponent: squares of its step stay far within float32


def delayed(
    g: Model, place: Tensor, tensors: list[Tensor], role: str, form: Format, first: Any, random: Tensor | None = None
) -> list[Tensor]:
    """``tensors`` on one grid of the layer of ``place``, whose exponent is a state that this step advances for the next one.

    first: the exponent of the first step, one or one a channel [1, C, 1, 1]. A step that computes no loss leaves the state alone.
    """
    first = np.asarray(first, np.int32)
    if role == "BN.A":  # a saturated channel would lose its whole error
        (lowest, highest), small, up = HELD, form.greatest // 2 - 1, 1
    elif first.shape:  # what is cut off of a forward tensor is lost to all that follows: it gets a bit of room, regained fast
        (lowest, highest), small, up = HELD, form.greatest // 4, 2
    else:  # as R has it: the finer grid where the greatest does not pass it by sqrt(2)
        (lowest, highest), small, up = (bound - form.bits + 1 for bound in GUARD), math.isqrt(form.greatest**2 // 2), 1
    tag = g.tag(place)
    layer = tag.layer
    with g.beside(tag), g.context(path=role):
        key = f"{layer}.{role}.exponent" if f"{layer}.{role}.exponent" not in g.states else f"{tensors[0].name}.exponent"
        state = g.state(key, "exponent", layer, np.clip(first, lowest, highest), exponent=0, least=lowest, limit=highest)
        step = floating.power(g, state.tensor, g.named["images"])
        quantized = [floating.grid(g, x, step, role, form, random=random) for x in tensors]
        if "labels" in g.named:
            moved = [floating.follow(g, y, step, state.tensor, form, small, up, lowest, highest) for y in quantized]
            state.after = moved[0] if len(moved) == 1 else g.op("Max", *moved, name="next_exponent")
    return quantized


# -- what the passes know of tensors and parameters -----------------------------------------------------------------------


def moments(g: Model, tensor: Tensor) -> Moments:
    """The expected moments of a forward tensor, by its layer; a product's in the scale that `rescale` gave its weights."""
    layer = g.tag(tensor).layer
    found: Moments = g.notes["ranges"][layer]
    for state in g.states.values():
        scale = state.info.get("scale_log2")
        if state.layer == layer and state.kind == "W" and isinstance(scale, list):
            return Moments(*(np.ldexp(values, scale) for values in (found.mean, found.deviation, found.reach)))
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
    with g.beside(g.tag(slot)):
        return floating.random_bits(g, g.named["seed"], g.states["step"].tensor, key, list(slot.shape))
