"""Forged steps: each computes something else than the step that was converted, or is made to break its reader; each is named.

A seeded mutator follows, whose mutants are held to the step in onnxruntime; last, what only the folder can tell.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from networks import BATCH, MEAN, STD, images, labels, run_ort
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.composites import expanded
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, node_tag
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.proofs.audit import audit_model
from wageubn_onnx.proofs.derivation import TRAINING, Made, differences, remade
from wageubn_onnx.proofs.form import composite_faults, faults, metadata
from wageubn_onnx.proofs.origin import Origin
from wageubn_onnx.quantizers import integer
from wageubn_onnx.recipe import Recipe

Model = onnx.ModelProto
Change = Callable[[Model], None]


def copied(model: Model) -> Model:
    twin = Model()
    twin.CopyFrom(model)
    return twin


def found(model: Model, origin: Origin | None = None) -> str:
    """The audit's findings, a line each."""
    return "\n".join(f"{f.kind}: {f.where}: {f.message}" for f in audit_model(model, origin).findings)


@pytest.fixture(scope="module")
def twin(tiny_artifacts: Artifacts) -> Made:
    """What the recipe of the tiny step gives."""
    return remade(Recipe.from_json(metadata(tiny_artifacts.files["int_training"], "recipe")), TRAINING)


def found_first(model: Model, twin: Made) -> str:
    """The same of those parts of the audit that take no time; where they find nothing, or the recipe is another, of all."""
    faulty = list(composite_faults(model)) or faults(expanded(model))
    said = [f"form: {where}: {what}" for where, what in faulty]
    recipe = next((p.value for p in model.metadata_props if p.key == "wageubn.recipe"), "")
    if not said and recipe == twin.recipe.to_json():
        said = [f"derivation: {where}: {what}" for where, what in differences(model, twin.proto, twin.frozen)]
    return "\n".join(said) or found(model)


def node_of(model: Model, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def first(model: Model, op: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == op)


def quantizers(model: Model) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.domain == DOMAIN and any(a.name == "role" for a in n.attribute)]


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(a for a in node.attribute if a.name == name)


def stored(model: Model, name: str, value: Any, dtype: Any = np.int32) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
    return name


def before(model: Model, node: onnx.NodeProto, *made: onnx.NodeProto) -> None:
    at = list(model.graph.node).index(node)
    for offset, new in enumerate(made):
        model.graph.node.insert(at + offset, new)


def redirect(model: Model, old: str, new: str, spared: tuple[str, ...] = ()) -> None:
    """Whoever reads ``old`` reads ``new``, but for the nodes named."""
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == old and node.name not in spared:
                node.input[i] = new


def change_json(model: Model, key: str, change: Callable[[Any], Any]) -> None:
    prop = next(p for p in model.metadata_props if p.key == f"wageubn.{key}")
    prop.value = json.dumps(change(json.loads(prop.value)))


def body(model: Model, name: str) -> onnx.FunctionProto:
    return next(f for f in model.functions if f.name == name)


# -- functions ------------------------------------------------------------------------------------------------------------


def foreign_body(model: Model) -> None:
    function = body(model, "RoundShift")
    del function.node[:]
    function.node.append(helper.make_node("Identity", ["m"], ["r"]))


def another_table(model: Model) -> None:
    """One entry of the table of exponentials."""
    node = next(n for n in body(model, "ExponentialTable").node if n.op_type == "Constant" and n.attribute[0].t.dims == [256])
    values = numpy_helper.to_array(node.attribute[0].t).copy()
    values[100] += 1
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(values))


def another_opset_of_a_function(model: Model) -> None:
    body(model, "DirectQuantize").opset_import[0].version = 17


def second_overload(model: Model) -> None:
    evil = copy.deepcopy(body(model, "DirectQuantize"))
    evil.overload = "evil"
    model.functions.append(evil)
    model.ir_version = 10
    first(model, "DirectQuantize").overload = "evil"


def overload_that_is_nowhere(model: Model) -> None:
    first(model, "DirectQuantize").overload = "evil"


