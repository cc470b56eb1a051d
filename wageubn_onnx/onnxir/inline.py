"""Model-local functions, inlined: for backends and tools that know standard operators alone.

`onnx.inliner` does the same and leaves the nodes nameless; here they are named after their call and keep its metadata, so that
each still says its layer, data path and pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from wageubn_onnx.errors import WageubnError

Key = tuple[str, str, str]  # domain, name and overload of a function


def inline(model: onnx.ModelProto, which: Callable[[onnx.FunctionProto], bool] = lambda function: True) -> onnx.ModelProto:
    """A copy of ``model`` without functions: a body's node becomes CALL/NODE, its inner tensors CALL/TENSOR.

    which: the functions to inline; the others, and their calls, stay. NODE is the node's name, or its first output where it has
    none, and CALL likewise. A body node gets the metadata of its call, and keeps what that has no key for. Tensors within bodies
    have the types that their function states, if any; onnx's shape inference finds the others. Raises WageubnError for a function
    that calls itself, or that wants another version of an operator set than the model.
    """
    inlined = onnx.ModelProto()
    inlined.CopyFrom(model)
    del inlined.graph.node[:]
    kept = [function for function in model.functions if not which(function)]
    del inlined.functions[:]
    inliner = _Inliner(model, {key_of(function) for function in kept})
    inlined.graph.node.extend(inliner.flat(model.graph.node, _Scope()))
    inlined.graph.value_info.extend(inliner.types)
    inlined.functions.extend(kept)
    del inlined.opset_import[:]
    inlined.opset_import.extend(_opsets(model, inliner.called, {function.domain for function in kept}))
    return inlined


def key_of(function: onnx.FunctionProto) -> Key:
    return function.domain, function.name, function.overload


@dataclass(frozen=True)
class _Scope:
    """Where nodes stand: in a graph (the default), or in a body, by its call. rename maps a tensor's name in the body to the
    result's; attributes are what the call passes; calls: the functions that are being inlined, the innermost last."""

    prefix: str = ""
    rename: Callable[[str], str] = field(default=lambda name: name)
    attributes: dict[str, onnx.AttributeProto] = field(default_factory=dict)
    metadata: Sequence[onnx.StringStringEntryProto] = ()
    calls: tuple[Key, ...] = ()


