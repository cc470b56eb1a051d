"""Random bits in uint32, which wraps by itself, instead of int64 with masks; the last mixing step only touches bits not kept, and
what seed and step make of each other is made once for all tensors."""

from __future__ import annotations

from wageubn_onnx.passes.targets.cpu.edit import Edit
from wageubn_onnx.passes.targets.nodes import attributes
from wageubn_onnx.quantizers.text import function

LONG = 2**16  # numbers from which on their counters are made run by run

STEP = function(
    "StepHash", (), "(seed, number) => (hash)",
    """
    mask = Constant <value_int: int = 4294967295> ()
    seed_64 = Cast <to: int = 7> (seed)
    number_64 = Cast <to: int = 7> (number)
    k0 = BitwiseAnd (seed_64, mask)
    k1 = wageubn.HashMix (k0)
    k2 = Add (k1, number_64)
    k3 = BitwiseAnd (k2, mask)
    hash = wageubn.HashMix (k3)
    """,
)  # fmt: skip

_START = """
    mask = Constant <value_int: int = 4294967295> ()
    id = Constant <value_int: int = @tensor> ()
    k5 = Add (hash, id)
    k6 = BitwiseAnd (k5, mask)
    start = wageubn.HashMix (k6)
    first = Cast <to: int = 12> (start)
    n64 = Constant <value_int: int = @count> ()
    sixteen = Constant <value: tensor = uint32 {16}> ()
    factor = Constant <value: tensor = uint32 {73244475}> ()
    """
_END = """
    b0 = BitShift <direction: string = "RIGHT"> (a2, sixteen)
    b1 = BitwiseXor (b0, a2)
    b2 = Mul (b1, factor)
    top = BitShift <direction: string = "RIGHT"> (b2, sixteen)
    bits = Cast <to: int = 6> (top)
    """

RANDOM = function(
    "HashedBits", ("tensor", "count"), "(hash) => (bits)",
    _START + """
    n = Cast <to: int = 6> (n64)
    zero = Constant <value: tensor = int32 {0}> ()
    one = Constant <value: tensor = int32 {1}> ()
    counted = Range (zero, n, one)
    index = Cast <to: int = 12> (counted)
    x = Add (first, index)
    a0 = BitShift <direction: string = "RIGHT"> (x, sixteen)
    a1 = BitwiseXor (a0, x)
    a2 = Mul (a1, factor)
    """ + _END,
)  # fmt: skip

# In a run of 2^16 counters x = 2^16 run + 2^8 i + j, the mixed x ^ (x >> 16) is a sum of what i and what j decide, and so is its
# product with the factor: one addition makes it.
RANDOM_LONG = function(
    "HashedBitsLong", ("tensor", "count"), "(hash) => (bits)",
    _START + """
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    row = Constant <value_int: int = 256> ()
    unit = Constant <value_int: int = 65536> ()
    eight = Constant <value: tensor = uint32 {8}> ()
    low = Constant <value: tensor = uint32 {255}> ()
    shape = Constant <value_ints: ints = [-1, 1]> ()
    by_row = Constant <value_ints: ints = [-1, 256, 1]> ()
    by_column = Constant <value_ints: ints = [-1, 1, 256]> ()
    flat = Constant <value_ints: ints = [-1]> ()
    reach = Add (n64, unit)
    beyond = Sub (reach, one)
    whole = Div (beyond, unit)
    count = Add (whole, one)
    places64 = Range (zero, row, one)
    places = Cast <to: int = 12> (places64)
    later64 = Range (zero, count, one)
    later = Cast <to: int = 12> (later64)
    first_run = BitShift <direction: string = "RIGHT"> (first, sixteen)
    counted = Add (first_run, later)
    run_mask = Constant <value: tensor = uint32 {65535}> ()
    run_line = BitwiseAnd (counted, run_mask)
    runs = Reshape (run_line, shape)
    run_high = BitShift <direction: string = "RIGHT"> (runs, eight)
    run_low = BitwiseAnd (runs, low)
    i0 = BitwiseXor (places, run_high)
    i1 = BitShift <direction: string = "LEFT"> (i0, eight)
    above = BitShift <direction: string = "LEFT"> (runs, sixteen)
    i2 = Add (i1, above)
    i3 = Mul (i2, factor)
    rows = Reshape (i3, by_row)
    j0 = BitwiseXor (places, run_low)
    j1 = Mul (j0, factor)
    columns = Reshape (j1, by_column)
    cells = Add (rows, columns)
    cell_line = Reshape (cells, flat)
    offset = Mod (start, unit)
    from = Reshape (offset, flat)
    until = Add (from, n64)
    axis = Constant <value_ints: ints = [0]> ()
    a2 = Slice (cell_line, from, until, axis)
    """ + _END,
)  # fmt: skip


def uint32_hashes(edit: Edit) -> None:
    """The same bits."""
    hashes: dict[tuple[str, ...], str] = {}
    for node in edit.nodes:
        if node.op_type == "RandomBits":
            given, passed = tuple(node.input), attributes(node)
            if given not in hashes:
                hashes[given] = edit.before(node, f"wageubn.{STEP.name}", given)
            body = RANDOM_LONG if passed["count"] >= LONG else RANDOM
            edit.replace(node, f"wageubn.{body.name}", [hashes[given]], **passed)
    if hashes:
        edit.functions([STEP, RANDOM, RANDOM_LONG])
