"""The audit passes what `convert` writes and finds every planted fault: a float anywhere, a missing quantizer, a wrong kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from networks import BATCH, MEAN, STD
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.cli import cli
from wageubn_onnx.composites import expanded
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, node_tag
from wageubn_onnx.passes.quantize.expect import REQUIRED
from wageubn_onnx.pipeline import convert
from wageubn_onnx.proofs.audit import FORBIDDEN, Report, _check_coverage, audit, audit_model
from wageubn_onnx.stages import INTEGERS

Model = onnx.ModelProto


@pytest.fixture
def step(tiny_artifacts: Artifacts) -> Model:
    """A copy of `int_training`, to be spoilt."""
    copy = Model()
    copy.CopyFrom(tiny_artifacts.files["int_training"])
    return copy


def found(report: Report, kind: str, *words: str) -> bool:
    """Whether a finding of that kind mentions the words."""
    texts = [f"{f.where}: {f.message}" for f in report.findings if f.kind == kind]
    return any(all(word in text for word in words) for text in texts)


def output_of(model: Model, name: str) -> Any:
    return next(o for o in model.graph.output if o.name == name)


@pytest.mark.parametrize("stage", ["int_training", "int_eval"])
def test_what_convert_writes_is_clean(stage: str, tiny_artifacts: Artifacts) -> None:
    report = audit_model(tiny_artifacts.files[stage])
    assert report.ok, report.findings
    assert report.findings == []
    expected = {"int_training": (8, 16, 150), "int_eval": (8, 8, 40)}[stage]  # 7 convolutions and a Gemm
    layers, products, quantizers = (report.coverage[k] for k in ("layers", "products", "quantizers"))
    assert layers >= expected[0] and products >= expected[1] and quantizers >= expected[2]
    assert report.coverage["nodes"] > len(tiny_artifacts.files[stage].graph.node)  # functions were inlined


@pytest.mark.parametrize("stage", ["forward", "fp_training", "quant_training"])
def test_float_stages_fail(stage: str, tiny_artifacts: Artifacts) -> None:
    report = audit_model(tiny_artifacts.files[stage])
    assert not report.ok
    assert found(report, "float", "FLOAT")
    reasons = {
        "forward": ("form", "may override"),
        "fp_training": ("gap", "does not say"),
        "quant_training": ("form", "not this package's"),
    }
    assert found(report, *reasons[stage])


# -- floats ---------------------------------------------------------------------------------------------------------------


def test_a_float_cast_inside_a_function_is_found(step: Model) -> None:
    """There and back again: the function's interface stays integer."""
    (function,) = (f for f in step.functions if f.name == "DirectQuantize")
    last = function.node[-1]
    nodes = [
        helper.make_node("Cast", [last.input[0]], ["as_float"], to=T.FLOAT),
        helper.make_node("Cast", ["as_float"], ["and_back"], to=T.INT32),
    ]
    last.input[0] = "and_back"
    rest = [*function.node][:-1]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (*rest, *nodes, last)]
    del function.node[:]
    function.node.extend(kept)
    report = audit_model(step)
    assert found(report, "float", "function DirectQuantize", "Cast", "FLOAT")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_float_initializer_is_found(dtype: Any, step: Model) -> None:
    step.graph.initializer.append(numpy_helper.from_array(np.zeros(3, dtype), "planted"))
    assert found(audit_model(step), "float", "initializer 'planted'")


@pytest.mark.parametrize(
    "attribute", [{"value_float": 0.5}, {"value_floats": [1.0]}, {"value": helper.make_tensor("t", T.FLOAT, [], [1.0])}]
)
def test_a_float_constant_is_found(attribute: dict[str, Any], step: Model) -> None:
    step.graph.node.append(helper.make_node("Constant", [], ["planted"], "planted", **attribute))
    assert found(audit_model(step), "float", "planted")


def test_a_float_constant_inside_a_function_is_found(step: Model) -> None:
    (function,) = (f for f in step.functions if f.name == "RoundShift")
    function.node.append(helper.make_node("Constant", [], ["planted"], value_float=1.0))
    assert found(audit_model(step), "float", "function RoundShift", "Constant")


