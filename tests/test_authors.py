"""Profile `authors` computes what the authors' code does: every quantize node against their formulas, written down again here.

Nothing of this project computes what is expected. The functions are those of the table of data paths in WAGEUBN (Yang et al.,
arXiv 1909.02384) as the authors' code fills it in, on float64. Of R only the rounding of the logarithm is made exact: 2^(j+1/2)
is irrational, so a comparison of squares decides it.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import frexp
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper as h
from onnx.reference import ReferenceEvaluator

from float64 import float64_copy
from kernels import EXACT
from networks import BATCH, CLASSES, MEAN, STD, Net, images, labels, ort_session, preactivation, to_float, with_own_statistics
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.config import Config
from wageubn_onnx.graph import DOMAIN, IR_VERSION, OPSET, node_tag
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import load_profile

Array = np.ndarray[Any, Any]

# -- the formulas ---------------------------------------------------------------------------------------------------------


def q(x: Array, k: int) -> Array:
    """Direct quantization: k - 1 fractional bits, ties to even, no bounds."""
    return np.round(x * 2.0 ** (k - 1)) / 2.0 ** (k - 1)


def r(x: Array) -> float:
    """2^round(log2 max|x|); of zeros 1, which leaves them zeros."""
    greatest = float(np.max(np.abs(x)))
    if greatest == 0:
        return 1.0
    below = frexp(greatest)[1] - 1  # 2^below <= greatest < 2^(below + 1)
    return 2.0 ** (below + (Fraction(greatest) ** 2 > Fraction(2) ** (2 * below + 1)))


def sq(x: Array) -> Array:
    """Shift quantization to 8 bits."""
    return r(x) * np.clip(q(x / r(x), 8), -1, 1)


def flag(x: Array) -> Array:
    """8 bits of R/2^7 for what reaches that, 8 bits of R/2^14 for what does not."""
    s = r(x) / 2**7
    return np.where(np.abs(x) >= s, s * np.clip(np.round(x / s), -127, 127), s * np.clip(q(x / s, 8), -1, 1))


def cq(x: Array, dr: Array, random: Array) -> Array:
    """Constant quantization; the magnitude goes up where its fraction exceeds the random number, 16 bits of it."""
    scaled = np.abs(dr * x / r(x))
    up = scaled - np.floor(scaled) > random / 2**16
    return np.clip(np.sign(x) * (np.floor(scaled) + up), -dr + 1, dr - 1) / 2**14


FORMULAS: dict[str, Callable[..., Array]] = {
    "W": lambda w: np.clip(q(w, 8), -1 + 2**-7, 1 - 2**-7),
    "A": lambda a: q(a, 8),
    "BN.mu": lambda mu: q(mu, 16),
    "BN.sigma": lambda sigma: q(sigma, 16),
    "BN.x": lambda xh: q(xh, 8),
    "gamma": lambda gamma: q(gamma, 8),
    "beta": lambda beta: q(beta, 8),
    "E1": sq,
    "E2": flag,
    "G.W": cq,
    "G.gamma": lambda g: q(g, 15),
    "G.beta": lambda g: q(g, 15),
    "M.coefficient": lambda m: q(m, 3),
    "M.W": lambda a: q(a, 13),
    "M.gamma": lambda a: q(a, 13),
    "M.beta": lambda a: q(a, 13),
    "lr": lambda lr: np.clip(q(lr, 10), -1 + 2**-9, 1 - 2**-9),
    "U.W": lambda w: q(w, 24),
    "U.gamma": lambda w: q(w, 24),
    "U.beta": lambda w: q(w, 24),
}
CLIPPED = {"W", "E1", "E2", "G.W", "lr"}  # of all others the table bounds none
EPSILON, MOMENTUM, DECAY = 2.0**-15, 0.25, 1e-4

# -- what stands where ----------------------------------------------------------------------------------------------------


def resnet(seed: int = 0) -> onnx.ModelProto:
    """A stem with max pooling, a block with an identity and one with a projection, an average, a classifier."""
    n = Net(seed)
    stem = n.relu(n.bn(n.conv("x", "stem", 3, 6), "stem_bn", 6), "stem_relu")
    x = n.node("MaxPool", stem, name="maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])  # 6x6
    y = n.relu(n.bn(n.conv(x, "a1", 6, 6), "a1_bn", 6), "a1_relu")
    x = n.relu(n.node("Add", n.bn(n.conv(y, "a2", 6, 6), "a2_bn", 6), x, name="a_add"), "a_relu")
    y = n.relu(n.bn(n.conv(x, "b1", 6, 8, strides=[2, 2]), "b1_bn", 8), "b1_relu")
    short = n.bn(n.conv(x, "b_short", 6, 8, k=1, strides=[2, 2]), "b_short_bn", 8)
    x = n.relu(n.node("Add", n.bn(n.conv(y, "b2", 8, 8), "b2_bn", 8), short, name="b_add"), "b_relu")
    x = n.node("Flatten", n.node("GlobalAveragePool", x, name="gap"), name="flatten")
    return with_own_statistics(n.model(n.gemm(x, 8, CLASSES)), seed)


NETWORKS = {"resnet": resnet, "preactivation": preactivation}


@pytest.fixture(scope="module", params=NETWORKS)
def authors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    file = tmp_path_factory.mktemp("authors") / f"{request.param}.onnx"
    onnx.save(NETWORKS[request.param](), file)
    return convert(file, Config(batch=BATCH, mean=MEAN, std=STD, weight_decay=DECAY, profile=load_profile("authors")))


def quantize_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.domain == DOMAIN and any(a.name == "role" for a in n.attribute)]


def test_their_quantizers_stand_where_theirs_do_and_nowhere_else(authors: Artifacts) -> None:
    """First and last layer, pooling, sums, bias, logits and loss have none; every other place has each of its own, once."""
    source = authors.files["forward"].graph
    layers: dict[str, list[str]] = {}
    for node in source.node:
        layers.setdefault(node.op_type, []).append(node_tag(node).layer)
    assert len(layers["Gemm"]) == 1
    batch_norm = ("gamma", "beta", "BN.mu", "BN.sigma", "BN.x")
    batch_norm += tuple(f"{path}.{kind}" for path in "GMU" for kind in ("gamma", "beta"))
    theirs = [("optimizer", "M.coefficient"), ("optimizer", "lr")]
    theirs += [(layer, role) for layer in layers["Conv"][1:] for role in ("W", "E2", "G.W", "M.W", "U.W")]
    theirs += [(layer, role) for layer in layers["BatchNormalization"] for role in batch_norm]
    theirs += [(layer, role) for layer in layers["Relu"] for role in ("A", "E1")]
    tags = [node_tag(node) for node in quantize_nodes(authors.files["quant_training"])]
    assert sorted((tag.layer, tag.role) for tag in tags) == sorted(theirs)
    assert {tag.role for tag in tags} == set(FORMULAS)


def test_nothing_is_bounded_that_theirs_leaves_unbounded(authors: Artifacts) -> None:
    for stage in ("quant_training", "quant_eval"):
        for node in quantize_nodes(authors.files[stage]):
            attributes = {a.name: a.f for a in node.attribute}
            if node_tag(node).role not in CLIPPED:
                assert (attributes["lo"], attributes["hi"]) == (-np.inf, np.inf), node.name


# -- every node, in a step ------------------------------------------------------------------------------------------------


class Run:
    """Some steps of `quant_training` on float64, every tensor by name; the state goes from one to the next."""

    def __init__(self, artifacts: Artifacts) -> None:
        self.model = artifacts.files["quant_training"]
        self.makers = {name: node for node in self.model.graph.node for name in node.output}
        evaluator = ReferenceEvaluator(float64_copy(self.model))
        state = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in artifacts.quant_state.items()}
        self.steps: list[dict[str, Array]] = []
        for count, (lr, dr) in enumerate([(0.1, 128), (3.0, 32), (0.0009765625, 2)]):  # beyond the grid, and a tie on it
            feeds = {
                "images": to_float(images(seed=count)).astype(np.float64),
                "labels": labels(seed=count),
                "lr": np.array(lr),
                "gradient_range": np.array(dr, np.int32),
                "seed": np.array(count, np.int32),
                **state,
            }
            found = evaluator.run(None, feeds, intermediate=True)
            assert isinstance(found, dict)
            self.steps.append({**feeds, **found})
            state = {key: found[f"{key}.next"] for key in state}

    def role(self, role: str, layer: str = "") -> list[onnx.NodeProto]:
        tags = [(n, node_tag(n)) for n in quantize_nodes(self.model)]
        return [n for n, tag in tags if tag.role == role and layer in ("", tag.layer)]

    def above(self, tensor: str, count: int) -> str:
        """The first operand of the first operand ..., ``count`` nodes back."""
        for _ in range(count):
            tensor = self.makers[tensor].input[0]
        return tensor

    def one(self, role: str, layer: str) -> onnx.NodeProto:
        (node,) = self.role(role, layer)
        return node


@pytest.fixture(scope="module")
def run(authors: Artifacts) -> Run:
    return Run(authors)


def test_every_quantize_node_computes_their_formula(run: Run) -> None:
    seen: dict[str, int] = {}
    for values in run.steps:
        for node in quantize_nodes(run.model):
            role, (x, *rest) = node_tag(node).role, [values[name] for name in node.input]
            operands = rest if role != "G.W" else [rest[0].astype(np.float64), rest[1]]
            expected = FORMULAS[role](x, *operands)
            np.testing.assert_array_equal(values[node.output[0]], expected, node.name, strict=True)
            seen[role] = seen.get(role, 0) + int(np.any(expected != x))
    assert set(seen) == set(FORMULAS)
    assert {role for role, changed in seen.items() if not changed} <= {"M.coefficient", "G.beta"}  # which lie on their grids


def test_batch_norm_is_theirs(run: Run) -> None:
    """Biased variance, epsilon behind the root, and a backward that reads the value before Q_BN."""
    for values in run.steps:
        for node in run.role("BN.x"):
            layer = node_tag(node).layer
            mu, sigma = (values[run.one(role, layer).output[0]] for role in ("BN.mu", "BN.sigma"))
            gamma, beta = (values[run.one(role, layer).output[0]].reshape(-1, 1, 1) for role in ("gamma", "beta"))
            exact, rounded = (values[name] for name in (node.input[0], node.output[0]))
            x = values[run.above(node.input[0], 2)]
            np.testing.assert_allclose(values[run.one("BN.mu", layer).input[0]], mean(x), 1e-12, 1e-15)
            np.testing.assert_allclose(values[run.one("BN.sigma", layer).input[0]], np.sqrt(mean((x - mu) ** 2)), 1e-12)
            np.testing.assert_array_equal(exact, (x - mu) / (sigma + EPSILON))
            np.testing.assert_array_equal(values[f"{layer}/bn"], rounded * gamma + beta)
            e = values[run.above(run.one("G.beta", layer).input[0], 2)]
            np.testing.assert_allclose(values[run.one("G.gamma", layer).input[0]], (e * exact).sum((0, 2, 3)), 1e-9, 1e-15)
            dx = gamma / (sigma + EPSILON) * (e - mean(e) - exact * mean(e * exact))
            np.testing.assert_allclose(values[f"{layer}/dx"], dx, 1e-9, 1e-15)


def mean(x: Array) -> Array:
    return np.asarray(x.mean((0, 2, 3), keepdims=True))


def test_the_update_is_theirs(run: Run) -> None:
    """a = m acc + g, acc' = Q(a, 13), w' = Q(w - lr a, 24), weight decay before CQ and for weights only."""
    for values in run.steps:
        lr = values[run.role("lr")[0].output[0]]
        for kind in ("W", "gamma", "beta"):
            for node in run.role(f"G.{kind}"):
                layer = node_tag(node).layer
                stored, momentum = run.one(f"U.{kind}", layer), run.one(f"M.{kind}", layer)
                key = stored.output[0].removesuffix(".next")
                a = MOMENTUM * values[f"{key}.momentum"] + values[node.output[0]]
                np.testing.assert_array_equal(values[momentum.input[0]], a)
                np.testing.assert_array_equal(values[stored.input[0]], values[key] - lr * a)
                assert momentum.output[0] == f"{key}.momentum.next"
        for node in run.role("G.W"):
            total = run.makers[node.input[0]]
            key = run.one("U.W", node_tag(node).layer).output[0].removesuffix(".next")
            (gradient,) = (values[name] for name in total.input if node_tag(run.makers[name]).role != "G.decay")
            np.testing.assert_array_equal(values[node.input[0]], gradient + np.float64(np.float32(DECAY)) * values[key])


# -- every node, on what is hard ------------------------------------------------------------------------------------------

TIES = st.builds(lambda m, k: (m + 0.5) * 2.0**k, st.integers(-300, 300), st.integers(-30, 10))
THRESHOLDS = st.builds(
    lambda sign, j, toward: sign * float(np.nextafter(np.float32(2.0 ** (j + 0.5)), np.float32(2.0 ** (j + toward)))),
    st.sampled_from([-1, 1]),
    st.integers(-20, 20),
    st.sampled_from([0.0, 0.5, 1.0]),  # below, at and above the float32 nearest to R's threshold
)
POWERS = st.builds(lambda sign, k: sign * 2.0**k, st.sampled_from([-1, 1]), st.integers(-30, 20))
ANY = st.floats(-(2.0**20), 2.0**20, width=32).map(lambda x: x if abs(x) > 2.0**-40 else 0.0)
MIXED = st.lists(st.one_of(st.just(0.0), TIES, THRESHOLDS, POWERS, ANY), min_size=1, max_size=12)
SHARES = st.lists(st.integers(-512, 512).map(lambda n: n / 512), max_size=11)
RANGED = st.builds(lambda top, shares: [top, *(top * share for share in shares)], THRESHOLDS, SHARES)  # nothing is greater


def alone(model: onnx.ModelProto, role: str) -> onnx.ModelProto:
    """The first quantize node of a role as a model of its own."""
    node = next(n for n in quantize_nodes(model) if node_tag(n).role == role)
    kinds = dict(zip(node.input, (np.float32, np.int32, np.int32), strict=False))
    inputs = [h.make_tensor_value_info(name, h.np_dtype_to_tensor_dtype(np.dtype(kind)), None) for name, kind in kinds.items()]
    graph = h.make_graph([node], role, inputs, [onnx.ValueInfoProto(name=node.output[0])])
    opsets = [h.make_opsetid("", OPSET), h.make_opsetid(DOMAIN, 1)]
    return h.make_model(graph, functions=model.functions, opset_imports=opsets, ir_version=IR_VERSION)


@pytest.mark.parametrize("role", FORMULAS)
def test_a_quantizer_computes_their_formula_of_anything(role: str, authors: Artifacts) -> None:
    """float32 in onnxruntime and float64 in onnx's evaluator: ties, zeros, powers of two, the neighbours of R's thresholds."""
    model = alone(authors.files["quant_training"], role)
    kernel, exact = ort_session(model), ReferenceEvaluator(float64_copy(model))
    names = [i.name for i in model.graph.input]

    @EXACT
    @given(
        st.one_of(MIXED, RANGED),
        st.sampled_from([2, 4, 8, 16, 32, 64, 128]),
        st.lists(st.sampled_from([0, 1, 2**15, 2**16 - 1]), min_size=12),
    )
    def holds(numbers: list[float], dr: int, bits: list[int]) -> None:
        x = np.array(numbers, np.float32)
        rest = [np.array(dr, np.int32), np.array(bits[: len(x)], np.int32)][: len(names) - 1]
        wide = x.astype(np.float64)
        expected = FORMULAS[role](wide, *(v.astype(np.float64) for v in rest))
        assert np.array_equal(kernel.run(None, dict(zip(names, [x, *rest], strict=True)))[0], expected)
        assert np.array_equal(exact.run(None, dict(zip(names, [wide, *rest], strict=True)))[0], expected)

    holds()