def function_in_place_of_an_operator(model: Model) -> None:
    opset = [helper.make_opsetid("", 18)]
    model.functions.append(
        helper.make_function("", "Add", ["a", "b"], ["c"], [helper.make_node("Sub", ["a", "b"], ["c"])], opset)
    )


def function_of_another_domain(model: Model) -> None:
    opset = [helper.make_opsetid("", 18)]
    nodes = [helper.make_node("Mul", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("others", "Twice", ["a"], ["b"], nodes, opset))
    model.opset_import.append(helper.make_opsetid("others", 1))
    lr = first(model, "DirectQuantize")
    before(model, lr, helper.make_node("Twice", [lr.input[0]], ["twice"], "twice", domain="others"))
    lr.input[0] = "twice"


def function_that_calls_itself(model: Model) -> None:
    function = body(model, "RoundShift")
    del function.node[:]
    function.node.append(helper.make_node("RoundShift", ["m", "shift"], ["r"], domain=DOMAIN))


def function_bomb(model: Model) -> None:
    opset = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    for level in range(40):
        callee = f"Bomb{level - 1}" if level else "RoundShift"
        inputs = [["m", "s"], ["a", "s"]]
        nodes = [helper.make_node(callee, i, [o], domain=DOMAIN) for i, o in zip(inputs, "ab", strict=True)]
        model.functions.append(helper.make_function(DOMAIN, f"Bomb{level}", ["m", "s"], ["b"], nodes, opset))
    first(model, "RoundShift" if any(n.op_type == "RoundShift" for n in model.graph.node) else "Add").op_type = "Bomb39"


def call_of_nothing(model: Model) -> None:
    first(model, "DirectQuantize").op_type = "DirectQuantise"


def call_without_bounds(model: Model) -> None:
    node = first(model, "DirectQuantize")
    node.attribute.remove(attribute(node, "least"))


# -- states and interfaces ------------------------------------------------------------------------------------------------


def state_under_another_name(model: Model) -> None:
    """Its next value escapes the induction, and may be anything."""
    output = next(o for o in model.graph.output if o.name == "a1.weight.next")
    node = next(n for n in model.graph.node if "a1.weight.next" in n.output)
    node.output[0] = output.name = "a1.weight.after"


def state_without_next(model: Model) -> None:
    model.graph.output.remove(next(o for o in model.graph.output if o.name == "a1.weight.next"))


def two_states_change_places(model: Model) -> None:
    a, b = (next(o for o in model.graph.output if o.name == f"{key}.weight.next") for key in ("a1_bn", "a2_bn"))
    nodes = [next(n for n in model.graph.node if o.name in n.output) for o in (a, b)]
    nodes[0].output[0], nodes[1].output[0] = b.name, a.name


def state_more(model: Model) -> None:
    """It is carried along, and added to the learning rate."""
    model.graph.input.append(helper.make_tensor_value_info("bonus", T.INT32, []))
    rate = next(n for n in model.graph.node if "lr" in n.input)
    before(model, rate, helper.make_node("Add", ["lr", "bonus"], ["more"], "more"))
    rate.input[list(rate.input).index("lr")] = "more"
    model.graph.node.append(helper.make_node("Identity", ["bonus"], ["bonus.next"]))
    model.graph.output.append(helper.make_tensor_value_info("bonus.next", T.INT32, []))
    change_json(model, "ranges", lambda ranges: ranges | {"bonus": [0, 9]})


def input_with_a_default(model: Model) -> None:
    stored(model, "lr", 2047)


def output_twice(model: Model) -> None:
    model.graph.output.append(copy.deepcopy(model.graph.output[0]))


def range_too_wide(model: Model) -> None:
    change_json(model, "ranges", lambda ranges: ranges | {"a1.weight": [-(2**30), 2**30]})


def input_described_twice(model: Model) -> None:
    """As smaller than it is, so that sums over it would be short."""
    value = copy.deepcopy(next(v for v in model.graph.input if v.name == "a1.weight"))
    value.type.tensor_type.shape.dim[1].dim_value = 1
    model.graph.value_info.append(value)


def smaller_image(model: Model) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 11


# -- quantizers -----------------------------------------------------------------------------------------------------------

BETA = "stem_bn/Q_beta"


def kept_alive(model: Model) -> None:
    node = node_of(model, BETA)
    before(
        model,
        node,
        helper.make_node("Clip", [node.input[0], stored(model, "low", -127), stored(model, "high", 127)], ["clipped"], "clip"),
        helper.make_node("Cast", ["clipped"], ["forged"], "cast", to=T.INT8),
    )
    redirect(model, node.output[0], "forged")
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], T.INT8, [1, 6, 1, 1]))


