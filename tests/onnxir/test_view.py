"""What a view says of a graph and of the branches of an If in it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from wageubn_onnx.onnxir.view import View, branches, captured, constant_value


def value(name: str, dtype: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


@pytest.fixture
def graph() -> onnx.GraphProto:
    """y = x + a, chosen by ``flag`` to be turned around by a sum with the branch's own constant."""
    then = helper.make_graph(
        [helper.make_node("Add", ["sum", "own"], ["raised"], "raise")],
        "then",
        [],
        [value("raised", T.INT32, 2, 3)],
        [numpy_helper.from_array(np.array([7], np.int32), "own")],
    )
    other = helper.make_graph([helper.make_node("Identity", ["sum"], ["same"])], "else", [], [value("same", T.INT32, 2, 3)])
    nodes = [
        helper.make_node("Add", ["x", "a"], ["sum"], "add"),
        helper.make_node("Mul", ["sum", "sum"], ["square"], "square"),
        helper.make_node("If", ["flag"], ["y"], "choice", then_branch=then, else_branch=other),
    ]
    return helper.make_graph(
        nodes,
        "graph",
        [value("x", T.INT32, "N", 3), value("flag", T.BOOL)],
        [value("y", T.INT32, "N", 3), value("square", T.INT32)],
        [numpy_helper.from_array(np.arange(3, dtype=np.int32), "a")],
        value_info=[helper.make_tensor_value_info("sum", T.INT32, None)],
    )


def test_makers_and_readers(graph: onnx.GraphProto) -> None:
    view = View(graph)
    add = view.maker("sum", "Add")
    assert add is not None and add.name == "add"
    assert view.maker("sum", "Mul", "If") is None and view.maker("x") is None
    assert [node.name for node in view.readers["sum"]] == ["square", "square"]  # what branches read is captured
    assert "y" not in view.readers


def test_values_and_types(graph: onnx.GraphProto) -> None:
    view = View(graph)
    found = view.constant("a")
    assert found is not None and found.tolist() == [0, 1, 2] and view.constant("x") is None
    assert view.scalar("a") is None
    assert (view.dtype("a"), view.shape("a"), view.sizes("a")) == (T.INT32, [3], [3])
    assert (view.dtype("x"), view.shape("x"), view.sizes("x")) == (T.INT32, [0, 3], ["N", 3])
    assert (view.dtype("nothing"), view.shape("nothing"), view.sizes("nothing")) == (T.UNDEFINED, [], [])
    assert [view.is_typed(name) for name in ("a", "x", "flag", "sum", "nothing")] == [True, True, True, False, False]


def test_a_branch_sees_what_is_around_it(graph: onnx.GraphProto) -> None:
    around = View(graph)
    other, then = (View(branch, around) for branch in branches(graph.node[2]))
    assert [then.scalar("own"), other.scalar("own"), around.scalar("own")] == [7, None, None]
    assert then.sizes("x") == ["N", 3] and then.shape("raised") == [2, 3] and around.shape("raised") == []
    maker = then.maker("sum")
    assert maker is not None and maker.name == "add" and around.maker("raised") is None
    assert branches(graph.node[0]) == [] and captured(graph.node) == {"sum"}


def test_a_branch_comes_first(graph: onnx.GraphProto) -> None:
    _, then = branches(graph.node[2])
    then.initializer.append(numpy_helper.from_array(np.array(9, np.int8), "a"))
    assert View(then, View(graph)).scalar("a") == 9 and View(then, View(graph)).dtype("a") == T.INT8


def test_short_forms_of_constants() -> None:
    assert constant_value(helper.make_attribute("value_ints", [2, 3])).tolist() == [2, 3]
    made = numpy_helper.from_array(np.array([1.5], np.float32))
    assert constant_value(helper.make_attribute("value", made)).dtype == np.float32
