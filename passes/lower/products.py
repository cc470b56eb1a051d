"""Convolutions and matrix products in integers: uint8 operands with zero points, int32 accumulators, split where too long.

uint8 by uint8 with zero point 128 is the one form that every release of onnxruntime has and that is exact on every x86; where the
first operand is never above 127, uint8 by int8 is as exact and faster.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.fixedpoint import Exponent, Fixed, Pair, Value
from wageubn_onnx.geometry import Place, interleave, phase_size, zeros
from wageubn_onnx.graph import Tensor
from wageubn_onnx.passes.lower.lowering import INT32_LIMIT, Lowering, Rule
from wageubn_onnx.quantizers.integer import SHIFT_LIMIT

Product = Callable[[Fixed, Fixed], Fixed]


def conv(lower: Lowering, node: gs.Node) -> Value:
    """Conv -> ConvInteger."""
    x, w = (lower.fixed(lower.value(i), node) for i in node.inputs[:2])
    return _convolve(lower, node, x, w, node.attrs["pads"], node.attrs["strides"], node.attrs["dilations"])


def _convolve(
    lower: Lowering, node: gs.Node, x: Fixed, w: Fixed, pads: list[int], strides: list[int], dilations: list[int]
) -> Fixed:
    """x [N, I, H, W] by w [O, I/G, KH, KW] in the groups of ``node``."""
    (xu, x_zero), (wu, w_zero) = lower.unsigned(x), lower.unsigned(w)
    bound = math.prod(w.tensor.shape[1:]) * x.bound * w.bound
    lower.checked(bound, 2**SHIFT_LIMIT, node)
    kernel = list(w.tensor.shape[2:])
    tensor = lower.g.op(
        "ConvInteger", xu, wu, x_zero, w_zero, name="product",
        pads=pads, strides=strides, dilations=dilations, kernel_shape=kernel, group=node.attrs["group"],
    )  # fmt: skip
    return Fixed(tensor, x.exponent + w.exponent, -bound, bound)


@dataclass(frozen=True)
class Taps:
    """Which positions of a turned kernel reach one phase of an axis: ``count`` from ``first`` on, every ``step``-th.

    They are a kernel of their own with ``dilation``, over the errors with ``before`` zeros in front.
    """

    first: int
    step: int
    count: int
    dilation: int
    before: int

    @staticmethod
    def by_phase(kernel: int, stride: int, dilation: int, pad: int) -> dict[int, Taps]:
        """By the phase that they reach; a phase that no tap reaches is not there."""
        phases: dict[int, list[int]] = {}
        for tap in range(kernel):
            phases.setdefault(Place.of(tap * dilation - pad, stride).phase, []).append(tap)
        common = math.gcd(stride, dilation)
        spaced = dilation // common
        found = {}
        for phase, taps in phases.items():
            last = Place.of(taps[-1] * dilation - pad, stride)
            found[phase] = Taps(kernel - 1 - taps[-1], stride // common, len(taps), spaced, last.offset)
        return found


def conv_transpose(lower: Lowering, node: gs.Node) -> Value:
    """ConvTranspose -> ConvDataGradient, phase by phase: with stride 2, four convolutions by parts of the flipped kernel, which
    FlipKernel makes once for all of an error's parts."""
    error, weight = lower.value(node.inputs[0]), lower.fixed(lower.value(node.inputs[1]), node)
    phases = _phases(node)
    numbers = [n for phase in phases for t in phase.taps for n in (t.first, t.step, t.count)]

    def flipped(inner: Lowering, operands: Sequence[Value]) -> list[Value]:
        turned = _turned(inner, inner.fixed(operands[0], node), node.attrs["group"])
        return [_part(inner, turned, phase.taps) for phase in phases]

    def gradient(inner: Lowering, operands: Sequence[Value]) -> list[Value]:
        e, *kernels = (inner.fixed(operand, node) for operand in operands)
        return [_data_gradient(inner, node, e, dict(zip(phases, kernels, strict=True)))]

    def product(e: Fixed, w: Fixed) -> Fixed:
        (dx,) = lower.outlined(node, "ConvDataGradient", _mantissas(e, *(lower.fixed(k, node) for k in kernels)), gradient)
        return replace(lower.fixed(dx, node), exponent=e.exponent + w.exponent)

    kernels = lower.outlined(node, "FlipKernel", _mantissas(weight), flipped, "flipped", phases=numbers) if phases else []
    return _bilinear(lower, node, error, weight, product)


