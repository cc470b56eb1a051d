"""The handwritten digits of scikit-learn (UCI, 1797 images of 8x8) as the project's `Dataset`, or as a file of it.

python models/digits.py digits.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from wageubn_onnx.training.data import Dataset, save_data

TRAIN_IMAGES = 1437  # four fifths; the other 360 test
MEAN, STD = (0.305,), (0.376,)  # of pixel / 255 over the training images


def digits() -> Dataset:
    """Return the digits as uint8 [n, 1, 8, 8], the same images to train and to test on every time."""
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)  # the source counts 0..16
    labels = labels.astype(np.int32)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(pixels))
    train, test = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    return Dataset(pixels[train], labels[train], pixels[test], labels[test])


def normalised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return ``images`` as the network takes them: (pixel / 255 - mean) / std."""
    return (images.astype(np.float32) / 255 - np.float32(MEAN[0])) / np.float32(STD[0])


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits as DATA for `wageubn-onnx train`.")
    parser.add_argument("out", type=Path, help="the .npz to write")
    save_data(digits(), parser.parse_args().out)


if __name__ == "__main__":
    main()
