"""Contracts hold: whatever a function computes, in exact integers, stays in the ranges claimed for every tensor of its body."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from exact import check, evaluate
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T

from wageubn_onnx.proofs.bodies import Analysis, Calls
from wageubn_onnx.proofs.bounds import LIMITS, Bound
from wageubn_onnx.proofs.contracts import CONTRACTS
from wageubn_onnx.quantizers import floating, integer, tables

Interval = tuple[int, int]
CALLS = Calls(onnx.ModelProto(functions=[c.function for c in CONTRACTS.values()]))
I16, I32, I64, U8 = T.INT16, T.INT32, T.INT64, T.UINT8
FORM = {"to": T.INT8, "least": -127, "greatest": 127}
SIGMA = {"to": T.INT16, "least": 1, "greatest": 32767}
ACCUMULATOR = {"to": I32, "least": -(2**31) + 1, "greatest": 2**31 - 1}
SMALL = {"to": T.INT8, "least": -6, "greatest": 6}


def family(function: str) -> str:
    """What a function and its variants in other roundings are called here."""
    return function.removesuffix("HalfUp").removesuffix("Stochastic")


FAMILIES: dict[str, dict[str, tuple[int, bool]]] = {  # function -> operand -> dtype, and whether it is a scalar
    "RoundShift": {"m": (I32, False), "shift": (I32, True)},
    "RoundShiftWide": {"m": (I64, False), "shift": (I32, True), "limit": (I64, True), "limit0": (I64, True)},
    "DirectQuantize": {"m": (I32, False), "shift": (I32, True)},
    "DirectQuantizeWide": {"m": (I64, False), "shift": (I32, True)},
    "DirectQuantizeRatio": {"m": (I32, False), "divisor": (I32, False)},
    "DirectQuantizeRatioWide": {"m": (I64, False), "divisor": (I64, False)},
    "DirectQuantizeRoot": {"total": (I64, False), "count": (I64, True), "factor": (I64, True), "offset": (I64, True)},
    "DirectQuantizeImage": {"pixels": (U8, False), "factor": (I32, False), "offset": (I32, False), "shift": (I32, True)},
    "GridQuantize": {"m": (I32, False), "shift": (I32, True)},
    "FollowExponent": {"q": (I32, False), "held": (I32, True)},
    "FollowExponents": {"q": (I32, False), "held": (I32, True)},
    "PowerOfTwoRange": {"m": (I32, False)},
    "GuardExponent": {"log": (I32, True), "greatest": (I32, True), "fraction": (I32, True)},
    "ShiftQuantize": {"m": (I32, False), "m_exponent": (I32, True)},
    "Limbs": {"m": (I16, False)},
    "FlagQuantize": {"m": (I32, False), "m_exponent": (I32, True)},
    "AlignQuantize": {"a": (I32, False), "a_exponent": (I32, True), "b": (I32, False), "b_exponent": (I32, True)},
    "GridQuantizePair": {"high": (I32, False), "low": (I32, False)},
    "ConstantQuantize": {"m": (I64, False), "dr": (I32, True)},
    "ExponentialTable": {"t": (I32, False)},
    "LogarithmTable": {"x": (I32, False)},
    "HashMix": {"x": (I64, False)},
    "RandomBits": {"seed": (I32, True), "number": (I32, True)},
}
OPERANDS = {
    name: {operand: (FAMILIES[family(name)] | {"random": (I32, False)})[operand] for operand in contract.function.input}
    for name, contract in CONTRACTS.items()
}
ATTRIBUTES: dict[str, list[dict[str, Any]]] = {  # of a family's calls
    "DirectQuantize": [FORM, SIGMA, SMALL],
    "GridQuantize": [FORM, SMALL],
    **dict.fromkeys(
        ["FollowExponent", "FollowExponents"], [{"greatest": 127, "small": 90, "up": 1, "lowest": -71, "highest": 57}]
    ),
    "DirectQuantizeWide": [FORM, SIGMA, ACCUMULATOR],
    "DirectQuantizeRatio": [FORM, SMALL, {"to": T.UINT8, "least": 0, "greatest": 127}],
    "DirectQuantizeRatioWide": [FORM, ACCUMULATOR],
    "DirectQuantizeRoot": [SIGMA],
    "DirectQuantizeImage": [FORM],
    "ShiftQuantize": [FORM | {"fraction": 7}, {"to": I16, "least": -32767, "greatest": 32767, "fraction": 15}],
    "AlignQuantize": [{"least": -32767, "greatest": 32767, "fraction": 14}],
    "GridQuantizePair": [{"base": base, "drop": drop} for base in (7, 8) for drop in (1, base - 1)],
    "RandomBits": [{"tensor": 2**32 - 1, "count": 5}],
}
# Where the operands' limits hang together, pairs of limits that meet; the others are proven for all that they require
JOINT: dict[str, list[dict[str, Interval]]] = {
    **dict.fromkeys(["RoundShift", "RoundShiftHalfUp"], [{"shift": (0, 2**30)}, {"m": (-(2**8), 2**8), "shift": (-19, 2**30)}]),
    **dict.fromkeys(["DirectQuantize", "DirectQuantizeHalfUp"], [{"shift": (0, 2**30)}, {"m": (0, 2**20), "shift": (-7, 5)}]),
    **dict.fromkeys(
        ["DirectQuantizeRoot", "DirectQuantizeRootHalfUp"],
        [{"count": (1, 2**31), "factor": (1, 2**20)}, {"count": (2**40, 2**40), "factor": (2**11, 2**11)}],
    ),
    **dict.fromkeys(
        ["DirectQuantizeImage", "DirectQuantizeImageHalfUp"],
        [{"factor": (-(2**19), 2**19), "offset": (-(2**27) + 1, 2**27 - 1), "shift": (0, 40)}],
    ),
    **dict.fromkeys(["GridQuantizePair", "GridQuantizePairHalfUp"], [{"high": (-(2**23) + 1, 2**23 - 1)}]),
}


def calls(name: str) -> list[dict[str, Any]]:
    return ATTRIBUTES.get(family(name), [{}])


CASES = [(name, attributes) for name in CONTRACTS for attributes in calls(name)]
EXACT = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


def required(name: str, attributes: dict[str, Any]) -> dict[str, Interval]:
    return {n: LIMITS[dtype] for n, (dtype, _) in OPERANDS[name].items()} | CONTRACTS[name].requires(attributes)


def analysis(name: str, attributes: dict[str, Any], ranges: dict[str, Interval]) -> Analysis:
    operands = [Bound(*ranges[n], dtype) for n, (dtype, _) in OPERANDS[name].items()]
    shape = (9, 1, 1, 1) if name == "FollowExponents" else (9,)  # which reduces over images and pixels
    return CALLS.analyse(name, attributes, operands, [() if scalar else shape for _, scalar in OPERANDS[name].values()])


def holds(name: str, attributes: dict[str, Any], found: Analysis, operands: dict[str, Any]) -> None:
    check(evaluate(CALLS, name, attributes, operands), [found])


def test_every_function_has_a_contract() -> None:
    """Whoever adds a function adds its contract, and its operands above."""
    made = [f for value in vars(integer).values() for f in (value.values() if isinstance(value, dict) else [value])]
    functions = {f.name for f in made if isinstance(f, onnx.FunctionProto)}
    assert functions | {floating.MIX.name, floating.RANDOM.name} == set(CONTRACTS)
    assert {family(name) for name in CONTRACTS} == set(FAMILIES)


@pytest.mark.parametrize(("name", "attributes"), CASES)
def test_all_that_is_required_is_enough(name: str, attributes: dict[str, Any]) -> None:
    """The whole of every operand's range, or where limits hang together the widest that do, is proven and holds at its ends."""
    for joint in JOINT.get(name, [{}]):
        ranges = required(name, attributes) | joint
        found = analysis(name, attributes, ranges)
        assert not found.doubt
        assert list(found.outputs) == [found.bound(o) for o in found.body.outputs]
        for bound in found.outputs:
            assert LIMITS[bound.dtype][0] <= bound.lo <= bound.hi <= LIMITS[bound.dtype][1]
        for ends in itertools.product(*({lo, hi, min(max(0, lo), hi)} for lo, hi in ranges.values())):
            operands = {n: end if s else [end] for (n, (_, s)), end in zip(OPERANDS[name].items(), ends, strict=True)}
            holds(name, attributes, found, operands)