def kept_alive_by_zero(model: Model) -> None:
    """Its result times 0 is added to what bypasses it."""
    node = node_of(model, BETA)
    out, q = node.output[0], f"{node.output[0]}.q"
    node.output[0] = q
    at = list(model.graph.node).index(node) + 1
    for new in reversed(
        [
            helper.make_node("Cast", [q], ["wide"], "wide", to=T.INT32),
            helper.make_node("Mul", ["wide", stored(model, "nothing", 0)], ["none"], "none"),
            helper.make_node(
                "Clip", [node.input[0], stored(model, "low", -127), stored(model, "high", 127)], ["clipped"], "clip"
            ),
            helper.make_node("Add", ["clipped", "none"], ["sum"], "sum"),
            helper.make_node("Cast", ["sum"], [out], "cast", to=T.INT8),
        ]
    ):
        model.graph.node.insert(at, new)


def another_layer_s_quantizer(model: Model) -> None:
    redirect(model, node_of(model, "a1_bn/Q_beta").output[0], node_of(model, BETA).output[0])


def greater_bounds(model: Model) -> None:
    """And the range of the state to it."""
    node = node_of(model, "a1/Q_UW")
    for name, sign in (("least", -1), ("greatest", 1)):
        attribute(node, name).i *= 16
        attribute(node, "hi" if sign > 0 else "lo").f *= 16
    change_json(model, "ranges", lambda r: r | {"a1.weight": [16 * v for v in r["a1.weight"]]})


def another_rounding(model: Model) -> None:
    model.functions.extend([integer.ROUND_SHIFT["half_up"], integer.DIRECT["half_up"]])
    node_of(model, BETA).op_type = "DirectQuantizeHalfUp"


def another_grid(model: Model) -> None:
    node = node_of(model, BETA)
    node.input[1] = stored(model, "coarser", 9)


def longer_rate(model: Model) -> None:
    node = next(n for n in quantizers(model) if node_tag(n).role == "lr")
    attribute(node, "greatest").i += 1


# -- arithmetic -----------------------------------------------------------------------------------------------------------


def operands_change_places(model: Model) -> None:
    node = first(model, "Sub")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def sum_in_place_of_difference(model: Model) -> None:
    first(model, "Sub").op_type = "Add"


def another_constant(model: Model) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.startswith("scalar/int32/") and numpy_helper.to_array(t) > 1)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.int32(1), tensor.name))


def another_window(model: Model) -> None:
    pads = attribute(first(model, "ConvInteger"), "pads")
    pads.ints[:] = [pads.ints[2] + 1, *pads.ints[1:2], pads.ints[0] - 1, *pads.ints[3:]]


def shape_through_identity(model: Model) -> None:
    node = first(model, "Reshape")
    before(model, node, helper.make_node("Identity", [node.input[1]], ["hidden"], "hide"))
    node.input[1] = "hidden"


def shape_that_a_caller_gives(model: Model) -> None:
    node = first(model, "Reshape")
    before(model, node, helper.make_node("Cast", ["labels"], ["hidden"], "hide", to=T.INT64))
    node.input[1] = "hidden"


def another_opset(model: Model) -> None:
    next(o for o in model.opset_import if not o.domain).version = 17


# -- what the file says of itself -----------------------------------------------------------------------------------------


def no_demand(model: Model) -> None:
    change_json(model, "expected", lambda _: {})


def no_recipe(model: Model) -> None:
    model.metadata_props.remove(next(p for p in model.metadata_props if p.key == "wageubn.recipe"))


