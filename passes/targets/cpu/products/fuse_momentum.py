"""Momentum in one kernel: the rounded sum of two 8-bit tensors, each by a factor, is a QLinearAdd.

Its scales are the factors and a power of two, float32 parameters; the sums are small integers, exact in float32, and are rounded
half to even. Where the sum itself is wanted, too, as the update wants it, it is a product of the row of factors and the tensors,
one a row: casts run on one thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import MICROSOFT, attributes, import_microsoft
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.cpu.scalars.batch_small_tensors import SMALL

T = onnx.TensorProto
SHORT = 2**15  # a kernel that adds pairs of products in int16 may not saturate


@dataclass(frozen=True)
class Term:
    """``factor`` times the int8 tensor ``name``."""

    name: str
    factor: int


def fused_momentum(edit: Edit) -> None:
    """The same mantissas and sums."""
    for node in edit.nodes:
        total = edit.maker(node.input[0], "Add") if node.op_type == "DirectQuantize" else None
        shift, passed = edit.scalar(node.input[1]) if total is not None else None, attributes(node)
        if total is None or shift is None or shift < 0 or passed["to"] != T.INT8:
            continue
        if math.prod(edit.shape(node.output[0])) <= SMALL:  # `batch-small-tensors` has one node for all of these
            continue
        terms = [_term(edit, name) for name in total.input]
        if None in terms or sum(128 * term.factor for term in terms if term is not None) >= SHORT:
            continue
        known = [term for term in terms if term is not None]
        none = edit.put(0, np.int8)
        operands = [name for term in known for name in (term.name, edit.put(term.factor, np.float32), none)]
        operands += [edit.put(2**shift, np.float32), none]
        added = edit.before(node, f"{MICROSOFT}.QLinearAdd", operands)
        edit.declare(added, T.INT8, edit.shape(node.output[0]))
        raised = edit.before(node, "Max", [added, edit.put(passed["least"], np.int8)])
        edit.replace(node, "Min", [raised, edit.put(passed["greatest"], np.int8)])
        if len(edit.readers[total.output[0]]) > 1:
            _replace_sum(edit, total, known)
    import_microsoft(edit.model)


def _term(edit: Edit, name: str) -> Term | None:
    """What ``name`` is a multiple of; None where that is no int8 tensor, or the factor is found at run time."""
    factor = 1
    scaled = edit.maker(name, "Mul")
    if scaled is not None:
        found = _constant(edit, scaled.input[1])
        if found is None or found < 1:
            return None
        name, factor = scaled.input[0], found
    wide = edit.maker(name, "Cast")
    return Term(wide.input[0], factor) if wide is not None and edit.dtype(wide.input[0]) == T.INT8 else None


def _constant(edit: Edit, name: str) -> int | None:
    """The value of a scalar, seen through a Cast and a quantizer that changes at most its dtype."""
    maker = edit.maker(name, "Cast", "DirectQuantize")
    if maker is None:
        return edit.scalar(name)
    found, passed = _constant(edit, maker.input[0]), attributes(maker)
    if maker.op_type == "Cast" or found is None:
        return found
    return found if edit.scalar(maker.input[1]) == 0 and passed["least"] <= found <= passed["greatest"] else None


def _replace_sum(edit: Edit, total: onnx.NodeProto, terms: list[Term]) -> None:
    """The sum as a product of the row of factors and the terms, one a row: in int32 at once."""
    shape = edit.shape(total.output[0])
    row = edit.put([1, math.prod(shape)], np.int64)
    rows = [edit.before(total, "Reshape", [term.name, row]) for term in terms]
    factors = edit.put([[term.factor for term in terms]], np.uint8)
    product = edit.before(total, "MatMulInteger", [factors, edit.before(total, "Concat", rows, axis=0)])
    edit.replace(total, "Reshape", [product, edit.put(shape, np.int64)])


PASS = Form(
    "fuse-momentum",
    "the rounded sum of momentum and gradient as one QLinearAdd",
    fused_momentum,
    needs=(Kernel.UNSIGNED, Kernel.QLINEAR_ADD, Kernel.SUMS),
)
