"""Test the 8-bit network of an exported folder: python classify.py FOLDER DATA.npz [--openvino]

DATA.npz: x_test, uint8 [n, C, H, W], and y_test. Needs numpy, and onnxruntime or openvino.
"""

import hashlib
import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

folder, data = Path(sys.argv[1]), np.load(sys.argv[2])
manifest = json.loads((folder / "manifest.json").read_text())
for name, digest in manifest["files"].items():
    if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
        sys.exit(f"{name}: not the file that manifest.json was written with; export again")
names = manifest["eval"]
path, feeds = str(folder / names["model"]), {names["images"]: data["x_test"]}
if "--openvino" in sys.argv:
    import openvino

    run = partial(openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), feeds)
else:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = partial(session.run, [names["logits"]], feeds)

run()  # prepares kernels and memory
start = time.perf_counter()
logits = run()[0]
seconds, correct = time.perf_counter() - start, int((logits.argmax(axis=1) == data["y_test"]).sum())
print(f"accuracy {correct / len(logits):.2%} ({correct} of {len(logits)}), {1000 * seconds / len(logits):.3f} ms an image")
