"""Arithmetic in narrow integers, which no canonical step has: it becomes arithmetic that onnxruntime 1.17 has, too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx.reference import ReferenceEvaluator

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.passes.targets.portable import portable

WIDE = {T.INT8: T.INT32, T.INT16: T.INT32, T.UINT8: T.INT32, T.UINT16: T.INT32, T.UINT32: T.INT64}
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min")
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


def model(nodes: list[onnx.NodeProto], dtypes: dict[str, int], output: int) -> onnx.ModelProto:
    """Of tensors [1, 1, 2, 2]."""
    inputs = [h.make_tensor_value_info(name, dtype, [1, 1, 2, 2]) for name, dtype in dtypes.items()]
    graph = h.make_graph(nodes, "g", inputs, [h.make_tensor_value_info("y", output, None)])
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


def typed(made: onnx.ModelProto) -> dict[str, int]:
    made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
    return {v.name: v.type.tensor_type.elem_type for v in (*made.graph.input, *made.graph.output, *made.graph.value_info)}


def same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    random = np.random.default_rng(0)
    for _ in range(3):
        feeds = {
            i.name: random.integers(3, 11, (1, 1, 2, 2)).astype(h.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type))
            for i in before.graph.input
        }
        feeds |= {"b": np.array([2, 3, 1, 2]).reshape(1, 1, 2, 2).astype(feeds["b"].dtype)} if "b" in feeds else {}
        (expected,), (found,) = (ReferenceEvaluator(m).run(None, feeds) for m in (before, after))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("kind", [*ARITHMETIC, *COMPARISONS])
def test_what_is_narrow_is_computed_wide(kind: str, dtype: int) -> None:
    """And stored as it was; `old` releases have Max and Min of uint32."""
    node = h.make_node(kind, ["a", "b"], ["y"], "node")
    node.metadata_props.add(key="wageubn.layer", value="fc")
    before = model([node], {"a": dtype, "b": dtype}, T.BOOL if kind in COMPARISONS else dtype)
    after = portable(before)
    old = (kind, dtype) in [("Max", T.UINT32), ("Min", T.UINT32)]
    (made,) = (n for n in after.graph.node if n.op_type == kind)
    assert [typed(after)[name] for name in made.input] == [dtype if old else WIDE[dtype]] * 2
    assert [n.op_type for n in after.graph.node] == [kind] if old else ["Cast", "Cast", kind] + ["Cast"] * (kind in ARITHMETIC)
    assert all(n.metadata_props == node.metadata_props for n in after.graph.node)
    same(before, after)


@pytest.mark.parametrize("dtype", [T.INT32, T.INT64])
def test_what_is_wide_stays(dtype: int) -> None:
    before = model([h.make_node("Add", ["a", "b"], ["y"])], {"a": dtype, "b": dtype}, dtype)
    assert portable(before) == before


@pytest.mark.parametrize(("dtype", "widened"), [(T.UINT8, False), (T.INT16, True), (T.INT8, True)])
def test_choices(dtype: int, widened: bool) -> None:
    """The condition keeps its dtype."""
    nodes = [h.make_node("Greater", ["c", "d"], ["m"]), h.make_node("Where", ["m", "a", "b"], ["y"])]
    before = model(nodes, {"a": dtype, "b": dtype, "c": T.INT32, "d": T.INT32}, dtype)
    after = portable(before)
    assert (len(after.graph.node) > 2) == widened
    same(before, after)


@pytest.mark.parametrize(("dtype", "widened"), [(T.INT16, True), (T.INT8, False), (T.UINT8, False)])
def test_pads(dtype: int, widened: bool) -> None:
    """1.17 has no Pad of int16; it has that of 8 bits."""
    before = model([h.make_node("Pad", ["a", "pads"], ["y"])], {"a": dtype}, dtype)
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 0, 1, 0, 0, 0, 0, 2]), "pads"))
    after = portable(before)
    assert [n.op_type for n in after.graph.node] == ["Cast", "Pad", "Cast"] if widened else ["Pad"]
    same(before, after)


@pytest.mark.parametrize(
    ("kind", "dtypes"),
    [
        ("ConvInteger", (T.UINT8, T.UINT8)),
        ("MatMulInteger", (T.UINT8, T.UINT8)),
        ("MatMulInteger", (T.UINT8, T.INT8)),
        ("ConvInteger", (T.UINT8, T.INT8)),
        ("ConvInteger", (T.INT8, T.UINT8)),
        ("MatMulInteger", (T.INT8, T.INT8)),
        ("MatMulInteger", (T.INT8, T.UINT8)),
    ],
)
def test_products(kind: str, dtypes: tuple[int, int]) -> None:
    node = h.make_node(kind, ["a", "b", "zero_a", "zero_b"], ["y"], "product")
    before = model([node], dict(zip(node.input[:2], dtypes, strict=True)), T.INT32)
    for name, dtype in zip(node.input[2:], dtypes, strict=True):
        before.graph.initializer.append(h.make_tensor(name, dtype, [], [1]))
    if dtypes == (T.UINT8, T.UINT8) or (kind, dtypes[0]) == ("MatMulInteger", T.UINT8):
        assert portable(before) == before
        return
    said = " by ".join(T.DataType.Name(dtype) for dtype in dtypes)
    with pytest.raises(WageubnError, match=f"node 'product': onnxruntime 1.17 has no {kind} of {said}; leave out --portable"):
        portable(before)
