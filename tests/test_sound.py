"""A file that is not what it claims is refused as it is loaded, in one line, and in the time and memory of a small file."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, helper, numpy_helper

from networks import Net, tiny
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import load_model
from wageubn_onnx.pipeline import convert
from wageubn_onnx.sound import MOST_NODES, check_sound

SECONDS = 20  # of a loaded machine; each case takes one at most


def tensor(model: onnx.ModelProto, name: str = "stem.weight") -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def call_chain(count: int, twice: bool) -> onnx.ModelProto:
    """``tiny`` behind functions that each call the next once or twice, the last an Identity."""
    model = tiny()
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model.opset_import.append(opsets[1])
    for i in range(count):
        called = f"f{i + 1}" if i + 1 < count else "Identity"
        domain = "local" if i + 1 < count else ""
        nodes = [helper.make_node(called, ["a"], ["m"], domain=domain)]
        nodes.append(helper.make_node(called if twice else "Identity", ["m"], ["b"], domain=domain if twice else ""))
        model.functions.append(helper.make_function("local", f"f{i}", ["a"], ["b"], nodes, opsets))
    model.graph.node.insert(0, helper.make_node("f0", ["x"], ["called"], domain="local"))
    model.graph.node[1].input[0] = "called"
    return model


def recursive(*calls: str) -> onnx.ModelProto:
    """Functions of which each calls the next, the last the first."""
    model = tiny()
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model.opset_import.append(opsets[1])
    for name, called in zip(calls, (*calls[1:], calls[0]), strict=True):
        node = helper.make_node(called, ["a"], ["b"], domain="local")
        model.functions.append(helper.make_function("local", name, ["a"], ["b"], [node], opsets))
    model.graph.node.insert(0, helper.make_node(calls[0], ["x"], ["called"], domain="local"))
    return model


def within_branch(change: Callable[[onnx.GraphProto], None]) -> onnx.ModelProto:
    """``tiny`` and an If whose branch is changed."""
    model = tiny()
    value = helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Identity", ["c"], ["inner"])], "branch", [], [value])
    branch.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "c"))
    change(branch)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    model.graph.node.append(helper.make_node("If", ["condition"], ["unread"], then_branch=branch, else_branch=branch))
    return model


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = tiny()
    change(model)
    return model


def claim(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor(model).dims[:] = dims

    return change


def no_such_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99


def half(model: onnx.ModelProto) -> None:
    tensor(model).raw_data = tensor(model).raw_data[:7]


def attribute(**fields: object) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.node[0].attribute.append(AttributeProto(name="odd", **fields))


def same_functions(model: onnx.ModelProto) -> None:
    for _ in range(2):
        model.functions.add(name="f", domain="local")


CHANGED: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "terabytes": (claim(2**31, 2**31), "'stem.weight': claims the shape [2147483648, 2147483648], but holds 648"),
    "beyond int64": (claim(2**62, 2**62), "but holds 648 bytes"),
    "a negative size": (claim(-6, -27), "has the shape [-6, -27]"),
    "no such type": (lambda m: setattr(tensor(m), "data_type", 99), "unknown element type 99"),
    "an input of no such type": (no_such_input, "'x': has the unknown element type 99"),
    "half a tensor": (half, "but holds 7 bytes"),
    "a node without operator": (lambda m: m.graph.node[2].ClearField("op_type"), "has no operator"),
    "a node without result": (lambda m: m.graph.node[2].ClearField("output"), "Relu has no result"),
    "a result without name": (lambda m: m.graph.node[2].output.__setitem__(0, ""), "Relu has no result"),
    "an attribute without type": (attribute(), "attribute 'odd': has no value"),
    "an attribute of another type": (attribute(i=3, type=AttributeProto.FLOAT), "attribute 'odd': has no value"),
    "an opset beyond all": (lambda m: setattr(m.opset_import[0], "version", 2**40), "opset 1099511627776"),
    "two functions of one name": (same_functions, "two functions"),
}
UNSOUND: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    **{name: (partial(changed, change), words) for name, (change, words) in CHANGED.items()},
    "a tensor in a branch": (lambda: within_branch(lambda g: g.initializer[0].dims.append(2**40)), "initializer 'c': claims"),
    "a node in a branch": (lambda: within_branch(lambda g: g.node[0].ClearField("op_type")), "has no operator"),
    "a function bomb": (lambda: call_chain(31, twice=True), f"{2**31 + 27:,} nodes, with functions in place of their calls"),
    "a function that calls itself": (lambda: recursive("f"), "function 'f' calls itself"),
    "functions that call each other": (lambda: recursive("f", "g", "h"), "calls itself"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_files(name: str, tmp_path: Path) -> None:
    build, words = UNSOUND[name]
    file = tmp_path / "model.onnx"
    file.write_bytes(build().SerializeToString())
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WageubnError) as caught:
        load_model(file)
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    message = str(caught.value)
    assert words in message and message.startswith(f"{file}: ") and "\n" not in message


def test_text_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(tiny().SerializeToString().replace(b"stem.weight", b"stem.\xff\xfeight"))
    with pytest.raises(WageubnError, match=r"the \w+ b'stem.\\xff\\xfeight' of a \w+ is not UTF-8"):
        load_model(file)


def test_what_is_sound() -> None:
    """Every way to hold numbers, an attribute that a call gives, nested graphs, and functions that call others, are."""
    check_sound(tiny())
    check_sound(within_branch(lambda graph: None))
    check_sound(call_chain(40, twice=False))
    model = tiny()
    for dtype in (
        "float32",
        "float64",
        "float16",
        "int8",
        "uint8",
        "int16",
        "int32",
        "int64",
        "uint32",
        "uint64",
        "bool",
        "complex64",
    ):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        code = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.initializer.append(helper.make_tensor(f"{dtype}.typed", code, array.shape, array.ravel().tolist()))
        model.graph.initializer.append(numpy_helper.from_array(array, f"{dtype}.raw"))
    for code in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT8E4M3FN):
        model.graph.initializer.append(helper.make_tensor(f"narrow{code}", code, [5], [1, 2, 3, 1, 0]))
    model.graph.initializer.append(helper.make_tensor("words", onnx.TensorProto.STRING, [2], [b"a", b"b"]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), np.float32), "nothing"))
    function = onnx.FunctionProto(name="f", domain="local")
    reference = AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT)
    function.node.append(helper.make_node("LeakyRelu", ["a"], ["b"]))
    function.node[0].attribute.append(reference)
    model.functions.append(function)
    check_sound(model)


def chain(count: int, kind: str, **attributes: object) -> onnx.ModelProto:
    """So many nodes of a kind, one after the other."""
    n = Net(0)
    x = n.relu(n.bn(n.conv("x", "stem", 3, 4, strides=[2, 2]), "stem_bn", 4))
    for _ in range(count):
        x = n.node(kind, x, **attributes)
    return n.model(n.gemm(n.node("Flatten", n.node("GlobalAveragePool", x)), 4, 5))


@pytest.mark.parametrize(
    ("kind", "words"), [("Identity", ""), ("Relu", "10,006 nodes to convert; at most 5,000"), ("Neg", "operator Neg has no rule")]
)
def test_chains_of_ten_thousand_nodes(kind: str, words: str, tmp_path: Path) -> None:
    onnx.save(chain(10_000, kind), tmp_path / "chain.onnx")
    if not words:
        assert len(convert(tmp_path / "chain.onnx", Config(batch=2)).graphs["forward"].graph.node) < 10
        return
    with pytest.raises(WageubnError, match=words):
        convert(tmp_path / "chain.onnx", Config(batch=2))


def test_the_limit_of_nodes_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = call_chain(5, twice=True)  # 32 Identities
    total = len(model.graph.node) - 1 + 32
    monkeypatch.setattr("wageubn_onnx.sound.MOST_NODES", total)
    check_sound(model)
    monkeypatch.setattr("wageubn_onnx.sound.MOST_NODES", total - 1)
    with pytest.raises(WageubnError, match=f"^{total} nodes"):
        check_sound(model)
    assert MOST_NODES > 100_000  # what a ResNet-152's training step has, inlined
