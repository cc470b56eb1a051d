"""The inliner: the same bits, names after the call, the call's metadata, and what functions may be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from networks import BATCH, MEAN, STD, TOPOLOGIES, images, labels, run_ort
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, node_tag
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import load_profile

Array = np.ndarray[Any, Any]


def model(text: str) -> onnx.ModelProto:
    made = onnx.parser.parse_model(text)
    onnx.checker.check_model(made)
    return made


def same(one: onnx.ModelProto, other: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """Equal outputs from onnxruntime, and equal to onnx's evaluator's of ``one``."""
    expected = run_ort(one, feeds)
    reference = dict(zip(expected, ReferenceEvaluator(one).run(list(expected), feeds), strict=True))
    for results in (run_ort(other, feeds), run_ort(other, feeds, optimize=False), reference):
        assert {name: value.tobytes() for name, value in results.items()} == {n: v.tobytes() for n, v in expected.items()}
    flat = ReferenceEvaluator(other).run(list(expected), feeds)
    assert all(np.array_equal(value, expected[name]) for name, value in zip(expected, flat, strict=True))


# -- our stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("topology", "profile"), [(t, "full8") for t in TOPOLOGIES] + [("tiny", "sq8s"), ("tiny", "fast")])
def test_the_integer_step(topology: str, profile: str, tmp_path: Path) -> None:
    """The same bits; every node named after its call, with its provenance; the nodes that onnx's inliner makes, in its order."""
    onnx.save(TOPOLOGIES[topology](), tmp_path / "net.onnx")
    config = Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True, profile=load_profile(profile))
    artifacts = convert(tmp_path / "net.onnx", config)
    step = artifacts.files["int_training"]
    flat = inline(step)
    onnx.checker.check_model(flat, full_check=True)
    assert not flat.functions and {o.domain for o in flat.opset_import} == {""}
    theirs = onnx.inliner.inline_local_functions(step)
    assert [n.op_type for n in flat.graph.node] == [n.op_type for n in theirs.graph.node]
    calls = {n.name: n for n in step.graph.node}
    names = [n.name for n in flat.graph.node]
    assert len(set(names)) == len(names)
    for node in flat.graph.node:
        call = calls.get(node.name) or next(calls[p] for p in prefixes(node.name) if p in calls)
        assert node_tag(node) == node_tag(call) and node_tag(node).role
        assert node.name in calls or call.domain == DOMAIN
    scalars = {"lr": 5, "gradient_range": 128, "seed": 3}
    feeds = {i.name: artifacts.state[i.name] for i in step.graph.input if i.name in artifacts.state}
    feeds |= {name: np.array(value, np.int32) for name, value in scalars.items()}
    same(step, flat, feeds | {"images": images(), "labels": labels()})


def prefixes(name: str) -> list[str]:
    """``a/b`` and ``a`` of ``a/b/c``, the longest first."""
    parts = name.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


# -- what functions may be ------------------------------------------------------------------------------------------------

HEAD = '<ir_version: 9, opset_import: ["" : 18, "d" : 1]>\n'


def test_functions_that_call_functions_with_attributes_passed_on() -> None:
    """References, also to a default; the names are nested."""
    nested = model(
        HEAD
        + """
        g (float[3] x) => (float[3] y) { [outer] y = d.twice <factor: float = 3.0> (x) }
        <domain: "d", opset_import: ["" : 18]>
        scaled <by: float = 2.0> (a) => (b) { k = Constant <value_float: float = @by> () [product] b = Mul (a, k) }
        <domain: "d", opset_import: ["" : 18, "d" : 1]>
        twice <factor> (a) => (c) { [first] b = d.scaled <by: float = @factor> (a) [second] c = d.scaled (b) }
        """
    )
    nested.graph.node[0].metadata_props.add(key="wageubn.layer", value="l")
    flat = inline(nested)
    assert [n.name for n in flat.graph.node] == ["outer/first/k", "outer/first/product", "outer/second/k", "outer/second/product"]
    assert [list(n.output) for n in flat.graph.node] == [["outer/first/k"], ["outer/b"], ["outer/second/k"], ["y"]]
    assert {node_tag(n).layer for n in flat.graph.node} == {"l"}
    for each in (nested, flat):  # onnx's evaluator knows no default of a reference in a nested function
        assert run_ort(each, {"x": np.ones(3, np.float32)})["y"].tolist() == [6, 6, 6]


