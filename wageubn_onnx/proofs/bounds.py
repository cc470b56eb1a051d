"""What a walk over nodes knows: the bound of every tensor, the node that makes it; and what rules may ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx

T = onnx.TensorProto
Shape = tuple[int | str, ...]
LIMITS: dict[int, tuple[int, int]] = {T.BOOL: (0, 1)} | {
    getattr(T, f"{sign}INT{bits}"): (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if not sign else (0, 2**bits - 1)
    for sign in ("", "U")
    for bits in (8, 16, 32, 64)
}  # dtype -> least and greatest


class Unproven(Exception):
    """A node that could go wrong; the message says how, without the node's name."""


class Bound(NamedTuple):
    """Every element of a tensor of that ``dtype`` (onnx.TensorProto) lies in lo..hi.

    peak: the greatest magnitude over all elements is at least that. bits: of a uint8 tensor that holds the bits of int8 numbers,
    the least and greatest of those numbers.
    """

    lo: int
    hi: int
    dtype: int
    peak: int = 0
    bits: tuple[int, int] | None = None

    @property
    def magnitude(self) -> int:
        return max(abs(self.lo), abs(self.hi))

    @property
    def is_constant(self) -> bool:
        return self.lo == self.hi

    def meet(self, lo: int, hi: int) -> Bound | None:
        """The part inside lo..hi; None where there is none."""
        if lo <= self.lo and self.hi <= hi:
            return self
        lo, hi = max(lo, self.lo), min(hi, self.hi)
        return Bound(lo, hi, self.dtype, self.peak, self.bits) if lo <= hi else None


def whole(dtype: int) -> Bound:
    """Any tensor of that dtype."""
    return Bound(*LIMITS[dtype], dtype)


def hull(bounds: Sequence[Bound]) -> Bound:
    """The least bound that contains them all; they have one dtype."""
    first = bounds[0]
    if len(bounds) == 1:
        return first
    lo, hi = min(b.lo for b in bounds), max(b.hi for b in bounds)
    bits = None
    if any(b.bits for b in bounds):
        views = [as_int8(b) for b in bounds]
        bits = (min(v[0] for v in views), max(v[1] for v in views))
    return Bound(lo, hi, first.dtype, min(b.peak for b in bounds), bits)


def as_int8(x: Bound) -> tuple[int, int]:
    """The range of a uint8 tensor's bits read as int8."""
    return x.bits or ((x.lo, x.hi) if x.hi <= 127 else LIMITS[T.INT8])


def of_array(value: np.ndarray[Any, Any]) -> Bound:
    """The bound of a constant tensor."""
    dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    if dtype not in LIMITS:
        raise Unproven(f"is {T.DataType.Name(dtype)}, and only integers have a range")
    return Bound(int(value.min()), int(value.max()), dtype) if value.size else Bound(0, 0, dtype)


# -- arithmetic -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One node, read once. references: attribute -> attribute of the function that it stands for."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    references: dict[str, str]

    @staticmethod
    def of(node: onnx.NodeProto) -> Op:
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
        references = {a.name: a.ref_attr_name for a in node.attribute if a.ref_attr_name}
        name = node.name or (node.output[0] if node.output else node.op_type)
        inputs = tuple(node.input)
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        return Op(name, node.op_type, node.domain, inputs, tuple(node.output), attrs, references)

    def resolved(self, attributes: Mapping[str, Any]) -> Op:
        """With the attributes of the call in place of the references to them."""
        if not self.references:
            return self
        try:
            attrs = self.attrs | {name: attributes[source] for name, source in self.references.items()}
        except KeyError as error:
            raise Unproven(f"needs the attribute {error.args[0]!r} of its function's call") from None
        return Op(self.name, self.op, self.domain, self.inputs, self.outputs, attrs, {})


class Known(Protocol):
    """What a rule for one node may ask of the walk that it is part of (`walk.Walk`, which says what each is)."""

    @property
    def bounds(self) -> Mapping[str, Bound]: ...

    @property
    def constants(self) -> Mapping[str, np.ndarray[Any, Any]]: ...

    @property
    def elementwise(self) -> bool: ...

    def shape(self, name: str, /) -> Shape: ...

    def maker(self, name: str) -> Op | None: ...

    def origin(self, name: str) -> str: ...

    def assume(self, condition: str, truth: bool) -> dict[str, Bound] | None: ...

    def under(self, name: str, assumed: Mapping[str, Bound]) -> Bound | None: ...
