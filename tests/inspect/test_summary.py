"""The summary of a file: what it holds, what it costs, and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from networks import BATCH, CLASSES, SIZE, TOPOLOGIES, Net, tiny
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.artifacts.contents import seal
from wageubn_onnx.composites import expanded
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.inspect.summary import inspect_file, inspect_folder, inspect_model
from wageubn_onnx.inspect.tensors import Tensors
from wageubn_onnx.pipeline import STAGES


def test_a_file_of_any_program(tmp_path: Path) -> None:
    model = tiny()
    model.producer_name, model.producer_version = "exporter", "2"
    onnx.save(model, tmp_path / "net.onnx")
    found = inspect_file(tmp_path / "net.onnx")
    assert (found.stage, found.producer, found.ir_version, found.opsets) == ("", "exporter 2", 8, {"ai.onnx": 18})
    assert found.bytes == (tmp_path / "net.onnx").stat().st_size
    (image,), (logits,) = found.inputs, found.outputs
    assert (image.name, image.dtype, image.shape) == ("x", "float32", ["N", 3, SIZE, SIZE])
    assert logits.shape == ["N", CLASSES] and found.open == ["N"] and found.unknown == 0
    assert found.nodes == len(model.graph.node) == sum(found.operators.values())
    assert found.operators["Conv"] == 7 and list(found.operators.values()) == sorted(found.operators.values(), reverse=True)
    sizes = [math.prod(t.dims) for t in model.graph.initializer]
    assert (found.parameters, found.parameter_bytes) == (sum(sizes), 4 * sum(sizes))
    assert found.quantizers is None and found.memory.kept == {} and found.memory.state == 0


def test_flops_by_hand() -> None:
    """stem 12x12, a block 6x6, a stride to 3x3, a shortcut 1x1, the head and the classifier: two a multiply-accumulate."""
    macs = 144 * 6 * 27 + 36 * 6 * 54 * 2 + 9 * 8 * 54 + 9 * 8 * 72 + 9 * 8 * 6 + 9 * 8 * 8 + 5 * 8
    assert inspect_model(tiny()).flops == 2 * macs


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        ("(float[2,4,9,9] x, float[6,2,3,3] w) => (float[2,6,4,4] y) "
         "{ y = Conv <group = 2, strides = [2, 2]> (x, w) }", 192 * 18),
        ("(float[2,4,5,5] x, float[4,3,2,2] w) => (float[2,6,10,10] y) "
         "{ y = ConvTranspose <group = 2, strides = [2, 2]> (x, w) }", 200 * 12),
        ("(float[2,3,4] x, float[4,5] w) => (float[2,3,5] y) { y = MatMul (x, w) }", 2 * 3 * 5 * 4),
        ("(float[2,3] x, float[3] w) => (float[2] y) { y = MatMul (x, w) }", 6),
        ("(float[4,2] x, float[5,4] w) => (float[2,5] y) { y = Gemm <transA = 1, transB = 1> (x, w) }", 2 * 5 * 4),
        ("(uint8[1,2,6,6] x, uint8[3,2,3,3] w) => (int32[1,3,4,4] y) { y = ConvInteger (x, w) }", 48 * 18),
        ("(uint8[2,3] x, uint8[3,4] w) => (int32[2,4] y) { y = MatMulInteger (x, w) }", 24),
        ("(uint8[2,3] x, float s, uint8 z, uint8[3,4] w) => (uint8[2,4] y) { y = QLinearMatMul (x, s, z, w, s, z, s, z) }", 24),
        ("(float[2,3] x, float[2,3] w) => (float[2,3] y) { y = Mul (x, w) }", 0),
    ],
)  # fmt: skip
def test_what_products_cost(text: str, macs: int) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g {text}')
    onnx.checker.check_model(model, full_check=True)
    (node,) = model.graph.node
    assert Tensors(model).flops(node) == inspect_model(model).flops == 2 * macs


def test_products_within_functions_count() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "d" : 1]>
        g (float[2,3] x, float[3,4] w) => (float[2,4] y) { y = d.f (x, w) }
        <domain: "d", opset_import: ["" : 18]> f (a, b) => (c) { c = MatMul (a, b) }"""
    )
    found = inspect_model(model)
    assert found.flops == 48 and found.operators == {"d:f": 1} and found.unknown == 0


def test_layers_add_up(tiny_artifacts: Artifacts) -> None:
    for stage, model in [*tiny_artifacts.files.items(), ("source", tiny())]:
        found = inspect_model(model)
        assert sum(y.flops for y in found.layers) == found.flops > 0
        assert sum(y.parameters for y in found.layers) == found.parameters > 0, stage
        assert sum(y.parameter_bytes for y in found.layers) == found.parameter_bytes
        assert sum(y.nodes for y in found.layers) == len(expanded(model).graph.node)


def test_layers_are_those_of_forward(tiny_artifacts: Artifacts) -> None:
    """A source's layers get the names that they have in the stages, at the same cost."""
    source, forward = inspect_model(tiny()), inspect_model(tiny_artifacts.files["forward"])
    assert {y.layer: (y.flops, y.parameters) for y in source.layers if y.layer != "a1"} == {
        y.layer: (y.flops, y.parameters) for y in forward.layers if y.layer != "a1"
    }  # the bias of a1 moved into the mean behind it
    step = {y.layer: y.flops for y in inspect_model(tiny_artifacts.files["fp_training"]).layers}
    assert step["a1"] == 3 * BATCH * next(y.flops for y in forward.layers if y.layer == "a1")  # forward, data, weights


def test_parameters_beside_the_file(tmp_path: Path) -> None:
    model = tiny()
    onnx.save(model, tmp_path / "inside.onnx")
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    inside, beside = (inspect_file(tmp_path / name) for name in ("inside.onnx", "net.onnx"))
    assert beside.bytes == sum((tmp_path / name).stat().st_size for name in ("net.onnx", "net.data"))
    assert (beside.parameters, beside.flops, beside.layers) == (inside.parameters, inside.flops, inside.layers)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_topology(topology: str) -> None:
    found = inspect_model(TOPOLOGIES[topology]())
    assert found.flops > 0 and found.unknown == 0


def test_constants_are_parameters_and_what_is_unknown_is_said() -> None:
    n = Net(0)
    weight = onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32))
    w = n.node("Constant", value=weight)
    x = n.node("Conv", "x", w, kernel_shape=[1, 1])
    x = n.node("NonZero", n.node("Foreign", x))
    model = n.model(x, ("R", "C"))
    model.graph.node[-2].domain = "elsewhere"
    model.opset_import.add(domain="elsewhere", version=1)
    found = inspect_model(model)
    assert (found.parameters, found.flops, found.unknown) == (6, 2 * 144 * 2 * 3, 1)
    assert found.operators["elsewhere:Foreign"] == 1


def test_a_folder(tiny_folder: Path) -> None:
    found = inspect_folder(tiny_folder)
    assert {s.stage for s in found} == {stage.name for stage in STAGES}


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(WageubnError, match=r"has no manifest\.json; give a folder"):
        inspect_folder(tmp_path)
    seal(tmp_path, {"format": 2})
    with pytest.raises(WageubnError, match="has none of the stages; give an ONNX file, or a folder"):
        inspect_folder(tmp_path)
    with pytest.raises(WageubnError, match="no such file"):
        inspect_file(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(WageubnError, match=r"text\.onnx"):
        inspect_file(tmp_path / "text.onnx")
