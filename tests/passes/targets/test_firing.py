"""Every pass of every target changes a step, and no number in it.

The passes come from the targets themselves: a new one that no network here needs fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest

import networks
from faults import steps
from machines import Choosy, Plain, everything_fires
from wageubn_onnx import Artifacts, Config, convert
from wageubn_onnx.export import ort
from wageubn_onnx.export.base import Bundle, Target
from wageubn_onnx.export.table import TARGETS
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.passes.targets.cpu.machine import Kernel, Machine
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.runtime.kernels import kernels

Array = np.ndarray[Any, Any]
SEEDS = range(3)


class WithoutProducts(Plain):
    """One on which products want whole columns, and nothing is fused."""

    lacking = (*Plain.lacking, Kernel.MATMUL, Kernel.CONV)


@dataclass(frozen=True)
class Way:
    """A target with options, or for the kernels of a machine; and the networks in which its passes find something to do."""

    target: Target
    options: dict[str, Any] = field(default_factory=dict)
    machine: Machine | None = None
    networks: tuple[str, ...] = ("compact", "uneven")


WAYS = {target.name: Way(target) for target in TARGETS if target.passes and target is not ort.TARGET}
WAYS |= {
    "onnxruntime": Way(ort.TARGET, machine=Choosy(), networks=("compact",)),
    "onnxruntime, products in whole columns": Way(ort.TARGET, machine=WithoutProducts(), networks=("compact",)),
    "onnxruntime, portable": Way(ort.TARGET, {"portable": True}),
}
GUARDS = {"portable"}  # which the canonical step leaves nothing to do; each has a test of its own


@pytest.fixture(scope="session")
def firing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifacts]:
    """Converted networks: a pass must find something to do in one of them at least."""
    folder = tmp_path_factory.mktemp("firing")
    made = {}
    for name in ("compact", "uneven"):
        onnx.save(getattr(networks, name)(), folder / f"{name}.onnx")
        config = Config(batch=2, profile=load_profile("fast"), keep_folded=True)
        made[name] = convert(folder / f"{name}.onnx", config)
    return made


@pytest.mark.parametrize("name", WAYS)
def test_every_pass_changes_a_step_and_no_number(
    name: str, firing: dict[str, Artifacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each pass, whatever has a name that it had before holds the numbers that it held."""
    way = WAYS[name]
    if way.machine and not kernels().is_exact(*Kernel):
        pytest.skip("the fused kernels are not exact here")
    everything_fires(monkeypatch)
    idle = [set(unused(way, firing[network])) for network in way.networks]
    without_work = set.intersection(*idle) - GUARDS
    assert not without_work, f"give `firing` a network that has something to do for {sorted(without_work)}"


def unused(way: Way, made: Artifacts) -> Iterator[str]:
    """The names of passes that change nothing; all others are held to the numbers before them."""
    feeds, expected = [drawn(made, seed) for seed in SEEDS], None
    for name, before, after in rewritings(way, made):
        expected = expected or numbers(before, feeds)
        if [n.SerializeToString() for n in before.graph.node] == [n.SerializeToString() for n in after.graph.node]:
            yield name
            continue
        found = numbers(after, feeds)
        for left, right in zip(expected, found, strict=True):
            shared = left.keys() & right.keys()
            assert shared >= {output.name for output in before.graph.output}
            for tensor in shared:
                np.testing.assert_array_equal(right[tensor], left[tensor], err_msg=f"{tensor} after {name}")
        expected = found


def rewritings(way: Way, made: Artifacts) -> Iterator[tuple[str, onnx.ModelProto, onnx.ModelProto]]:
    """For each pass, in their order: its name, the step before it, and after it."""
    if way.machine:
        yield from steps(made.files["int_training"], way.machine)
        return
    assert way.target.passes is not None
    passes = way.target.passes(
        Bundle(made.files["int_training"], made.files["int_eval"], made.state, made.manifest), **way.options
    )
    for name, (before, after) in zip(passes.names, pairwise(map(passes.after, range(len(passes.names) + 1))), strict=True):
        yield name, before, after


def drawn(made: Artifacts, seed: int) -> dict[str, Array]:
    """A step's inputs, states anywhere in their ranges; every other seed puts exponents at the least."""
    random, manifest, values = np.random.default_rng(seed), made.manifest, {}
    for entry in manifest["state"]:
        declared, value = manifest["tensors"][entry["key"]], made.state[entry["key"]]
        least, greatest = int(declared["min"]), int(declared["max"])
        if entry["key"].endswith(".exponent") and seed % 2 == 0:
            values[entry["in"]] = value if seed else np.full_like(value, least)
        else:
            values[entry["in"]] = random.integers(least, greatest, value.shape, endpoint=True).astype(value.dtype)
    step = manifest["step"]
    for key, value in (("lr", 1 + seed), ("gradient_range", 2 ** (1 + seed)), ("seed", seed)):
        values[step[key]] = np.array(value, np.int32)
    images = next(i for i in made.files["int_training"].graph.input if i.name == step["images"])
    shape = [d.dim_value for d in images.type.tensor_type.shape.dim]
    values[step["images"]] = random.integers(0, 256, shape).astype(np.uint8)
    values[step["labels"]] = random.integers(0, 3, shape[0]).astype(np.int32)
    return values


def numbers(model: onnx.ModelProto, feeds: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """Of each step every tensor of the inlined ``model`` that is not within a branch."""
    shown = inline(model)
    outputs = {output.name for output in shown.graph.output}
    made = [name for node in shown.graph.node if node.op_type != "Constant" for name in node.output if name]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in outputs)
    run, names = networks.ort_session(shown, optimize=False), [output.name for output in shown.graph.output]
    dtypes = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in shown.graph.input}
    return [
        dict(zip(names, run.run(None, {name: fed[name].astype(dtype) for name, dtype in dtypes.items()}), strict=True))
        for fed in feeds
    ]
