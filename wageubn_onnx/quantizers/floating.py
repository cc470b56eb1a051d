"""The quantizers of `quant_training`: float functions whose results lie on quantized grids.

Each function below builds one call; ``step`` is the grid's power of two. Sources: the numerics table in docs/numerics.md.
A dynamic quantizer's second output is its step, so that what must share its grid can.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable

import numpy as np
import onnx

from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.infer import TensorType
from wageubn_onnx.profiles import ROUNDINGS, Format
from wageubn_onnx.quantizers import tables
from wageubn_onnx.quantizers.symbols import symbol
from wageubn_onnx.quantizers.text import SUFFIX, function


def _bounds(of: str) -> str:
    """The saturation bounds of a call, in the dtype of what it quantizes."""
    return f"""
    l = Constant <value_float: float = @lo> ()
    least = CastLike (l, {of})
    h = Constant <value_float: float = @hi> ()
    greatest = CastLike (h, {of})
    """


Variants = dict[str, onnx.FunctionProto]  # by rounding


def _variants(build: Callable[[str], onnx.FunctionProto]) -> Variants:
    return {rounding: build(rounding) for rounding in ROUNDINGS}


def _random(rounding: str) -> str:
    """The last operand of a stochastic function: 16 random bits an element, int32."""
    return ", random" if rounding == "stochastic" else ""


def _rounded(x: str, y: str, rounding: str) -> str:
    """y = x rounded: ties to even, ties upward, or |x| up where its fraction exceeds random/2^16. Exact for any x."""
    if rounding == "half_even":
        return f"{y} = Round ({x})\n"
    size = x if rounding == "half_up" else f"{y}_size"
    whole = f"""
    {y}_whole = Floor ({size})
    {y}_fraction = Sub ({size}, {y}_whole)
    """
    if rounding == "half_up":
        return (
            whole
            + f"""
        {y}_h = Constant <value_float: float = 0.5> ()
        {y}_half = CastLike ({y}_h, {x})
        {y}_up = GreaterOrEqual ({y}_fraction, {y}_half)
        {y}_one = CastLike ({y}_up, {x})
        {y} = Add ({y}_whole, {y}_one)
        """
        )
    return (
        f"{y}_size = Abs ({x})"
        + whole
        + f"""
        {y}_bits = CastLike (random, {x})
        {y}_c = Constant <value_float: float = 65536.0> ()
        {y}_choices = CastLike ({y}_c, {x})
        {y}_threshold = Div ({y}_bits, {y}_choices)
        {y}_up = Greater ({y}_fraction, {y}_threshold)
        {y}_one = CastLike ({y}_up, {x})
        {y}_next = Add ({y}_whole, {y}_one)
        {y}_sign = Sign ({x})
        {y} = Mul ({y}_next, {y}_sign)
        """
    )


def _to_step(x: str, step: str, y: str, rounding: str) -> str:
    """y = clip(round(x / step), least, greatest) * step."""
    return (
        f"{y}_scaled = Div ({x}, {step})\n" + _rounded(f"{y}_scaled", f"{y}_rounded", rounding)
        + f"{y}_bounded = Clip ({y}_rounded, least, greatest)\n{y} = Mul ({y}_bounded, {step})\n"
    )  # fmt: skip


def _direct(rounding: str) -> onnx.FunctionProto:
    return function(
        f"DirectQuantize{SUFFIX[rounding]}", ("step",), f"(x{_random(rounding)}) => (y)",
        _bounds("x") + """
        s = Constant <value_float: float = @step> ()
        step = CastLike (s, x)
        """ + _to_step("x", "step", "y", rounding),
    )  # fmt: skip


DIRECT = _variants(_direct)


def _grid(rounding: str) -> onnx.FunctionProto:
    return function(
        f"GridQuantize{SUFFIX[rounding]}", (), f"(x, step{_random(rounding)}) => (y)",
        _bounds("x") + _to_step("x", "step", "y", rounding),
    )  # fmt: skip


GRID = _variants(_grid)


@functools.cache
def _range() -> onnx.FunctionProto:
    limits, powers = tables.float_thresholds(np.float32)
    return function(
        "PowerOfTwoRange", (), "(x) => (R, greatest)",
        # R = 1 for an all-zero x
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
        power_x = CastLike (power, x)
        o = Constant <value_float: float = 1.0> ()
        one = CastLike (o, x)
        z = Constant <value_float: float = 0.0> ()
        zero = CastLike (z, x)
        some = Greater (greatest, zero)
        R = Where (some, power_x, one)
        """,
    )  # fmt: skip


