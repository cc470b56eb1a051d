"""int_training -> what onnxruntime's CPU kernels do fast: one idea a pass, each the same integers for every input."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import onnx

from wageubn_onnx.composites import expanded
from wageubn_onnx.onnxir.edit import Rewrite, rewritten
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.nodes import only_read
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.cpu.affine import affine_maps
from wageubn_onnx.passes.targets.cpu.branches import lazy_branches
from wageubn_onnx.passes.targets.cpu.columns import flat_columns
from wageubn_onnx.passes.targets.cpu.early import early_quantizers
from wageubn_onnx.passes.targets.cpu.extremes import bare_extremes
from wageubn_onnx.passes.targets.cpu.flat import flat_tensors
from wageubn_onnx.passes.targets.cpu.flips import flips_by_addition
from wageubn_onnx.passes.targets.cpu.fused import fused_products
from wageubn_onnx.passes.targets.cpu.halves import halved_weights
from wageubn_onnx.passes.targets.cpu.hashing import uint32_hashes
from wageubn_onnx.passes.targets.cpu.joint import joint_states
from wageubn_onnx.passes.targets.cpu.layout import channels_last
from wageubn_onnx.passes.targets.cpu.machine import LAST, Kernel, Machine
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
from wageubn_onnx.passes.targets.cpu.unsigned import unsigned_kernels
from wageubn_onnx.passes.targets.cpu.whole import whole_convolutions, whole_products

TIDY = "tidy"
ModelPass = Callable[[onnx.ModelProto], onnx.ModelProto]
Needs = tuple[Kernel, ...]


def bodies_for(machine: Machine) -> dict[str, Rewrite]:
    """Those that give composites other bodies than their own."""
    passes: dict[str, tuple[Needs, Rewrite]] = {}
    return {name: one_idea for name, (needs, one_idea) in passes.items() if machine.is_exact(*needs)}


def passes_for(machine: Machine) -> dict[str, Rewrite]:
    """The passes for ``machine``, in their order: those whose kernels are exact there."""
    by_steps = machine.is_exact(*LAST, Kernel.QLINEAR_MUL)
    passes: dict[str, tuple[Needs, Rewrite]] = {
        "early-quantizers": ((), early_quantizers),
        "fused-products": (LAST, lambda edit: fused_products(edit, machine.prefers_fused, machine.prefers_matrix)),
        "affine-maps": ((*LAST, Kernel.QLINEAR_ADD), affine_maps),
        "normalized-maps": (LAST, normalized_maps),
        "stepwise-roots": ((), stepwise_roots),
        "halved-weights": ((Kernel.UNSIGNED,), halved_weights),
        "fused-momentum": ((Kernel.UNSIGNED, Kernel.QLINEAR_ADD, Kernel.SUMS), fused_momentum),
        "static-shifts": ((), static_shifts),
        "uint32-hashes": ((Kernel.UNSIGNED,), uint32_hashes),
        "narrow-gradients": ((Kernel.UNSIGNED,), narrow_gradients),
        "lean-moments": ((Kernel.SUMS,), lambda edit: lean_moments(edit, by_steps)),
        "pools-from-taps": ((Kernel.UNSIGNED,), pools_from_taps),
        "int8-images": ((Kernel.INT8,), lambda edit: int8_images(edit, machine.prefers_int8)),
        "flat-columns": ((), lambda edit: flat_columns(edit, machine.prefers_int8)),
        "swapped-gradients": ((Kernel.INT8,), lambda edit: swapped_gradients(edit, machine.prefers_int8)),
        "turned-kernels": ((), turned_kernels),
        "phases-by-kernel": (LAST, phases_by_kernel),
        "phases-by-transpose": ((), phases_by_transpose),
        "bare-extremes": ((), lambda edit: bare_extremes(edit, machine.is_exact(Kernel.UNSIGNED))),
        "joint-states": ((), joint_states),
    }
    return {name: one_idea for name, (needs, one_idea) in passes.items() if machine.is_exact(*needs)}


def inlined_passes_for(machine: Machine) -> dict[str, ModelPass]:
    """Those for the inlined and tidy step, in their order."""
    passes: dict[str, tuple[Needs, ModelPass]] = {
        "channels-last": (LAST, channels_last),
        "merged-images": (LAST, merged_images),
        "unsigned-kernels": (LAST, unsigned_kernels),
        "flat-tensors": ((), flat_tensors),
        "single-reshapes": ((), single_reshapes),
        "flips-by-addition": ((Kernel.UNSIGNED,), flips_by_addition),
        "lazy-branches": ((), lazy_branches),
        "masks-by-products": ((Kernel.UNSIGNED,), masks_by_products),
    }
    taken = {name: one_idea for name, (needs, one_idea) in passes.items() if machine.is_exact(*needs)}
    return whole_forms_for(machine) | taken  # these first, while the type of every tensor is stated


def whole_forms_for(machine: Machine) -> dict[str, ModelPass]:
    """Those that take the place of what is not exact on ``machine``, in an inlined and tidy step or inference."""
    passes = {Kernel.MATMUL: ("whole-products", whole_products), Kernel.CONV: ("whole-convolutions", whole_convolutions)}
    return dict(named for kernel, named in passes.items() if not machine.is_exact(kernel))


def pass_names(machine: Machine) -> tuple[str, ...]:
    """Of all that `for_cpu` does once the step is there, in its order."""
    return (*bodies_for(machine), *passes_for(machine), TIDY, *inlined_passes_for(machine))


def for_cpu(step: onnx.ModelProto, machine: Machine, without: Collection[str] = ()) -> onnx.ModelProto:
    """The integer step ``step``, inlined, in the forms that suit ``machine``.

    without: names of passes to leave out: one, to see what it is worth, or the last ones, to see where a fault comes from.
    """
    with _no_collection():
        for passes in (bodies_for(machine), passes_for(machine)):
            step = expanded(rewritten(step, {name: one_idea for name, one_idea in passes.items() if name not in without}))
        step = inline(step)
        for name, one_idea in ({TIDY: tidy} | inlined_passes_for(machine)).items():
            step = step if name in without else one_idea(step)
        only_read(step.graph)
    return step


def exact_form(model: onnx.ModelProto, machine: Machine) -> onnx.ModelProto:
    """The integer step or network ``model``, inlined and tidy, in forms that are exact on ``machine``, and else as it is."""
    model = tidy(inline(model))
    for one_idea in whole_forms_for(machine).values():
        model = one_idea(model)
    return model


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
