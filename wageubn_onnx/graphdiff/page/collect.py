"""What the page shows, taken out of aligned models: compact JSON, since ResNet-50's six stages have 22,000 nodes.

Equal things are written once. `strings` holds texts. A `kind` is all that nodes of different layers may have in common; a node
is [kind, layer, operand, ...]. An operand is the number of a tensor: first come a stage's constants, then all results in the
order of its nodes, which include its inputs and outputs; -1 where there is none. A name that begins with its layer's is written
with a tab in the layer's place. model.js reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import onnx

from wageubn_onnx.graphdiff import Alignment, Read
from wageubn_onnx.graphdiff.view import INPUT, OUTPUT, Constant, Node, Tensor
from wageubn_onnx.pipeline import STAGES, Stage, stage_before
from wageubn_onnx.symbols import SYMBOLS, direction

LONGEST = 200  # characters of an attribute or a constant's value
FEW = 8  # elements of a constant whose values are shown
FACTS = ("role", "pass", "source", "bits", "format")  # of a node, without its layer


class _Table:
    """Values, each once, by number in the order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int] = {}

    def __call__(self, value: Hashable) -> int:
        return self.numbers.setdefault(value, len(self.numbers))


class Collector:
    """Takes one step after the other, so that not all models need to be in memory at once."""

    def __init__(self) -> None:
        self.strings, self.kinds, self.layers = _Table(), _Table(), _Table()
        self.order: list[str] = []  # of the layers, as they are listed
        self.paths = dict[str, None]()
        self.stages: dict[str, dict[str, Any]] = {}  # by file
        self.steps: list[dict[str, Any]] = []

    def add(self, step: Alignment) -> None:
        """Take in the two models, unless they were, and how they correspond."""
        to_a = {other: node for node, other in step.to_b.items()}
        numbers = [self._stage(step.a, {}), self._stage(step.b, to_a)]
        counterparts = [step.to_b.get(node) for node in step.a.view.nodes]
        stages = (stage_named(side.graph.stage) for side in (step.a, step.b))
        self.steps.append(
            {
                "a": numbers[0],
                "b": numbers[1],
                "pairs": [-1 if other is None else other.index for other in counterparts],
                "removed": sum(node not in step.to_b for node in step.a.view.real),
                "passes": _passes(step, to_a, *stages),
            }
        )

    def model(self, title: str) -> dict[str, Any]:
        """All that was taken in, JSON-able."""
        symbols = {path: [*SYMBOLS.get(path, (path, "")), direction(path)] for path in sorted(self.paths)}
        return {
            "title": title,
            "paths": symbols,  # data path -> symbol, what it is, direction
            "layers": list(self.layers.numbers),
            "order": [self.layers(layer) for layer in self.order],
            "strings": list(self.strings.numbers),
            "kinds": list(self.kinds.numbers),
            "stages": list(self.stages.values()),
            "steps": self.steps,
        }

    # -- one stage ----------------------------------------------------------------------------------------------------

    def _stage(self, read: Read, to_a: dict[Node, Node]) -> int:
        """The number of a model; nodes of no layer belong to one of their own, named after them or what they correspond to."""
        if read.graph.file in self.stages:
            return list(self.stages).index(read.graph.file)
        layers = {node: _layer(node, to_a) for node in read.view.nodes}
        self._list_layers(read.view.real, layers)
        constants = dict.fromkeys(o for node in read.view.nodes for o in node.operands if isinstance(o, Constant))
        numbers: dict[Tensor | Constant, int] = {constant: i for i, constant in enumerate(constants)}
        for node in read.view.nodes:
            for result in node.results:
                numbers[result] = len(numbers)
        stage = stage_named(read.graph.stage)
        self.stages[read.graph.file] = {
            "name": read.graph.stage or Path(read.graph.file).name,
            "summary": stage.summary if stage else "",
            "count": len(read.view.real),
            "quantizers": sum("format" in node.facts for node in read.view.real),
            "dtypes": _dtypes(read.view.real),
            "constants": [self._constant(constant) for constant in constants],
            "nodes": [[self._kind(node, layers[node]), self.layers(layers[node]), *_operands(node, numbers)] for node in layers],
        }
        return len(self.stages) - 1

    def _list_layers(self, nodes: Iterable[Node], layers: dict[Node, str]) -> None:
        """Layers in the order in which an image goes through them; those that only this stage has after the ones before them."""
        last = dict.fromkeys((layers[node] for node in nodes), -1)  # a layer's last forward node; none of those without
        for node in nodes:
            _, way, path = node.origin
            if way in ("forward", "") and not path.startswith("BN.running"):
                last[layers[node]] = node.index
        place, known = 0, set(self.order)
        for layer in sorted(last, key=lambda name: (last[name] < 0, last[name])):
            if layer in known:
                place = self.order.index(layer) + 1
            else:
                self.order.insert(len(self.order) if last[layer] < 0 else place, layer)
                place += 1

    def _kind(self, node: Node, layer: str) -> int:
        self.paths.update({node.facts["role"]: None} if "role" in node.facts else {})
        results = ((self._name(result.name, layer), self.strings(str(result.type or ""))) for result in node.results)
        place = {INPUT: 1, OUTPUT: 2}.get(node.op, 0)
        op, name = self.strings(node.op), self._name(node.name, layer)
        facts = tuple(self._name(node.facts.get(key, ""), layer) for key in FACTS)
        attributes = tuple(self.strings(_attribute(node, key)) for key in sorted(node.given))
        return self.kinds((place, op, name, *facts, attributes, tuple(results)))

    def _constant(self, constant: Constant) -> list[int]:
        values = constant.values
        value = _short(str(values.tolist())) if values.size <= FEW else ""
        return [self.strings(text) for text in (constant.name, str(constant.type), value)]

    def _name(self, name: str, layer: str) -> int:
        """A tab stands for the layer; so one that begins a name is written twice."""
        if layer and name.startswith(layer) and name[len(layer) : len(layer) + 1] in ("", "/", ".", ":", ","):
            return self.strings("\t" + name[len(layer) :])
        return self.strings("\t" * name.startswith("\t") + name)