@pytest.mark.parametrize("name", [n for n in CONTRACTS if CONTRACTS[n].requires(calls(n)[0])])
def test_one_more_than_is_required_is_refused(name: str) -> None:
    attributes = calls(name)[0]
    ranges = required(name, attributes) | JOINT.get(name, [{}])[0]
    for operand, (least, greatest) in CONTRACTS[name].requires(attributes).items():
        for more in ((least - 1, ranges[operand][1]), (ranges[operand][0], greatest + 1)):
            with pytest.raises(Exception, match=f"operand {operand} may be {more[0]}..{more[1]}"):
                analysis(name, attributes, ranges | {operand: more})


@st.composite
def interval(draw: st.DrawFn, within: Interval) -> Interval:
    """A part of ``within`` that often touches its ends, powers of two or 0."""
    least, greatest = within

    def end() -> int:
        power = draw(st.integers(0, greatest.bit_length()))
        near = st.sampled_from([least, greatest, 0, 2**power, -(2**power), tables.THRESHOLDS[min(power, 29)]])
        anywhere = st.integers(least, greatest)
        return min(max(draw(st.one_of(near, near, anywhere)) + draw(st.integers(-1, 1)), least), greatest)

    ends = sorted((end(), end()))
    return ends[0], ends[1]


@pytest.mark.parametrize(("name", "attributes"), CASES)
@EXACT
@given(data=st.data())
def test_what_is_claimed_holds(name: str, attributes: dict[str, Any], data: st.DataObject) -> None:
    """For drawn ranges of the operands that are proven, and values drawn in them: every tensor, in every nested body."""
    ranges = {n: data.draw(interval(within), n) for n, within in required(name, attributes).items()}
    for operand, joint in (JOINT.get(name) or [{}])[0].items():
        if data.draw(st.booleans()):
            ranges[operand] = data.draw(interval(joint))
    found = analysis(name, attributes, ranges)
    assume(not found.doubt)
    length = data.draw(st.integers(1, 6))
    operands = {}
    for operand, (_, scalar) in OPERANDS[name].items():
        least, greatest = ranges[operand]
        value = st.one_of(st.sampled_from([least, greatest]), st.integers(least, greatest))
        operands[operand] = data.draw(value if scalar else st.lists(value, min_size=length, max_size=length))
    holds(name, attributes, found, operands)


