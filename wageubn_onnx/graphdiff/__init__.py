"""`diff`: what differs between two ONNX files, whatever their nodes are called and however they are ordered.

`view` reads, `match` finds counterparts, `compare` looks at every pair, `paths` arranges two of our stages by layer and data
path, `result` is what comes of it, `report` prints it, `page` draws it. docs/diff.md says what is claimed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import onnx

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import PREFIX, load_model
from wageubn_onnx.graphdiff.compare import Comparison, file_notes, model_differences, node_ref
from wageubn_onnx.graphdiff.match import match
from wageubn_onnx.graphdiff.paths import by_path
from wageubn_onnx.graphdiff.result import Difference, Graph, ModelDiff, NodeRef
from wageubn_onnx.graphdiff.view import Node, View, function_name, view_function, view_model

Source: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto"


class Read(NamedTuple):
    """A model that was read: what to call it, and its main graph."""

    model: onnx.ModelProto
    graph: Graph
    view: View


class Alignment(NamedTuple):
    """Two models, and the counterpart in ``b`` of each node of ``a`` that has one."""

    a: Read
    b: Read
    to_b: dict[Node, Node]

    @property
    def are_stages(self) -> bool:
        """Both are stages of the pipeline: nodes correspond within one layer and data path only."""
        return bool(self.a.graph.stage and self.b.graph.stage)


def diff(a: Source, b: Source) -> ModelDiff:
    """Compare two models: files, or what `onnx.load` gives. Two stages of the pipeline are aligned by their provenance.

    Raises WageubnError where one of them cannot be read.
    """
    return explain(align(a, b))


def diff_folder(folder: str | os.PathLike[str]) -> Iterator[ModelDiff]:
    """Compare every stage of an artifact folder with the one that it is made of, in the order of the pipeline.

    Raises WageubnError where ``folder`` is none; stages that its profile has no form of are left out.
    """
    return (explain(step) for step in align_folder(folder))


def align(a: Source, b: Source) -> Alignment:
    """Find which node of one model is which of the other; raises what `diff` raises."""
    x, y = _read(a), _read(b)
    return Alignment(x, y, match(x.view, y.view, by_provenance=bool(x.graph.stage and y.graph.stage)))


def align_folder(folder: str | os.PathLike[str]) -> Iterator[Alignment]:
    """`align` every stage of an artifact folder and the one that it is made of; raises what `diff_folder` raises."""
    from wageubn_onnx.artifacts.folder import ArtifactFolder
    from wageubn_onnx.pipeline import STAGES, stage_before

    artifacts = ArtifactFolder(folder)
    for after in STAGES:
        before = stage_before(after)
        names = [f"{stage.name}.onnx" for stage in (before, after) if stage]
        if len(names) == 2 and all(name in artifacts.files for name in names):
            yield align(*(artifacts.path / name for name in names))


def explain(step: Alignment) -> ModelDiff:
    """What differs between two models that were aligned."""
    (x, graph_a, view_a), (y, graph_b, view_b), to_b = step
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
        tuple(by_path(view_a, view_b, to_b, of_pairs)) if step.are_stages else (),
    )


def _read(source: Source) -> Read:
    model = source if isinstance(source, onnx.ModelProto) else load_model(source)
    name = model.graph.name if isinstance(source, onnx.ModelProto) else str(source)
    stage = next((p.value for p in model.metadata_props if p.key == PREFIX + "stage"), "")
    try:
        view = view_model(model)
    except WageubnError as error:
        raise WageubnError(f"{name}: {error}") from None
    return Read(model, Graph(name, stage, len(view.real)), view)


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


__all__ = ["Alignment", "ModelDiff", "align", "align_folder", "diff", "diff_folder", "explain"]
