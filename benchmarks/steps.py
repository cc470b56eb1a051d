"""The table of docs/performance.md: `python -m benchmarks.steps OUT_DIR [--only NAME] [--rounds 5] [--threads 2]`.

Each network is converted under two profiles; then their integer steps, the FP32 step of the same folder in the same onnxruntime
and, where installed, PyTorch and onnxruntime-training take turns, each in its own process. The networks are untrained: a step
costs the same for any weights. With `--growth FILE.svg`: how the step grows with batch and depth, beside PyTorch's.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from models.resnet import Architecture, build
from wageubn_onnx import Config, convert
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.bench.ops import by_operator, first_feeds
from wageubn_onnx.bench.plots import figure
from wageubn_onnx.bench.step import Contender, Entry, race, ratio
from wageubn_onnx.checkout import ROOT
from wageubn_onnx.graph import load_model
from wageubn_onnx.passes.targets.cpu import for_cpu, inlined_passes_for, passes_for
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.runtime.kernels import kernels
from wageubn_onnx.runtime.models import open_lowered

PROFILES = ("fast", "full8")
IMAGENET: dict[str, Any] = {"widths": (64, 128, 256, 512), "classes": 1000, "image": (3, 224, 224), "large_stem": True}
DIGITS = ROOT / "models" / "digits_resnet.onnx"


@dataclass(frozen=True)
class Case:
    """A network at a batch. frozen: train its BNs with running statistics."""

    name: str
    architecture: Architecture | None
    batch: int
    frozen: bool = False
    steps: int = 1


CASES = (
    Case("ResNet-18, 224, batch 16", Architecture((2, 2, 2, 2), **IMAGENET), 16),
    Case("ResNet-50, 224, batch 16", Architecture((3, 4, 6, 3), bottleneck=True, **IMAGENET), 16),
    Case("ResNet-20, 32, batch 128", Architecture((3, 3, 3), (16, 32, 64), 10, (3, 32, 32)), 128),
    Case("digits, batch 1, frozen BN", None, 1, frozen=True, steps=200),
)


DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}
BATCHES = tuple(Case(f"ResNet-18, 224, batch {batch}", Architecture(DEPTHS[18], **IMAGENET), batch) for batch in (1, 4, 16, 64))
DEEPER = (
    BATCHES[1],
    *(Case(f"ResNet-{d}, 224, batch 4", Architecture(DEPTHS[d], bottleneck=True, **IMAGENET), 4) for d in (50, 152)),
)


def converted(case: Case, folder: Path, profiles: Sequence[str] = PROFILES) -> list[ArtifactFolder]:
    """The case under each profile."""
    source = DIGITS
    if case.architecture is not None:
        source = folder / f"{case.name.split(',')[0]}.onnx"
        onnx.save(build(case.architecture), source)
    found = []
    for name in profiles:
        place = folder / f"{case.name.replace(', ', '-').replace(' ', '-')}-{name}"
        if not place.exists():
            config = Config(batch=case.batch, profile=load_profile(name), bn="frozen" if case.frozen else "batch")
            convert(source, config).save(place)
        found.append(ArtifactFolder(place))
    return found


def measured(case: Case, folder: Path, rounds: int, threads: int, training_python: Path | None) -> list[Contender]:
    """The contenders: the integer steps, then those in float."""
    folders = converted(case, folder)
    entries = [Entry(f"integer, {name}", "int", place) for name, place in zip(PROFILES, folders, strict=True)]
    entries.append(Entry("FP32, onnxruntime", "fp32", folders[0]))
    if find_spec("torch") is not None:
        entries.append(Entry("FP32, PyTorch", "torch", folders[0]))
    if training_python is not None and not case.frozen:  # its BN is the batch's
        entries.append(Entry("FP32, onnxruntime-training", "training", folders[0]))
    return race(entries, rounds, case.steps, threads, training_python)[1]


def growth(folder: Path, rounds: int, threads: int, file: Path) -> None:
    """Plot the time of an image in profile `fast`, against batch and depth, beside PyTorch's; print it, too."""
    times: dict[Case, tuple[float, float]] = {}
    for case in dict.fromkeys((*BATCHES, *DEEPER)):
        (place,) = converted(case, folder, PROFILES[:1])
        entries = [Entry("fast", "int", place), Entry("PyTorch", "torch", place)]
        _, (ours, other) = race(entries, rounds, case.steps, threads)
        times[case] = ours.median / case.batch, other.median / case.batch
        print(f"| {case.name} | {ratio(other, ours).median:.2f} | {ours.peak_bytes / other.peak_bytes:.2f} |", flush=True)
        shutil.rmtree(place.path)  # the largest take gigabytes
    base = times[DEEPER[0]][1]
    with figure(file) as axes:
        for index, name in enumerate(("integer, fast", "FP32, PyTorch")):
            for kind, cases, style in (("batch", BATCHES, "-o"), ("depth", DEEPER, "--s")):
                labels = [c.name.replace(", 224, ", "\n") for c in cases]
                ratios = [times[c][index] / base for c in cases]
                axes.plot(labels, ratios, style, color=f"C{index}", label=f"{name}, by {kind}")
        axes.set_title("Time of an image at 224, over PyTorch's of ResNet-18 at batch 4")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:.1f}")
        axes.yaxis.set_minor_formatter("{x:.1f}")
        axes.legend()


