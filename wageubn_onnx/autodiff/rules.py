"""The gradient rules, one function an operator, all in the table at the end.

A rule emits its operator's training form and returns the result with its pullback: given dL/dy, the pullback emits dL/dx for
each operand, in order. To add an operator, copy the rule beside it, add it to `RULES`, and add a case to tests/autodiff: a rule
without a finite-difference case fails the suite.

What the quantize passes look for is said here, as a ``role`` on the node that makes it; see docs/numerics.md for the roles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from wageubn_onnx import composites
from wageubn_onnx.geometry import Window, scatter_taps, tap_slices
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.operators import Table

Pullback = Callable[[Tensor], list[Tensor | None]]
Rule = Callable[[Model, dict[str, Any], list[Tensor]], tuple[Tensor, Pullback]]


def conv(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """y[n,o] = sum_i x[n,i] * w[o,i] + b[o] (ONNX Conv); with G groups, i runs over the I/G input channels of o's group."""
    x, w, *bias = operands
    window = Window.of(attrs)
    product = g.op("Conv", x, w, name="conv", role="C" if not bias else "", **attrs)
    y = _add_bias(g, product, bias, "C")

    def weight_gradient(b: Model, of: list[Tensor]) -> list[Tensor]:
        image, errors = of
        return [_conv_weight_gradient(b, image, errors, window, attrs["group"])]

    def pullback(error: Tensor) -> list[Tensor | None]:
        dy = g.slot(error, "E2")
        full = [
            (product.shape[2 + a] - 1) * window.strides[a] + window.dilations[a] * (window.kernel[a] - 1) + 1 for a in range(2)
        ]
        extra = [x.shape[2 + a] + window.before[a] + window.after[a] - full[a] for a in range(2)]
        dx = g.op(
            "ConvTranspose", dy, w, name="dx", role="E.acc", group=attrs["group"], kernel_shape=list(window.kernel),
            output_padding=extra, **{k: attrs[k] for k in ("strides", "pads", "dilations")},
        )  # fmt: skip
        with g.context(path="G.W"):
            dw = composites.emit(g, "ConvWeightGradient", [x, dy], weight_gradient, name="dw", **attrs)[0]
        return [dx, dw, *(_bias_gradient(g, dy) for _ in bias)]

    return y, pullback


def _conv_weight_gradient(g: Model, x: Tensor, dy: Tensor, window: Window, groups: int) -> Tensor:
    """dw[o,i,kh,kw] = sum over windows of x at that tap times dy: one product over gathered columns.

    x [N, I, H, W], dy [N, O, OH, OW]; dw [O, I/G, KH, KW].
    """
    n, channels = x.shape[:2]
    _, o, oh, ow = dy.shape
    kh, kw = window.kernel
    i = channels // groups
    by_channel = g.op("Transpose", x, name="x_t", perm=[1, 0, 2, 3])  # [I, N, H, W]
    if groups > 1:
        return _grouped_weight_gradient(g, by_channel, dy, window, groups)
    taps = tap_slices(g, by_channel, window, (oh, ow))
    # [I, KH*KW*N, OH, OW]: a channel's taps side by side, as in w, so that the product needs no more than a plain transpose
    columns = g.op("Concat", *taps, name="columns", axis=1) if len(taps) > 1 else taps[0]
    columns = g.op("Reshape", columns, g.ints(i * kh * kw, n * oh * ow), name="columns")
    errors = g.op("Transpose", dy, name="dy_t", perm=[0, 2, 3, 1])
    errors = g.op("Reshape", errors, g.ints(n * oh * ow, o), name="dy_t")
    dw = g.op("MatMul", columns, errors, name="dw_columns")  # [I*KH*KW, O]
    dw = g.op("Transpose", dw, name="dw", perm=[1, 0])
    return g.op("Reshape", dw, g.ints(o, i, kh, kw), name="dw")


