"""How large each forward tensor gets, channel by channel: what the static formats are chosen from.

Without data, a BN output is taken as Gaussian with mean beta and deviation gamma, its ReLU as the rectified Gaussian, a sum as a
sum of independent terms, and a BN that only spells gamma*x + beta as that; with data, the network runs and the greatest
magnitudes count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.dryrun import evaluator
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.operators import Table

Array = np.ndarray[Any, Any]
SPREAD = 6.0  # deviations that an activation format covers
BLOCK = 8  # pixels of one colour in the images of a dry run: natural images are smooth
CONVOLUTION_SPREAD = 16.0  # and a convolution's 16-bit format, which must last while the weights train


@dataclass(frozen=True)
class Moments:
    """Per-channel mean and deviation of a tensor, float64 [C], and the greatest magnitude expected, float64 [C]."""

    mean: Array
    deviation: Array
    reach: Array


def estimate(forward: Model, pixel_range: Array) -> dict[str, Moments]:
    """Moments of every tensor of `forward` by name; ``pixel_range`` is the least and greatest input per channel, [2, C]."""
    low, high = pixel_range
    centre, half = (low + high) / 2, (high - low) / 2
    found = {"images": Moments(centre, half / math.sqrt(3), np.maximum(abs(low), abs(high)))}
    for node in forward.graph.nodes:
        inputs = [found[i.name] for i in node.inputs if i.name in found]
        parameters = [_number(forward, i) for i in node.inputs if i.name not in found]
        estimate_of = _affine if is_affine(forward, node) else ESTIMATES.of(node.op, f"node {node.name!r}")
        found[node.outputs[0].name] = estimate_of(inputs, parameters)
    for node in forward.graph.nodes:  # a convolution's own statistics are better known by the BN that reads it
        if node.op == "BatchNormalization" and not is_affine(forward, node):
            mean, variance = (forward.states[i.name].value.astype(np.float64) for i in node.inputs[3:5])
            source, deviation = found.get(node.inputs[0].name), np.sqrt(variance)
            spread = np.maximum(deviation, source.deviation / 4) if source else deviation
            found[node.inputs[0].name] = Moments(mean, deviation, abs(mean) + CONVOLUTION_SPREAD * spread)
    return found


def _number(forward: Model, operand: Tensor) -> Array:
    """A parameter, float64; of a constant, its values as they are."""
    state = forward.states.get(operand.name)
    return state.value.astype(np.float64) if state else np.asarray(operand.values)


def is_affine(forward: Model, node: gs.Node) -> bool:
    """Whether ``node`` is a BatchNormalization by frozen statistics of mean 0 and variance 1, which say nothing of its input."""
    if node.op != "BatchNormalization":
        return False
    mean, variance = (forward.states[i.name] for i in node.inputs[3:5])
    return mean.frozen and variance.frozen and not mean.value.any() and bool((variance.value == 1).all())


def measure(forward: Model, images: Array) -> dict[str, Moments]:
    """The same from float32 ``images`` [n, C, H, W], already normalised.

    Reach is the greatest magnitude seen, but for a convolution's output, whose 16 bits leave room for training.
    """
    tensors = {n.outputs[0].name: n.outputs[0] for n in forward.graph.nodes}
    outputs = evaluator(forward, tensors)({"images": images}) | {"images": images}
    convolutions = {n.outputs[0].name for n in forward.graph.nodes if n.op == "Conv"}
    return {name: _measured(value.astype(np.float64), name in convolutions) for name, value in outputs.items()}


def greatest_errors(step: Model) -> dict[str, float]:
    """The greatest magnitude in every place of an error quantizer of ``step``, a float training step, by its tensor's name.

    A dry run on images of random blocks and random labels (a fixed seed), of which ``step`` takes a few: errors of a mean loss
    are the greater the fewer images there are.
    """
    images, labels = step.named["images"], step.named["labels"]
    found, shape, draw = step.notes["ranges"]["input"], images.shape, np.random.default_rng(0)
    blocks = draw.uniform(-math.sqrt(3), math.sqrt(3), (*shape[:2], *(-(-n // BLOCK) for n in shape[2:])))
    noise = np.kron(blocks, np.ones((1, 1, BLOCK, BLOCK)))[:, :, : shape[2], : shape[3]]
    feeds = {
        images.name: (found.mean.reshape(-1, 1, 1) + noise * found.deviation.reshape(-1, 1, 1)).astype(np.float32),
        labels.name: draw.integers(0, step.notes["classes"], labels.shape).astype(labels.dtype),
    }
    feeds[step.named["lr"].name] = np.zeros([], np.float32)  # nothing is updated
    operands = {slot.name: slot.inputs[0].inputs[:1] for slot in step.by_role("E1", "E2", "E.bn")}
    operands |= {total.name: total.inputs[0].inputs for total in step.by_role("E.sum")}
    tensors = {tensor.name: tensor for each in operands.values() for tensor in each}
    results = evaluator(step, tensors)(feeds)
    return {name: max(float(abs(results[t.name]).max()) for t in each) for name, each in operands.items()}


def _measured(value: Array, is_convolution: bool) -> Moments:
    axes = tuple(a for a in range(value.ndim) if a != 1)
    mean, deviation, reach = value.mean(axes), value.std(axes), abs(value).max(axes)
    return Moments(mean, deviation, abs(mean) + CONVOLUTION_SPREAD * deviation if is_convolution else reach)


def _moments(mean: Array, deviation: Array) -> Moments:
    return Moments(mean, deviation, abs(mean) + SPREAD * deviation)


def _product(inputs: list[Moments], parameters: list[Array]) -> Moments:
    """Independent inputs: the mean is w.mean, the variance w^2.variance, over the inputs of an output's group."""
    (x,), (w, *bias) = inputs, parameters
    repeat = max(w.shape[1] // len(x.mean), 1)  # a flattened map repeats each channel
    groups = repeat * len(x.mean) // w.shape[1]
    w = w.reshape(groups, len(w) // groups, w.shape[1], -1)  # [G, O/G, I/G, KH*KW]
    means, deviations = (np.repeat(v, repeat).reshape(groups, -1) for v in (x.mean, x.deviation))
    mean = np.einsum("goik,gi->go", w, means).ravel() + (bias[0] if bias else 0.0)
    variance = np.einsum("goik,gi->go", w**2, deviations**2).ravel()
    return _moments(mean, np.sqrt(variance))


def _batch_norm(inputs: list[Moments], parameters: list[Array]) -> Moments:
    gamma, beta, _, _ = parameters
    return _moments(beta, abs(gamma))


def _affine(inputs: list[Moments], parameters: list[Array]) -> Moments:
    gamma, beta, _, _ = parameters
    return _moments(gamma * inputs[0].mean + beta, abs(gamma) * inputs[0].deviation)


def _relu(inputs: list[Moments], parameters: list[Array]) -> Moments:
    mean, deviation = inputs[0].mean, np.maximum(inputs[0].deviation, 1e-9)
    ratio = mean / deviation
    density = np.exp(-np.minimum(ratio**2, 700) / 2) / math.sqrt(2 * math.pi)
    below = np.array([(1 + math.erf(r / math.sqrt(2))) / 2 for r in ratio])
    first = mean * below + deviation * density
    second = (mean**2 + deviation**2) * below + mean * deviation * density
    return Moments(first, np.sqrt(np.maximum(second - first**2, 0)), np.maximum(mean + SPREAD * deviation, 0))


def _add(inputs: list[Moments], parameters: list[Array]) -> Moments:
    a, b = inputs
    return _moments(a.mean + b.mean, np.hypot(a.deviation, b.deviation))


def _pad(inputs: list[Moments], parameters: list[Array]) -> Moments:
    """More channels, of zeros; zeros around a map change little."""
    (x,), (amounts,) = inputs, parameters
    around = (int(amounts[1]), int(amounts[5]))
    return Moments(*(np.pad(values, around) for values in (x.mean, x.deviation, x.reach)))


def _same(inputs: list[Moments], parameters: list[Array]) -> Moments:
    return inputs[0]


Estimate = Callable[[list[Moments], list[Array]], Moments]


ESTIMATES = Table[Estimate](
    "estimate of its range",
    Conv=_product,
    Gemm=_product,
    BatchNormalization=_batch_norm,
    Relu=_relu,
    Add=_add,
    MaxPool=_same,
    AveragePool=_same,
    GlobalAveragePool=_same,
    Pad=_pad,
    Flatten=_same,
)


def exponent_for(reach: float, bits: int) -> int:
    """The least exponent at which mantissas of that width hold ``reach``; half a unit over the greatest is let go.

    A reach of 0 is taken as 2^-20: a dead tensor still gets a format.
    """
    return math.ceil(math.log2(max(reach, 2.0**-20) / (2 ** (bits - 1) - 0.5)))
