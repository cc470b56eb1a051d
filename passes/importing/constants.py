"""Whatever depends on constants alone is a constant, evaluated once: how weights are stored is no matter to any rewrite.

w = DequantizeLinear(Transpose(q), scale)   ->   w = [numbers]
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from wageubn_onnx.dryrun import ORT_ERRORS, plain_session
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import OPSET
from wageubn_onnx.passes.importing.surgery import Array, at

SMALL = 1024  # elements: no axes, shape or pads, which converters and shape inference must read, are longer
LARGEST = 2**28  # bytes that one computed constant may take: no layer of a ResNet has as much
IN_ALL = 2**30  # bytes that all of them may, at any time
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
COMPUTED = (T.FLOAT, T.DOUBLE, T.FLOAT16, T.BOOL, T.INT8, T.UINT8, T.INT16, T.UINT16, T.INT32, T.UINT32, T.INT64, T.UINT64)
NARROW = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")  # of which numpy has none


def fold(graph: gs.Graph) -> None:
    """Put values in the place of all nodes that read nothing but constants, and its branch in the place of an If on a constant.

    Of bfloat16 and float8 the values are held in float32, which has each of them. What cannot be evaluated, draws random numbers
    or holds graphs of its own stays. Raises WageubnError, naming the node, where values would take more memory than weights do.
    """
    held, before = dict[int, int](), None  # the bytes of every computed constant that something still reads, by its id
    while before != (before := {id(node) for node in graph.nodes}):
        # gs, of which only this is asked: Constant nodes become constants, and an If whose condition is one its branch
        graph.fold_constants(fold_shapes=False, should_exclude_node=lambda node: True)
        for node in graph.cleanup().toposort().nodes:
            if not _is_constant(node):
                continue
            results = _evaluate(node, sum(held.values()))
            for position, result in results.items():
                held[id(node.outputs[position])] = result.nbytes
                node.outputs[position].to_constant(result)
            if results:
                operands = list(node.inputs)
                node.inputs.clear()
                node.outputs.clear()
                for operand in operands:
                    if not operand.outputs:
                        held.pop(id(operand), None)
        graph.cleanup()


def _is_constant(node: gs.Node) -> bool:
    operands = [i for i in node.inputs if not i.is_empty()]
    inner = any(isinstance(value, gs.Graph) for value in node.attrs.values())
    return all(isinstance(i, gs.Constant) for i in operands) and node.op not in RANDOM and not inner and bool(node.outputs)


def _evaluate(node: gs.Node, held: int) -> dict[int, Array]:
    """The results of ``node`` by position; {} where they cannot be had."""
    one, values = _alone(node)
    sizes = _sizes(one, values)
    if not sizes:
        return {}
    if max(sizes) > LARGEST or held + sum(sizes) > IN_ALL:
        raise WageubnError(
            f"{at(node)}: {node.op} makes a constant of {max(sizes):,} bytes, more than weights have; correct the sizes that it "
            "reads"
        )
    try:
        results = plain_session(one).run(None, values)
    except ORT_ERRORS:
        return {}
    return dict(zip([i for i, o in enumerate(node.outputs) if not o.is_empty()], results, strict=True))


def _alone(node: gs.Node) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of ``node`` alone, its operands the inputs, and their values."""
    given = {i: operand.values for i, operand in enumerate(node.inputs) if not operand.is_empty()}
    values = {f"x{i}": value.astype(np.float32) if value.dtype.name in NARROW else value for i, value in given.items()}
    operands = [gs.Variable.empty() for _ in node.inputs]
    for i, value in given.items():
        operands[i] = gs.Variable(f"x{i}", values[f"x{i}"].dtype, value.shape)
    results = [gs.Variable.empty() if o.is_empty() else gs.Variable(f"y{i}") for i, o in enumerate(node.outputs)]
    copy = gs.Node(node.op, "node", node.attrs, operands, results)
    inputs, outputs = ([t for t in tensors if not t.is_empty()] for tensors in (operands, results))
    return gs.export_onnx(gs.Graph([copy], inputs, outputs, opset=OPSET), do_type_check=False), values


def _sizes(one: onnx.ModelProto, values: dict[str, Array]) -> list[int] | None:
    """The bytes of every result, known before anything is computed; None where they cannot be known, or no array can hold it."""
    (node,) = one.graph.node
    types = {i.name: i.type for i in one.graph.input}
    small = {name: numpy_helper.from_array(value, name) for name, value in values.items() if value.size <= SMALL}
    try:
        schema = onnx.defs.get_schema(node.op_type, OPSET)
        found = onnx.shape_inference.infer_node_outputs(schema, node, types, small, opset_imports=list(one.opset_import))
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError):
        return None
    sizes = []
    for tensor in (found.get(name, onnx.TypeProto()).tensor_type for name in node.output if name):
        known = tensor.elem_type in COMPUTED and tensor.HasField("shape")
        if not known or any(not d.HasField("dim_value") or d.dim_value < 0 for d in tensor.shape.dim):
            return None
        count = math.prod(d.dim_value for d in tensor.shape.dim)
        sizes.append(count * helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)
    return sizes


def dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The tensor that ``sparse`` stands for: zeros but at its indices.

    Raises WageubnError, naming it, where its indices do not fit its shape, or its shape is larger than any weights.
    """
    stored, indices, shape = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices), tuple(sparse.dims)
    where = f"sparse tensor {sparse.values.name!r} {list(shape)}"
    if min(shape, default=0) < 1 or math.prod(shape) * stored.itemsize > LARGEST:
        raise WageubnError(f"{where}: its shape is no weight's; correct the export")
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        places: tuple[Array, ...] = tuple(indices.T)
    else:
        places = (indices.reshape(-1),)
    limits = shape if len(places) > 1 or len(shape) == 1 else (math.prod(shape),)
    fits = all(len(p) == stored.size and (p >= 0).all() and (p < limit).all() for p, limit in zip(places, limits, strict=True))
    if stored.ndim != 1 or not fits:
        raise WageubnError(f"{where}: its {stored.size} values and indices {list(indices.shape)} do not fit; correct the export")
    whole = np.zeros(shape, stored.dtype)
    if len(places) == len(shape):
        whole[places] = stored
    else:
        whole.reshape(-1)[places] = stored
    return numpy_helper.from_array(whole, sparse.values.name)
