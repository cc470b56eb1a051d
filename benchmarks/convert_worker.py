"""One conversion in its own process: ours by stages, or another tool's. Prints one JSON object.

``python convert_worker.py KIND MODEL OUT BATCH``, KIND one of `KINDS`. Other tools may live in an environment without this
package: so this file needs nothing of it but for its own conversion. Imports are not timed, reading and writing files are.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "wageubn_onnx" / "bench"))
peak, ort_training = (importlib.import_module(name) for name in ("peak", "ort_training"))

STAGES = ("forward", "fp_training", "quant_training", "int_training", "quant_eval", "int_eval", "proof", "writing", "rest")


Conversion = Callable[[str, str], int]  # of a file, to a path; returns how many nodes it made


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
        self.peaks[self._label] = max(self.peaks[self._label], peak.peak_bytes())
        peak.forget_peak()
        self._label, self._since = label, now

    def time(self, owner: Any, name: str, label: Callable[..., str]) -> None:
        """Have ``owner.name`` run under the label that ``label`` gives for its first argument."""
        inner = getattr(owner, name)

        def timed(first: Any, *args: Any, **options: Any) -> Any:
            with self.on(label(first)):
                return inner(first, *args, **options)

        setattr(owner, name, timed)


# -- the contenders -------------------------------------------------------------------------------------------------------


def _ours(clock: Clock, batch: int) -> Conversion:
    from wageubn_onnx import Config, pipeline
    from wageubn_onnx.artifacts import artifacts

    clock.time(pipeline.Stage, "__call__", lambda stage: stage.name)
    clock.time(pipeline, "_written", lambda model: model.stage)
    clock.time(pipeline, "require", lambda model: "proof")
    clock.time(artifacts.Artifacts, "save", lambda made: "writing")

    def run(model: str, out: str) -> int:
        made = pipeline.convert(model, Config(batch=batch), out)
        return sum(len(graph.graph.node) for graph in made.graphs.values())

    return run


def _onnxsim(clock: Clock, batch: int) -> Conversion:
    import onnx
    import onnxsim

    def run(model: str, out: str) -> int:
        simplified, _ = onnxsim.simplify(onnx.load(model))
        onnx.save(simplified, f"{out}.onnx")
        return len(simplified.graph.node)

    return run


def _generate_artifacts(clock: Clock, batch: int) -> Conversion:
    import onnxruntime.training.artifacts  # noqa: F401 (imports are not timed)

    run: Conversion = ort_training.convert_by_artifacts
    return run


KINDS: dict[str, Callable[[Clock, int], Conversion]] = {"wageubn": _ours, "onnxsim": _onnxsim, "artifacts": _generate_artifacts}


def main(kind: str, model: str, out: str, batch: int) -> None:
    """Convert ``model`` once and print what it took."""
    clock = Clock()
    run = KINDS[kind](clock, batch)
    wall, cpu = time.perf_counter(), time.process_time()
    with clock.on("rest"):
        nodes = run(model, out)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    stages = {label: [seconds, clock.peaks[label]] for label, seconds in clock.seconds.items() if label != "imports"}
    whole = {"nodes": nodes, "seconds": wall, "cpu_seconds": cpu, "peak_bytes": max(clock.peaks.values())}
    print(json.dumps(whole | {"stages": stages}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
