"""onnxruntime-training's FP32 step as a contender of the step benchmark, in an environment that need not have this package.

``python training_worker.py MODEL BATCH THREADS STEPS`` (a forward model with its weights) speaks as `step_worker` does.
SGD without momentum, which is what onnxruntime-training has: a little less work than the others do.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
peak, ort_training = (importlib.import_module(name) for name in ("peak", "ort_training"))  # a script has no package

WARM_UP = 4
IR_VERSION = 10


def main(model: str, batch: int, threads: int, steps: int) -> None:
    """Serve rounds until stdin ends."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnxruntime.training import api

    proto = onnx.load(model)
    shape = [batch, *(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:])]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "made"
        ort_training.convert_by_artifacts(model, str(place))
        for file in place.glob("*.onnx"):  # a newer onnx writes a version that the last release does not read
            made = onnx.load(file)
            made.ir_version = min(made.ir_version, IR_VERSION)
            onnx.save(made, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        state = api.CheckpointState.load_checkpoint(str(place / "checkpoint"))
        module = api.Module(str(place / "training_model.onnx"), state, device="cpu", session_options=options)
        optimizer = api.Optimizer(str(place / "optimizer_model.onnx"), module)
    generator = np.random.default_rng(0)
    images = generator.standard_normal(shape, dtype=np.float32)
    labels = generator.integers(0, 10, batch, dtype=np.int64)
    module.train()

    def step() -> None:
        module(images, labels)
        optimizer.step()
        module.lazy_reset_grad()

    for _ in range(WARM_UP):
        step()
    parameters = sum(int(np.prod(t.dims)) * 4 for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    answer({"ready": True, "batch": batch, "state_bytes": parameters})
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        answer({"seconds": (time.perf_counter() - start) / steps})
    answer({"peak_bytes": peak.peak_bytes()})


def answer(line: dict[str, Any]) -> None:
    """One JSON object a line."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
