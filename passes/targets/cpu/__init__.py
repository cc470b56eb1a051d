"""int_training -> what onnxruntime's CPU kernels do fast: one idea a pass, each the same integers for every input."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx

from wageubn_onnx.composites import expanded
from wageubn_onnx.onnxir.edit import Rewrite, rewritten
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.nodes import only_read
from wageubn_onnx.passes.targets import tidy
from wageubn_onnx.passes.targets.cpu import flatten_elementwise, flip_signs_by_addition, merge_reshapes, sink_into_branches
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Machine
from wageubn_onnx.passes.targets.cpu.maps import (
    batchnorm_statistics,
    channels_last,
    fuse_affine_maps,
    hoist_quantizers,
    mask_by_multiplication,
    max_pool_from_taps,
    merge_images,
    normalize_by_reciprocals,
    strided_slices,
)
from wageubn_onnx.passes.targets.cpu.products import (
    flip_kernels_by_taps,
    fuse_momentum,
    fuse_requantization,
    im2col,
    int8_images,
    narrow_weight_gradients,
    pad_products,
    split_weights_high_low,
    swap_weight_gradient_operands,
    uint8_constant_kernels,
)
from wageubn_onnx.passes.targets.cpu.products.int8_images import LATE
from wageubn_onnx.passes.targets.cpu.scalars import (
    batch_small_tensors,
    hash_in_uint32,
    specialize_constant_shifts,
    split_exponent_reductions,
    square_roots,
)

ModelPass = Callable[[onnx.ModelProto], onnx.ModelProto]

BODIES: tuple[Form, ...] = (max_pool_from_taps.PASS,)
"""Composites get other bodies than their own."""

CALLS = (
    hoist_quantizers.PASS,
    fuse_requantization.PASS,
    fuse_affine_maps.PASS,
    normalize_by_reciprocals.PASS,
    square_roots.PASS,
    split_weights_high_low.PASS,
    fuse_momentum.PASS,
    specialize_constant_shifts.PASS,
    hash_in_uint32.PASS,
    narrow_weight_gradients.PASS,
    batchnorm_statistics.PASS,
    int8_images.PASS,
    im2col.PASS,
    swap_weight_gradient_operands.PASS,
    flip_kernels_by_taps.PASS,
    strided_slices.BY_KERNEL,
    strided_slices.BY_TRANSPOSE,
    split_exponent_reductions.PASS,
    batch_small_tensors.PASS,
)
"""Quantizers are calls: each rewrites an `Edit`."""

EXACT = (pad_products.PRODUCTS, pad_products.CONVOLUTIONS)
"""What takes the place of kernels that are wrong on a machine, in an inlined and tidy step or inference: first, while the type
of every tensor is stated."""

INLINED = (
    *EXACT,
    channels_last.PASS,
    merge_images.PASS,
    uint8_constant_kernels.PASS,
    flatten_elementwise.PASS,
    merge_reshapes.PASS,
    flip_signs_by_addition.PASS,
    sink_into_branches.PASS,
    mask_by_multiplication.PASS,
)
"""All that is left are operators: each makes a model of a model."""

PASSES = (*BODIES, *CALLS, tidy.PASS, *INLINED)
"""In the order of `for_cpu`."""


def bodies_for(machine: Machine) -> dict[str, Rewrite]:
    """Those of `BODIES` that suit ``machine``."""
    return _chosen(BODIES, machine)


def passes_for(machine: Machine) -> dict[str, Rewrite]:
    """Those of `CALLS`."""
    return _chosen(CALLS, machine)


def inlined_passes_for(machine: Machine) -> dict[str, ModelPass]:
    """Those of `INLINED`."""
    return _chosen(INLINED, machine)


def whole_forms_for(machine: Machine) -> dict[str, ModelPass]:
    """Those of `EXACT`."""
    return _chosen(EXACT, machine)


def _chosen(forms: Iterable[Form], machine: Machine) -> dict[str, Callable[[Any], Any]]:
    return {form.name: form.on(machine) for form in forms if form.suits(machine)}


def pass_names(machine: Machine) -> tuple[str, ...]:
    """Of all that `for_cpu` does once the step is there, in its order."""
    return (*bodies_for(machine), *passes_for(machine), tidy.PASS.name, *inlined_passes_for(machine))


def for_cpu(step: onnx.ModelProto, machine: Machine, without: Collection[str] = ()) -> onnx.ModelProto:
    """The integer step ``step``, inlined, in the forms that suit ``machine``.

    without: names of passes to leave out: one, to see what it is worth, or the last ones, to see where a fault comes from.
    """
    bounds: dict[str, int] = {}
    with _no_collection():
        for passes in (bodies_for(machine), passes_for(machine)):
            taken = {name: one_idea for name, one_idea in passes.items() if name not in without}
            step = expanded(rewritten(step, taken, bounds), but=LATE)
        step = inline(step)
        for name, one_idea in ({tidy.PASS.name: tidy.PASS.run} | inlined_passes_for(machine)).items():
            step = step if name in without else one_idea(step)
        only_read(step.graph)
    return step


def exact_form(model: onnx.ModelProto, machine: Machine) -> onnx.ModelProto:
    """The integer step or network ``model``, inlined and tidy, in forms that are exact on ``machine``, and else as it is."""
    model = tidy.PASS.run(inline(model))
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
