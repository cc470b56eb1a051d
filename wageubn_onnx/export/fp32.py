"""Back to FP32: the source model's own file with the trained parameters in it, for the pipeline that it came from.

Where the conversion rewrote a parameter so that it has no one place in the source, `forward.onnx` is written instead: the same
network in this project's spelling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from wageubn_onnx.artifacts.files import sha256
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.base import Array, Bundle, Option, Target
from wageubn_onnx.export.trained import forward_of, parameters
from wageubn_onnx.graph import load_model
from wageubn_onnx.passes.targets.write_back import Unplaced, write_back

MODEL = "model.onnx"


def write(bundle: Bundle, folder: Path, source: Path | None = None) -> dict[str, Any]:
    """model.onnx. Raises WageubnError where the file ``source`` is not the one that was converted."""
    forward = forward_of(bundle)
    trained, note = parameters(bundle, forward), None
    keys = [key for key in bundle.state if key in trained]
    model = forward
    if source is None:
        note = f"{MODEL} is forward.onnx, since the source was not given (--source FILE)"
    else:
        try:
            model = write_back(_source(source, bundle), forward, trained, keys)
        except Unplaced as reason:
            note = f"{MODEL} is forward.onnx, the same network: {reason}"
    if model is forward:
        _fill(forward, {key: trained[key] for key in keys})
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    names = {"images": _first_input(model), "logits": model.graph.output[0].name}
    sections: dict[str, Any] = {"step": None, "state": None, "exponents": {}, "tensors": {}, "quantizers": []}
    return sections | {"eval": {"model": MODEL, **names}, "notes": [*bundle.manifest["notes"], *([note] if note else [])]}


def _source(file: Path, bundle: Bundle) -> onnx.ModelProto:
    """The model that was converted."""
    if file.is_dir():
        raise Unplaced("the source is a folder of training artifacts")
    model, known = load_model(file), bundle.manifest["source"]
    if sha256(file) != known["sha256"]:
        raise WageubnError(f"{file}: not the file that was converted; give {known['file']}, sha256 {known['sha256'][:12]}...")
    return model


def _first_input(model: onnx.ModelProto) -> str:
    """The image's name; parameters may be listed as inputs, too."""
    stored = {t.name for t in model.graph.initializer}
    return next(str(i.name) for i in model.graph.input if i.name not in stored)


def _fill(model: onnx.ModelProto, values: dict[str, Array]) -> None:
    """Put ``values`` into a `forward`, whose parameters become constants: only then do runtimes fold BN and the like."""
    images = [i for i in model.graph.input if i.name == _first_input(model)]
    del model.graph.input[:]
    model.graph.input.extend(images)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype("float32"), tensor.name))


def readme(manifest: dict[str, Any]) -> str:
    """What the file takes and gives."""
    section, scale, mean, std = manifest["eval"], *(manifest["input"][key] for key in ("scale", "mean", "std"))
    notes = "".join(f"\n* {note}." for note in manifest["notes"])
    return f"""# The network in FP32, trained in integers

`{MODEL}` takes `{section["images"]}`, float32 [N, C, H, W], and gives `{section["logits"]}` as before training. The pixels were
normalised as x = (pixel * {scale} - mean) / std, mean {mean}, std {std}.
{notes}
"""


TARGET = Target(
    "fp32",
    "FP32: the source model's own file with the trained parameters",
    write,
    readme,
    options={"source": Option("the ONNX file that was converted, to write the trained parameters into", Path)},
)
