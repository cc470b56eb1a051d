"""What a conversion may be told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.profiles import Profile, load_profile

LAYOUTS = ("auto", "nchw", "nhwc")
PRESETS: dict[str, dict[str, Any]] = {  # how common training recipes normalise pixels; `Config(**PRESETS["imagenet"])`
    "unit": {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,)},
    "raw": {"scale": 1.0, "mean": (0.0,), "std": (1.0,)},
    "imagenet": {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "cifar10": {"scale": 1 / 255, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
}
BN = ("batch", "frozen")


@dataclass(frozen=True)
class Config:
    """Options of `convert`.

    batch: images a training step takes. mean, std: per channel, ``x = (pixel * scale - mean) / std``; one value serves all
    channels. image_size: rows and columns, for a source that leaves them open. layout: of the source's input, nchw, nhwc or
    auto (by which dimension is a number of colours). calibrate: uint8 [n, C, H, W] images that refine the forward formats and
    recover folded BN, or None. keep_folded: train convolutions whose BN was folded at export as they are. expose_gradients: add
    every parameter's gradient to the outputs of both training steps. health: add counters of saturated and all-zero tensors to
    the outputs of the integer step. momentum: of the FP32 step (the integer step's is the profile's). weight_decay: of both.
    profile: the formats of every data path.

    freeze: layers that are not trained, by name or pattern. train_last: train only the last so many layers with weights, and the
    BNs that follow them; None: all. bn: "batch" trains with the statistics of the batch, "frozen" with the running ones, which
    then stay. num_classes: the last Gemm is replaced by a new one for so many classes; None: it stays.
    """

    batch: int = 32
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    image_size: tuple[int, ...] | None = None
    layout: str = "auto"
    calibrate: np.ndarray[Any, Any] | None = None
    keep_folded: bool = False
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
        if self.layout not in LAYOUTS:
            raise WageubnError(f"layout {self.layout!r}: not known; give one of {', '.join(LAYOUTS)}")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise WageubnError(f"image size {self.image_size}: give rows and columns, each at least 1")
        if self.train_last is not None and self.train_last < 1:
            raise WageubnError(f"train-last {self.train_last}: at least one layer must be trained; pass --train-last 1 or more")
        if self.bn not in BN:
            raise WageubnError(f"bn {self.bn!r}: must be {' or '.join(BN)}")
        if self.num_classes is not None and self.num_classes < 2:
            raise WageubnError(f"num-classes {self.num_classes}: a head tells at least 2 classes apart")
        self._check_numbers()

    def for_channels(self, channels: int) -> Config:
        """The same with a mean and a std for each of the image's ``channels``, where one serves all."""
        mean, std = (values * channels if len(values) == 1 else values for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std)

    def _check_numbers(self) -> None:
        """What the pixels and the step are multiplied with."""
        if any(not np.isfinite(v) for v in (*self.mean, *self.std, self.scale)):
            raise WageubnError("mean, std and scale must be finite numbers")
        if any(v <= 0 for v in self.std) or self.scale <= 0:
            raise WageubnError("std and scale must be greater than 0")
        if any(v < 0 for v in self.mean):
            raise WageubnError(
                f"mean {','.join(f'{v:g}' for v in self.mean)}: pixels have none below 0; x = (pixel * scale - mean) / std"
            )
        if not 0 <= self.momentum < 1:  # so NaN is refused, too
            raise WageubnError(f"momentum {self.momentum:g}: must be at least 0 and below 1")
        if not 0 <= self.weight_decay < 1:
            raise WageubnError(f"weight-decay {self.weight_decay:g}: must be at least 0 and below 1")
