"""What a diff finds; `to_json` gives the documented form (docs/diff.md)."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

SCHEMA = 1  # of the JSON


@dataclass(frozen=True)
class NodeRef:
    """A node. layer, direction, path, passes, source, format: as the pipeline recorded them; empty in other files."""

    name: str
    op: str
    layer: str = ""
    direction: str = ""
    path: str = ""
    passes: str = ""
    source: str = ""
    format: str = ""


@dataclass(frozen=True)
class Values:
    """How two constants of one shape differ. elements: of each; differing: those whose bits differ; greatest: max |a - b| in
    float64, over elements that are finite in both; None where there is none, or they are no numbers."""

    elements: int
    differing: int
    greatest: float | None


@dataclass(frozen=True)
class Difference:
    """One difference between things that correspond.

    kind: see docs/diff.md. where, counterpart: the node, tensor or key in A and in B. what: the attribute, the operand's place or
    the like. a, b: what each side has there, None for nothing. layer, direction, path: of the node, where the pipeline recorded
    them.
    """

    kind: str
    where: str
    counterpart: str
    what: str
    a: str | None
    b: str | None
    layer: str = ""
    direction: str = ""
    path: str = ""
    values: Values | None = None


@dataclass(frozen=True)
class Side:
    """What one stage has on a data path of a layer.

    ops, dtypes: of its nodes and their results -> how many; quantizers: function and format (docs/artifacts.md).
    """

    ops: dict[str, int]
    dtypes: dict[str, int]
    quantizers: tuple[str, ...]

    @property
    def nodes(self) -> int:
        return sum(self.ops.values())


@dataclass(frozen=True)
class PathDiff:
    """One data path of one layer in two stages.

    direction: forward, backward or update. change: same; changed (every node has a counterpart, some differ); inserted; removed;
    replaced (nodes of both sides have none). kept: nodes with a counterpart; only_a, only_b: those without. differences: of those
    that are kept. passes: what made the nodes of B that are new or changed, as `wageubn.pass` has it. goes_to: who reads the
    path's results in B, as ``layer path``, or an output's name.
    """

    layer: str
    direction: str
    path: str
    change: str
    a: Side
    b: Side
    kept: int
    only_a: tuple[NodeRef, ...]
    only_b: tuple[NodeRef, ...]
    differences: tuple[Difference, ...]
    passes: tuple[str, ...]
    goes_to: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """One of the two files. stage: of the pipeline, or empty."""

    file: str
    stage: str
    nodes: int


@dataclass(frozen=True)
class ModelDiff:
    """What differs between ``a`` and ``b``.

    pairs: nodes that correspond. only_a, only_b: nodes without a counterpart. differences: between what corresponds, and of the
    files as wholes. notes: what does not count, such as names. paths: by layer and data path, where both files are stages of
    the pipeline; every node is in one of them.
    """

    a: Graph
    b: Graph
    pairs: tuple[tuple[NodeRef, NodeRef], ...]
    only_a: tuple[NodeRef, ...]
    only_b: tuple[NodeRef, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    paths: tuple[PathDiff, ...] = ()

    @property
    def same(self) -> bool:
        """Every node has a counterpart, and nothing that corresponds differs: the pairs are an isomorphism."""
        return not (self.only_a or self.only_b or self.differences)

    def only(self, layer: str = "", path: str = "") -> ModelDiff:
        """The part in layers and data paths that fit the patterns (see `fits`); what belongs to no layer is left out.

        In files without provenance ``layer`` is compared with the names of nodes.
        """
        if not layer and not path:
            return self

        def node(ref: NodeRef) -> bool:
            return fits(ref.layer or ref.name, layer) and fits(ref.path, path)

        def difference(d: Difference) -> bool:
            return fits(d.layer or d.where or d.counterpart, layer) and fits(d.path, path)

        return replace(
            self,
            pairs=tuple(pair for pair in self.pairs if node(pair[0])),
            only_a=tuple(filter(node, self.only_a)),
            only_b=tuple(filter(node, self.only_b)),
            differences=tuple(filter(difference, self.differences)),
            paths=tuple(p for p in self.paths if fits(p.layer, layer) and fits(p.path, path)),
        )

    @property
    def is_empty(self) -> bool:
        """No node is in it: nothing fits the patterns that were given."""
        return not (self.pairs or self.only_a or self.only_b)

    @property
    def counts(self) -> dict[str, int]:
        """How many differences of each kind there are."""
        return dict(Counter(d.kind for d in self.differences))

    def to_json(self) -> dict[str, Any]:
        """JSON-able values, by the schema in docs/diff.md; of the pairs their number."""
        content = {key: value for key, value in asdict(self).items() if key != "pairs"}
        return {"schema": SCHEMA, "same": self.same, "matched": len(self.pairs), **content}


def fits(name: str, pattern: str) -> bool:
    """Whether a name is the pattern (with * and ?) or lies below it: ``layer3`` takes in ``layer3.0.conv1``, ``BN`` ``BN.mu``."""
    return not pattern or fnmatchcase(name, pattern) or any(fnmatchcase(name, f"{pattern}{mark}*") for mark in "./")
