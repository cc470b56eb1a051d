"""Write a shifted copy of a data set: inverted, rotated, and cut to its first training images.

    python models/shift.py cifar10_subset.npz inverted.npz --invert --first 2048
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from wageubn_onnx.runtime.data import load_data
from wageubn_onnx.runtime.files import atomic_write


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a shifted copy of a data set.")
    parser.add_argument("data", type=Path, help="an .npz or an image folder, as `wageubn-onnx train --data` takes it")
    parser.add_argument("out", type=Path, help="the .npz to write")
    parser.add_argument("--invert", action="store_true", help="255 - pixel")
    parser.add_argument("--rotate", type=int, default=0, metavar="K", help="by K quarter turns")
    parser.add_argument("--first", type=int, help="keep that many training images")
    options = parser.parse_args()
    data = load_data(options.data)

    def shifted(images: np.ndarray) -> np.ndarray:
        turned = np.rot90(images, options.rotate, axes=(2, 3))
        return np.ascontiguousarray(255 - turned if options.invert else turned)

    keep = slice(options.first)
    with atomic_write(options.out) as file:
        np.savez(
            file,
            x_train=shifted(data.x_train[keep]),
            y_train=data.y_train[keep],
            x_test=shifted(data.x_test),
            y_test=data.y_test,
        )


if __name__ == "__main__":
    main()
