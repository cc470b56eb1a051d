"""ONNX functions traced from Python: a body is an expression over its operands, and to evaluate it once makes the nodes.

    @function("Limbs", "high", "low")
    def LIMBS(m: Int16) -> tuple[Value, Value]:
        wide = cast(m, np.int32)
        low = wide & 255
        return cast((wide - low) // 256, np.int8), cast(low, np.uint8)

Positional parameters are operands, keyword-only ones attributes; their annotations give the dtypes. An attribute annotated as a
tensor (``least: Int32``) is read as one; an `Int` or `Ints` goes into an attribute of a node. A number is a constant of the dtype
of what it meets; numpy's numbers and arrays keep theirs. The same computation twice is one node. A value has the name of the
local variable that first held it, else of its operator: names are part of a function, which `audit` compares as a whole.

``a // b`` is ONNX's Div: it truncates where Python's floors, and ONNX leaves the rounding of a negative quotient to its kernels.
So a body divides what is at least 0, what leaves no rest, or what is cut off below 0 afterwards; bounds in its docstring show
which. ``&``, ``|`` and ``~`` are bitwise; of truth values they are And, Or and Not.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, get_type_hints

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, helper, numpy_helper

from wageubn_onnx.graph import DOMAIN, OPSET
from wageubn_onnx.profiles import ROUNDINGS

SUFFIX = {"half_even": "", "half_up": "HalfUp", "stochastic": "Stochastic"}  # of a function's name

# What a quantize node may say about itself; what its body does not read is optional.
DESCRIPTION = {"role": "", "bits": 0, "rounding": "", "exponent": 0, "lo": 0.0, "hi": 0.0}
LOGICAL = {"BitwiseAnd": "And", "BitwiseOr": "Or", "BitwiseNot": "Not"}  # of truth values
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
SAME = "same"  # as dtype of a result: that of the first operand which is no truth value


@dataclass(frozen=True)
class Attribute:
    """An attribute of the call. kind: onnx's number of its type."""

    name: str
    kind: int


def _infix(kind: str, **attributes: str) -> Callable[[Value, Operand], Value]:
    return lambda a, b: op(kind, a, b, **attributes)


def _mirrored(kind: str) -> Callable[[Value, Operand], Value]:
    """The operator with its left operand on the right."""
    return lambda a, b: op(kind, b, a)


class Value:
    """A tensor of a body. dtype: numpy's; np.floating for that of the call's first float; None where it is not known."""

    __array_ufunc__ = None  # numpy's numbers leave operators to this class
    __add__, __radd__ = _infix("Add"), _mirrored("Add")
    __sub__, __rsub__ = _infix("Sub"), _mirrored("Sub")
    __mul__, __rmul__ = _infix("Mul"), _mirrored("Mul")
    __floordiv__, __rfloordiv__ = _infix("Div"), _mirrored("Div")  # of integers
    __truediv__, __mod__ = _infix("Div"), _infix("Mod")
    __and__, __or__, __xor__ = _infix("BitwiseAnd"), _infix("BitwiseOr"), _infix("BitwiseXor")
    __lshift__, __rshift__ = _infix("BitShift", direction="LEFT"), _infix("BitShift", direction="RIGHT")
    __gt__, __ge__, __lt__, __le__ = map(_infix, COMPARISONS[1:])

    def __init__(self, trace: _Trace, dtype: Any, name: str = "") -> None:
        self.trace, self.dtype, self.name = trace, dtype, name

    def __neg__(self) -> Value:
        return op("Neg", self)

    def __abs__(self) -> Value:
        return op("Abs", self)

    def __invert__(self) -> Value:
        return op("BitwiseNot", self)

    def __bool__(self) -> bool:
        raise TypeError("a traced value has no truth in Python; choose with where()")


Operand = Value | Attribute | int | float | np.generic | np.ndarray[Any, Any]
Body = Callable[..., Value | tuple[Value, ...]]  # of operands, attributes by name
Variants = dict[str, FunctionProto]  # by rounding

