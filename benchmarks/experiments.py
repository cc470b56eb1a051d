"""The accuracy experiments, as a table. `accuracy` runs them, `accuracy_report` tells what came of them.

An arm is a profile (its name or TOML file) trained by the integer step, ``fp32``, or ``quant:PROFILE``, the same formats
simulated in float; ``quant:PROFILE-PATH-...`` leaves some data paths in float. Rates are tuned on part of the training images,
tested on others, an arm by itself or for several; every seed then trains at the best. A seed decides initial weights, order and
stochastic rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError


@dataclass(frozen=True)
class ResNet:
    """Arguments of models/resnet.py's Architecture; ``image``: [C, H, W]."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    image: tuple[int, int, int]
    classes: int = 10


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation of pixel / 255, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Arm:
    """One way to train, with the peak learning rates and the schedules to choose from.

    rates_of: instead of tuning its own, it trains at what was tuned for the arm of this name.
    """

    name: str
    rates: tuple[float, ...] = ()
    schedules: tuple[str, ...] = ("cosine",)
    rates_of: str | None = None


@dataclass(frozen=True)
class Tuning:
    """How rates are chosen: train on ``images`` for ``epochs``, score on ``held_out`` other training images."""

    images: int
    held_out: int
    epochs: int


@dataclass(frozen=True)
class Experiment:
    """What is trained, on what, and how often.

    network: None is the file that the user gives. images: of the training images (None: all). transform: a name in
    `transforms.TRANSFORMS`. gradient_ranges: as in `train.Plan`.
    """

    name: str
    title: str
    network: ResNet | None
    pixels: Normalisation
    images: int | None
    epochs: int
    batch: int
    seeds: tuple[int, ...]
    tuning: Tuning
    arms: tuple[Arm, ...]
    transform: str = "same"
    gradient_ranges: tuple[int, ...] = (128,)


DEFAULT = Config().profile.name
PATHS = ("W", "A", "C", "BN", "E1", "E2", "G", "M-U")  # that the ablation leaves in float, one group at a time

# peak rates: integer updates are normalised, FP32 ones have momentum 0.9
INTEGERS = (0.4, 0.8, 511 / 512, 2.0, 2047 / 512)  # to the greatest that the grid has
FLOATS = (0.025, 0.05, 0.1, 0.2, 0.4)
FINE_INTEGERS = (1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16)  # on the grid of the integer rate
FINE_FLOATS = (0.0003, 0.001, 0.003, 0.01)

FASHION = Normalisation((0.286,), (0.353,))
CIFAR = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))

RESNET20 = ResNet((3, 3, 3), (16, 32, 64), (1, 28, 28))
THIN18 = ResNet((2, 2, 2, 2), (16, 32, 64, 128), (1, 28, 28))
RESNET8 = ResNet((1, 1, 1), (16, 32, 64), (1, 14, 14))

PROFILES = (  # one rate for all integers: what the profiles differ by is their formats
    Arm(DEFAULT, INTEGERS),
    *(Arm(name, rates_of=DEFAULT) for name in ("e16", "sq8", "sq8s", "fast")),
    Arm("fp32", FLOATS),
)
FINE = (Arm(DEFAULT, FINE_INTEGERS), Arm("fast", FINE_INTEGERS), Arm("fp32", FINE_FLOATS))
ABLATIONS = (
    Arm("quant:full8", INTEGERS),
    *(Arm(f"quant:full8-{path}", INTEGERS) for path in PATHS),
    Arm("fp32", FLOATS),
)

# fmt: off
EXPERIMENTS = {experiment.name: experiment for experiment in (
    Experiment("fashion", "Fashion-MNIST, ResNet-20 from scratch", RESNET20, FASHION,
               images=None, epochs=5, batch=128, seeds=(0, 1, 2), tuning=Tuning(10_000, 5_000, 1),
               arms=(Arm(DEFAULT, INTEGERS), Arm("fp32", FLOATS))),
    Experiment("profiles-resnet20", "Profiles, ResNet-20 on 20,000 images of Fashion-MNIST", RESNET20, FASHION,
               images=20_000, epochs=3, batch=128, seeds=(0, 1), tuning=Tuning(10_000, 2_500, 1), arms=PROFILES),
    Experiment("profiles-thin18", "Profiles, a thin ResNet-18 on 20,000 images of Fashion-MNIST", THIN18, FASHION,
               images=20_000, epochs=3, batch=128, seeds=(0, 1), tuning=Tuning(10_000, 2_500, 1), arms=PROFILES),
    Experiment("shift-inverted", "A trained CIFAR-10 ResNet-20, fine-tuned on inverted colours", None, CIFAR,
               images=None, epochs=2, batch=64, seeds=(0, 1, 2), tuning=Tuning(3_072, 1_536, 2), arms=FINE, transform="inverted"),
    Experiment("shift-noisy", "A trained CIFAR-10 ResNet-20, fine-tuned on noise at half the contrast", None, CIFAR,
               images=None, epochs=2, batch=64, seeds=(0, 1, 2), tuning=Tuning(3_072, 1_536, 2), arms=FINE, transform="noisy"),
    Experiment("ablation", "One data path at a time in float, ResNet-8 on 20,000 images of Fashion-MNIST at 14x14", RESNET8,
               FASHION, images=20_000, epochs=4, batch=128, seeds=(0, 1, 2), tuning=Tuning(10_000, 5_000, 1),
               arms=ABLATIONS, transform="halved"),
)}
# fmt: on


def find_experiment(name: str) -> Experiment:
    """Return the experiment ``name``; raises WageubnError, listing the known ones, where there is none."""
    if name not in EXPERIMENTS:
        raise WageubnError(f"experiment {name}: unknown; choose one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