def _layer(node: Node, to_a: dict[Node, Node]) -> str:
    """The layer on record; of a node of other programs its name, as A has it; of an output its maker's."""
    if node.op == OUTPUT and isinstance(node.operands[0], Tensor):
        return _layer(node.operands[0].maker, to_a)
    return node.facts.get("layer") or to_a.get(node, node).label


def _operands(node: Node, numbers: dict[Tensor | Constant, int]) -> list[int]:
    return [-1 if operand is None else numbers[operand] for operand in node.operands]


def _attribute(node: Node, name: str) -> str:
    return _short(str(onnx.helper.printable_attribute(node.protos[name])))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _dtypes(nodes: Iterable[Node]) -> dict[str, int]:
    """How many results have which dtype, the most frequent first."""
    found = Counter(result.type.dtype for node in nodes for result in node.results if result.type)
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))


# -- passes ---------------------------------------------------------------------------------------------------------------


def stage_named(name: str) -> Stage | None:
    """The stage of the pipeline; None where a file is no stage."""
    return next((stage for stage in STAGES if stage.name == name), None)


def _lineage(stage: Stage | None) -> list[Stage]:
    """The stages that lead to ``stage``, itself included, in order."""
    return [*_lineage(stage_before(stage)), stage] if stage else []


def _passes(step: Alignment, to_a: dict[Node, Node], before: Stage | None, after: Stage | None) -> list[dict[str, Any]]:
    """What each pass between the two stages did, in order.

    inserted: nodes of B without a counterpart, counted at the first of these passes on their record; rewritten: nodes with one,
    to whose record the pass added itself. quantizers: its quantize nodes by symbol; dtypes: of the results of all these.
    """
    if not before or not after:
        return []
    known = _lineage(before)
    passes = {p.name: p.summary for stage in _lineage(after) if stage not in known for p in stage.passes}
    passes["outputs"] = "copies that only name an output"  # no pass, but on record as one
    done: dict[str, dict[str, list[Node]]] = {name: {"inserted": [], "rewritten": []} for name in passes}
    for node in step.b.view.real:
        record = node.facts.get("pass", "").split(",")
        if node in to_a:
            earlier = to_a[node].facts.get("pass", "").split(",")
            for name in record:
                if name in done and name not in earlier:
                    done[name]["rewritten"].append(node)
        elif name := next((name for name in record if name in done), ""):
            done[name]["inserted"].append(node)
    return [
        {
            "name": name,
            "summary": passes[name],
            "inserted": len(nodes["inserted"]),
            "rewritten": len(nodes["rewritten"]),
            "quantizers": dict(Counter(SYMBOLS[n.facts["role"]][0] for n in _all(nodes) if "format" in n.facts)),
            "dtypes": _dtypes(_all(nodes)),
        }
        for name, nodes in done.items()
        if name != "outputs" or nodes["inserted"]
    ]


def _all(parts: dict[str, list[Node]]) -> list[Node]:
    return [node for nodes in parts.values() for node in nodes]
