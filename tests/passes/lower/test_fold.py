"""What is folded holds what its nodes would have computed, and no longer form of a frozen parameter is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from networks import BATCH, MEAN, STD, images, labels, run_ort
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.config import Config
from wageubn_onnx.graph import DOMAIN, Model, Tensor, next_states, node_tag, to_proto
from wageubn_onnx.passes.lower.fold import fold_frozen
from wageubn_onnx.pipeline import FORWARD, FP_TRAINING, INT_TRAINING, QUANT_TRAINING, Stage, _first_errors, convert
from wageubn_onnx.profiles import load_profile

ALL_BUT_FIRST = {"freeze": ("a*", "b*", "head"), "bn": "frozen"}  # with errors through frozen convolutions, BNs and a bias


def pruned(model: Model) -> Model:
    """Without what no output needs, as a stage is once its file was made."""
    to_proto(model, results(model))
    return model


def results(model: Model) -> dict[str, Tensor]:
    return next_states(model) | {name: model.named[name] for name in ("loss", "correct")}


def lowered(file: Path, profile: str, *, folded: bool) -> tuple[Model, onnx.ModelProto]:
    """The integer step, with every quantizer's mantissas among its outputs."""
    config = Config(batch=BATCH, mean=MEAN, std=STD, profile=load_profile(profile), **ALL_BUT_FIRST)
    source = FORWARD(file, config)
    step = pruned(FP_TRAINING(source, config))
    step.notes["errors"] = _first_errors(source, config)
    quantized = pruned(QUANT_TRAINING(step, config))
    model = Stage("int_training", "", INT_TRAINING.passes[:1])(quantized, config)
    assert INT_TRAINING.passes[0].name == "lower-to-integers" and INT_TRAINING.passes[1].run is fold_frozen
    watched = [o for n in model.graph.nodes if n.domain == DOMAIN and "role" in n.attrs for o in n.outputs]
    names = [o.name for o in watched]
    if folded:
        fold_frozen(model, config)
    outputs = {f"watched/{name}": model.op("Identity", o, name="watched") for name, o in zip(names, watched, strict=True)}
    return model, to_proto(model, results(model) | outputs)


@pytest.mark.parametrize("profile", ["full8", "sq8", "fast"])
def test_every_value_is_what_the_nodes_compute(profile: str, tiny_file: Path) -> None:
    """Every quantizer's mantissas, every state, the loss: of a step with the nodes in onnxruntime, and of one without them."""
    plain, whole = lowered(tiny_file, profile, folded=False)
    folded, short = lowered(tiny_file, profile, folded=True)
    scalars = {k: np.array(v, np.int32) for k, v in {"lr": 60, "gradient_range": 128, "seed": 1}.items()}
    feeds = {"images": images(), "labels": labels(), **scalars} | {k: s.value for k, s in folded.carried.items()}
    found, expected = run_ort(short, feeds), run_ort(whole, feeds, optimize=False)
    assert found.keys() == expected.keys()
    assert len(plain.graph.nodes) - len(folded.graph.nodes) > 50
    for name, value in expected.items():
        assert value.dtype == found[name].dtype
        np.testing.assert_array_equal(found[name], value, name)


@pytest.fixture(scope="module", params=["full8", "fast"])
def frozen(request: pytest.FixtureRequest, tiny_file: Path) -> Artifacts:
    return convert(tiny_file, Config(batch=BATCH, mean=MEAN, std=STD, profile=load_profile(request.param), train_last=2))


@pytest.mark.parametrize("stage", ["int_training", "int_eval"])
def test_no_frozen_parameter_keeps_a_longer_form(stage: str, frozen: Artifacts) -> None:
    """Of as many elements as a frozen weight there are 8-bit constants only, of any shape; and none of the stored masters."""
    sizes = {np.prod(numpy_helper.to_array(t).shape): t.name for t in frozen.files["forward"].graph.initializer}
    parameters = {k: e for k, e in frozen.manifest["frozen"].items() if not e["kind"].startswith("running")}
    weights = {size for size, key in sizes.items() if parameters.get(key, {}).get("kind") == "W"}
    constants = {t.name: numpy_helper.to_array(t) for t in frozen.files[stage].graph.initializer}
    assert not set(constants) & set(parameters)
    of_weights = [c for c in constants.values() if c.size in weights and c.size > 100]
    assert len(of_weights) >= 5 and all(c.dtype.itemsize == 1 for c in of_weights)
    masters = [numpy_helper.to_array(t) for t in frozen.files["quant_eval"].graph.initializer if t.name in parameters]
    integers = [c.ravel() for c in constants.values() if c.dtype.itemsize > 1]
    for master in masters:
        stored = np.round(np.ldexp(master.astype(np.float64), 23)).astype(np.int64).ravel()
        assert not any(np.array_equal(stored, c) for c in integers)


def test_the_step_holds_its_constants_once(frozen: Artifacts) -> None:
    """No quantizer of a frozen weight, gamma or beta is left, and the file says which it has been through."""
    model = frozen.files["int_training"]
    layers = {e["layer"] for e in frozen.manifest["frozen"].values()}
    left = {(node_tag(n).layer, node_tag(n).role) for n in model.graph.node}
    assert not {(layer, role) for layer in layers for role in ("W", "gamma", "beta", "bias")} & left
    floats = {(node_tag(n).layer, node_tag(n).role) for n in frozen.files["quant_training"].graph.node if n.domain == DOMAIN}
    assert {("stem", "W"), ("stem_bn", "gamma"), ("b2_bn", "beta")} <= floats


def test_without_frozen_layers_nothing_is_folded(tiny_file: Path, tiny_artifacts: Artifacts) -> None:
    assert not any(p.key == "wageubn.constants" for p in tiny_artifacts.files["int_training"].metadata_props)
    assert tiny_artifacts.manifest["frozen"] == {}
