"""Write an untrained ResNet-18 (He et al., 2016): `python models/resnet18.py OUT.onnx [--classes 1000] [--size 224]`.

Equal options give equal weights. The running statistics are those of a fixed batch of noise, see `resnet.fit_statistics`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx

from resnet import Architecture, build, fit_statistics

STATISTICS_BATCH = 4  # images; a 224x224 image alone gives a channel of the last stage 49 values


def resnet18(classes: int = 1000, size: int = 224) -> onnx.ModelProto:
    """Return ResNet-18 for [3, size, size] images, normalised to about zero mean and unit deviation."""
    architecture = Architecture((2, 2, 2, 2), (64, 128, 256, 512), classes, (3, size, size), large_stem=True)
    model = build(architecture)
    noise = np.random.Generator(np.random.PCG64(1)).standard_normal((STATISTICS_BATCH, *architecture.image), np.float32)
    fit_statistics(model, noise)
    return model


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    parser.add_argument("--classes", type=int, default=1000, help="how many classes (default: 1000)")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images (default: 224)")
    arguments = parser.parse_args()
    model = resnet18(arguments.classes, arguments.size)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(model.SerializeToString(deterministic=True))
    print(f"{arguments.out}: {len(model.graph.node)} nodes, {arguments.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
