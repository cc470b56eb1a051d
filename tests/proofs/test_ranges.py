"""The overflow proof: what `convert` writes is proven, what is measured lies inside, and every planted fault is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from networks import BATCH, MEAN, STD, images, labels, ort_session
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.cli import cli
from wageubn_onnx.composites import expanded
from wageubn_onnx.config import Config
from wageubn_onnx.errors import ProofFailed, WageubnError
from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.passes.quantize.chance import STEP_LIMIT
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import NAMES, PATHS, load_profile
from wageubn_onnx.proofs import bodies
from wageubn_onnx.proofs.audit import audit_model
from wageubn_onnx.proofs.contracts import CONTRACTS
from wageubn_onnx.proofs.ranges import RANGES, Proof, prove
from wageubn_onnx.stages import check_stage

Array = np.ndarray[Any, Any]
Model = onnx.ModelProto


def doubts(model: Model) -> list[str]:
    return [f"{d.where}: {d.message}" for d in prove(model).doubts]


# -- what convert writes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["int_training", "int_eval"])
def proven(request: pytest.FixtureRequest, tiny_artifacts: Artifacts) -> tuple[Model, Proof]:
    model = tiny_artifacts.files[request.param]
    return model, prove(model)


def test_what_convert_writes_is_proven(proven: tuple[Model, Proof]) -> None:
    """Every tensor that the nodes make, the functions inlined; and each row of the table says what it says."""
    model, proof = proven
    model = expanded(model)
    assert proof.doubts == []
    flat = onnx.inliner.inline_local_functions(model)
    assert proof.tensors == sum(len(node.output) for node in flat.graph.node)
    assert proof.verdict == f"{proof.tensors} tensors proven, by induction over {proof.states} states"
    graph, bodies = ({r.node for r in proof.ranges}, {f"{f.name}." for f in model.functions})
    assert {node.name for node in model.graph.node} <= graph
    assert all(any(n.startswith(b) for n in graph) for b in bodies)
    assert [r.headroom for r in proof.growing] == sorted(r.headroom for r in proof.growing)
    for r in proof.ranges:
        assert r.headroom >= 0
        assert r.bits <= (1 if r.dtype == "bool" else int(r.dtype.lstrip("uint")))


INTEGER = [name for name in NAMES if load_profile(name).has_integers]


@pytest.fixture(scope="module", params=[*INTEGER, "half_up"])
def profiled(request: pytest.FixtureRequest, tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The tiny network in every profile, and with every path rounded half up; with health counters."""
    name = request.param
    if name not in NAMES:
        own = tmp_path_factory.mktemp("profile") / f"{name}.toml"
        own.write_text('extends = "full8"\n' + "".join(f'[{path}]\nrounding = "{name}"\n' for path in PATHS))
        name = str(own)
    return convert(tiny_file, Config(batch=BATCH, mean=MEAN, std=STD, profile=load_profile(name), health=True))


def test_every_profile_is_proven(profiled: Artifacts) -> None:
    for stage in ("int_training", "int_eval"):
        assert doubts(profiled.files[stage]) == []


def test_the_file_declares_what_the_manifest_does(tiny_artifacts: Artifacts) -> None:
    for stage in ("int_training", "int_eval"):
        model = tiny_artifacts.files[stage]
        (text,) = (p.value for p in model.metadata_props if p.key == RANGES)
        inputs = {i.name for i in model.graph.input}
        formats = tiny_artifacts.manifest["tensors"]
        keys = [s["key"] for s in tiny_artifacts.manifest["state"] if s["key"] in inputs]
        assert json.loads(text) == {key: [formats[key]["min"], formats[key]["max"]] for key in keys}


def test_dtypes_are_what_the_file_says(proven: tuple[Model, Proof]) -> None:
    model, proof = proven
    said = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    for name, dtype in said.items():
        assert proof.walk.bounds[name].dtype == dtype, name


def extreme_states(artifacts: Artifacts, end: str) -> dict[str, Array]:
    return {key: np.full_like(value, artifacts.manifest["tensors"][key][end]) for key, value in artifacts.state.items()}


@pytest.mark.parametrize("start", ["initial", "min", "max", "random"])
def test_what_is_measured_lies_inside(start: str, tiny_artifacts: Artifacts) -> None:
    """From ordinary and from extreme states."""
    lies_inside(tiny_artifacts, start)


