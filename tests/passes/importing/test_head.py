"""A new head: its shape, its draw, and what has none to replace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from networks import BATCH, MEAN, STD, Net, images, run_ort, tiny
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model, to_proto
from wageubn_onnx.pipeline import FORWARD


def forward(folder: Path, model: onnx.ModelProto, **options: Any) -> Model:
    onnx.save(model, folder / "net.onnx")
    return FORWARD(folder / "net.onnx", Config(batch=BATCH, mean=MEAN, std=STD, **options))


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_the_head_is_drawn_anew(classes: int, tmp_path: Path) -> None:
    """The same class count as before is no exception, and the same draw comes every time."""
    first, again = (forward(tmp_path, tiny(), num_classes=classes) for _ in range(2))
    weight, bias = (first.states[f"fc.{name}"].value for name in ("weight", "bias"))
    assert weight.shape == (classes, 8) and weight.dtype == np.float32
    assert abs(weight).max() <= 1 / np.sqrt(8) and abs(weight).max() > 0.6 / np.sqrt(8)
    assert bias.shape == (classes,) and not bias.any()
    np.testing.assert_array_equal(weight, again.states["fc.weight"].value)
    assert first.notes["classes"] == classes


def test_the_rest_stays(tmp_path: Path) -> None:
    old, new = forward(tmp_path, tiny()), forward(tmp_path, tiny(), num_classes=7)
    assert [k for k in old.states if not np.array_equal(old.states[k].value, new.states[k].value)] == ["fc.weight", "fc.bias"]
    files = [to_proto(m, {"logits": m.named["logits"], "features": m.named["logits"].inputs[0].inputs[0]}) for m in (old, new)]
    x = images(normalised=True)
    a, b = (run_ort(file, {"images": x}) for file in files)
    np.testing.assert_array_equal(a["features"], b["features"])
    np.testing.assert_allclose(b["logits"], b["features"] @ new.states["fc.weight"].value.T, rtol=1e-5, atol=1e-5)
    assert b["logits"].shape == (BATCH, 7)


def without_bias() -> onnx.ModelProto:
    n = Net()
    x = n.node("Flatten", n.node("GlobalAveragePool", n.relu(n.bn(n.conv("x", "c", 3, 6), "bn", 6)), name="gap"), name="flatten")
    return n.model(n.node("Gemm", x, n.uniform("fc.weight", -1, 1, 5, 6), name="fc", transB=1))


def test_a_head_without_bias_gets_none(tmp_path: Path) -> None:
    model = forward(tmp_path, without_bias(), num_classes=3)
    assert [s.key for s in model.states.values() if s.layer == "fc"] == ["fc.weight"]


def test_logits_without_a_gemm_are_refused(tmp_path: Path) -> None:
    n = Net()
    x = n.relu(n.bn(n.conv("x", "c", 3, 5), "bn", 5))
    x = n.node("GlobalAveragePool", n.conv(x, "classes", 5, 5, k=1), name="gap")
    model = n.model(n.node("Flatten", x, name="flatten"))
    with pytest.raises(WageubnError, match="'flatten': the logits come from Flatten, and only a Gemm"):
        forward(tmp_path, model, num_classes=3)


@pytest.mark.parametrize("classes", [1, 0, -3])
def test_fewer_than_two_classes_are_refused(classes: int) -> None:
    with pytest.raises(WageubnError, match=f"num-classes {classes}: "):
        Config(num_classes=classes)
