"""Train in integers with iree.runtime and numpy alone: python train_iree.py EXPORTED_FOLDER DATA.npz"""

import hashlib
import json
import sys
from pathlib import Path

import iree.runtime
import numpy as np

folder, data = Path(sys.argv[1]), np.load(sys.argv[2])  # x_train uint8 [n, C, H, W], y_train
manifest = json.loads((folder / "manifest.json").read_text())
for name, digest in manifest["files"].items():
    if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
        sys.exit(f"{name}: not the file that manifest.json was written with; export again")
step = manifest["step"]
config = iree.runtime.Config("local-task")
run = iree.runtime.load_vm_module(iree.runtime.VmModule.mmap(config.vm_instance, str(folder / step["model"])), config)["step"]
state = dict(np.load(folder / manifest["state_file"]))
batch = manifest["batch"]
order = np.random.default_rng(0).permutation(len(data["x_train"]))
for start in range(0, len(order) - batch + 1, batch):
    chosen = order[start : start + batch]
    feeds = {s["in"]: state[s["key"]] for s in manifest["state"]} | {
        step["images"]: data["x_train"][chosen],
        step["labels"]: data["y_train"][chosen],
        step["lr"]: np.array(5),  # 5/512
        step["gradient_range"]: np.array(128),
        step["seed"]: np.array(0),
    }
    values = run(*(feeds[name].astype(dtype) for name, dtype in step["arguments"].items()))
    results = {name: np.asarray(value).astype(step["results"][name]) for name, value in zip(step["results"], values, strict=True)}
    state = {s["key"]: results[s["out"]] for s in manifest["state"]}
    loss, correct = results[step["loss"]], results[step["correct"]]
    print(f"loss {float(loss) * 2.0 ** manifest['exponents']['loss']:.4f}, {int(correct)} of {batch} right")
np.savez("trained.npz", **state)