@dataclass(frozen=True)
class Phase:
    """``at``: rows and columns modulo the strides; taps: those that reach it; cut, stop: of the errors what they reach; pads."""

    at: tuple[int, int]
    taps: tuple[Taps, Taps]
    cut: tuple[int, ...]
    stop: tuple[int, ...]
    pads: tuple[int, ...]


def _phases(node: gs.Node) -> list[Phase]:
    """Those of a data gradient that are not zero, because taps reach an error."""
    strides, dilations, pads = node.attrs["strides"], node.attrs["dilations"], node.attrs["pads"]
    (errors, w), canvas = (i.shape[2:] for i in node.inputs[:2]), phase_size(node.outputs[0].shape[2:], strides)
    by_axis = [Taps.by_phase(w[a], strides[a], dilations[a], pads[a]) for a in range(2)]
    found = []
    for at in itertools.product(*by_axis):
        taps = by_axis[0][at[0]], by_axis[1][at[1]]
        before = [t.before for t in taps]
        after = [canvas[a] + t.dilation * (t.count - 1) - t.before - errors[a] for a, t in enumerate(taps)]
        cut = tuple(max(-p, 0) for p in (*before, *after))
        stop = tuple(errors[a] - cut[2 + a] for a in range(2))
        if all(stop[a] > cut[a] for a in range(2)):
            found.append(Phase((at[0], at[1]), taps, cut, stop, tuple(max(p, 0) for p in (*before, *after))))
    return found


def _part(lower: Lowering, w: Fixed, taps: tuple[Taps, Taps]) -> Fixed:
    """These taps of the flipped kernel w."""
    if [t.count for t in taps] == list(w.tensor.shape[2:]):
        return w
    g, last = lower.g, [t.first + t.step * (t.count - 1) + 1 for t in taps]
    bounds = (g.ints(*(t.first for t in taps)), g.ints(*last), g.ints(2, 3), g.ints(*(t.step for t in taps)))
    return replace(w, tensor=g.op("Slice", w.tensor, *bounds, name="phase"))


def _data_gradient(lower: Lowering, node: gs.Node, e: Fixed, kernels: dict[Phase, Fixed]) -> Fixed:
    """Errors e [N, O, OH, OW] by each phase's kernel [I, O/G, *taps]: the phases side by side."""
    g, size, strides = lower.g, node.outputs[0].shape[2:], node.attrs["strides"]
    parts: dict[tuple[int, int], Fixed] = {}
    for phase, kernel in kernels.items():
        errors = e.tensor
        if any(phase.cut):
            bounds = (g.ints(*phase.cut[:2]), g.ints(*phase.stop), g.ints(2, 3))
            errors = g.op("Slice", errors, *bounds, name="cut")
        x, spaced = replace(e, tensor=errors), [t.dilation for t in phase.taps]
        parts[phase.at] = _convolve(lower, node, x, kernel, list(phase.pads), [1, 1], spaced)
    if not parts:  # no window sees anything of the image
        return Fixed(zeros(g, node.outputs[0].shape, np.int32), e.exponent, -1, 1)
    image = interleave(g, {at: part.tensor for at, part in parts.items()}, strides, size)
    bound = max(part.bound for part in parts.values())
    return Fixed(image, e.exponent, -bound, bound)


