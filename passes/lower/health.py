"""Counters of what the quantizers do to their tensors, as one more output of the integer step.

Small tensors of one size and format are counted together, since a node costs more than their elements; a large one is counted by
itself, so that it need not be kept. 8- and 16-bit mantissas are compared as int32: older runtimes compare nothing narrower, and
the cast costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from wageubn_onnx.config import Config
from wageubn_onnx.fixedpoint import Exponent, Fixed, Pair, Value
from wageubn_onnx.graph import DOMAIN, Model, Tensor, next_states
from wageubn_onnx.passbase import Pass
from wageubn_onnx.quantizers.integer import LIMBS

T = onnx.TensorProto
SMALL = 4096  # elements
SOFTMAX = ("S.t", "S.p")


@dataclass(frozen=True)
class Watched:
    """A quantize node: its tensors of mantissas, and those of them that can lie at a bound."""

    node: gs.Node
    parts: Sequence[Tensor]
    bounded: Sequence[Tensor]

    @property
    def elements(self) -> int:
        return sum(math.prod(p.shape) for p in self.bounded)

    @property
    def group(self) -> Hashable:
        """What quantizers have in common that are counted together."""
        attrs, small = self.node.attrs, self.elements <= SMALL
        alike = (self.node.op, self.parts[0].dtype, self.elements, attrs.get("least"), attrs.get("greatest"))
        return alike if small else self.node.name


def count_health(g: Model, config: Config) -> None:
    """Make ``named['health']``, int32 [quantizers, 3], and ``notes['health']``, what its rows stand for, where asked to.

    A row is: how many elements lie at a bound of their format; 1 where all are zero, else 0; the exponent of the mantissas, the
    greatest where every channel has its own. A quantizer of two tensors (a flag pair, the operands of a sum) is one row. A
    quantized constant has none: it never changes.
    """
    if not config.health:
        return
    exponents = _exponents(g.notes["lowered"])
    groups: dict[Hashable, list[Watched]] = {}
    for node in _quantizers(g):
        parts = [o for o in node.outputs if o.name in exponents]
        # +-127 is no bound of a flag pair's low part: it carries into the high
        bounded = parts[:1] if node.op.startswith("FlagQuantize") else parts
        watched = Watched(node, parts, bounded)
        groups.setdefault(watched.group, []).append(watched)
    rows = [w for group in groups.values() for w in group]
    with g.context(layer="health", path="health"):
        counts = [_counts(g, group) for group in groups.values()]
        some = g.op("Concat", *(nonzero for _, nonzero in counts), name="nonzero", axis=0)
        all_zero = g.op("Sub", g.scalar(1, np.int32), g.op("Cast", some, name="nonzero", to=T.INT32), name="all_zero")
        exponent = [_greatest(g, exponents[w.parts[0].name]) for w in rows]
        columns = g.op("Concat", *(saturated for saturated, _ in counts), all_zero, *exponent, name="columns", axis=0)
        columns = g.op("Reshape", columns, g.ints(3, len(rows)), name="columns")
        g.named["health"] = g.op("Transpose", columns, name="rows", perm=[1, 0])
    g.notes["health"] = [
        {"node": w.node.name, "layer": g.tag(w.parts[0]).layer, "role": w.node.attrs["role"], "elements": w.elements}
        for w in rows
    ]


def _greatest(g: Model, exponent: Exponent) -> Tensor:
    """Of one exponent, or of one a channel: int32 [1]."""
    tensor = exponent.tensor(g)
    if exponent.is_per_channel:
        tensor = g.op("ReduceMax", tensor, g.ints(0, 1, 2, 3), name="exponent", keepdims=0)
    return g.op("Reshape", tensor, g.ints(1), name="exponent")


def _exponents(lowered: dict[str, Value]) -> dict[str, Exponent]:
    """Of every tensor of mantissas by name; a pair's is that of its low part.

    The first value of a tensor counts: that of its quantizer, before powers of two that only move the exponent.
    """
    found: dict[str, Exponent] = {}
    for value in lowered.values():
        if isinstance(value, Fixed):
            found.setdefault(value.tensor.name, value.exponent)
        if isinstance(value, Pair):
            maker = value.high.tensor.inputs[0]
            whole = maker.inputs[:1] if maker.op == LIMBS.name else maker.outputs[:2]
            found |= {t.name: value.low.exponent for t in whole if t.name not in found}
    return found


def _quantizers(g: Model) -> list[gs.Node]:
    """The quantize nodes of variables that the step's results need, in graph order; counting must not keep others alive."""
    pending = [*next_states(g).values(), g.named["loss"], g.named["correct"]]
    needed: set[int] = set()
    while pending:
        for node in pending.pop().inputs:
            if id(node) not in needed:
                needed.add(id(node))
                pending += node.inputs
    found = [n for n in g.graph.nodes if n.domain == DOMAIN and "role" in n.attrs and n.op != LIMBS.name and id(n) in needed]
    return [n for n in found if not isinstance(n.inputs[0], gs.Constant)]


