"""Train in integers with onnxruntime and numpy alone: python train_onnxruntime.py EXPORTED_FOLDER DATA.npz"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented  # a release that lacks a kernel

folder, data = Path(sys.argv[1]), np.load(sys.argv[2])  # x_train uint8 [n, C, H, W], y_train
manifest = json.loads((folder / "manifest.json").read_text())
for name, digest in manifest["files"].items():
    if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
        sys.exit(f"{name}: not the file that manifest.json was written with; export again")
step = manifest["step"]
options = onnxruntime.SessionOptions()
options.enable_mem_pattern = options.enable_mem_reuse = False  # no plan of memory: it would take longer than all else
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # the step is as the kernels want it
options.add_session_config_entry("session.intra_op.spin_duration_us", "1000")  # threads leave the cores to others between steps
refusal = (
    f"onnxruntime {onnxruntime.__version__} does not compute this step exactly on this processor: install another release "
    f"({manifest['releases']} are right), or export with --portable"
)
try:
    session = onnxruntime.InferenceSession(str(folder / step["model"]), options, providers=["CPUExecutionProvider"])
except NotImplemented as error:
    sys.exit(f"{refusal} ({error})")
state = dict(np.load(folder / manifest["state_file"]))
shape = next(i.shape for i in session.get_inputs() if i.name == step["images"])
names = [step["loss"], step["correct"], *(s["out"] for s in manifest["state"])]


def run(images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Loss, correct and the next state, from `state`."""
    feeds = {s["in"]: state[s["key"]] for s in manifest["state"]} | {
        step["images"]: images,
        step["labels"]: labels.astype(np.int32),
        step["lr"]: np.array(5, np.int32),  # 5/512
        step["gradient_range"]: np.array(128, np.int32),
        step["seed"]: np.array(0, np.int32),
    }
    return list(session.run(names, feeds))


# a first step, of which only the bits count: not every release is exact on every processor
values = run((np.arange(np.prod(shape)) * 37 % 251).astype(np.uint8).reshape(shape), np.zeros(shape[0]))
if hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in values)).hexdigest() != manifest["first_step"]:
    sys.exit(refusal)

batch = shape[0]
order = np.random.default_rng(0).permutation(len(data["x_train"]))
for start in range(0, len(order) - batch + 1, batch):
    chosen = order[start : start + batch]
    loss, correct, *values = run(data["x_train"][chosen], data["y_train"][chosen])
    state = {s["key"]: value for s, value in zip(manifest["state"], values, strict=True)}
    print(f"loss {float(loss) * 2.0 ** manifest['exponents']['loss']:.4f}, {int(correct)} of {batch} right")
np.savez("trained.npz", **state)