def _grouped_weight_gradient(g: Model, by_channel: Tensor, dy: Tensor, window: Window, groups: int) -> Tensor:
    """The same with a product a group, in one batch: [G, KH*KW*I/G, N*OH*OW] by [G, N*OH*OW, O/G]."""
    channels, n, h, width = by_channel.shape
    o, oh, ow = dy.shape[1:]
    kh, kw = window.kernel
    i = channels // groups
    by_group = g.op("Reshape", by_channel, g.ints(groups, i * n, h, width), name="x_t")
    taps = tap_slices(g, by_group, window, (oh, ow))
    columns = g.op("Concat", *taps, name="columns", axis=1) if len(taps) > 1 else taps[0]  # [G, KH*KW*I/G*N, OH, OW]
    columns = g.op("Reshape", columns, g.ints(groups, kh * kw * i, n * oh * ow), name="columns")
    errors = g.op("Reshape", dy, g.ints(n, groups, o // groups, oh * ow), name="dy_t")
    errors = g.op("Transpose", errors, name="dy_t", perm=[1, 0, 3, 2])
    errors = g.op("Reshape", errors, g.ints(groups, n * oh * ow, o // groups), name="dy_t")
    dw = g.op("MatMul", columns, errors, name="dw_columns")  # [G, KH*KW*I/G, O/G]
    dw = g.op("Reshape", dw, g.ints(groups, kh, kw, i, o // groups), name="dw_columns")
    dw = g.op("Transpose", dw, name="dw_t", perm=[0, 4, 3, 1, 2])
    return g.op("Reshape", dw, g.ints(o, i, kh, kw), name="dw")


def gemm(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """y = x w^T + b (ONNX Gemm, transB = 1)."""
    x, w, *bias = operands
    product = g.op("MatMul", x, g.op("Transpose", w, name="w_t", perm=[1, 0]), name="gemm", role="C" if not bias else "")
    y = _add_bias(g, product, bias, "C")

    def pullback(error: Tensor) -> list[Tensor | None]:
        dy = g.slot(error, "E2")
        dx = g.op("MatMul", dy, w, name="dx", role="E.acc")
        with g.context(path="G.W"):
            (dw,) = composites.emit(g, "GemmWeightGradient", [x, dy], _gemm_weight_gradient, name="dw")
        return [dx, dw, *(_bias_gradient(g, dy) for _ in bias)]

    return y, pullback


def _gemm_weight_gradient(g: Model, of: list[Tensor]) -> list[Tensor]:
    """dw[o,i] = sum over images of x[n,i] * dy[n,o]: x [N, I], dy [N, O]; dw [O, I]."""
    x, dy = of
    x_t = g.op("Transpose", x, name="x_t", perm=[1, 0])
    dw_t = g.op("MatMul", x_t, dy, name="dw_t")
    return [g.op("Transpose", dw_t, name="dw", perm=[1, 0])]


def _add_bias(g: Model, product: Tensor, bias: list[Tensor], role: str) -> Tensor:
    if not bias:
        return product
    shape = [1, -1] + [1] * (len(product.shape) - 2)
    return g.op("Add", product, g.op("Reshape", bias[0], g.ints(*shape), name="bias"), name="biased", role=role)


def _bias_gradient(g: Model, dy: Tensor) -> Tensor:
    axes = [a for a in range(len(dy.shape)) if a != 1]
    with g.context(path="G.bias"):
        return g.op("ReduceSum", dy, g.ints(*axes), name="dbias", keepdims=0)


CHANNEL = (1, -1, 1, 1)  # a per-channel vector beside [N, C, H, W]


def batch_norm(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """y = gamma * (x - mu) / sigma + beta, sigma = sqrt(var + eps), biased variance (ONNX BatchNormalization, training).

    dx = gamma/sigma * (e - mean(e) - xh*mean(e*xh)), written as e*A - xh*K - B with per-channel A, K, B: the form in which an
    integer kernel can afford it. The running statistics advance here too: r + (batch - r) * (1 - momentum).
    """
    x, gamma, beta, running_mean, running_var = operands
    axes, count = g.ints(0, 2, 3), math.prod((x.shape[0], *x.shape[2:]))
    n = g.scalar(float(count))
    with g.context(path="BN.mu"):
        mu = g.op("Div", g.op("ReduceSum", x, axes, name="sum"), n, name="mu", role="BN.mu")
    with g.context(path="BN.sigma"):
        centered = g.op("Sub", x, mu, name="centered")
        square = g.op("Mul", centered, centered, name="square")
        var = g.op("Div", g.op("ReduceSum", square, axes, name="square_sum"), n, name="var")
    xh, gamma_c, sigma = _normalize(g, centered, var, gamma, attrs)
    y = _affine(g, xh, gamma_c, beta)
    for state, batch, role in ((running_mean, mu, "BN.running_mean"), (running_var, var, "BN.running_var")):
        _advance(g, state, batch, 1.0 - attrs["momentum"], role)

    def pullback(error: Tensor) -> list[Tensor | None]:
        e, dgamma, dbeta, a = _affine_gradients(g, error, xh, gamma_c, sigma)
        # the division comes last: on grids the product is exact, and one division rounds a tie as integers do
        with g.context(path="BN.K"):
            k = g.op("Div", g.op("Mul", a, dgamma, name="A_e_xh"), n, name="K", role="BN.K")
        with g.context(path="BN.B"):
            b = g.op("Div", g.op("Mul", a, dbeta, name="A_e"), n, name="B", role="BN.B")
        with g.context(path="E2"):
            slope = g.op("Sub", g.op("Mul", e, a, name="e_A", role="BN.e_A"), g.op("Mul", xh, k, name="xh_K"), name="slope")
            dx = g.op("Sub", slope, b, name="dx")
        return [dx, *_per_channel(g, dgamma, dbeta), None, None]

    return y, pullback


def batch_norm_frozen(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """The same affine function with the running statistics, which stay: an image's result does not depend on its batch.

    mu and sigma are constants, so dx = e * gamma/sigma (ONNX BatchNormalization, inference). It trains on a single image.
    """
    x, gamma, beta, running_mean, running_var = operands
    channel = g.ints(*CHANNEL)
    mu = g.op("Reshape", running_mean, channel, name="mu", role="BN.mu")
    with g.context(path="BN.sigma"):
        var = g.op("Reshape", running_var, channel, name="var")
    with g.context(path="BN.x"):
        centered = g.op("Sub", x, mu, name="centered")
    xh, gamma_c, sigma = _normalize(g, centered, var, gamma, attrs)

    def pullback(error: Tensor) -> list[Tensor | None]:
        e, dgamma, dbeta, a = _affine_gradients(g, error, xh, gamma_c, sigma)
        with g.context(path="E2"):
            dx = g.op("Mul", e, a, name="e_A", role="BN.e_A")
        return [dx, *_per_channel(g, dgamma, dbeta), None, None]

    return _affine(g, xh, gamma_c, beta), pullback


def _affine_gradients(g: Model, error: Tensor, xh: Tensor, gamma: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
    """e, sum(e*xh) and sum(e) as [1, C, 1, 1], and A = gamma/sigma."""
    e, axes = g.slot(error, "E.bn"), g.ints(0, 2, 3)
    with g.context(path="G.beta"):
        dbeta = g.op("ReduceSum", e, axes, name="dbeta_sum")
    with g.context(path="G.gamma"):
        dgamma = g.op("ReduceSum", g.op("Mul", e, xh, name="e_xh"), axes, name="dgamma_sum")
    return e, dgamma, dbeta, g.op("Div", gamma, sigma, name="A", role="BN.A")


def _per_channel(g: Model, dgamma: Tensor, dbeta: Tensor) -> list[Tensor | None]:
    """The gradients of gamma and beta in their shape, [C]."""
    flat = g.ints(-1)
    gradients: list[Tensor | None] = []
    for kind, gradient in (("gamma", dgamma), ("beta", dbeta)):
        with g.context(path=f"G.{kind}"):
            gradients.append(g.op("Reshape", gradient, flat, name=f"d{kind}"))
    return gradients


def _normalize(g: Model, centered: Tensor, var: Tensor, gamma: Tensor, attrs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """x-hat, gamma as [1, C, 1, 1], sigma."""
    epsilon = g.constant(np.full(var.shape, attrs["epsilon"]), name="epsilon")
    with g.context(path="BN.sigma"):
        sigma = g.op("Sqrt", g.op("Add", var, epsilon, name="var_eps", role="BN.eps"), name="sigma", role="BN.sigma")
    xh = g.op("Div", centered, sigma, name="xh", role="BN.x")
    with g.context(path="gamma"):
        return xh, g.op("Reshape", gamma, g.ints(*CHANNEL), name="gamma"), sigma


def _affine(g: Model, xh: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    scaled = g.op("Mul", xh, gamma, name="scaled", role="BN.scaled")
    with g.context(path="beta"):
        beta_c = g.op("Reshape", beta, g.ints(*CHANNEL), name="beta")
    return g.op("Add", scaled, beta_c, name="bn", role="Y")


def _advance(g: Model, state: Tensor, batch: Tensor, rate: float, role: str) -> None:
    with g.context(path=role):
        flat = g.op("Reshape", batch, g.ints(-1), name="batch", role=role + ".batch")
        change = g.op("Mul", g.op("Sub", flat, state, name="gap"), g.constant(rate, name="rate"), name="change")
        g.states[state.name].after = g.op("Add", state, change, name=role.split(".")[1], role=role)


def relu(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """y = max(x, 0); the error passes where x > 0."""
    (x,) = operands
    y = g.op("Relu", x, name="relu", role="A")

    def pullback(error: Tensor) -> list[Tensor | None]:
        dy = g.slot(error, "E1")
        mask = g.op("Greater", x, g.scalar(0.0), name="mask")
        return [g.op("Where", mask, dy, g.scalar(0.0), name="masked", role="E.mask")]

    return y, pullback


def add(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """y = a + b, a residual sum."""
    return g.op("Add", *operands, name="add", role="sum"), lambda dy: [dy, dy]


def max_pool(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """The greatest of each window; the error goes to its first occurrence in row-major order, as PyTorch's does.

    The choice is found again by comparing each tap with the result, so that backward needs only the two activations.
    """
    (x,) = operands
    window = Window.of(attrs)
    y = g.op("MaxPool", x, name="maxpool", role="A.pool", **attrs)

    def pullback(error: Tensor) -> list[Tensor | None]:
        dy = g.slot(error, "E1")

        def body(b: Model, of: list[Tensor]) -> list[Tensor]:
            image, maxima, errors = of
            return [_max_pool_gradient(b, image, maxima, errors, window)]

        return composites.emit(g, "MaxPoolGradient", [x, y, dy], body, name="dx", **attrs)

    return y, pullback


def _max_pool_gradient(g: Model, x: Tensor, y: Tensor, dy: Tensor, window: Window) -> Tensor:
    """x [N, C, H, W], its maxima y and their errors dy [N, C, OH, OW]; the error of x."""
    size, out = x.shape[2:], y.shape[2:]
    parts: list[Tensor] = []
    taken: Tensor | None = None
    for tap, seen in zip(window.taps, tap_slices(g, x, window, out), strict=True):
        hit = g.op("Equal", seen, y, name="hit")
        if window.padded:
            hit = g.op("And", hit, g.constant(window.inside(tap, size, out), np.bool_, name="inside"), name="hit")
        first = hit if taken is None else g.op("And", hit, g.op("Not", taken, name="free"), name="first")
        taken = hit if taken is None else g.op("Or", taken, hit, name="taken")
        parts.append(g.op("Where", first, dy, g.scalar(0.0), name="part"))
    return scatter_taps(g, parts, window, size)


def average_pool(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """The mean of each window, over the window's taps on the image or, with count_include_pad, over all."""
    (x,) = operands
    window = Window.of(attrs)
    y = g.op("AveragePool", x, name="avgpool", role="A", **attrs)

    def pullback(error: Tensor) -> list[Tensor | None]:
        dy = g.slot(error, "E1")
        share = g.op("Mul", dy, g.constant(1.0 / average_counts(x, y, attrs), name="reciprocal"), name="share")

        def body(b: Model, of: list[Tensor]) -> list[Tensor]:
            return [scatter_taps(b, of * len(window.taps), window, x.shape[2:])]

        return composites.emit(g, "AveragePoolGradient", [share], body, tuple(x.shape), name="dx", **attrs)

    return y, pullback


def average_counts(x: Tensor, y: Tensor, attrs: dict[str, Any]) -> np.ndarray[Any, Any]:
    """By how much each window of an AveragePool is divided: [1, 1, OH, OW], or [] where all are equal."""
    window = Window.of(attrs)
    if attrs["count_include_pad"] or not window.padded:
        return np.asarray(float(len(window.taps)))
    return np.asarray(sum(window.inside(t, x.shape[2:], y.shape[2:]).astype(float) for t in window.taps))


def global_average_pool(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """The mean over H and W."""
    (x,) = operands
    y = g.op("GlobalAveragePool", x, name="gap", role="A")

    def pullback(error: Tensor) -> list[Tensor | None]:
        dy = g.slot(error, "E1")
        share = g.op("Mul", dy, g.constant(1.0 / math.prod(x.shape[2:]), name="reciprocal"), name="share")
        return [g.op("Expand", share, g.ints(*x.shape), name="spread")]

    return y, pullback


def pad(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """Zeros before and after along each axis (ONNX Pad): for more channels on a shortcut, or around a map."""
    x, amounts = operands
    before, after = np.reshape(amounts.values, (2, 4)).tolist()
    y = g.op("Pad", x, g.ints(*before, *after), g.scalar(0.0), name="pad")

    def pullback(error: Tensor) -> list[Tensor | None]:
        axes = [axis for axis in range(4) if before[axis] or after[axis]]
        starts, stops = [before[axis] for axis in axes], [before[axis] + x.shape[axis] for axis in axes]
        return [g.op("Slice", error, g.ints(*starts), g.ints(*stops), g.ints(*axes), name="unpadded"), None]

    return y, pullback


def flatten(g: Model, attrs: dict[str, Any], operands: list[Tensor]) -> tuple[Tensor, Pullback]:
    """[N, C, H, W] -> [N, C*H*W]."""
    (x,) = operands
    y = g.op("Flatten", x, name="flatten", axis=1)
    return y, lambda dy: [g.op("Reshape", dy, g.ints(*x.shape), name="unflatten")]


RULES = Table[Rule](
    "gradient rule",
    Conv=conv,
    Gemm=gemm,
    BatchNormalization=batch_norm,
    Relu=relu,
    Add=add,
    MaxPool=max_pool,
    AveragePool=average_pool,
    GlobalAveragePool=global_average_pool,
    Pad=pad,
    Flatten=flatten,
)
