"""A function body in Python integers, every intermediate kept: what contracts are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from wageubn_onnx.proofs.bodies import Analysis, Calls
from wageubn_onnx.proofs.bounds import Bound, Op
from wageubn_onnx.proofs.walk import constant_value

Array = np.ndarray[Any, Any]  # of Python integers


def numbers(values: Any) -> Array:
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        return array.astype(object)
    if array.dtype == object or not array.size:  # what kernels make of Python integers
        return np.asarray(array, object)
    return np.vectorize(int, otypes=[object])(array)


def _divide(a: Array, b: Array) -> Array:
    assert (b >= 1).all() and ((a >= 0) | (a % b == 0)).all(), "a division that kernels may do otherwise"
    return a // b


def _gather(table: Array, index: Array) -> Array:
    assert (index >= 0).all() and (index < len(table)).all(), "an index outside its table"
    return numbers(table[index.astype(int)])


KERNELS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _divide,
    "Neg": lambda a: -a,
    "Abs": abs,
    "Max": np.maximum,
    "Min": np.minimum,
    "Clip": lambda a, least, greatest: np.minimum(np.maximum(a, least), greatest),
    "BitwiseAnd": lambda a, b: a & b,
    "BitwiseXor": lambda a, b: a ^ b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Less": lambda a, b: a < b,
    "Equal": lambda a, b: a == b,
    "And": lambda a, b: a * b,
    "Or": lambda a, b: a | b,
    "Not": lambda a: 1 - a,
    "Where": lambda c, a, b: np.where(c.astype(bool), a, b),
    "Gather": _gather,
    "Unsqueeze": lambda a, axes: a[..., None],
    "Range": lambda start, stop, step: np.array(range(int(start), int(stop), int(step)), object),
    "Cast": lambda a: a,
    "Identity": lambda a: a,
    "ReduceMax": lambda a, *axes: a.max(),
    "ReduceMin": lambda a, *axes: a.min(),
    "ReduceSum": lambda a, *axes: a.sum(axis=-1) if axes else a.sum(),
}


@dataclass
class Record:
    """The value of every tensor of one body, and the records of its calls by the index of their node."""

    values: dict[str, Array]
    inner: dict[int, Record]


def evaluate(calls: Calls, function: str, attributes: dict[str, Any], operands: dict[str, Any]) -> Record:
    """The body of ``function`` on these operands."""
    body = calls.bodies[function]
    record = Record({name: numbers(value) for name, value in operands.items()}, {})
    for index, raw in enumerate(body.ops):
        op: Op = raw.resolved(body.defaults | attributes)
        inputs = [record.values[name] for name in op.inputs]
        if op.op == "Constant":
            record.values[op.outputs[0]] = numbers(constant_value(op))
        elif op.domain:
            callee = calls.bodies[op.op]
            inner = evaluate(calls, op.op, op.attrs, dict(zip(callee.inputs, inputs, strict=True)))
            record.inner[index] = inner
            record.values |= {name: inner.values[o] for name, o in zip(op.outputs, callee.outputs, strict=True)}
        else:
            record.values[op.outputs[0]] = numbers(KERNELS[op.op](*inputs))
    return record


def check(record: Record, analyses: list[Analysis]) -> None:
    """Every value of a record lies in what the analyses of its call, one a case, say together.

    Of each case analysis at least one case is the one that these operands are, and its own, narrower claims hold too.
    """
    body = analyses[0].body
    for index, op in enumerate(body.ops):
        for name in op.outputs:
            bounds = [analysis.bound(name) for analysis in analyses]
            least, greatest = min(b.lo for b in bounds), max(b.hi for b in bounds)
            assert _inside(record.values[name], bounds[0]._replace(lo=least, hi=greatest, peak=0)), f"{body.name}.{name}"
        if index in record.inner:
            check(record.inner[index], [inner for analysis in analyses for inner in analysis.inner[index]])
    for analysis in analyses:
        if not all(_inside(record.values[n], b) for n, b in zip(body.inputs, analysis.operands, strict=True)):
            continue
        for cases in analysis.leaves:
            walks = [w for w, _ in cases if all(_inside(record.values[n], w.bounds[n]) for n in body.inputs)]
            assert walks or cases[0][0].elementwise, f"no case of {body.name} is this one"
            for walk in walks:
                for name, bound in walk.bounds.items():
                    assert _inside(record.values[name], bound), f"{body.name}.{name}"


def _inside(value: Array, bound: Bound) -> bool:
    if not value.size:
        return True
    least, greatest = value.min(), value.max()
    return bool(bound.lo <= least and greatest <= bound.hi and max(-least, greatest) >= bound.peak)
