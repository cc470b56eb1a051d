"""Write the steps that a session tests itself with: `python tests/make_selftest.py`, where what `convert` writes has changed.

The digests that it prints belong into wageubn_onnx/runtime/selftest.py; tests/runtime/test_selftest.py holds both to the
interpreter of exact integers.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from networks import CHANNELS, CLASSES, SIZE, Net, with_own_statistics
from wageubn_onnx import Config, convert
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.runtime.kernels import kernels
from wageubn_onnx.runtime.selftest import FOLDER, STEPS, result

BATCH = 4


def network() -> onnx.ModelProto:
    """Products of at least 32 rows whose columns, places and sums have rests of 16 and 64; channels of 16 and of none."""
    n = Net(0)
    x = n.relu(n.bn(n.conv("x", "stem", 3, 33, pads=[0] * 4), "stem_bn", 33))
    x = n.node("MaxPool", x, name="maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])  # 5x5, of 10x10
    y = n.relu(n.bn(n.conv(x, "a1", 33, 48, k=1), "a1_bn", 48))
    y = n.bn(n.conv(y, "a2", 48, 17, strides=[2, 2]), "a2_bn", 17)  # 3x3
    short = n.bn(n.conv(x, "a_short", 33, 17, k=1, strides=[2, 2]), "a_short_bn", 17)
    x = n.relu(n.node("Add", y, short, name="a_add"))
    x = n.node("Flatten", n.node("GlobalAveragePool", x, name="gap"), name="flatten")
    return with_own_statistics(n.model(n.gemm(x, 17, CLASSES)), 0)


def step_of(profile: str, folder: Path) -> onnx.ModelProto:
    """int_training with the values of its state as those of its inputs, and without what says where nodes come from."""
    onnx.save(network(), folder / "network.onnx")
    made = convert(folder / "network.onnx", Config(batch=BATCH, profile=load_profile(profile)))
    step = onnx.ModelProto()
    step.CopyFrom(made.files["int_training"])
    for item in (*step.graph.node, *step.graph.input, *(node for f in step.functions for node in f.node)):
        del item.metadata_props[:]
    random, names = np.random.default_rng(0), made.manifest["step"]
    values = {entry["in"]: made.state[entry["key"]] for entry in made.manifest["state"]}
    values[names["images"]] = random.integers(0, 256, (BATCH, CHANNELS, SIZE, SIZE)).astype(np.uint8)
    values[names["labels"]] = (np.arange(BATCH) % CLASSES).astype(np.int32)
    scalars = {"lr": 5, "gradient_range": 128, "seed": 3}
    values |= {names[key]: np.array(value, np.int32) for key, value in scalars.items()}
    step.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return step


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for profile in STEPS:
            content = step_of(profile, Path(folder)).SerializeToString(deterministic=True)
            (FOLDER / f"{profile}.onnx.gz").write_bytes(gzip.compress(content, mtime=0))
            print(f'    "{profile}": "{result(profile, kernels(), optimize=False)}",')


if __name__ == "__main__":
    main()
