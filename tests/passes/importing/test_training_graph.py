"""The network in a training graph of onnxruntime-training is the one that it was made of; what cannot be kept is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper as h
from sources import imported, kinds

from artifacts import inference_model, optimizer_model, parameter_values, save_checkpoint, training_model, write_folder
from networks import MEAN, STD, images, run_ort, to_float
from wageubn_onnx.cli import cli
from wageubn_onnx.config import Config
from wageubn_onnx.errors import UnsupportedOperator, WageubnError
from wageubn_onnx.passes.importing.forward import import_forward
from wageubn_onnx.passes.importing.read import read_source
from wageubn_onnx.pipeline import convert
from wageubn_onnx.proofs.audit import audit


def refused(path: Path, *words: str, kind: type[WageubnError] = WageubnError) -> None:
    with pytest.raises(kind) as caught:
        read_source(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "artifacts")


# -- what is recovered ----------------------------------------------------------------------------------------------------


def assert_recovered(path: Path) -> None:
    """`forward` computes, for any batch, what the network did before it became a training graph."""
    forward, source = imported(path, batch=5), inference_model()
    assert sorted(kinds(forward)) == sorted("Flatten" if k == "Reshape" else k for k in kinds(source))
    for node in forward.graph.node:
        if node.op_type == "BatchNormalization":
            (before,) = (n for n in source.graph.node if list(n.input)[1:] == list(node.input)[1:])
            given = {a.name: h.get_attribute_value(a) for a in before.attribute}
            kept = {a.name: h.get_attribute_value(a) for a in node.attribute}
            assert kept == pytest.approx({"epsilon": 1e-5, "momentum": 0.9} | given)
    x = images(6, normalised=True)
    expected = np.concatenate([next(iter(run_ort(source, {"x": x[i : i + 2]}).values())) for i in (0, 2, 4)])
    found = run_ort(forward, {"images": x})["logits"]
    assert abs(found - expected).max() < 1e-6 * abs(expected).max()


@pytest.mark.parametrize("part", ["", "training_model.onnx"])
def test_the_folder_and_its_model(part: str, folder: Path) -> None:
    assert_recovered(folder / part)


@pytest.mark.parametrize("part", ["", "net_training_model.onnx"])
def test_artifacts_with_a_prefix(part: str, folder: Path) -> None:
    """generate_artifacts(..., prefix="net_"), which all of them bear."""
    for file in sorted(folder.iterdir()):
        file.rename(file.with_name(f"net_{file.name}"))
    assert_recovered(folder / part)
    files = read_source(folder / part).found["files"]
    assert {Path(file).name for file in files} == {
        f"net_{name}" for name in ("training_model.onnx", "checkpoint", "optimizer_model.onnx")
    }


def test_artifacts_with_two_prefixes(folder: Path) -> None:
    for prefix in ("a_", "b_"):
        (folder / f"{prefix}training_model.onnx").write_bytes((folder / "training_model.onnx").read_bytes())
    (folder / "training_model.onnx").unlink()
    refused(folder, "has 2 training models, a_training_model.onnx, b_training_model.onnx", "the path of one")


def test_a_checkpoint_of_old(folder: Path) -> None:
    """Before 1.16 it was a folder of protobufs."""
    (folder / "checkpoint").unlink()
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "paramtrain_tensors.pbseq").write_bytes(b"\n\x04name")
    refused(folder, f"{folder / 'checkpoint'}: a checkpoint of onnxruntime-training before 1.16", ".pbseq", "1.16 or newer")


def test_a_checkpoint_that_git_lfs_keeps(folder: Path) -> None:
    (folder / "checkpoint").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, f"{folder / 'checkpoint'}: a pointer of Git LFS", "git lfs pull")


def test_an_evaluation_model(folder: Path) -> None:
    """No gradients, ordinary BN, the loss."""
    model = inference_model()
    graph = model.graph
    logits = graph.output.pop().name
    graph.node.append(h.make_node("SoftmaxCrossEntropyLoss", [logits, "labels"], ["loss"], "loss"))
    graph.input.append(h.make_tensor_value_info("labels", onnx.TensorProto.INT64, [2]))
    graph.output.append(h.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, []))
    parameters = [t for t in graph.initializer if t.name != "shape"]
    graph.input.extend(h.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in parameters)
    for tensor in parameters:
        graph.initializer.remove(tensor)
    onnx.save(model, folder / "eval_model.onnx")
    assert_recovered(folder / "eval_model.onnx")


@pytest.mark.parametrize("op", ["BitmaskDropout"])
def test_operators_of_onnxruntime_with_a_standard_form(op: str, folder: Path) -> None:
    """In place of the stem's ReLU: what is left is a network without it."""
    onnx.save(training_model(op=op), folder / "training_model.onnx")
    assert kinds(imported(folder)).count("Relu") == kinds(imported(write_folder(folder))).count("Relu") - 1


