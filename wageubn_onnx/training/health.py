"""The health counters of a step, summed over steps: which quantizers saturate, and which tensors lose all that they carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from wageubn_onnx.terminal import make_table

Counters = NDArray[Any]
ERROR_ROLES = ("E1", "E2", "E.sum")
WORST = 10


@dataclass(frozen=True)
class Health:
    """Sums over ``steps`` steps, each int64 [quantizers] in the order of the manifest's ``step.health``.

    saturated: elements at a bound of their format. all_zero: steps in which every element was 0. least, greatest: the exponents
    seen; meaningless before the first step.
    """

    entries: Sequence[dict[str, Any]]
    steps: int
    saturated: Counters
    all_zero: Counters
    least: Counters
    greatest: Counters

    @staticmethod
    def none(entries: Sequence[dict[str, Any]]) -> Health:
        """No step yet. entries: those of the manifest."""
        limits, zeros = np.iinfo(np.int64), np.zeros(len(entries), np.int64)
        return Health(entries, 0, zeros, zeros, np.full_like(zeros, limits.max), np.full_like(zeros, limits.min))

    def add(self, counters: Counters) -> Health:
        """One step more: its int32 [quantizers, 3] of (saturated elements, all zero, exponent)."""
        saturated, all_zero, exponent = counters.astype(np.int64).T
        least, greatest = np.minimum(self.least, exponent), np.maximum(self.greatest, exponent)
        return Health(self.entries, self.steps + 1, self.saturated + saturated, self.all_zero + all_zero, least, greatest)

    # -- in a checkpoint, so that a resumed epoch has the sums of the whole one ----------------------------------------------

    def to_json(self) -> dict[str, Any]:
        sums = {name: getattr(self, name).tolist() for name in ("saturated", "all_zero", "least", "greatest")}
        return {"steps": self.steps, **sums}

    @staticmethod
    def from_json(entries: Sequence[dict[str, Any]], sums: dict[str, Any]) -> Health:
        arrays = {name: np.array(values, np.int64) for name, values in sums.items() if name != "steps"}
        return Health(entries, sums["steps"], **arrays)

    # -- what is told --------------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Of every quantizer: node, layer, role, the share of its elements that saturated, the share of steps in which it was all
        zero, and the least and greatest exponent."""
        found = []
        for i, entry in enumerate(self.entries):
            row = {key: entry[key] for key in ("node", "layer", "role")}
            row["saturated"] = int(self.saturated[i]) / (entry["elements"] * self.steps)
            row["all_zero"] = int(self.all_zero[i]) / self.steps
            found.append(row | {"exponent": [int(self.least[i]), int(self.greatest[i])]})
        return found

    def worst(self) -> list[dict[str, Any]]:
        """The rows of greatest shares, at most `WORST`; none that never saturated and never was all zero."""
        ill = [row for row in self.rows() if row["saturated"] or row["all_zero"]]
        return sorted(ill, key=lambda row: -(row["saturated"] + row["all_zero"]))[:WORST]

    def lost_errors(self) -> str | None:
        """One line where an error was all zero in some step, naming the layer where that was most often the case."""
        lost = [(int(self.all_zero[i]), e) for i, e in enumerate(self.entries) if e["role"] in ERROR_ROLES and self.all_zero[i]]
        if not lost:
            return None
        count, entry = max(lost, key=lambda item: item[0])
        more = f" (and {len(lost) - 1} other errors in some)" if len(lost) > 1 else ""
        where = f"the error {entry['role']} of layer {entry['layer']}"
        return f"{where} was all zero in {count} of {self.steps} steps{more}: nothing was learned through it then"


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """`Health.worst` for a terminal."""
    cells = []
    for row in rows:
        least, greatest = row["exponent"]
        span = str(least) if least == greatest else f"{least} to {greatest}"
        cells.append([row["layer"], row["role"], f"{row['saturated']:.3%}", f"{row['all_zero']:.1%} of steps", span])
    return make_table(title, ["layer", "role", "saturated", "all zero", "exponent"], cells)
