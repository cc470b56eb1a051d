"""What differs between two graphs whose nodes were matched.

Where this finds nothing, and every node has a counterpart, the mapping is an isomorphism: every operand, result, attribute and
value of every pair was looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto

from wageubn_onnx.graphdiff.result import Difference, NodeRef, Values
from wageubn_onnx.graphdiff.view import INPUT, OUTPUT, TAKEN, Constant, Node, Operand, Tensor, TensorType, View, default_of

Array: TypeAlias = np.ndarray[Any, Any]
LONGEST = 60  # characters of a value in a report


def node_ref(node: Node) -> NodeRef:
    """The node as a report has it."""
    layer, direction, path = node.origin
    passes, source, form = (node.facts.get(key, "") for key in ("pass", "source", "format"))
    return NodeRef(node.label, node.op, layer, direction, path, passes, source, form)


class Comparison:
    """Collects the ``differences`` of two views under a mapping, and ``notes`` of what has other names only."""

    def __init__(self, a: View, b: View, to_b: dict[Node, Node]) -> None:
        self.a, self.b, self.to_b = a, b, to_b
        self.to_a = {other: node for node, other in to_b.items()}
        self.differences: list[Difference] = []
        self.renamed = {"node": 0, "input": 0, "output": 0}
        self.moved = {"input": 0, "output": 0}
        self._constants: set[tuple[int, int]] = set()
        self._dims: tuple[dict[str, str], dict[str, str]] = ({}, {})

    def run(self) -> list[Difference]:
        """All differences: of inputs and outputs, then of nodes in the order of A, then unread constants."""
        for op in (INPUT, OUTPUT, TAKEN):
            self.places(op)
        for node in self.a.nodes:
            if node in self.to_b:
                self.node(node, self.to_b[node])
        self.spare()
        return self.differences

    def note(self, kind: str, node: Node, what: str, a: str | None, b: str | None, values: Values | None = None) -> None:
        self.differences.append(Difference(kind, node.label, self.to_b[node].label, what, a, b, *node.origin, values))

    @property
    def notes(self) -> list[str]:
        """Names and places that differ and do not count."""
        named = [f"{count} {kind}{'s' * (count > 1)} named differently" for kind, count in self.renamed.items() if count]
        return named + [f"{kind}s in another order" for kind, count in self.moved.items() if count]

    # -- inputs and outputs -------------------------------------------------------------------------------------------

    def places(self, op: str) -> None:
        kind = "output" if op == OUTPUT else "input"
        for node in self.a.places(op):
            if node not in self.to_b:
                self.differences.append(Difference(kind, node.name, "", "", _type(node), None))
                continue
            other = self.to_b[node]
            if node.name == other.name:
                self.moved[kind] += node.position != other.position
            elif op != TAKEN and not self.a.is_function:
                self.renamed[kind] += 1
                if node.position != other.position:
                    here, there = (f"{n.name}, at place {n.position}" for n in (node, other))
                    self.differences.append(Difference(kind, node.name, other.name, "place", here, there))
        for other in self.b.places(op):
            if other not in self.to_a:
                self.differences.append(Difference(kind, "", other.name, "", None, _type(other)))

    # -- nodes --------------------------------------------------------------------------------------------------------

    def node(self, node: Node, other: Node) -> None:
        if node.op != other.op:
            self.note("op", node, "", node.op, other.op)
        if not node.is_place and node.name != other.name:
            self.renamed["node"] += 1
        if not self._stands_alike(node, other):
            self.note("operand", node, "graph it stands in", _owner(node), _owner(other))
        self.attributes(node, other)
        if node.default or other.default:
            self.operand(node, "default", node.default, other.default)
        for slot in range(max(len(node.operands), len(other.operands))):
            pair = (n.operands[slot] if slot < len(n.operands) else None for n in (node, other))
            self.operand(node, f"operand {slot}", *pair)
        if len(node.results) != len(other.results):
            self.note("result", node, "number of results", str(len(node.results)), str(len(other.results)))
        for result, twin in zip(node.results, other.results, strict=False):
            if bool(result.name) != bool(twin.name):
                self.note("result", node, f"result {result.slot}", result.name or None, twin.name or None)
            if any(user.op == OUTPUT for user, _ in result.uses):
                continue  # the output says it
            if (result.type or twin.type) if node.is_place else (result.type and twin.type):  # inside, a file may leave it out
                self.type(node, result, twin)

    def _stands_alike(self, node: Node, other: Node) -> bool:
        """In graphs of nodes that correspond, or both in the outermost."""
        x, y = node.owner, other.owner
        if x is None or y is None:
            return x is y
        return self.to_b.get(x[0]) is y[0] and x[1] == y[1]

    def attributes(self, node: Node, other: Node) -> None:
        """All but what only one opset's operator has, where it is left at its default: the opset is reported."""
        for name in sorted(node.attributes.keys() | other.attributes.keys()):
            is_in_both = name in node.attributes and name in other.attributes
            is_given = name in node.given or name in other.given
            if node.attributes.get(name) != other.attributes.get(name) and (is_in_both or is_given):
                self.note("attribute", node, name, _attribute(node, name), _attribute(other, name))

    def operand(self, node: Node, what: str, x: Operand, y: Operand) -> None:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            if self.to_b.get(x.maker) is not y.maker or x.slot != y.slot:
                self.note("operand", node, what, x.name, y.name)
        elif isinstance(x, Constant) and isinstance(y, Constant):
            if (id(x), id(y)) not in self._constants:
                self._constants.add((id(x), id(y)))
                self.constant(node, x, y)
        elif self._overridable(x) or self._overridable(y):  # the input itself is reported
            constant, twin = default_of(x), default_of(y)
            if constant is not None and twin is not None:
                self.operand(node, what, constant, twin)
            else:
                self.note("operand", node, what, _operand(x), _operand(y))
        elif x is not y:
            self.note("operand", node, what, _operand(x), _operand(y))

    def _overridable(self, operand: Operand) -> bool:
        """An input with a default that has no counterpart."""
        return isinstance(operand, Tensor) and operand.maker not in self.to_b and operand.maker not in self.to_a

    def constant(self, node: Node, x: Constant, y: Constant) -> None:
        if x.equals(y):
            return
        types = (str(x.type), str(y.type))
        here, there = types if types[0] != types[1] else (_values(x), _values(y))
        values = value_difference(x.values, y.values)
        self.differences.append(Difference("initializer", x.name, y.name, node.label, here, there, *node.origin, values))

    def type(self, node: Node, result: Tensor, twin: Tensor) -> None:
        """Dtypes and shapes; symbolic dimensions may have other names, the same ones everywhere."""
        x, y = result.type, twin.type
        alike = x is not None and y is not None and x.dtype == y.dtype and self._same_shape(x, y)
        if not alike:
            here, there = (None if t is None else str(t) for t in (x, y))
            self.differences.append(Difference("type", result.name, twin.name, "", here, there, *node.origin))

    def _same_shape(self, x: TensorType, y: TensorType) -> bool:
        if x.shape is None or y.shape is None:
            return x.shape == y.shape
        return len(x.shape) == len(y.shape) and all(self._same_dim(i, j) for i, j in zip(x.shape, y.shape, strict=True))

    def _same_dim(self, i: int | str | None, j: int | str | None) -> bool:
        if isinstance(i, str) and isinstance(j, str):
            return self._dims[0].setdefault(i, j) == j and self._dims[1].setdefault(j, i) == i
        return i == j

    def spare(self) -> None:
        """Constants that no node reads: by value."""
        left = {id(c): c for c in self.b.spare}
        by_value: dict[bytes, list[Constant]] = {}
        for constant in self.b.spare:
            by_value.setdefault(constant.digest, []).append(constant)
        for constant in self.a.spare:
            twin = next((c for c in by_value.get(constant.digest, []) if id(c) in left and c.equals(constant)), None)
            if twin is None:
                self.differences.append(Difference("spare", constant.name, "", "read by no node", str(constant.type), None))
            else:
                del left[id(twin)]
        for constant in left.values():
            self.differences.append(Difference("spare", "", constant.name, "read by no node", None, str(constant.type)))


