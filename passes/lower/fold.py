"""What depends on frozen parameters and other constants alone is computed now: the step holds their mantissas, quantized once.

A device then keeps an 8-bit weight in read-only memory, as its product takes it, and neither stores nor quantizes a longer one.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from wageubn_onnx.config import Config
from wageubn_onnx.dryrun import evaluator
from wageubn_onnx.graph import DOMAIN, OPSET, Model
from wageubn_onnx.passbase import Pass


def fold_frozen(g: Model, config: Config) -> None:
    """Turn the outputs of such nodes into constants of their values, and remove the nodes.

    What the audit asks for: ``notes['constants']`` keeps the (layer, role) of all quantizers behind each constant, by its name,
    ``notes['frozen']`` the names of all that depends on frozen parameters.
    """
    made: dict[str, set[tuple[str, str]]] = {state.key: set() for state in g.states.values() if state.frozen}
    folded: list[gs.Node] = []
    for node in g.graph.nodes:
        names = [i.name for i in node.inputs]
        if any(name in made for name in names) and all(i.name in made or isinstance(i, gs.Constant) for i in node.inputs):
            quantizers = set[tuple[str, str]]().union(*(made.get(name, ()) for name in names))
            if node.domain == DOMAIN and "role" in node.attrs:
                quantizers.add((g.tag(node.outputs[0]).layer, node.attrs["role"]))
            made |= {output.name: quantizers for output in node.outputs}
            folded.append(node)
    g.notes["frozen"] = frozenset(made)
    if not folded:
        return
    outputs = {output.name: output for node in folded for output in node.outputs}
    part = Model("constants", gs.Graph(nodes=folded, name="constants", opset=OPSET), functions=g.functions)
    for name, value in evaluator(part, outputs)({}).items():
        outputs[name].to_constant(value)
    gone = {id(node) for node in folded}
    for node in folded:
        node.inputs.clear()
        node.outputs.clear()
    g.graph.nodes = [node for node in g.graph.nodes if id(node) not in gone]
    g.reordered()
    g.notes["constants"] = {name: sorted(quantizers) for name, quantizers in made.items() if quantizers}


PASS = Pass("fold", "what depends on frozen parameters alone is computed now: quantized once, at conversion", fold_frozen)
