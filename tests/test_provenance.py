"""Every node and every input of every stage says where it comes from; files keep that, and runtimes do not mind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from networks import BATCH, CHANNELS, MEAN, SIZE, STD, TOPOLOGIES, Net, images, run_ort, tiny
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.composites import kind_of
from wageubn_onnx.config import Config
from wageubn_onnx.graph import PREFIX, node_tag
from wageubn_onnx.pipeline import STAGES, convert
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.symbols import SYMBOLS, direction

PASSES = {step.name for stage in STAGES for step in stage.passes} | {"outputs"}
OWN = {"loss", "optimizer", "health"}  # layers that the source does not have
WITHOUT_QUANTIZER = {"random", "health"}  # paths
VARIANTS: dict[str, dict[str, Any]] = {
    "full8": {},
    "sq8s": {"health": True, "expose_gradients": True},
    "fast": {},
    "authors": {},
    "frozen": {"profile": "full8", "train_last": 1},
}


def props(made: onnx.NodeProto | onnx.ValueInfoProto) -> dict[str, str]:
    return {p.key.removeprefix(PREFIX): p.value for p in made.metadata_props}


def described(model: onnx.ModelProto) -> list[onnx.NodeProto | onnx.ValueInfoProto]:
    return [*model.graph.input, *model.graph.node]


def converted(source: onnx.ModelProto, folder: Path, **options: Any) -> Artifacts:
    onnx.save(source, folder / "source.onnx")
    profile = load_profile(options.pop("profile", "full8"))
    return convert(folder / "source.onnx", Config(batch=BATCH, mean=MEAN, std=STD, profile=profile, **options))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_nothing_is_without_provenance(topology: str, variant: str, tmp_path: Path) -> None:
    source = TOPOLOGIES[topology]()
    names = {node.name for node in source.graph.node} | {i.name for i in source.graph.input}
    options = {"profile": variant, "keep_folded": topology in ("folded", "plain", "grouped")} | VARIANTS[variant]
    for stage, model in converted(source, tmp_path, **options).files.items():
        for made in described(model):
            found = props(made)
            where = (stage, made.name, found)
            assert found["layer"] and set(found["pass"].split(",")) <= PASSES, where
            assert found["role"] in SYMBOLS or found["role"] in WITHOUT_QUANTIZER, where
            assert ("source" in found) == (found["layer"] not in OWN), where
            assert set(found.get("source", "").split(",")) <= names | {""}, where
            is_quantizer = isinstance(made, onnx.NodeProto) and any(a.name == "role" for a in made.attribute)
            if isinstance(made, onnx.NodeProto):
                assert is_quantizer == ("format" in found) == ("bits" in found), where


def test_what_a_source_node_becomes(tiny_artifacts: Artifacts) -> None:
    """One convolution in every stage: its products forward and backward, by path."""
    for stage, op, paths in (
        ("forward", {"Conv"}, {"C"}),
        ("fp_training", {"Conv", "ConvTranspose", "ConvWeightGradient"}, {"C", "E.acc", "G.W"}),
        ("int_training", {"ConvInteger", "ConvDataGradient", "ConvWeightGradient"}, {"C", "E.acc", "G.W"}),
    ):
        nodes = tiny_artifacts.files[stage].graph.node
        nodes = [n for n in nodes if (kind_of(n.op_type) or n.op_type) in op and node_tag(n).source == "a1"]
        assert {node_tag(n).role for n in nodes} == paths
        assert {direction(path) for path in paths} <= {"forward", "backward"}


def test_the_pass_behind_an_integer_quantizer_is_said(tiny_artifacts: Artifacts) -> None:
    """Which pass turned a layer's error to 8 bits, what exponent its weights have, and where its gradient goes."""
    nodes = {n.name: props(n) for n in tiny_artifacts.files["int_training"].graph.node}
    error, weight = nodes["a1/Q_E2"], nodes["a1/Q_W"]
    assert (error["pass"], error["format"]) == ("quantize-errors,lower-to-integers", "int8*2^run-time")
    assert (weight["pass"], weight["bits"], weight["format"]) == ("quantize-weights,lower-to-integers", "8", "int8*2^-7")
    assert nodes["a1/Q_GW"]["role"] == "G.W" and nodes["a1/Q_UW"]["role"] == "U.W"