def without_each(case: Case, folder: Path, rounds: int, threads: int) -> dict[str, list[float]]:
    """By pass: how many times as long the step of profile `fast` takes without it, round by round, all in one process."""
    place, machine = converted(case, folder)[0], kernels()
    step = load_model(place.model("step"))
    left_out = ["", *passes_for(machine), *inlined_passes_for(machine)]
    models = {left: for_cpu(step, machine, without=(left,)) for left in left_out}
    sessions = {left: open_lowered(folder, model.SerializeToString(), threads) for left, model in models.items()}
    feeds = first_feeds(place, sessions[""])
    times: dict[str, list[float]] = {left: [] for left in left_out}
    for turn in range(rounds + 1):  # the first one warms up
        for left, session in list(sessions.items())[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            session.run(None, feeds)
            times[left] += [time.perf_counter() - start] * (turn > 0)
    return {left: [a / b for a, b in zip(times[left], times[""], strict=True)] for left in left_out[1:]}


def main() -> None:
    """Print the table in Markdown, and where the time of profile `fast` goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", action="store_true", help="instead: what leaving out each pass for the CPU costs")
    parser.add_argument("--training-python", type=Path, help="interpreter of an environment with onnxruntime-training")
    parser.add_argument("--growth", type=Path, metavar="FILE.svg", help="instead: how the step grows with batch and depth")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.growth:
        growth(args.folder, args.rounds, args.threads, args.growth)
        return
    for case in (c for c in CASES if args.only in c.name):
        if args.passes:
            for left, ratios in without_each(case, args.folder, args.rounds, args.threads).items():
                print(f"{case.name}, without {left}: {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times as long")
            continue
        contenders = measured(case, args.folder, args.rounds, args.threads, args.training_python)
        floats = contenders[len(PROFILES) :]
        print(f"\n**{case.name}**, {args.threads} threads\n")
        print(
            "| step |",
            *(f"speed over {f.name} |" for f in floats),
            *(f"memory over {f.name} |" for f in floats),
            "peak MiB | state MiB |",
        )
        print("| --- |" + " --- |" * (2 * len(floats) + 2))
        for one in contenders:
            speeds = [ratio(other, one) for other in floats]
            cells = [f"{s.median:.2f} ({s.least:.2f}-{s.greatest:.2f})" for s in speeds]
            cells += [f"{one.peak_bytes / other.peak_bytes:.2f}" for other in floats]
            print(
                f"| {one.name} |",
                *(f"{cell} |" for cell in cells),
                f"{one.peak_bytes / 2**20:.0f} | {one.state_bytes / 2**20:.1f} |",
            )
        shares = by_operator(converted(case, args.folder)[0].path, args.threads)
        print("\nTime of `fast` by operator:", ", ".join(f"{s.operator} {s.share:.0%}" for s in shares if s.share >= 0.01))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
