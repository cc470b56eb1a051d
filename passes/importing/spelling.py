"""One spelling of each idea: a table of rewrites over the source graph, each with the algebra that it relies on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from wageubn_onnx.errors import WageubnError

Rewrite = Callable[[gs.Graph, gs.Node], bool]


def respell(model: onnx.ModelProto, batch: int) -> gs.Graph:
    """The source graph with a fixed batch, its constants folded, in the spelling of the `forward` stage.

    Raises WageubnError where the network's input is not one float image tensor [N, C, H, W] of known size.
    """
    graph = gs.import_onnx(model)
    _fix_input(graph, batch)
    graph.fold_constants(error_ok=False, size_threshold=None).cleanup().toposort()
    proto = onnx.shape_inference.infer_shapes(gs.export_onnx(graph), data_prop=True)
    graph = gs.import_onnx(proto)
    while sum(rewrite(graph, node) for node in list(graph.nodes) for rewrite in REWRITES.get(node.op, ())):
        graph.cleanup()
    return graph.cleanup().toposort()


def _fix_input(graph: gs.Graph, batch: int) -> None:
    initializers = {name for name, t in graph.tensors().items() if isinstance(t, gs.Constant)}
    graph.inputs = [i for i in graph.inputs if i.name not in initializers and isinstance(i, gs.Variable)]
    if len(graph.inputs) != 1:
        names = [repr(i.name) for i in graph.inputs]
        shown = ", ".join([*names[:4], "..."] if len(names) > 4 else names) or "none"
        raise WageubnError(f"the network must have one input, the image; it has {len(names)} ({shown}); give an inference model")
    image = graph.inputs[0]
    shape = list(image.shape or [])
    if len(shape) != 4 or image.dtype != np.float32 or not all(isinstance(d, int) and d > 0 for d in shape[1:]):
        raise WageubnError(
            f"input {image.name!r} is {np.dtype(image.dtype).name} {shape}; it must be float32 [N, C, H, W] with C, H and W known"
        )
    if isinstance(shape[0], int) and shape[0] != batch:
        for tensor in graph.tensors().values():  # shapes inferred for another batch would mislead
            if isinstance(tensor, gs.Variable) and tensor not in graph.inputs:
                tensor.shape = None
    image.shape = [batch, *shape[1:]]


def _bypass(graph: gs.Graph, node: gs.Node) -> bool:
    """x -> f(x) = x: the readers of ``node`` read its input."""
    source, result = node.inputs[0], node.outputs[0]
    for user in list(result.outputs):
        user.inputs = [source if i is result else i for i in user.inputs]
    graph.outputs = [source if o is result else o for o in graph.outputs]
    node.outputs.clear()
    return True


def _to_flatten(graph: gs.Graph, node: gs.Node) -> bool:
    """Reshape, Squeeze or Flatten to [N, everything else] is Flatten(axis=1)."""
    x, y = node.inputs[0], node.outputs[0]
    if x.shape is None or y.shape is None or len(y.shape) != 2 or y.shape[0] != x.shape[0]:
        return False
    if len(x.shape) == 2:
        return _bypass(graph, node)
    if node.op == "Flatten" and node.attrs.get("axis", 1) == 1:
        return False
    node.op, node.attrs, node.inputs = "Flatten", {"axis": 1}, [x]
    return True


def _matmul_to_gemm(graph: gs.Graph, node: gs.Node) -> bool:
    """x @ W + b = Gemm(x, W, b)."""
    x, w = node.inputs
    if not isinstance(w, gs.Constant) or w.values.ndim != 2:
        return False
    node.op, node.attrs = "Gemm", {}
    users = node.outputs[0].outputs
    if len(users) == 1 and users[0].op == "Add":
        other = [i for i in users[0].inputs if i is not node.outputs[0]]
        if len(other) == 1 and isinstance(other[0], gs.Constant) and other[0].values.size == w.values.shape[1]:
            add, bias = users[0], other[0]
            bias.values = bias.values.reshape(-1)
            node.inputs = [x, w, bias]
            node.outputs = list(add.outputs)
            add.outputs.clear()
    return True


def _gemm_trans_b(graph: gs.Graph, node: gs.Node) -> bool:
    """A W = A (W^T)^T: the weight is kept as [out, in]."""
    if node.attrs.get("transB", 0) == 1 or not isinstance(node.inputs[1], gs.Constant):
        return False
    node.attrs["transB"] = 1
    weight = node.inputs[1]
    weight.values = np.ascontiguousarray(weight.values.T)
    return True


def _global_pool(graph: gs.Graph, node: gs.Node) -> bool:
    """An average over the whole map is the global average."""
    x = node.inputs[0]
    if node.op == "ReduceMean":
        axes = (
            node.attrs.get("axes") or [int(a) for a in node.inputs[1].values] if len(node.inputs) > 1 else node.attrs.get("axes")
        )
        if x.shape is None or len(x.shape) != 4 or axes is None or sorted(a % 4 for a in axes) != [2, 3]:
            return False
        if not node.attrs.get("keepdims", 1):
            pooled = gs.Variable(node.outputs[0].name + "/pooled", x.dtype, [*x.shape[:2], 1, 1])
            graph.nodes.append(gs.Node("Flatten", node.name + "/flatten", {"axis": 1}, [pooled], list(node.outputs)))
            node.outputs = [pooled]
        node.op, node.attrs, node.inputs = "GlobalAveragePool", {}, [x]
        return True
    if x.shape is None or list(node.attrs["kernel_shape"]) != list(x.shape[2:]) or any(node.attrs.get("pads", [0])):
        return False
    node.op, node.attrs = "GlobalAveragePool", {}
    return True


def _trailing_softmax(graph: gs.Graph, node: gs.Node) -> bool:
    """The loss applies softmax itself, and argmax does not see it."""
    return node.outputs[0] in graph.outputs and _bypass(graph, node)


REWRITES: dict[str, tuple[Rewrite, ...]] = {
    "Identity": (_bypass,),
    "Dropout": (_bypass,),
    "Reshape": (_to_flatten,),
    "Squeeze": (_to_flatten,),
    "Flatten": (_to_flatten,),
    "MatMul": (_matmul_to_gemm,),
    "Gemm": (_gemm_trans_b,),
    "AveragePool": (_global_pool,),
    "ReduceMean": (_global_pool,),
    "Softmax": (_trailing_softmax,),
}
