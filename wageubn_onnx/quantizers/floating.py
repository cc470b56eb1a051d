"""The quantizers of `quant_training`: float functions whose results lie on quantized grids.

Each function below builds one call; ``step`` is the grid's power of two. Sources: the numerics table in docs/numerics.md.
A dynamic quantizer's second output is its step, so that what must share its grid can.
"""

from __future__ import annotations

import functools
import zlib

import numpy as np
import onnx

from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.infer import TensorType
from wageubn_onnx.quantizers import tables
from wageubn_onnx.quantizers.symbols import symbol
from wageubn_onnx.quantizers.text import function


def _bounds(of: str) -> str:
    """The saturation bounds of a call, in the dtype of what it quantizes."""
    return f"""
    l = Constant <value_float: float = @lo> ()
    least = CastLike (l, {of})
    h = Constant <value_float: float = @hi> ()
    greatest = CastLike (h, {of})
    """


DIRECT = function(
    "DirectQuantize", ("step",), "(x) => (y)",
    _bounds("x") + """
    s = Constant <value_float: float = @step> ()
    step = CastLike (s, x)
    scaled = Div (x, step)
    rounded = Round (scaled)
    bounded = Clip (rounded, least, greatest)
    y = Mul (bounded, step)
    """,
)  # fmt: skip

GRID = function(
    "GridQuantize", (), "(x, step) => (y)",
    _bounds("x") + """
    scaled = Div (x, step)
    rounded = Round (scaled)
    bounded = Clip (rounded, least, greatest)
    y = Mul (bounded, step)
    """,
)  # fmt: skip


@functools.cache
def _range() -> onnx.FunctionProto:
    limits, powers = tables.float_thresholds(np.float32)
    return function(
        "PowerOfTwoRange", (), "(x) => (R)",
        f"""
        limits = Constant <value_floats: floats = [{", ".join(map(repr, limits))}]> ()
        powers = Constant <value_floats: floats = [{", ".join(map(repr, powers))}]> ()
        magnitude = Abs (x)
        greatest = ReduceMax <keepdims: int = 0> (magnitude)
        limits_x = CastLike (limits, x)
        reached = GreaterOrEqual (greatest, limits_x)
        ones = Cast <to: int = 7> (reached)
        index = ReduceSum <keepdims: int = 0> (ones)
        power = Gather (powers, index)
        R = CastLike (power, x)
        """,
    )  # fmt: skip


SHIFT = function(
    "ShiftQuantize", ("unit",), "(x) => (y, step)",
    _bounds("x") + """
    R = wageubn.PowerOfTwoRange (x)
    u = Constant <value_float: float = @unit> ()
    unit = CastLike (u, x)
    step = Mul (R, unit)
    scaled = Div (x, step)
    rounded = Round (scaled)
    bounded = Clip (rounded, least, greatest)
    y = Mul (bounded, step)
    """,
)  # fmt: skip

FLAG = function(
    "FlagQuantize", (), "(x) => (y, step)",
    _bounds("x") + """
    R = wageubn.PowerOfTwoRange (x)
    u = Constant <value_float: float = 0.0078125> ()
    unit = CastLike (u, x)
    s = Mul (R, unit)
    step = Mul (s, unit)
    ratio = Div (x, s)
    rounded = Round (ratio)
    bounded = Clip (rounded, least, greatest)
    high = Mul (bounded, s)
    fine = Div (x, step)
    fine_rounded = Round (fine)
    low = Mul (fine_rounded, step)
    magnitude = Abs (x)
    is_high = GreaterOrEqual (magnitude, s)
    y = Where (is_high, high, low)
    """,
)  # fmt: skip

ALIGN = function(
    "AlignQuantize", ("unit",), "(a, b) => (qa, qb, step)",
    _bounds("a") + """
    Ra = wageubn.PowerOfTwoRange (a)
    Rb = wageubn.PowerOfTwoRange (b)
    R = Max (Ra, Rb)
    u = Constant <value_float: float = @unit> ()
    unit = CastLike (u, a)
    step = Mul (R, unit)
    sa = Div (a, step)
    ra = Round (sa)
    ca = Clip (ra, least, greatest)
    qa = Mul (ca, step)
    sb = Div (b, step)
    rb = Round (sb)
    cb = Clip (rb, least, greatest)
    qb = Mul (cb, step)
    """,
)  # fmt: skip

CONSTANT = function(
    "ConstantQuantize", ("step",), "(x, dr, random) => (y)",
    """
    R = wageubn.PowerOfTwoRange (x)
    range = CastLike (dr, x)
    magnitude = Abs (x)
    ratio = Div (magnitude, R)
    scaled = Mul (ratio, range)
    whole = Floor (scaled)
    fraction = Sub (scaled, whole)
    bits = CastLike (random, x)
    c = Constant <value_float: float = 65536.0> ()
    choices = CastLike (c, x)
    threshold = Div (bits, choices)
    up = Greater (fraction, threshold)
    one = CastLike (up, x)
    rounded = Add (whole, one)
    o = Constant <value_float: float = 1.0> ()
    unit = CastLike (o, x)
    limit = Sub (range, unit)
    bounded = Min (rounded, limit)
    s = Constant <value_float: float = @step> ()
    step = CastLike (s, x)
    size = Mul (bounded, step)
    sign = Sign (x)
    y = Mul (size, sign)
    """,
)  # fmt: skip

