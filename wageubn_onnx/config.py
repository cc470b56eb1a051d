"""What a conversion may be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.profiles import Profile, load_profile

BN = ("batch", "frozen")


@dataclass(frozen=True)
class Config:
    """Options of `convert`.

    batch: images a training step takes. mean, std: per channel, ``x = (pixel * scale - mean) / std``; one value serves all
    channels. calibrate: uint8 [n, C, H, W] images that refine the forward formats, or None. expose_gradients: add every
    parameter's gradient to the outputs of both training steps. health: add counters of saturated and all-zero tensors to the
    outputs of the integer step. momentum: of the FP32 step (the integer step's is the profile's). weight_decay: of both.
    profile: the formats of every data path.

    freeze: layers that are not trained, by name or pattern. train_last: train only the last so many layers with weights, and the
    BNs that follow them; None: all. bn: "batch" trains with the statistics of the batch, "frozen" with the running ones, which
    then stay. num_classes: the last Gemm is replaced by a new one for so many classes; None: it stays.
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
    profile: Profile = field(default_factory=lambda: load_profile("full8"))
    freeze: tuple[str, ...] = ()
    train_last: int | None = None
    bn: str = "batch"
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise WageubnError(f"batch {self.batch}: a training step needs at least one image; pass --batch 1 or more")
        if self.train_last is not None and self.train_last < 1:
            raise WageubnError(f"train-last {self.train_last}: at least one layer must be trained; pass --train-last 1 or more")
        if self.bn not in BN:
            raise WageubnError(f"bn {self.bn!r}: must be {' or '.join(BN)}")
        if self.num_classes is not None and self.num_classes < 2:
            raise WageubnError(f"num-classes {self.num_classes}: a head tells at least 2 classes apart")
        if any(not np.isfinite(v) for v in (*self.mean, *self.std, self.scale)):
            raise WageubnError("mean, std and scale must be finite numbers")
        if any(v <= 0 for v in self.std) or self.scale <= 0:
            raise WageubnError("std and scale must be greater than 0")