def test_a_float_in_a_subgraph_is_found(step: Model) -> None:
    def branch(name: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Cast", ["labels"], [f"{name}.float"], f"{name}.cast", to=T.FLOAT),
            helper.make_node("Cast", [f"{name}.float"], [name], to=T.INT32),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, T.INT32, None)])

    condition = numpy_helper.from_array(np.array(True), "condition")
    step.graph.initializer.append(condition)
    step.graph.node.append(
        helper.make_node("If", ["condition"], ["chosen"], "if", then_branch=branch("then"), else_branch=branch("else"))
    )
    assert found(audit_model(step), "float", "subgraph", "then.cast")


def test_a_float_output_is_found(step: Model) -> None:
    step.graph.node.append(helper.make_node("Cast", ["correct"], ["share"], "cast", to=T.FLOAT))
    step.graph.output.append(helper.make_tensor_value_info("share", T.FLOAT, []))
    report = audit_model(step)
    assert found(report, "float", "output 'share'")
    assert found(report, "float", "node cast")


def test_a_float_input_is_found(step: Model) -> None:
    step.graph.input.append(helper.make_tensor_value_info("temperature", T.FLOAT, []))
    assert found(audit_model(step), "float", "input 'temperature'")


def test_a_boolean_output_is_found(step: Model) -> None:
    """bool serves conditions only."""
    step.graph.node.append(helper.make_node("Greater", ["loss", "correct"], ["any"], "compare"))
    step.graph.output.append(helper.make_tensor_value_info("any", T.BOOL, []))
    assert found(audit_model(step), "dtype", "output 'any'", "BOOL")


def test_float_scales_are_found(step: Model) -> None:
    """DequantizeLinear turns integers into floats by a float scale."""
    step.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "scale"))
    step.graph.node.append(helper.make_node("DequantizeLinear", ["labels", "scale"], ["real"], "dequantize"))
    report = audit_model(step)
    assert found(report, "float", "node dequantize", "DequantizeLinear")
    assert found(report, "float", "initializer 'scale'")


def test_types_that_do_not_fit_are_found(step: Model) -> None:
    step.graph.node.append(helper.make_node("Add", ["images", "labels"], ["mixed"], "mix"))
    assert found(audit_model(step), "dtype", "types do not fit")


# -- kernels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "Max", "Min", "Clip", "Sign"])
def test_an_int64_kernel_that_is_wrong_is_found(op: str, step: Model) -> None:
    step.graph.node.append(helper.make_node("Cast", ["labels"], ["wide"], to=T.INT64))
    step.graph.node.append(helper.make_node(op, ["wide"], ["extreme"], "planted"))
    assert found(audit_model(step), "kernel", "planted", op, "int64")


def test_a_wrong_kernel_inside_a_function_is_found(step: Model) -> None:
    """Whatever it is, it is not the function's own."""
    (function,) = (f for f in step.functions if f.name == "ConstantQuantizeStochastic")
    function.node.append(helper.make_node("ReduceMax", ["m"], ["planted"], keepdims=0))
    assert found(audit_model(step), "form", "function 'ConstantQuantizeStochastic'", "its body")


def test_the_same_kernel_is_fine_in_int32(step: Model) -> None:
    step.graph.node.append(helper.make_node("ReduceMax", ["labels"], ["extreme"], "planted"))
    assert audit_model(step).ok


def test_every_shift_operator_is_forbidden() -> None:
    assert {dtype for op, dtype in FORBIDDEN if op == "BitShift"} == INTEGERS


# -- quantizers -----------------------------------------------------------------------------------------------------------


def quantizer(model: Model, layer: str, role: str) -> onnx.NodeProto:
    return next(n for n in quantizers(model) if (node_tag(n).layer, node_tag(n).role) == (layer, role))