# R within its guard: what a dynamic quantizer says its grid is, so that its whole tensor is scaled where R lies beyond
_GUARDED = f"""
    ll = Constant <value_float: float = {2.0**tables.RANGE_LEAST!r}> ()
    lowest = CastLike (ll, R)
    hh = Constant <value_float: float = {2.0**tables.RANGE_GREATEST!r}> ()
    highest = CastLike (hh, R)
    guarded = Clip (R, lowest, highest)
    """


def _shift(rounding: str) -> onnx.FunctionProto:
    return function(
        f"ShiftQuantize{SUFFIX[rounding]}", ("unit",), f"(x{_random(rounding)}) => (y, step)",
        _bounds("x") + """
        R, greatest_x = wageubn.PowerOfTwoRange (x)
        u = Constant <value_float: float = @unit> ()
        unit = CastLike (u, x)
        own = Mul (R, unit)
        """ + _GUARDED + """
        step = Mul (guarded, unit)
        scaled = Div (x, own)
        """ + _rounded("scaled", "rounded", rounding) + """
        bounded = Clip (rounded, least, greatest)
        y = Mul (bounded, step)
        """,
    )  # fmt: skip


SHIFT = _variants(_shift)


def _flag(rounding: str) -> onnx.FunctionProto:
    return function(
        f"FlagQuantize{SUFFIX[rounding]}", (), f"(x{_random(rounding)}) => (y, step)",
        _bounds("x") + """
        R, greatest_x = wageubn.PowerOfTwoRange (x)
        u = Constant <value_float: float = 0.0078125> ()
        unit = CastLike (u, x)
        s = Mul (R, unit)
        fine_unit = Mul (s, unit)
        ratio = Div (x, s)
        """ + _rounded("ratio", "rounded", rounding) + """
        bounded = Clip (rounded, least, greatest)
        high = Mul (bounded, s)
        fine = Div (x, fine_unit)
        """ + _rounded("fine", "fine_rounded", rounding) + """
        low = Mul (fine_rounded, fine_unit)
        magnitude = Abs (x)
        is_high = GreaterOrEqual (magnitude, s)
        own = Where (is_high, high, low)
        """ + _GUARDED + """
        gain = Div (guarded, R)
        y = Mul (own, gain)
        step = Mul (fine_unit, gain)
        """,
    )  # fmt: skip


FLAG = _variants(_flag)


def _align(rounding: str) -> onnx.FunctionProto:
    return function(
        f"AlignQuantize{SUFFIX[rounding]}", ("unit",), "(a, b) => (qa, qb, step)",
        _bounds("a") + """
        Ra, greatest_a = wageubn.PowerOfTwoRange (a)
        Rb, greatest_b = wageubn.PowerOfTwoRange (b)
        z = Constant <value_float: float = 0.0> ()
        zero = CastLike (z, a)
        some_a = Greater (greatest_a, zero)
        some_b = Greater (greatest_b, zero)
        both = Max (Ra, Rb)
        Rab = Where (some_b, both, Ra)
        R = Where (some_a, Rab, Rb)
        u = Constant <value_float: float = @unit> ()
        unit = CastLike (u, a)
        own = Mul (R, unit)
        """ + _GUARDED + """
        step = Mul (guarded, unit)
        """ + "".join(
_to_step(t, "own", f"o{t}", rounding).replace(f"o{t} = Mul (o{t}_bounded, own)", f"q{t} = Mul (o{t}_bounded, step)")
            for t in "ab"
        ),
    )  # fmt: skip


ALIGN = {rounding: _align(rounding) for rounding in ("half_even", "half_up")}


def _constant(rounding: str) -> onnx.FunctionProto:
    return function(
        f"ConstantQuantize{SUFFIX[rounding]}", ("step",), f"(x, dr{_random(rounding)}) => (y)",
        """
        R, greatest_x = wageubn.PowerOfTwoRange (x)
        range = CastLike (dr, x)
        ratio = Div (x, R)
        scaled = Mul (ratio, range)
        """ + _rounded("scaled", "rounded", rounding) + """
        o = Constant <value_float: float = 1.0> ()
        unit = CastLike (o, x)
        limit = Sub (range, unit)
        depth = Neg (limit)
        lowered = Min (rounded, limit)
        bounded = Max (lowered, depth)
        s = Constant <value_float: float = @step> ()
        step = CastLike (s, x)
        y = Mul (bounded, step)
        """,
    )  # fmt: skip


