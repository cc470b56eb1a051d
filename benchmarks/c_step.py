"""Milliseconds that a step takes in C and in onnxruntime, in turn: python -m benchmarks.c_step CONVERTED_FOLDER [STEPS]"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from wageubn_onnx.export import c, ort
from wageubn_onnx.export.base import Bundle
from wageubn_onnx.export.export import export
from wageubn_onnx.export.verify import _inputs

ROUNDS = 5
folder, steps = Path(sys.argv[1]), int((sys.argv[2:] or ["20"])[0])
bundle = Bundle.of(folder)
feeds = _inputs(bundle, steps + 1, seed=0)


def in_c(runner: c.Compiled, program: Path) -> float:
    """Seconds a step: what all steps take, less what one takes with the start of the program."""
    ends = []
    for some in (feeds[:1], feeds):
        start = time.perf_counter()
        list(runner.run(program, bundle.state, some))
        ends.append(time.perf_counter() - start)
    return (ends[1] - ends[0]) / steps


def in_onnxruntime(runner: ort.InProcess) -> float:
    """Seconds a step, after the first."""
    outputs = runner.steps(bundle.state, feeds)
    next(outputs)
    start = time.perf_counter()
    list(outputs)
    return (time.perf_counter() - start) / steps


with tempfile.TemporaryDirectory() as scratch:
    sources, models = (export(folder, target, Path(scratch) / target) for target in ("c", "onnxruntime"))
    (compiled,), loaded = c.runners(sources), ort.runners(models)[2]  # optimizations on, one thread
    assert isinstance(compiled, c.Compiled) and isinstance(loaded, ort.InProcess)
    program = Path(scratch) / "program"
    compiled.build(program)
    times = [(in_c(compiled, program), in_onnxruntime(loaded)) for _ in range(ROUNDS)]
for name, values in zip((compiled.name, loaded.name), zip(*times, strict=True), strict=True):
    low, middle, high = (1000 * f(values) for f in (min, statistics.median, max))
    print(f"{name}: {middle:.1f} ms a step (median of {ROUNDS}; {low:.1f} to {high:.1f})")