def bypass(model: Model, node: onnx.NodeProto, outputs: int) -> None:
    """The readers of the first ``outputs`` outputs read the quantizer's input, cast to the dtype that they expect."""
    dtypes = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    index = list(model.graph.node).index(node)
    for number, output in enumerate(node.output[:outputs]):
        loose = f"{output}.loose{number}"
        readers = [n for n in model.graph.node if output in n.input]
        for reader in readers:
            for i, name in enumerate(reader.input):
                if name == output:
                    reader.input[i] = loose
        if output in {o.name for o in model.graph.output}:  # a state's next value: the cast takes the name
            node.output[number] = f"{output}.unread"
            loose = output
        model.graph.node.insert(index, helper.make_node("Cast", [node.input[0]], [loose], f"{loose}.cast", to=dtypes[output]))
        index += 1


def quantizers(model: Model) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.domain == DOMAIN and any(a.name == "role" for a in n.attribute)]


def test_every_single_bypassed_quantizer_is_found(step: Model) -> None:
    """Only its mantissas are bypassed: where it also finds an exponent, that is still read. Coverage names layer and role."""
    tried = set()
    for name in [node.name for node in quantizers(step)]:
        spoilt = Model()
        spoilt.CopyFrom(step)
        (node,) = (n for n in spoilt.graph.node if n.name == name)
        bypass(spoilt, node, 2 if node.op_type == "FlagQuantize" else 1)
        report = Report()
        _check_coverage(spoilt, report)
        tag = node_tag(node)
        assert found(report, "gap", repr(tag.layer), f"role {tag.role}"), name
        assert len(report.findings) == 1
        tried.add(tag.role)
    assert tried == REQUIRED | {"Z", "BN.ratio"}  # where no BN has a grid a channel


@pytest.mark.parametrize(
    ("layer", "role"),
    [
        ("stem", "W"), ("stem", "C"), ("input", "I"), ("a1", "E2"), ("maxpool", "E1"), ("stem_bn", "BN.mu"), ("a2_bn", "BN.K"),
        ("a2", "G.W"), ("b1", "M.W"), ("stem", "U.W"), ("optimizer", "lr"), ("loss", "S.p"),
    ],
)  # fmt: skip
def test_a_bypassed_quantizer_is_a_gap(layer: str, role: str, step: Model) -> None:
    """In the whole audit, of a model that onnx's checker still takes."""
    node = quantizer(step, layer, role)
    bypass(step, node, 2 if node.op_type == "FlagQuantize" else 1)
    onnx.checker.check_model(step)
    assert found(audit_model(step), "gap", repr(layer), f"role {role}")


def test_a_removed_quantizer_of_inference_is_a_gap(tiny_artifacts: Artifacts) -> None:
    model = Model()
    model.CopyFrom(tiny_artifacts.files["int_eval"])
    bypass(model, quantizer(model, "a1", "C"), 1)
    assert found(audit_model(model), "gap", "'a1'", "role C")


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_a_product_of_an_unquantized_operand_is_found(op: str, position: int, step: Model) -> None:
    """A cast of something that no quantizer made reaches it, through operators that only move elements."""
    (index, product) = next((i, n) for i, n in enumerate(step.graph.node) if n.op_type == op)
    raw = product.input[position]
    step.graph.node.insert(index, helper.make_node("Sub", [raw, raw], ["loose"], "planted"))
    step.graph.node.insert(index + 1, helper.make_node("Identity", ["loose"], ["moved"]))
    product.input[position] = "moved"
    report = audit_model(step)
    assert found(report, "operand", product.name, "'loose'")


def test_an_image_that_skips_its_quantizer_is_found(step: Model) -> None:
    node = quantizer(step, "input", "I")
    bypass(step, node, 1)
    assert found(audit_model(step), "operand", "'images'")


# -- constants of frozen layers -------------------------------------------------------------------------------------------


@pytest.fixture
def frozen(tiny_file: Path) -> Model:
    """A step in which all but the last three layers with weights are frozen; to be spoilt."""
    config = Config(batch=BATCH, mean=MEAN, std=STD, train_last=3)
    return convert(tiny_file, config).files["int_training"]


