"""Traced functions have the nodes that their expressions say, under names that can be read."""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from kernels import Kernel, call_model
from wageubn_onnx.onnxir.trace import (
    Float,
    Int,
    Int8,
    Int32,
    Int64,
    Ints,
    Uint8,
    Value,
    call,
    cast,
    equal,
    function,
    gather,
    op,
    variants,
    where,
)
from wageubn_onnx.passes.targets import cpu
from wageubn_onnx.quantizers import floating, integer


def lines(made: onnx.FunctionProto) -> list[str]:
    """Its nodes in short: constants by dtype and value, attributes that the call passes by @."""
    found = []
    for node in made.node:
        attributes = [f"{a.name}=@{a.ref_attr_name}" if a.ref_attr_name else _said(a) for a in node.attribute]
        found.append(f"{', '.join(node.output)} = {node.op_type}({', '.join([*node.input, *attributes])})")
    return found


def _said(attribute: onnx.AttributeProto) -> str:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        array = numpy_helper.to_array(value)
        return f"{array.dtype} {array.tolist()}"
    return f"{attribute.name}={value.decode() if isinstance(value, bytes) else value}"


def test_nodes_of_an_expression() -> None:
    """Locals give names, equal constants and computations are one node, and an attribute is read in its dtype."""

    @function("Toy", "q", "sign")
    def made(m: Int32, d: Int32, *, to: Int, least: Int32, base: Int64) -> tuple[Value, Value]:
        double = m + m
        top = (double + (d - 1)) // d
        return cast(where(top < least, least, 100 - (d - 1)), to), cast(m + m >= 0, np.int64) * base

    assert (made.domain, made.name, list(made.input), list(made.output)) == ("wageubn", "Toy", ["m", "d"], ["q", "sign"])
    assert list(made.attribute) == ["to", "least", "base"]
    assert {a.name for a in made.attribute_proto} == {"role", "bits", "rounding", "exponent", "lo", "hi"}
    assert lines(made) == [
        "least64 = Constant(value_int=@least)",
        "least = Cast(least64, to=6)",
        "base64 = Constant(value_int=@base)",
        "double = Add(m, m)",
        "int32_1 = Constant(int32 1)",
        "Sub = Sub(d, int32_1)",
        "Add = Add(double, Sub)",
        "top = Div(Add, d)",
        "Less = Less(top, least)",
        "int32_100 = Constant(int32 100)",
        "Sub.2 = Sub(int32_100, Sub)",
        "Where = Where(Less, least, Sub.2)",
        "q = Cast(Where, to=@to)",
        "int32_0 = Constant(int32 0)",
        "GreaterOrEqual = GreaterOrEqual(double, int32_0)",
        "Cast = Cast(GreaterOrEqual, to=7)",
        "sign = Mul(Cast, base64)",
    ]


def test_numbers_take_the_dtype_of_what_they_meet() -> None:
    """A float's is only known at the call; truth values have none to give; numpy's numbers keep theirs."""

    @function("Toy", "a", "b", "c")
    def made(x: Uint8, y: Float, z: Int8, *, step: Float) -> tuple[Value, Value, Value]:
        some = (x > 3) & ~equal(z, -1)
        table = np.array([1, 2], np.int16)
        return where(some, 255, x ^ 128), y / 2**16 * step, gather(table, cast(z, np.int64)) * np.int16(7)

    assert lines(made) == [
        "step32 = Constant(value_float=@step)",
        "step = CastLike(step32, y)",
        "uint8_3 = Constant(uint8 3)",
        "Greater = Greater(x, uint8_3)",
        "int8_-1 = Constant(int8 -1)",
        "Equal = Equal(z, int8_-1)",
        "Not = Not(Equal)",
        "some = And(Greater, Not)",
        "uint8_128 = Constant(uint8 128)",
        "BitwiseXor = BitwiseXor(x, uint8_128)",
        "uint8_255 = Constant(uint8 255)",
        "a = Where(some, uint8_255, BitwiseXor)",
        "float32_65536.0 = Constant(float32 65536.0)",
        "CastLike = CastLike(float32_65536.0, y)",
        "Div = Div(y, CastLike)",
        "b = Mul(Div, step)",
        "Cast = Cast(z, to=7)",
        "int16_table = Constant(int16 [1, 2])",
        "Gather = Gather(int16_table, Cast)",
        "int16_7 = Constant(int16 7)",
        "c = Mul(Gather, int16_7)",
    ]