def test_what_is_measured_lies_inside_in_every_profile(profiled: Artifacts) -> None:
    lies_inside(profiled, "random")


def lies_inside(artifacts: Artifacts, start: str) -> None:
    """Every tensor of the graph over three steps."""
    model, proof = Model(), prove(artifacts.files["int_training"])
    model.CopyFrom(artifacts.files["int_training"])
    outputs = {o.name for o in model.graph.output}
    model.graph.output.extend(v for v in model.graph.value_info if v.name not in outputs)
    session = ort_session(model, optimize=False)
    formats = artifacts.manifest["tensors"]
    state = dict(artifacts.state)
    if start == "random":
        random = np.random.default_rng(0)
        for key, value in state.items():
            drawn = random.integers(formats[key]["min"], formats[key]["max"], value.shape, endpoint=True)
            state[key] = np.asarray(drawn, value.dtype)
    elif start != "initial":
        state = extreme_states(artifacts, start)
    for step in range(3):
        pixels = np.full_like(images(), 255 * (step % 2)) if start in ("min", "max") else images(seed=step)
        scalars = {"lr": (-1) ** step * 2**31 - step % 2 if start != "initial" else 20, "gradient_range": 128, "seed": -step}
        feeds = {k: np.array(np.clip(v, -(2**31), 2**31 - 1), np.int32) for k, v in scalars.items()}
        feeds |= {"images": pixels, "labels": labels(seed=step)} | state
        values = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
        for name, value in values.items():
            bound = proof.walk.bounds[name]
            assert bound.lo <= value.min() <= value.max() <= bound.hi, name
        state = {key: values[f"{key}.next"] for key in state}


def test_the_counter_of_steps_stays(tiny_artifacts: Artifacts) -> None:
    session = ort_session(tiny_artifacts.files["int_training"])
    feeds = {k: np.array(v, np.int32) for k, v in {"lr": 5, "gradient_range": 128, "seed": 0}.items()}
    feeds |= {"images": images(), "labels": labels()} | tiny_artifacts.state
    for before, after in ((0, 1), (STEP_LIMIT - 1, STEP_LIMIT), (STEP_LIMIT, STEP_LIMIT)):
        (counted,) = session.run(["step.next"], feeds | {"step": np.array(before, np.int32)})
        assert counted == after


# -- small graphs: each is proven, and with one thing broken it is refused by name ----------------------------------------


def graph(
    nodes: list[onnx.NodeProto],
    states: dict[str, tuple[int, list[Any], int, int]],
    constants: dict[str, Any] | None = None,
    shapes: dict[str, tuple[int, list[Any]]] | None = None,
) -> Model:
    """``states``: name -> dtype, shape, least, greatest; ``shapes`` of tensors between. Outputs called ``x.next`` are states'."""
    inputs = [h.make_tensor_value_info(n, dtype, shape) for n, (dtype, shape, *_) in states.items()]
    made = {o for n in nodes for o in n.output}
    outputs = [h.make_tensor_value_info(f"{n}.next", d, s) for n, (d, s, *_) in states.items() if f"{n}.next" in made]
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    between = [h.make_tensor_value_info(n, dtype, shape) for n, (dtype, shape) in (shapes or {}).items()]
    model = h.make_model(h.make_graph(nodes, "g", inputs, outputs, tensors, value_info=between))
    model.metadata_props.add(key=RANGES, value=json.dumps({n: [lo, hi] for n, (_, _, lo, hi) in states.items()}))
    return model


def one(op: str, *states: tuple[int, list[Any], int, int], **attrs: Any) -> Model:
    """One node 'planted' on the states 'a', 'b', ..."""
    names = "abcd"[: len(states)]
    return graph([h.make_node(op, list(names), ["y"], "planted", **attrs)], dict(zip(names, states, strict=True)))


def i32(least: int, greatest: int, *shape: Any) -> tuple[int, list[Any], int, int]:
    return T.INT32, list(shape), least, greatest


def i64(least: int, greatest: int, *shape: Any) -> tuple[int, list[Any], int, int]:
    return T.INT64, list(shape), least, greatest


def u8(least: int, greatest: int, *shape: Any) -> tuple[int, list[Any], int, int]:
    return T.UINT8, list(shape), least, greatest


def i8(least: int, greatest: int, *shape: Any) -> tuple[int, list[Any], int, int]:
    return T.INT8, list(shape), least, greatest


