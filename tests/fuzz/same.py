"""Whether `forward.onnx` computes what its source does, to a tolerance that follows from float32."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

Array = np.ndarray[Any, Any]
IMAGES = 3  # where the source takes any number
MANY = 64  # images of a source that takes no other number
ROUNDINGS = 2.0**-19  # relative: as many as a sum of 32 terms makes, in every weight and pixel
DRAWS = 3
SAFETY = 8.0  # over the greatest answer of a few draws
DIFFERENT = 9  # exit code


def compare(source: Path, forward: Path) -> None:
    """Print the answer; exit with `DIFFERENT` where the numbers are others.

    Rounding errors of a network are as those of its data: the source itself, its weights and images off by `ROUNDINGS`, says how
    far two right answers may lie apart.
    """
    ours, theirs = onnx.load(forward), _in_inference(onnx.load(source))
    inputs = [i for i in theirs.graph.input if i.name not in {t.name for t in theirs.graph.initializer}]
    if len(inputs) != 1:
        return print("not compared: the source has several inputs")
    shape = [d.dim_value for d in ours.graph.input[0].type.tensor_type.shape.dim][1:]
    declared = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    if declared[0] > MANY:
        return print("not compared: the source takes too many images at once")
    draw = np.random.default_rng(0)
    x = draw.normal(size=(declared[0] or IMAGES, *shape)).astype(np.float32)
    turned = [d or n for d, n in zip(declared[1:], shape, strict=True)] != shape
    found = _run(ours, {"images": x})[0]
    try:
        expected = _run(theirs, {inputs[0].name: _laid_out(x, turned)})
        again = [_run(_disturbed(theirs, draw), {inputs[0].name: _laid_out(_noisy(x, draw), turned)}) for _ in range(DRAWS)]
    except Exception as error:  # noqa: BLE001 (onnxruntime's own refusals have many types)
        return print(f"not compared: onnxruntime refuses the source ({' '.join(str(error).split())[:100]})")
    if not all(np.isfinite(value).all() for run in (expected, *again) for value in run if value.dtype.kind == "f"):
        return print("not compared: the source is not finite")
    gaps = []
    for i, value in enumerate(expected):
        spread = max(float(abs(run[i].astype(np.float64) - value).max(initial=0)) for run in again)
        gap = _gap(found, value)
        if gap is not None and gap <= SAFETY * spread + 1e-6 * float(abs(value).max(initial=0)) + 1e-30:
            return print(f"same: {gap:.3g} apart, {spread:.3g} by rounding")
        gaps.append(f"{'other shapes' if gap is None else f'{gap:.3g}'} apart, {spread:.3g} by rounding")
    print(f"different: {'; '.join(gaps)}")
    sys.exit(DIFFERENT)


def _gap(logits: Array, value: Array) -> float | None:
    """The source's output from the logits, or from what ends a network for a reader, at least; None: no shape fits."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(1, keepdims=True))
    likely = powers / powers.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        ends = [wide, likely, np.log(likely)]
    if value.dtype.kind in "iu" and value.size == len(logits):
        ends.append(np.take_along_axis(wide, value.reshape(-1, 1).astype(np.int64) % wide.shape[1], 1))
        return float((wide.max(1, keepdims=True) - ends[-1]).max())
    gaps = [float(abs(end - value.reshape(end.shape)).max(initial=0)) for end in ends if value.size == end.size]
    return min((gap for gap in gaps if not np.isnan(gap)), default=None)


def _laid_out(x: Array, turned: bool) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if turned else x


def _in_inference(model: onnx.ModelProto) -> onnx.ModelProto:
    """BatchNormalization and Dropout compute what `convert` takes them for."""
    for node in model.graph.node:
        if node.op_type in ("BatchNormalization", "Dropout"):
            del node.output[1:]
            kept = [a for a in node.attribute if a.name not in ("training_mode", "is_test")]
            del node.attribute[:]
            node.attribute.extend(kept)
            if node.op_type == "Dropout":
                del node.input[1:]
    return model


def _disturbed(model: onnx.ModelProto, draw: np.random.Generator) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(_noisy(numpy_helper.to_array(tensor), draw), tensor.name))
    return made


def _noisy(value: Array, draw: np.random.Generator) -> Array:
    with np.errstate(all="ignore"):
        return (value * (1 + ROUNDINGS * draw.choice([-1, 1], value.shape))).astype(np.float32)


def _run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]
