"""Which node of one graph is which of the other, without regard to names and order.

1. **Colours** (colours.py). A colour that one node on each side has makes them a pair, the stronger colours before
   the weaker. Identical branches share even the strongest: one pair is chosen, then what follows from it, and so on.
2. **Spread.** Whoever makes or reads the same operand of a pair is a candidate; the best candidates become pairs first.
3. What is left under an equal colour is paired by name, then by order, one at a time, each followed by 2.
4. What is left is paired by name; last, a node is paired with one of another operator that stands exactly in its place.

A mapping is no proof: `compare` looks at every pair.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator

from wageubn_onnx.graphdiff.colours import Colours, Kind
from wageubn_onnx.graphdiff.view import TAKEN, Node, Operand, Tensor, View, default_of

MANY = 16  # readers of one tensor, of one kind: more are told apart by colours and names before they become candidates


def match(a: View, b: View, by_provenance: bool = False) -> dict[Node, Node]:
    """The counterpart in ``b`` of each node of ``a`` that has one; one to one.

    ``by_provenance``: nodes are paired only within the same layer and data path, where equal names are trusted.
    """
    return _Matching(a, b, by_provenance).run()


class _Matching:
    def __init__(self, a: View, b: View, by_provenance: bool) -> None:
        self.a, self.b, self.by_provenance = a, b, by_provenance
        self.to_b: dict[Node, Node] = {}
        self.to_a: dict[Node, Node] = {}
        names = [{(n.op, n.name) for n in v.nodes if n.is_place} for v in (a, b)]
        self.shared = names[0] & names[1]
        self.kinds = {node: self._kind(node) for view in (a, b) for node in view.nodes}
        self.exact = Colours((a, b), self.kinds.__getitem__, exact=True)
        self.loose = Colours((a, b), self.kinds.__getitem__, exact=False)
        self.names = [[n.name for n in view.nodes] for view in (a, b)]
        self.candidates: list[tuple[int, int, int]] = []  # a heap: -score, index in a, index in b

    def _kind(self, node: Node) -> Hashable:
        """Only nodes of one kind become pairs. Inputs and outputs that both graphs have by name keep to their names, those of
        functions and inner graphs to their places."""
        if node.is_place:
            by_position = self.a.is_function or node.op == TAKEN
            return (node.op, node.scope, node.position if by_position else node.name * ((node.op, node.name) in self.shared))
        return (node.op, node.scope, node.origin if self.by_provenance else ())

    def run(self) -> dict[Node, Node]:
        self.isomorphic(*self.exact.full)
        if self.by_provenance:
            self.by_name()
        self.unique(*self.exact.up)
        self.unique(*self.exact.down)
        self.isomorphic(*self.loose.full)
        self.unique(*self.loose.up)
        self.unique(*self.loose.down)
        self.spread(self.to_b)
        for in_a, in_b in (self.loose.up, self.loose.down):
            self.alike(in_a, in_b, self.spread)
        self.by_name()
        self.spread(self.to_b)
        if not self.by_provenance:
            self.in_place()
        return self.to_b

    # -- pairs --------------------------------------------------------------------------------------------------------

    def pair(self, node: Node, other: Node) -> None:
        self.to_b[node] = other
        self.to_a[other] = node

    def free(self, view: View) -> Iterator[Node]:
        taken = self.to_b if view is self.a else self.to_a
        return (node for node in view.nodes if node not in taken)

    def unique(self, in_a: list[int], in_b: list[int]) -> None:
        """Pair nodes whose colour no other free node of either side has."""
        left, right = (self._sorted_out(view, side) for view, side in ((self.a, in_a), (self.b, in_b)))
        for colour, nodes in left.items():
            others = right.get(colour, [])
            if len(nodes) == len(others) == 1:
                self.pair(nodes[0], others[0])

    def isomorphic(self, in_a: list[int], in_b: list[int]) -> None:
        """Pair what stable colours say.

        Where they leave a choice, inputs and outputs go by their order, which means something; what follows from them is settled
        before any other choice is made.
        """

        def follow(pairs: Iterable[Node]) -> None:
            pending = list(pairs)
            while pending:
                node = pending.pop()
                for x, y in self._around(node, self.to_b[node], in_a, in_b):
                    if x not in self.to_b and y not in self.to_a and in_a[x.index] == in_b[y.index]:
                        self.pair(x, y)
                        pending.append(x)

        self.unique(in_a, in_b)
        left, right = (self._sorted_out(view, side) for view, side in ((self.a, in_a), (self.b, in_b)))
        for colour, nodes in left.items():
            others = right.get(colour, [])
            if nodes[0].is_place and len(nodes) == len(others):
                for node, other in zip(nodes, others, strict=True):
                    self.pair(node, other)
        follow(self.to_b)
        self.alike(in_a, in_b, follow)

    def _around(self, node: Node, other: Node, in_a: list[int], in_b: list[int]) -> Iterator[tuple[Node, Node]]:
        """What corresponds if ``node`` and ``other`` do: makers of operands, and readers that only one on each side can be."""
        for x, y in zip(node.operands, other.operands, strict=False):
            if isinstance(x, Tensor) and isinstance(y, Tensor) and x.slot == y.slot:
                yield x.maker, y.maker
        for result, twin in zip(node.results, other.results, strict=False):
            readers = _readers(result, self.to_b, lambda n: in_a[n.index])
            others = _readers(twin, self.to_a, lambda n: in_b[n.index])
            for key, users in readers.items():
                if len(users) == len(others.get(key, [])) == 1:
                    yield users[0], others[key][0]

    def alike(self, in_a: list[int], in_b: list[int], follow: Callable[[Iterable[Node]], None]) -> None:
        """Pair what has equal colours by name, else by order: one pair, then what follows from it."""
        left, right = (self._sorted_out(view, side) for view, side in ((self.a, in_a), (self.b, in_b)))
        for colour, nodes in left.items():
            others = deque(right.get(colour, []))
            named = {o.name: o for o in reversed(others) if o.name}
            for node in nodes:
                while others and others[0] in self.to_a:
                    others.popleft()
                if node in self.to_b or not others:
                    continue
                choice = named.get(node.name, others[0])
                self.pair(node, others[0] if choice in self.to_a else choice)
                follow([node])

    def _sorted_out(self, view: View, colours: list[int]) -> dict[int, list[Node]]:
        found: dict[int, list[Node]] = defaultdict(list)
        for node in self.free(view):
            found[colours[node.index]].append(node)
        return found

    def by_name(self) -> None:
        """Pair nodes of one kind that have the same name, or whose first results have; a name that occurs once on each side."""
        for name in (_name, _first_result):
            found: tuple[dict[Hashable, list[Node]], ...] = (defaultdict(list), defaultdict(list))
            for side, view in zip(found, (self.a, self.b), strict=True):
                for node in self.free(view):
                    if name(node):
                        side[self.kinds[node], name(node)].append(node)
            for key, nodes in found[0].items():
                others = found[1].get(key, [])
                if len(nodes) == len(others) == 1:
                    self.pair(nodes[0], others[0])

    # -- spread -------------------------------------------------------------------------------------------------------

    def spread(self, pairs: Iterable[Node]) -> None:
        """Make pairs of what stands around these and around new ones, the best first."""
        for node in list(pairs):
            self.propose_around(node, self.to_b[node])
        while self.candidates:
            score, i, j = heapq.heappop(self.candidates)
            node, other = self.a.nodes[i], self.b.nodes[j]
            if node in self.to_b or other in self.to_a:
                continue
            now = self.score(node, other)
            if now < -score:  # something around it was paired otherwise meanwhile
                self.propose(node, other)
                continue
            self.pair(node, other)
            self.propose_around(node, other)

    def propose(self, node: Node, other: Node) -> None:
        if node in self.to_b or other in self.to_a or self.kinds[node] != self.kinds[other]:
            return
        score = self.score(node, other)
        if score > 0:
            heapq.heappush(self.candidates, (-score, node.index, other.index))

    def propose_around(self, node: Node, other: Node) -> None:
        for x, y in zip(node.operands, other.operands, strict=False):
            if isinstance(x, Tensor) and isinstance(y, Tensor) and x.slot == y.slot:
                self.propose(x.maker, y.maker)
        for result, twin in zip(node.results, other.results, strict=False):
            self.propose_readers(result, twin)

    def propose_readers(self, x: Tensor, y: Tensor) -> None:
        readers = _readers(y, self.to_a, self.kinds.__getitem__)
        for key, nodes in _readers(x, self.to_b, self.kinds.__getitem__).items():
            others = readers.get(key, [])
            if len(nodes) * len(others) <= MANY:
                for node in nodes:
                    for other in others:
                        self.propose(node, other)
                continue
            for traits in self.loose.down, self.loose.up, self.names:
                told: dict[Hashable, list[Node]] = defaultdict(list)
                for other in others:
                    told[traits[1][other.index]].append(other)
                for node in nodes:
                    for other in told.get(traits[0][node.index], [])[:1]:
                        self.propose(node, other)

    def score(self, node: Node, other: Node) -> int:
        """How well two nodes fit: what stands around them counts most, then colours, attributes and names."""
        score = sum(self._fit(x, y) for x, y in zip(node.operands, other.operands, strict=False))
        for result, twin in zip(node.results, other.results, strict=False):
            for user, slot in result.uses[:MANY]:
                reader = self.to_b.get(user)
                if reader is not None:
                    reads = reader.operands[slot] if slot < len(reader.operands) else None
                    score += 2 if reads is twin else -2
        for colours in (self.exact.up, self.exact.down, self.loose.full, self.loose.up, self.loose.down):
            score += colours[0][node.index] == colours[1][other.index]
        return score + (node.attributes == other.attributes) + (bool(node.name) and node.name == other.name)

    def _fit(self, x: Operand, y: Operand) -> int:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            if x.maker in self.to_b or y.maker in self.to_a:
                return 2 if self.to_b.get(x.maker) is y.maker and x.slot == y.slot else -2
            return 0
        constant, twin = default_of(x), default_of(y)
        if constant is not None and twin is not None:
            return 1 if constant.digest == twin.digest else 0
        return 0 if x is y else -1

    def in_place(self) -> None:
        """Pair a free node with a free one of another operator, where both read and feed the same."""
        places: dict[Hashable, list[Node]] = defaultdict(list)
        in_b = {other: other for other in self.to_a}
        for other in self.free(self.b):
            if not other.is_place:
                places[self._place(other, in_b)].append(other)
        for node in list(self.free(self.a)):
            if node.is_place:
                continue
            others = places.get(self._place(node, self.to_b), [])
            if len(others) == 1 and others[0] not in self.to_a:
                self.pair(node, others[0])

    def _place(self, node: Node, in_b: dict[Node, Node]) -> Hashable:
        """What it reads first and who reads it, as nodes of b; itself where one of them has no counterpart."""
        first = next((o for o in node.operands if isinstance(o, Tensor)), None)
        uses = [(user, slot) for r in node.results for user, slot in r.uses]
        if not uses or not all(n in in_b for n in ([first.maker] if first else []) + [user for user, _ in uses]):
            return node
        source = (in_b[first.maker].index, first.slot) if first else None
        return (node.scope, source, tuple(sorted((in_b[user].index, slot) for user, slot in uses)))


def _readers(tensor: Tensor, taken: dict[Node, Node], key: Kind) -> dict[Hashable, list[Node]]:
    """The nodes that read ``tensor`` and are not ``taken``, by ``key`` and operand."""
    found: dict[Hashable, list[Node]] = defaultdict(list)
    for user, slot in tensor.uses:
        if user not in taken:
            found[key(user), slot].append(user)
    return found


def _name(node: Node) -> str:
    return node.name


def _first_result(node: Node) -> str:
    return node.results[0].name if node.results else ""
