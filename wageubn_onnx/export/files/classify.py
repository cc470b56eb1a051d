"""Test the 8-bit network of an exported folder: python classify.py FOLDER DATA.npz [--openvino]

DATA.npz: x_test, uint8 [n, C, H, W], and y_test. Needs numpy, and onnxruntime or openvino.
"""

import json
import sys

import numpy as np

folder, data = sys.argv[1], np.load(sys.argv[2])
with open(f"{folder}/manifest.json") as file:
    names = json.load(file)["eval"]
path = f"{folder}/{names['model']}"
if "--openvino" in sys.argv:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = compiled({names["images"]: data["x_test"]})[0]
else:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run([names["logits"]], {names["images"]: data["x_test"]})
correct = int((logits.argmax(axis=1) == data["y_test"]).sum())
print(f"accuracy {correct / len(logits):.2%} ({correct} of {len(logits)})")
