"""Where a difference begins: which pass of a target changes the numbers, or which kernel of the runtime, and at which node.

What a pass does depends on which tensors a step gives, so nothing goes through the passes twice: a model that went through them
gets its own tensors as outputs. Three questions are asked, in this order.

1. After which pass does the step in onnxruntime, unoptimized and on one thread, give other outputs? By bisection.
2. Of the models before and after that pass, which tensor that both have differs first? What leads to it from equal tensors is
   computed again, node by node, as `exact` says: where a node's result is another, its kernel is wrong; where none is, the pass.
3. Where no pass changes anything, which tensor of the last model does the target's runtime compute otherwise first?
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.base import Array, Passes, Runner, Tensors, state_feeds
from wageubn_onnx.export.exact import computed
from wageubn_onnx.export.ort import InProcess
from wageubn_onnx.onnxir.nodes import copied, without_nodes
from wageubn_onnx.onnxir.view import View, branches

BYTES = 2**28  # of tensors that are looked at together
FAULTS: tuple[type[Exception], ...] = (  # what a model that a pass spoilt, or the pass itself, may raise
    WageubnError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
    ort_errors.EPFail, ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph, ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented, ort_errors.RuntimeException,
)  # fmt: skip
INLINE = "inline"  # what every target begins with


@dataclass(frozen=True)
class Place:
    """cause: ``pass NAME``, ``kernel OPERATOR``, or ``runtime`` where nothing differs once it is shown.

    node: the first node whose result differs, with its operator; tensor: that result.
    """

    cause: str
    node: str
    tensor: str

    @property
    def described(self) -> str:
        """In a line."""
        return f"first at tensor {self.tensor}, made by node {self.node}; the fault is of {self.cause}"


@dataclass(frozen=True)
class Case:
    """One step: what goes into it by input name, and what should come out by output name."""

    fed: Tensors
    expected: Tensors
    manifest: Mapping[str, Any]

    def differing(self, found: Tensors) -> list[str]:
        """The outputs that are not as expected."""
        return [name for name, value in self.expected.items() if not _same(value, found.get(name))]


def in_passes(step: onnx.ModelProto, passes: Passes, case: Case) -> Place | None:
    """Where what ``passes`` make of ``step`` begins to differ, in onnxruntime; None where it does not (questions 1 and 2)."""
    names = (INLINE, *passes.names)

    def after(count: int) -> onnx.ModelProto:
        return passes.after(count - 1) if count else step

    good, bad = 0, len(names)
    if not differs(lambda: after(bad), case):
        return None
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if differs(lambda at=middle: after(at), case) else (middle, bad)  # type: ignore[misc]
    cause = f"pass {names[good]}"
    try:
        return _between(after(good), after(bad), case, cause)
    except FAULTS as error:  # it spoils the model
        return Place(cause, f"none: {one_line(error)}", "none")


def differs(make: Callable[[], onnx.ModelProto], case: Case) -> bool:
    """Whether the model gives other outputs in this process's onnxruntime, or cannot be made or run."""
    try:
        model = make()
        return bool(case.differing(run(model, case, [output.name for output in model.graph.output])))
    except FAULTS:
        return True


