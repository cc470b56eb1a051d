"""The sessions of a folder: its integer training step, the same in float, and its FP32 one; `engine` is what they share."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import load_model
from wageubn_onnx.passes.targets.cpu import exact_form, for_cpu, whole_forms_for
from wageubn_onnx.runtime.engine import EvalResult, Session, StepResult
from wageubn_onnx.runtime.models import open_lowered, open_model
from wageubn_onnx.runtime.selftest import trusted_kernels

__all__ = ["GRADIENT_RANGES", "EvalResult", "FloatSession", "QuantizedSession", "Session", "StepResult", "TrainingSession"]

Array = NDArray[Any]
GRADIENT_RANGES = (2, 4, 8, 16, 32, 64, 128)


class TrainingSession(Session):
    """The integer training step of a folder, and its integer inference model."""

    step_section, eval_section, state_section = "step", "eval", "state"
    step_keys = ("images", "labels", "lr", "gradient_range", "seed", "loss", "correct")
    default_rate = 0.01

    def _open_step(self, model: Path) -> ort.InferenceSession:
        """The step in the forms that this machine's kernels do best; the integers are those of the file.

        Raises WageubnError where no form is exact on this machine."""
        step = load_model(model)
        for node in step.graph.node:
            del node.metadata_props[:]  # which nothing here reads, and every copy would carry
        fast = for_cpu(step, trusted_kernels(bool(self._optimize)))
        return open_lowered(model, fast.SerializeToString(), self._threads, bool(self._optimize))

    @cached_property
    def _eval_model(self) -> ort.InferenceSession:
        """Inference as it is in the file, but for products that are not exact in that form on this machine."""
        model, machine = self.folder.model(self.eval_section), trusted_kernels(bool(self._optimize))
        content = exact_form(load_model(model), machine).SerializeToString() if whole_forms_for(machine) else None
        return open_model(model, self._threads, self._optimize is not False, content)

    def _exponent(self, name: str) -> int:
        return int(self.folder.section("exponents", name)[name])

    @property
    def smallest_rate(self) -> float:
        """One step of the learning rate's grid."""
        return float(2.0 ** self._exponent("lr"))

    @property
    def greatest_rate(self) -> float:
        """Where the learning rate's quantizer saturates; infinite where it has no bound."""
        entries = self.folder.section("quantizers")
        bounds = [entry["max"] for entry in entries if entry["role"] == "lr"]
        return bounds[0] * self.smallest_rate if bounds and bounds[0] is not None else math.inf

    def effective_rate(self, lr: float) -> float:
        """Return ``lr`` rounded (half to even) to the grid of the step.

        Raises WageubnError, naming the limit, for a rate that rounds to 0 or beyond the greatest.
        """
        return self._rate_integer(lr) * self.smallest_rate

    def _rate_integer(self, lr: float) -> int:
        smallest, greatest = self.smallest_rate, self.greatest_rate
        integer = round(lr / smallest) if np.isfinite(lr) else 0
        if integer < 1:
            raise WageubnError(f"learning rate {lr}: rounds to 0; the smallest representable rate is {smallest}")
        if integer * smallest > greatest:
            raise WageubnError(f"learning rate {lr}: too great; the greatest representable rate is {greatest}")
        return integer

    def _scalars(self, lr: float, gradient_range: int, seed: int) -> dict[str, Array]:
        _check_scalars(gradient_range, seed)
        values = {"lr": self._rate_integer(lr), "gradient_range": gradient_range, "seed": seed}
        return {self._names[key]: np.array(value, np.int32) for key, value in values.items()}

    def _pixels(self, images: Array) -> Array:
        return images  # the graph normalises

    def _loss(self, raw: Array) -> float:
        return float(int(raw) * 2.0 ** self._exponent("loss"))


class FloatSession(Session):
    """The FP32 training step of a folder, and the forward model that it came from.

    ``gradient_range`` and ``seed`` of `step` have no meaning in float and are ignored: one loop drives both sessions.
    """

    step_section, eval_section, state_section = "fp_step", "fp_eval", "fp_state"
    step_keys: ClassVar[tuple[str, ...]] = ("images", "labels", "lr", "loss")
    default_rate = 0.003

    @property
    def smallest_rate(self) -> float:
        """Float has none."""
        return 0.0

    def effective_rate(self, lr: float) -> float:
        """Return ``lr`` in float32; raises WageubnError where it is not a number above 0."""
        if not (np.isfinite(lr) and np.float32(lr) > 0):
            raise WageubnError(f"learning rate {lr}: must be a finite number above 0")
        return float(np.float32(lr))

    def _scalars(self, lr: float, gradient_range: int, seed: int) -> dict[str, Array]:
        return {self._names["lr"]: np.array(self.effective_rate(lr), np.float32)}

    @cached_property
    def _normalisation(self) -> tuple[np.float32, Array, Array]:
        """Scale [], mean and std [C or 1, 1, 1], all float32."""
        entry = self.folder.section("input", "scale", "mean", "std")
        mean, std = (np.array(entry[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
        return np.float32(entry["scale"]), mean, std

    def normalised(self, images: Array) -> Array:
        """Return uint8 ``images`` [n, C, H, W] as the float models take them: (pixel * scale - mean) / std, float32."""
        scale, mean, std = self._normalisation
        return np.asarray((images.astype(np.float32) * scale - mean) / std)

    def _pixels(self, images: Array) -> Array:
        return self.normalised(images)

    def _loss(self, raw: Array) -> float:
        return float(raw)


class QuantizedSession(FloatSession):
    """The quantized step in float32: what the integer step computes, up to float32's own rounding."""

    step_section, eval_section, state_section = "quant_step", "quant_eval", "quant_state"
    step_keys = TrainingSession.step_keys
    default_rate = TrainingSession.default_rate

    @property
    def smallest_rate(self) -> float:
        """One step of the learning rate's grid, as in the integer step; 0 where the profile leaves it in float."""
        exponents = self.folder.section("exponents")
        return float(2.0 ** exponents["lr"]) if "lr" in exponents else 0.0

    def _scalars(self, lr: float, gradient_range: int, seed: int) -> dict[str, Array]:
        _check_scalars(gradient_range, seed)
        integers = {"gradient_range": gradient_range, "seed": seed}
        return super()._scalars(lr, gradient_range, seed) | {self._names[k]: np.array(v, np.int32) for k, v in integers.items()}


def _check_scalars(gradient_range: int, seed: int) -> None:
    if gradient_range not in GRADIENT_RANGES:
        raise WageubnError(f"gradient range {gradient_range}: must be a power of two in 2..128")
    if not -(2**31) <= seed < 2**31:
        raise WageubnError(f"seed {seed}: must fit into 32 bits with sign")