def table(greatest: int) -> Model:
    nodes = [h.make_node("Gather", ["powers", "a"], ["y"], "planted", axis=0)]
    return graph(nodes, {"a": i32(0, greatest)}, {"powers": 2 ** np.arange(31, dtype=np.int32)})


def counter(limit: int) -> Model:
    nodes = [h.make_node("Min", ["a", "limit"], ["x"]), h.make_node("Add", ["x", "one"], ["a.next"], "planted")]
    return graph(nodes, {"a": i32(0, 9)}, {"limit": np.int32(limit), "one": np.int32(1)})


def chosen(guarded: bool) -> Model:
    """A product that is small only where the choice lets it be."""
    nodes = [
        h.make_node("Greater", ["a", "limit"], ["large"]),
        h.make_node("Where", ["large", "zero", "a"], ["x"]),
        h.make_node("Mul", ["x" if guarded else "a", "factor"], ["y"], "planted"),
    ]
    constants = {"limit": np.int32(2**20), "zero": np.int32(0), "factor": np.int32(2**10)}
    return graph(nodes, {"a": i32(0, 2**22, 3)}, constants)


def bits(back: int) -> Model:
    nodes = [h.make_node("Cast", ["a"], ["x"], to=T.UINT8), h.make_node("Cast", ["x"], ["y"], "planted", to=back)]
    return graph(nodes, {"a": i8(-127, 127, 3)})


def masked(mask: int) -> Model:
    """The whole part of a negative number over 256: exact where as many low bits are cleared."""
    nodes = [
        h.make_node("BitwiseAnd", ["a", "mask"], ["low"]),
        h.make_node("Sub", ["a", "low"], ["x"]),
        h.make_node("Div", ["x", "unit"], ["y"], "planted"),
    ]
    return graph(nodes, {"a": i32(-600, 600, 3)}, {"mask": np.int32(mask), "unit": np.int32(256)})


def summed(least: int, greatest: int, *shape: Any, wide: bool = True) -> Model:
    return one("ReduceSum", (i64 if wide else i32)(least, greatest, *shape), keepdims=0)


def produced(inner: int) -> Model:
    """Two uint8 operands around 128: products of up to 127 * 127."""
    nodes = [h.make_node("MatMulInteger", ["a", "b", "z", "z"], ["y"], "planted")]
    return graph(nodes, {"a": u8(1, 255, 2, inner), "b": u8(1, 255, inner, 2)}, {"z": np.uint8(128)})


def convolved(channels: int, groups: int = 1) -> Model:
    """``channels``: of a group."""
    nodes = [h.make_node("ConvInteger", ["a", "b"], ["y"], "planted", pads=[1, 1, 1, 1], group=groups)]
    return graph(nodes, {"a": u8(0, 255, 1, groups * channels, 5, 5), "b": u8(0, 255, 4, channels, 3, 3)})


def called(bound: int) -> Model:
    nodes = [h.make_node("PowerOfTwoRange", ["a"], ["y", "z"], "planted", domain=DOMAIN)]
    model = graph(nodes, {"a": i32(-bound, min(bound, 2**31 - 1), 3)})
    model.functions.append(CONTRACTS["PowerOfTwoRange"].function)
    return model


def own_function(name: str) -> Model:
    model = called(5)
    model.graph.node[0].op_type = model.functions[0].name = name
    return model


