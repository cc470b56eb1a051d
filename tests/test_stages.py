"""Every stage of the tiny network keeps its contract, and a breach is refused by the name of the node or tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from networks import ort_session
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.composites import kind_of
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, IR_VERSION, OPSET, node_tag
from wageubn_onnx.pipeline import STAGES
from wageubn_onnx.stages import CONTRACTS, INTEGERS, check_stage, tensor_dtypes

NAMES = [stage.name for stage in STAGES]


def copied(artifacts: Artifacts, stage: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(artifacts.files[stage])
    return copy


def test_every_stage_has_a_contract(tiny_artifacts: Artifacts) -> None:
    assert list(CONTRACTS) == NAMES == list(tiny_artifacts.files)


@pytest.mark.parametrize("stage", NAMES)
def test_a_stage_keeps_its_contract(stage: str, tiny_artifacts: Artifacts) -> None:
    model = tiny_artifacts.files[stage]
    check_stage(model, stage)
    assert model.ir_version == IR_VERSION
    assert {(o.domain, o.version) for o in model.opset_import} <= {("", OPSET), (DOMAIN, 1)}
    composites = {bool(kind_of(function.name)) for function in model.functions}
    assert (False in composites) == CONTRACTS[stage].quantizers
    assert CONTRACTS[stage].composites or True not in composites
    assert {p.key: p.value for p in model.metadata_props}["wageubn.stage"] == stage


@pytest.mark.parametrize("stage", NAMES)
def test_a_stage_loads_in_onnxruntime(stage: str, tiny_artifacts: Artifacts) -> None:
    session = ort_session(tiny_artifacts.files[stage], optimize=False)
    assert [o.name for o in session.get_outputs()] == [o.name for o in tiny_artifacts.files[stage].graph.output]


@pytest.mark.parametrize("stage", NAMES)
def test_after_inlining_every_tensor_has_a_legal_dtype(stage: str, tiny_artifacts: Artifacts) -> None:
    flat = onnx.inliner.inline_local_functions(tiny_artifacts.files[stage])
    assert not flat.functions
    assert all(not node.domain for node in flat.graph.node)
    flat = onnx.shape_inference.infer_shapes(flat, check_type=True, strict_mode=True)
    dtypes = tensor_dtypes(flat)
    made = {name for node in flat.graph.node for name in node.output if name}
    assert made <= set(dtypes)
    assert {dtypes[name] for name in made} <= CONTRACTS[stage].dtypes


@pytest.mark.parametrize("stage", NAMES)
def test_what_a_file_says_of_its_tensors_is_what_onnx_infers(stage: str, tiny_artifacts: Artifacts) -> None:
    """Names, dtypes and shapes of every node's outputs, with the value_info left out and inferred again."""
    model = tiny_artifacts.files[stage]
    said = {v.name: v.type.tensor_type for v in (*model.graph.value_info, *model.graph.output)}
    assert {name for node in model.graph.node for name in node.output if name} <= set(said)
    bare = copied(tiny_artifacts, stage)
    del bare.graph.value_info[:]
    flat = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(bare), strict_mode=True, data_prop=True)
    compared = 0
    for value in flat.graph.value_info:
        if value.name in said:
            found, expected = value.type.tensor_type, said[value.name]
            assert found.elem_type == expected.elem_type, value.name
            sizes = [(a.dim_value, b.dim_value) for a, b in zip(found.shape.dim, expected.shape.dim, strict=True)]
            assert all(a == b for a, b in sizes if a and b), value.name
            compared += 1
    assert compared > len(model.graph.node) / 2


@pytest.mark.parametrize("stage", NAMES)
def test_every_node_is_named_and_says_who_made_it(stage: str, tiny_artifacts: Artifacts) -> None:
    nodes = tiny_artifacts.files[stage].graph.node
    assert len({node.name for node in nodes}) == len(nodes)
    assert all(node.name and node_tag(node).made_by for node in nodes if not node.output[0].endswith((".next", "logits")))


def test_parameters_keep_their_names_through_all_stages(tiny_artifacts: Artifacts) -> None:
    weights = {t.name for t in tiny_artifacts.files["forward"].graph.initializer}
    for stage in NAMES[1:]:
        inputs = {i.name for i in tiny_artifacts.files[stage].graph.input}
        assert weights <= inputs, stage


# -- breaches -------------------------------------------------------------------------------------------------------------


def refused(model: onnx.ModelProto, stage: str, *words: str) -> None:
    with pytest.raises(WageubnError) as caught:
        check_stage(model, stage)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{stage}: ")
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("stage", "op"),
    [("forward", "Sigmoid"), ("fp_training", "Softmax"), ("quant_training", "BatchNormalization"),
     ("int_training", "Conv"), ("int_training", "QLinearConv"), ("int_eval", "BitShift")],
)  # fmt: skip
def test_an_illegal_operator_is_refused_by_name(stage: str, op: str, tiny_artifacts: Artifacts) -> None:
    model = copied(tiny_artifacts, stage)
    model.graph.node.append(helper.make_node(op, [model.graph.input[0].name], ["odd"], "planted"))
    refused(model, stage, "'planted'", op)


@pytest.mark.parametrize("stage", ["forward", "fp_training"])
def test_a_quantizer_before_its_stage_is_refused_by_name(stage: str, tiny_artifacts: Artifacts) -> None:
    model = copied(tiny_artifacts, stage)
    model.graph.node.append(helper.make_node("DirectQuantize", ["images"], ["odd"], "planted", domain=DOMAIN))
    refused(model, stage, "'planted'", "DirectQuantize", "no quantizer belongs")


@pytest.mark.parametrize(
    ("stage", "dtype", "name"),
    [("forward", np.int32, "INT32"), ("fp_training", np.float64, "DOUBLE"), ("fp_training", np.float16, "FLOAT16"),
     ("quant_training", np.int8, "INT8"), ("int_training", np.float32, "FLOAT"), ("int_eval", np.float64, "DOUBLE")],
)  # fmt: skip
def test_an_illegal_dtype_is_refused_by_name(stage: str, dtype: Any, name: str, tiny_artifacts: Artifacts) -> None:
    model = copied(tiny_artifacts, stage)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, dtype), "odd"))
    refused(model, stage, "'odd'", name)


def test_a_cast_to_float_in_an_integer_stage_is_refused(tiny_artifacts: Artifacts) -> None:
    model = copied(tiny_artifacts, "int_training")
    model.graph.node.append(helper.make_node("Cast", ["labels"], ["odd"], "planted", to=T.FLOAT))
    model.graph.output.append(helper.make_tensor_value_info("odd", T.FLOAT, [4]))
    refused(model, "int_training", "odd")


def test_what_is_not_valid_onnx_is_refused(tiny_artifacts: Artifacts) -> None:
    model = copied(tiny_artifacts, "int_training")
    model.graph.node[5].input[0] = "nowhere"
    refused(model, "int_training", "not valid ONNX", "nowhere")


def test_wrong_shapes_are_refused(tiny_artifacts: Artifacts) -> None:
    model = copied(tiny_artifacts, "fp_training")
    (images,) = (i for i in model.graph.input if i.name == "images")
    images.type.tensor_type.shape.dim[1].dim_value = 7
    refused(model, "fp_training", "not valid ONNX")


def test_integers_are_integers() -> None:
    assert {T.DataType.Name(t) for t in INTEGERS} == {
        f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)
    }  # fmt: skip
