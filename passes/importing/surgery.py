"""What the rewrites of a source graph are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

Array = np.ndarray[Any, Any]
SHOWN = 3  # names in a message
Rewrite = Callable[[gs.Graph, gs.Node], bool]  # whether it changed anything


def rewrite_all(graph: gs.Graph, table: dict[str, tuple[Rewrite, ...]]) -> None:
    """Apply the rewrites of ``table``, by operator, until none changes the graph any more."""
    while sum(rewrite(graph, node) for node in list(graph.nodes) for rewrite in table.get(node.op, ()) if node.outputs):
        graph.cleanup().toposort()


def bypass(graph: gs.Graph, node: gs.Node) -> bool:
    """x -> f(x) = x: the readers of ``node`` read its first input."""
    redirect(graph, node.outputs[0], node.inputs[0])
    node.outputs.clear()
    return True


def redirect(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Whoever reads ``old`` reads ``new``."""
    for user in list(old.outputs):
        user.inputs = [new if i is old else i for i in user.inputs]
    graph.outputs = [new if o is old else o for o in graph.outputs]


def sources(node: gs.Node) -> dict[str, str]:
    """The nodes of the source that ``node`` does the work of, each with its operator: itself, unless `absorb` says otherwise."""
    found: dict[str, str] = getattr(node, "sources", {node.name: node.op})
    return found


def origins(node: gs.Node) -> list[str]:
    """The names of `sources`."""
    return list(sources(node))


def take_over(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Whoever reads ``old`` reads ``new``, which a rewrite has made, under the name that the source has."""
    redirect(graph, old, new)
    old.name, new.name = new.name, old.name


def note_sources(graph: gs.Graph) -> None:
    """Let every node remember its own operator, whatever rewrites make of it."""
    for node in graph.nodes:
        node.sources = {node.name: node.op}


def absorb(node: gs.Node, *others: gs.Node) -> None:
    """Note that ``node`` does the work of ``others``, too."""
    node.sources = {name: op for each in (node, *others) for name, op in sources(each).items()}


def at(node: gs.Node, operators: bool = True) -> str:
    """How a refusal names ``node``: by the source's own nodes, with their ``operators`` where a rewrite has changed them."""
    found = sources(node)
    names = ", ".join(repr(name) for name in list(found)[:SHOWN]) + (
        f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    )
    changed = operators and set(found.values()) != {node.op}
    return f"{'node' if len(found) == 1 else 'nodes'} {names}{f' ({written(node)})' if changed else ''}"


def written(node: gs.Node) -> str:
    """The operators that the source has where ``node`` stands."""
    return ", ".join(dict.fromkeys(sources(node).values()))


def only_reader(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The node that alone reads ``tensor``, once; None where others do, or the graph's outputs."""
    if len(tensor.outputs) != 1 or any(tensor is o for o in graph.outputs):
        return None
    return tensor.outputs[0]


def maker(tensor: gs.Tensor) -> gs.Node | None:
    """The node that makes ``tensor``; None of an input or a constant."""
    return tensor.inputs[0] if tensor.inputs else None


def values(node: gs.Node, position: int, default: Any = None) -> Any:
    """The numbers of a constant operand; ``default`` where the node has none there, None where it is computed."""
    if position >= len(node.inputs) or node.inputs[position].is_empty():
        return default
    operand = node.inputs[position]
    return operand.values if isinstance(operand, gs.Constant) else None


def set_operand(node: gs.Node, position: int, array: Array, suffix: str) -> None:
    """Put ``array`` in an operand's place, under the operand's name where ``node`` alone reads it, else, or where there is
    none, under the node's with ``suffix``."""
    old = node.inputs[position] if position < len(node.inputs) else gs.Variable.empty()
    owned = isinstance(old, gs.Constant) and len(old.outputs) == 1
    name = old.name if owned else f"{node.name or node.outputs[0].name}.{suffix}"
    with np.errstate(over="ignore"):  # infinity is refused where parameters are read
        new = gs.Constant(name, np.ascontiguousarray(array, np.float32))
    node.inputs = [*node.inputs[:position], new, *node.inputs[position + 1 :]]


def insert(
    graph: gs.Graph,
    kind: str,
    name: str,
    attrs: dict[str, Any],
    inputs: Sequence[gs.Tensor],
    shape: Sequence[int],
    instead_of: Sequence[gs.Node],
) -> gs.Tensor:
    """Append a node of one output, which does the work of other nodes; return its output."""
    result = gs.Variable(f"{name}/{kind.lower()}", np.float32, list(shape))
    made = gs.Node(kind, name, attrs, list(inputs), [result])
    made.sources = {}
    absorb(made, *instead_of)
    graph.nodes.append(made)
    return result
