"""Train `digits_resnet.onnx`, once: `python models/train_digits.py` writes it beside this file and prints its accuracy.

The untrained network is converted, the FP32 training graph of the conversion trains it in onnxruntime, and the trained parameters
and running statistics go back into the source file: its initializers carry the names of the state.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from digits import MEAN, STD, digits, normalised
from resnet import Architecture, build, fit_statistics, set_parameters
from wageubn_onnx import Config, convert
from wageubn_onnx.runtime.session import FloatSession
from wageubn_onnx.training.train import Plan, train

MODEL = Path(__file__).with_name("digits_resnet.onnx")
ARCHITECTURE = Architecture(depths=(1, 1, 1), widths=(12, 24, 48), classes=10, image=(1, 8, 8))
PLAN = Plan(epochs=30, lr=0.1, schedule="cosine")
WEIGHT_DECAY = 5e-4  # of 44 000 parameters for 1437 images


def main() -> None:
    """Train, write the file, and say how well it reads."""
    data = digits()
    model = build(ARCHITECTURE)
    fit_statistics(model, normalised(data.x_train))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        onnx.save(model, folder / MODEL.name)
        convert(folder / MODEL.name, Config(mean=MEAN, std=STD, weight_decay=WEIGHT_DECAY), folder / "converted")
        session = FloatSession(folder / "converted")
        result = train(session, data, PLAN, folder / "run")
        set_parameters(model, session.state())
    MODEL.write_bytes(model.SerializeToString(deterministic=True))
    print(f"{MODEL.name}: {MODEL.stat().st_size / 1024:.0f} KiB, test accuracy {result.test_accuracy:.2%}")


if __name__ == "__main__":
    main()