def test_formats_are_the_manifests(tiny_artifacts: Artifacts) -> None:
    """bits and format of quantizers and states, as the manifest has them."""
    step = tiny_artifacts.files["int_training"]
    nodes = {n.name: n for n in step.graph.node}
    dtypes = {v.name: v.type.tensor_type.elem_type for v in (*step.graph.value_info, *step.graph.output)}
    for entry in tiny_artifacts.manifest["quantizers"]:
        node = nodes[entry["node"]]
        dtype, unit = props(node)["format"].split("*2^")
        assert props(node)["bits"] == str(entry["bits"])
        assert unit == (str(-entry["fraction"]) if "fraction" in entry else "run-time")
        assert dtype == onnx.helper.tensor_dtype_to_np_dtype(dtypes[node.output[0]]).name
    inputs = {i.name: props(i) for i in step.graph.input}
    for state in tiny_artifacts.manifest["state"]:
        entry = tiny_artifacts.manifest["tensors"][state["key"]]
        dtype, unit = inputs[state["in"]]["format"].split("*2^")
        assert unit == str(entry["exponent"])
        if entry["kind"] not in ("step", "exponent"):
            assert dtype == entry["dtype"]


def test_rewrites_of_the_source_keep_its_names(tmp_path: Path) -> None:
    """A Pad that became a window's, a scale that went into the convolution before, a mean over the map, a bias of its own."""
    n = Net(0)
    x = n.node("Pad", "x", n.tensor("around", [0, 0, 1, 1] * 2, "int64"), name="pad")
    x = n.conv(x, "conv", CHANNELS, 6, pads=[0, 0, 0, 0])
    x = n.node("Mul", x, n.tensor("factor", [[[[2.0]]]]), name="scale")
    x = n.relu(n.bn(x, "bn", 6), "relu")
    x = n.node("ReduceMean", x, n.tensor("axes", [2, 3], "int64"), name="mean", keepdims=0)
    x = n.node("MatMul", x, n.uniform("w", -0.5, 0.5, 6, 5), name="dense")
    x = n.node("Add", x, n.uniform("b", -0.5, 0.5, 5), name="offset")
    model = n.model(x)
    forward = converted(model, tmp_path).files["forward"]
    found = {node.op_type: node_tag(node).source for node in forward.graph.node}
    assert found == {
        "Conv": "conv,pad,scale",
        "BatchNormalization": "bn",
        "Relu": "relu",
        "GlobalAveragePool": "mean",
        "Flatten": "mean",
        "Gemm": "dense,offset",
    }


def test_a_node_without_a_name_goes_by_its_output(tmp_path: Path) -> None:
    source = tiny()
    for node in source.graph.node:
        node.ClearField("name")
    forward = converted(source, tmp_path).files["forward"]
    outputs = {node.output[0] for node in source.graph.node}
    assert {node_tag(node).source for node in forward.graph.node} == outputs


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_it_survives_a_file_and_changes_no_bit(stage: str, tiny_artifacts: Artifacts, tiny_folder: Path) -> None:
    model = onnx.load(tiny_folder / f"{stage}.onnx")
    assert [props(m) for m in described(model)] == [props(m) for m in described(tiny_artifacts.files[stage])]
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for made in described(bare):
        del made.metadata_props[:]
    feeds = fed(tiny_artifacts, stage, model)
    for optimize in (False, True):
        one, other = (run_ort(m, feeds, optimize=optimize) for m in (model, bare))
        assert one.keys() == other.keys()
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def fed(artifacts: Artifacts, stage: str, model: onnx.ModelProto) -> dict[str, Any]:
    """Initial states and one batch for a stage."""
    is_integer = stage.startswith("int")
    states = artifacts.state if is_integer else artifacts.fp_state if stage.startswith("fp") else artifacts.quant_state
    if stage == "forward":
        states = artifacts.parameters
    scalars = {"lr": 5 if is_integer else 0.01, "gradient_range": 128, "seed": 0, "labels": [0, 1, 2, 3]}
    feeds = {}
    for value in model.graph.input:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        given = images(BATCH, normalised=not is_integer) if value.name == "images" else scalars.get(value.name)
        feeds[value.name] = (states[value.name] if given is None else np.asarray(given)).astype(dtype)
    assert feeds["images"].shape == (BATCH, CHANNELS, SIZE, SIZE)
    return feeds
