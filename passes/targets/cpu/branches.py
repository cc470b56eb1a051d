"""What one branch of an If alone reads, computed in that branch: a kernel turned around, say, for the canonical nodes that hardly
ever run."""

from __future__ import annotations

from collections import Counter

import onnx

from wageubn_onnx.passes.targets.nodes import without_nodes
from wageubn_onnx.passes.targets.tidy import BRANCHING, captured

Place = tuple[int, int] | None  # a node and which of its branches; None: outside


def lazy_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same results; of an inlined model."""
    changed = without_nodes(model)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    readers: dict[str, Counter[Place]] = {}
    for at, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, Counter())[None] += 1
        for branch, graph in enumerate(_branches(node)):
            for name in captured([onnx.helper.make_node("If", [], [], then_branch=graph)]):
                readers.setdefault(name, Counter())[at, branch] += 1
    for output in model.graph.output:
        readers.setdefault(output.name, Counter())[None] += 1
    moved: dict[Place, list[onnx.NodeProto]] = {}
    for node in reversed(nodes):
        places = {place for name in node.output for place, count in readers.get(name, Counter[Place]()).items() if count}
        place = places.pop() if len(places) == 1 else None
        if place is not None and node.op_type in BRANCHING:
            place = None
        if place is not None:
            for name in node.input:
                readers[name].subtract([None])
                readers[name][place] += 1
        moved.setdefault(place, []).append(node)
    for at, node in enumerate(nodes):
        for branch, graph in enumerate(_branches(node)):
            inner = [*reversed(moved.get((at, branch), [])), *graph.node]
            if len(inner) > len(graph.node):
                copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in inner]
                del graph.node[:]
                graph.node.extend(copies)
    changed.graph.node.extend(reversed(moved[None]))
    made = {name for node in changed.graph.node for name in node.output}
    types = [v for v in model.graph.value_info if v.name in made]
    del changed.graph.value_info[:]
    changed.graph.value_info.extend(types)
    return changed


def _branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if node.op_type in BRANCHING and a.HasField("g")]
