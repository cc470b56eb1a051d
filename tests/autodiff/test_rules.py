"""Every gradient rule, element by element: against central finite differences in float64, and against PyTorch autograd.

A rule's graph takes the operands and dL/dy and yields y and dL/dx of each operand. Finite differences see the scalar
L = sum(y * dL/dy), computed by onnx's reference evaluator from the very nodes that the rule emitted for y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from float64 import float64_copy, reference_evaluator, run_reference
from networks import Array, relative, run_ort
from wageubn_onnx.autodiff.rules import RULES, batch_norm_frozen
from wageubn_onnx.bench import torch_step
from wageubn_onnx.composites import kind_of
from wageubn_onnx.graph import Model, to_proto
from wageubn_onnx.passes.lower import integers
from wageubn_onnx.stages import TRAINING_OPS

FROZEN = "BatchNormalization, frozen"
TESTED = RULES | {FROZEN: batch_norm_frozen}
STEP = 1e-6  # of the differences; their error is about STEP^2 + 1e-16/STEP of the values
Torch = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One geometry of one operator. shapes: of the operands. frozen: how many operands at the end have no gradient.

    constants: integer operands after those. values: makes operand i of that shape. smooth: whether L is differentiable there
    (no ties).
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    attrs: dict[str, Any]
    torch: Torch
    values: Callable[[np.random.Generator, int, tuple[int, ...]], Array] = field(
        default=lambda random, i, shape: random.normal(0, 1, shape)
    )
    frozen: int = 0
    smooth: bool = True
    constants: tuple[tuple[int, ...], ...] = ()


def pad_case(name: str, *amounts: int) -> Case:
    """before N, C, H, W, after N, C, H, W."""
    around = tuple(amounts[axis + end] for axis in (3, 2, 1, 0) for end in (0, 4))
    return Case(name, ((2, 3, 4, 5),), {}, lambda x: F.pad(x, around), constants=(amounts,))


def conv_case(name: str, size: tuple[int, int], kernel: tuple[int, int], strides: int = 1, pads: Any = 0, dilations: int = 1,
              bias: bool = False, channels: tuple[int, int] = (3, 4), group: int = 1) -> Case:  # fmt: skip
    top, left, bottom, right = [pads] * 4 if isinstance(pads, int) else pads
    attrs = {
        "kernel_shape": list(kernel), "strides": [strides] * 2, "pads": [top, left, bottom, right],
        "dilations": [dilations] * 2, "group": group,
    }  # fmt: skip

    def expected(x: torch.Tensor, w: torch.Tensor, *b: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (left, right, top, bottom)), w, *b, stride=strides, dilation=dilations, groups=group)

    i, o = channels
    return Case(name, ((2, i, *size), (o, i // group, *kernel), *([(o,)] if bias else [])), attrs, expected)


def distinct(random: np.random.Generator, i: int, shape: tuple[int, ...]) -> Array:
    """A permutation: all values, and their distances from 0, far greater than STEP."""
    count = int(np.prod(shape))
    return (random.permutation(count).reshape(shape) - count / 2 + 0.25) / 8


def tied(random: np.random.Generator, i: int, shape: tuple[int, ...]) -> Array:
    """Three values only, as on a coarse grid: most windows have several greatest elements, some none above the padding's 0."""
    return random.integers(-1, 2, shape) - 0.5


def max_pool_case(name: str, size: tuple[int, int], kernel: int, strides: int, pads: Any = 0, values: Any = distinct) -> Case:
    top, left, bottom, right = [pads] * 4 if isinstance(pads, int) else pads
    attrs = {"kernel_shape": [kernel] * 2, "strides": [strides] * 2, "pads": [top, left, bottom, right]}

    def expected(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-torch.inf), kernel, strides)

    return Case(name, ((2, 2, *size),), attrs, expected, values, smooth=values is distinct)


