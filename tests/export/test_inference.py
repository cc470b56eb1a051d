"""The 8-bit network: its forms compute the same bits on every evaluator, keep the accuracy, and are what they are said to be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from networks import BATCH, MEAN, STD, TOPOLOGIES, images, labels, relative, run_ort, to_float
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.artifacts.contents import seal
from wageubn_onnx.cli import cli
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.export import export
from wageubn_onnx.passes.targets.image import image_quantizer
from wageubn_onnx.passes.targets.int8 import _least_exponent
from wageubn_onnx.passes.targets.tensorrt import require_tensorrt
from wageubn_onnx.pipeline import convert
from wageubn_onnx.proofs.audit import audit_model
from wageubn_onnx.runtime.session import TrainingSession

Array = np.ndarray[Any, Any]
FORMS = ("qoperator", "qdq")


@dataclass(frozen=True)
class Exported:
    """An export in one form, with its network's artifact folder."""

    folder: Path
    model: onnx.ModelProto
    manifest: dict[str, Any]

    @staticmethod
    def of(source: Path, out: Path, form: str, state: Path | None = None) -> Exported:
        folder = export(source, "inference", out, state, form=form)
        return Exported(folder, onnx.load(folder / "model.onnx"), json.loads((folder / "manifest.json").read_text()))

    def values(self, logits: Array) -> Array:
        """Logits as numbers: those of the QOperator form are mantissas."""
        return np.asarray(np.ldexp(logits.astype(np.float64), self.manifest["exponents"]["logits"]))

    def logits(self, pixels: Array, **options: Any) -> Array:
        return self.values(run_ort(self.model, {"images": pixels}, **options)["logits"])


@pytest.fixture(scope="module")
def tiny(tiny_artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """The tiny network after three steps, in both forms."""
    path = tmp_path_factory.mktemp("inference")
    tiny_artifacts.save(path / "tiny")
    session = TrainingSession(path / "tiny", threads=1)
    for seed in range(3):
        session.step(images(seed=seed), labels(seed=seed), lr=0.1)
    session.save(path / "trained.safetensors")
    return {form: Exported.of(path / "tiny", path / form, form, path / "trained.safetensors") for form in FORMS}


def spoilt(model: onnx.ModelProto, change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy)
    return copy


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def evaluated(model: onnx.ModelProto, pixels: Array) -> Array:
    """In onnx's evaluator, which has DequantizeLinear from opset 19 on."""
    model = spoilt(model, lambda copy: setattr(copy.opset_import[0], "version", 19))
    return np.asarray(ReferenceEvaluator(model).run(None, {"images": pixels})[0])


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_all_forms_and_evaluators_give_the_same_bits(topology: str, tmp_path: Path) -> None:
    """Integer kernels, float kernels fused or not, and onnx's evaluator; saturated activations among them."""
    onnx.save(TOPOLOGIES[topology](), tmp_path / "net.onnx")
    convert(tmp_path / "net.onnx", Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True), tmp_path / "net")
    made = {form: Exported.of(tmp_path / "net", tmp_path / form, form) for form in FORMS}
    noise = np.random.default_rng(1).integers(0, 256, (16, *images().shape[1:]), dtype=np.uint8)
    pixels = np.concatenate([images(64, seed=5), noise])
    expected = evaluated(made["qdq"].model, pixels)
    assert made["qdq"].manifest["exact"] and len(np.unique(expected)) > 100
    for form in FORMS:
        for optimize in (False, True):
            assert np.array_equal(made[form].logits(pixels, optimize=optimize), expected), (form, optimize)
    assert audit_model(made["qoperator"].model).findings == []
    require_tensorrt(made["qdq"].model, "model.onnx")