SPAN, TIE = (-9, 9), {"random": (2**15 - 1, 2**15)}  # random bits on both sides of a half
TIGHT = {"RoundShift", "RoundShiftWide", "DirectQuantizeRatio", "DirectQuantizeRatioWide", "PowerOfTwoRange", "GridQuantizePair"}
EXHAUSTIVE: list[tuple[str, dict[str, Any], dict[str, Interval], int]] = [  # the last: how many elements a tensor has
    ("RoundShift", {}, {"m": (-40, 40), "shift": (-3, 8)}, 1),
    ("RoundShiftWide", {}, {"m": (-20, 20), "shift": (-3, 6), "limit": (25, 26), "limit0": (25, 26)}, 1),
    ("DirectQuantizeWide", SMALL, {"m": (-20, 20), "shift": (-2, 4)}, 1),
    ("GridQuantize", SMALL, {"m": (-20, 20), "shift": (-25, 5)}, 1),
    *(
        (name, {"greatest": 7, "small": 3, "up": 2, "lowest": -3, "highest": 3}, {"q": (-8, 8), "held": (-3, 3)}, 2)
        for name in ("FollowExponent", "FollowExponents")
    ),
    ("DirectQuantizeRatio", SMALL, {"m": (-60, 60), "divisor": (1, 9)}, 1),
    ("DirectQuantizeRatio", SMALL | {"greatest": 7, "least": -7}, {"m": (-60, 60), "divisor": (1, 9)}, 1),
    ("DirectQuantizeRatioWide", SMALL, {"m": (-60, 60), "divisor": (1, 9)}, 1),
    ("DirectQuantizeRoot", SIGMA, {"total": (0, 60), "count": (1, 7), "factor": (1, 3), "offset": (0, 2)}, 1),
    ("PowerOfTwoRange", {}, {"m": SPAN}, 2),
    ("GuardExponent", {}, {"log": (-70, 70), "greatest": (0, 2), "fraction": (6, 8)}, 1),
    ("ShiftQuantize", SMALL | {"fraction": 3}, {"m": SPAN, "m_exponent": (-1, 1)}, 2),
    ("Limbs", {}, {"m": (-600, 600)}, 1),
    ("FlagQuantize", {}, {"m": SPAN, "m_exponent": (-1, 1)}, 2),
    (
        "AlignQuantize",
        {"least": -7, "greatest": 7, "fraction": 2},
        {"a": (-3, 3), "a_exponent": (-3, 3), "b": (-3, 3), "b_exponent": (-2, 2)},
        1,
    ),
    *(("GridQuantizePair", {"drop": 2, "base": base}, {"high": SPAN, "low": SPAN}, 1) for base in (7, 8)),
    ("ConstantQuantize", {}, {"m": (-5, 5), "dr": (2, 5)}, 1),
    ("ExponentialTable", {}, {"t": (-600, 0)}, 1),
    ("LogarithmTable", {}, {"x": (2**15, 2**15 + 1500)}, 1),
]
VARIANTS = [(name, *case[1:]) for case in EXHAUSTIVE for name in CONTRACTS if family(name) == case[0]]
WHOLE = {
    "PowerOfTwoRange",
    "ShiftQuantize",
    "FlagQuantize",
    "AlignQuantize",
    "ConstantQuantize",
    "FollowExponent",
    "FollowExponents",
}  # they look at all elements together