CONSTANT = _variants(_constant)


POWER_LIMIT = 96  # greater than any exponent that a state may hold


@functools.cache
def _power() -> onnx.FunctionProto:
    powers = ", ".join(repr(2.0**e) for e in range(-POWER_LIMIT, POWER_LIMIT + 1))
    return function(
        "PowerOfTwo", (), "(exponent, like) => (step)",
        f"""
        powers = Constant <value_floats: floats = [{powers}]> ()
        offset = Constant <value: tensor = int32 {{{POWER_LIMIT}}}> ()
        index = Add (exponent, offset)
        power = Gather (powers, index)
        step = CastLike (power, like)
        """,
    )  # fmt: skip


def _follow(name: str, greatest_of_size: str) -> onnx.FunctionProto:
    return function(
        name, ("small", "up", "lowest", "highest"), "(y, step, held) => (next)",
        _bounds("y") + f"""
        m = Div (y, step)
        size = Abs (m)
        {greatest_of_size}
        s = Constant <value_float: float = @small> ()
        small = CastLike (s, y)
        saturated = GreaterOrEqual (top, greatest)
        e = Constant <value_float: float = 8.0> ()
        eight = CastLike (e, y)
        eighth = Div (small, eight)
        least_part = Div (eighth, eight)
        is_small = LessOrEqual (top, small)
        is_smaller = LessOrEqual (top, eighth)
        is_least = LessOrEqual (top, least_part)
        up64 = Constant <value_int: int = @up> ()
        up32 = Cast <to: int = 6> (up64)
        is_up = Cast <to: int = 6> (saturated)
        up = Mul (is_up, up32)
        down1 = Cast <to: int = 6> (is_small)
        down2 = Cast <to: int = 6> (is_smaller)
        down3 = Cast <to: int = 6> (is_least)
        two = Constant <value: tensor = int32 {{2}}> ()
        three = Constant <value: tensor = int32 {{3}}> ()
        down2x2 = Mul (down2, two)
        down3x3 = Mul (down3, three)
        down12 = Add (down1, down2x2)
        down = Add (down12, down3x3)
        raised = Add (held, up)
        moved = Sub (raised, down)
        lowest64 = Constant <value_int: int = @lowest> ()
        lowest = Cast <to: int = 6> (lowest64)
        highest64 = Constant <value_int: int = @highest> ()
        highest = Cast <to: int = 6> (highest64)
        above = Max (moved, lowest)
        next = Min (above, highest)
        """,
    )  # fmt: skip


FOLLOW = _follow("FollowExponent", "top = ReduceMax <keepdims: int = 0> (size)")
FOLLOW_CHANNELS = _follow(
    "FollowExponents", "axes = Constant <value_ints: ints = [0, 2, 3]> ()\ntop = ReduceMax <keepdims: int = 1> (size, axes)"
)

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
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    counted = Range (zero, n, one)
    positions = Add (first, counted)
    wrapped = BitwiseAnd (positions, mask)
    hashed = wageubn.HashMix (wrapped)
    sixteen = Constant <value_int: int = 65536> ()
    top = Div (hashed, sixteen)
    bits = Cast <to: int = 6> (top)
    """,
)  # fmt: skip


def _describe(role: str, bits: int, lo: float, hi: float, rounding: str) -> dict[str, object]:
    return {"role": role, "bits": bits, "lo": float(lo), "hi": float(hi), "rounding": rounding}


def _like(x: Tensor) -> TensorType:
    return TensorType(x.dtype, x.shape)


def direct(
    g: Model,
    x: Tensor,
    role: str,
    f: Format,
    exponent: int,
    lo: int | None = None,
    hi: int | None = None,
    random: Tensor | None = None,
) -> Tensor:
    """clip(round(x / 2^exponent), lo, hi) * 2^exponent; bounds default to the format's."""
    low, high = (own if given is None else given for own, given in zip(f.bounds, (lo, hi), strict=True))
    attrs = _describe(role, f.bits, low, high, f.rounding) | {"exponent": exponent, "step": 2.0**exponent}
    return g.call(DIRECT[f.rounding], _with(random, x), [_like(x)], symbol(role), role, attrs)[0]


