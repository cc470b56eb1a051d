"""Fashion-MNIST (Xiao et al., 2017: 70,000 grey images of 28x28, ten classes) as DATA, from its four idx files.

python models/fashion_mnist.py fashion.npz

The files are those of the Debian package dataset-fashion-mnist, or of any folder that holds them.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.training.data import Dataset, save_data

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package
UNSIGNED_BYTES = 0x08  # the idx type code


def fashion_mnist(folder: Path = FOLDER) -> Dataset:
    """Return 60,000 images uint8 [n, 1, 28, 28] with labels int32 [n] to train on, 10,000 to test on.

    Raises WageubnError where a file is missing or no gzipped idx file.
    """
    x_train, y_train, x_test, y_test = (
        read_idx(folder / f"{part}-{what}-ubyte.gz") for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
    )
    return Dataset(x_train[:, np.newaxis], y_train.astype(np.int32), x_test[:, np.newaxis], y_test.astype(np.int32))


def read_idx(file: Path) -> NDArray[Any]:
    """Return the uint8 array of a gzipped idx file: two zero bytes, type, rank, big-endian uint32 sizes, elements."""
    if not file.is_file():
        raise WageubnError(f"{file}: no such file; install dataset-fashion-mnist or give the folder of its idx files")
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise WageubnError(f"{file}: not a whole gzip file ({error}); restore it") from error
    rank = content[3] if len(content) > 4 and content[:3] == bytes([0, 0, UNSIGNED_BYTES]) else 0
    shape = np.frombuffer(content[4 : 4 + 4 * rank], ">u4").astype(int)
    elements = np.frombuffer(content[4 + 4 * rank :], np.uint8)
    if not rank or elements.size != shape.prod():
        raise WageubnError(f"{file}: not an idx file of unsigned bytes; restore it")
    return elements.reshape(shape)


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description="Write Fashion-MNIST as DATA for `wageubn-onnx train`.")
    parser.add_argument("out", type=Path, help="the .npz to write")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the idx files (default: the Debian package's)")
    options = parser.parse_args()
    save_data(fashion_mnist(options.folder), options.out)


if __name__ == "__main__":
    main()