def _counts(g: Model, group: Sequence[Watched]) -> tuple[Tensor, Tensor]:
    """Of each of k quantizers: how many elements lie at a bound, int32 [k], and whether any is other than 0, uint8 [k]."""
    whole = _stacked(g, [w.parts for w in group])
    bits = g.op("Cast", g.op("Cast", whole, name="nonzero", to=T.BOOL), name="nonzero", to=T.UINT8)
    nonzero = g.op("ReduceMax", bits, g.ints(1), name="nonzero", keepdims=0)
    bounds = _bounds(g, group[0].node)
    if not bounds:
        return g.constant([0] * len(group), np.int32, name="saturated"), nonzero
    x = whole if group[0].bounded is group[0].parts else _stacked(g, [w.bounded for w in group])
    if x.dtype != bounds[0].dtype:
        x = g.op("Cast", x, name="wide", to=T.INT32)
    hits = [g.op("Equal", x, bound, name="hit") for bound in bounds]
    hit = hits[0] if len(hits) == 1 else g.op("Or", *hits, name="hit")
    return g.op("ReduceSum", g.op("Cast", hit, name="hits", to=T.INT32), g.ints(1), name="saturated", keepdims=0), nonzero


def _stacked(g: Model, rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """[k, n]: in each row all elements of one of k lists of tensors."""
    flat = [[g.op("Reshape", t, g.ints(1, -1), name="flat") for t in row] for row in rows]
    whole = [r[0] if len(r) == 1 else g.op("Concat", *r, name="flat", axis=1) for r in flat]
    return whole[0] if len(whole) == 1 else g.op("Concat", *whole, name="stacked", axis=0)


def _bounds(g: Model, node: gs.Node) -> list[Tensor]:
    """The mantissas at which a call saturates, as scalars.

    A bound of 0 cuts off a sign, as ReLU does, and is none of them; nor are those of the softmax, which is 0 or 1 there anyway.
    """
    dtype = np.dtype(np.int64 if node.outputs[0].dtype == np.int64 else np.int32)
    if node.op.startswith("ConstantQuantize"):
        greatest = g.op("Sub", node.inputs[1], g.scalar(1, dtype), name="greatest")
        return [g.op("Sub", g.scalar(0, dtype), greatest, name="least"), greatest]
    if node.op.startswith("FlagQuantize"):
        bounds = (-127, 127)
    elif "least" in node.attrs and node.attrs["role"] not in SOFTMAX:
        bounds = (node.attrs["least"], node.attrs["greatest"])
    else:  # nor does GridQuantizePair saturate
        return []
    return [g.scalar(bound, dtype) for bound in bounds if bound]


PASS = Pass("health", "on request, count saturated and all-zero tensors of every quantizer", count_health)
