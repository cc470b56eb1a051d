"""Steps that train a part: exact as any other, nothing below the lowest trained layer, and a network that stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import numpy_helper

from networks import BATCH, MEAN, STD, images, labels, relative, run_ort, tiny
from test_bits import Arrays, Twins, feeds
from torch_network import TorchNetwork
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.bench.fidelity import forward_fidelity, gradient_fidelity
from wageubn_onnx.bench.torch_step import TorchStep
from wageubn_onnx.composites import expanded
from wageubn_onnx.config import Config
from wageubn_onnx.graph import node_tag
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.proofs.audit import audit_model
from wageubn_onnx.proofs.interpreter import interpret
from wageubn_onnx.runtime.session import FloatSession, QuantizedSession, TrainingSession
from wageubn_onnx.training.data import Dataset

CASES: dict[str, dict[str, Any]] = {
    "last": {"train_last": 1},
    "last three": {"train_last": 3},
    "middle": {"freeze": ("b1*", "a2*")},  # their errors go on to what lies below
    "convolutions": {"freeze": ("stem", "a1", "b_short")},  # and not the BNs behind them
    "statistics": {"bn": "frozen"},
    "one image": {"bn": "frozen", "batch": 1},
    "head": {"num_classes": 7, "train_last": 2, "health": True},
}
PROFILES = ("full8", "sq8", "fast")
CONVERTED = [(c, "full8") for c in CASES] + [("statistics", "sq8"), ("middle", "sq8")]
CONVERTED += [(c, "fast") for c in ("last three", "middle", "one image")]


def converted(file: Path, profile: str = "full8", **options: Any) -> Artifacts:
    fixed = {"batch": BATCH, "mean": MEAN, "std": STD, "expose_gradients": True, "profile": load_profile(profile)}
    return convert(file, Config(**fixed | options))


def batch_of(artifacts: Artifacts, count: int, **scalars: int) -> Arrays:
    """Images and labels as many as the step takes, of the classes that it has."""
    n = artifacts.files["fp_training"].graph.input[0].type.tensor_type.shape.dim[0].dim_value
    classes = artifacts.files["forward"].graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return feeds(count, **scalars) | {"images": images(n, seed=count), "labels": labels(n, seed=count, classes=classes)}


@pytest.fixture(scope="module", params=CONVERTED, ids="-".join)
def case(request: pytest.FixtureRequest, tiny_file: Path) -> tuple[str, Artifacts]:
    name, profile = request.param
    return name, converted(tiny_file, profile, **CASES[name])


def test_integers_are_the_float64_values(case: tuple[str, Artifacts]) -> None:
    """Every state, the loss, every gradient of two steps; a third from a state anywhere in its ranges."""
    _, artifacts = case
    twins, state = Twins.of(artifacts), artifacts.state
    for count, (lr, dr) in enumerate([(26, 128), (2047, 8)]):
        wrong, found = twins.compare(batch_of(artifacts, count, lr=lr, dr=dr), state)
        assert wrong == []
        state = {key: found[f"{key}.next"] for key in state}
    wrong, _ = twins.compare(batch_of(artifacts, 2), twins.drawn("uniform"))
    assert wrong == []


def test_integers_are_the_interpreter_s_and_audited(case: tuple[str, Artifacts]) -> None:
    _, artifacts = case
    model, values = artifacts.files["int_training"], batch_of(artifacts, 1) | artifacts.state
    expected = interpret(model, values)
    for name, found in run_ort(model, values).items():
        np.testing.assert_array_equal(found, expected[name], name)
    for stage in ("int_training", "int_eval"):
        report = audit_model(artifacts.files[stage])
        assert report.findings == [] and report.coverage["quantizers"] >= 40


def test_only_what_is_trained_is_state(case: tuple[str, Artifacts]) -> None:
    """The same parameters in all three states; what is frozen is an initializer of the float steps, and listed as frozen."""
    _, artifacts = case
    frozen = set(artifacts.manifest["frozen"])
    assert frozen
    for stage, section in (("fp_training", "fp_state"), ("quant_training", "quant_state"), ("int_training", "state")):
        graph, state = artifacts.files[stage].graph, getattr(artifacts, section)
        assert {e["key"] for e in artifacts.manifest[section]} == set(state)
        assert not frozen & (set(state) | {i.name for i in graph.input} | {o.name.removesuffix(".next") for o in graph.output})
        assert {k.removesuffix(".momentum") for k in state if k.endswith(".momentum")} == {
            o.name.removesuffix(".gradient") for o in graph.output if o.name.endswith(".gradient")
        }
    assert frozen <= {t.name for t in artifacts.files["fp_training"].graph.initializer}
    source = {t.name for t in artifacts.files["forward"].graph.initializer}
    assert source == frozen | (source & set(artifacts.fp_state))


def test_everything_trained_moves(case: tuple[str, Artifacts]) -> None:
    _, artifacts = case
    state = artifacts.state
    for count in range(3):
        found = run_ort(artifacts.files["int_training"], batch_of(artifacts, count, lr=512) | state)
        state = {key: found[f"{key}.next"] for key in state}
    still = {k for k, v in artifacts.state.items() if np.array_equal(v, state[k])}
    assert not {k for k in still if not k.endswith(".exponent")}


# -- the network stays what it was -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["full8", "fast"])
def test_freezing_changes_no_inference(profile: str, tiny_file: Path) -> None:
    """The logits of int_eval are those of the network without frozen layers, bit for bit."""
    logits = []
    for options in ({}, CASES["last three"], CASES["statistics"]):
        artifacts = converted(tiny_file, profile, **options)
        values, model = artifacts.state | {"images": images(6)}, artifacts.files["int_eval"]
        logits.append(run_ort(model, {i.name: values[i.name] for i in model.graph.input})["logits"])
    np.testing.assert_array_equal(logits[1], logits[0])
    np.testing.assert_array_equal(logits[2], logits[0])


def test_frozen_convolutions_change_no_other_gradient(tiny_artifacts: Artifacts, tiny_file: Path) -> None:
    """The BNs behind them train as they did: of the same step, every other output has the same bits."""
    part, values = converted(tiny_file, **CASES["convolutions"]), feeds()
    expected = run_ort(tiny_artifacts.files["int_training"], values | tiny_artifacts.state)
    found = run_ort(part.files["int_training"], values | part.state)
    assert len(expected) - len(found) == 3 * 4  # weight, momentum, gradient and its exponent
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], name)


def test_a_frozen_bn_is_that_of_inference(tiny_file: Path) -> None:
    """With every BN frozen, the logits of a step are those of inference, whatever the batch."""
    artifacts = converted(tiny_file, **CASES["statistics"])
    model = onnx.ModelProto()
    model.CopyFrom(artifacts.files["int_training"])
    (entry,) = (e for e in artifacts.manifest["quantizers"] if e["role"] == "Z")
    name = next(n.output[0] for n in model.graph.node if n.name == entry["node"])
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    values = feeds() | artifacts.state
    evaluation = artifacts.files["int_eval"]
    expected = run_ort(evaluation, {i.name: values[i.name] for i in evaluation.graph.input})
    np.testing.assert_array_equal(run_ort(model, values)[name], expected["logits"])


@pytest.mark.parametrize("name", ["statistics", "one image"])
def test_float_gradients_are_those_of_pytorch(name: str, tiny_file: Path) -> None:
    """Of a network whose BNs all use their running statistics; relative to each parameter's norm, in float32."""
    artifacts = converted(tiny_file, **CASES[name])
    values = batch_of(artifacts, 3)
    x, y = images(len(values["labels"]), seed=3, normalised=True), values["labels"]
    given = {"images": x, "labels": y, "lr": np.array(0, np.float32)}
    found = run_ort(artifacts.files["fp_training"], given | artifacts.fp_state)
    network = TorchNetwork(artifacts.files["forward"], torch.float64)
    loss = F.cross_entropy(network.logits(x, False), torch.as_tensor(y, dtype=torch.int64))
    expected = dict(zip(network.parameters, torch.autograd.grad(loss, list(network.parameters.values())), strict=True))
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert len(expected) == 21
    assert max(relative(found[f"{key}.gradient"], g.numpy()) for key, g in expected.items()) < 1e-4


