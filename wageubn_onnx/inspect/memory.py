"""What a run of a graph keeps in memory: an estimate from the liveness of its tensors, not what a runtime's allocator takes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from wageubn_onnx.graph import node_tag
from wageubn_onnx.inspect.tensors import Tensors
from wageubn_onnx.symbols import direction


@dataclass(frozen=True)
class Memory:
    """Bytes, with 1 for an open dimension.

    state: inputs that the step gives back as KEY.next. stored: initializers. kept: by data path, tensors that the forward half
    makes and the backward half reads, of our steps. peak: the greatest sum of inputs, initializers and the results that are still
    to be read, nodes run in the order of the file; every result has memory of its own, and what is inside functions has none.
    peak_node: where.
    """

    state: int
    stored: int
    kept: dict[str, int]
    peak: int
    peak_node: str


def memory(model: onnx.ModelProto, tensors: Tensors) -> Memory:
    """What ``model`` keeps."""
    graph = model.graph
    outputs = {o.name for o in graph.output}
    state = sum(tensors[i.name].bytes for i in graph.input if f"{i.name}.next" in outputs)
    stored = {t.name for t in graph.initializer}
    resident = sum(tensors[name].bytes for name in stored | {i.name for i in graph.input})
    peak, node = _peak(graph, tensors)
    return Memory(state, sum(tensors[n].bytes for n in stored), _kept(graph, tensors), resident + peak, node)


def _kept(graph: onnx.GraphProto, tensors: Tensors) -> dict[str, int]:
    made: dict[str, str] = {}  # tensor of the forward half -> path
    found: dict[str, str] = {}
    for node in graph.node:
        tag = node_tag(node)
        if not tag.role:
            continue
        where = direction(tag.role)
        if where == "forward":
            made |= dict.fromkeys(filter(None, node.output), tag.role)
        if where == "backward":
            found |= {name: made[name] for name in node.input if name in made}
    kept: dict[str, int] = {}
    for name, path in found.items():
        kept[path] = kept.get(path, 0) + tensors[name].bytes
    return dict(sorted(kept.items(), key=lambda entry: (-entry[1], entry[0])))


def _peak(graph: onnx.GraphProto, tensors: Tensors) -> tuple[int, str]:
    """The greatest sum of results alive at once, and the node that is run then."""
    last = {name: index for index, node in enumerate(graph.node) for name in _read(node)}
    last |= dict.fromkeys((o.name for o in graph.output), len(graph.node))
    ends: dict[int, list[str]] = {}
    alive = peak = 0
    where = ""
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            alive += tensors[name].bytes
            ends.setdefault(max(last.get(name, index), index), []).append(name)
        if alive > peak:
            peak, where = alive, node.name or node.output[0]
        alive -= sum(tensors[name].bytes for name in ends.pop(index, []))
    return peak, where


def _read(node: onnx.NodeProto) -> list[str]:
    """What a node reads, its subgraphs included."""
    graphs = [g for a in node.attribute for g in (a.g, *a.graphs)]
    within = [name for g in graphs for inner in g.node for name in _read(inner)]
    return [*node.input, *within, *(o.name for g in graphs for o in g.output)]