def recipe_of_other_formats(model: Model) -> None:
    def change(recipe: Any) -> Any:
        recipe["profile"]["formats"]["BN.x"]["fraction"] = 5
        return recipe

    change_json(model, "recipe", change)


def recipe_in_float(model: Model) -> None:
    def change(recipe: Any) -> Any:
        recipe["profile"]["formats"]["E2"]["function"] = "float"
        return recipe

    change_json(model, "recipe", change)


def recipe_of_another_network(model: Model) -> None:
    def change(recipe: Any) -> Any:
        network = Model.FromString(base64.b64decode(recipe["network"]))
        attribute(first(network, "BatchNormalization"), "epsilon").f = 0.5
        return recipe | {"network": base64.b64encode(network.SerializeToString()).decode()}

    change_json(model, "recipe", change)


def recipe_of_a_huge_network(model: Model) -> None:
    def change(recipe: Any) -> Any:
        network = Model.FromString(base64.b64decode(recipe["network"]))
        weight = next(v for v in network.graph.input if v.name == "fc.weight")
        weight.type.tensor_type.shape.dim[0].dim_value = network.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2**40
        return recipe | {"network": base64.b64encode(network.SerializeToString()).decode()}

    change_json(model, "recipe", change)


def metadata_twice(model: Model) -> None:
    model.metadata_props.add(key="wageubn.ranges", value="{}")


# -- shapes of graphs -----------------------------------------------------------------------------------------------------


def unsorted(model: Model) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def cycle(model: Model) -> None:
    node = first(model, "Add")
    node.input[0] = node.output[0]


def node_without_outputs(model: Model) -> None:
    model.graph.node.append(helper.make_node("Add", ["lr", "lr"], [], "silent"))


def too_few_operands(model: Model) -> None:
    del first(model, "ConvInteger").input[1:]


def tensor_made_twice(model: Model) -> None:
    model.graph.node.append(helper.make_node("Identity", ["lr"], ["loss"], "again"))


def graph_within(model: Model) -> None:
    """It reads what lies outside."""
    branches = [
        helper.make_graph(
            [helper.make_node("Identity", [name], [f"{name}.here"])], "b", [], [onnx.ValueInfoProto(name=f"{name}.here")]
        )
        for name in ("lr", "seed")
    ]
    rate = next(n for n in model.graph.node if "lr" in n.input)
    stored(model, "yes", True, bool)
    before(model, rate, helper.make_node("If", ["yes"], ["chosen"], "if", then_branch=branches[0], else_branch=branches[1]))
    rate.input[list(rate.input).index("lr")] = "chosen"


def sparse(model: Model) -> None:
    values = numpy_helper.from_array(np.ones(1, np.int32), "few")
    model.graph.sparse_initializer.add(values=values, indices=numpy_helper.from_array(np.zeros(1, np.int64)), dims=[4])


def training_info(model: Model) -> None:
    model.training_info.add()


def tensor_without_its_elements(model: Model) -> None:
    model.graph.initializer[0].dims[:] = [2**31]


def operator_of_a_runtime(model: Model) -> None:
    node = first(model, "MatMulInteger")
    node.op_type, node.domain = "MatMulIntegerToFloat", "com.microsoft"


