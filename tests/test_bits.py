"""The integer step gives the same bits wherever it runs, and the bits of `quant_training` computed in float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from float64 import float64_copy, reference_evaluator, run_reference
from networks import BATCH, CHANNELS, CLASSES, MEAN, SIZE, STD, TOPOLOGIES, images, labels, ort_session, run_ort
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.config import Config
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.proofs.audit import audit_model
from wageubn_onnx.runtime.session import TrainingSession

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


def feeds(step: int = 0, lr: int = 26, dr: int = 128, seed: int = 7) -> Arrays:
    scalars = {"lr": lr, "gradient_range": dr, "seed": seed}
    return {"images": images(seed=step), "labels": labels(seed=step), **{k: np.array(v, np.int32) for k, v in scalars.items()}}


def advance(run: Any, state: Arrays, steps: int) -> list[Arrays]:
    """The outputs of some steps, one after the other; run(feeds) -> outputs by name."""
    history = []
    for count in range(steps):
        found = run({**feeds(count), **state})
        state = {key: found[f"{key}.next"] for key in state}
        history.append(found)
    return history


def onnxruntime_runner(model: onnx.ModelProto, **options: Any) -> Any:
    session = ort_session(model, **options)
    names = [o.name for o in session.get_outputs()]
    return lambda values: dict(zip(names, session.run(None, values), strict=True))


def reference_runner(model: onnx.ModelProto) -> Any:
    evaluator = reference_evaluator(model)
    return lambda values: dict(zip(evaluator.output_names, evaluator.run(None, values), strict=True))


def differing(a: Arrays, b: Arrays) -> list[str]:
    assert a.keys() == b.keys()
    return [k for k in a if a[k].dtype != b[k].dtype or a[k].shape != b[k].shape or a[k].tobytes() != b[k].tobytes()]


@pytest.fixture(scope="module")
def plain(tiny_artifacts: Artifacts) -> Any:
    """The step in onnxruntime without optimizations."""
    return onnxruntime_runner(tiny_artifacts.files["int_training"], optimize=False)


@pytest.fixture(scope="module")
def baseline(plain: Any, tiny_artifacts: Artifacts) -> list[Arrays]:
    """Three steps, every output; each step moves every parameter and accumulator."""
    history = advance(plain, tiny_artifacts.state, 3)
    for key, value in tiny_artifacts.state.items():
        assert (history[-1][f"{key}.next"] != value).any(), key
    return history


@pytest.mark.parametrize("runner", ["optimized, 1 thread", "optimized, 2 threads", "plain, 2 threads", "reference evaluator"])
def test_every_backend_gives_the_same_bits(runner: str, tiny_artifacts: Artifacts, baseline: list[Arrays]) -> None:
    model = tiny_artifacts.files["int_training"]
    if runner == "reference evaluator":
        run = reference_runner(model)
    else:
        run = onnxruntime_runner(model, optimize=runner.startswith("optimized"), threads=2 if "2" in runner else 1)
    for found, expected in zip(advance(run, tiny_artifacts.state, 3), baseline, strict=True):
        assert differing(found, expected) == []


def test_a_step_is_a_pure_function(plain: Any, tiny_artifacts: Artifacts, baseline: list[Arrays]) -> None:
    plain({**feeds(5), **tiny_artifacts.state})
    again = [plain({**feeds(0), **tiny_artifacts.state}) for _ in range(2)]
    assert differing(again[0], baseline[0]) == differing(again[1], baseline[0]) == []


@pytest.mark.parametrize("change", ["seed", "step"])
def test_random_bits_reach_weights_only(change: str, plain: Any, tiny_artifacts: Artifacts, baseline: list[Arrays]) -> None:
    """Another seed, or another step number, rounds the weight gradients otherwise, and touches nothing else."""
    state = dict(tiny_artifacts.state)
    if change == "step":
        state["step"] = np.array(12345, np.int32)
    other = plain({**feeds(0, seed=8 if change == "seed" else 7), **state})
    weights = [e["layer"] + ".weight" for e in tiny_artifacts.manifest["quantizers"] if e["role"] == "W"]
    expected = {f"{w}{suffix}.next" for w in weights for suffix in ("", ".momentum")}
    changed = set(differing(other, baseline[0]))
    assert changed == expected | ({"step.next"} if change == "step" else set())
    assert len(expected) == 16


def test_random_bits_differ_between_weights(plain: Any, tiny_artifacts: Artifacts) -> None:
    """Each tensor has its own stream: of two seeds' momenta, equally shaped tensors change in different places."""
    a, b = (plain({**feeds(0, seed=s), **tiny_artifacts.state}) for s in (1, 2))
    places = [a[k] != b[k] for k in ("a1.weight.momentum.next", "a2.weight.momentum.next")]
    assert all(0.05 < p.mean() < 0.95 for p in places)
    assert (places[0] != places[1]).mean() > 0.1


