"""The rule of every operator of `quant_training`, and the pass that applies them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from wageubn_onnx.autodiff.rules import average_counts
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.fixedpoint import Constant, Exponent, Fixed, Offset, Pair, Pixels, Ratio, Raw, Root, Step, Value
from wageubn_onnx.geometry import Window, tap_slices
from wageubn_onnx.graph import Model, Tensor, sort
from wageubn_onnx.onnxir.infer import dtype_for
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.lower import products, quantizers
from wageubn_onnx.passes.lower.lowering import INT32_LIMIT, Lowering, Rule, short_name


def _operands(lower: Lowering, node: gs.Node) -> list[Value]:
    return [lower.value(i) for i in node.inputs]


# -- elementwise ----------------------------------------------------------------------------------------------------------


def add(lower: Lowering, node: gs.Node) -> Value:
    """Fixed + Fixed on the finer exponent; a variance + epsilon waits for its root; integers of the optimizer stay integers."""
    a, b = _operands(lower, node)
    if isinstance(a, Raw) and isinstance(b, Raw):
        return Raw(lower.g.op(node.op, a.tensor, b.tensor, name=short_name(node)))
    is_radicand = isinstance(a, Ratio) or lower.source.tag(node.outputs[0]).role == "BN.eps"
    if is_radicand and isinstance(b, (Constant, Fixed)):
        one = Fixed(lower.g.scalar(1, np.int64), Exponent(), 1, 1)
        return Offset(a if isinstance(a, Ratio) else Ratio(lower.fixed(a, node), one), b)
    return lower.add(lower.fixed(a, node), lower.fixed(b, node), node)


def subtract(lower: Lowering, node: gs.Node) -> Value:
    a, b = (lower.fixed(v, node) for v in _operands(lower, node))
    return lower.add(a, b, node, sign=-1)


def multiply(lower: Lowering, node: gs.Node) -> Value:
    """A power of two only moves the exponent; a ratio keeps its denominator."""
    a, b = _operands(lower, node)
    if isinstance(a, Constant) or isinstance(b, Step):
        a, b = b, a
    if isinstance(a, Step):
        if isinstance(b, Step):
            return Step(a.exponent + b.exponent)
        if isinstance(b, Constant) and b.is_power_of_two:
            return Step(a.exponent + b.log2)
    if isinstance(b, Constant) and b.is_power_of_two and not isinstance(a, Ratio):
        x = lower.fixed(a, node)
        return Fixed(x.tensor, x.exponent + b.log2, x.lo, x.hi)
    if isinstance(b, Ratio):
        a, b = b, a
    if isinstance(a, Ratio):
        return Ratio(lower.multiply(a.numerator, lower.fixed(b, node), node), a.denominator)
    return lower.multiply(lower.fixed(a, node), lower.fixed(b, node), node)


def divide(lower: Lowering, node: gs.Node) -> Value:
    """Nothing is divided yet: the quantizer that follows rounds the exact ratio. Grids are: exponents are subtracted."""
    x, y = _operands(lower, node)
    if isinstance(y, Step):
        if isinstance(x, Constant) and x.is_power_of_two:
            x = Step(Exponent(x.log2))
        if isinstance(x, Step):
            return Step(x.exponent - y.exponent)
    a, b = lower.fixed(x, node), lower.fixed(y, node)
    if b.lo < 1:
        raise WageubnError(f"node {node.name!r}: its divisor may be below 1; this is a fault of a pass")
    return Ratio(a, b)


def square_root(lower: Lowering, node: gs.Node) -> Value:
    (x,) = _operands(lower, node)
    if not isinstance(x, Offset):
        raise WageubnError(f"node {node.name!r}: a square root without epsilon has no integer lowering")
    return Root(x)


def relu(lower: Lowering, node: gs.Node) -> Value:
    x = lower.fixed(_operands(lower, node)[0], node)
    tensor = lower.g.op("Max", lower.int32(x, node), lower.g.scalar(0, np.int32), name=short_name(node))
    return Fixed(tensor, x.exponent, 0, max(x.hi, 0))


def at_least(lower: Lowering, node: gs.Node) -> Value:
    """Max with a constant raises the least mantissa; of two exponents it is the greater."""
    value, constant = _operands(lower, node)
    if isinstance(value, Raw) and isinstance(constant, Raw):
        return Raw(lower.g.op("Max", value.tensor, constant.tensor, name=short_name(node)))
    x, least = lower.fixed(value, node), lower.fixed(constant, node)
    if not x.exponent.is_static:
        raise WageubnError(f"node {node.name!r}: Max on a run-time exponent has no integer lowering")
    least = lower.raised(least, x.exponent.static, node)
    tensor = lower.g.op("Max", lower.int32(x, node), least.tensor, name=short_name(node))
    return Fixed(tensor, x.exponent, max(x.lo, least.lo), max(x.hi, least.hi))


def at_most(lower: Lowering, node: gs.Node) -> Value:
    """Min of integers that are no numbers on a grid: the counter of steps."""
    return Raw(lower.g.op("Min", *(_raw(v, node) for v in _operands(lower, node)), name=short_name(node)))


def greater(lower: Lowering, node: gs.Node) -> Value:
    """x > 0 is the mantissa's sign."""
    x, zero = _operands(lower, node)
    if not isinstance(zero, Constant) or zero.values.any():
        raise WageubnError(f"node {node.name!r}: a comparison with other than 0 has no integer lowering")
    tensor = lower.int32(lower.fixed(x, node), node)  # onnxruntime 1.20 has no kernel for int16
    return Raw(lower.g.op("Greater", tensor, lower.g.scalar(0, np.int32), name=short_name(node)))