FORGED: dict[Change, str] = {
    foreign_body: "form: function 'RoundShift': is not this package's",
    another_table: "form: function 'ExponentialTable'",
    another_opset_of_a_function: "form: function 'DirectQuantize'",
    second_overload: "form: function 'DirectQuantize', overload 'evil'",
    overload_that_is_nowhere: "calls DirectQuantize, overload 'evil', which is not in the file",
    function_in_place_of_an_operator: "form: function 'Add': of domain '' is foreign",
    function_of_another_domain: "form: function 'Twice': of domain 'others' is foreign",
    function_that_calls_itself: "form: function 'RoundShift'",
    function_bomb: "form: function 'Bomb39': is none of this package's functions",
    call_of_nothing: "calls DirectQuantise, which is not in the file",
    call_without_bounds: "calls DirectQuantize without its attribute 'least'",
    state_under_another_name: "derivation: output 'a1.weight.after': is none of the conversion's",
    state_without_next: "derivation: output 'a1.weight.next': is missing",
    two_states_change_places: "derivation: node",
    state_more: "derivation: input 'bonus': is none of the conversion's",
    input_with_a_default: "form: initializer 'lr': is an input that a caller may override",
    output_twice: "is listed twice",
    range_too_wide: "metadata wageubn.ranges is not the conversion's",
    input_described_twice: "shape: tensor 'a1.weight': is described, and no node makes it",
    smaller_image: "derivation: input 'images': is uint8[4, 3, 11, 12], and uint8[4, 3, 12, 12] in the conversion",
    kept_alive: "derivation: node 'stem_bn/Q_beta': of layer 'stem_bn', path beta",
    kept_alive_by_zero: "derivation: node 'stem_bn/Q_beta': of layer 'stem_bn', path beta",
    another_layer_s_quantizer: "derivation: node 'a1_bn/Q_beta'",
    greater_bounds: "derivation: node 'a1/Q_UW': DirectQuantize",
    another_rounding: "derivation: node 'stem_bn/Q_beta'",
    another_grid: "derivation: node 'stem_bn/Q_beta': reads constant 'coarser'",
    longer_rate: "greatest 2048, and 2047 in the conversion",
    operands_change_places: "derivation: node",
    sum_in_place_of_difference: "derivation: node",
    another_constant: "derivation: node",
    another_window: "ConvInteger has pads",
    shape_through_identity: "reads Identity 'hide', and in the conversion constant 'ints/",
    shape_that_a_caller_gives: "derivation: node",
    another_opset: "imports the operator sets",
    no_demand: "metadata wageubn.expected is not the conversion's",
    no_recipe: "gap: the model: does not say what it was made of",
    recipe_of_other_formats: "derivation: node",
    recipe_in_float: "has no integer form",
    recipe_of_another_network: "derivation: node",
    recipe_of_a_huge_network: "derivation: metadata wageubn.recipe: ",
    metadata_twice: "metadata wageubn.ranges is declared 2 times",
    unsorted: "which nothing makes before it",
    cycle: "which nothing makes before it",
    node_without_outputs: "form: node 'silent': Add has no output",
    too_few_operands: "ConvInteger has 1 operands, and 4 in the conversion",
    tensor_made_twice: "makes 'loss', which is there already",
    graph_within: "If has a graph within",
    sparse: "sparse initializer 'few'",
    training_info: "has training graphs of its own",
    tensor_without_its_elements: "does not hold the elements that it claims",
    operator_of_a_runtime: "MatMulIntegerToFloat of domain com.microsoft is not known",
}


@pytest.mark.parametrize("change", FORGED, ids=lambda change: change.__name__)
def test_a_forged_step_is_named(change: Change, tiny_artifacts: Artifacts, twin: Made) -> None:
    step = copied(tiny_artifacts.files["int_training"])
    change(step)
    assert FORGED[change] in found_first(step, twin)


# -- every quantizer, bypassed ----------------------------------------------------------------------------------------------

Bypass = Callable[[Model, onnx.NodeProto, dict[str, int]], Iterator[onnx.NodeProto]]


def by_cast(model: Model, node: onnx.NodeProto, dtypes: dict[str, int]) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("Cast", [node.input[0]], ["forged"], "forged", to=dtypes[node.output[0]])


def by_clip(model: Model, node: onnx.NodeProto, dtypes: dict[str, int]) -> Iterator[onnx.NodeProto]:
    """Within the same bounds."""
    ends = [stored(model, f"forged/{end}", end) for end in (-127, 127)]
    yield helper.make_node("Cast", [node.input[0]], ["forged/wide"], to=T.INT32)
    yield helper.make_node("Clip", ["forged/wide", *ends], ["forged/clip"])
    yield helper.make_node("Cast", ["forged/clip"], ["forged"], to=dtypes[node.output[0]])


def by_its_own_operand(model: Model, node: onnx.NodeProto, dtypes: dict[str, int]) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("Identity", [node.input[0]], ["forged"], "forged")