# -- and no more is computed than it takes --------------------------------------------------------------------------------


def roles(artifacts: Artifacts, stage: str) -> dict[str, set[str]]:
    """role -> layers, of every node."""
    found: dict[str, set[str]] = {}
    for node in artifacts.files[stage].graph.node:
        found.setdefault(node_tag(node).role, set()).add(node_tag(node).layer)
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_goes_back_below_the_lowest_trained_layer(profile: str, tiny_file: Path) -> None:
    artifacts = converted(tiny_file, profile, train_last=1)
    for stage in ("fp_training", "quant_training", "int_training"):
        found = roles(artifacts, stage)
        assert not {"E1", "E.sum", "E.bn", "BN.A", "BN.K", "BN.e_A"} & set(found)
        assert all(layers - {"loss", "optimizer"} == {"fc"} for role, layers in found.items() if role[:2] in ("G.", "U.", "E2"))
        assert not any(node.op_type == "ConvTranspose" for node in artifacts.files[stage].graph.node)
        products = [n for n in artifacts.files[stage].graph.node if n.op_type in ("MatMul", "MatMulInteger")]
        assert {node_tag(n).layer for n in products} == {"fc"}
    sizes = {s: len(expanded(m).graph.node) for s, m in artifacts.files.items()}
    whole = {s: len(expanded(m).graph.node) for s, m in converted(tiny_file, profile).files.items()}
    assert sizes["fp_training"] * 4 < whole["fp_training"] and sizes["int_training"] * 4 < whole["int_training"]
    assert sizes["int_eval"] < whole["int_eval"]


