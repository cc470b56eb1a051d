"""Two stages of the pipeline by layer and data path: what became of each, by which pass, and where it goes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from wageubn_onnx.graphdiff.compare import node_ref
from wageubn_onnx.graphdiff.result import Difference, PathDiff, Side
from wageubn_onnx.graphdiff.view import OUTPUT, Node, View

Origin = tuple[str, str, str]  # layer, direction, data path
DIRECTIONS = ("forward", "backward", "update", "")


def by_path(a: View, b: View, to_b: dict[Node, Node], differences: Iterable[Difference]) -> list[PathDiff]:
    """One entry for each origin of a node of either graph: layers in the order of A, in each forward, backward, update.

    ``to_b`` pairs nodes of one origin only; ``differences`` are those of the pairs.
    """
    of_pairs: dict[Origin, list[Difference]] = defaultdict(list)
    for difference in differences:
        of_pairs[difference.layer, difference.direction, difference.path].append(difference)
    in_a, in_b = _grouped(a), _grouped(b)
    paired = {*to_b, *to_b.values()}
    return [_entry(o, in_a.get(o, []), in_b.get(o, []), paired, of_pairs[o]) for o in _ordered(in_a, in_b)]


def _grouped(view: View) -> dict[Origin, list[Node]]:
    groups: dict[Origin, list[Node]] = defaultdict(list)
    for node in view.real:
        groups[node.origin].append(node)
    return groups


def _ordered(a: Iterable[Origin], b: Iterable[Origin]) -> list[Origin]:
    """All origins; one that only B has comes after the one before it in B."""
    merged = list(a)
    known, last = set(merged), -1
    for origin in b:
        if origin in known:
            last = merged.index(origin)
        else:
            last += 1
            merged.insert(last, origin)
    layers = {layer: None for layer, _, _ in merged}
    rank = {layer: i for i, layer in enumerate(layers)}
    return sorted(merged, key=lambda o: (rank[o[0]], DIRECTIONS.index(o[1]) if o[1] in DIRECTIONS else len(DIRECTIONS)))


def _entry(origin: Origin, in_a: list[Node], in_b: list[Node], paired: set[Node], differences: list[Difference]) -> PathDiff:
    only_a, only_b = ([n for n in nodes if n not in paired] for nodes in (in_a, in_b))
    changed = {d.counterpart for d in differences}
    fresh = [n for n in in_b if n not in paired or n.label in changed or any(r.name in changed for r in n.results)]
    layer, direction, path = origin
    return PathDiff(
        layer,
        direction,
        path,
        _change(only_a, only_b, differences),
        _side(in_a),
        _side(in_b),
        len(in_b) - len(only_b),
        tuple(map(node_ref, only_a)),
        tuple(map(node_ref, only_b)),
        tuple(differences),
        tuple(dict.fromkeys(n.facts["pass"] for n in fresh if "pass" in n.facts)),
        tuple(dict.fromkeys(_reader(user) for n in in_b for r in n.results for user, _ in r.uses if user.origin != origin)),
    )


def _change(only_a: list[Node], only_b: list[Node], differences: list[Difference]) -> str:
    if only_a and only_b:
        return "replaced"
    if only_a or only_b:
        return "removed" if only_a else "inserted"
    return "changed" if differences else "same"


def _side(nodes: list[Node]) -> Side:
    dtypes = Counter(r.type.dtype for n in nodes for r in n.results if r.type)
    quantizers = dict.fromkeys(f"{_short(n.op)} {n.facts['format']}" for n in nodes if "format" in n.facts)
    return Side(dict(Counter(_short(n.op) for n in nodes)), dict(dtypes), tuple(quantizers))


def _short(op: str) -> str:
    """Without the domain."""
    return op.rsplit(":", 1)[-1]


def _reader(node: Node) -> str:
    """Who reads: the output's name, else layer and data path."""
    if node.op == OUTPUT:
        return f"output {node.name}"
    layer, direction, path = node.origin
    return " ".join(filter(None, (layer, path or direction))) or node.label