BROKEN: dict[str, tuple[Model, Model, str, str]] = {  # proven, broken, where, why
    "sum of two": (
        one("Add", i32(0, 2**30, 3), i32(0, 2**30 - 1, 3)), one("Add", i32(0, 2**30, 3), i32(0, 2**30, 3)),
        "node 'planted'", "Add may reach 2147483648, beyond 2147483647 of int32",
    ),
    "difference": (
        one("Sub", i32(-5, 0), i32(0, 2**31 - 1 - 4)), one("Sub", i32(-5, 0), i32(0, 2**31 - 4)),
        "node 'planted'", "Sub may reach -2147483649, beyond -2147483648 of int32",
    ),
    "product": (
        one("Mul", i64(0, 2**31), i64(0, 2**31)), one("Mul", i64(0, 2**31), i64(0, 2**32)),
        "node 'planted'", "Mul may reach 9223372036854775808, beyond 9223372036854775807 of int64",
    ),
    "least int32 negated": (
        one("Neg", i32(-(2**31) + 1, 0)), one("Neg", i32(-(2**31), 0)),
        "node 'planted'", "Neg may reach 2147483648",
    ),
    "least int32's size": (
        one("Abs", i32(-(2**31) + 1, 0)), one("Abs", i32(-(2**31), 0)),
        "node 'planted'", "Abs may reach 2147483648",
    ),
    "divisor 0": (
        one("Div", i32(0, 9), i32(1, 5)), one("Div", i32(0, 9), i32(0, 5)),
        "node 'planted'", "Div its divisor may be 0, and must be at least 1",
    ),
    "negative dividend": (
        one("Div", i32(0, 9), i32(1, 5)), one("Div", i32(-1, 9), i32(1, 5)),
        "node 'planted'", "Div its dividend may be -1",
    ),
    "negative dividend with a rest": (
        masked(255), masked(127), "node 'planted'", "Div its dividend may be -640",
    ),
    "narrowed": (
        one("Cast", i32(-128, 127), to=T.INT8), one("Cast", i32(-128, 128), to=T.INT8),
        "node 'planted'", "Cast may reach 128, beyond 127 of int8",
    ),
    "bits as numbers": (bits(T.INT8), bits(T.INT32), "node 'planted'", "Cast reads the bits of int8 numbers"),
    "table": (table(30), table(31), "node 'planted'", "Gather its index may be 0..31, and its table has 31 entries"),
    "choice": (chosen(True), chosen(False), "node 'planted'", "Mul may reach 4294967296"),
    "long sum, int64": (
        summed(-(2**31), 2**31 - 1, 2**22 - 1), summed(-(2**31), 2**31 - 1, 2**22),
        "node 'planted'", "ReduceSum its sum of 4194304 terms may reach 9007199254740992, and is exact up to 9007199254740991",
    ),
    "long sum, int32": (
        summed(-128, 127, 2**24 - 1, wide=False), summed(-128, 127, 2**24, wide=False),
        "node 'planted'", "ReduceSum its sum of 16777216 terms may reach 2147483648, and is exact up to 2147483647",
    ),
    "sum over any batch": (
        summed(0, 1, 8), summed(0, 1, "N"), "node 'planted'", "ReduceSum adds over a dimension of unknown size 'N'",
    ),
    "matrix product": (
        produced(133_144), produced(133_145), "node 'planted'",
        "MatMulInteger its accumulator of 133145 terms may reach 2147495705, and is exact up to 2147483647",
    ),
    "convolution": (
        convolved(3669), convolved(3670), "node 'planted'",
        "ConvInteger its accumulator of 33030 terms may reach 2147775750",
    ),
    "convolution in groups": (
        convolved(3669, 4), convolved(3670, 4), "node 'planted'",
        "ConvInteger its accumulator of 33030 terms may reach 2147775750",
    ),
    "inexact without VNNI": (
        one("MatMulInteger", u8(0, 129, 2, 2), i8(-127, 127, 2, 2)),
        one("MatMulInteger", u8(0, 130, 2, 2), i8(-127, 127, 2, 2)),
        "node 'planted'", "MatMulInteger its uint8 operand may be 130 beside int8",
    ),
    "forbidden kernel": (
        one("Max", i32(0, 9), i32(0, 9)), one("Max", i64(0, 9), i64(0, 9)), "node 'planted'", "Max wrong for int64",
    ),
    "unknown operator": (
        one("Identity", i32(0, 9)), one("Mod", i32(0, 9), i32(1, 9)), "node 'planted'", "Mod has no transfer function",
    ),
    "operand of a function": (
        called(2**31 - 1), called(2**31), "node 'planted'",
        "PowerOfTwoRange its operand m may be -2147483648..2147483647, and PowerOfTwoRange takes -2147483647..2147483647",
    ),
    "unknown function": (
        called(5), own_function("HalfRange"), "node 'planted'", "HalfRange calls a function without a contract",
    ),
    "state that leaves": (
        counter(8), counter(9), "state 'a'", "may become 1..10, outside its range 0..9",
    ),
    "state beyond its dtype": (
        one("Identity", i8(-128, 127)), one("Identity", i8(-128, 128)),
        "state 'a'", "declares -128..128, which is no range of int8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_is_found_by_name(name: str) -> None:
    sound, broken, where, why = BROKEN[name]
    assert doubts(sound) == []
    first = doubts(broken)[0]
    assert first.startswith(f"{where}: {why}"), first
    assert "\n" not in first


def test_low_bits_are_cleared_downwards() -> None:
    bounds = prove(masked(255)).walk.bounds
    assert bounds["x"][:2] == (-768, 512)
    assert bounds["y"][:2] == (-3, 2)


@pytest.mark.parametrize(("least", "greatest", "truth"), [(-5, 5, (0, 1)), (0, 0, (0, 0)), (1, 5, (1, 1)), (-5, -1, (1, 1))])
def test_a_truth_is_whether_a_number_is_not_zero(least: int, greatest: int, truth: tuple[int, int]) -> None:
    assert prove(one("Cast", i32(least, greatest, 3), to=T.BOOL)).walk.bounds["y"][:2] == truth


def test_a_maximum_may_be_negative() -> None:
    assert prove(one("ReduceMax", i32(-9, -1, 3))).walk.bounds["y"][:2] == (-9, -1)


def test_missing_metadata_is_found() -> None:
    model = counter(8)
    del model.metadata_props[:]
    assert doubts(model)[0] == "the model: does not declare the ranges of its states (metadata wageubn.ranges)"
    for text in ("not json", "[]", '{"a": 5}', '{"a": ["x", "y"]}'):
        model = counter(8)
        model.metadata_props[0].value = text
        assert "does not declare" in doubts(model)[0]
    model.metadata_props[0].value = "{}"
    assert doubts(model)[0] == "state 'a': has no range in metadata wageubn.ranges"


def test_a_default_that_a_caller_may_override_is_no_constant() -> None:
    model = counter(8)
    model.graph.input.append(h.make_tensor_value_info("limit", T.INT32, []))
    assert doubts(model)[0] == "state 'limit': has no range in metadata wageubn.ranges"


def test_what_nothing_makes_is_found() -> None:
    model = counter(8)
    model.graph.node[1].input[0] = "nowhere"
    assert "node 'planted': Add reads 'nowhere', which nothing makes before it" in doubts(model)


def test_one_fault_is_one_doubt() -> None:
    """What follows a fault takes any value of its dtype, and is held to that alone."""
    nodes = [
        h.make_node("Add", ["a", "a"], ["x"], "planted"),
        h.make_node("Min", ["x", "limit"], ["y"], "after"),
        h.make_node("Max", ["y", "zero"], ["z"]),
        h.make_node("Add", ["z", "limit"], ["u"]),
    ]
    model = graph(nodes, {"a": i32(-(2**31), 5)}, {"limit": np.int32(9), "zero": np.int32(0)})
    assert doubts(model) == ["node 'planted': Add may reach -4294967296, beyond -2147483648 of int32"]


# -- faults in the real step ----------------------------------------------------------------------------------------------


@pytest.fixture
def step(tiny_artifacts: Artifacts) -> Model:
    """A copy of `int_training`, to be spoilt."""
    copy = Model()
    copy.CopyFrom(tiny_artifacts.files["int_training"])
    return copy


def test_a_state_whose_quantizer_is_too_wide(step: Model) -> None:
    node = next(n for n in step.graph.node if n.name == "a1/Q_UW")
    (greatest,) = (a for a in node.attribute if a.name == "greatest")
    limit = greatest.i
    greatest.i += 1
    found = [f for f in audit_model(step).findings if f.kind == "range"]
    assert [f.where for f in found] == ["state 'a1.weight'"]
    assert f"..{limit + 1}, outside its range -{limit}..{limit}" in found[0].message


def test_a_declared_range_that_is_too_wide(step: Model) -> None:
    """The running variance, times four, is more than a function takes."""
    (prop,) = (p for p in step.metadata_props if p.key == RANGES)
    ranges = json.loads(prop.value)
    ranges["stem_bn.running_var"][1] = 2**62
    prop.value = json.dumps(ranges)
    assert any("'stem_bn/" in d for d in doubts(step))


def test_an_undeclared_state(step: Model) -> None:
    (prop,) = (p for p in step.metadata_props if p.key == RANGES)
    ranges = json.loads(prop.value)
    del ranges["a2.weight"]
    prop.value = json.dumps(ranges)
    assert doubts(step)[0] == "state 'a2.weight': has no range in metadata wageubn.ranges"


def test_a_batch_that_is_too_large(step: Model) -> None:
    """A sum whose length the file says grew."""
    node = next(n for n in step.graph.node if n.op_type == "ReduceSum" and "stem_bn" in n.name)
    (value,) = (v for v in (*step.graph.value_info, *step.graph.output) if v.name == node.input[0])
    value.type.tensor_type.shape.dim[0].dim_value = 2**40
    assert f"node {node.name!r}: ReduceSum its sum" in doubts(step)[0]


@pytest.mark.parametrize("op", ["ReduceSum", "MatMulInteger", "ConvInteger"])
def test_a_shape_that_the_file_says_wrong_is_found(op: str, step: Model) -> None:
    """The audit proves with shapes of its own; what the file says must be the same, since others may believe it."""
    said = {v.name: v for v in step.graph.value_info if len(v.type.tensor_type.shape.dim) > 1}
    name = next(n.input[0] for n in step.graph.node if n.op_type == op and n.input[0] in said)
    said[name].type.tensor_type.shape.dim[1].dim_value -= 1
    assert [(f.kind, f.where) for f in audit_model(step).findings] == [("shape", f"tensor {name!r}")]
    with pytest.raises(WageubnError, match="not valid ONNX"):
        check_stage(step, "int_training")


def test_conversion_stops_at_what_is_not_proven(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = dataclasses.replace(CONTRACTS["FlagQuantize"], requires=lambda attributes: {"m": (-5, 5)})
    monkeypatch.setitem(CONTRACTS, "FlagQuantize", narrow)
    monkeypatch.setattr(bodies, "_shared", {})  # what is known of it is known under its own contract
    with pytest.raises(ProofFailed) as caught:
        convert(tiny_file, Config(batch=BATCH, mean=MEAN, std=STD), tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("int_training: node '") and "Q_E2" in message and "FlagQuantize takes -5..5" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_models_with_the_same_functions_share_what_is_known_of_them(step: Model) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(step)
    assert bodies.Calls.of(other) is bodies.Calls.of(step)
    other.functions[0].node[0].name = "another"
    assert bodies.Calls.of(other) is not bodies.Calls.of(step)


# -- the command ----------------------------------------------------------------------------------------------------------


def audited(*args: Any) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["audit", *map(str, args)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_the_table_of_ranges(tiny_folder: Path, proven: tuple[Model, Proof]) -> None:
    code, text = audited(tiny_folder / "int_training.onnx", "--ranges")
    assert code == 0
    assert "RoundShift.c" in text and "optimizer/step" in text
    assert text.splitlines()[-1].endswith("tensors proven, by induction over 55 states")
    assert len(audited(tiny_folder / "int_training.onnx", "--ranges", "--all")[1].splitlines()) > 1500


def test_the_ranges_for_programs(tiny_folder: Path) -> None:
    code, text = audited(tiny_folder, "--ranges", "--json")
    found = json.loads(text)
    assert code == 0 and found["ok"]
    step, evaluation = (m["proof"] for m in found["models"])
    assert step["states"] == 55 and evaluation["states"] == 33
    row = step["ranges"][0]
    assert list(row) == ["tensor", "node", "op", "dtype", "least", "greatest", "bits", "headroom"]
    assert len(json.loads(audited(tiny_folder, "--ranges", "--all", "--json")[1])["models"][0]["proof"]["ranges"]) > 1500
    assert "proof" not in json.loads(audited(tiny_folder, "--json")[1])["models"][0]


def test_the_command_reports_what_is_not_proven(step: Model, tmp_path: Path) -> None:
    next(a for n in step.graph.node if n.name == "a1/Q_UW" for a in n.attribute if a.name == "greatest").i += 1
    onnx.save(step, tmp_path / "spoilt.onnx")
    code, text = audited(tmp_path / "spoilt.onnx", "--ranges")
    assert code == 1
    assert "range: state 'a1.weight'" in text
    assert text.splitlines()[-1] == "not proven: 1 doubts"


def test_floats_have_no_ranges(tiny_folder: Path) -> None:
    code, text = audited(tiny_folder / "forward.onnx", "--ranges")
    assert code == 1
    assert text.splitlines()[-1] == "no ranges: only integers have one"


def test_all_needs_ranges(tiny_folder: Path) -> None:
    code, text = audited(tiny_folder, "--all")
    assert code == 2 and "--all needs --ranges" in text