def test_errors_pass_through_what_is_frozen(tiny_file: Path) -> None:
    """A frozen layer above a trained one has errors and no gradient."""
    found = roles(converted(tiny_file, **CASES["middle"]), "int_training")
    assert {"b1", "a2", "stem"} <= found["E2"]
    assert not {"b1", "a2"} & found["G.W"] and "stem" in found["G.W"]
    assert not {"b1_bn", "a2_bn"} & (found["G.gamma"] | found["BN.K"] | found["BN.running_mean"])


def test_one_image_has_no_batch_statistics(tiny_file: Path) -> None:
    """What a batch of one could not give is not asked for."""
    found = roles(converted(tiny_file, **CASES["one image"]), "int_training")
    assert not {"BN.K", "BN.B", "BN.running_mean", "BN.running_var", "BN.running_mean.batch"} & set(found)
    assert {"BN.A", "G.gamma", "G.beta", "G.W"} <= set(found)


def affine(mean: float, variance: float) -> onnx.ModelProto:
    """`tiny` with these statistics, and epsilon 0, in the BN behind its first convolution."""
    model = tiny()
    for tensor in model.graph.initializer:
        value = {"stem_bn.running_mean": mean, "stem_bn.running_var": variance}.get(tensor.name)
        if value is not None:
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, value, np.float32), tensor.name))
    for node in model.graph.node:
        if node.name == "stem_bn":
            node.attribute.append(onnx.helper.make_attribute("epsilon", 0.0))
    return model


