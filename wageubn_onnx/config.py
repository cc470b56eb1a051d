"""What a conversion may be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.profiles import Profile, load_profile


@dataclass(frozen=True)
class Config:
    """Options of `convert`.

    batch: images a training step takes. mean, std: per channel, ``x = (pixel * scale - mean) / std``; one value serves all
    channels. calibrate: uint8 [n, C, H, W] images that refine the forward formats and recover folded BN, or None. keep_folded:
    train convolutions whose BN was folded at export as they are. expose_gradients: add every parameter's gradient to the outputs
    of both training steps. health: add counters of saturated and all-zero tensors to the outputs of the integer step. momentum:
    of the FP32 step (the integer step's is the profile's). weight_decay: of both. profile: the formats of every data path.
    """

    batch: int = 32
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    calibrate: np.ndarray[Any, Any] | None = None
    keep_folded: bool = False
    expose_gradients: bool = False
    health: bool = False
    momentum: float = 0.9
    weight_decay: float = 1e-4
    profile: Profile = field(default_factory=lambda: load_profile("full8"))

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise WageubnError(f"batch {self.batch}: a training step needs at least one image; pass --batch 1 or more")
        if any(not np.isfinite(v) for v in (*self.mean, *self.std, self.scale)):
            raise WageubnError("mean, std and scale must be finite numbers")
        if any(v <= 0 for v in self.std) or self.scale <= 0:
            raise WageubnError("std and scale must be greater than 0")