def test_operands_and_results_that_are_left_out() -> None:
    """An optional input that the call does not give, an output that it does not take, an output that is an input."""
    made = model(
        HEAD
        + """
        g (float[3] x) => (float[3] y, float[3] same)
        { y, , same = d.f (x) }
        <domain: "d", opset_import: ["" : 18]>
        f (a, low) => (b, unread, a) { b = Clip (a, low) unread = Neg (b) }
        """
    )
    flat = inline(made)
    assert [(n.op_type, list(n.input), list(n.output)) for n in flat.graph.node] == [
        ("Clip", ["x", ""], ["y"]),
        ("Neg", ["y"], ["y/unread"]),
        ("Identity", ["x"], ["same"]),
    ]
    results = run_ort(flat, {"x": np.array([-1, 0, 1], np.float32)})
    assert results["y"].tolist() == results["same"].tolist() == [-1, 0, 1]


def test_names_that_are_taken() -> None:
    """Two calls of one name, and a tensor that is called as an inner one would be."""
    made = model(
        HEAD
        + """
        g (float[3] x) => (float[3] y)
        { [call] z = d.f (x) [call] v = d.f (z) [stays] taken = Neg (v) y = Neg (taken) }
        <domain: "d", opset_import: ["" : 18]>
        f (a) => (c) { b = Neg (a) c = Exp (b) }
        """
    )
    for node in made.graph.node:
        for names in (node.input, node.output):
            names[:] = ["call/b" if name == "taken" else name for name in names]
    made.graph.node[2].name = "call/c"
    flat = inline(made)
    outputs, nodes = [name for n in flat.graph.node for name in n.output], [n.name for n in flat.graph.node]
    assert outputs == ["call/b.2", "z", "call.2/b", "v", "call/b", "y"]
    assert nodes == ["call/b", "call/c.2", "call.2/b", "call.2/c", "call/c", ""]
    x = np.array([0.5, 1, 2], np.float32)
    assert run_ort(flat, {"x": x})["y"] == pytest.approx(np.exp(-np.exp(-x)))


def test_subgraphs() -> None:
    """A function whose body branches and reads its own tensors there, called from within a branch of the graph."""
    made = model(
        HEAD
        + """
        g (float[3] x, bool choice) => (float[3] y)
        {
          y = If (choice) <then_branch = yes () => (float[3] s) { [call] s = d.f (x) },
                           else_branch = no () => (float[3] t) { t = Identity (x) }>
        }
        <domain: "d", opset_import: ["" : 18]>
        f (a) => (c)
        {
          b = Neg (a)
          total = ReduceSum <keepdims = 0> (a)
          zero = Constant <value_float: float = 0.0> ()
          positive = Greater (total, zero)
          c = If (positive) <then_branch = up () => (u) { u = Abs (b) }, else_branch = down () => (w) { w = Identity (b) }>
        }
        """
    )
    flat = inline(made)
    assert not flat.functions
    for choice in (True, False):
        for sign in (1, -1):
            same(made, flat, {"x": sign * np.array([1, 2, 3], np.float32), "choice": np.array(choice)})


def test_what_cannot_be_inlined_is_refused() -> None:
    loop = onnx.parser.parse_model(
        HEAD
        + """
        g (float[3] x) => (float[3] y) { y = d.f (x) }
        <domain: "d", opset_import: ["" : 18, "d" : 1]>
        f (a) => (b) { [again] b = d.f (a) }
        """
    )
    with pytest.raises(WageubnError, match=r"node 'y/again': function f calls itself"):
        inline(loop)
    older = onnx.parser.parse_model(
        HEAD
        + """
        g (float[3] x) => (float[3] y) { y = d.f (x) }
        <domain: "d", opset_import: ["" : 12]>
        f (a) => (b) { b = Neg (a) }
        """
    )
    with pytest.raises(WageubnError, match="function f: written for opset 12 of 'ai.onnx', its model for 18"):
        inline(older)


def test_a_model_without_functions_stays_as_it_is() -> None:
    plain = TOPOLOGIES["tiny"]()
    assert inline(plain) == plain


def test_the_time_is_linear() -> None:
    """8 times the calls take less than 24 times the time: quadratic would be 64."""

    def seconds(calls: int) -> float:
        lines = "".join(f"[n{i}] t{i + 1} = d.f (t{i})\n" for i in range(calls))
        text = f"{HEAD} g (float[3] t0) => (float[3] t{calls}) {{ {lines} }}\n"
        body = '<domain: "d", opset_import: ["" : 18]>\nf (a) => (c) { b = Neg (a) c = Abs (b) }'
        made = onnx.parser.parse_model(text + body)
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            inline(made)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(8000) < 24 * seconds(1000)
