"""The network replayed for training and for inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from networks import BATCH, images, run_ort, tiny
from wageubn_onnx.config import Config
from wageubn_onnx.graph import to_proto
from wageubn_onnx.passes.training import unroll
from wageubn_onnx.pipeline import FORWARD


def test_inference_computes_what_the_source_does(tmp_path: Path) -> None:
    onnx.save(tiny(), tmp_path / "tiny.onnx")
    config = Config(batch=BATCH)
    forward = FORWARD(tmp_path / "tiny.onnx", config)
    made = unroll.EVALUATION(forward, config)
    x = images(7, normalised=True)  # any batch
    feeds = {key: state.value for key, state in made.states.items()} | {"images": x}
    proto = to_proto(made, {"logits": made.named["logits"]})
    found = run_ort(proto, {i.name: feeds[i.name] for i in proto.graph.input})["logits"]
    (expected,) = run_ort(tiny(), {"x": x}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_training_has_a_fixed_batch_and_every_parameter_a_slot(tmp_path: Path) -> None:
    onnx.save(tiny(), tmp_path / "tiny.onnx")
    config = Config(batch=BATCH)
    made = unroll.TRAINING(FORWARD(tmp_path / "tiny.onnx", config), config)
    assert made.named["images"].shape[0] == BATCH and len(made.by_role("I")) == 1
    for kind in ("W", "gamma", "beta", "bias"):
        read = {slot.inputs[0].inputs[0].name for slot in made.by_role(kind)}
        assert read == {s.tensor.name for s in made.states.values() if s.kind == kind} != set()