def grid(
    g: Model,
    x: Tensor,
    step: Tensor,
    role: str,
    f: Format,
    lo: int | None = None,
    hi: int | None = None,
    random: Tensor | None = None,
) -> Tensor:
    """clip(round(x / step), lo, hi) * step, for a step found at run time: one, or one a channel."""
    low, high = (f.least if lo is None else lo), (f.greatest if hi is None else hi)
    attrs = _describe(role, f.bits, low, high, f.rounding)
    return g.call(GRID[f.rounding], _with(random, x, step), [_like(x)], symbol(role), role, attrs)[0]


def shift(g: Model, x: Tensor, role: str, f: Format, random: Tensor | None = None, room: int = 0) -> tuple[Tensor, Tensor]:
    """SQ: the grid is R(x) / 2^(bits-1-room). Returns value and step.

    max|x| reaches sqrt(2) R: with room = 1 nothing saturates, for what must not at the price of a bit.
    """
    g.functions.setdefault("PowerOfTwoRange", _range())
    attrs = _describe(role, f.bits, f.least, f.greatest, f.rounding) | {"unit": 2.0 ** (1 + room - f.bits)}
    types = [_like(x), TensorType(x.dtype, [])]
    value, step = g.call(SHIFT[f.rounding], _with(random, x), types, symbol(role), role, attrs)
    return value, step


def flag(g: Model, x: Tensor, role: str, f: Format) -> tuple[Tensor, Tensor]:
    """Flag quantization: 8 bits of R/2^7 where |x| reaches that, 8 bits of R/2^14 below. Returns value and the finer step."""
    g.functions.setdefault("PowerOfTwoRange", _range())
    types = [_like(x), TensorType(x.dtype, [])]
    value, step = g.call(FLAG[f.rounding], [x], types, symbol(role), role, _describe(role, 8, -127, 127, f.rounding))
    return value, step


def align(g: Model, a: Tensor, b: Tensor, role: str, f: Format) -> tuple[Tensor, Tensor, Tensor]:
    """Both operands on the grid max(R(a), R(b)) / 2^(bits-2): their sum needs no further alignment. Returns both and the step.

    One bit less than SQ's, since max|x| reaches sqrt(2) R: what is to be summed must not saturate.
    """
    g.functions.setdefault("PowerOfTwoRange", _range())
    types = [_like(a), _like(b), TensorType(a.dtype, [])]
    attrs = _describe(role, f.bits, f.least, f.greatest, f.rounding) | {"unit": 2.0 ** (2 - f.bits)}
    qa, qb, step = g.call(ALIGN[f.rounding], [a, b], types, symbol(role), role, attrs)
    return qa, qb, step


def constant(g: Model, x: Tensor, dr: Tensor, role: str, f: Format, random: Tensor | None = None) -> Tensor:
    """CQ: round(dr*x/R), at most dr-1, in units of 2^-fraction."""
    g.functions.setdefault("PowerOfTwoRange", _range())
    attrs = _describe(role, 8, -127, 127, f.rounding) | {"exponent": f.exponent, "step": 2.0**f.exponent}
    return g.call(CONSTANT[f.rounding], _with(random, x, dr), [_like(x)], symbol(role), role, attrs)[0]


def _with(random: Tensor | None, *operands: Tensor) -> list[Tensor]:
    return [*operands, *([] if random is None else [random])]


def power(g: Model, exponent: Tensor, like: Tensor) -> Tensor:
    """2^exponent in the dtype of ``like``, for an int32 exponent within -96..96: the step of a grid that a state holds."""
    return g.call(_power(), [exponent, like], [TensorType(like.dtype, exponent.shape)], "step", "", {})[0]


def follow(g: Model, y: Tensor, step: Tensor, held: Tensor, f: Format, small: int, up: int, lowest: int, highest: int) -> Tensor:
    """The int32 exponent for the next step, from a tensor that was quantized with the ``held`` one: [] or [1, C, 1, 1].

    held + up where a mantissa saturated; held - 1 where none passes ``small``, - 3 where none passes an eighth of that, - 6 where
    none a 64th; else held. Within lowest..highest.
    """
    attrs = {"lo": float(f.least), "hi": float(f.greatest), "small": float(small), "up": up, "lowest": lowest, "highest": highest}
    types = [TensorType(held.dtype, held.shape)]
    return g.call(FOLLOW_CHANNELS if held.shape else FOLLOW, [y, step, held], types, "next_exponent", "", attrs)[0]


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