EXPONENTIAL = function(
    "ExponentialTable", (), "(t) => (y)",
    f"""
    table = Constant <value_floats: floats = [{", ".join(f"{v}.0" for v in tables.EXP_TABLE)}]> ()
    powers = Constant <value_floats: floats = [{", ".join(f"{2**k}.0" for k in range(17))}]> ()
    fall = Neg (t)
    whole = Floor (fall)
    rest = Sub (fall, whole)
    n = Constant <value_float: float = {2.0**tables.EXP_INDEX}> ()
    size = CastLike (n, t)
    position = Mul (rest, size)
    index = Cast <to: int = 7> (position)
    entry = Gather (table, index)
    deep = Constant <value_float: float = 16.0> ()
    deepest = CastLike (deep, t)
    shift = Min (whole, deepest)
    shift_index = Cast <to: int = 7> (shift)
    divisor = Gather (powers, shift_index)
    quotient = Div (entry, divisor)
    truncated = Floor (quotient)
    s = Constant <value_float: float = {2.0**-tables.EXP_BITS}> ()
    scaled = Mul (truncated, s)
    y = CastLike (scaled, t)
    """,
)  # fmt: skip

LOGARITHM = function(
    "LogarithmTable", (), "(x) => (y)",
    f"""
    table = Constant <value_floats: floats = [{", ".join(f"{v}.0" for v in tables.LOG_TABLE)}]> ()
    powers = Constant <value_floats: floats = [{", ".join(f"{2**k}.0" for k in range(16))}]> ()
    powers_x = CastLike (powers, x)
    axis = Constant <value_ints: ints = [-1]> ()
    column = Unsqueeze (x, axis)
    reached = GreaterOrEqual (column, powers_x)
    ones = Cast <to: int = 7> (reached)
    count = ReduceSum <keepdims: int = 0> (ones, axis)
    one = Constant <value_int: int = 1> ()
    whole = Sub (count, one)
    power = Gather (powers_x, whole)
    ratio = Div (x, power)
    n = Constant <value_float: float = {2.0**tables.LOG_INDEX}> ()
    size = CastLike (n, x)
    scaled = Mul (ratio, size)
    floor = Floor (scaled)
    position = Sub (floor, size)
    index = Cast <to: int = 7> (position)
    entry = Gather (table, index)
    s = Constant <value_float: float = {2.0**-tables.LOG_FRACTION}> ()
    fraction_s = Mul (entry, s)
    fraction = CastLike (fraction_s, x)
    whole_x = CastLike (whole, x)
    y = Add (whole_x, fraction)
    """,
)  # fmt: skip

MIX = function(
    "HashMix", (), "(x) => (y)",
    """
    sixteen = Constant <value_int: int = 65536> ()
    factor = Constant <value_int: int = 73244475> ()
    mask = Constant <value_int: int = 4294967295> ()
    a0 = Div (x, sixteen)
    a1 = BitwiseXor (a0, x)
    a2 = Mul (a1, factor)
    a3 = BitwiseAnd (a2, mask)
    b0 = Div (a3, sixteen)
    b1 = BitwiseXor (b0, a3)
    b2 = Mul (b1, factor)
    b3 = BitwiseAnd (b2, mask)
    c0 = Div (b3, sixteen)
    y = BitwiseXor (c0, b3)
    """,
)  # fmt: skip

RANDOM = function(
    "RandomBits", ("tensor", "count"), "(seed, number) => (bits)",
    """
    mask = Constant <value_int: int = 4294967295> ()
    seed_64 = Cast <to: int = 7> (seed)
    number_64 = Cast <to: int = 7> (number)
    k0 = BitwiseAnd (seed_64, mask)
    k1 = wageubn.HashMix (k0)
    k2 = Add (k1, number_64)
    k3 = BitwiseAnd (k2, mask)
    k4 = wageubn.HashMix (k3)
    id = Constant <value_int: int = @tensor> ()
    k5 = Add (k4, id)
    k6 = BitwiseAnd (k5, mask)
    first = wageubn.HashMix (k6)
    n = Constant <value_int: int = @count> ()
    end = Add (first, n)
    one = Constant <value_int: int = 1> ()
    positions = Range (first, end, one)
    wrapped = BitwiseAnd (positions, mask)
    hashed = wageubn.HashMix (wrapped)
    sixteen = Constant <value_int: int = 65536> ()
    top = Div (hashed, sixteen)
    bits = Cast <to: int = 6> (top)
    """,
)  # fmt: skip