def value_difference(x: Array, y: Array) -> Values | None:
    """How the values differ; None where the shapes do."""
    if x.shape != y.shape:
        return None
    if x.dtype.hasobject or y.dtype.hasobject:
        return Values(x.size, int(np.count_nonzero(x != y)), None)
    if x.dtype == y.dtype:
        raw = [np.ascontiguousarray(v).reshape(-1).view(np.uint8).reshape(x.size, -1) for v in (x, y)]
        differing = int((raw[0] != raw[1]).any(axis=1).sum()) if x.size else 0
    else:
        differing = int(np.count_nonzero(x != y))
    a, b = (v.astype(np.float64) for v in (x, y))
    finite = np.isfinite(a) & np.isfinite(b)
    gap = np.abs(a[finite] - b[finite]) if finite.any() else np.array(np.inf)
    return Values(x.size, differing, float(gap.max()) if np.isfinite(gap.max()) else None)


def model_differences(a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[Difference]:
    """What two files say of themselves: IR version, opsets, metadata, and what is rarely there."""
    if a.ir_version != b.ir_version:
        yield Difference("ir_version", "", "", "", str(a.ir_version), str(b.ir_version))
    opsets = [{o.domain or "ai.onnx": str(o.version) for o in m.opset_import} for m in (a, b)]
    metadata = [{p.key: p.value for p in m.metadata_props} for m in (a, b)]
    for kind, sides in (("opset", opsets), ("metadata", metadata)):
        for key in sorted(sides[0].keys() | sides[1].keys()):
            if sides[0].get(key) != sides[1].get(key):
                here, there = (_short(side[key]) if key in side else None for side in sides)
                yield Difference(kind, key, key, "", here, there)
    rare: dict[str, list[Any]] = {
        "quantization annotations": [m.graph.quantization_annotation for m in (a, b)],
        "training information": [m.training_info for m in (a, b)],
        "device configurations": [getattr(m, "configuration", []) for m in (a, b)],  # of IR 11
    }
    for what, parts in rare.items():
        x, y = (sorted(p.SerializeToString(deterministic=True) for p in part) for part in parts)
        if x != y:
            yield Difference("other", what, what, "", f"{len(x)} entries", f"{len(y)} entries")


def file_notes(a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[str]:
    """Who wrote the files, where that differs."""
    producers = [f"{m.producer_name} {m.producer_version}".strip() or "nobody" for m in (a, b)]
    if producers[0] != producers[1]:
        yield f"written by {producers[0]} and by {producers[1]}"


# -- texts ----------------------------------------------------------------------------------------------------------------


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _type(node: Node) -> str:
    return str(node.results[0].type or "of no declared type") + (", with a default" if node.default else "")


def _owner(node: Node) -> str | None:
    return f"{node.owner[1]} of {node.owner[0].label}" if node.owner else None


def _operand(operand: Operand) -> str | None:
    if operand is None:
        return None
    return f"constant {operand.name} {operand.type}" if isinstance(operand, Constant) else operand.name


def _values(constant: Constant) -> str:
    """A few values themselves, of more their type."""
    values = constant.values
    return _short(str(values.tolist())) if values.size <= 8 else str(constant.type)


def _attribute(node: Node, name: str) -> str | None:
    """The attribute's value; None where the operator has none by that name."""
    if name not in node.attributes:
        return None
    proto = node.protos[name]
    if proto.ref_attr_name:
        return f"attribute {proto.ref_attr_name} of the function"
    if proto.type == AttributeProto.TENSOR:
        return _values(Constant(name, proto.t))
    if proto.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return f"graph(s) with (inputs, outputs) {node.attributes[name]}"
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return _short(value.decode(errors="replace"))
    return _short(str([v.decode(errors="replace") if isinstance(v, bytes) else v for v in value] if _is_list(proto) else value))


def _is_list(proto: AttributeProto) -> bool:
    return proto.type in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS)