def test_a_resumed_run_is_the_uninterrupted_one(tiny_folder: Path, tmp_path: Path) -> None:
    def steps(session: TrainingSession, numbers: range) -> None:
        for n in numbers:
            session.step(images(seed=n), labels(seed=n), lr=0.05, gradient_range=(128, 32)[n // 2], seed=3)

    whole, first, second = (
        TrainingSession(tiny_folder),
        TrainingSession(tiny_folder),
        TrainingSession(tiny_folder, optimize=False),
    )
    steps(whole, range(4))
    steps(first, range(2))
    first.save(tmp_path / "middle.safetensors")
    second.load(tmp_path / "middle.safetensors")
    assert differing(second.state(), first.state()) == []
    steps(second, range(2, 4))
    assert differing(second.state(), whole.state()) == []
    assert len(differing(first.state(), whole.state())) == len(whole.state())
    whole.save(tmp_path / "whole.safetensors")
    second.save(tmp_path / "resumed.safetensors")
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "resumed.safetensors").read_bytes()


@pytest.mark.parametrize("trained", [False, True])
def test_an_image_s_logits_do_not_depend_on_its_batch(trained: bool, tiny_folder: Path) -> None:
    session = TrainingSession(tiny_folder)
    if trained:
        session.step(images(), labels(), lr=0.1)
    pixels = images(7, seed=3)
    expected = session.evaluate(pixels).logits
    assert len(np.unique(expected, axis=0)) == 7
    for batch in (1, 2, 3):
        np.testing.assert_array_equal(session.evaluate(pixels, batch=batch).logits, expected)
    order = np.random.default_rng(0).permutation(7)
    np.testing.assert_array_equal(session.evaluate(pixels[order]).logits, expected[order])
    bright = np.concatenate([pixels[:1], np.full((3, CHANNELS, SIZE, SIZE), 255, np.uint8)])
    np.testing.assert_array_equal(session.evaluate(bright).logits[0], expected[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_int_eval_gives_the_same_bits_everywhere(threads: int, tiny_artifacts: Artifacts) -> None:
    model = tiny_artifacts.files["int_eval"]
    values = {i.name: tiny_artifacts.state[i.name] for i in model.graph.input if i.name != "images"} | {"images": images(5)}
    expected = run_reference(model, values)
    assert expected["logits"].shape == (5, CLASSES)
    for optimize in (False, True):
        assert differing(run_ort(model, values, threads=threads, optimize=optimize), expected) == []


# -- against quant_training in float64 --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twins:
    """`int_training` and the float64 copy of `quant_training`, to be given equal inputs."""

    artifacts: Artifacts
    integer: Any
    exact: Any
    image: str  # the tensor of `int_training` that Q_I makes
    image_exponent: int

    @staticmethod
    def of(artifacts: Artifacts) -> Twins:
        (entry,) = (e for e in artifacts.manifest["quantizers"] if e["role"] == "I")
        probe = onnx.ModelProto()
        probe.CopyFrom(artifacts.files["int_training"])
        (node,) = (n for n in probe.graph.node if n.name == entry["node"])
        probe.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
        exact = reference_runner(float64_copy(artifacts.files["quant_training"]))
        return Twins(artifacts, onnxruntime_runner(probe, optimize=False), exact, node.output[0], -entry["fraction"])

    def exponent(self, output: str, found: Arrays) -> int:
        """value = integer * 2^exponent, of any output of the step."""
        if output.endswith(".gradient"):
            return int(found[f"{output}.exponent"])
        if output.endswith(".next"):
            return int(self.artifacts.manifest["tensors"][output.removesuffix(".next")]["exponent"])
        return int(self.artifacts.manifest["exponents"].get(output, 0))

    def compare(self, values: Arrays, state: Arrays) -> tuple[list[str], Arrays]:
        """Outputs whose values differ anywhere, and the integer step's outputs."""
        found = self.integer({**values, **state})
        tensors, lr = self.artifacts.manifest["tensors"], self.artifacts.manifest["exponents"]["lr"]
        exact_values = dict(values)
        exact_values["images"] = np.ldexp(found[self.image].astype(np.float64), self.image_exponent)
        exact_values["lr"] = np.ldexp(values["lr"].astype(np.float64), lr)
        for key, value in state.items():
            plain = tensors[key]["kind"] in ("step", "exponent")
            exact_values[key] = value if plain else np.ldexp(value.astype(np.float64), tensors[key]["exponent"])
        expected = self.exact(exact_values)
        integers = {k: np.ldexp(found[k].astype(np.float64), self.exponent(k, found)) for k in expected}
        return [k for k in expected if not np.array_equal(integers[k], expected[k])], found

    def drawn(self, how: str, seed: int = 0) -> Arrays:
        """A state anywhere inside the manifest's ranges."""
        random, state = np.random.default_rng(seed), {}
        for key, value in self.artifacts.state.items():
            entry = self.artifacts.manifest["tensors"][key]
            low, high = entry["min"], entry["max"]
            if how == "least":
                drawn = np.full(value.shape, low)
            elif how == "greatest":
                drawn = np.full(value.shape, high)
            elif how == "corners":
                drawn = random.choice([low, high], value.shape)
            elif how == "uniform" or entry["kind"] == "exponent":
                drawn = random.integers(low, high + 1, value.shape)
            else:  # every magnitude alike
                size = np.exp2(random.uniform(0, np.log2(high), value.shape))
                drawn = np.clip(np.round(random.choice([-1, 1], value.shape) * size), low, high)
            state[key] = np.asarray(drawn).astype(value.dtype)
        return state


def converted(folder: Path, seed: int, topology: str = "tiny", **options: Any) -> Twins:
    onnx.save(TOPOLOGIES[topology](seed), folder / "net.onnx")
    options = {"keep_folded": True} | options
    return Twins.of(convert(folder / "net.onnx", Config(batch=BATCH, mean=MEAN, std=STD, expose_gradients=True, **options)))


@pytest.mark.parametrize(
    ("seed", "options"),
    [(0, {}), (1, {"calibrate": images(16, seed=9)}), (2, {"weight_decay": 0.0}), (3, {"weight_decay": 0.02})],
)
def test_integers_are_the_float64_values(seed: int, options: dict[str, Any], tmp_path: Path) -> None:
    """Every state, the loss, and every gradient, for four steps: natural images, black and white ones, flat black ones."""
    twins = converted(tmp_path, seed, **options)
    random, state = np.random.default_rng(seed), twins.artifacts.state
    harsh = random.choice([0, 255], (BATCH, CHANNELS, SIZE, SIZE)).astype(np.uint8)
    flat = np.zeros_like(harsh)
    for count, (lr, dr, pixels) in enumerate([(26, 128, images()), (2047, 2, images(seed=5)), (1, 32, harsh), (200, 8, flat)]):
        values = feeds(count, lr, dr, seed=int(random.integers(-(2**31), 2**31))) | {"images": pixels}
        wrong, found = twins.compare(values, state)
        assert wrong == []
        state = {key: found[f"{key}.next"] for key in state}


UPWARD = """
extends = "sq8"
""" + "".join(
    f'[{path}]\nrounding = "half_up"\n'
    for path in ("I", "W", "A", "C", "BN.mu", "BN.sigma", "BN.x", "BN.A", "E1", "E2", "E.acc", "G.W")
)
MIXED = """
extends = "full8"
[A]
bits = 7
[BN.mu]
fraction = 11
[BN.sigma]
fraction = 12
[E.sum]
bits = 12
[G.gamma]
rounding = "stochastic"
[layers.first.E2]
function = "shift"
bits = 16
[layers."a*".W]
bits = 6
fraction = 5
"""


FACTORS = """
extends = "sq8"
[BN.A]
bits = 8
delayed = true
[BN.K]
function = "grid"
bits = 9
[E2]
delayed = true
"""
OWN = {"upward": UPWARD, "mixed": MIXED, "factors": FACTORS}


@pytest.mark.parametrize("profile", ["e16", "sq8", "sq8s", "fast", *OWN.values()], ids=["e16", "sq8", "sq8s", "fast", *OWN])
def test_every_profile_s_integers_are_the_float64_values(profile: str, tmp_path: Path) -> None:
    """Two steps of the integer step against float64, of named profiles and of a user's own."""
    name = profile
    if "extends" in profile:
        (tmp_path / "own.toml").write_text(profile)
        name = str(tmp_path / "own.toml")
    twins = converted(tmp_path, 0, profile=load_profile(name))
    state = twins.artifacts.state
    for count, (lr, dr) in enumerate([(26, 128), (200, 8)]):
        wrong, found = twins.compare(feeds(count, lr, dr), state)
        assert wrong == []
        state = {key: found[f"{key}.next"] for key in state}


@pytest.mark.parametrize("profile", ["full8", "fast"])
@pytest.mark.parametrize("options", [{"keep_folded": True}, {"keep_folded": False, "calibrate": images(16, seed=9)}])
def test_a_folded_network_s_integers_are_the_float64_values(profile: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Biases and no BN anywhere, and the same network with its BN recovered; two steps."""
    twins = converted(tmp_path, 0, "folded", profile=load_profile(profile), **options)
    kinds = {entry["kind"] for entry in twins.artifacts.manifest["tensors"].values() if "kind" in entry}
    assert ("running_var" in kinds) is not options["keep_folded"]
    state = twins.artifacts.state
    for count, (lr, dr) in enumerate([(26, 128), (200, 8)]):
        wrong, found = twins.compare(feeds(count, lr, dr), state)
        assert wrong == []
        state = {key: found[f"{key}.next"] for key in state}


def test_statistics_of_fewer_bits_than_a_sum_cover_its_range(tmp_path: Path) -> None:
    """mu and sigma of 13 bits, of a residual sum of 16: coarser than its grid, and as exact as the others."""
    twins = converted(tmp_path, 0, "preactivation", profile=load_profile("fast"))
    ends = {}
    for node in twins.artifacts.files["quant_training"].graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("role") in (b"S", b"BN.mu", b"BN.sigma") and "exponent" in attributes:
            ends[node.name] = attributes["bits"] - 1 + attributes["exponent"]
    assert ends["last_bn/Q_mu"] == ends["last_bn/Q_sigma"] == ends["b_add/Q_S"]
    assert twins.compare(feeds(0), twins.artifacts.state)[0] == []


@pytest.mark.parametrize("topology", ["grouped", "odd"])
@pytest.mark.parametrize("profile", ["full8", "sq8", "fast"])
def test_other_operators_are_as_exact(profile: str, topology: str, tmp_path: Path) -> None:
    """Two steps against float64, one from the corners of the ranges, one on onnx's evaluator; on one batch the loss falls."""
    twins = converted(tmp_path, 0, topology, profile=load_profile(profile))
    model, state = twins.artifacts.files["int_training"], twins.artifacts.state
    assert audit_model(model).ok
    for count, (lr, dr) in enumerate([(26, 128), (200, 8)]):
        wrong, found = twins.compare(feeds(count, lr, dr), state)
        assert wrong == []
        state = {key: found[f"{key}.next"] for key in state}
    assert twins.compare(feeds(2, 2047, 2), twins.drawn("corners"))[0] == []
    run = onnxruntime_runner(model)
    assert differing(reference_runner(model)(feeds(2) | state), run(feeds(2) | state)) == []
    losses, state = [], twins.artifacts.state
    for _ in range(6):
        found = run(feeds() | state)
        losses.append(int(found["loss"]))
        state = {key: found[f"{key}.next"] for key in state}
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("how", ["least", "greatest", "corners", "uniform", "magnitudes"])
def test_any_state_in_its_ranges_stays_exact_and_in_range(how: str, twins: Twins) -> None:
    """What the bounds promise for every input, tried at their corners: nothing wraps, and no state leaves its range."""
    random, ranges = np.random.default_rng(4), twins.artifacts.manifest["tensors"]
    for seed, (lr, dr) in enumerate([(1, 128), (2047, 2), (2047, 128)]):
        pixels = random.choice([0, 255], (BATCH, CHANNELS, SIZE, SIZE)).astype(np.uint8)
        values = feeds(seed, lr, dr, seed=(-(2**31), 2**31 - 1, 0)[seed]) | {"images": pixels}
        wrong, found = twins.compare(values, twins.drawn(how, seed))
        assert wrong == []
        for key, entry in ranges.items():
            if f"{key}.next" in found:
                after = found[f"{key}.next"]
                assert entry["min"] <= after.min() and after.max() <= entry["max"], key


@pytest.fixture(scope="module", params=["full8", "fast"])
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return converted(tmp_path_factory.mktemp("twins"), 0, profile=load_profile(request.param))


@pytest.mark.parametrize("twins", ["full8"], indirect=True)
def test_float32_is_not_enough_but_close(tiny_artifacts: Artifacts, twins: Twins) -> None:
    """`quant_training` as written, in float32, rounds a few values to a neighbour: its loss stays within 2 %."""
    values = feeds()
    found = twins.integer({**values, **twins.artifacts.state})
    tensors = twins.artifacts.manifest["tensors"]
    single = dict(values)
    single["images"] = np.ldexp(found[twins.image].astype(np.float32), twins.image_exponent)
    single["lr"] = np.asarray(np.ldexp(values["lr"].astype(np.float32), -9))
    for key, value in twins.artifacts.state.items():
        single[key] = value if key == "step" else np.asarray(np.ldexp(value.astype(np.float32), tensors[key]["exponent"]))
    loss = float(run_ort(twins.artifacts.files["quant_training"], single)["loss"])
    assert loss == pytest.approx(float(found["loss"]) * 2.0**-16, rel=0.02)