@pytest.mark.parametrize(("name", "attributes", "ranges", "length"), VARIANTS)
def test_small_widths_exhaustively(name: str, attributes: dict[str, Any], ranges: dict[str, Interval], length: int) -> None:
    """Every value of every operand; and where no table or mask follows, the claims of the outputs are reached to within one."""
    given = {operand: (ranges | TIE)[operand] for operand in OPERANDS[name]}
    found = analysis(name, attributes, given)
    assert not found.doubt
    spans: list[Any] = []
    for operand, (_, scalar) in OPERANDS[name].items():
        values = range(given[operand][0], given[operand][1] + 1)
        if not scalar and not spans and family(name) not in WHOLE:
            spans.append([list(values)])  # one elementwise operand tries all its values in one tensor
        else:
            spans.append(values if scalar else [list(v) for v in itertools.product(values, repeat=length)])
    reached: dict[str, list[int]] = {o: [] for o in found.body.outputs}
    for chosen in itertools.product(*spans):
        record = evaluate(CALLS, name, attributes, dict(zip(OPERANDS[name], chosen, strict=True)))
        check(record, [found])
        for output in reached:
            reached[output] += [min(record.values[output].ravel()), max(record.values[output].ravel())]
    for output, bound in zip(found.body.outputs, found.outputs, strict=True):
        if family(name) in TIGHT:
            assert min(reached[output]) - 1 <= bound.lo <= bound.hi <= max(reached[output]) + 1, output


def test_a_nested_doubt_names_both_bodies() -> None:
    found = CALLS.analyse("DirectQuantize", FORM, [Bound(-(2**27), 2**27, I32), Bound(-9, 0, I32)], [(3,), ()])
    assert found.doubt == (
        "in DirectQuantize, r = RoundShift in RoundShift, scaled = Mul may reach 68719476736, beyond 2147483647 of int32"
    )


def test_the_evaluator_is_onnx() -> None:
    """What the claims are held against computes what onnx does."""
    from onnx.reference import ReferenceEvaluator

    from wageubn_onnx.graph import DOMAIN

    feeds = {"m": np.array([5, -3, 1000, 0], np.int32), "m_exponent": np.array(-4, np.int32)}
    outputs = ["high", "low", "exponent"]
    node = onnx.helper.make_node("FlagQuantize", list(feeds), outputs, domain=DOMAIN)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info(name, I32, value.shape) for name, value in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(DOMAIN, 1)]
    library = [*integer.LIBRARY.values(), integer.FLAG["half_even"]]
    results = ReferenceEvaluator(onnx.helper.make_model(graph, functions=library, opset_imports=opsets)).run(None, feeds)
    record = evaluate(CALLS, "FlagQuantize", {}, feeds)
    for name, result in zip(outputs, results, strict=True):
        np.testing.assert_array_equal(record.values[name].astype(np.int64), result)