@pytest.mark.parametrize("profile", ["full8", "fast"])
def test_an_affine_function_may_be_a_frozen_bn(profile: str, tmp_path: Path) -> None:
    """Frozen statistics 0 and 1: its formats come from its input, and integers follow float as elsewhere."""
    onnx.save(affine(0.0, 1.0), tmp_path / "net.onnx")
    artifacts = converted(tmp_path / "net.onnx", profile, bn="frozen")
    twins, state = Twins.of(artifacts), artifacts.state
    for count in range(2):
        wrong, found = twins.compare(feeds(count), state)
        assert wrong == []
        state = {key: found[f"{key}.next"] for key in state}
    artifacts.save(tmp_path / "out")
    data = Dataset(images(8), labels(8), images(8, seed=1), labels(8, seed=1))
    assert min(e.decibels or 0.0 for e in forward_fidelity(tmp_path / "out", data, 8)) > 15


# -- whatever drives a step ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PROFILES)
def folder(request: pytest.FixtureRequest, tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("frozen") / "out"
    converted(tiny_file, request.param, freeze=("stem*", "a*"), bn="frozen", health=True).save(out)
    return out


@pytest.mark.parametrize("kind", [TrainingSession, FloatSession, QuantizedSession])
def test_sessions_train_and_resume(kind: type[TrainingSession], folder: Path, tmp_path: Path) -> None:
    session, pixels, truth = kind(folder), images(), labels()
    losses = [session.step(pixels, truth, lr=0.05).loss for _ in range(6)]
    assert losses[-1] < losses[0]
    session.save(tmp_path / "state.safetensors")
    other = kind(folder)
    other.load(tmp_path / "state.safetensors")
    np.testing.assert_array_equal(session.evaluate(pixels).logits, other.evaluate(pixels).logits)
    assert session.step(pixels, truth).loss == other.step(pixels, truth).loss


def test_reports_know_frozen_layers(folder: Path) -> None:
    """Trained parameters have gradients near FP32's; every layer has an output near FP32's, frozen ones in their own scale."""
    data = Dataset(images(8), labels(8), images(8, seed=1), labels(8, seed=1))
    gradients = gradient_fidelity(folder, data, 2)
    assert {e.key.split(".")[0] for e in gradients} == {"b1", "b2", "b_short", "b1_bn", "b2_bn", "b_short_bn", "head", "fc"}
    assert min(e.cosine or 0.0 for e in gradients) > 0.5
    layers = forward_fidelity(folder, data, 8)
    assert {"stem", "a1", "b1", "fc"} <= {e.layer for e in layers}
    assert min(e.decibels or 0.0 for e in layers) > 10


def test_health_counts_what_still_quantizes(folder: Path) -> None:
    session = TrainingSession(folder)
    counted = {(row["layer"], row["role"]) for row in session.health}
    assert ("b1", "W") in counted and ("stem", "C") in counted and ("stem", "W") not in counted
    result = session.step(images(), labels())
    assert result.health is not None and result.health.shape == (len(session.health), 3)


def test_pytorch_trains_the_same_part(folder: Path) -> None:
    """The contender of `bench step` leaves frozen layers alone, too."""
    from wageubn_onnx.artifacts.folder import ArtifactFolder

    step = TorchStep(ArtifactFolder(folder))
    before = {k: v.detach().clone() for k, v in step._values.items()}
    for _ in range(2):
        step.step(images(), labels())
    moved = {k for k, v in step._values.items() if not torch.equal(v, before[k])}
    assert moved == {k for k in FloatSession(folder).state() if not k.endswith(".momentum")}


@pytest.mark.parametrize("profile", ["e16", "sq8s", "authors", "full8-E2"])
def test_other_profiles_train_a_part(profile: str, tiny_file: Path, tmp_path: Path) -> None:
    """In the quantized form, which those with paths in float have as well."""
    converted(tiny_file, profile, train_last=3, freeze=("b2_bn",)).save(tmp_path / "out")
    session = QuantizedSession(tmp_path / "out")
    assert {k.removesuffix(".momentum") for k in session.state()} == {
        "step",
        "b2.weight",
        "head.weight",
        "fc.weight",
        "fc.bias",
    }
    losses = [session.step(images(), labels(), lr=0.05).loss for _ in range(6)]
    assert losses[-1] < losses[0]
