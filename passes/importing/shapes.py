"""Fixed shapes and folded constants: what exporters compute from shapes is numbers before any rewrite looks."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto as T

from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.passes.importing.constants import NARROW, SMALL, fold
from wageubn_onnx.passes.importing.contradictions import refuse_contradictions
from wageubn_onnx.passes.importing.read import Source
from wageubn_onnx.passes.importing.surgery import Array, Rewrite, at, bypass, note_sources, redirect, rewrite_all

ANY_BATCH = 7  # images, where the source takes any number: shapes are worked out with one, and `forward` takes any again
COLOURS = (1, 3)  # channels by which an image's layout is known


def folded(source: Source, config: Config) -> gs.Graph:
    """The source with every shape known and every constant folded, one input and its weights as constants.

    Raises WageubnError where its input is not one float image tensor of known size, or operands do not fit their operators.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    _fix_image(model.graph, source, config)
    weights = dict(source.weights)
    graph = _folded(_inferred(model, data_prop=False))  # onnx would list every element of a constant that claims gigabytes
    for _ in range(2):  # what is folded gives shapes that data_prop alone does not
        light = gs.export_onnx(_detached(graph, weights))
        graph = _folded(_inferred(light, data_prop=True))
    misfit = _misfit(light)
    note_sources(graph)
    tensors = graph.tensors()
    for name, value in weights.items():
        if name in tensors:
            tensors[name].to_constant(value)
    graph.inputs = [i for i in graph.inputs if isinstance(i, gs.Variable)]
    _folded(graph)
    _refuse_other_precision(graph)
    refuse_contradictions(graph)
    if misfit:
        raise WageubnError(misfit)
    return graph


def _folded(graph: gs.Graph) -> gs.Graph:
    """Replace what follows from constants alone by its value."""
    rewrite_all(graph, TRIVIA)
    fold(graph)
    return graph.cleanup().toposort()


def _detached(graph: gs.Graph, weights: dict[str, Array]) -> gs.Graph:
    """Large constants that were computed become inputs, and their values ``weights``, as large initializers are already."""
    for name, tensor in graph.tensors().items():
        if isinstance(tensor, gs.Constant) and tensor.values.size > SMALL and tensor.values.dtype.name not in NARROW:
            weights[name] = tensor.values
            graph.inputs.append(tensor.to_variable(weights[name].dtype, weights[name].shape))
    return graph


def _refuse_other_precision(graph: gs.Graph) -> None:
    """Weights may be stored in any precision; what is computed from the image is in float32."""
    for node in graph.nodes:
        for result in node.outputs:
            if result.dtype in OTHER_PRECISIONS:
                raise WageubnError(
                    f"{at(node)}: {node.op} makes {OTHER_PRECISIONS[result.dtype]}, and a network is read in float32 alone; "
                    "export it so (PyTorch: model.float(), without torch.autocast)"
                )


# Of a tensor; gs has a NumPy type, or ONNX's number where there is none
OTHER_PRECISIONS = {np.dtype(np.float16): "float16", np.dtype(np.float64): "float64", int(T.BFLOAT16): "bfloat16"}


def _inferred(model: onnx.ModelProto, data_prop: bool) -> gs.Graph:
    try:
        return gs.import_onnx(onnx.shape_inference.infer_shapes(model, data_prop=data_prop))
    except onnx.shape_inference.InferenceError as error:
        raise WageubnError(f"its shapes do not fit together ({' '.join(str(error).split())[:200]})") from None


