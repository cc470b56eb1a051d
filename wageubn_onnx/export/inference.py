"""The trained network for deployment in 8 bits: QOperator for onnxruntime, QDQ for onnxruntime, OpenVINO and TensorRT's rules.

BN is folded from its running statistics, and every scale is a power of two, so the graph computes integers whatever it runs on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.base import Bundle, Option, Target
from wageubn_onnx.export.ort import FILES
from wageubn_onnx.export.trained import forward_of, parameters
from wageubn_onnx.passes.targets.image import image_quantizer
from wageubn_onnx.passes.targets.int8 import quantize
from wageubn_onnx.passes.targets.qdq import qdq
from wageubn_onnx.passes.targets.qoperator import qoperator
from wageubn_onnx.passes.targets.tensorrt import require_tensorrt

MODEL, CLASSIFY = "model.onnx", "classify.py"
FORMS = {"qoperator": qoperator, "qdq": qdq}


def write(bundle: Bundle, folder: Path, form: str = "qoperator") -> dict[str, Any]:
    """model.onnx in one of `FORMS`. Raises WageubnError for another form."""
    if form not in FORMS:
        raise WageubnError(f"form {form}: unknown; choose one of {', '.join(FORMS)}")
    forward = forward_of(bundle)
    network = quantize(forward, parameters(bundle, forward), bundle.manifest["quantizers"])
    model = FORMS[form](network, image_quantizer(bundle.evaluation))
    if form == "qdq":
        require_tensorrt(model, MODEL)
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    shutil.copy(FILES / CLASSIFY, folder)
    sections: dict[str, Any] = {"step": None, "state": None, "tensors": {}, "quantizers": []}
    names = {"images": model.graph.input[0].name, "logits": model.graph.output[0].name}
    exponent = network.exponents[network.logits.name] if form == "qoperator" else 0
    return sections | {
        "eval": {"model": MODEL, **names},
        "exponents": {"logits": exponent},
        "form": form,
        "exact": network.is_exact,
    }


def readme(manifest: dict[str, Any]) -> str:
    """How to classify images with it."""
    section, form = manifest["eval"], manifest["form"]
    openvino = f"    pip install openvino numpy\n    python {CLASSIFY} . DATA.npz --openvino\n" if form == "qdq" else ""
    unit = f"int32, in units of 2^{manifest['exponents']['logits']}" if form == "qoperator" else "float32"
    same = "No sum of products passes 2^24: all forms, and all runtimes that keep to the file's roundings, give the same bits."
    exact = same if manifest["exact"] else "Some sums of products pass 2^24, which runtimes may round."
    return f"""# An 8-bit network ({form})

    pip install onnxruntime numpy
    python {CLASSIFY} . DATA.npz
{openvino}
DATA.npz holds `x_test` (uint8 [n, C, H, W]) and `y_test`. `{MODEL}` takes `{section["images"]}`, the pixels as they are, uint8
[N, C, H, W], and gives `{section["logits"]}` [N, classes], {unit}.

Every scale is a power of two. {exact}
"""


TARGET = Target(
    "inference",
    "inference in 8 bits: QOperator for onnxruntime, QDQ for onnxruntime and OpenVINO",
    write,
    readme,
    options={"form": Option("qoperator (onnxruntime) or qdq (onnxruntime, OpenVINO) [default: qoperator]")},
)
