"""What a conversion may be told, and the profile: a table of formats, never a branch inside a pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wageubn_onnx.errors import WageubnError


@dataclass(frozen=True)
class Profile:
    """Widths of every data path (NUMERICS table); one instance a profile.

    A width counts the sign. ``fraction`` fields are fractional bits of a fixed grid; ``bits`` fields bound a mantissa to
    ``+-(2**(bits-1) - 1)``, and the exponent comes from the tensor's range.
    """

    name: str = "full8"
    weight_bits: int = 8  # Q_W, on the grid 2^-7
    input_bits: int = 8  # Q_I, the normalised image
    activation_bits: int = 8  # Q_A, unsigned after a ReLU: 0..127
    stream_bits: int = 16  # Q_S, a residual sum that no ReLU follows
    convolution_bits: int = 16  # Q_C, the convolution output before BN
    mean_bits: int = 16  # Q_mu, on the grid of Q_C
    sigma_bits: int = 16  # Q_sigma
    sigma_extra_fraction: int = 1  # sigma's grid is this much finer than a 16-bit Q_C's: no deviation within it saturates
    normalized_bits: int = 8  # Q_BN
    normalized_fraction: int = 4  # x-hat in +-7.9: 3 integer bits, since trained networks have heavy tails
    gamma_bits: int = 8
    beta_bits: int = 8
    bias_bits: int = 16
    logit_bits: int = 16
    error_bits: int = 8  # Q_E1, and each part of the flag pair of Q_E2
    error_sum_bits: int = 16  # both operands of a backward sum, on a common exponent
    coefficient_bits: int = 13  # gamma/sigma in BN's backward
    gradient_fraction: int = 14  # the grid of every parameter gradient
    parameter_gradient_bits: int = 15  # gradients of gamma, beta and bias
    momentum: float = 0.75
    momentum_fraction: int = 2
    accumulator_fraction: int = 12
    learning_rate_fraction: int = 9
    update_fraction: int = 23  # stored parameters
    statistics_extra_fraction: int = 8  # running statistics; fewer and they stall
    constant_bits: int = 12  # 1/N, 1/(H*W), weight decay, the decay of the running statistics


PROFILES = {"full8": Profile()}


@dataclass(frozen=True)
class Config:
    """Options of `convert`.

    batch: images a training step takes. mean, std: per channel, ``x = (pixel * scale - mean) / std``; one value serves all
    channels. calibrate: uint8 [n, C, H, W] images that refine the forward formats, or None. expose_gradients: add every
    parameter's gradient to the outputs of both training steps. health: add counters of saturated and all-zero tensors to the
    outputs of the integer step. momentum: of the FP32 step (the integer step's is the profile's). weight_decay: of both.
    """

    batch: int = 32
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    calibrate: np.ndarray[Any, Any] | None = None
    expose_gradients: bool = False
    health: bool = False
    momentum: float = 0.9
    weight_decay: float = 1e-4
    profile: Profile = field(default_factory=Profile)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise WageubnError(f"batch {self.batch}: a training step needs at least one image; pass --batch 1 or more")
        if any(not np.isfinite(v) for v in (*self.mean, *self.std, self.scale)):
            raise WageubnError("mean, std and scale must be finite numbers")
        if any(v <= 0 for v in self.std) or self.scale <= 0:
            raise WageubnError("std and scale must be greater than 0")
