"""One conversion in its own process: ours by stages, or another tool's. Prints one JSON object.

``python bench_convert_worker.py KIND MODEL OUT BATCH``, KIND one of `KINDS`. Other tools may live in an environment without this
package: so this file needs nothing of it but for its own conversion. Imports are not timed, reading and writing files are.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Clock:
    """Shares out time and peak memory among labels, of which one is always on.

    seconds: label -> time spent; peaks: label -> greatest resident memory meanwhile, in bytes.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.peaks: dict[str, int] = defaultdict(int)
        self._label, self._since = "imports", time.perf_counter()

    @contextmanager
    def on(self, label: str) -> Iterator[None]:
        """Within it, time and memory are ``label``'s."""
        before = self._label
        self._turn(label)
        try:
            yield
        finally:
            self._turn(before)

    def _turn(self, label: str) -> None:
        now = time.perf_counter()
        self.seconds[self._label] += now - self._since
        self.peaks[self._label] = max(self.peaks[self._label], peak_bytes())
        _forget_peak()
        self._label, self._since = label, now

    def time(self, owner: Any, name: str, label: Callable[..., str]) -> None:
        """Have ``owner.name`` run under the label that ``label`` gives for its first argument."""
        inner = getattr(owner, name)

        def timed(first: Any, *args: Any, **options: Any) -> Any:
            with self.on(label(first)):
                return inner(first, *args, **options)

        setattr(owner, name, timed)


def peak_bytes() -> int:
    """Return the greatest resident memory of this process, on Linux since `_forget_peak`.

    Linux's ru_maxrss survives exec, so that it may be the parent's; VmHWM is this program's own.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0].split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    """Start the peak anew (proc(5), clear_refs); where that cannot be, stages have the peak up to their end."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


# -- the contenders -------------------------------------------------------------------------------------------------------


def _ours(clock: Clock, batch: int) -> Callable[[str, str], None]:
    from wageubn_onnx import Config, artifacts, pipeline

    clock.time(pipeline.Stage, "__call__", lambda stage: stage.name)
    clock.time(pipeline, "_written", lambda model: model.stage)
    clock.time(pipeline, "require", lambda model: "proof")
    clock.time(artifacts.Artifacts, "save", lambda made: "writing")

    def run(model: str, out: str) -> None:
        pipeline.convert(model, Config(batch=batch), out)

    return run


def _onnxsim(clock: Clock, batch: int) -> Callable[[str, str], None]:
    import onnx
    import onnxsim

    def run(model: str, out: str) -> None:
        simplified, _ = onnxsim.simplify(onnx.load(model))
        onnx.save(simplified, f"{out}.onnx")

    return run


def _generate_artifacts(clock: Clock, batch: int) -> Callable[[str, str], None]:
    import onnx
    from onnxruntime.training import artifacts

    def run(model: str, out: str) -> None:
        proto = onnx.load(model)
        statistics = _train_batch_norm(proto)
        trained = [t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.name not in statistics]
        Path(out).mkdir()
        artifacts.generate_artifacts(
            proto,
            requires_grad=trained,
            frozen_params=sorted(statistics),
            loss=artifacts.LossType.CrossEntropyLoss,
            optimizer=artifacts.OptimType.SGD,
            artifact_directory=out,
        )

    return run


def _train_batch_norm(proto: Any) -> set[str]:
    """Give BatchNormalization its training form, which alone has a gradient; returns the names of the running statistics."""
    import onnx

    statistics: set[str] = set()
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
            node.output.extend(f"{name}.batch" for name in node.input[3:5])
            statistics.update(node.input[3:5])
    return statistics


KINDS = {"wageubn": _ours, "onnxsim": _onnxsim, "artifacts": _generate_artifacts}


def main(kind: str, model: str, out: str, batch: int) -> None:
    """Convert ``model`` once and print what it took."""
    clock = Clock()
    run = KINDS[kind](clock, batch)
    wall, cpu = time.perf_counter(), time.process_time()
    with clock.on("rest"):
        run(model, out)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    stages = {label: [seconds, clock.peaks[label]] for label, seconds in clock.seconds.items() if label != "imports"}
    print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "peak_bytes": max(clock.peaks.values()), "stages": stages}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