def declared(model: Model) -> tuple[Any, dict[str, list[list[str]]]]:
    """The metadata entry that lists the quantized constants, and the list."""
    entry = next(p for p in model.metadata_props if p.key == "wageubn.constants")
    return entry, json.loads(entry.value)


def test_a_frozen_weight_is_a_declared_constant(frozen: Model) -> None:
    _, constants = declared(frozen)
    weights = {layer for quantizers in constants.values() for layer, role in quantizers if role == "W"}
    assert weights == {"stem", "a1", "a2", "b1", "b_short"}
    assert set(constants) <= {t.name for t in frozen.graph.initializer}
    assert audit_model(frozen).ok


def test_an_undeclared_constant_is_found(frozen: Model) -> None:
    """As an operand without a quantizer, and as the layer's missing quantizer."""
    entry, constants = declared(frozen)
    name = next(name for name, quantizers in constants.items() if ["a1", "W"] in quantizers)
    del constants[name]
    entry.value = json.dumps(constants)
    report = audit_model(frozen)
    assert found(report, "operand", name, "without a quantizer")
    assert found(report, "gap", "'a1'", "role W")


def test_a_constant_that_nothing_reads_is_a_gap(frozen: Model) -> None:
    """A copy under another name, which is not declared, takes its place."""
    _, constants = declared(frozen)
    name = next(name for name, quantizers in constants.items() if ["stem_bn", "gamma"] in quantizers)
    (tensor,) = (t for t in frozen.graph.initializer if t.name == name)
    frozen.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor), "copy"))
    for node in frozen.graph.node:
        node.input[:] = ["copy" if i == name else i for i in node.input]
    assert found(audit_model(frozen), "gap", "'stem_bn'", "role gamma")


def test_a_constant_in_float_does_not_count(frozen: Model) -> None:
    _, constants = declared(frozen)
    name = next(name for name, quantizers in constants.items() if ["a1", "W"] in quantizers)
    (tensor,) = (t for t in frozen.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name))
    report = audit_model(frozen)
    assert found(report, "float", name) and found(report, "operand", name)


# -- files and the command ------------------------------------------------------------------------------------------------


def test_a_file_is_audited_as_it_lies(tiny_folder: Path) -> None:
    assert audit(tiny_folder / "int_training.onnx").ok
    assert not audit(tiny_folder / "forward.onnx").ok


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "not an ONNX model"), (b"\x89PNG\r\n\x1a\n" + bytes(64), "not an ONNX")],
)
def test_what_is_no_model_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(WageubnError, match=words) as caught:
        audit(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("", 0, "integers only"),
        ("int_eval.onnx", 0, "integers only"),
        ("forward.onnx", 1, "findings"),
        ("absent.onnx", 2, "error"),
    ],
)
def test_the_exit_code_is_the_answer(name: str, code: int, words: str, tiny_folder: Path) -> None:
    result = CliRunner().invoke(cli, ["audit", str(tiny_folder / name)])
    assert result.exit_code == code, result.output
    assert words in result.output


def test_the_command_prints_what_it_found(step: Model, tmp_path: Path) -> None:
    step.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "planted"))
    onnx.save(step, tmp_path / "spoilt.onnx")
    result = CliRunner().invoke(cli, ["audit", str(tmp_path / "spoilt.onnx")])
    assert result.exit_code == 1
    assert "float: initializer 'planted'" in result.output


def test_a_product_that_is_inexact_without_vnni_is_found(step: Model) -> None:
    """A uint8 activation that could pass 129 beside an int8 operand."""
    flat = expanded(step)
    int8 = {t.name for t in flat.graph.initializer if t.data_type == T.INT8}
    product = next(n for n in flat.graph.node if n.op_type == "MatMulInteger" and n.input[3] in int8)
    makers = {name: node for node in flat.graph.node for name in node.output}
    node = makers[product.input[0]]
    while node.domain != "wageubn":
        node = makers[node.input[0]]
    node = next(n for n in step.graph.node if n.name == node.name)
    assert audit_model(step).ok
    next(a for a in node.attribute if a.name == "hi").f = 255.0
    assert found(audit_model(step), "kernel", product.name, "without VNNI")
