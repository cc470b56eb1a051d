"""One thing changed at random is what a diff says, no less and no more; other names and another order are no difference."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.mutations import (
    copy,
    renamed,
    reordered,
    with_one_attribute,
    with_one_node,
    with_one_weight,
)
from networks import TOPOLOGIES, tiny
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.graphdiff import ModelDiff, diff

SEEDS = range(6)
STAGES = ("forward", "fp_training", "quant_training", "int_training", "quant_eval", "int_eval")


def disguised(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    return reordered(renamed(model, draw, ends=True), draw)


def facts(found: ModelDiff) -> tuple[list[str], list[str], list[tuple[str, str, str]]]:
    """Nodes of one side only, and differences; operands that lead to such nodes, and what is named in them, left out."""
    return (
        [n.name for n in found.only_a],
        [n.name for n in found.only_b],
        [(d.kind, d.where, d.what) for d in found.differences if d.kind != "operand"],
    )


@pytest.mark.parametrize("network", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_disguised_networks_are_the_same(network: Callable[[], onnx.ModelProto]) -> None:
    for seed in SEEDS:
        found = diff(network(), disguised(network(), random.Random(seed)))
        assert found.same, facts(found)
        assert len(found.pairs) == found.a.nodes == found.b.nodes


@pytest.mark.parametrize("stage", STAGES)
def test_disguised_stages_are_the_same(stage: str, tiny_artifacts: Artifacts) -> None:
    model = tiny_artifacts.files[stage]
    for seed in range(2):
        found = diff(model, disguised(model, random.Random(seed)))
        assert found.same, facts(found)
        assert all(path.change == "same" for path in found.paths)
        assert sum(path.kept for path in found.paths) == len(model.graph.node)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_weight(seed: int) -> None:
    draw = random.Random(seed)
    made, name, greatest = with_one_weight(tiny(), draw)
    found = diff(tiny(), disguised(made, draw))
    assert facts(found)[:2] == ([], []) and len(found.differences) == 1
    (difference,) = found.differences
    assert (difference.kind, difference.where) == ("initializer", name)
    assert difference.values.differing == 1 and difference.values.greatest == pytest.approx(greatest, rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_weight(seed: int) -> None:
    """A network that was trained on: all nodes have counterparts, and each tensor is listed once."""
    draw, made = random.Random(seed), tiny()
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5) + np.float32(1), tensor.name))
    found = diff(tiny(), disguised(made, draw))
    assert len(found.pairs) == found.a.nodes == found.b.nodes
    assert sorted(d.where for d in found.differences) == sorted(t.name for t in tiny().graph.initializer)
    assert {d.kind for d in found.differences} == {"initializer"}


@pytest.mark.parametrize("seed", SEEDS)
def test_one_attribute(seed: int) -> None:
    draw = random.Random(seed)
    made, node, name = with_one_attribute(tiny(), draw)
    found = diff(tiny(), disguised(made, draw))
    assert facts(found) == ([], [], [("attribute", node, name)])
    assert found.differences[0].b.startswith("0.0099") or found.differences[0].b.startswith("0.01")


@pytest.mark.parametrize("seed", SEEDS)
def test_one_node(seed: int) -> None:
    draw = random.Random(seed)
    made, name = with_one_node(tiny(), draw)
    for a, b, only in ((tiny(), made, "only_b"), (made, tiny(), "only_a")):
        found = diff(a, reordered(b, draw))
        other = "only_a" if only == "only_b" else "only_b"
        assert [n.name for n in getattr(found, only)] == [name] and not getattr(found, other)
        ends = {(d.a, d.b) for d in found.differences}
        assert {d.kind for d in found.differences} == {"operand"}
        assert ends == {(name.removesuffix(".more"), name) if only == "only_b" else (name, name.removesuffix(".more"))}


@pytest.mark.parametrize("seed", SEEDS)
def test_one_node_of_other_names(seed: int) -> None:
    draw = random.Random(seed)
    found = diff(tiny(), disguised(with_one_node(tiny(), draw)[0], draw))
    assert not found.only_a and [n.op for n in found.only_b] == ["Neg"]
    assert {d.kind for d in found.differences} == {"operand"}


@pytest.mark.parametrize("seed", SEEDS)
def test_another_operator_in_place(seed: int) -> None:
    draw, made = random.Random(seed), tiny()
    node = draw.choice([n for n in made.graph.node if n.op_type == "Relu"])
    node.op_type = "Sigmoid"
    found = diff(tiny(), disguised(made, draw))
    assert facts(found) == ([], [], [("op", node.name, "")])
    assert (found.differences[0].a, found.differences[0].b) == ("Relu", "Sigmoid")


@pytest.mark.parametrize("seed", SEEDS)
def test_one_dtype(seed: int) -> None:
    draw, made = random.Random(seed), tiny()
    tensor = draw.choice(made.graph.initializer)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    (difference,) = diff(tiny(), disguised(made, draw)).differences
    assert (difference.kind, difference.where) == ("initializer", tensor.name)
    assert difference.a.startswith("float32 [") and difference.b == difference.a.replace("float32", "float16")


@pytest.mark.parametrize("seed", SEEDS)
def test_two_operands_swapped(seed: int) -> None:
    """Positions count; the node keeps its counterpart."""
    draw, made = random.Random(seed), tiny()
    node = draw.choice([n for n in made.graph.node if n.op_type == "Add"])
    node.input[:] = reversed(node.input)
    found = diff(tiny(), disguised(made, draw))
    assert not found.only_a and not found.only_b
    assert [(d.kind, d.where, d.what) for d in found.differences] == [("operand", node.name, f"operand {i}") for i in (0, 1)]


@pytest.mark.parametrize("stage", ["quant_training", "int_training"])
@pytest.mark.parametrize("seed", range(3))
def test_one_quantizer(stage: str, seed: int, tiny_artifacts: Artifacts) -> None:
    """Of our own stages: one quantizer's exponent, named with its layer and data path."""
    draw, made = random.Random(seed), copy(tiny_artifacts.files[stage])
    node = draw.choice([n for n in made.graph.node if any(a.name == "exponent" for a in n.attribute)])
    next(a for a in node.attribute if a.name == "exponent").i -= 1
    found = diff(tiny_artifacts.files[stage], disguised(made, draw))
    assert facts(found) == ([], [], [("attribute", node.name, "exponent")])
    (difference,) = found.differences
    (path,) = [p for p in found.paths if p.change != "same"]
    assert (path.layer, path.path, path.change) == (difference.layer, difference.path, "changed")
    assert difference.path == next(a.s.decode() for a in node.attribute if a.name == "role")