@pytest.mark.parametrize("target", ["inference", "fp32"])
def test_a_forward_of_other_operators_is_refused(target: str, tiny_artifacts: Artifacts, tmp_path: Path) -> None:
    tiny_artifacts.save(tmp_path / "net")
    forward = onnx.load(tmp_path / "net" / "forward.onnx")
    next(node for node in forward.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
    onnx.save(forward, tmp_path / "net" / "forward.onnx")
    seal(tmp_path / "net", json.loads((tmp_path / "net" / "manifest.json").read_text()))
    with pytest.raises(WageubnError, match=r"forward.onnx: node '.*relu': Sigmoid is no operator of a forward model"):
        export(tmp_path / "net", target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [{"train_last": 2}, {"bn": "frozen"}, {"num_classes": 7}])
def test_frozen_layers_and_new_heads(kind: dict[str, Any], tiny_file: Path, tmp_path: Path) -> None:
    convert(tiny_file, Config(batch=BATCH, mean=MEAN, std=STD, **kind), tmp_path / "net")
    made = [Exported.of(tmp_path / "net", tmp_path / form, form).logits(images(32)) for form in FORMS]
    assert np.array_equal(*made) and made[0].shape == (32, kind.get("num_classes", 5))


def in_fp32(exported: Exported, pixels: Array, out: Path) -> Array:
    """The logits of the same state in the float network."""
    root = exported.folder.parent
    model = onnx.load(export(root / "tiny", "fp32", out, root / "trained.safetensors") / "model.onnx")
    return run_ort(model, {"images": to_float(pixels).astype(np.float32)})["logits"]


def test_it_is_as_near_to_fp32_as_the_integer_network(tiny: dict[str, Exported], tmp_path: Path) -> None:
    """Both round every layer to 8 bits, in other places: neither is far from the other's distance."""
    root, pixels = tiny["qdq"].folder.parent, images(256, seed=5)
    wanted = in_fp32(tiny["qdq"], pixels, tmp_path / "fp32")
    session = TrainingSession(root / "tiny", threads=1)
    session.load(root / "trained.safetensors")
    integer = run_ort(onnx.load(root / "tiny" / "int_eval.onnx"), eval_feeds(session, pixels))["logits"]
    exponent = session.folder.manifest["exponents"]["logits"]
    assert relative(tiny["qdq"].logits(pixels), wanted) < 1.5 * relative(np.ldexp(integer.astype(np.float64), exponent), wanted)


def eval_feeds(session: TrainingSession, pixels: Array) -> dict[str, Array]:
    taken = {i.name for i in onnx.load(session.folder.path / "int_eval.onnx").graph.input}
    return {"images": pixels} | {key: value for key, value in session.state().items() if key in taken}


def test_a_pixel_becomes_what_the_step_makes_of_it(tiny_artifacts: Artifacts) -> None:
    image = image_quantizer(tiny_artifacts.files["int_eval"])
    pixels = np.arange(256, dtype=np.float32).reshape(1, 1, 1, -1)
    arithmetic = np.rint(pixels * image.factor + image.offset)[0, :, 0]
    assert image.table.dtype == np.int8 and np.array_equal(image.table, arithmetic)
    unit = 2.0 ** next(q["fraction"] for q in tiny_artifacts.manifest["quantizers"] if q["role"] == "I")
    exact = (pixels.ravel() / 255 - np.reshape(MEAN, (-1, 1))) / np.reshape(STD, (-1, 1)) * unit
    assert np.abs(image.table - exact).max() <= 0.5 + 0.5 * (255 + 1) / 2**12  # rounding, of factor and offset to 12 bits too


def test_exponents_are_the_least_that_hold() -> None:
    values = np.array([0.0, 127.0, 127.4, 127.5, 128.0, 1.0, -3.3, 1e-30, 255.0, 2.0**40])
    exponents = _least_exponent(values)
    assert (np.rint(np.abs(np.ldexp(values, -exponents))) <= 127).all()
    found = np.rint(np.abs(np.ldexp(values, 1 - exponents)))
    assert (found[np.abs(values) > 2.0**-57] > 127).all()
    assert list(exponents[1:5]) == [0, 0, 1, 1]


def test_a_channel_of_next_to_nothing_keeps_its_bias(tmp_path: Path) -> None:
    """Weights of 1e-12 would put a bias of 0.5 beyond int32 on their own grid."""
    net = TOPOLOGIES["plain"]()
    weight = initializer(net, "c2.weight")
    value = numpy_helper.to_array(weight).copy()
    value[3] = 1e-12
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    onnx.save(net, tmp_path / "net.onnx")
    convert(tmp_path / "net.onnx", Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True), tmp_path / "net")
    made = {form: Exported.of(tmp_path / "net", tmp_path / form, form) for form in FORMS}
    biases = [numpy_helper.to_array(t) for t in made["qoperator"].model.graph.initializer if t.name.endswith(".bias")]
    assert max(np.abs(b).max() for b in biases) <= 2**22 and made["qdq"].manifest["exact"]
    assert np.array_equal(*(e.logits(images(8)) for e in made.values()))


