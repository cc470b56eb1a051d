"""The walk that turns a graph on quantized grids into integers, and what its rules share.

Each node of the float graph has one rule (the table is `RULES` in integers.py). A rule sees its operands as `Value`s and emits
integer nodes; what it emits carries bounds that hold for every input, and a rule refuses, naming the node, where a bound leaves
what its kernel computes exactly:

* int32 arithmetic below 2^31, operands of a run-time requantization below 2^28 (see quantizers/integer.py);
* int64 sums below 2^53, beyond which onnxruntime's reductions are inexact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from wageubn_onnx import composites
from wageubn_onnx.composites import Composite, kind_of
from wageubn_onnx.config import Config
from wageubn_onnx.errors import ProofFailed, WageubnError
from wageubn_onnx.fixedpoint import (
    Constant,
    Exponent,
    Fixed,
    Pair,
    Raw,
    Value,
    mantissas,
    renamed,
    signature,
    tensors_of,
    terms_of,
)
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.quantizers import integer

INT32_LIMIT, INT64_LIMIT = 2**31, 2**53
Rule = Callable[["Lowering", gs.Node], "Value | list[Value]"]
IntegerBody = Callable[["Lowering", Sequence[Value]], list[Value]]


def short_name(node: gs.Node) -> str:
    """A node's name without its layer's: what its integer form is called within the layer."""
    return str(node.name).rsplit("/", 1)[-1]


class Lowering:
    """One lowering in progress: ``source`` is read, ``g`` is written, by ``rules``; ``values`` maps source tensors to what
    they became."""

    def __init__(self, source: Model, g: Model, config: Config, rules: Mapping[str, Rule]) -> None:
        self.source, self.g, self.config, self.rules = source, g, config, rules
        self.g.functions |= integer.LIBRARY
        self.values: dict[str, Value] = {}
        self._unsigned: dict[str, tuple[Tensor, Tensor]] = {}
        self._composites: dict[Any, Any] = {}  # what each returns, by its name and its operands' signatures

    # -- operands -----------------------------------------------------------------------------------------------------

    def value(self, tensor: Tensor) -> Value:
        """What a source tensor became; a constant of the source, but for a frozen parameter, as `Constant` or `Raw`."""
        if isinstance(tensor, gs.Constant) and tensor.name not in self.values:
            if tensor.values.dtype.kind == "f":
                return Constant(tensor.values)
            return Raw(self.g.constant(tensor.values, tensor.values.dtype))
        return self.values[tensor.name]

    def fixed(self, value: Value, node: gs.Node) -> Fixed:
        """``value`` as one tensor of mantissas; a pair's parts are combined exactly, in int64 where int32 is too small."""
        if isinstance(value, Fixed):
            return value
        if isinstance(value, Constant):
            return self.constant(value)
        if isinstance(value, Pair):
            high, low = value.high, value.low
            unit = 2**value.base
            raised = self.multiply(high, Fixed(self.g.scalar(unit, np.int32), Exponent(), unit, unit), node)
            return self.add(Fixed(raised.tensor, low.exponent, raised.lo, raised.hi), low, node)
        raise WageubnError(
            f"node {node.name!r}: {type(value).__name__} needs a quantizer before {node.op}; this is a fault of a pass"
        )

    def constant(self, value: Constant) -> Fixed:
        numbers, exponent = mantissas(value.values)
        lo, hi = int(min(numbers.ravel())), int(max(numbers.ravel()))
        dtype = np.int32 if max(abs(lo), abs(hi)) < INT32_LIMIT else np.int64
        return Fixed(self.g.constant(numbers.astype(dtype), dtype), Exponent(exponent), lo, hi)

    def cast(self, tensor: Tensor, dtype: Any) -> Tensor:
        if tensor.dtype == np.dtype(dtype):
            return tensor
        return self.g.op("Cast", tensor, name="cast", to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def int32(self, x: Fixed, node: gs.Node) -> Tensor:
        """x as int32, refused where its bound leaves that."""
        self.checked(x.bound, INT32_LIMIT, node)
        return self.cast(x.tensor, np.int32)

    def unsigned(self, x: Fixed) -> tuple[Tensor, Tensor]:
        """x as a uint8 operand of a product, and its zero point: 0 where x is never negative, else 128 (the sign bit flipped)."""
        if x.tensor.dtype != np.uint8 and (x.lo < -128 or x.hi > 127):
            raise WageubnError(f"tensor {x.tensor.name!r} enters a product with {x.lo}..{x.hi}; this is a fault of a pass")
        if x.tensor.name not in self._unsigned:
            if x.tensor.dtype == np.uint8:
                self._unsigned[x.tensor.name] = (x.tensor, self.g.scalar(0, np.uint8))
            else:
                bits = self.cast(x.tensor, np.uint8)
                lifted = self.g.op("BitwiseXor", bits, self.g.scalar(128, np.uint8), name="lifted")
                self._unsigned[x.tensor.name] = (lifted, self.g.scalar(128, np.uint8))
        return self._unsigned[x.tensor.name]

    # -- arithmetic on mantissas --------------------------------------------------------------------------------------

    def multiply(self, a: Fixed, b: Fixed, node: gs.Node) -> Fixed:
        corners = [p * q for p in (a.lo, a.hi) for q in (b.lo, b.hi)]
        return self._arithmetic("Mul", a, b, a.exponent + b.exponent, min(corners), max(corners), node)

    def add(self, a: Fixed, b: Fixed, node: gs.Node, sign: int = 1) -> Fixed:
        """a + sign*b, both brought to the finer of their exponents, which may differ by a static amount only."""
        if not a.exponent.same_terms(b.exponent):
            raise WageubnError(f"node {node.name!r}: its operands' run-time exponents differ; this is a fault of a pass")
        low = min(a.exponent.static, b.exponent.static)
        a, b = self.raised(a, low, node), self.raised(b, low, node)
        lo, hi = (a.lo + b.lo, a.hi + b.hi) if sign > 0 else (a.lo - b.hi, a.hi - b.lo)
        return self._arithmetic("Add" if sign > 0 else "Sub", a, b, a.exponent, lo, hi, node)

    def raised(self, x: Fixed, exponent: int, node: gs.Node) -> Fixed:
        """x on a finer static exponent: an exact left shift."""
        up = x.exponent.static - exponent
        if up == 0:
            return x
        if up < 0:
            raise WageubnError(f"node {node.name!r}: {node.op} would lose the low bits of an operand; this is a fault of a pass")
        factor = 2**up
        self.checked(max(x.bound, 1) * factor, INT64_LIMIT, node)
        dtype = np.int32 if factor < INT32_LIMIT else np.int64
        product = self.multiply(x, Fixed(self.g.scalar(factor, dtype), Exponent(), factor, factor), node)
        return Fixed(product.tensor, x.exponent + (-up), product.lo, product.hi)

    def _arithmetic(self, kind: str, a: Fixed, b: Fixed, exponent: Exponent, lo: int, hi: int, node: gs.Node) -> Fixed:
        dtype = self.width(max(abs(lo), abs(hi)), node, a.tensor, b.tensor)
        tensor = self.g.op(kind, self.cast(a.tensor, dtype), self.cast(b.tensor, dtype), name=short_name(node))
        return Fixed(tensor, exponent, lo, hi)

    def width(self, bound: int, node: gs.Node, *operands: Tensor) -> Any:
        """int32 where the bound and the operands allow it, else int64; refuses what leaves int64's exact range."""
        if bound >= INT64_LIMIT:
            raise ProofFailed(
                f"node {node.name!r}: {node.op} may reach {bound} (2^{math.log2(bound):.1f}), beyond 2^53; use a smaller --batch"
            )
        wide = bound >= INT32_LIMIT or any(o.dtype == np.int64 for o in operands)
        return np.dtype(np.int64 if wide else np.int32)

    def checked(self, bound: int, limit: int, node: gs.Node) -> None:
        """Refuse a bound that does not stay below ``limit``."""
        if bound >= limit:
            raise ProofFailed(
                f"node {node.name!r}: {node.op} may reach {bound}, and must stay below {limit}; use a smaller --batch or image"
            )

    def reduce_sum(self, x: Fixed, axes: Sequence[int], keepdims: int, node: gs.Node) -> Fixed:
        """Exact sum: int32 where it fits, else over the image in int32 and over the batch in int64, else all in int64."""
        g, shape = self.g, x.tensor.shape
        count = math.prod(shape[a] for a in axes)
        if x.bound * count < INT32_LIMIT and x.tensor.dtype != np.int64:
            tensor = g.op("ReduceSum", self.cast(x.tensor, np.int32), g.ints(*axes), name="sum", keepdims=keepdims)
            return Fixed(tensor, x.exponent, x.lo * count, x.hi * count)
        self.checked(x.bound * count, INT64_LIMIT, node)
        inner = [a for a in axes if a != 0]
        inner_count = math.prod(shape[a] for a in inner)
        if 0 in axes and inner and keepdims and x.bound * inner_count < INT32_LIMIT and x.tensor.dtype != np.int64:
            partial = g.op("ReduceSum", self.cast(x.tensor, np.int32), g.ints(*inner), name="sum", keepdims=1)
            tensor = g.op("ReduceSum", self.cast(partial, np.int64), g.ints(0), name="sum", keepdims=1)
        else:
            tensor = g.op("ReduceSum", self.cast(x.tensor, np.int64), g.ints(*axes), name="sum", keepdims=keepdims)
        return Fixed(tensor, x.exponent, x.lo * count, x.hi * count)

    def structural(self, value: Value, node: gs.Node, emit: Callable[[Tensor], Tensor]) -> Value:
        """Apply an operator that only moves elements, to each tensor of a value."""

        def moved(x: Fixed) -> Fixed:
            return Fixed(emit(x.tensor), x.exponent, x.lo, x.hi)

        if isinstance(value, Pair):
            return Pair(moved(value.high), moved(value.low), value.base)
        if isinstance(value, Raw):
            return Raw(emit(value.tensor))
        return moved(self.fixed(value, node))

    # -- composites ---------------------------------------------------------------------------------------------------

    def composite(self, node: gs.Node, values: Sequence[Value]) -> list[Value]:
        """A call of the composite that ``node`` calls, on ``values``: what its body's nodes become, each by its rule."""
        found: Composite = node.composite

        def body(inner: Lowering, operands: Sequence[Value]) -> list[Value]:
            inner.source = found.body
            inner.values = {tensor.name: value for tensor, value in zip(found.formal, operands, strict=True)}
            inner.walk()
            return [inner.value(result) for result in found.results]

        return self.outlined(node, kind_of(node.op), values, body)

    def outlined(
        self, node: gs.Node, kind: str, values: Sequence[Value], body: IntegerBody, name: str = "", **attrs: Any
    ) -> list[Value]:
        """A call of the composite ``kind`` with the attributes of ``node`` and ``attrs``: what ``body`` computes of ``values``.

        ``body`` emits its nodes into a lowering of its own. It is asked once for dtypes, shapes, bounds and exponents.
        """
        operands = {t.name: t for value in values for t in tensors_of(value) if not isinstance(t, gs.Constant)}
        terms = {t.name: t for value in values for t in terms_of(value)}
        places = {name: f"t{i}" for i, name in enumerate(operands)} | {name: f"e{i}" for i, name in enumerate(terms)}
        key = tuple(signature(value, places) for value in values)
        made = list[tuple[Sequence[Value], list[Tensor], list[Tensor]]]()

        def emitted(g: Model, formal: list[Tensor]) -> list[Tensor]:
            given = dict(zip(operands, formal, strict=True))
            results = body(Lowering(self.source, g, self.config, self.rules), [renamed(value, given) for value in values])
            inner = {t.name: t for value in results for t in tensors_of(value) if not isinstance(t, gs.Constant)}
            outputs = [t for name, t in inner.items() if all(t is not f for f in formal)]
            made.append((results, formal, outputs))
            return outputs

        outputs = composites.emit(
            self.g, kind, list(operands.values()), emitted, key, name or short_name(node), **node.attrs, **attrs
        )
        op = outputs[0].inputs[0].op
        if made:
            self._composites[op, key] = *made[0], list(terms)
        results, formal, inner, before = self._composites[op, key]
        given = dict(zip((t.name for t in formal), operands.values(), strict=True))
        given |= dict(zip((t.name for t in inner), outputs, strict=True))
        given |= dict(zip(before, terms.values(), strict=True))
        return [renamed(value, given) for value in results]

    # -- the walk -----------------------------------------------------------------------------------------------------

    def walk(self, made_by: str = "") -> None:
        """Lower every node of the source in order, for the pass ``made_by``. Raises WageubnError for a node without a rule."""
        for node in self.source.graph.nodes:
            rule = self.rules.get(kind_of(node.op) or node.op)
            if rule is None:
                raise WageubnError(f"node {node.name!r}: operator {node.op} has no integer lowering")
            tag = self.source.tag(node.outputs[0])
            with self.g.beside(tag), self.g.context(made_by=f"{tag.made_by},{made_by}"):
                results = rule(self, node)
            for output, result in zip(node.outputs, results if isinstance(results, list) else [results], strict=True):
                self.values[output.name] = result
