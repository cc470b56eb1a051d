"""What a pass for onnxruntime's CPU kernels is: a `Pass`, taken on machines on whose kernels it can rely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.targets.cpu.machine import Kernel, Machine


@dataclass(frozen=True)
class Form(Pass):
    """A form of some nodes that gives the same integers for every input.

    run: rewrites an `Edit`, or gives another model in the place of an inlined one, which stays as it is. needs: what must be
    exact on the machine. instead_of: what it takes the place of, where that is not exact. asks: arguments of ``run`` that the
    machine decides.
    """

    needs: tuple[Kernel, ...] = ()
    instead_of: Kernel | None = None
    asks: Callable[[Machine], Mapping[str, Any]] = lambda machine: {}

    def suits(self, machine: Machine) -> bool:
        """Whether ``machine`` gets it."""
        is_needed = self.instead_of is None or not machine.is_exact(self.instead_of)
        return is_needed and machine.is_exact(*self.needs)

    def on(self, machine: Machine) -> Callable[[Any], Any]:
        """``run`` for that machine."""
        return partial(self.run, **self.asks(machine)) if self.asks(machine) else self.run
