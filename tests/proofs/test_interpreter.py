"""onnxruntime computes the integer graphs as the interpreter does on exact integers, every tensor, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from networks import BATCH, CHANNELS, MEAN, SIZE, STD, TOPOLOGIES, images, labels, run_ort
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.composites import kind_of
from wageubn_onnx.config import Config
from wageubn_onnx.errors import ProofFailed, UnsupportedOperator, WageubnError
from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.proofs.interpreter import FUNCTIONS, OPERATORS, interpret
from wageubn_onnx.stages import INTEGER_OPS

ROOT = Path(__file__).resolve().parents[2]
Arrays = dict[str, np.ndarray[Any, Any]]


def feeds(pixels: Any, truth: Any, lr: int = 100, dr: int = 128, seed: int = -7) -> Arrays:
    scalars = {"lr": lr, "gradient_range": dr, "seed": seed}
    return {"images": pixels, "labels": truth} | {k: np.array(v, np.int32) for k, v in scalars.items()}


def check(model: onnx.ModelProto, values: Arrays) -> Arrays:
    """Demand that every tensor is the same in dtype, shape and bits; return them."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {o.name for o in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name not in known]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    expected = interpret(model, values)
    for name, found in run_ort(probe, values, optimize=False).items():
        wanted = expected[name]
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
        np.testing.assert_array_equal(found, wanted, name)
    return expected


def check_steps(artifacts: Artifacts, steps: list[Arrays]) -> Arrays:
    """Every tensor of the first step, every output of the later ones; return the last state."""
    model, state = artifacts.files["int_training"], artifacts.state
    for count, values in enumerate(steps):
        expected = check(model, values | state) if count == 0 else interpret(model, values | state)
        for name, found in run_ort(model, values | state).items():
            assert found.dtype == expected[name].dtype
            np.testing.assert_array_equal(found, expected[name], f"step {count}: {name}")
        state = {key: expected[f"{key}.next"] for key in state}
    return state


def check_eval(artifacts: Artifacts, state: Arrays, pixels: Any) -> None:
    model = artifacts.files["int_eval"]
    check(model, {i.name: state[i.name] for i in model.graph.input if i.name != "images"} | {"images": pixels})


@pytest.fixture(scope="module", params=TOPOLOGIES)
def artifacts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    path = tmp_path_factory.mktemp("source") / "net.onnx"
    onnx.save(TOPOLOGIES[request.param](), path)
    return convert(path, Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True, expose_gradients=True, health=True))


# -- whole graphs ---------------------------------------------------------------------------------------------------------


def test_training_is_that_of_exact_integers(artifacts: Artifacts) -> None:
    ranges = [(26, 128), (511, 2), (100, 32)]
    state = check_steps(artifacts, [feeds(images(seed=i), labels(seed=i), lr, dr) for i, (lr, dr) in enumerate(ranges)])
    check_eval(artifacts, state, images(5))


@pytest.mark.parametrize("pixel", [0, 255])
def test_states_at_the_ends_of_their_ranges_stay_exact(pixel: int, artifacts: Artifacts) -> None:
    """Where nothing may wrap if the bounds of the conversion hold."""
    random, tensors = np.random.default_rng(pixel), artifacts.manifest["tensors"]
    state = {}
    for key, value in artifacts.state.items():
        ends = [tensors[key]["min"], tensors[key]["max"] - (key == "step")]  # the step that follows the last one is refused
        state[key] = np.asarray(random.choice(ends, value.shape), value.dtype)
    pixels = random.choice([pixel, 128, 255 - pixel], (BATCH, CHANNELS, SIZE, SIZE), p=[0.8, 0.1, 0.1]).astype(np.uint8)
    check(artifacts.files["int_training"], feeds(pixels, labels(), 511, 128) | state)
    check_eval(artifacts, state, pixels)


@pytest.mark.slow
def test_the_digits_network_is_that_of_exact_integers() -> None:
    """Three steps of the committed network."""
    artifacts = convert(ROOT / "models/digits_resnet.onnx", Config(batch=32, mean=(0.305,), std=(0.376,)))
    random = np.random.default_rng(0)
    batches = [(random.integers(0, 256, (32, 1, 8, 8), np.uint8), random.integers(0, 10, 32, np.int32)) for _ in range(3)]
    state = check_steps(artifacts, [feeds(*batch) for batch in batches])
    check_eval(artifacts, state, batches[0][0])


# -- the tables -----------------------------------------------------------------------------------------------------------


def test_every_legal_operator_has_a_rule() -> None:
    assert set(OPERATORS) == INTEGER_OPS


