"""What counts as a difference and what does not, one case each, on small graphs in ONNX's textual form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from networks import tiny
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graphdiff import diff
from wageubn_onnx.graphdiff.compare import value_difference

HEAD = '<ir_version: 9, opset_import: ["" : 18]>\n'
PLAIN = "agraph (float[N] x) => (float[N] y) <float[1] w = {2.0}> { t = Mul(x, w)  y = Relu(t) }"


def graph(text: str, head: str = HEAD) -> onnx.ModelProto:
    return onnx.parser.parse_model(head + text)


def kinds(a: str | onnx.ModelProto, b: str | onnx.ModelProto) -> list[tuple[str, str, str | None, str | None]]:
    found = diff(*(graph(m) if isinstance(m, str) else m for m in (a, b)))
    assert not found.only_a and not found.only_b
    return [(d.kind, d.what, d.a, d.b) for d in found.differences]


@pytest.mark.parametrize(
    "other",
    [
        "g (float[B] in) => (float[B] out) <float[1] k = {2.0}> { u = Mul(in, k)  out = Relu(u) }",
        "agraph (float[N] x) => (float[N] y) { w = Constant<value = float[1] {2.0}>()  t = Mul(x, w)  y = Relu(t) }",
        "agraph (float[N] x) => (float[N] y) { w = Constant<value_floats = [2.0]>()  t = Mul(x, w)  y = Relu(t) }",
        "agraph (float[N] x) => (float[N] y) <float[N] t, float[1] w = {2.0}> { t = Mul(x, w)  y = Relu(t) }",
    ],
    ids=["renamed", "constant node", "constant of floats", "declared inside"],
)
def test_other_spellings_are_the_same(other: str) -> None:
    assert diff(graph(PLAIN), graph(other)).same


@pytest.mark.parametrize(
    "a, b",
    [
        ("y = LeakyRelu(x)", "y = LeakyRelu<alpha = 0.01>(x)"),
        ("y = Clip(x)", "y = Clip(x, , )"),
    ],
    ids=["default attribute", "empty operands"],
)
def test_what_may_be_left_out(a: str, b: str) -> None:
    frame = "agraph (float[N] x) => (float[N] y) { %s }"
    assert diff(graph(frame % a), graph(frame % b)).same


def test_windows_have_what_they_are_not_told() -> None:
    """Exporters write out strides, dilations and pads, or not; where they are not 1, 1 and 0, they count."""
    frame = "agraph (float[1,1,4,4] x) => (float[1,1,?,?] y) { y = MaxPool%s(x) }"
    bare, told = "<kernel_shape = [2,2]>", "<kernel_shape = [2,2], strides = [1,1], dilations = [1,1], pads = [0,0,0,0]>"
    assert diff(graph(frame % bare), graph(frame % told)).same
    padded = told.replace("pads = [0,0,0,0]", "pads = [1,0,1,0]")
    found = diff(graph(frame % bare), graph(frame % padded))
    assert [d.what for d in found.differences if d.kind == "attribute"] == ["pads"]


def test_one_initializer_or_two_of_the_same_values() -> None:
    shared = "agraph (float[2] x) => (float[2] y) <float[1] w = {2.0}> { t = Mul(x, w)  y = Add(t, w) }"
    apart = "agraph (float[2] x) => (float[2] y) <float[1] w = {2.0}, float[1] v = {2.0}> { t = Mul(x, w)  y = Add(t, v) }"
    changed = apart.replace("v = {2.0}", "v = {2.5}")
    assert diff(graph(shared), graph(apart)).same
    (difference,) = diff(graph(shared), graph(changed)).differences
    assert (difference.kind, difference.where, difference.counterpart) == ("initializer", "w", "v")
    assert (difference.a, difference.b, difference.values.greatest) == ("[2.0]", "[2.5]", 0.5)


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("Relu(t)", "Neg(t)", [("op", "", "Relu", "Neg")]),
        ("=> (float[N] y)", "=> (double[N] y)", [("type", "", "float32 [N]", "float64 [N]")]),
        ("(float[N] x)", "(float[5] x)", [("type", "", "float32 [N]", "float32 [5]")]),
        ("Mul(x, w)", "Mul(w, x)", [("operand", "operand 0", "x", "constant w float32 [1]")]),
        ("float[1] w = {2.0}", "float[1] w = {2.0}, int64[2] v = {3, 4}", [("spare", "read by no node", None, "int64 [2]")]),
    ],
)
def test_each_kind_is_named(old: str, new: str, expected: list[tuple[str, str, str | None, str | None]]) -> None:
    assert kinds(PLAIN, PLAIN.replace(old, new))[: len(expected)] == expected


def test_what_a_file_says_of_itself() -> None:
    model = graph(PLAIN, '<ir_version: 8, opset_import: ["" : 17, "my" : 1], metadata_props: ["author": "me"]>\n')
    assert kinds(PLAIN, model) == [
        ("ir_version", "", "9", "8"),
        ("opset", "", "18", "17"),
        ("opset", "", None, "1"),
        ("metadata", "", None, "me"),
    ]


def test_the_producer_is_a_note() -> None:
    model = graph(PLAIN)
    model.producer_name = "someone"
    found = diff(graph(PLAIN), model)
    assert found.same and found.notes == ("written by nobody and by someone",)


def test_dimensions_have_names_too_the_same_ones_everywhere() -> None:
    a = "agraph (float[N] x, float[N] z) => (float[N] y) { y = Add(x, z) }"
    assert diff(graph(a), graph(a.replace("[N]", "[B]"))).same
    assert kinds(a, a.replace("[N] z", "[M] z")) == [("type", "", "float32 [N]", "float32 [M]")]


# -- inputs and outputs ---------------------------------------------------------------------------------------------------

TWO = "agraph (float[1] p, float[1] q) => (float[1] y) { y = Sub(p, q) }"


def test_inputs_are_known_by_name_or_by_place() -> None:
    renamed = diff(graph(TWO), graph("agraph (float[1] r, float[1] q) => (float[1] y) { y = Sub(r, q) }"))
    assert renamed.same and "1 input named differently" in renamed.notes
    moved = diff(graph(TWO), graph(TWO.replace("float[1] p, float[1] q", "float[1] q, float[1] p")))
    assert moved.same and moved.notes == ("inputs in another order",)


def test_swapped_names_are_no_renaming() -> None:
    """A caller who gives p and q by name would get another result."""
    assert {k for k, *_ in kinds(TWO, TWO.replace("Sub(p, q)", "Sub(q, p)"))} == {"operand"}


def test_an_input_that_is_renamed_and_moved() -> None:
    (difference,) = diff(
        graph(TWO), graph(TWO.replace("float[1] p, float[1] q", "float[1] q, float[1] r").replace("p,", "r,"))
    ).differences
    assert (difference.kind, difference.a, difference.b) == ("input", "p, at place 0", "r, at place 1")


def test_more_inputs_and_outputs() -> None:
    more = "agraph (float[1] p, float[1] q, int32[3] r) => (float[1] y, float[1] z) { y = Sub(p, q)  z = Identity(y) }"
    found = diff(graph(TWO), graph(more))
    assert [(d.kind, d.counterpart, d.b) for d in found.differences] == [
        ("input", "r", "int32 [3]"),
        ("output", "z", "float32 [1]"),
    ]
    assert [n.op for n in found.only_b] == ["Identity"]


def test_parameters_as_inputs_as_old_files_have_them() -> None:
    """A default that callers may override is one difference; its value is compared with the constant in the other file."""
    listed = graph(PLAIN)
    listed.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    assert kinds(PLAIN, listed) == [("input", "", None, "float32 [1], with a default")]
    assert diff(listed, listed).same
    other = onnx.ModelProto()
    other.CopyFrom(listed)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([3], np.float32), "w"))
    assert kinds(listed, other) == [("initializer", "w", "[2.0]", "[3.0]")]
    assert [k for k, *_ in kinds(PLAIN, other)] == ["input", "initializer"]


# -- identical branches ---------------------------------------------------------------------------------------------------


def test_identical_branches_with_crossed_outputs() -> None:
    """Duplicates of one node are told apart by where they lead, and only there."""
    frame = "agraph (float[1] x) => (float[1] %s, float[1] %s) { %s }"
    a = frame % ("p", "q", "s = Relu(x)  t = Relu(x)  u = Neg(s)  v = Neg(t)  p = Exp(u)  q = Exp(v)")
    b = frame % ("m", "n", "t = Relu(x)  s = Relu(x)  v = Neg(t)  u = Neg(s)  n = Exp(v)  m = Exp(u)")
    found = diff(graph(a), graph(b))
    assert found.same and len(found.pairs) == 6


def test_a_duplicate_is_more() -> None:
    once = "agraph (float[1] x) => (float[1] p, float[1] q) { s = Relu(x)  p = Neg(s)  q = Exp(s) }"
    twice = "agraph (float[1] x) => (float[1] p, float[1] q) { s = Relu(x)  t = Relu(x)  p = Neg(s)  q = Exp(t) }"
    found = diff(graph(once), graph(twice))
    assert not found.same and [n.op for n in found.only_b] == ["Relu"]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_ring_that_colours_alone_cannot_tell_from_two(width: int) -> None:
    """y[i] = Add(x[i], x[i+1]) in one ring of 6, and in two of 3: every colour is the same, and the verdict is not."""

    def ring(*sizes: int) -> onnx.ModelProto:
        inputs, outputs, nodes, start = [], [], [], 0
        for size in sizes:
            for i in range(size):
                nodes.append(helper.make_node("Add", [f"x{start + i}", f"x{start + (i + 1) % size}"], [f"y{start + i}"]))
            start += size
        for i in range(start):
            nodes.append(helper.make_node("Sum", [f"y{i}"] * width, [f"z{i}"]))
            inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [1]))
        nodes.append(helper.make_node("Max", [f"z{i}" for i in range(start)], ["out"]))
        outputs.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, [1]))
        return helper.make_model(helper.make_graph(nodes, "ring", inputs, outputs), opset_imports=[helper.make_opsetid("", 18)])

    other = ring(3, 3)
    for i, value in enumerate(other.graph.input):  # no names to go by
        for node in other.graph.node:
            node.input[:] = [f"in{i}" if name == value.name else name for name in node.input]
        value.name = f"in{i}"
    assert diff(ring(6), ring(6)).same
    assert not diff(ring(6), other).same


# -- graphs inside nodes, functions ---------------------------------------------------------------------------------------

LOOP = """agraph (int64 n, bool go, float[2] x) => (float[2] y, float[K, 2] all) <float[2] w = {2.0, 3.0}> {
    k = Relu(x)
    y, all = Loop<body = inner (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] u) {
        d = Identity(c)  r = Mul(s, w)  t = Add(r, k)  u = Neg(t) }>(n, go, x)
}"""
BRANCH = """agraph (bool c, float[2] x) => (float[2] y) {
    y = If<then_branch = g () => (float[2] a) { a = Relu(x) }, else_branch = h () => (float[2] b) { b = Neg(x) }>(c)
}"""


def test_graphs_inside_nodes() -> None:
    names = {"k": "k2", "inner": "body2", "i": "i2", "s": "s2", "r": "r2", "t": "t2", "w": "w2"}
    other = graph(LOOP)
    for nodes in (other.graph.node, other.graph.node[1].attribute[0].g.node):
        for node in nodes:
            node.input[:] = [names.get(n, n) for n in node.input]
            node.output[:] = [names.get(n, n) for n in node.output]
    inner = other.graph.node[1].attribute[0].g
    for value in (*inner.input, *inner.output, *other.graph.initializer):
        value.name = names.get(value.name, value.name)
    assert diff(graph(LOOP), other).same


@pytest.mark.parametrize(
    "text, old, new, kind",
    [
        (LOOP, "Add(r, k)", "Add(k, r)", "operand"),
        (LOOP, "Neg(t)", "Abs(t)", "op"),
        (LOOP, "{2.0, 3.0}", "{2.0, 3.5}", "initializer"),
        (LOOP, "=> (bool d, float[2] t, float[2] u)", "=> (bool d, float[2] u, float[2] t)", "operand"),
        (BRANCH, "Relu(x)", "Abs(x)", "op"),
    ],
)
def test_differences_inside_them(text: str, old: str, new: str, kind: str) -> None:
    assert kind in [k for k, *_ in kinds(text, text.replace(old, new))]


def test_types_that_are_no_tensors() -> None:
    text = "agraph (seq(float[N]) s, int64 i) => (float[N] y) { y = SequenceAt(s, i) }"
    assert diff(graph(text), graph(text)).same
    assert [k for k, *_ in kinds(text, text.replace("seq(float[N])", "seq(double[N])"))] == ["type"]


def test_exchanged_branches() -> None:
    found = diff(
        graph(BRANCH), graph(BRANCH.replace("then_branch", "X").replace("else_branch", "then_branch").replace("X", "else_branch"))
    )
    assert not found.same


FUNCTION = """<ir_version: 9, opset_import: ["" : 18, "my" : 1]>
agraph (float[N] x) => (float[N] y) { y = my.f<scale = 2.0>(x) }
<domain: "my", opset_import: ["" : 18]>
f <scale> (a) => (c) { k = Constant<value_float: float = @scale>()  b = Mul(a, k)  c = Relu(b) }
"""


def test_functions() -> None:
    assert diff(graph(FUNCTION, ""), graph(FUNCTION.replace("(a)", "(e)").replace("Mul(a", "Mul(e"), "")).same
    assert kinds(graph(FUNCTION, ""), graph(FUNCTION.replace("scale = 2.0", "scale = 3.0"), "")) == [
        ("attribute", "scale", "2.0", "3.0")
    ]
    found = diff(graph(FUNCTION, ""), graph(FUNCTION.replace("Relu(b)", "Neg(b)"), ""))
    assert [(d.kind, d.where, d.a, d.b) for d in found.differences] == [("function", "my:f", "Relu", "Neg")]
    found = diff(graph(FUNCTION, ""), graph(FUNCTION.replace("f <scale> (a)", "f <scale> (a, z)"), ""))
    assert [d.kind for d in found.differences] == ["function"]
    lost = graph(FUNCTION, "")
    del lost.functions[:]
    assert [(d.kind, d.where, d.counterpart) for d in diff(graph(FUNCTION, ""), lost).differences] == [("function", "my:f", "")]


# -- values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x, y, differing, greatest",
    [
        (np.float32([1, 2, 3]), np.float32([1, 2.5, 1]), 2, 2.0),
        (np.float32([np.nan, 0.0]), np.float32([np.nan, -0.0]), 1, 0.0),
        (np.float32([np.inf, 1]), np.float32([1, 1]), 1, 0.0),
        (np.int64([2**62]), np.int64([-(2**62)]), 1, 2.0**63),
        (np.uint8([0]), np.uint8([255]), 1, 255.0),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 1, None),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float64), 0, None),
    ],
)
def test_value_difference(x: np.ndarray, y: np.ndarray, differing: int, greatest: float | None) -> None:
    values = value_difference(x, y)
    assert (values.elements, values.differing, values.greatest) == (x.size, differing, greatest)


def test_value_difference_of_other_shapes() -> None:
    assert value_difference(np.zeros(2), np.zeros((1, 2))) is None


def test_data_in_another_file_is_the_same(tmp_path: Path) -> None:
    onnx.save(tiny(), tmp_path / "one.onnx")
    onnx.save(tiny(), tmp_path / "two.onnx", save_as_external_data=True, size_threshold=0, location="two.data")
    assert diff(tmp_path / "one.onnx", tmp_path / "two.onnx").same
    unread = onnx.load(tmp_path / "two.onnx", load_external_data=False)
    with pytest.raises(WageubnError, match="its data lies in another file"):
        diff(unread, unread)


# -- what cannot be compared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("agraph (float[1] x) => (float[1] y) { y = Relu(z) }", "node 'y': reads 'z', which nothing makes"),
        ("agraph (float[1] x) => (float[1] y) { y = Relu(x)  y = Neg(x) }", "tensor 'y' is defined twice"),
        ("agraph (float[1] x) => (float[1] y) { a = Relu(b)  b = Relu(a)  y = Add(a, x) }", "waits for its own result"),
        ("agraph (float[1] x) => (float[1] y) { t = Relu(x) }", "its output: reads 'y', which nothing makes"),
    ],
)
def test_refusals_name_node_and_tensor(text: str, message: str) -> None:
    with pytest.raises(WageubnError, match=message) as caught:
        diff(graph(text), graph(PLAIN))
    assert "\n" not in str(caught.value)