def by_a_half(model: Model, node: onnx.NodeProto, dtypes: dict[str, int]) -> Iterator[onnx.NodeProto]:
    """Its own result, divided."""
    dtype = dtypes[node.output[0]]
    two = stored(model, "forged/two", 2, helper.tensor_dtype_to_np_dtype(dtype))
    yield helper.make_node("Div", [node.output[0], two], ["forged"], "forged")


def by_another_layer_s(model: Model, node: onnx.NodeProto, dtypes: dict[str, int]) -> Iterator[onnx.NodeProto]:
    """A quantizer of the same function and type, or a constant where there is none before it."""
    earlier = list(model.graph.node)[: list(model.graph.node).index(node)]
    alike = [n.output[0] for n in earlier if n.op_type == node.op_type and dtypes[n.output[0]] == dtypes[node.output[0]]]
    dtype = helper.tensor_dtype_to_np_dtype(dtypes[node.output[0]])
    yield helper.make_node("Identity", [alike[-1] if alike else stored(model, "forged/one", 1, dtype)], ["forged"], "forged")


BYPASSES = (by_cast, by_clip, by_its_own_operand, by_a_half, by_another_layer_s)


def bypassed(model: Model, name: str, bypass: Bypass, kept_alive: bool) -> Model:
    """A copy in which the readers of a quantizer's mantissas read something else; it may stay alive as an output of its own."""
    forged = copied(model)
    node = node_of(forged, name)
    types = {v.name: v.type.tensor_type for v in (*forged.graph.value_info, *forged.graph.output)}
    at, result = list(forged.graph.node).index(node) + 1, node.output[0]
    dtypes = {key: tensor.elem_type for key, tensor in types.items()} | {"kept": types[result].elem_type}
    is_state = result in {o.name for o in forged.graph.output}
    if is_state:  # whose next value keeps its name
        node.output[0] = "kept"
    new = list(bypass(forged, node, dtypes))
    if is_state:
        new[-1].output[0] = result
    else:
        redirect(forged, result, "forged")
    for made in reversed(new):
        forged.graph.node.insert(at, made)
    if kept_alive:
        forged.graph.output.append(helper.make_tensor_value_info(node.output[0], types[result].elem_type, None))
    return forged


@pytest.fixture(scope="module", params=["full8", "fast"])
def healthy(request: pytest.FixtureRequest, tiny_file: Path) -> tuple[Model, Made]:
    """A step with health counters, and what its recipe gives."""
    config = Config(batch=BATCH, mean=MEAN, std=STD, profile=load_profile(request.param), health=True)
    step = convert(tiny_file, config).files["int_training"]
    return step, remade(Recipe.from_json(metadata(step, "recipe")), TRAINING)


def test_a_bypassed_quantizer_of_every_role_is_named(healthy: tuple[Model, Made]) -> None:
    """Dead, or kept alive by an output and by the health counters; the finding names its node."""
    step, twin = healthy
    shift = 2 * twin.recipe.config.profile.is_delayed  # other ways in the other profile
    by_role = {node_tag(n).role: n.name for n in quantizers(step)}
    assert len(by_role) > 35
    for index, (role, name) in enumerate(by_role.items()):
        bypass = BYPASSES[(index + shift) % len(BYPASSES)]
        forged = bypassed(step, name, bypass, kept_alive=bool(index % 2))
        assert not list(faults(expanded(forged))), (role, bypass)
        said = list(differences(forged, twin.proto, twin.frozen))
        assert any(repr(name) in f"{where} {what}" for where, what in said), (role, bypass, said)


def test_what_was_not_forged_is_the_same(healthy: tuple[Model, Made]) -> None:
    """Whatever its nodes are called, however they are ordered, and with a node that nothing needs."""
    step, twin = healthy
    assert list(differences(step, twin.proto)) == []
    renamed = copied(step)
    outputs = {o.name for o in renamed.graph.output}
    names = {o: o if o in outputs else f"t{i}" for i, o in enumerate(o for n in renamed.graph.node for o in n.output)}
    for node in renamed.graph.node:
        node.name = f"n.{node.name}"
        node.input[:] = [names.get(i, i) for i in node.input]
        node.output[:] = [names[o] for o in node.output]
    renamed.graph.node.append(helper.make_node("Neg", ["lr"], ["nobody reads this"]))
    assert list(differences(renamed, twin.proto)) == []