def equal(lower: Lowering, node: gs.Node) -> Value:
    a, b = _operands(lower, node)
    if isinstance(a, Fixed) and isinstance(b, Fixed) and a.exponent != b.exponent:
        raise WageubnError(f"node {node.name!r}: a comparison across exponents has no integer lowering")
    # older runtimes compare int32, but no 8-bit tensors
    left, right = (lower.int32(v, node) if isinstance(v, Fixed) else _raw(v, node) for v in (a, b))
    return Raw(lower.g.op("Equal", left, right, name=short_name(node)))


def logical(lower: Lowering, node: gs.Node) -> Value:
    return Raw(lower.g.op(node.op, *(_raw(v, node) for v in _operands(lower, node)), name=short_name(node)))


def _raw(value: Value, node: gs.Node) -> Tensor:
    if not isinstance(value, Raw):
        raise WageubnError(f"node {node.name!r}: {node.op} of a number on a grid has no integer lowering")
    return value.tensor


def where(lower: Lowering, node: gs.Node) -> Value:
    """Where(condition, x, 0) keeps x's width; two constants become an int32 choice."""
    condition, x, other = _operands(lower, node)
    mask = _raw(condition, node)
    if isinstance(x, Constant):
        a, b = lower.fixed(x, node), lower.fixed(other, node)
        low = min(a.exponent.static, b.exponent.static)
        a, b = lower.raised(a, low, node), lower.raised(b, low, node)
        tensor = lower.g.op("Where", mask, a.tensor, b.tensor, name=short_name(node))
        return Fixed(tensor, a.exponent, min(a.lo, b.lo), max(a.hi, b.hi))
    value = lower.fixed(x, node)
    if not isinstance(other, Constant) or other.values.any():
        raise WageubnError(f"node {node.name!r}: Where with other than 0 for its second choice has no integer lowering")
    # older runtimes choose among uint8 but not int8: the same bits, and zero is zero in both
    bits = lower.cast(value.tensor, np.uint8) if value.tensor.dtype == np.int8 else value.tensor
    tensor = lower.g.op("Where", mask, bits, lower.g.scalar(0, bits.dtype), name=short_name(node))
    return Fixed(lower.cast(tensor, value.tensor.dtype), value.exponent, min(value.lo, 0), max(value.hi, 0))


# -- reductions and pools ---------------------------------------------------------------------------------------------------