def one_line(error: Exception) -> str:
    """What went wrong, without its traceback."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ---- question 2 ----


def _between(before: onnx.ModelProto, after: onnx.ModelProto, case: Case, cause: str) -> Place:
    """The first tensor of both models that differs, and whether a pass or a kernel is at fault."""
    before, after = (unbranched(model, case) for model in (before, after))
    both = View(before.graph).makers.keys() & View(after.graph).makers.keys()
    for names in portions(after, both):
        left, right = run(before, case, names), run(after, case, names)
        wrong = next((name for name in names if not _same(left[name], right[name])), None)
        if wrong is not None:
            kernel = _wrong_kernel(after, wrong, both, case) or _wrong_kernel(before, wrong, both, case)
            return kernel or Place(cause, _named(View(after.graph).makers[wrong]), wrong)
    raise WageubnError("no tensor of both models differs")


def _wrong_kernel(model: onnx.ModelProto, wrong: str, equal: set[str], case: Case) -> Place | None:
    """Of the nodes that lead to the tensor ``wrong`` from tensors ``equal`` to what they should be, the first with another result
    than its operator has."""
    makers = View(model.graph).makers
    last = makers[wrong]
    nodes, waiting = {id(last): last}, [last]
    while waiting:
        for name in waiting.pop().input:
            maker = makers.get(name)
            if maker is not None and name not in equal and id(maker) not in nodes:
                nodes[id(maker)] = maker
                waiting.append(maker)
    ordered = [node for node in model.graph.node if id(node) in nodes]
    wanted = dict.fromkeys(name for node in ordered for name in (*node.input, *node.output) if name in makers)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | dict(case.fed)
    values |= run(model, case, list(wanted))
    for node in ordered:
        try:
            results = computed(node, values)
        except FAULTS:  # an operator that the evaluator lacks
            continue
        for name, result in zip(node.output, results, strict=True):
            if not _same(result, values[name]):
                return Place(f"kernel {node.op_type}", _named(node), name)
    return None


# ---- question 3 ----


def in_runtime(model: onnx.ModelProto, again: Callable[[onnx.ModelProto, Path], Runner], case: Case) -> Place:
    """Where another way of running ``model`` begins to differ; where it does not while other tensors are shown, the first output.

    again: that way, of a model and with an empty folder to write to.
    """
    makers = View(model.graph).makers
    state = {entry["key"]: case.fed[entry["in"]] for entry in case.manifest["state"]}
    inputs = {entry["in"] for entry in case.manifest["state"]}
    rest = {name: value for name, value in case.fed.items() if name not in inputs}

    def found(shown: onnx.ModelProto) -> Tensors:
        with tempfile.TemporaryDirectory() as scratch:
            return next(iter(again(shown, Path(scratch)).steps(state, [rest])))

    flat = unbranched(model, case)
    owners = View(flat.graph).makers
    for names in portions(flat, owners):
        expected = run(flat, case, names)
        try:
            other = found(_showing(flat, names))
        except FAULTS:  # it cannot show them
            break
        wrong = next((name for name in names if name in other and not _same(expected[name], other[name])), None)
        if wrong is not None:
            return Place(f"kernel {owners[wrong].op_type}", _named(owners[wrong]), wrong)
    try:
        other = found(model)
    except FAULTS as error:
        return Place("runtime", f"none: {one_line(error)}", "none")
    order = {name: at for at, name in enumerate(makers)}
    wrong = min(case.differing(other), key=lambda name: order.get(name, -1), default="none")
    node = _named(makers[wrong]) if wrong in makers else "none"
    return Place("runtime, where no other tensor is shown", node, wrong)


# ---- running a model with its own tensors as outputs ----


def run(model: onnx.ModelProto, case: Case, names: Sequence[str]) -> dict[str, Array]:
    """The tensors ``names`` of ``model`` in this process's onnxruntime, unoptimized, on one thread."""
    dtypes = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
    shown = _showing(model, names)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        file.write_bytes(shown.SerializeToString())
        state = {entry["key"]: case.fed[entry["in"]].astype(dtypes[entry["in"]]) for entry in case.manifest["state"]}
        taken = state_feeds(state, case.manifest)
        rest = {name: value for name, value in case.fed.items() if name not in taken}
        found = next(iter(InProcess(file, dict(case.manifest), optimize=False, threads=1).steps(state, [rest])))
    return {name: found[name] for name in names}


def _showing(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """``model`` with these tensors as outputs, too."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    types = {v.name: v for v in model.graph.value_info}
    known = {output.name for output in model.graph.output}
    shown.graph.output.extend(types.get(name, onnx.ValueInfoProto(name=name)) for name in names if name not in known)
    return shown


def portions(model: onnx.ModelProto, wanted: Mapping[str, Any] | set[str]) -> Iterator[list[str]]:
    """The results of the nodes that are ``wanted``, in order, in portions of at most `BYTES`.

    A tensor of unknown type counts as much as the greatest.
    """
    typed = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type for v in (*typed.value_info, *typed.output)}
    sizes = {
        name: math.prod(d.dim_value for d in kind.shape.dim) * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        for name, kind in types.items()
        if kind.HasField("shape")
    }
    greatest = max(sizes.values(), default=BYTES)
    names, size = list[str](), 0
    for name in (name for node in model.graph.node if node.op_type != "Constant" for name in node.output if name in wanted):
        bytes_ = sizes.get(name, greatest)
        if names and size + bytes_ > BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += bytes_
    if names:
        yield names


def unbranched(model: onnx.ModelProto, case: Case) -> onnx.ModelProto:
    """``model`` with the branch that it takes in this step in the place of each If, so that its tensors can be shown."""
    while branching := [node for node in model.graph.node if branches(node)]:
        taken = run(model, case, list(dict.fromkeys(node.input[0] for node in branching)))
        names = {name for node in model.graph.node for name in node.output}
        flat = without_nodes(model)
        for node in model.graph.node:
            if branches(node):
                chosen = "then_branch" if taken[node.input[0]] else "else_branch"
                graph = next(a.g for a in node.attribute if a.name == chosen)
                flat.graph.node.extend(_opened(node, graph, names))
                flat.graph.initializer.extend(graph.initializer)
            else:
                flat.graph.node.append(node)
        model = flat
    return model


def _opened(node: onnx.NodeProto, graph: onnx.GraphProto, names: set[str]) -> Iterator[onnx.NodeProto]:
    """The nodes of a branch, for the graph around it, whose tensors ``names`` are."""
    renamed: dict[str, str] = {}
    for inner in graph.node:
        copy = copied(inner)
        copy.input[:] = [renamed.get(name, name) for name in inner.input]
        for at, name in enumerate(inner.output):
            renamed[name] = f"{node.output[0]}/{name}" if name in names else name
            copy.output[at] = renamed[name]
            names.add(renamed[name])
        yield copy
    for inside, output in zip(graph.output, node.output, strict=True):
        yield onnx.helper.make_node("Identity", [renamed.get(inside.name, inside.name)], [output], f"{node.name}/branch")


def _named(node: onnx.NodeProto) -> str:
    return f"{node.name or node.output[0]} ({node.op_type})"


def _same(a: Array, b: Array | None) -> bool:
    """Whether shapes and values are; a dtype may be wider in a target."""
    return b is not None and a.shape == b.shape and bool((a == b).all())
