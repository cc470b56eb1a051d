"""The health counters of the integer step: right, exact, and without a trace in any other output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lowered import Format, Lowered
from onnx import numpy_helper

from networks import BATCH, MEAN, STD, images, labels, run_ort
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.config import Config
from wageubn_onnx.graph import DOMAIN, Model, Tensor, to_proto
from wageubn_onnx.passes.lower.health import SOFTMAX, count_health
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import Format as Bits
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.proofs.audit import audit_model
from wageubn_onnx.quantizers import floating

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def healthy(tiny_file: Path) -> Artifacts:
    """The tiny network with counters."""
    return convert(tiny_file, Config(batch=BATCH, mean=MEAN, std=STD, expose_gradients=True, health=True))


def feeds(state: Arrays, count: int = 0, dr: int = 128) -> Arrays:
    scalars = {"lr": 200, "gradient_range": dr, "seed": 7}
    values = {k: np.array(v, np.int32) for k, v in scalars.items()}
    return {"images": images(seed=count), "labels": labels(seed=count), **values, **state}


# -- by hand --------------------------------------------------------------------------------------------------------------


def counted(build: Any, **inputs: Any) -> list[list[int]]:
    """The counters of a few quantizers; ``build(g, **inputs)`` returns the tensors that a step would need."""
    case = Lowered(build, **{name: Format(np.shape(m), -(2**20), 2**20, 0) for name, m in inputs.items()})
    g = case.lowering.g
    g.notes["lowered"] = case.lowering.values
    results = [case.fixed(i).tensor for i in range(len(case.tensors))]
    g.named |= {"loss": results[0], "correct": results[-1]}
    count_health(g, Config(health=True))
    proto = to_proto(g, {"health": g.named["health"]})
    typed = {name: np.array(m, np.int32) for name, m in inputs.items()}
    plain, optimized = (run_ort(proto, typed, optimize=o)["health"] for o in (False, True))
    assert plain.dtype == optimized.dtype == np.int32
    np.testing.assert_array_equal(plain, optimized)
    return plain.tolist()  # type: ignore[no-any-return]


def test_a_direct_quantizer_saturates_at_both_bounds() -> None:
    def build(g: Model, x: Tensor) -> Tensor:
        return floating.direct(g, x, "C", Bits(8), 1)

    assert counted(build, x=[254, -254, 252, -252, 0, 3, 9999, -9999]) == [[4, 0, 1]]
    assert counted(build, x=[1, -1, 0]) == [[0, 1, 1]]  # ties go to even


def test_zeros_of_a_rectified_format_are_not_saturation() -> None:
    def build(g: Model, x: Tensor) -> Tensor:
        return floating.direct(g, x, "A", Bits(8), 0, 0, 127)

    assert counted(build, x=[-9, 0, 0, 126, 127, 128]) == [[2, 0, 0]]
    assert counted(build, x=[-9, 0]) == [[0, 1, 0]]


def test_the_exponent_of_a_shift_is_that_of_its_mantissas() -> None:
    def build(g: Model, x: Tensor) -> Tensor:
        return floating.shift(g, x, "E1", Bits(8))[0]

    assert counted(build, x=[2**15, -(2**15), 5]) == [[2, 0, 8]]  # R = 2^15, unit 2^8, 128 is cut to 127
    assert counted(build, x=[0, 0]) == [[0, 1, -7]]


def test_a_flag_pair_is_one_quantizer() -> None:
    def build(g: Model, x: Tensor) -> Tensor:
        return floating.flag(g, x, "E2", Bits(8))[0]

    # R = 2^14: unit 2^7 from 2^7 on and 1 below; a low part of 127 has its neighbour in the high part
    assert counted(build, x=[2**14, 127, -127, 128, 0]) == [[1, 0, 0]]
    assert counted(build, x=[126, 3, 0]) == [[0, 0, -7]]  # R = 2^7: all in the high part
    assert counted(build, x=[0, 0]) == [[0, 1, -14]]


def test_the_operands_of_a_sum_are_one_quantizer() -> None:
    def build(g: Model, x: Tensor, y: Tensor) -> Tensor:
        return floating.align(g, x, y, "E.sum", Bits(16))[0]

    assert counted(build, x=[0, 0], y=[0, 0, 0]) == [[0, 1, -14]]
    assert counted(build, x=[0, 0], y=[1, 0, 0]) == [[0, 0, -14]]


def test_alike_quantizers_are_counted_together_and_large_ones_alone() -> None:
    def build(g: Model, x: Tensor, y: Tensor, z: Tensor, big: Tensor) -> list[Tensor]:
        return [floating.direct(g, t, "C", Bits(8), 0) for t in (x, y, z, big)]

    # loss and correct need the first and the last; the others are dead, and stay so
    assert counted(build, x=[127, 1], y=[1, 1], z=[0, 0], big=[127] * 5000) == [[1, 0, 0], [5000, 0, 0]]

    def summed(g: Model, **tensors: Tensor) -> list[Tensor]:
        parts = build(g, **tensors)
        return [g.op("Add", parts[0], g.op("Add", parts[1], parts[2])), parts[3]]

    rows = counted(summed, x=[127, 1], y=[1, 1], z=[0, 0], big=[0] * 5000)
    assert rows == [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0]]


# -- on the tiny network --------------------------------------------------------------------------------------------------


def test_no_other_bit_changes(healthy: Artifacts, tiny_artifacts: Artifacts) -> None:
    for stage in healthy.files:
        assert (healthy.files[stage] == tiny_artifacts.files[stage]) == (stage != "int_training")
    assert {k: v for k, v in healthy.manifest.items() if k != "step"} == {
        k: v for k, v in tiny_artifacts.manifest.items() if k != "step"
    }
    state = tiny_artifacts.state
    for count in range(3):
        values = feeds(state, count)
        expected = run_ort(tiny_artifacts.files["int_training"], values)
        found = run_ort(healthy.files["int_training"], values)
        assert found.pop("health").shape == (len(healthy.manifest["step"]["health"]), 3)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], name)
        state = {key: found[f"{key}.next"] for key in tiny_artifacts.state}


@pytest.fixture(scope="module")
def delayed(tiny_file: Path) -> Artifacts:
    """The same with exponents held as states, one a channel for Q_C."""
    return convert(tiny_file, Config(batch=BATCH, mean=MEAN, std=STD, health=True, profile=load_profile("fast")))


@pytest.mark.parametrize(("name", "dr"), [("healthy", 128), ("healthy", 4), ("delayed", 128)])
def test_the_counters_are_those_of_the_tensors(name: str, dr: int, request: pytest.FixtureRequest) -> None:
    """Recounted from every quantizer's own outputs and attributes."""
    healthy: Artifacts = request.getfixturevalue(name)
    probe = onnx.ModelProto()
    probe.CopyFrom(healthy.files["int_training"])
    nodes = {n.name: n for n in probe.graph.node if n.domain == DOMAIN}
    entries = healthy.manifest["step"]["health"]
    known = {o.name for o in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=o) for e in entries for o in nodes[e["node"]].output if o not in known)
    found = run_ort(probe, feeds(healthy.state, dr=dr), optimize=False)
    described = {q["node"]: q for q in healthy.manifest["quantizers"]}
    assert {e["node"] for e in entries} == described.keys() - {"optimizer/Q_Mom"}
    for entry, row in zip(entries, found["health"].tolist(), strict=True):
        node, told = nodes[entry["node"]], described[entry["node"]]
        assert (entry["layer"], entry["role"]) == (told["layer"], told["role"])
        parts = [found[o] for o in node.output][: {"FlagQuantize": 2, "AlignQuantize": 2}.get(node.op_type, 1)]
        bounded = parts[:1] if node.op_type == "FlagQuantize" else parts
        greatest = dr - 1 if node.op_type.startswith("ConstantQuantize") else told["max"]
        least = -greatest if node.op_type.startswith("ConstantQuantize") else told["min"]
        bounds = [] if told["role"] in SOFTMAX else [b for b in (least, greatest) if b]
        assert row[0] == sum(int(np.isin(p, bounds).sum()) for p in bounded), entry
        assert row[1] == (not any(p.any() for p in parts)), entry
        assert entry["elements"] == sum(p.size for p in bounded)
        if "fraction" in told:
            assert row[2] == -told["fraction"]
        elif told["role"] == "C":
            assert row[2] == healthy.state[told["exponent"]].max()
    roles = {e["role"] for e, row in zip(entries, found["health"], strict=True) if row[0]}
    assert "G.W" in roles and roles & {"E1", "BN.A"}  # a delayed factor saturates sooner than an error