# -- mutants --------------------------------------------------------------------------------------------------------------


class Mutator:
    """Changes to a step, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def pick(self, values: Any) -> Any:
        return list(values)[int(self.random.integers(len(values)))]

    def mutate(self, model: Model) -> str:
        """Change ``model``; what was done."""
        change = self.pick((self.drop, self.twice, self.move, self.rewire, self.rename, self.attribute, self.value, self.dims,
                            self.dtype, self.metadata, self.function, self.interface, self.operator))  # fmt: skip
        change(model)
        return str(change.__name__)

    def drop(self, model: Model) -> None:
        model.graph.node.remove(self.pick(model.graph.node))

    def twice(self, model: Model) -> None:
        model.graph.node.append(copy.deepcopy(self.pick(model.graph.node)))

    def move(self, model: Model) -> None:
        node = self.pick(model.graph.node)
        model.graph.node.remove(node)
        model.graph.node.insert(int(self.random.integers(len(model.graph.node))), node)

    def rewire(self, model: Model) -> None:
        node = self.pick([n for n in model.graph.node if n.input])
        at = int(self.random.integers(len(node.input)))
        names = [o for n in model.graph.node for o in n.output] + [i.name for i in model.graph.input] + [""]
        node.input[at] = self.pick(names)
        if self.random.random() < 0.2:
            del node.input[at:]

    def rename(self, model: Model) -> None:
        node = self.pick([n for n in model.graph.node if n.output])
        node.output[0] = self.pick(["", "new", self.pick(model.graph.input).name])

    def attribute(self, model: Model) -> None:
        node = self.pick([n for n in model.graph.node if n.attribute])
        changed = self.pick(node.attribute)
        if self.random.random() < 0.2:
            node.attribute.remove(changed)
        elif changed.ints:
            changed.ints[int(self.random.integers(len(changed.ints)))] += self.pick([-1, 1, 2**40])
        elif changed.type == onnx.AttributeProto.INT:
            changed.i += self.pick([-1, 1, 2**31])
        elif changed.type == onnx.AttributeProto.FLOAT:
            changed.f += self.pick([1.0, float("nan")])
        else:
            changed.s = self.pick([b"", b"half_up", b"\xff"])

    def value(self, model: Model) -> None:
        tensor = self.pick(model.graph.initializer)
        array = numpy_helper.to_array(tensor).copy()
        if array.size:
            array.reshape(-1)[int(self.random.integers(array.size))] += self.pick([1, 2, 7])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def dims(self, model: Model) -> None:
        typed = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        dims = self.pick([v for v in typed if v.type.tensor_type.shape.dim]).type.tensor_type.shape.dim
        dim = self.pick(dims)
        dim.dim_value = self.pick([0, 1, dim.dim_value + 1, 2**31, -1])
        if self.random.random() < 0.3:
            dim.dim_param = "M"

    def dtype(self, model: Model) -> None:
        self.pick([*model.graph.input, *model.graph.initializer[:3], *model.graph.value_info])
        value = self.pick([*model.graph.input, *model.graph.output, *model.graph.value_info])
        value.type.tensor_type.elem_type = self.pick([T.FLOAT, T.INT8, T.INT64, T.STRING, 0, 99])

    def metadata(self, model: Model) -> None:
        prop = self.pick(model.metadata_props)
        text = prop.value
        at = int(self.random.integers(len(text)))
        texts = ["", "[" * 100_000, "null", "[]", '{"a": 1}', text[:at], text[:at] + "9" + text[at + 1 :]]
        prop.value = self.pick([*texts, text.replace("a1", "a2")])
        prop.key = self.pick([prop.key, prop.key, prop.key, "wageubn.other"])

    def function(self, model: Model) -> None:
        function = self.pick(model.functions)
        if self.random.random() < 0.3:
            model.functions.remove(function)
        elif self.random.random() < 0.5:
            function.node.remove(self.pick(function.node))
        else:
            function.name = self.pick([f.name for f in model.functions])

    def interface(self, model: Model) -> None:
        listed = self.pick([model.graph.input, model.graph.output, model.graph.initializer])
        entry = self.pick(listed)
        if self.random.random() < 0.5:
            listed.remove(entry)
        else:
            entry.name = self.pick([entry.name + ".next", "loss", self.pick(listed).name])

    def operator(self, model: Model) -> None:
        node = self.pick(model.graph.node)
        node.op_type = self.pick([n.op_type for n in model.graph.node])


def test_a_mutant_that_computes_something_else_is_named(tiny_artifacts: Artifacts, twin: Made) -> None:
    """No mutant ends in a traceback; one that passes gives the step's results, bit for bit."""
    step = tiny_artifacts.files["int_training"]
    feeds = tiny_artifacts.state | {"images": images(), "labels": labels()}
    feeds |= {name: np.array(value, np.int32) for name, value in (("lr", 20), ("gradient_range", 128), ("seed", 3))}
    right, named = run_ort(step, feeds), 0
    for seed in range(24):
        mutator, mutant = Mutator(seed), copied(step)
        done = mutator.mutate(mutant)
        try:
            is_named = bool(found_first(mutant, twin))
        except WageubnError:
            is_named = True
        named += is_named
        if not is_named:
            results = run_ort(mutant, feeds)
            assert all(np.array_equal(right[name], results[name]) for name in right), (seed, done)
    assert named > 12


