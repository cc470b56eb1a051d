"""An exported step against PyTorch's FP32 step in one process: `python models/bench_exported.py DIR EXPORTED [--rounds 12]`.

DIR is what `convert` wrote, EXPORTED what `export --target onnxruntime DIR` did; the step is run from its manifest alone, as a
program without this package would. The two take turns, step by step; a ratio compares two steps in a row. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from wageubn_onnx.runtime.folder import ArtifactFolder
from wageubn_onnx.runtime.torch_step import TorchStep

WARM_UP = 4
PAUSE = 0.1  # seconds in which the other's threads go to sleep


class ExportedStep:
    """The step of an exported folder, with its state."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_mem_pattern = options.enable_mem_reuse = False
        options.add_session_config_entry("session.intra_op.spin_duration_us", "1000")
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
        return float(loss) * 2.0 ** self.manifest["exponents"]["loss"]


def main() -> None:
    """Print the median ratio, with the least and the greatest."""
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
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(WARM_UP + args.rounds):
        for step, seconds in zip(steps, times, strict=True):
            time.sleep(PAUSE)
            start = time.perf_counter()
            step.step(images, labels)
            seconds += [time.perf_counter() - start] * (turn >= WARM_UP)
    ratios = [theirs / ours for ours, theirs in zip(*times, strict=True)]
    print(f"{median(ratios):.2f} times PyTorch's speed ({min(ratios):.2f} to {max(ratios):.2f} over {args.rounds} rounds)")


if __name__ == "__main__":
    main()
