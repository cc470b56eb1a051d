"""`diff`: what differs between two ONNX files, whatever their nodes are called and however they are ordered.

`view` reads, `match` finds counterparts, `compare` looks at every pair, `paths` arranges two of our stages by layer and data
path, `result` is what comes of it, `report` prints it. docs/diff.md says what is claimed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TypeAlias

import onnx

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import PREFIX, load_model
from wageubn_onnx.graphdiff.compare import Comparison, file_notes, model_differences, node_ref
from wageubn_onnx.graphdiff.match import match
from wageubn_onnx.graphdiff.paths import by_path
from wageubn_onnx.graphdiff.result import Difference, Graph, ModelDiff, NodeRef
from wageubn_onnx.graphdiff.view import Node, View, function_name, view_function, view_model

Source: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto"


def diff(a: Source, b: Source) -> ModelDiff:
    """Compare two models: files, or what `onnx.load` gives. Two stages of the pipeline are aligned by their provenance.

    Raises WageubnError where one of them cannot be read.
    """
    (x, graph_a, view_a), (y, graph_b, view_b) = _read(a), _read(b)
    are_stages = bool(graph_a.stage and graph_b.stage)
    to_b = match(view_a, view_b, by_provenance=are_stages)
    comparison = Comparison(view_a, view_b, to_b)
    of_pairs = comparison.run()
    return ModelDiff(
        graph_a,
        graph_b,
        tuple((node_ref(node), node_ref(other)) for node, other in to_b.items() if not node.is_place),
        _left(view_a, to_b.keys()),
        _left(view_b, to_b.values()),
        (*model_differences(x, y), *_functions(x, y), *of_pairs),
        (*file_notes(x, y), *comparison.notes),
        tuple(by_path(view_a, view_b, to_b, of_pairs)) if are_stages else (),
    )


def diff_folder(folder: str | os.PathLike[str]) -> Iterator[ModelDiff]:
    """Compare every stage of an artifact folder with the one that it is made of, in the order of the pipeline.

    Raises WageubnError where ``folder`` is none; stages that its profile has no form of are left out.
    """
    from wageubn_onnx.pipeline import FORWARD, QUANT_EVAL, STAGES
    from wageubn_onnx.runtime.folder import ArtifactFolder

    path = ArtifactFolder(folder).path
    files = {stage.name: path / f"{stage.name}.onnx" for stage in STAGES}
    for before, after in pairwise(STAGES):
        source = FORWARD if after is QUANT_EVAL else before
        if files[source.name].is_file() and files[after.name].is_file():
            yield diff(files[source.name], files[after.name])


def _read(source: Source) -> tuple[onnx.ModelProto, Graph, View]:
    """The model, what to call it, and its main graph."""
    model = source if isinstance(source, onnx.ModelProto) else load_model(source)
    name = model.graph.name if isinstance(source, onnx.ModelProto) else str(source)
    stage = next((p.value for p in model.metadata_props if p.key == PREFIX + "stage"), "")
    try:
        view = view_model(model)
    except WageubnError as error:
        raise WageubnError(f"{name}: {error}") from None
    return model, Graph(name, stage, len(view.real)), view


def _left(view: View, matched: Iterable[Node]) -> tuple[NodeRef, ...]:
    known = set(matched)
    return tuple(node_ref(node) for node in view.real if node not in known)


def _functions(a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[Difference]:
    """Functions, known by their names: those that one model lacks, and what differs in the bodies of the others."""
    in_a, in_b = ({function_name(f.domain, f.name, f.overload): f for f in m.functions} for m in (a, b))
    for name in sorted(in_a.keys() | in_b.keys()):
        if name not in in_a or name not in in_b:
            here, there = (f"{len(fs[name].node)} nodes" if name in fs else None for fs in (in_a, in_b))
            yield Difference("function", name * (name in in_a), name * (name in in_b), "", here, there)
        elif in_a[name] != in_b[name]:
            yield from _body(name, in_a[name], in_b[name])


def _body(name: str, a: onnx.FunctionProto, b: onnx.FunctionProto) -> Iterator[Difference]:
    """What differs between two functions of one name."""
    view_a, view_b = view_function(a), view_function(b)
    to_b = match(view_a, view_b)
    for node in _left(view_a, to_b.keys()):
        yield Difference("function", name, name, "node", f"{node.op} {node.name}", None)
    for node in _left(view_b, to_b.values()):
        yield Difference("function", name, name, "node", None, f"{node.op} {node.name}")
    for d in Comparison(view_a, view_b, to_b).run():
        yield Difference("function", name, name, " ".join(filter(None, (d.where, d.kind, d.what))), d.a, d.b, values=d.values)
    signatures = [
        {
            "attributes": sorted(f.attribute),
            "defaults": sorted(onnx.helper.printable_attribute(x) for x in f.attribute_proto),
            "opsets": sorted(f"{o.domain or 'ai.onnx'} {o.version}" for o in f.opset_import),
        }
        for f in (a, b)
    ]
    for what, entries in signatures[0].items():
        others = signatures[1][what]
        if entries != others:
            yield Difference("function", name, name, what, ", ".join(map(str, entries)), ", ".join(map(str, others)))


__all__ = ["ModelDiff", "diff", "diff_folder"]
