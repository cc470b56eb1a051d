"""Random bits in uint32, which wraps by itself, instead of int64 with masks; the last mixing step only touches bits not kept."""

from __future__ import annotations

import onnx

from wageubn_onnx.passes.targets.cpu.edit import Edit
from wageubn_onnx.quantizers.text import function

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
    start = wageubn.HashMix (k6)
    first = Cast <to: int = 12> (start)
    n64 = Constant <value_int: int = @count> ()
    n = Cast <to: int = 6> (n64)
    zero = Constant <value: tensor = int32 {0}> ()
    one = Constant <value: tensor = int32 {1}> ()
    counted = Range (zero, n, one)
    index = Cast <to: int = 12> (counted)
    sixteen = Constant <value: tensor = uint32 {16}> ()
    factor = Constant <value: tensor = uint32 {73244475}> ()
    x = Add (first, index)
    a0 = BitShift <direction: string = "RIGHT"> (x, sixteen)
    a1 = BitwiseXor (a0, x)
    a2 = Mul (a1, factor)
    b0 = BitShift <direction: string = "RIGHT"> (a2, sixteen)
    b1 = BitwiseXor (b0, a2)
    b2 = Mul (b1, factor)
    top = BitShift <direction: string = "RIGHT"> (b2, sixteen)
    bits = Cast <to: int = 6> (top)
    """,
)  # fmt: skip


def uint32_hashes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same bits."""
    edit = Edit(model, "uint32-hashes")
    if any(f.name == RANDOM.name for f in model.functions):
        edit.functions([RANDOM])
    return edit.done()