def average_pool_case(name: str, size: tuple[int, int], kernel: int, strides: int, pads: Any = 0, include: int = 0) -> Case:
    top, left, bottom, right = [pads] * 4 if isinstance(pads, int) else pads
    attrs = {
        "kernel_shape": [kernel] * 2, "strides": [strides] * 2, "pads": [top, left, bottom, right], "count_include_pad": include
    }  # fmt: skip

    def expected(x: torch.Tensor) -> torch.Tensor:
        around = (left, right, top, bottom)
        total = F.avg_pool2d(F.pad(x, around), kernel, strides)
        return total if include else total / F.avg_pool2d(F.pad(torch.ones_like(x), around), kernel, strides)

    return Case(name, ((2, 2, *size),), attrs, expected)


def gemm_case(name: str, bias: bool) -> Case:
    return Case(name, ((4, 6), (3, 6), *([(3,)] if bias else [])), {"transB": 1}, F.linear)


def batch_norm_case(
    name: str, shape: tuple[int, ...], epsilon: float, momentum: float, spread: float = 1.0, training: bool = True
) -> Case:
    def values(random: np.random.Generator, i: int, shape: tuple[int, ...]) -> Array:
        return random.uniform(0.5, 2.0, shape) if i == 4 else random.normal(0.3, spread if i == 0 else 1.0, shape)

    def expected(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, mean.clone(), var.clone(), gamma, beta, training, 1 - momentum, epsilon)

    attrs = {"epsilon": epsilon, "momentum": momentum}
    return Case(name, (shape, *[(shape[1],)] * 4), attrs, expected, values, frozen=2)


CASES: dict[str, list[Case]] = {
    "Conv": [
        conv_case("3x3", (5, 5), (3, 3), pads=1),
        conv_case("3x3 without padding", (5, 4), (3, 3)),
        conv_case("3x3 stride 2, odd size", (7, 5), (3, 3), strides=2, pads=1),
        conv_case("3x3 stride 2, even size: a row no window sees", (6, 6), (3, 3), strides=2, pads=1),
        conv_case("3x3 stride 2 without padding: a remainder", (6, 8), (3, 3), strides=2),
        conv_case("1x1", (4, 3), (1, 1)),
        conv_case("1x1 stride 2: the kernel is smaller than the stride", (5, 6), (1, 1), strides=2),
        conv_case("2x2 stride 3: gaps between windows", (8, 7), (2, 2), strides=3),
        conv_case("5x5 stride 2", (9, 8), (5, 5), strides=2, pads=2),
        conv_case("asymmetric pads", (5, 6), (3, 3), pads=(0, 1, 2, 0)),
        conv_case("asymmetric pads, stride 2, as SAME_UPPER", (6, 6), (3, 3), strides=2, pads=(0, 0, 1, 1)),
        conv_case("asymmetric kernel", (5, 6), (1, 3), pads=(0, 1, 0, 1)),
        conv_case("dilation 2", (7, 6), (3, 3), pads=2, dilations=2),
        conv_case("dilation 2, stride 2", (8, 7), (3, 3), strides=2, pads=1, dilations=2),
        conv_case("padding wider than the kernel needs", (4, 4), (1, 1), pads=1),
        conv_case("bias", (4, 4), (3, 3), pads=1, bias=True),
        conv_case("2 groups", (5, 4), (3, 3), pads=1, channels=(4, 6), group=2),
        conv_case("2 groups, stride 2, dilation 2, asymmetric pads", (8, 7), (3, 2), strides=2, pads=(1, 0, 2, 1), dilations=2,
                  channels=(6, 4), group=2),
        conv_case("2 groups, 1x1 stride 2, bias", (5, 6), (1, 1), strides=2, bias=True, channels=(6, 4), group=2),
        conv_case("depthwise", (5, 4), (3, 3), pads=1, channels=(4, 4), group=4),
        conv_case("depthwise, stride 2", (6, 5), (3, 3), strides=2, pads=1, channels=(4, 4), group=4),
        conv_case("depthwise, 2 outputs a channel", (5, 5), (3, 3), pads=1, channels=(3, 6), group=3),
        conv_case("depthwise, 2 outputs a channel, stride 2, dilation 2, bias", (8, 7), (3, 3), strides=2, pads=2, dilations=2,
                  bias=True, channels=(3, 6), group=3),
    ],
    "Gemm": [gemm_case("bias", True), gemm_case("no bias", False)],
    "BatchNormalization": [
        batch_norm_case("batch", (3, 4, 4, 3), 1e-5, 0.9),
        batch_norm_case("a great epsilon", (2, 3, 3, 3), 0.1, 0.7),
        batch_norm_case("one pixel", (5, 3, 1, 1), 1e-3, 0.9),
        batch_norm_case("a small variance", (3, 4, 4, 3), 1e-4, 0.99, spread=0.02),
    ],
    FROZEN: [
        batch_norm_case("running statistics", (3, 4, 4, 3), 1e-5, 0.9, training=False),
        batch_norm_case("one image", (1, 3, 2, 3), 0.1, 0.7, training=False),
    ],
    "Relu": [
        Case("relu", ((2, 3, 4, 4),), {}, torch.relu, distinct),
        Case("no error passes at 0", ((2, 3, 4, 4),), {}, torch.relu, lambda r, i, shape: r.integers(-1, 2, shape), smooth=False),
    ],
    "Add": [Case("add", ((2, 3, 4, 4), (2, 3, 4, 4)), {}, torch.add)],
    "MaxPool": [
        max_pool_case("2x2 stride 2", (6, 4), 2, 2),
        max_pool_case("3x3 stride 2 padded: windows overlap", (6, 7), 3, 2, pads=1),
        max_pool_case("3x3 stride 1", (5, 5), 3, 1, pads=1),
        max_pool_case("2x2 stride 3: gaps between windows", (8, 7), 2, 3),
        max_pool_case("asymmetric pads", (6, 6), 3, 2, pads=(0, 1, 1, 0)),
        max_pool_case("ties, padded and overlapping", (7, 7), 3, 2, pads=1, values=tied),
        max_pool_case("ties, stride 1", (5, 6), 3, 1, pads=1, values=tied),
    ],
    "AveragePool": [
        average_pool_case("2x2 stride 2", (4, 6), 2, 2),
        average_pool_case("3x3 stride 2 padded, padding counts", (7, 6), 3, 2, pads=1, include=1),
        average_pool_case("3x3 stride 2 padded, padding does not count", (7, 6), 3, 2, pads=1, include=0),
        average_pool_case("asymmetric pads, padding does not count", (5, 5), 3, 1, pads=(1, 0, 0, 1), include=0),
        average_pool_case("2x2 stride 3: gaps between windows", (7, 8), 2, 3),
    ],
    "GlobalAveragePool": [Case("global", ((2, 3, 5, 3),), {}, lambda x: x.mean((2, 3), keepdim=True))],
    "Pad": [
        pad_case("more channels", 0, 2, 0, 0, 0, 1, 0, 0),
        pad_case("around the map", 0, 0, 1, 0, 0, 0, 2, 1),
        pad_case("all at once", 0, 1, 1, 1, 0, 0, 1, 1),
    ],
    "Flatten": [Case("flatten", ((2, 3, 2, 4),), {}, lambda x: x.flatten(1))],
}  # fmt: skip