def _turned(lower: Lowering, w: Fixed, groups: int) -> Fixed:
    """[O, I/G, KH, KW] -> [I, O/G, KH, KW], every group by itself, with rows and columns reversed."""
    g = lower.g
    tensor = w.tensor
    if tuple(tensor.shape[2:]) != (1, 1):
        last = -(2**62)
        tensor = g.op("Slice", tensor, g.ints(-1, -1), g.ints(last, last), g.ints(2, 3), g.ints(-1, -1), name="turned")
    if groups == 1:
        tensor = g.op("Transpose", tensor, name="turned", perm=[1, 0, 2, 3])
    else:
        o, i, *kernel = tensor.shape
        tensor = g.op("Reshape", tensor, g.ints(groups, o // groups, i, *kernel), name="turned")
        tensor = g.op("Transpose", tensor, name="turned", perm=[0, 2, 1, 3, 4])
        tensor = g.op("Reshape", tensor, g.ints(groups * i, o // groups, *kernel), name="turned")
    return Fixed(tensor, w.exponent, w.lo, w.hi)


def _bilinear(lower: Lowering, node: gs.Node, a: Value, b: Value, product: Product) -> Value:
    """product(a, b) where either may be a pair: combined here if int32 allows, else by the quantizer."""
    if isinstance(a, Pair):
        w = lower.fixed(b, node)
        pair = Pair(product(a.high, w), product(a.low, w), a.base)
    elif isinstance(b, Pair):
        x = lower.fixed(a, node)
        pair = Pair(product(x, b.high), product(x, b.low), b.base)
    else:
        return product(lower.fixed(a, node), lower.fixed(b, node))
    combined = 2**pair.base * pair.high.bound + pair.low.bound
    return lower.fixed(pair, node) if combined < 2**SHIFT_LIMIT else pair


def weight_gradient(lower: Lowering, node: gs.Node) -> Value:
    """ConvWeightGradient or GemmWeightGradient: one for each part of an error; its exponents do not count within."""

    def product(x: Fixed, dy: Fixed) -> Fixed:
        (dw,) = lower.composite(node, _mantissas(x, dy))
        return replace(lower.fixed(dw, node), exponent=x.exponent + dy.exponent)

    images, errors = (lower.value(i) for i in node.inputs)
    return _bilinear(lower, node, images, errors, product)


def _mantissas(*values: Fixed) -> list[Fixed]:
    """The same mantissas in units of 1, so that a product has one body whatever the exponents of its operands."""
    return [replace(value, exponent=Exponent()) for value in values]


def matmul(lower: Lowering, node: gs.Node) -> Value:
    """MatMul -> MatMulInteger."""
    a, b = (lower.value(i) for i in node.inputs)
    return _bilinear(lower, node, a, b, lambda p, q: _matmul(lower, node, p, q))


def _matmul(lower: Lowering, node: gs.Node, a: Fixed, b: Fixed) -> Fixed:
    """a [.., M, K] by b [.., K, N]: one product, or the int64 sum of products over pieces of K, each short enough for int32."""
    g, rank = lower.g, len(a.tensor.shape)
    if a.tensor.dtype == np.uint8 and a.hi <= 127 and b.tensor.dtype == np.int8:
        (left, zero_left), (right, zero_right) = (a.tensor, g.scalar(0, np.uint8)), (b.tensor, g.scalar(0, np.int8))
    else:
        (left, zero_left), (right, zero_right) = lower.unsigned(a), lower.unsigned(b)
    inner = a.tensor.shape[-1]
    longest = (INT32_LIMIT - 1) // max(a.bound * b.bound, 1)
    bound = inner * a.bound * b.bound

    def piece(start: int, stop: int) -> Tensor:
        p, q = left, right
        if (start, stop) != (0, inner):
            p = g.op("Slice", left, g.ints(start), g.ints(stop), g.ints(rank - 1), name="piece")
            q = g.op("Slice", right, g.ints(start), g.ints(stop), g.ints(rank - 2), name="piece")
        return g.op("MatMulInteger", p, q, zero_left, zero_right, name="product")

    if inner <= longest:
        return Fixed(piece(0, inner), a.exponent + b.exponent, -bound, bound)
    count = -(-inner // longest)
    size = -(-inner // count)
    total: Tensor | None = None
    for start in range(0, inner, size):
        part = lower.cast(piece(start, min(start + size, inner)), np.int64)
        total = part if total is None else g.op("Add", total, part, name="pieces")
    return Fixed(total, a.exponent + b.exponent, -bound, bound)


RULES: dict[str, Rule] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "ConvWeightGradient": weight_gradient,
    "GemmWeightGradient": weight_gradient,
    "MatMul": matmul,
}