def test_the_whole_conversion(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["convert", str(folder), "-o", str(out), "--batch", "4"])
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("note: optimizer: SGDOptimizerV2 is SGD without momentum")
    for stage in ("int_training", "int_eval"):
        report = audit(out / f"{stage}.onnx")
        assert report.ok, report.findings


def test_the_hash_covers_every_file_that_was_read(folder: Path) -> None:
    """It is that of what sha256sum prints of them."""
    (folder / "eval_model.onnx").write_bytes(b"not read")
    source = convert(folder, Config(batch=2)).manifest["source"]
    names = ["checkpoint", "optimizer_model.onnx", "training_model.onnx"]
    lines = "".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    assert source == {"file": "artifacts", "sha256": hashlib.sha256(lines.encode()).hexdigest()}


def test_frozen_parameters_are_states_that_say_so(folder: Path) -> None:
    save_checkpoint(folder, parameter_values(), frozen=("conv.weight", "fc.bias"))
    model = import_forward(folder, Config(batch=2))
    assert {key for key, state in model.states.items() if state.frozen} == {"conv.weight", "fc.bias"}
    assert "checkpoint: frozen conv.weight, fc.bias" in model.notes["said"]


def test_metadata_of_a_plain_file_freezes_nothing(tmp_path: Path) -> None:
    model = inference_model()
    model.metadata_props.add(key="wageubn.frozen", value='["conv.weight"]')
    onnx.save(model, tmp_path / "net.onnx")
    assert not any(state.frozen for state in import_forward(tmp_path / "net.onnx", Config(batch=2)).states.values())


def test_what_cannot_be_kept_is_said(folder: Path) -> None:
    onnx.save(optimizer_model("AdamWOptimizer"), folder / "optimizer_model.onnx")
    onnx.save(training_model(loss={"reduction": "sum"}), folder / "training_model.onnx")
    save_checkpoint(folder, parameter_values(), groups=[("group0", 500, 1e-3)], properties={"epoch": 4, "best": 0.5})
    notes = import_forward(folder, Config(batch=2)).notes["said"]
    expected = [
        "summed over the batch",
        "AdamWOptimizer cannot be kept in integers",
        "'group0' took 500 steps, initial learning rate 0.001",
        "epoch = 4, best = 0.5",
    ]
    assert len(notes) == len(expected)
    for note, words in zip(notes, expected, strict=True):
        assert words in note
    (folder / "optimizer_model.onnx").unlink()
    save_checkpoint(folder, parameter_values())
    onnx.save(training_model(loss={"ignore_index": -100}), folder / "training_model.onnx")
    assert import_forward(folder, Config(batch=2)).notes["said"] == []


# -- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "class_weights"}, ("loss 'loss'", "'class_weights'")),
        ({"loss": {"ignore_index": 0}}, ("loss 'loss'", "ignore_index")),
        ({"loss": {"reduction": "none"}}, ("loss 'loss'", "not reduced")),
    ],
)
def test_another_loss(changes: dict[str, Any], words: tuple[str, ...], folder: Path) -> None:
    onnx.save(training_model(**changes), folder / "training_model.onnx")
    refused(folder, f"{folder / 'training_model.onnx'}: ", *words)