# -- what the files are ---------------------------------------------------------------------------------------------------


def test_the_audit_lists_float_parameters_apart(tiny: dict[str, Exported]) -> None:
    report = audit_model(tiny["qoperator"].model)
    stored = {t.name for t in tiny["qoperator"].model.graph.initializer if t.data_type == T.FLOAT}
    assert report.ok and set(report.float_parameters) == stored and report.coverage["float parameters"] == len(stored)
    assert report.proof is not None and report.proof.ok
    assert not audit_model(tiny["qdq"].model).ok
    result = CliRunner().invoke(cli, ["audit", str(tiny["qoperator"].folder), "--json"])
    assert result.exit_code == 0 and set(json.loads(result.output)["models"][0]["float_parameters"]) == stored


def undeclare(model: onnx.ModelProto) -> None:
    prop = next(p for p in model.metadata_props if p.key == "wageubn.float_parameters")
    prop.value = json.dumps([name for name in json.loads(prop.value) if name != "scale/2^-3"])


def skew(model: onnx.ModelProto) -> None:
    initializer(model, "scale/2^-3").CopyFrom(numpy_helper.from_array(np.float32(0.13), "scale/2^-3"))


def read_elsewhere(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["scale/2^-3"], ["loose"], "loose", to=T.INT32))


def unclip(model: onnx.ModelProto) -> None:
    initializer(model, "greatest").CopyFrom(numpy_helper.from_array(np.array(255, np.uint8), "greatest"))


def bypass_quantizer(model: onnx.ModelProto) -> None:
    prop = next(p for p in model.metadata_props if p.key == "wageubn.constants")
    prop.value = "{}"


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (undeclare, "float", "computes through float scales"),
        (skew, "float", "is not a power of two"),
        (read_elsewhere, "float", "is not a scale of QLinear operators alone"),
        (unclip, "range", "inexact beyond 129 without VNNI"),
        (bypass_quantizer, "operand", "reaches it without a quantizer"),
    ],
)
def test_the_audit_finds(change: Callable[[onnx.ModelProto], None], kind: str, words: str, tiny: dict[str, Exported]) -> None:
    report = audit_model(spoilt(tiny["qoperator"].model, change))
    assert any(f.kind == kind and words in f.message for f in report.findings), report.findings


def zero_point(model: onnx.ModelProto) -> None:
    initializer(model, "zero").CopyFrom(numpy_helper.from_array(np.array(3, np.int8), "zero"))


def unsigned(model: onnx.ModelProto) -> None:
    initializer(model, "zero").CopyFrom(numpy_helper.from_array(np.array(0, np.uint8), "zero"))


def by_input_channel(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name.endswith("/weight"))
    node.attribute[0].i = 1


def quantized_bias(model: onnx.ModelProto) -> None:
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    conv.input[2] = "elsewhere"


def loose_operand(model: onnx.ModelProto) -> None:
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    conv.input[0] = "images/normalised"


def lowest_weight(model: onnx.ModelProto) -> None:
    weight = initializer(model, "fc.weight")
    value = numpy_helper.to_array(weight).copy()
    value[0, 0] = -128
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (zero_point, "zero point is not the int8 constant 0"),
        (unsigned, "zero point is not the int8 constant 0"),
        (by_input_channel, "scales along axis 1, not along the output channels"),
        (quantized_bias, "its bias 'elsewhere' is no float constant"),
        (loose_operand, "comes from no DequantizeLinear"),
        (lowest_weight, "its weights reach -128"),
    ],
)
def test_what_tensorrt_would_not_take(change: Callable[[onnx.ModelProto], None], words: str, tiny: dict[str, Exported]) -> None:
    with pytest.raises(WageubnError, match=words):
        require_tensorrt(spoilt(tiny["qdq"].model, change), "model.onnx")


def test_what_is_wrong_is_said_in_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WageubnError, match="form qlinear: unknown; choose one of qoperator, qdq"):
        export(tiny_folder, "inference", tmp_path / "out", form="qlinear")
    result = CliRunner().invoke(cli, ["verify", str(tiny_folder), "--targets", "inference"])
    assert result.exit_code == 2 and "target inference: unknown" in result.output


