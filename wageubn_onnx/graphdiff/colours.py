"""Colours of nodes (Weisfeiler and Leman, 1968, on a graph with directed, numbered edges).

A node's colour stands for its operator, its attributes, the places of its operands and the values of constants, together with
all that it depends on (`up`), all that depends on it (`down`), or both, refined until nothing more is told apart (`full`). Exact
colours take in attributes and values, loose ones do not. Colours are numbers given to structures that were compared, not hashes:
only constants are known by a digest. A sweep is linear in nodes and edges, and goes through the whole graph: a few suffice.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from wageubn_onnx.graphdiff.view import Node, Operand, Tensor, View, default_of

Kind = Callable[[Node], Hashable]


class Colours:
    """Colours of two graphs: for each node of each, by index."""

    def __init__(self, views: tuple[View, View], kind: Kind, exact: bool) -> None:
        self._views, self._exact = views, exact
        self._numbers: dict[Hashable, int] = {}
        start = [[self._number(kind(n), tuple(sorted(n.attributes.items())) if exact else ()) for n in v.nodes] for v in views]
        self.up = [self._up(v, c) for v, c in zip(views, start, strict=True)]
        self.down = [self._down(v, c) for v, c in zip(views, start, strict=True)]
        self.full = self._refined(
            [[self._number(u, d) for u, d in zip(*c, strict=True)] for c in zip(self.up, self.down, strict=True)]
        )

    def _number(self, *structure: Hashable) -> int:
        return self._numbers.setdefault(structure, len(self._numbers))

    def _up(self, view: View, start: list[int]) -> list[int]:
        colours = list(start)
        for node in view.nodes:
            colours[node.index] = self._number("up", start[node.index], *(self._operand(o, colours) for o in node.operands))
        return colours

    def _down(self, view: View, start: list[int]) -> list[int]:
        colours = list(start)
        for node in reversed(view.nodes):
            uses = sorted((r.slot, slot, colours[user.index]) for r in node.results for user, slot in r.uses)
            colours[node.index] = self._number("down", start[node.index], *uses)
        return colours

    def _operand(self, operand: Operand, colours: list[int]) -> Hashable:
        """An input's default counts as a constant: the other file may have one in its place."""
        constant = default_of(operand)
        if constant is not None:
            return ("constant", constant.digest if self._exact else b"")
        return (colours[operand.maker.index], operand.slot) if isinstance(operand, Tensor) else None

    def _refined(self, colours: list[list[int]]) -> list[list[int]]:
        """Up and down in turns, until no colour splits."""
        count = 0
        while (found := len({c for side in colours for c in side})) > count:
            count = found
            colours = [self._down(v, self._up(v, side)) for v, side in zip(self._views, colours, strict=True)]
        return colours