def reduce_sum(lower: Lowering, node: gs.Node) -> Value:
    value, axes, keep = lower.value(node.inputs[0]), [int(a) for a in node.inputs[1].values], node.attrs.get("keepdims", 1)
    if isinstance(value, Raw):
        return Raw(lower.g.op("ReduceSum", value.tensor, lower.g.ints(*axes), name=short_name(node), keepdims=keep))
    if isinstance(value, Pair):
        high, low = (lower.reduce_sum(part, axes, keep, node) for part in (value.high, value.low))
        return lower.fixed(Pair(high, low, value.base), node)
    return lower.reduce_sum(lower.fixed(value, node), axes, keep, node)


def reduce_max(lower: Lowering, node: gs.Node) -> Value:
    x = lower.fixed(lower.value(node.inputs[0]), node)
    axes = [int(a) for a in node.inputs[1].values]
    tensor = lower.g.op(
        "ReduceMax", lower.int32(x, node), lower.g.ints(*axes), name=short_name(node), keepdims=node.attrs.get("keepdims", 1)
    )
    return Fixed(tensor, x.exponent, x.lo, x.hi)


def max_pool(lower: Lowering, node: gs.Node) -> Value:
    x = lower.fixed(lower.value(node.inputs[0]), node)
    return Fixed(lower.g.op("MaxPool", x.tensor, name=short_name(node), **node.attrs), x.exponent, x.lo, x.hi)


def average_pool(lower: Lowering, node: gs.Node) -> Value:
    """The sum over the taps, over their number."""
    g, x = lower.g, lower.fixed(lower.value(node.inputs[0]), node)
    window = Window.of(node.attrs)
    lower.checked(x.bound * len(window.taps), INT32_LIMIT, node)
    total, *others = tap_slices(g, lower.int32(x, node), window, node.outputs[0].shape[2:])
    for tap in others:
        total = g.op("Add", total, tap, name="taps")
    count = len(window.taps)
    counts = average_counts(node.inputs[0], node.outputs[0], node.attrs).astype(np.int32)
    divisor = Fixed(g.constant(counts, np.int32, name="counts"), Exponent(), int(counts.min()), int(counts.max()))
    return Ratio(Fixed(total, x.exponent, min(x.lo, 0) * count, max(x.hi, 0) * count), divisor)


def global_average_pool(lower: Lowering, node: gs.Node) -> Value:
    x = lower.fixed(lower.value(node.inputs[0]), node)
    size = math.prod(x.tensor.shape[2:])
    return Ratio(lower.reduce_sum(x, [2, 3], 1, node), Fixed(lower.g.scalar(size, np.int32), Exponent(), size, size))


# -- operators that only move elements ------------------------------------------------------------------------------------


def structural(lower: Lowering, node: gs.Node) -> Value:
    """Reshape, Transpose, Slice, Pad with zeros, ...: the same on mantissas; on a ratio, on its numerator."""
    rest = [lower.g.ints(*np.ravel(i.values)) for i in node.inputs[1:] if i.dtype == np.int64]
    padding = [i for i in node.inputs[1:] if i.dtype != np.int64]
    if any(i.values.any() for i in padding):
        raise WageubnError(f"node {node.name!r}: Pad with other than 0 has no integer lowering")

    def emit(x: Tensor) -> Tensor:
        if padding and x.dtype == np.int16:  # for which no runtime has a Pad
            x = lower.cast(x, np.int32)
        zero = [lower.g.scalar(0, x.dtype)] if padding else []
        return lower.g.op(node.op, x, *rest, *zero, name=short_name(node), **node.attrs)

    value = lower.value(node.inputs[0])
    if isinstance(value, Ratio):
        return Ratio(_moved(value.numerator, emit), value.denominator)
    if isinstance(value, Fixed) and value.exponent.is_per_channel:
        return _moved_with_exponent(value, node, emit)
    return lower.structural(value, node, emit)


def _moved(x: Fixed, emit: Any) -> Fixed:
    return Fixed(emit(x.tensor), x.exponent, x.lo, x.hi)


