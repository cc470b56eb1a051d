"""The graph as passes use it: sorting, what is found by role."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model, sort, to_proto


def shuffled(seed: int) -> gs.Graph:
    """50 nodes, each of which reads one or two others or the input, in a random order; the last two results are the outputs."""
    random = np.random.default_rng(seed)
    tensors = [gs.Variable("x", np.float32, [2])]
    graph = gs.Graph(inputs=tensors[:1], opset=18)
    for i in range(50):
        read = [tensors[j] for j in random.integers(0, len(tensors), random.integers(1, 3))]
        tensors.append(gs.Variable(f"t{i}", np.float32, [2]))
        graph.nodes.append(gs.Node("Add" if len(read) > 1 else "Relu", f"n{i}", inputs=read, outputs=[tensors[-1]]))
    graph.nodes = [graph.nodes[i] for i in random.permutation(50)]
    graph.outputs = tensors[-2:]
    return graph


@pytest.mark.parametrize("seed", range(5))
def test_sort_is_graphsurgeons(seed: int) -> None:
    """The same nodes in the same order, and what is removed is unlinked."""
    ours, theirs = shuffled(seed), shuffled(seed).cleanup().toposort()
    sort(ours, ours.outputs)
    assert [n.name for n in ours.nodes] == [n.name for n in theirs.nodes]
    assert len(ours.nodes) < 50
    names = {n.name for n in ours.nodes}
    assert {user.name for tensor in ours.tensors().values() for user in tensor.outputs} <= names
    ours, theirs = shuffled(seed), shuffled(seed).toposort()
    sort(ours)
    assert [n.name for n in ours.nodes] == [n.name for n in theirs.nodes]


def test_a_node_that_waits_for_itself_is_refused() -> None:
    graph = shuffled(0)
    first, last = (next(n for n in graph.nodes if n.name == name) for name in ("n0", "n49"))
    first.inputs[0] = last.outputs[0]
    while last.inputs:
        last.inputs.pop()
    last.inputs.append(first.outputs[0])
    with pytest.raises(WageubnError, match="waits for its own result"):
        sort(graph, graph.outputs)


def test_tensors_are_found_by_role_and_layer() -> None:
    model = Model.empty("fp_training", "g")
    x = model.input("x", np.float32, [2])
    found = {}
    for layer in ("a", "b"):
        with model.context(layer=layer):
            found[layer] = model.slot(x, "W")
    assert model.by_role("W") == [found["a"], found["b"]]
    for layer in found:
        assert model.by_role("W", layer=layer) == model.by_role("W", "A", layer=layer) == [found[layer]]
    with model.context(layer="a"):
        later = model.slot(x, "W")
    assert model.by_role("W", layer="a") == [found["a"], later]
    assert model.by_role("W", layer="c") == model.by_role("A") == []
    to_proto(model, {"y": found["b"]})
    assert model.by_role("W", layer="a") == []