Int8 = Annotated[Value, np.int8]
Int16 = Annotated[Value, np.int16]
Int32 = Annotated[Value, np.int32]
Int64 = Annotated[Value, np.int64]
Uint8 = Annotated[Value, np.uint8]
Uint16 = Annotated[Value, np.uint16]
Uint32 = Annotated[Value, np.uint32]
Float32 = Annotated[Value, np.float32]
Float = Annotated[Value, np.floating]  # float32 or float64, as the call's
Int = Annotated[Attribute, AttributeProto.INT]
Ints = Annotated[Attribute, AttributeProto.INTS]


def function(name: str, *outputs: str) -> Callable[[Body], FunctionProto]:
    """Decorates a body: it becomes the model-local function ``wageubn::name``, whose results are called ``outputs``."""
    return lambda body: _traced(name, outputs, body)


def variants(name: str, *outputs: str) -> Callable[[Body], Variants]:
    """Decorates a body whose first parameter is the rounding: it becomes one function a rounding.

    Stochastic only with ``*random``: then that is one operand more, 16 bits an element.
    """

    def decorate(body: Body) -> Variants:
        takes_random = inspect.getfullargspec(body).varargs is not None
        roundings = [r for r in ROUNDINGS if takes_random or r != "stochastic"]
        return {rounding: _traced(name + SUFFIX[rounding], outputs, body, rounding) for rounding in roundings}

    return decorate


def op(kind: str, *operands: Operand, dtype: Any = SAME, **attributes: Any) -> Value:
    """The result of an ONNX operator."""
    return _trace(operands).node(kind, operands, [dtype], attributes)[0]


def call(callee: FunctionProto, *operands: Operand) -> list[Value]:
    """The results of another function, all of the dtype of its first operand."""
    return _trace(operands).node(callee.name, operands, [SAME] * len(callee.output), {}, callee.domain)


def cast(x: Value, to: Any) -> Value:
    """x in a dtype of numpy's, where np.floating is that of the call's first float, or in the one that an attribute says."""
    if isinstance(to, Attribute):
        return op("Cast", x, dtype=None, to=to)
    if to is np.floating:
        return x.trace.as_float(x)
    return op("Cast", x, dtype=to, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))


clip = partial(op, "Clip")  # x, least, greatest
equal = partial(op, "Equal")
gather = partial(op, "Gather")  # table, index
maximum = partial(op, "Max")
minimum = partial(op, "Min")
reduce_max = partial(op, "ReduceMax")
reduce_sum = partial(op, "ReduceSum")
where = partial(op, "Where")  # condition, what holds if it is true, if not


