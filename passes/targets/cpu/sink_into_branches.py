"""What one branch of an If alone reads, computed in that branch: a kernel turned around, say, for the canonical nodes that hardly
ever run. What nothing reads is not computed at all.

    y = f(x); If(c, then: y, else: z)  ->  If(c, then: f(x), else: z)
"""

from __future__ import annotations

import onnx

from wageubn_onnx.onnxir.nodes import copied, only_typed, without_nodes
from wageubn_onnx.onnxir.view import branches, captured
from wageubn_onnx.passes.targets.cpu.form import Form

Place = tuple[str, int] | None  # the first output of an If and which of its branches; None: outside


def sink_into_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same results; of an inlined model."""
    read_in: dict[str, set[Place]] = {output.name: {None} for output in model.graph.output}
    placed: dict[Place, list[onnx.NodeProto]] = {}
    for node in reversed(model.graph.node):  # what reads its outputs has its place
        places = set().union(*(read_in.get(name, ()) for name in node.output))
        if not places:
            continue
        place = places.pop() if len(places) == 1 and not branches(node) else None
        placed.setdefault(place, []).append(node)
        for name in node.input:
            read_in.setdefault(name, set()).add(place)
        for branch, graph in enumerate(branches(node)):
            for name in captured([onnx.helper.make_node("If", [], [], then_branch=graph)]):
                read_in.setdefault(name, set()).add((node.output[0], branch))
    changed = without_nodes(model)
    changed.graph.node.extend(reversed(placed[None]))
    for node in changed.graph.node:
        for branch, graph in enumerate(branches(node)):
            added = placed.get((node.output[0], branch))
            if added:
                own = [copied(inner) for inner in graph.node]
                del graph.node[:]
                graph.node.extend([*reversed(added), *own])
    only_typed(changed.graph)
    return changed


PASS = Form("sink-into-branches", "what one branch of an If alone reads, computed in that branch", sink_into_branches)
