"""The state of a training step: what a network expects, and the check that a file holds exactly that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wageubn_onnx.errors import WageubnError

Array = NDArray[Any]


@dataclass(frozen=True)
class StateTensor:
    """One tensor of the state: its key in files, its names in the step, and the values that it may hold.

    ``minimum`` and ``maximum`` are in the tensor's own integers (None: unbounded). ``unit`` is the power-of-two grid
    that the manifest declares; equal integers on another grid are other values.
    """

    key: str
    source: str  # the step's input
    target: str  # the step's output
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    minimum: float | None = None
    maximum: float | None = None
    unit: str | None = None

    def signature(self) -> list[Any]:
        """Return what must agree between two networks to exchange this tensor, JSON-able."""
        return [str(self.dtype), list(self.shape), self.unit]


def signature(expected: Mapping[str, StateTensor]) -> dict[str, list[Any]]:
    """Return the network's state signature, to be recorded in the metadata of every state file."""
    return {key: tensor.signature() for key, tensor in expected.items()}


def check_state(
    where: str,
    tensors: Mapping[str, Array],
    recorded: Mapping[str, list[Any]] | None,
    expected: Mapping[str, StateTensor],
) -> None:
    """Refuse ``tensors`` that are not the ``expected`` state.

    ``recorded`` is the signature in the file's metadata, None where it has none (a file by another program). Raises
    WageubnError that starts with ``where`` and names the first key, dtype, shape, grid or value that differs.
    """
    for key, tensor in expected.items():
        if key not in tensors:
            raise WageubnError(f"{where}: lacks the tensor {key}; this is the state of another network")
        _check_tensor(f"{where}: {key}", tensors[key], tensor)
        unit = recorded[key][2] if recorded is not None and key in recorded else tensor.unit
        if unit != tensor.unit:
            raise WageubnError(f"{where}: {key} is on the grid {unit}, expected {tensor.unit}; not this network's state")
    surplus = [key for key in tensors if key not in expected]
    if surplus:
        raise WageubnError(f"{where}: holds the unknown tensor {surplus[0]}; this is the state of another network")


def _check_tensor(where: str, value: Array, tensor: StateTensor) -> None:
    if value.dtype != tensor.dtype:
        raise WageubnError(f"{where} is {value.dtype}, expected {tensor.dtype}; this is the state of another network")
    if value.shape != tensor.shape:
        shapes = f"has shape {list(value.shape)}, expected {list(tensor.shape)}"
        raise WageubnError(f"{where} {shapes}; this is the state of another network")
    low = -np.inf if tensor.minimum is None else tensor.minimum
    high = np.inf if tensor.maximum is None else tensor.maximum
    wrong = np.flatnonzero((value < low) | (value > high))
    if wrong.size:
        first = int(wrong[0])
        found = f"holds {value.reshape(-1)[first]} at flat index {first}"
        raise WageubnError(f"{where} {found}, outside its range {low}..{high}; the file is damaged")


def check_classes(where: str, trained: Sequence[str] | None, given: Sequence[str] | None) -> None:
    """Raise WageubnError that starts with ``where`` and names the first difference, if the labels ``given`` stand for other
    classes than those ``trained`` on; None on either side says nothing of them."""
    if trained is None or given is None:
        return
    for index, (before, now) in enumerate(zip_longest(trained, given)):
        if before != now:
            was, is_now = ("none" if name is None else repr(name) for name in (before, now))
            raise WageubnError(f"{where}: class {index} is {was}, but in the data {is_now}; give data of the same classes")