def test_two_losses_or_none(folder: Path) -> None:
    model = training_model()
    (loss,) = (n for n in model.graph.node if n.name == "loss")
    model.graph.node.append(h.make_node(loss.op_type, list(loss.input), ["loss2"], "loss2"))
    onnx.save(model, folder / "training_model.onnx")
    refused(folder, "needs one SoftmaxCrossEntropyLoss; it has 'loss', 'loss2'")
    model.graph.node.pop()
    model.graph.node.remove(loss)
    onnx.save(model, folder / "training_model.onnx")
    refused(folder, "it has none")


def test_a_loss_that_more_is_computed_from(folder: Path) -> None:
    model = training_model()
    model.graph.output[0].name = "total"
    model.graph.node.append(h.make_node("Neg", ["loss"], ["total"], "neg"))
    onnx.save(model, folder / "training_model.onnx")
    refused(folder, "loss 'loss' is not the model's output")


def test_an_operator_without_a_standard_form(folder: Path) -> None:
    onnx.save(training_model(op="FastGelu"), folder / "training_model.onnx")
    refused(folder, "node 'foreign': operator com.microsoft.FastGelu", kind=UnsupportedOperator)


def test_a_missing_checkpoint(folder: Path) -> None:
    (folder / "checkpoint").unlink()
    refused(folder, f"{folder / 'checkpoint'}: no such file", "its checkpoint beside it")


def test_a_parameter_that_the_checkpoint_lacks(folder: Path) -> None:
    save_checkpoint(folder, {k: v for k, v in parameter_values().items() if k != "block.weight"})
    refused(folder, f"{folder / 'checkpoint'}: parameter 'block.weight' of training_model.onnx is missing")


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 1, 1), np.float32), np.zeros((4, 4, 3, 3), np.float64)])
def test_a_parameter_of_another_shape_or_type(wrong: Any, folder: Path) -> None:
    save_checkpoint(folder, parameter_values() | {"block.weight": wrong})
    refused(folder, "parameter 'block.weight' is ", str(list(wrong.shape)), "but float32 [4, 4, 3, 3] in training_model.onnx")


def test_parameters_that_are_no_numbers(folder: Path) -> None:
    save_checkpoint(folder, parameter_values() | {"fc.bias": np.full(5, np.nan, np.float32)})
    refused(folder, "weights 'fc.bias' hold NaN")


def test_a_network_without_an_image(folder: Path) -> None:
    save_checkpoint(folder, parameter_values() | {"x": np.zeros(1, np.float32)})
    refused(folder, "an image is needed")


def test_an_onnx_file_in_the_folder_s_place(folder: Path) -> None:
    (folder / "training_model.onnx").unlink()
    refused(folder, f"{folder}: no training_model.onnx in this folder")
    (folder / "training_model.onnx").write_bytes(b"junk")
    refused(folder, "not an ONNX file")


# -- the real one ---------------------------------------------------------------------------------------------------------


def test_the_trained_resnet20(shared_data: Path, tmp_path: Path) -> None:
    """The folder's network is the file that the folder was made of, and all of it converts."""
    path, file = shared_data / "ort_training_resnet20", shared_data / "resnet20_cifar10_opset9.onnx"
    pixels = np.load(shared_data / "cifar10_subset.npz")["x_test"][:8]
    x = to_float(pixels, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    source = onnx.load(file)
    expected = np.concatenate([next(iter(run_ort(source, {source.graph.input[0].name: i[None]}).values())) for i in x])
    found = run_ort(imported(path), {"images": x})["logits"]
    assert abs(found - expected).max() < 1e-5 * abs(expected).max()
    convert(path, Config(batch=8, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"]["file"] == "ort_training_resnet20"
    assert len(manifest["notes"]) == 1
    for stage in ("int_training", "int_eval"):
        report = audit(tmp_path / "out" / f"{stage}.onnx")
        assert report.ok, report.findings


def test_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(folder, Config(batch=2, mean=MEAN, std=STD), tmp_path / name)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert first == second