@pytest.mark.parametrize("form", FORMS)
def test_the_folder_classifies_by_itself(form: str, tiny: dict[str, Exported], tmp_path: Path) -> None:
    exported, pixels = tiny[form], images(40)
    np.savez(tmp_path / "data.npz", x_test=pixels, y_test=exported.logits(pixels).argmax(axis=1))
    command = [sys.executable, str(exported.folder / "classify.py"), str(exported.folder), str(tmp_path / "data.npz")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("accuracy 100.00% (40 of 40)")


# -- OpenVINO ---------------------------------------------------------------------------------------------------------------


def openvino_logits(model: onnx.ModelProto, feeds: dict[str, Array], path: Path) -> Array:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed (extra `openvino`)")
    onnx.save(model, path / "openvino.onnx")
    compiled = openvino.Core().compile_model(str(path / "openvino.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled(feeds)[0])


def test_openvino_gives_the_same_bits_without_residual_sums(tmp_path: Path) -> None:
    onnx.save(TOPOLOGIES["plain"](), tmp_path / "net.onnx")
    convert(tmp_path / "net.onnx", Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True), tmp_path / "net")
    exported, pixels = Exported.of(tmp_path / "net", tmp_path / "qdq", "qdq"), images(256, seed=5)
    found = openvino_logits(exported.model, {"images": pixels}, tmp_path)
    assert np.array_equal(found, exported.logits(pixels))


def test_openvino_is_as_near_to_fp32(tiny: dict[str, Exported], tmp_path: Path) -> None:
    """Not to the bit, for the reason below."""
    pixels, wanted = images(256, seed=5), in_fp32(tiny["qdq"], images(256, seed=5), tmp_path / "fp32")
    found = openvino_logits(tiny["qdq"].model, {"images": pixels}, tmp_path)
    assert relative(found, wanted) < 1.2 * relative(tiny["qdq"].logits(pixels), wanted)


def sum_after_convolution() -> onnx.ModelProto:
    """y = round(x / 2) + x for x = 0..127 in 8 bits, as a residual block writes it; both convolutions read what a ReLU made."""
    channels, same = 4, [0.0] * 4
    tensors = {
        "one": np.float32(1),
        "zero": np.array(0, np.int8),
        "w": np.eye(channels, dtype=np.int8).reshape(channels, channels, 1, 1),
        "halves": np.full(channels, 0.5, np.float32),
        "ones": np.ones(channels, np.float32),
        "zeros": np.zeros(channels, np.int8),
        "bias": np.array(same, np.float32),
    }

    def grid(x: str, y: str) -> list[onnx.NodeProto]:
        quantize = helper.make_node("QuantizeLinear", [x, "one", "zero"], [f"{y}.q"])
        return [quantize, helper.make_node("DequantizeLinear", [f"{y}.q", "one", "zero"], [y])]

    nodes = [
        helper.make_node("Relu", ["x"], ["x.relu"]),
        *grid("x.relu", "skip"),
        helper.make_node("DequantizeLinear", ["w", "ones", "zeros"], ["w.one"], axis=0),
        helper.make_node("Conv", ["skip", "w.one", "bias"], ["first"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["first"], ["first.relu"]),
        *grid("first.relu", "middle"),
        helper.make_node("DequantizeLinear", ["w", "halves", "zeros"], ["w.half"], axis=0),
        helper.make_node("Conv", ["middle", "w.half", "bias"], ["second"], kernel_shape=[1, 1]),
        *grid("second", "rounded"),
        helper.make_node("Add", ["rounded", "skip"], ["sum"]),
        *grid("sum", "y"),
    ]
    shape = [1, channels, 1, 64]
    ends = [helper.make_tensor_value_info(name, T.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "sum", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in tensors.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_openvino_rounds_a_residual_sum_once(tmp_path: Path) -> None:
    """The file rounds the convolution's result, then the sum; OpenVINO (2026.4) leaves out the first, which shows at ties."""
    x = np.tile(np.arange(64, dtype=np.float32), (1, 4, 1, 1))
    model = sum_after_convolution()
    as_written = np.rint(x / 2) + x
    assert np.array_equal(run_ort(model, {"x": x})["y"], as_written)
    found = openvino_logits(model, {"x": x}, tmp_path)
    assert np.array_equal(found, np.rint(x / 2 + x))
    assert not np.array_equal(found, as_written)