EACH = [pytest.param(op, case, id=f"{op}-{case.name}") for op, cases in CASES.items() for case in cases]


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(TESTED)
    assert all(any(case.smooth for case in cases) for cases in CASES.values())


def differentiated(op: str, case: Case) -> onnx.ModelProto:
    """Inputs operand0, operand1, ..., dy; outputs y and gradient0, ..."""
    g = Model.empty("rule", op)
    operands = []
    for i, shape in enumerate(case.shapes):
        is_state = i >= len(case.shapes) - case.frozen  # the running statistics, which the rule also advances
        value = np.zeros(shape, np.float32)
        operands.append(
            g.state(f"operand{i}", "state", "", value).tensor if is_state else g.input(f"operand{i}", np.float32, shape)
        )
    y, pullback = TESTED[op](g, case.attrs, operands + [g.ints(*values) for values in case.constants])
    dy = g.input("dy", np.float32, y.shape)
    gradients = pullback(dy)
    assert gradients[len(operands) :] == [None] * len(case.constants)
    gradients = gradients[: len(operands)]
    assert [gradient is None for gradient in gradients] == [i >= len(operands) - case.frozen for i in range(len(operands))]
    outputs = {"y": y} | {f"gradient{i}": gradient for i, gradient in enumerate(gradients) if gradient is not None}
    proto = to_proto(g, outputs)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def drawn(case: Case, output: tuple[int, ...], seed: int = 0) -> dict[str, Array]:
    """Operands and dy, float32 numbers."""
    random = np.random.default_rng(seed)
    feeds = {f"operand{i}": case.values(random, i, shape) for i, shape in enumerate(case.shapes)}
    feeds["dy"] = random.normal(0, 1, output)
    return {name: np.asarray(value, np.float32) for name, value in feeds.items()}


