"""A diff as text: totals, and unless only those are asked for, everything that differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from wageubn_onnx.graphdiff.result import Difference, ModelDiff, NodeRef, PathDiff, Side
from wageubn_onnx.terminal import Terminal, make_table

DETAILS = 500  # rows: of two stages, more of them are left to narrower questions
NARROWEST = 150  # columns where no terminal says how many there are


def print_diff(found: ModelDiff, summary: bool = False) -> None:
    """Print ``found`` to standard output; of two stages by layer and data path."""
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=max(console.width, NARROWEST))
    for name, graph in (("A", found.a), ("B", found.b)):
        console.say(f"{name}: {graph.file}{f', {graph.stage}' if graph.stage else ''}, {graph.nodes} nodes")
    for note in found.notes:
        console.say(f"note: {note}")
    if found.same:
        console.say(f"same: {len(found.pairs)} nodes correspond, and nothing differs")
        return
    console.say(f"different: {', '.join(_totals(found))}")
    if found.paths:
        _print_paths_summary(console, found.paths)
    if summary:
        return
    if not found.paths:
        _print_details(console, found.differences, found.only_a, found.only_b)
        return
    _print_differences(console, [d for d in found.differences if not (d.layer or d.path)])
    _print_layers(console, found.paths)
    details = [d for d in found.differences if d.layer or d.path]
    count = len(details) + len(found.only_a) + len(found.only_b)
    if count <= DETAILS:
        _print_details(console, details, found.only_a, found.only_b)
    else:
        console.say(f"{count} single nodes and differences, which the rows above count, are listed by --only, --path and --json")


def _print_details(
    console: Terminal, differences: Sequence[Difference], only_a: Sequence[NodeRef], only_b: Sequence[NodeRef]
) -> None:
    _print_differences(console, differences)
    _print_nodes(console, "only in A", only_a)
    _print_nodes(console, "only in B", only_b)


def _totals(found: ModelDiff) -> list[str]:
    counts = {"nodes correspond": len(found.pairs), "only in A": len(found.only_a), "only in B": len(found.only_b)}
    differ = [f"{kind} {count}" for kind, count in found.counts.items()]
    return [f"{count} {what}" for what, count in counts.items()] + (["differences: " + ", ".join(differ)] if differ else [])


def _table(console: Terminal, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, unless it is empty."""
    if rows:
        console.print(make_table(title, columns, rows))


def _print_differences(console: Terminal, differences: Sequence[Difference]) -> None:
    _table(
        console,
        "differences",
        ["kind", "in A", "in B", "what", "A", "B"],
        [
            (d.kind, d.where, d.counterpart if d.counterpart != d.where else "=", _what(d), d.a or "-", d.b or "-")
            for d in differences
        ],
    )


def _what(difference: Difference) -> str:
    values = difference.values
    if values is None:
        return difference.what
    greatest = "" if values.greatest is None else f", by {values.greatest:.6g} at most"
    return f"{difference.what}: {values.differing} of {values.elements} differ{greatest}"


def _print_nodes(console: Terminal, title: str, nodes: Sequence[NodeRef]) -> None:
    _table(
        console, f"{title}: {len(nodes)} nodes", ["op", "node", "layer", "path"], [(n.op, n.name, n.layer, n.path) for n in nodes]
    )


# -- two stages -----------------------------------------------------------------------------------------------------------


def _print_paths_summary(console: Terminal, paths: Sequence[PathDiff]) -> None:
    """A row for each data path over all layers."""
    groups: dict[tuple[str, str], list[PathDiff]] = {}
    for path in paths:
        groups.setdefault((path.direction, path.path), []).append(path)
    rows = []
    for (direction, name), parts in groups.items():
        changes = Counter(part.change for part in parts)
        nodes = (sum(side.nodes for side in sides) for sides in ([p.a for p in parts], [p.b for p in parts]))
        rows.append(
            (
                name or "-",
                direction,
                ", ".join(f"{change} {count}" for change, count in changes.items()),
                *map(str, nodes),
                _joined(q for part in parts for q in part.b.quantizers),
                _passes(made_by for part in parts for made_by in part.passes),
            )
        )
    _table(
        console,
        "data paths, all layers",
        ["path", "direction", "layers", "nodes of A", "nodes of B", "quantizers of B", "by pass"],
        rows,
    )


def _print_layers(console: Terminal, paths: Sequence[PathDiff]) -> None:
    layers: dict[str, list[PathDiff]] = {}
    for path in paths:
        layers.setdefault(path.layer, []).append(path)
    for layer, parts in layers.items():
        rows = [
            (p.path or "-", p.direction, _change(p), _side(p.a), _side(p.b), _passes(p.passes), _joined(p.goes_to)) for p in parts
        ]
        columns = ["path", "direction", "change", "A", "B", "by pass", "goes to"]
        _table(console, layer or "of no layer", columns, rows)


def _change(path: PathDiff) -> str:
    kinds = Counter(d.kind for d in path.differences)
    kept = f"{path.kept} kept" if path.kept and path.change != "same" else ""
    return "; ".join(filter(None, (path.change, kept, ", ".join(f"{kind} {count}" for kind, count in kinds.items()))))


def _side(side: Side) -> str:
    """Quantizers with their formats; other operators; dtypes."""
    quantizers = {quantizer.split()[0] for quantizer in side.quantizers}
    ops = ", ".join(f"{op} {count}" if count > 1 else op for op, count in side.ops.items() if op not in quantizers)
    return "; ".join(filter(None, (", ".join(side.quantizers), ops, ", ".join(side.dtypes)))) or "-"


def _joined(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _passes(words: Iterable[str]) -> str:
    """A node that one pass put in another's node's place has both, in order."""
    return "; ".join(dict.fromkeys(word.replace(",", ", then ") for word in words))
