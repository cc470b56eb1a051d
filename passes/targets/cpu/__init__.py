"""int_training -> what onnxruntime's CPU kernels do fast: one idea a pass, each the same integers for every input."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import onnx

from wageubn_onnx.inline import inline
from wageubn_onnx.passes.targets.cpu.affine import affine_maps
from wageubn_onnx.passes.targets.cpu.branches import lazy_branches
from wageubn_onnx.passes.targets.cpu.columns import flat_columns
from wageubn_onnx.passes.targets.cpu.early import early_quantizers
from wageubn_onnx.passes.targets.cpu.edit import Rewrite, rewritten
from wageubn_onnx.passes.targets.cpu.extremes import bare_extremes
from wageubn_onnx.passes.targets.cpu.flat import flat_tensors
from wageubn_onnx.passes.targets.cpu.flips import flips_by_addition
from wageubn_onnx.passes.targets.cpu.fused import fused_products
from wageubn_onnx.passes.targets.cpu.halves import halved_weights
from wageubn_onnx.passes.targets.cpu.hashing import uint32_hashes
from wageubn_onnx.passes.targets.cpu.joint import joint_states
from wageubn_onnx.passes.targets.cpu.layout import channels_last
from wageubn_onnx.passes.targets.cpu.masks import masks_by_products
from wageubn_onnx.passes.targets.cpu.merged import merged_images
from wageubn_onnx.passes.targets.cpu.moments import lean_moments
from wageubn_onnx.passes.targets.cpu.momentum import fused_momentum
from wageubn_onnx.passes.targets.cpu.narrow import narrow_gradients
from wageubn_onnx.passes.targets.cpu.normalized import normalized_maps
from wageubn_onnx.passes.targets.cpu.operands import int8_images
from wageubn_onnx.passes.targets.cpu.phases import phases_by_kernel, phases_by_transpose
from wageubn_onnx.passes.targets.cpu.pools import pools_from_taps
from wageubn_onnx.passes.targets.cpu.reshapes import single_reshapes
from wageubn_onnx.passes.targets.cpu.roots import stepwise_roots
from wageubn_onnx.passes.targets.cpu.static import static_shifts
from wageubn_onnx.passes.targets.cpu.swapped import swapped_gradients
from wageubn_onnx.passes.targets.cpu.turned import turned_kernels
from wageubn_onnx.passes.targets.nodes import only_read
from wageubn_onnx.passes.targets.tidy import tidy

TIDY = "tidy"
ModelPass = Callable[[onnx.ModelProto], onnx.ModelProto]


class Machine(Protocol):
    """What the kernels of a machine are known to do; images [N, I, H, W], kernels [O, I/G, KH, KW]."""

    @property
    def has_unsigned(self) -> bool:
        """Whether unsigned and short integers have their arithmetic, and wrap; onnxruntime 1.20 lacks some."""

    @property
    def fused_is_exact(self) -> bool:
        """Whether a QLinearConv of uint8 by int8 gives the sums of integers."""

    def prefers_fused(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether product and requantization should be one QLinearConv."""

    def prefers_matrix(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether they should be one QLinearMatMul; of maps as large as what the convolution gives."""

    def prefers_int8(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether a ConvInteger should take its images in int8."""


def passes_for(machine: Machine) -> dict[str, Rewrite]:
    """The passes for ``machine``, in their order."""
    passes: dict[str, tuple[bool, Rewrite]] = {
        "early-quantizers": (True, early_quantizers),
        "fused-products": (
            machine.fused_is_exact,
            lambda edit: fused_products(edit, machine.prefers_fused, machine.prefers_matrix),
        ),
        "affine-maps": (machine.fused_is_exact, affine_maps),
        "normalized-maps": (machine.fused_is_exact, normalized_maps),
        "stepwise-roots": (True, stepwise_roots),
        "halved-weights": (machine.has_unsigned, halved_weights),
        "fused-momentum": (machine.fused_is_exact, fused_momentum),
        "static-shifts": (True, static_shifts),
        "uint32-hashes": (machine.has_unsigned, uint32_hashes),
        "narrow-gradients": (machine.has_unsigned, narrow_gradients),
        "lean-moments": (True, lambda edit: lean_moments(edit, machine.fused_is_exact)),
        "pools-from-taps": (machine.has_unsigned, pools_from_taps),
        "int8-images": (True, lambda edit: int8_images(edit, machine.prefers_int8)),
        "flat-columns": (True, lambda edit: flat_columns(edit, machine.prefers_int8)),
        "swapped-gradients": (True, lambda edit: swapped_gradients(edit, machine.prefers_int8)),
        "turned-kernels": (True, turned_kernels),
        "phases-by-kernel": (machine.fused_is_exact, phases_by_kernel),
        "phases-by-transpose": (True, phases_by_transpose),
        "bare-extremes": (True, lambda edit: bare_extremes(edit, machine.has_unsigned)),
        "joint-states": (True, joint_states),
    }
    return {name: one_idea for name, (fits, one_idea) in passes.items() if fits}


def inlined_passes_for(machine: Machine) -> dict[str, ModelPass]:
    """Those for the inlined and tidy step, in their order."""
    passes: dict[str, tuple[bool, ModelPass]] = {
        "channels-last": (machine.fused_is_exact, channels_last),
        "merged-images": (machine.fused_is_exact, merged_images),
        "flat-tensors": (True, flat_tensors),
        "single-reshapes": (True, single_reshapes),
        "flips-by-addition": (machine.has_unsigned, flips_by_addition),
        "lazy-branches": (True, lazy_branches),
        "masks-by-products": (machine.has_unsigned, masks_by_products),
    }
    return {name: one_idea for name, (fits, one_idea) in passes.items() if fits}


def pass_names(machine: Machine) -> tuple[str, ...]:
    """Of all that `for_cpu` does once the step is there, in its order."""
    return (*passes_for(machine), TIDY, *inlined_passes_for(machine))


def for_cpu(step: onnx.ModelProto, machine: Machine, without: Collection[str] = ()) -> onnx.ModelProto:
    """The integer step ``step``, inlined, in the forms that suit ``machine``.

    without: names of passes to leave out: one, to see what it is worth, or the last ones, to see where a fault comes from.
    """
    with _no_collection():
        step = rewritten(step, {name: one_idea for name, one_idea in passes_for(machine).items() if name not in without})
        step = inline(step)
        for name, one_idea in ({TIDY: tidy} | inlined_passes_for(machine)).items():
            step = step if name in without else one_idea(step)
        only_read(step.graph)
    return step


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nodes by ten thousands and no cycles among them: looking for some takes a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