class _Inliner:
    """The functions of a model, and the names that are taken."""

    def __init__(self, model: onnx.ModelProto, kept: Collection[Key]) -> None:
        self.functions: dict[Key, onnx.FunctionProto] = {key_of(f): f for f in model.functions if key_of(f) not in kept}
        self.called: dict[Key, onnx.FunctionProto] = {}
        self.types: list[onnx.ValueInfoProto] = []  # of tensors of bodies
        self.tensors, self.nodes = set[str](), set[str]()
        self._take_names(model.graph)

    def _take_names(self, graph: onnx.GraphProto) -> None:
        """Of all tensors of ``graph`` and its subgraphs, and of all nodes that stay."""
        self.tensors.update(t.name for t in (*graph.input, *graph.initializer))
        self.tensors.update(sparse.values.name for sparse in graph.sparse_initializer)
        for node in graph.node:
            self.tensors.update(node.output)
            if (node.domain, node.op_type, node.overload) not in self.functions:
                self.nodes.add(node.name)
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    self._take_names(inner)

    def flat(self, nodes: Iterable[onnx.NodeProto], scope: _Scope) -> Iterator[onnx.NodeProto]:
        """Copies of ``nodes`` for the result, calls replaced by their bodies."""
        for node in nodes:
            copy = self._copy(node, scope)
            key = (node.domain, node.op_type, node.overload)
            if key in self.functions:
                yield from self._body(copy, key, scope)
            else:
                yield copy

    def _copy(self, node: onnx.NodeProto, scope: _Scope) -> onnx.NodeProto:
        """``node`` with the names, attributes and metadata that it has in the result."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if scope.prefix:
            copy.name = _unique(f"{scope.prefix}/{node.name or next(filter(None, node.output), node.op_type)}", self.nodes)
            copy.input[:] = map(scope.rename, node.input)
            copy.output[:] = map(scope.rename, node.output)
            if node.metadata_props:
                passed = {p.key for p in scope.metadata}
                own = [p for p in node.metadata_props if p.key not in passed]
                del copy.metadata_props[:]
                copy.metadata_props.extend(own)
            copy.metadata_props.extend(scope.metadata)
        if any(a.ref_attr_name or a.HasField("g") or a.graphs for a in node.attribute):
            del copy.attribute[:]
            for attribute in node.attribute:
                self._attribute(copy, attribute, scope)
        return copy

    def _attribute(self, copy: onnx.NodeProto, attribute: onnx.AttributeProto, scope: _Scope) -> None:
        """A reference becomes what the call passes, or the function's default, or nothing; a subgraph loses its calls, too."""
        if attribute.ref_attr_name:
            if attribute.ref_attr_name in scope.attributes:
                passed = copy.attribute.add()
                passed.CopyFrom(scope.attributes[attribute.ref_attr_name])
                passed.name = attribute.name
            return
        made = copy.attribute.add()
        made.CopyFrom(attribute)
        for graph in ([made.g] if made.HasField("g") else []) + list(made.graphs):
            nodes = list(self.flat(graph.node, scope))
            del graph.node[:]
            graph.node.extend(nodes)
            for tensor in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
                tensor.name = scope.rename(tensor.name)
            for sparse in graph.sparse_initializer:
                sparse.values.name = scope.rename(sparse.values.name)

    def _body(self, call: onnx.NodeProto, key: Key, scope: _Scope) -> Iterator[onnx.NodeProto]:
        """The nodes of the function in place of its ``call``, whose names are the result's already."""
        function = self.called[key] = self.functions[key]
        if key in scope.calls:
            raise WageubnError(f"node {call.name!r}: function {function.name} calls itself; it cannot be inlined")
        prefix = call.name if scope.prefix else _unique(call.name or next(filter(None, call.output), call.op_type), self.nodes)
        names = dict.fromkeys(function.input, "") | dict(zip(function.input, call.input, strict=False)) | {"": ""}
        copies: list[tuple[str, str]] = []  # outputs that are another input's or output's name, too
        for inner, outer in zip(function.output, call.output, strict=False):
            if outer and inner in names:
                copies.append((names[inner], outer))
            elif outer:
                names[inner] = outer

        def rename(name: str) -> str:
            if name not in names:
                names[name] = _unique(f"{prefix}/{name}", self.tensors)
            return names[name]

        attributes = {a.name: a for a in (*function.attribute_proto, *call.attribute)}
        inner_scope = _Scope(prefix, rename, attributes, call.metadata_props, (*scope.calls, key))
        yield from self.flat(function.node, inner_scope)
        for typed in function.value_info:
            if typed.name not in function.output:
                self.types.append(onnx.ValueInfoProto(name=rename(typed.name), type=typed.type))
        for source, target in copies:
            node = onnx.helper.make_node("Identity", [source], [target], _unique(f"{prefix}/Identity", self.nodes))
            node.metadata_props.extend(call.metadata_props)
            yield node


def _unique(name: str, taken: set[str]) -> str:
    """``name``, or ``name.2``, ``name.3`` ... where it is taken."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}.{count}"
    taken.add(candidate)
    return candidate


def _opsets(
    model: onnx.ModelProto, called: dict[Key, onnx.FunctionProto], kept: Collection[str]
) -> list[onnx.OperatorSetIdProto]:
    """The operator sets of the result: of the model and of the functions that were inlined, but the functions' own domains, where
    none is ``kept``."""
    gone = {domain for domain, _, _ in called} - set(kept)
    versions: dict[str, Any] = {_domain(o): o for o in model.opset_import}
    for function in called.values():
        for wanted in function.opset_import:
            found = versions.setdefault(_domain(wanted), wanted)
            if found.version != wanted.version and _domain(wanted) not in gone:
                domain = _domain(wanted) or "ai.onnx"
                raise WageubnError(
                    f"function {function.name}: written for opset {wanted.version} of {domain!r}, its model for {found.version}; "
                    "export both for the same"
                )
    return [opset for domain, opset in versions.items() if domain not in gone]


def _domain(opset: onnx.OperatorSetIdProto) -> str:
    return "" if opset.domain == "ai.onnx" else str(opset.domain)
