"""The PyTorch contender of the benchmark computes the forward model, and learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.errors import WageubnError

pytest.importorskip("torch")

# every operator of a forward model; n x 3 x 8 x 8 -> n x 4
FORWARD = """
<ir_version: 10, opset_import: ["" : 21]>
forward (float[n,3,8,8] images, float[6,3,3,3] w1, float[6] b1, float[6] gamma, float[6] beta,
         float[6] mean, float[6] var, float[6,3,3,3] w2, float[4,6] w3, float[4] b3) => (float[n,4] logits)
<int64[8] around = {0, 0, 2, 0, 0, 0, 1, 0}> {
  c1 = Conv<pads=[0,1,2,1], strides=[1,1]>(images, w1, b1)
  n1 = BatchNormalization<epsilon=0.001, momentum=0.8>(c1, gamma, beta, mean, var)
  r1 = Relu(n1)
  c2 = Conv<pads=[1,1,1,1], group=2>(r1, w2)
  a1 = Add(r1, c2)
  z1 = Pad(a1, around)
  p1 = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(z1)
  p2 = AveragePool<kernel_shape=[2,2], strides=[1,1], pads=[1,1,1,1]>(p1)
  g = GlobalAveragePool(p2)
  f = Flatten(g)
  logits = Gemm<transB=1>(f, w3, b3)
}
"""


@pytest.fixture
def forward(folder: Path, edit_manifest: Callable[..., None]) -> onnx.ModelProto:
    """Replace the miniature's float models by one that has every operator, with random parameters."""
    model = parser.parse_model(FORWARD)
    generator = np.random.default_rng(3)
    for value in model.graph.input[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        tensor = np.abs(generator.normal(size=shape)) if value.name == "var" else generator.normal(size=shape) / 2
        model.graph.initializer.append(onnx.numpy_helper.from_array(tensor.astype(np.float32), value.name))
    onnx.save(model, folder / "forward.onnx")
    step = onnx.load(folder / "fp_training.onnx")
    for dim, size in zip(step.graph.input[0].type.tensor_type.shape.dim, (5, 3, 8, 8), strict=True):
        dim.dim_value = size
    onnx.save(step, folder / "fp_training.onnx")
    edit_manifest(input={"scale": 1 / 255, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]})
    return model


def images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)


def test_it_computes_the_training_mode_forward(folder: Path, forward: onnx.ModelProto) -> None:
    from wageubn_onnx.bench.torch_step import TorchStep

    step = TorchStep(ArtifactFolder(folder))
    assert (step.image_shape, step.classes) == ((5, 3, 8, 8), 4)
    normalization = forward.graph.node[1]
    normalization.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    normalization.output.extend(["mean_out", "var_out"])
    reference = ort.InferenceSession(forward.SerializeToString())
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    x = (images() / np.float32(255) - mean) / std
    logits = step.forward(images()).detach().numpy()
    np.testing.assert_allclose(logits, reference.run(["logits"], {"images": x})[0], rtol=1e-4, atol=1e-5)


def test_it_learns_a_batch(folder: Path, forward: onnx.ModelProto) -> None:
    from wageubn_onnx.bench.torch_step import TorchStep

    step = TorchStep(ArtifactFolder(folder), lr=0.05)
    labels = np.array([0, 1, 2, 3, 0], np.int32)
    losses = [step.step(images(), labels) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    trained = 6 * 27 + 6 + 6 + 6 + 6 * 27 + 4 * 6 + 4
    assert step.state_bytes == 4 * (2 * trained + 12)


def test_an_unknown_operator_is_named(folder: Path) -> None:
    from wageubn_onnx.bench.torch_step import TorchStep

    with pytest.raises(WageubnError, match=r"forward.onnx: node .*MatMul is no operator of a forward model"):
        TorchStep(ArtifactFolder(folder))