class _Trace:
    """The nodes of a function in the making."""

    def __init__(self) -> None:
        self.nodes: list[tuple[NodeProto, list[Value], list[Value]]] = []  # with operands and results
        self.known: dict[Any, list[Value]] = {}  # results, by what makes them
        self.float: Value | None = None  # the first operand of the dtype np.floating

    def node(
        self,
        kind: str,
        operands: Sequence[Operand],
        dtypes: list[Any],
        attributes: dict[str, Any],
        domain: str = "",
        name: str = "",
    ) -> list[Value]:
        """The results of a node, or of one like it that is there."""
        self._name_locals()
        typed = [
            x.dtype if isinstance(x, Value) else x.dtype.type for x in operands if not isinstance(x, (int, float, Attribute))
        ]
        like = next((t for t in typed if t is not np.bool_), np.bool_)
        inputs = [self._value(x, like) for x in operands]
        node = NodeProto(op_type=LOGICAL.get(kind, kind) if like is np.bool_ else kind, domain=domain)
        for key, value in attributes.items():
            if isinstance(value, Attribute):
                node.attribute.add(name=key, ref_attr_name=value.name, type=value.kind)
            else:
                node.attribute.append(helper.make_attribute(key, value))
        alike = node.SerializeToString(deterministic=True), *inputs
        if alike not in self.known:
            made = [np.bool_ if kind in COMPARISONS else like if t is SAME else t for t in dtypes]
            self.known[alike] = [Value(self, dtype, name) for dtype in made]
            self.nodes.append((node, inputs, self.known[alike]))
        return self.known[alike]

    def _value(self, x: Operand, dtype: Any) -> Value:
        """An operand as a value; a number in ``dtype``."""
        if isinstance(x, Value):
            return x
        if isinstance(x, Attribute):
            return self._constant(x.name, np.int64, value_ints=x)
        if isinstance(x, (np.generic, np.ndarray)):
            name = f"{x.dtype}_{x}" if x.ndim == 0 else f"{x.dtype}_table"
            return self._constant(name, x.dtype.type, value=numpy_helper.from_array(np.asarray(x)))
        if dtype is np.floating:
            return self.as_float(np.float32(x))
        if dtype is None:
            raise TypeError(f"{x} meets a tensor of unknown dtype; annotate or cast that")
        if np.array(x, dtype) != x:
            raise TypeError(f"{x} meets a tensor of {dtype.__name__}, which cannot hold it")
        return self._value(np.array(x, dtype), None)

    def _constant(self, name: str, dtype: Any, **attribute: Any) -> Value:
        return self.node("Constant", (), [dtype], attribute, name=name)[0]

    def as_float(self, x: Operand) -> Value:
        """x in the dtype of the call's first float."""
        if self.float is None:
            raise TypeError(f"{x} is to be like a float, and the function has no operand that is one")
        return op("CastLike", x, self.float, dtype=np.floating)

    def attribute(self, name: str, dtype: Any) -> Value:
        """An attribute of the call as a scalar."""
        if dtype is np.floating:
            return self.as_float(self._constant(f"{name}32", np.float32, value_float=Attribute(name, AttributeProto.FLOAT)))
        given = self._constant(f"{name}64", np.int64, value_int=Attribute(name, AttributeProto.INT))
        return given if dtype is np.int64 else cast(given, dtype)

    def _name_locals(self) -> None:
        """Name values after the variables that hold them, in the functions that asked for a node, outermost first."""
        frame, frames = sys._getframe(1), []
        while frame.f_code is not _traced.__code__ and frame.f_back is not None:
            frames.append(frame)
            frame = frame.f_back
        for held in (f.f_locals for f in reversed(frames) if f.f_globals is not globals()):
            for name in sorted(held):
                if isinstance(held[name], Value):
                    held[name].name = held[name].name or name

    def named(self, names: dict[Value, str], taken: list[str]) -> list[NodeProto]:
        """The nodes, each result with a name of its own: that in ``names``, or one that is not ``taken``."""
        counts = Counter([*names.values(), *taken])
        for node, inputs, results in self.nodes:
            for value in results:
                name = value.name or node.op_type
                counts[name] += value not in names
                value.name = names.get(value) or (name if counts[name] == 1 else f"{name}.{counts[name]}")
            node.input.extend(value.name for value in inputs)
            node.output.extend(value.name for value in results)
        return [node for node, *_ in self.nodes]


def _trace(operands: Sequence[Operand]) -> _Trace:
    return next(x.trace for x in operands if isinstance(x, Value))


def _traced(name: str, outputs: tuple[str, ...], body: Body, *rounding: str) -> FunctionProto:
    trace, hints = _Trace(), get_type_hints(body, include_extras=True)
    operands: list[Value] = []
    attributes: dict[str, Value | Attribute] = {}
    for parameter in list(inspect.signature(body).parameters.values())[len(rounding) :]:
        hint = hints[parameter.name]
        said: Any = getattr(hint, "__metadata__", (None,))[0]
        if parameter.kind == parameter.KEYWORD_ONLY:
            is_read = hint.__origin__ is Value
            attributes[parameter.name] = trace.attribute(parameter.name, said) if is_read else Attribute(parameter.name, said)
        elif parameter.kind != parameter.VAR_POSITIONAL or "stochastic" in rounding:
            operands.append(Value(trace, said, parameter.name))
            trace.float = operands[-1] if said is np.floating and trace.float is None else trace.float
    found = body(*rounding, *operands, **attributes)
    results = found if isinstance(found, tuple) else (found,)
    if len({*operands, *results}) < len(operands) + len(results):
        raise ValueError(f"{name}: each result needs a node of its own, such as op('Identity', x)")
    inputs = [operand.name for operand in operands]
    nodes = trace.named(dict(zip(results, outputs, strict=True)), inputs)
    optional = [helper.make_attribute(key, value) for key, value in DESCRIPTION.items() if key not in attributes]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_function(DOMAIN, name, inputs, outputs, nodes, opsets, list(attributes), optional)
