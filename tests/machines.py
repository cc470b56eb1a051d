"""Machines on which the forms for the CPU's kernels are wanted: for tests of what `for_cpu` makes."""

from __future__ import annotations

import pytest

from wageubn_onnx.passes.targets.cpu import flatten_elementwise
from wageubn_onnx.passes.targets.cpu.machine import MENDED, Kernel
from wageubn_onnx.passes.targets.cpu.maps import strided_slices
from wageubn_onnx.passes.targets.cpu.products import fuse_momentum


class Able:
    """A machine on which every form is exact and the faster one."""

    lacking: tuple[Kernel, ...] = ()

    def is_exact(self, *kernels: Kernel) -> bool:
        return not set(kernels) & set(self.lacking)

    def prefers_fused(self, image: object, kernel: object) -> bool:
        return True

    def prefers_matrix(self, image: list[int], kernel: list[int]) -> bool:
        return kernel[0] != kernel[1]  # so that both forms are there

    def prefers_int8(self, image: object, kernel: object) -> bool:
        return True


class Choosy(Able):
    """One that wants every form somewhere: kernels of one element stay ConvInteger."""

    def prefers_fused(self, image: list[int], kernel: list[int]) -> bool:  # type: ignore[override]
        return kernel[2] > 1

    def prefers_matrix(self, image: list[int], kernel: list[int]) -> bool:
        return kernel[2] > 1 and kernel[0] > kernel[1]


class Plain(Able):
    """One with nothing but what every release has."""

    lacking = tuple(k for k in Kernel if k not in (Kernel.ARITHMETIC, Kernel.SUMS, *MENDED, *MENDED.values()))

    def prefers_int8(self, image: object, kernel: object) -> bool:
        return False


class Lacking(Able):
    """One that is able but for some kernels."""

    def __init__(self, *kernels: Kernel) -> None:
        self.lacking = kernels

    def prefers_fused(self, image: object, kernel: object) -> bool:
        return self.is_exact(Kernel.QLINEAR_CONV)

    def prefers_matrix(self, image: list[int], kernel: list[int]) -> bool:
        return self.is_exact(Kernel.QLINEAR_MATMUL) and super().prefers_matrix(image, kernel)

    def prefers_int8(self, image: object, kernel: object) -> bool:
        return self.is_exact(Kernel.INT8)


def everything_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passes that pay for large tensors alone take small ones; phases of images are taken by a transpose."""
    monkeypatch.setattr(flatten_elementwise, "LEAST", 1)
    monkeypatch.setattr(strided_slices, "FEWEST", 3)
    monkeypatch.setattr(fuse_momentum, "SMALL", 64)
