"""Read the user's file and bring it to the project's opset: what is not a sound ONNX network is refused here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import OPSET, PREFIX, load_model
from wageubn_onnx.passes.importing import training_graph

FINDINGS = tuple(PREFIX + key for key in ("files", "frozen", "notes"))  # metadata that only this module sets


def read_source(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Load, check and convert ``path`` to opset 18: an ONNX file, or a folder of onnxruntime-training's artifacts, or its model.

    Its metadata holds what `findings` reads. Raises WageubnError, naming the file, where it is missing, not ONNX, truncated,
    invalid, holds NaN or infinite weights, or has an opset that onnx's version converter cannot bring over.
    """
    file = Path(path)
    if file.is_dir():
        file = training_graph.model_file(file)
    model = load_model(file)
    found: dict[str, list[str]] = {}
    if training_graph.is_training_graph(model):
        model, found = training_graph.recover(model, file)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise WageubnError(f"{file}: not a valid ONNX model ({_line(error)})") from None
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise WageubnError(f"{file}: weights {tensor.name!r} hold NaN or infinity; export a healthy checkpoint")
    model = _to_opset(model, file)
    for stale in [p for p in model.metadata_props if p.key in FINDINGS]:
        model.metadata_props.remove(stale)
    for key, lines in found.items():
        model.metadata_props.add(key=PREFIX + key, value=json.dumps(lines))
    return model


def findings(model: onnx.ModelProto, key: str) -> list[str]:
    """What `read_source` found beside the network of a training artifact, [] for others.

    ``files``: the paths read; ``frozen``: parameters not to train; ``notes``: lines for the user.
    """
    return next((list(json.loads(p.value)) for p in model.metadata_props if p.key == PREFIX + key), [])


def _to_opset(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if version == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, version_converter.ConvertError) as error:
        raise WageubnError(
            f"{file}: opset {version} cannot be brought to {OPSET} ({_line(error)}); export it with opset {OPSET}"
        ) from None


def _line(error: Exception) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())[:200]