def test_every_function_is_met(tmp_path: Path) -> None:
    """The topologies call every function that has a rule."""
    called = set()
    for name, build in TOPOLOGIES.items():
        onnx.save(build(), tmp_path / f"{name}.onnx")
        config = Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True)
        nodes = convert(tmp_path / f"{name}.onnx", config).files["int_training"].graph.node
        called |= {n.op_type for n in nodes if n.domain == DOMAIN and not kind_of(n.op_type)}
    families = {name.removesuffix("HalfUp").removesuffix("Stochastic") for name in FUNCTIONS}
    assert {name.removesuffix("Stochastic") for name in called} == families - {"Limbs", "FollowExponent", "FollowExponents"}


@pytest.mark.parametrize(
    ("profile", "topology"), [("e16", "tiny"), ("sq8s", "tiny"), ("fast", "tiny"), ("sq8", "grouped"), ("fast", "grouped")]
)
def test_a_profile_s_step_is_the_interpreter_s(profile: str, topology: str, tmp_path: Path) -> None:
    """Every output of a step of onnxruntime: limbs of 16 bits, errors rounded stochastically, delayed exponents; groups."""
    onnx.save(TOPOLOGIES[topology](), tmp_path / "net.onnx")
    config = Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True, profile=load_profile(profile))
    made = convert(tmp_path / "net.onnx", config)
    model = made.files["int_training"]
    scalars = {"lr": 40, "gradient_range": 128, "seed": 3}
    values = {"images": images(), "labels": labels(), **{k: np.array(v, np.int32) for k, v in scalars.items()}} | made.state
    found = interpret(model, values)
    for name, expected in run_ort(model, values).items():
        np.testing.assert_array_equal(found[name], expected, name)


# -- refusals -------------------------------------------------------------------------------------------------------------


def one(kind: str, dtype: int, *operands: Any, out: int | None = None, **attrs: Any) -> Arrays:
    """A graph of one node, interpreted."""
    arrays = {f"x{i}": np.asarray(v, h.tensor_dtype_to_np_dtype(dtype)) for i, v in enumerate(operands)}
    inputs = [h.make_tensor_value_info(name, dtype, v.shape) for name, v in arrays.items()]
    outputs = [h.make_tensor_value_info("y", out or dtype, None)]
    graph = h.make_graph([h.make_node(kind, list(arrays), ["y"], "the node", **attrs)], "one", inputs, outputs)
    return interpret(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)]), arrays)


@pytest.mark.parametrize(
    ("kind", "dtype", "operands", "message"),
    [
        ("Add", T.INT32, ([2**31 - 1], [1]), "Add reaches 2147483648..2147483648, which int32 does not hold"),
        ("Mul", T.INT64, ([2**62, 0], [2, 1]), "Mul reaches 0..9223372036854775808, which int64 does not hold"),
        ("Sub", T.UINT8, ([1], [2]), "Sub reaches -1..-1, which uint8 does not hold"),
        ("ReduceSum", T.INT64, ([2**62, 2**62],), "ReduceSum reaches 9223372036854775808"),
        ("Div", T.INT32, ([4, 4], [2, 0]), "divisor reaches 0, and must be at least 1"),
        ("Div", T.INT32, ([-1], [2]), "dividend reaches -1, and must not be negative"),
        ("Gather", T.INT64, ([1, 2], [2]), "out of bounds"),
    ],
)
def test_what_a_kernel_would_wrap_is_refused(kind: str, dtype: int, operands: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ProofFailed, match=message) as caught:
        one(kind, dtype, *operands)
    assert str(caught.value).startswith("node 'the node': ") and "\n" not in str(caught.value)


def test_a_cast_keeps_the_bits_of_its_width_and_else_the_value() -> None:
    assert one("Cast", T.INT8, [-1, 5], out=T.UINT8, to=T.UINT8)["y"].tolist() == [255, 5]
    assert one("Cast", T.INT32, [-1, 5], out=T.INT8, to=T.INT8)["y"].tolist() == [-1, 5]
    with pytest.raises(ProofFailed, match="Cast reaches 5..300, which int8 does not hold"):
        one("Cast", T.INT32, [300, 5], out=T.INT8, to=T.INT8)


def test_what_it_does_not_know_is_refused(tiny_artifacts: Artifacts) -> None:
    with pytest.raises(UnsupportedOperator, match="node 'the node': Sqrt has no rule"):
        one("Sqrt", T.INT32, [4])
    with pytest.raises(WageubnError, match="input 'images' is missing; feed it as uint8"):
        interpret(tiny_artifacts.files["int_eval"], {})
    with pytest.raises(WageubnError, match="input 'images' is float32; feed it as uint8"):
        interpret(tiny_artifacts.files["int_eval"], {"images": images().astype(np.float32)})
