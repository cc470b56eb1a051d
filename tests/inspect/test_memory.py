"""Memory by liveness: by hand on small graphs, and against another way of counting on a step."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.graph import node_tag
from wageubn_onnx.inspect.memory import memory
from wageubn_onnx.inspect.tensors import Tensors
from wageubn_onnx.symbols import direction


@pytest.mark.parametrize(
    ("body", "outputs", "peak", "node"),
    [
        ("[a] u = Neg (x) [b] v = Neg (u) [c] y = Neg (v)", "float[8] y", 3, "b"),  # x, and two results at a time
        ("[a] u = Neg (x) [b] v = Neg (u) [c] y = Add (u, v)", "float[8] y", 4, "c"),  # u waits
        ("[a] u = Neg (x) [b] v = Neg (x) [c] y = Neg (x)", "float[8] y", 2, "a"),  # nobody reads u and v
        ("[a] u = Neg (x) [b] v = Neg (u) [c] y = Neg (v)", "float[8] y, float[8] u", 4, "c"),  # an output stays
    ],
)
def test_the_peak_by_hand(body: str, outputs: str, peak: int, node: str) -> None:
    """In tensors of 32 bytes."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g (float[8] x) => ({outputs}) {{ {body} }}')
    found = memory(model, Tensors(model))
    assert (found.peak, found.peak_node) == (32 * peak, node)


@pytest.mark.parametrize("stage", ["fp_training", "quant_training", "int_training"])
def test_a_step(stage: str, tiny_artifacts: Artifacts) -> None:
    model = tiny_artifacts.files[stage]
    tensors = Tensors(model)
    found = memory(model, tensors)
    states = {"fp_training": tiny_artifacts.fp_state, "quant_training": tiny_artifacts.quant_state}.get(
        stage, tiny_artifacts.state
    )
    assert found.state == sum(value.nbytes for value in states.values())
    makers = {name: node for node in model.graph.node for name in node.output}
    expected: dict[str, int] = {}
    for name, maker in makers.items():
        readers = [node for node in model.graph.node if name in node.input]
        is_kept = any(direction(node_tag(r).role) == "backward" for r in readers)
        if direction(node_tag(maker).role) == "forward" and is_kept:
            expected[node_tag(maker).role] = expected.get(node_tag(maker).role, 0) + tensors[name].bytes
    assert found.kept == expected and {"A", "W", "BN.x"} <= set(found.kept)
    position = {name: i for i, node in enumerate(model.graph.node) for name in node.output}
    ends = {name: max([i for i, n in enumerate(model.graph.node) if name in n.input] or [position[name]]) for name in position}
    ends |= dict.fromkeys((o.name for o in model.graph.output), len(model.graph.node))
    alive = [sum(tensors[n].bytes for n in position if position[n] <= i <= ends[n]) for i in range(len(model.graph.node))]
    outside = [*(i.name for i in model.graph.input), *(t.name for t in model.graph.initializer)]
    assert found.peak == max(alive) + sum(tensors[name].bytes for name in outside)


def test_inference_keeps_nothing_for_backward(tiny_artifacts: Artifacts) -> None:
    model = tiny_artifacts.files["int_eval"]
    assert memory(model, Tensors(model)).kept == {}
