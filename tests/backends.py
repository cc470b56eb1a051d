"""The folders that `make test-backends` verifies: `python tests/backends.py OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx

from networks import BATCH, MEAN, STD, tiny
from wageubn_onnx import Config, convert
from wageubn_onnx.profiles import load_profile

MODELS = Path(__file__).resolve().parents[1] / "models"
sys.path.insert(0, str(MODELS))
from resnet import Architecture, build  # noqa: E402
from resnet18 import resnet18  # noqa: E402


def main(out: Path) -> None:
    """A network with every operator (in two profiles), the digits network, ResNet-20 at 32x32 and ResNet-18 at 224x224."""
    resnet20 = build(Architecture((3, 3, 3), (16, 32, 64), 10, (3, 32, 32)))
    out.mkdir(parents=True, exist_ok=True)
    made = {"tiny": (tiny(), BATCH), "resnet20": (resnet20, 8), "resnet18": (resnet18(), 2)}
    for name, (model, batch) in made.items():
        onnx.save(model, out / f"{name}.onnx")
        convert(out / f"{name}.onnx", Config(batch=batch, mean=MEAN, std=STD, health=name == "tiny"), out / name)
    convert(out / "tiny.onnx", Config(batch=BATCH, mean=MEAN, std=STD, profile=load_profile("fast")), out / "tiny-fast")
    convert(MODELS / "digits_resnet.onnx", Config(batch=16), out / "digits")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
