"""What a form may need of the machine that runs it: kernels that are exact there, and which of several exact forms is the faster.

A kernel here is an operator with the operands that some form gives it. Whether it is exact differs by processor and by release of
onnxruntime, so that it is asked (runtime/probes.py), once for a machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol


class Kernel(Enum):
    """Each by the name that messages use."""

    ARITHMETIC = "arithmetic of int32 and int64, reductions, choices and moves"
    MATMUL = "MatMulInteger of uint8 by int8 and uint8 by uint8"
    WHOLE_MATMUL = "MatMulInteger of columns in multiples of 16"
    CONV = "ConvInteger of uint8 by uint8"
    WHOLE_CONV = "ConvInteger of uint8 by uint8, of places in multiples of 16"
    UNSIGNED = "arithmetic of unsigned and short integers, which wraps"
    INT8 = "ConvInteger of int8 by uint8, MatMulInteger of all uint8 by int8"
    SUMS = "MatMulInteger by ones and by a row of factors"
    QLINEAR_CONV = "QLinearConv of uint8 by int8, channels last"
    DEPTHWISE = "QLinearConv of a kernel a channel, channels last"
    QLINEAR_MATMUL = "QLinearMatMul of uint8 by int8"
    QLINEAR_ADD = "QLinearAdd"
    QLINEAR_MUL = "QLinearMul"
    POOL = "NhwcMaxPool"


LAST = (Kernel.UNSIGNED, Kernel.QLINEAR_CONV, Kernel.DEPTHWISE, Kernel.POOL)
"""What maps with their channels last, and all that is fused there, need."""

MENDED = {Kernel.MATMUL: Kernel.WHOLE_MATMUL, Kernel.CONV: Kernel.WHOLE_CONV}
"""What every step needs, with the other form that will do."""


class Machine(Protocol):
    """A machine; images [N, I, H, W], kernels [O, I/G, KH, KW]."""

    def is_exact(self, *kernels: Kernel) -> bool:
        """Whether all of these give the integers that their operators mean."""

    def prefers_fused(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether product and requantization should be one QLinearConv."""

    def prefers_matrix(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether they should be one QLinearMatMul; of maps as large as what the convolution gives."""

    def prefers_int8(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether a ConvInteger should take its images in int8."""


def missing(machine: Machine) -> Kernel | None:
    """The first kernel that a step needs in every form and that is not exact here, nor is what could take its place; or None."""
    needed = (Kernel.ARITHMETIC, *MENDED)
    return next((k for k in needed if not machine.is_exact(k) and not (k in MENDED and machine.is_exact(MENDED[k]))), None)
