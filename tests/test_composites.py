"""Composites: one body a geometry, a name that is its digest, and the same numbers when their nodes take their place."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from networks import run_ort
from wageubn_onnx.composites import emit, expanded, kind_of, name_of
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model, Tensor, to_proto


def doubled(g: Model, of: list[Tensor]) -> list[Tensor]:
    return [g.op("Add", g.op("Mul", of[0], g.scalar(2.0), name="twice"), g.scalar(1.0), name="more")]


def model() -> onnx.ModelProto:
    """Two calls of one geometry, one of another."""
    g = Model.empty("fp_training", "calls")
    x, y = g.input("x", np.float32, [2, 3]), g.input("y", np.float32, [4])
    (first,) = emit(g, "Doubled", [x], doubled, name="first", times=2)
    (second,) = emit(g, "Doubled", [first], doubled, name="second", times=2)
    (third,) = emit(g, "Doubled", [y], doubled, name="third", times=2)
    return to_proto(g, {"a": second, "b": third})


def test_equal_operands_share_a_body_and_equal_bodies_a_name() -> None:
    made = model()
    called = {node.name: node.op_type for node in made.graph.node}
    first, second, third = called["first"], called["second"], called["third"]
    assert first == second and {kind_of(op) for op in (first, third)} == {"Doubled"}
    assert sorted(f.name for f in made.functions) == sorted({first, third})
    assert all(name_of(function) == function.name for function in made.functions)


def test_expanded_is_typed_and_gives_the_same_numbers() -> None:
    made = model()
    flat = expanded(made)
    assert [n.op_type for n in flat.graph.node] == ["Mul", "Add"] * 3 and not flat.functions
    assert {n.output[0] for n in flat.graph.node} <= {v.name for v in (*flat.graph.value_info, *flat.graph.output)}
    assert sorted(float(numpy_helper.to_array(t)) for t in flat.graph.initializer) == [1.0, 2.0]  # equal constants once
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.ones(4, np.float32)}
    before, after = run_ort(made, feeds), run_ort(flat, feeds)
    np.testing.assert_array_equal(before["a"], 4 * feeds["x"] + 3)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_a_kind_may_stay() -> None:
    made = model()
    kept = expanded(made, but=["Doubled"])
    assert [n.op_type for n in kept.graph.node] == [n.op_type for n in made.graph.node]


@pytest.mark.parametrize("name", ["DirectQuantize", "Gelu_function", "Doubled_", "Doubled_12", "_1234567"])
def test_what_is_no_composite(name: str) -> None:
    assert kind_of(name) == ""


def test_a_body_reads_nothing_but_its_operands() -> None:
    g = Model.empty("fp_training", "calls")
    x, y = g.input("x", np.float32, [2]), g.input("y", np.float32, [2])
    with pytest.raises(WageubnError, match="composite Sum reads 'y', which is none of its operands"):
        emit(g, "Sum", [x], lambda b, of: [b.op("Add", of[0], y)])


def test_another_body_has_another_name() -> None:
    made = model()
    function = made.functions[0]
    node = next(n for n in function.node if n.op_type == "Add")
    node.CopyFrom(helper.make_node("Sub", list(node.input), list(node.output), node.name))
    assert name_of(function) != function.name