def test_a_lost_error_shows(healthy: Artifacts) -> None:
    """Without weights in the last layer no error comes back through it."""
    values = feeds(healthy.state | {"fc.weight": np.zeros_like(healthy.state["fc.weight"])})
    rows = run_ort(healthy.files["int_training"], values)["health"]
    zero = {e["node"] for e, row in zip(healthy.manifest["step"]["health"], rows, strict=True) if row[1]}
    errors = {e["node"] for e in healthy.manifest["step"]["health"] if e["role"] in ("E1", "E2", "E.sum")}
    assert zero >= errors - {"fc/Q_E2"} and "fc/Q_E2" not in zero and "fc/Q_W" in zero


def test_the_audit_passes_and_counting_is_no_use(healthy: Artifacts) -> None:
    assert audit_model(healthy.files["int_training"]).findings == []
    bypassed = onnx.ModelProto()
    bypassed.CopyFrom(healthy.files["int_training"])
    (quantizer,) = (n for n in bypassed.graph.node if n.name == "a1_bn/Q_gamma")
    stand_in = numpy_helper.from_array(np.ones(6, np.int8), "stand-in")
    bypassed.graph.initializer.append(stand_in)
    for node in bypassed.graph.node:
        if not node.name.startswith("health/"):
            for i, name in enumerate(node.input):
                if name == quantizer.output[0]:
                    node.input[i] = stand_in.name
    assert any(f.kind == "gap" and "gamma" in f.message for f in audit_model(bypassed).findings)