# -- what the folder tells --------------------------------------------------------------------------------------------------


@pytest.fixture
def origin(tiny_artifacts: Artifacts) -> Origin:
    """Of the tiny step; its manifest may be spoilt."""
    return Origin(tiny_artifacts.files["forward"], json.loads(json.dumps(tiny_artifacts.manifest)))


def test_a_step_is_that_of_its_folder(tiny_artifacts: Artifacts, origin: Origin) -> None:
    for stage in ("int_training", "int_eval"):
        report = audit_model(tiny_artifacts.files[stage], origin)
        assert report.ok and not report.uncompared
    assert "audit its folder" in audit_model(tiny_artifacts.files["int_eval"]).uncompared[0]


def test_a_step_of_another_profile_is_not(tiny_file: Path, origin: Origin) -> None:
    """It is a step that proves everything by itself: only the manifest can tell."""
    config = Config(batch=BATCH, mean=MEAN, std=STD, expose_gradients=True, profile=load_profile("sq8"))
    step = convert(tiny_file, config).files["int_training"]
    assert found(step) == ""
    assert "manifest: manifest.json, 'formats': is not that of the file: E2." in found(step, origin)


def test_a_step_of_other_weights_is_not(tiny_artifacts: Artifacts, origin: Origin) -> None:
    (weight,) = (t for t in origin.forward.graph.initializer if t.name == "a1.weight")
    forward = copied(origin.forward)
    (spoilt,) = (t for t in forward.graph.initializer if t.name == "a1.weight")
    spoilt.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(8), "a1.weight"))
    text = found(tiny_artifacts.files["int_eval"], Origin(forward, origin.manifest))
    assert "manifest: metadata wageubn.recipe: has another magnitudes of the parameters than forward.onnx" in text


def test_a_manifest_of_other_bounds_is_not(tiny_artifacts: Artifacts, origin: Origin) -> None:
    entry = next(e for e in origin.manifest["quantizers"] if e["role"] == "lr")
    entry["max"] *= 16
    text = found(tiny_artifacts.files["int_training"], origin)
    assert "manifest: manifest.json, 'quantizers': is not that of the file: [" in text and "].max is '32752'" in text


def test_a_frozen_weight_is_that_of_its_folder(tiny_file: Path) -> None:
    """Without the folder it is a parameter, which may be any."""
    made = convert(tiny_file, Config(batch=BATCH, mean=MEAN, std=STD, train_last=3))
    step = copied(made.files["int_eval"])
    name = next(name for name, roles in metadata(step, "constants").items() if ["a1", "W"] in roles)
    (tensor,) = (t for t in step.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1), name))
    assert found(step) == ""
    assert f"reads constant {name!r}" in found(step, Origin(made.files["forward"], json.loads(json.dumps(made.manifest))))