def signed(bits: int) -> int:
    """The greatest mantissa of a symmetric format of that width."""
    return int(2 ** (bits - 1) - 1)


def _describe(role: str, bits: int, lo: float, hi: float, rounding: str = "half_even") -> dict[str, object]:
    return {"role": role, "bits": bits, "lo": float(lo), "hi": float(hi), "rounding": rounding}


def direct(g: Model, x: Tensor, role: str, bits: int, exponent: int, lo: int | None = None, hi: int | None = None) -> Tensor:
    """clip(round(x / 2^exponent), lo, hi) * 2^exponent, half to even; bounds default to +-(2^(bits-1) - 1)."""
    low, high = (-signed(bits) if lo is None else lo), (signed(bits) if hi is None else hi)
    attrs = _describe(role, bits, low, high) | {"exponent": exponent, "step": 2.0**exponent}
    return g.call(DIRECT, [x], [TensorType(x.dtype, x.shape)], symbol(role), role, attrs)[0]


def grid(g: Model, x: Tensor, step: Tensor, role: str, bits: int, limit: int | None = None) -> Tensor:
    """clip(round(x / step), -limit, limit) * step, for a step found at run time."""
    high = signed(bits) if limit is None else limit
    return g.call(GRID, [x, step], [TensorType(x.dtype, x.shape)], symbol(role), role, _describe(role, bits, -high, high))[0]


def shift(g: Model, x: Tensor, role: str, bits: int) -> tuple[Tensor, Tensor]:
    """SQ: the grid is R(x) / 2^(bits-1). Returns value and step."""
    g.functions.setdefault("PowerOfTwoRange", _range())
    attrs = _describe(role, bits, -signed(bits), signed(bits)) | {"unit": 2.0 ** (1 - bits)}
    value, step = g.call(SHIFT, [x], [TensorType(x.dtype, x.shape), TensorType(x.dtype, [])], symbol(role), role, attrs)
    return value, step


def flag(g: Model, x: Tensor, role: str) -> tuple[Tensor, Tensor]:
    """Flag quantization: 8 bits of R/2^7 where |x| reaches that, 8 bits of R/2^14 below. Returns value and the finer step."""
    g.functions.setdefault("PowerOfTwoRange", _range())
    value, step = g.call(
        FLAG, [x], [TensorType(x.dtype, x.shape), TensorType(x.dtype, [])], symbol(role), role, _describe(role, 8, -127, 127)
    )
    return value, step


def align(g: Model, a: Tensor, b: Tensor, role: str, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both operands on the grid max(R(a), R(b)) / 2^(bits-2): their sum needs no further alignment. Returns both and the step.

    One bit less than SQ's, since max|x| reaches sqrt(2) R: what is to be summed must not saturate.
    """
    g.functions.setdefault("PowerOfTwoRange", _range())
    types = [TensorType(a.dtype, a.shape), TensorType(b.dtype, b.shape), TensorType(a.dtype, [])]
    attrs = _describe(role, bits, -signed(bits), signed(bits)) | {"unit": 2.0 ** (2 - bits)}
    qa, qb, step = g.call(ALIGN, [a, b], types, symbol(role), role, attrs)
    return qa, qb, step


def constant(g: Model, x: Tensor, dr: Tensor, random: Tensor, role: str, fraction: int) -> Tensor:
    """CQ: dr*x/R rounded up in magnitude where its fraction exceeds random/2^16, at most dr-1, in units of 2^-fraction."""
    g.functions.setdefault("PowerOfTwoRange", _range())
    attrs = _describe(role, 8, -127, 127, "stochastic") | {"exponent": -fraction, "step": 2.0**-fraction}
    return g.call(CONSTANT, [x, dr, random], [TensorType(x.dtype, x.shape)], symbol(role), role, attrs)[0]


def random_bits(g: Model, seed: Tensor, number: Tensor, key: str, shape: list[int]) -> Tensor:
    """16 random bits an element as int32 of ``shape``: an integer hash of (seed, step number, state key, element index)."""
    g.functions.setdefault("HashMix", MIX)
    count = int(np.prod(shape))
    types = [TensorType(np.dtype(np.int32), [count])]
    flat = g.call(RANDOM, [seed, number], types, "random", "", {"tensor": zlib.crc32(key.encode()), "count": count, "bits": 16})[
        0
    ]
    return g.op("Reshape", flat, g.ints(*shape), name="random")


def exponential(g: Model, t: Tensor) -> Tensor:
    """2^t for t <= 0 on the grid 2^-8, on the grid 2^-15, truncated."""
    return g.call(EXPONENTIAL, [t], [TensorType(t.dtype, t.shape)], "exp2", "S.exp", {})[0]


def logarithm(g: Model, x: Tensor) -> Tensor:
    """log2 x for x >= 1 on the grid 2^-15, on the grid 2^-12."""
    return g.call(LOGARITHM, [x], [TensorType(x.dtype, x.shape)], "log2", "S.log", {})[0]
