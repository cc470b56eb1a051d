"""What a pixel becomes: the step's own image quantizer, as a table and as float arithmetic that gives the same integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = np.ndarray[Any, Any]
PIXELS = 256


@dataclass(frozen=True)
class ImageQuantizer:
    """table: int8 [C, 256], the mantissa of every pixel. factor and offset: float32 [1, C, 1, 1], exact; the mantissa is
    pixel * factor + offset, rounded half to even and saturated at -127 and 127."""

    table: Array
    factor: Array
    offset: Array


def image_quantizer(evaluation: onnx.ModelProto) -> ImageQuantizer:
    """That of ``evaluation``, an integer stage: the node that reads its images."""
    (node,) = (n for n in evaluation.graph.node if evaluation.graph.input[0].name in n.input)
    constants = [t for t in evaluation.graph.initializer if t.name in node.input]
    factor, offset, shift = (
        numpy_helper.to_array(next(t for t in constants if t.name == name)).astype(np.float64) for name in node.input[1:]
    )
    channels = evaluation.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    pixels = helper.make_tensor_value_info(node.input[0], onnx.TensorProto.UINT8, [PIXELS, channels, 1, 1])
    graph = helper.make_graph([node], "image", [pixels], [onnx.ValueInfoProto(name=node.output[0])], constants)
    one = helper.make_model(graph, opset_imports=evaluation.opset_import, functions=evaluation.functions)
    every = np.tile(np.arange(PIXELS, dtype=np.uint8).reshape(-1, 1, 1, 1), (1, channels, 1, 1))
    (table,) = ReferenceEvaluator(one).run(None, {node.input[0]: every})
    upward = any(a.name == "rounding" and a.s == b"half_up" for a in node.attribute)  # a quarter of a unit turns ties upward
    unit = np.exp2(-shift)
    spread = [np.broadcast_to(v.reshape(1, -1, 1, 1), (1, channels, 1, 1)) for v in (factor * unit, (offset + upward / 4) * unit)]
    return ImageQuantizer(np.asarray(table).reshape(PIXELS, channels).T, *(v.astype(np.float32) for v in spread))
