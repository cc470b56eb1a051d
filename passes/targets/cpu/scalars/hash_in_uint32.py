"""Random bits in uint32, which wraps by itself, instead of int64 with masks; the last mixing step only touches bits not kept, and
what seed and step make of each other is made once for all tensors.

    RandomBits(seed, number)  ->  HashedBits(StepHash(seed, number))      StepHash once for all tensors
"""

from __future__ import annotations

import numpy as np

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.onnxir.trace import Int32, Int64, Value, cast, function, op
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.quantizers.floating import FACTOR, mixed, step_hash

LONG = 2**16  # numbers from which on their counters are made run by run
PLACES = np.arange(256, dtype=np.uint32)


@function("StepHash", "hash")
def STEP(seed: Int32, number: Int32) -> Value:
    """What `RandomBits` makes of them, int64."""
    return step_hash(seed, number)


def _scrambled(x: Value) -> Value:
    """x ^ (x >> 16)."""
    return x >> 16 ^ x


def _bits(a: Value) -> Value:
    """The bits to keep, of a hash after one mixing step."""
    return cast(_scrambled(a) * FACTOR >> 16, np.int32)


@function("HashedBits", "bits")
def RANDOM(hash: Int64, *, tensor: Int64, count: Int32) -> Value:
    """What `RandomBits` gives, of its `StepHash`; int32 [count]."""
    first = cast(mixed(hash + tensor), np.uint32)
    x = first + cast(op("Range", 0, count, 1), np.uint32)
    return _bits(_scrambled(x) * FACTOR)


def _reshaped(x: Value, *shape: int) -> Value:
    return op("Reshape", x, np.array(shape, np.int64))


@function("HashedBitsLong", "bits")
def RANDOM_LONG(hash: Int64, *, tensor: Int64, count: Int64) -> Value:
    """The same of a long tensor.

    In a run of 2^16 counters x = 2^16 run + 2^8 i + j, the mixed x ^ (x >> 16) is a sum of what i and what j decide, and so is
    its product with the factor: one addition makes it.
    """
    start = mixed(hash + tensor)
    first = cast(start, np.uint32)
    later = cast(op("Range", 0, (count + 2**16 - 1) // 2**16 + 1, 1), np.uint32)
    runs = _reshaped(((first >> 16) + later) & (2**16 - 1), -1, 1)
    of_rows = (runs >> 8 ^ PLACES) << 8
    rows = _reshaped((of_rows + (runs << 16)) * FACTOR, -1, 256, 1)
    columns = _reshaped((runs & 255 ^ PLACES) * FACTOR, -1, 1, 256)
    cells = _reshaped(rows + columns, -1)
    begin = _reshaped(start % 2**16, -1)
    return _bits(op("Slice", cells, begin, begin + count, np.array([0], np.int64)))


def hash_in_uint32(edit: Edit) -> None:
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


PASS = Form(
    "hash-in-uint32", "random bits in uint32, which wraps, in place of int64 with masks", hash_in_uint32, needs=(Kernel.UNSIGNED,)
)