def output_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim)


@pytest.mark.parametrize(("op", "case"), [p for p in EACH if p.values[1].smooth])
def test_gradients_are_the_finite_differences(op: str, case: Case) -> None:
    model = differentiated(op, case)
    feeds = {name: value.astype(np.float64) for name, value in drawn(case, output_shape(model)).items()}
    wide = float64_copy(model)
    exact = run_reference(wide, used(wide, feeds))
    forward = only_y(wide)
    evaluator = reference_evaluator(forward)

    def loss(changed: dict[str, Array]) -> float:
        return float((evaluator.run(None, used(forward, changed))[0] * feeds["dy"]).sum())

    for i in range(len(case.shapes) - case.frozen):
        name = f"operand{i}"
        differences = np.zeros_like(feeds[name])
        for index in np.ndindex(feeds[name].shape):
            sides = []
            for sign in (1, -1):
                moved = feeds[name].copy()
                moved[index] += sign * STEP
                sides.append(loss({**feeds, name: moved}))
            differences[index] = (sides[0] - sides[1]) / (2 * STEP)
        assert relative(exact[f"gradient{i}"], differences) < 1e-7, name


@pytest.mark.parametrize(("op", "case"), EACH)
@pytest.mark.parametrize("seed", [1, 2])
def test_gradients_are_those_of_pytorch(op: str, case: Case, seed: int) -> None:
    model = differentiated(op, case)
    feeds = drawn(case, output_shape(model), seed)
    found = run_ort(model, used(model, feeds))
    operands = [torch.tensor(feeds[f"operand{i}"]) for i in range(len(case.shapes))]
    trained = operands[: len(operands) - case.frozen]
    for operand in trained:
        operand.requires_grad_()
    y = case.torch(*operands)
    expected = torch.autograd.grad(y, trained, torch.tensor(feeds["dy"]))
    assert relative(found["y"], y.detach().numpy()) < 1e-5
    for i, gradient in enumerate(expected):
        assert relative(found[f"gradient{i}"], gradient.numpy()) < 1e-4, f"operand {i}"


@pytest.mark.parametrize(("op", "case"), EACH)
def test_the_step_of_pytorch_computes_the_same(op: str, case: Case) -> None:
    """That of the benchmark."""
    random = np.random.default_rng(1)
    operands = [
        torch.tensor(np.asarray(case.values(random, i, shape)), dtype=torch.float64) for i, shape in enumerate(case.shapes)
    ]
    expected = case.torch(*operands)
    constants = [torch.tensor(values) for values in case.constants]
    found = torch_step.RULES[op.split(",")[0]](operands + constants, case.attrs | {"frozen": op == FROZEN})
    assert relative(found.numpy(), expected.numpy()) < 1e-12


@pytest.mark.parametrize(("op", "case"), EACH)
def test_the_stages_know_what_a_rule_emits(op: str, case: Case) -> None:
    """Its nodes, outside composites and in them, are legal in a training stage and have an integer form."""
    model = differentiated(op, case)
    nodes = [node for part in (model.graph, *model.functions) for node in part.node if node.op_type != "Constant"]
    plain, composite = ({node.op_type for node in nodes if bool(node.domain) == called} for called in (False, True))
    assert plain <= TRAINING_OPS and plain <= integers.RULES.keys()
    assert {kind_of(name) for name in composite} <= integers.RULES.keys()


def used(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """The feeds that the model has an input for."""
    return {i.name: feeds[i.name] for i in model.graph.input}


def only_y(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes that y needs, and no others."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    needed, pending = set(), ["y"]
    while pending:
        node = makers.get(pending.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            pending += node.input
    kept = [node for node in model.graph.node if node.name in needed]
    del copy.graph.node[:], copy.graph.output[1:]
    copy.graph.node.extend(kept)
    return copy
