"""An exported step against PyTorch's FP32 step in one process: `python -m benchmarks.exported DIR EXPORTED [--rounds 12]`.

DIR is what `convert` wrote, EXPORTED what `export --target onnxruntime DIR` did; the step is run from its manifest alone, as a
program without this package would. The two take turns, step by step; a ratio compares two steps in a row. What two threads do
together depends on where their cores are, which a host may change: rounds are told apart by it (`cores.py`). Needs PyTorch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from benchmarks.cores import round_trip
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.bench.step import PAUSE
from wageubn_onnx.bench.torch_step import TorchStep
from wageubn_onnx.runtime.models import SPIN

WARM_UP = 4
APART = 1.4  # times the shortest round trip between the cores, from which on they count as farther apart


class ExportedStep:
    """The step of an exported folder, with its state."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_mem_pattern = options.enable_mem_reuse = False
        options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        model = str(folder / self.manifest["step"]["model"])
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.state = dict(np.load(folder / self.manifest["state_file"]))

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> float:
        """Train on one batch; the loss."""
        step, carried = self.manifest["step"], self.manifest["state"]
        scalars = {step[key]: np.array(value, np.int32) for key, value in (("lr", 5), ("gradient_range", 128), ("seed", 0))}
        feeds = {entry["in"]: self.state[entry["key"]] for entry in carried}
        feeds |= {step["images"]: images, step["labels"]: labels, **scalars}
        loss, *values = self.session.run([step["loss"], *(entry["out"] for entry in carried)], feeds)
        self.state = {entry["key"]: value for entry, value in zip(carried, values, strict=True)}
        return float(loss * 2.0 ** self.manifest["exponents"]["loss"])


def main() -> None:
    """Print the median ratio, with the least and the greatest, of rounds with the cores near each other, and of others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("exported", type=Path, metavar="EXPORTED")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = ExportedStep(args.exported, args.threads), TorchStep(ArtifactFolder(args.folder))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, steps[1].image_shape, dtype=np.uint8)
    labels = generator.integers(0, steps[1].classes, len(images), dtype=np.int32)
    for _ in range(WARM_UP):
        for step in steps:
            step.step(images, labels)
    distances, ratios = [round_trip()], []
    for _ in range(args.rounds):
        times = []
        for step in steps:
            time.sleep(PAUSE)
            start = time.perf_counter()
            step.step(images, labels)
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
        distances.append(round_trip())
    limit = APART * min(distances)
    rounds = list(zip(ratios, itertools.pairwise(distances), strict=True))  # distances before and after a round
    for name, chosen in (
        ("all", rounds),
        ("near", [(ratio, pair) for ratio, pair in rounds if max(pair) < limit]),
        ("apart", [(ratio, pair) for ratio, pair in rounds if min(pair) >= limit]),
    ):
        if chosen and (name == "all" or len(chosen) < len(rounds)):
            found, trips = [ratio for ratio, _ in chosen], [trip for _, pair in chosen for trip in pair]
            print(
                f"{median(found):.2f} times PyTorch's speed ({min(found):.2f} to {max(found):.2f}) over {len(found)} rounds, "
                f"{name}: {min(trips)} to {max(trips)} ns between the cores"
            )


if __name__ == "__main__":
    main()
