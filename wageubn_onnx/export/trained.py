"""A state of the integer step as parameters of the float network, in the source's own units."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.export.base import Array, Bundle
from wageubn_onnx.graph import load_model
from wageubn_onnx.operators import refuse_others


def forward_of(bundle: Bundle) -> onnx.ModelProto:
    """`forward.onnx` of the artifact folder, with the parameters that the conversion started from.

    Raises WageubnError where it is none.
    """
    file = ArtifactFolder(bundle.folder).model("fp_eval")
    model = load_model(file)
    refuse_others(model, str(file))
    return model


def parameters(bundle: Bundle, forward: onnx.ModelProto) -> dict[str, Array]:
    """Name in ``forward`` -> float64 value: mantissa * 2^exponent, without the 2^``scale_log2`` of its channels.

    Frozen parameters, which no state holds, stay as ``forward`` has them.
    """
    found = {
        t.name: numpy_helper.to_array(t).astype(np.float64)
        for t in forward.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT
    }
    for key, entry in bundle.manifest["tensors"].items():
        if key in found and key in bundle.state:
            value = np.ldexp(bundle.state[key].astype(np.float64), entry["exponent"])
            scale = np.asarray(entry.get("scale_log2", 0)).reshape(-1, *[1] * (value.ndim - 1))
            found[key] = np.ldexp(value, -scale).reshape(value.shape)
    return found