def _misfit(model: onnx.ModelProto) -> str:
    """What onnx says of the first node whose operands do not fit its operator, where one does not; inference passes that over."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        text = re.sub(r"\[ShapeInferenceError\] *", "", " ".join(str(error).split()))
        found = re.search(r"\(op_type:([^,]*), node name: (.*?)\):? *(.*)", text)
        where, reason = (f"node {found[2]!r}: the operands of {found[1]}", found[3]) if found else ("its shapes", text)
        return f"{where} do not fit ({reason[:200]}); correct the export"
    return ""


def _as_it_is(graph: gs.Graph, node: gs.Node) -> bool:
    """A Cast to the type, or an Expand to the shape, that its input has."""
    x, y = node.inputs[0], node.outputs[0]
    known = x.dtype is not None and x.shape is not None and y.shape is not None
    return bool(known and x.dtype == y.dtype and list(x.shape) == list(y.shape)) and bypass(graph, node)


def _as_cast(graph: gs.Graph, node: gs.Node) -> bool:
    """CastLike(a, b) is a Cast to b's type."""
    like = node.inputs[1].dtype
    if like is None:
        return False
    node.op, node.attrs = "Cast", {"to": onnx.helper.np_dtype_to_tensor_dtype(np.dtype(like))}
    node.inputs = node.inputs[:1]
    return True


def _known_shape(graph: gs.Graph, node: gs.Node) -> bool:
    """Shape, of all axes or from ``start`` to ``end``, is a constant."""
    shape = node.inputs[0].shape
    if shape is None or not all(isinstance(d, int) for d in shape):
        return False
    part = np.asarray(shape[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))], np.int64)
    redirect(graph, node.outputs[0], gs.Constant(f"{node.outputs[0].name}.shape", part))
    node.outputs.clear()
    return True


TRIVIA: dict[str, tuple[Rewrite, ...]] = {
    "Shape": (_known_shape,),
    "CastLike": (_as_cast,),
    **dict.fromkeys(["Identity", "Dropout"], (bypass,)),
    **dict.fromkeys(["Cast", "Expand"], (_as_it_is,)),
}


def _fix_image(graph: onnx.GraphProto, source: Source, config: Config) -> None:
    """Give the image its size and forget every other shape, which follows."""
    constants = {t.name for t in graph.initializer} | set(source.weights)
    images = [i for i in graph.input if i.name not in constants]
    if len(images) != 1:
        names = [repr(i.name) for i in images]
        shown = ", ".join([*names[:4], "..."] if len(names) > 4 else names) or "none"
        raise WageubnError(f"the network must have one input, the image; it has {len(names)} ({shown}); give an inference model")
    image = images[0]
    tensor = image.type.tensor_type
    shape: list[int | str | None] = [d.dim_value or d.dim_param or None for d in tensor.shape.dim]
    if len(shape) != 4 or tensor.elem_type != T.FLOAT:
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name if tensor.elem_type else "no tensor"
        half = "; export the network in float32 (PyTorch: model.float())" if kind in OTHER_PRECISIONS.values() else ""
        raise WageubnError(f"input {image.name!r} is {kind} {shape}; it must be float32 [N, C, H, W] or [N, H, W, C]{half}")
    rows = 1 if is_nhwc(shape, config.layout) else 2
    if config.image_size:
        shape[rows : rows + 2] = config.image_size
    colours = 3 if rows == 1 else 1
    if not isinstance(shape[colours], int):
        shape[colours] = _input_channels(graph, source, image.name)
    if not all(isinstance(d, int) for d in shape[1:]):
        raise WageubnError(f"input {image.name!r} is float32 {shape}; its size is open: pass --image-size, for example 224")
    batch = shape[0] if isinstance(shape[0], int) else ANY_BATCH
    for dimension, size in zip(tensor.shape.dim, (batch, *shape[1:]), strict=True):
        dimension.dim_value = size
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")


def _input_channels(graph: onnx.GraphProto, source: Source, image: str) -> int | None:
    """What the convolution that reads the image wants; None where none does."""
    shapes = {t.name: list(t.dims) for t in graph.initializer} | {name: list(w.shape) for name, w in source.weights.items()}
    readers = [n for n in graph.node if n.op_type == "Conv" and n.input[0] == image and n.input[1] in shapes]
    groups = [next((a.i for a in n.attribute if a.name == "group"), 1) for n in readers[:1]]
    return int(shapes[readers[0].input[1]][1] * groups[0]) if readers else None


def is_nhwc(shape: list[int | str | None], layout: str) -> bool:
    """Whether an image of that shape has its channels last; ``layout`` auto: if its last dimension alone counts colours."""
    return layout == "nhwc" or (layout == "auto" and shape[3] in COLOURS and shape[1] not in COLOURS)