def _moved_with_exponent(x: Fixed, node: gs.Node, emit: Any) -> Fixed:
    """A tensor with one exponent an element: both move."""
    terms = [t for t in (*x.exponent.terms, *x.exponent.minus) if t.shape]
    if any(t.shape != x.tensor.shape for t in terms):
        raise WageubnError(f"node {node.name!r}: {node.op} of a tensor with an exponent a channel has no integer lowering")
    moved = {t.name: emit(t) for t in terms}
    sides = (tuple(moved.get(t.name, t) for t in side) for side in (x.exponent.terms, x.exponent.minus))
    return Fixed(emit(x.tensor), Exponent(x.exponent.static, *sides), x.lo, x.hi)


def concat(lower: Lowering, node: gs.Node) -> Value:
    """On the grid that the parts share; zeros are on any."""
    parts = [lower.fixed(v, node) for v in _operands(lower, node)]
    exponent = next((p.exponent for p in parts if p.bound), parts[0].exponent)
    if any(p.exponent != exponent and p.bound for p in parts):
        raise WageubnError(f"node {node.name!r}: Concat across exponents has no integer lowering")
    tensors = [p.tensor for p in parts]
    if len({t.dtype for t in tensors}) > 1:
        tensors = [lower.int32(p, node) for p in parts]
    tensor = lower.g.op("Concat", *tensors, name=short_name(node), **node.attrs)
    return Fixed(tensor, exponent, min(p.lo for p in parts), max(p.hi for p in parts))


def arg_max(lower: Lowering, node: gs.Node) -> Value:
    wide = lower.int32(lower.fixed(lower.value(node.inputs[0]), node), node)
    return Raw(lower.g.op("ArgMax", wide, name=short_name(node), **node.attrs))


def cast(lower: Lowering, node: gs.Node) -> Value:
    return Raw(lower.g.op("Cast", _raw(lower.value(node.inputs[0]), node), name=short_name(node), **node.attrs))


def identity(lower: Lowering, node: gs.Node) -> Value:
    return lower.value(node.inputs[0])


def composite(lower: Lowering, node: gs.Node) -> list[Value]:
    """A composite stays one, with the same body on mantissas."""
    return lower.composite(node, _operands(lower, node))


RULES: dict[str, Rule] = {
    "Add": add,
    "Sub": subtract,
    "Mul": multiply,
    "Div": divide,
    "Sqrt": square_root,
    "Relu": relu,
    "Max": at_least,
    "Min": at_most,
    "Greater": greater,
    "Equal": equal,
    **dict.fromkeys(["And", "Or", "Not"], logical),
    "Where": where,
    "ReduceSum": reduce_sum,
    "ReduceMax": reduce_max,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    **dict.fromkeys(["Reshape", "Flatten", "Transpose", "Slice", "Pad", "Unsqueeze", "Expand"], structural),
    "Concat": concat,
    "ArgMax": arg_max,
    "Cast": cast,
    "Identity": identity,
    **dict.fromkeys(["AveragePoolGradient", "MaxPoolGradient"], composite),
    **products.RULES,
    **quantizers.RULES,
}


def lower_to_integers(quantized: Model, config: Config) -> Model:
    """The integer graph of ``quantized``: `int_training` of `quant_training`, `int_eval` of its inference form.

    States keep their keys and become integers of the narrowest dtype, frozen ones constants; inputs become uint8 images and int32
    scalars.
    Raises ProofFailed, naming node and bound, where anything could leave its range at this batch and image size.
    """
    sort(quantized.graph)
    quantized.reordered()
    lower = Lowering(quantized, Model.empty(quantized.stage, quantized.graph.name), config, RULES)
    g = lower.g
    with g.context(made_by=PASS.name):
        for name in ("images", "labels", "lr", "gradient_range", "seed"):
            if name in quantized.named:
                with g.beside(quantized.tag(quantized.named[name])):
                    _input(lower, name)
        for state in quantized.states.values():
            lo, hi = state.info.get("least", -state.info["limit"]), state.info["limit"]
            plain = state.kind in ("step", "exponent")
            exponent, dtype = int(state.info["exponent"]), np.dtype(np.int32) if plain else dtype_for(lo, hi)
            if quantized.stage == "quant_eval" and not state.frozen:  # it starts from the step's states; here their types count
                initial = np.broadcast_to(np.zeros((), dtype), state.value.shape)
            else:
                initial = mantissas_of(state.value, exponent, lo, hi, dtype)
            with g.beside(quantized.tags[state.key]):
                mine = g.state(state.key, state.kind, state.layer, initial, frozen=state.frozen, **state.info | {"least": lo})
            lower.values[state.key] = Raw(mine.tensor) if plain else Fixed(mine.tensor, Exponent(exponent), lo, hi)
        lower.walk(PASS.name)
        for key, state in quantized.states.items():
            if state.after is not None:
                after = lower.value(state.after)
                g.states[key].after = after.tensor if isinstance(after, (Fixed, Raw)) else None
        for name in ("logits", "loss", "correct"):
            if name in quantized.named:
                value = lower.value(quantized.named[name])
                if isinstance(value, (Fixed, Raw)):
                    g.named[name] = value.tensor
                if isinstance(value, Fixed):
                    g.notes.setdefault("exponents", {})[name] = value.exponent.static
        for key, gradient in quantized.gradients.items():
            with g.beside(quantized.tag(gradient)):
                value = lower.fixed(lower.value(gradient), gradient.inputs[0])
                g.gradients[key] = value.tensor
                g.notes.setdefault("gradient_exponents", {})[key] = value.exponent
    g.notes |= {"classes": quantized.notes["classes"], "expected": quantized.notes["expected"], "lowered": lower.values}
    return g


