"""Integer kernels that onnxruntime 1.17 has too, on any x86: arithmetic in int32 and int64, narrow integers only stored."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.onnxir.nodes import copied
from wageubn_onnx.onnxir.view import View
from wageubn_onnx.passbase import Pass

T = onnx.TensorProto
WIDER: dict[int, int] = {T.INT8: T.INT32, T.INT16: T.INT32, T.UINT8: T.INT32, T.UINT16: T.INT32, T.UINT32: T.INT64}
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
ELEMENTWISE = ("Abs", "Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Sub", "Where", "ReduceSum", *COMPARISONS)
IN_OLD_RELEASES = frozenset([("Where", T.UINT8), ("Max", T.UINT32), ("Min", T.UINT32)])  # kernels that it has all the same
PRODUCTS = {"ConvInteger": [(T.UINT8, T.UINT8)], "MatMulInteger": [(T.UINT8, T.UINT8), (T.UINT8, T.INT8)]}


def portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same integers, each operator on a dtype for which 1.17 has a kernel; ``model`` is tidy, and stays as it is.

    Nothing overflows in the narrow type, so that the wider one gives the same number. Raises WageubnError, naming the node, for a
    product of dtypes that 1.17 does not multiply.
    """
    result, view = copied(model), View(model.graph)
    graph = result.graph
    nodes = [made for node in graph.node for made in _widened(node, view)]
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _widened(node: onnx.NodeProto, view: View) -> Iterator[onnx.NodeProto]:
    operands = [view.dtype(name) for name in node.input if name]
    if node.op_type in PRODUCTS and tuple(operands[:2]) not in PRODUCTS[node.op_type]:
        names = " by ".join(T.DataType.Name(dtype) for dtype in operands[:2])
        raise WageubnError(f"node {node.name!r}: onnxruntime 1.17 has no {node.op_type} of {names}; leave out --portable")
    narrow = next((dtype for dtype in operands if dtype in WIDER), None)
    old = node.op_type in ELEMENTWISE or (node.op_type, narrow) == ("Pad", T.INT16)
    if narrow is None or not old or (node.op_type, narrow) in IN_OLD_RELEASES:
        yield node
        return
    wide = WIDER[narrow]
    for position, name in enumerate(node.input):
        if name and view.dtype(name) == narrow:
            node.input[position] = f"{node.output[0]}/operand{position}"
            yield _cast(node, name, node.input[position], wide)
    if view.dtype(node.output[0]) != narrow:  # a condition
        yield node
        return
    output = node.output[0]
    node.output[0] = f"{output}/wide"
    yield node
    yield _cast(node, node.output[0], output, narrow)


def _cast(beside: onnx.NodeProto, source: str, target: str, dtype: int) -> onnx.NodeProto:
    """With the provenance of the node that it serves."""
    cast = onnx.helper.make_node("Cast", [source], [target], target, to=dtype)
    cast.metadata_props.extend(beside.metadata_props)
    return cast


PASS = Pass("portable", "arithmetic in int32 and int64, for which onnxruntime 1.17 has kernels", portable)
