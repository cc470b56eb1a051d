"""Write a shifted copy of a data set: inverted, rotated, and cut to its first training images.

python models/shift.py cifar10_subset.npz inverted.npz --invert --first 2048
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wageubn_onnx.training.data import Dataset, load_data, save_data


def shifted(data: Dataset, invert: bool = False, rotate: int = 0, first: int | None = None) -> Dataset:
    """Return ``data`` as 255 - pixel, turned by ``rotate`` quarters, with only the ``first`` training images."""

    def shift(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        turned = np.rot90(images, rotate, axes=(2, 3))
        return np.ascontiguousarray(255 - turned if invert else turned)

    return Dataset(shift(data.x_train[:first]), data.y_train[:first], shift(data.x_test), data.y_test)


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description="Write a shifted copy of a data set.")
    parser.add_argument("data", type=Path, help="an .npz or an image folder, as `wageubn-onnx train --data` takes it")
    parser.add_argument("out", type=Path, help="the .npz to write")
    parser.add_argument("--invert", action="store_true", help="255 - pixel")
    parser.add_argument("--rotate", type=int, default=0, metavar="K", help="by K quarter turns")
    parser.add_argument("--first", type=int, help="keep that many training images")
    options = parser.parse_args()
    save_data(shifted(load_data(options.data), options.invert, options.rotate, options.first), options.out)


if __name__ == "__main__":
    main()