def test_calls_and_attributes_of_nodes() -> None:
    @function("Toy", "y")
    def made(m: Int32, *, axes: Ints, shape: Ints) -> Value:
        log, greatest = call(integer.RANGE, m)
        (exponent,) = call(integer.GUARD, log, greatest, 7)
        return op("Transpose", op("Reshape", m >> exponent, shape), perm=axes)

    assert lines(made) == [
        "log, greatest = PowerOfTwoRange(m)",
        "int32_7 = Constant(int32 7)",
        "exponent = GuardExponent(log, greatest, int32_7)",
        "BitShift = BitShift(m, exponent, direction=RIGHT)",
        "shape = Constant(value_ints=@shape)",
        "Reshape = Reshape(BitShift, shape)",
        "y = Transpose(Reshape, perm=@axes)",
    ]


def test_roundings_of_a_body() -> None:
    @variants("Toy", "y")
    def every(rounding: str, m: Int32, *random: Int32) -> Value:
        return m + (random[0] if random else {"half_even": 1, "half_up": 2}[rounding])

    @variants("Toy", "y")
    def two(rounding: str, m: Int32) -> Value:
        return -m

    assert {r: (f.name, list(f.input)) for r, f in every.items()} == {
        "half_even": ("Toy", ["m"]),
        "half_up": ("ToyHalfUp", ["m"]),
        "stochastic": ("ToyStochastic", ["m", "random"]),
    }
    assert lines(every["half_up"]) == ["int32_2 = Constant(int32 2)", "y = Add(m, int32_2)"]
    assert list(two) == ["half_even", "half_up"]


def test_what_runs() -> None:
    """The identity of quantizers/integer.py, on onnxruntime: 7/2 and -5/2 to even, -3/2 and 6/4."""

    @function("Toy", "r")
    def made(m: Int32, d: Int32) -> Value:
        a = m + 100 * d
        return (a + a + (d - 1) + (a // d & 1)) // (d * 2) - 100

    (result,) = Kernel(call_model(made, (np.int32, np.int32)))([7, -5, -3, 6], [2, 2, 2, 4])
    assert result.tolist() == [4, -2, -2, 2]


def test_what_cannot_be_traced() -> None:
    def half(m: Int32) -> Value:
        return m * 0.5

    def of_any(m: Value) -> Value:
        return m + 1

    def chosen(m: Int32) -> Value:
        return m if m > 0 else -m

    def operand(m: Int32) -> Value:
        return m

    for body, error, message in (
        (half, TypeError, "0.5 meets a tensor of int32, which cannot hold it"),
        (of_any, TypeError, "1 meets a tensor of unknown dtype"),
        (chosen, TypeError, "choose with where"),
        (operand, ValueError, "Toy: each result needs a node of its own"),
    ):
        with pytest.raises(error, match=message):
            function("Toy", "y")(body)


FUNCTIONS = [
    made
    for module in (
        integer,
        floating,
        *(importlib.import_module(m.name) for m in pkgutil.walk_packages(cpu.__path__, f"{cpu.__name__}.")),
    )
    for found in vars(module).values()
    for made in (found.values() if isinstance(found, dict) else [found])
    if isinstance(made, onnx.FunctionProto)
]


def test_bodies_have_no_node_too_many() -> None:
    """Each result is read or given, each node reads what is there, and none is there twice."""
    assert len({(f.name, len(f.node)) for f in FUNCTIONS}) > 70
    for made in FUNCTIONS:
        known = set(made.input)
        for node in made.node:
            assert known.issuperset(node.input), (made.name, node.output)
            known.update(node.output)
        assert len(known) == len(made.input) + sum(len(n.output) for n in made.node), made.name
        read = {name for node in made.node for name in node.input} | set(made.output)
        assert all(read.intersection(node.output) for node in made.node), made.name
        nodes = [(n.op_type, *n.input, *(a.SerializeToString(deterministic=True) for a in n.attribute)) for n in made.node]
        assert len(set(nodes)) == len(nodes), made.name