def mantissas_of(values: np.ndarray[Any, Any], exponent: int, lo: int, hi: int, dtype: Any) -> np.ndarray[Any, Any]:
    """values / 2^exponent, rounded half to even, inside lo..hi."""
    if lo <= 0 <= hi and not values.any():
        return np.zeros(values.shape, dtype)  # momenta: as large as all weights, and no memory until written
    found: np.ndarray[Any, Any] = np.empty(values.shape, dtype)
    given, made = values.reshape(-1), found.reshape(-1)
    for start in range(0, values.size, BLOCK):
        part = slice(start, start + BLOCK)
        scaled = np.multiply(given[part], 2.0**-exponent, dtype=np.float64)  # exact
        made[part] = np.rint(scaled, out=scaled).clip(lo, hi)
    return found


BLOCK = 2**16  # elements at once: what float64 needs stays in the cache


# What a caller passes beyond these is brought into them, so that no bound rests on a caller's good will
LEARNING_RATES = (-(2**20), 2**20)
GRADIENT_RANGES = [2, 4, 8, 16, 32, 64, 128]


def _input(lower: Lowering, name: str) -> None:
    """images: uint8; the others int32, the learning rate on its grid."""
    g, source = lower.g, lower.source.named[name]
    if name == "images":
        g.named[name] = g.input(name, np.uint8, source.shape)
        lower.values[source.name] = Pixels(g.named[name])
        return
    tensor = g.named[name] = g.input(name, np.int32, source.shape)
    value: Value = Raw(tensor)
    if name == "lr":
        value = Fixed(_bounded(g, tensor), Exponent(lower.config.profile.format("lr").exponent), *LEARNING_RATES)
    elif name == "gradient_range":
        value = Raw(_power_of_two(g, tensor))
    lower.values[source.name] = value


def _bounded(g: Model, x: Tensor) -> Tensor:
    lifted = g.op("Max", x, g.scalar(LEARNING_RATES[0], np.int32), name="at_least")
    return g.op("Min", lifted, g.scalar(LEARNING_RATES[1], np.int32), name="at_most")


def _power_of_two(g: Model, x: Tensor) -> Tensor:
    """The greatest gradient range that x reaches, the least where it reaches none."""
    reached = g.op("GreaterOrEqual", x, g.constant(GRADIENT_RANGES, np.int32, name="ranges"), name="reached")
    count = g.op("Cast", reached, name="reached", to=onnx.TensorProto.INT32)
    index = g.op("ReduceSum", count, g.ints(0), name="index", keepdims=0)
    choices = g.constant([GRADIENT_RANGES[0], *GRADIENT_RANGES], np.int32, name="choices")
    return g.op("Gather", choices, index, name="gradient_range_power", axis=0)


PASS = Pass("lower-to-integers", "every node becomes integer arithmetic on mantissas, by its rule", lower_to_integers)
