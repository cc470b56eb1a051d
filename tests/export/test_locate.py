"""Whatever fault is planted, in a pass or in a kernel: `verify` says which, at which node, and never dies of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from faults import for_cpu_with, wrong_kernel
from machines import Choosy, Lacking, everything_fires
from networks import compact
from wageubn_onnx.cli import cli
from wageubn_onnx.config import Config
from wageubn_onnx.export import ort
from wageubn_onnx.export import verify as verifying
from wageubn_onnx.export.base import Bundle, Passes
from wageubn_onnx.export.locate import Case, differs, in_passes
from wageubn_onnx.export.verify import Reference, verify
from wageubn_onnx.passes.targets.cpu import for_cpu, pass_names
from wageubn_onnx.passes.targets.cpu.machine import Kernel, Machine
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.runtime.kernels import kernels

pytestmark = pytest.mark.skipif(not kernels().is_exact(*Kernel), reason="the fused kernels are not exact here")
SEEDS = 12  # faults of which one at least shows
QUICK = ("fuse-affine-maps", "channels-last")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("located")
    onnx.save(compact(), path / "compact.onnx")
    convert(path / "compact.onnx", Config(batch=2, profile=load_profile("fast"), keep_folded=True), path / "made")
    return path / "made"


@pytest.fixture(autouse=True)
def _fires(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_fires(monkeypatch)


def case_of(bundle: Bundle) -> Case:
    with tempfile.TemporaryDirectory() as scratch:
        return Reference.of(bundle, verifying._inputs(bundle, 2, 0), Path(scratch)).case(1)


def test_the_reference_takes_no_inexact_kernel(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where products are wrong on this machine, the others are held to the same step in whole products: the same bits."""
    bundle = Bundle.of(folder)
    references = []
    for lacking in ((), (Kernel.MATMUL, Kernel.CONV)):
        monkeypatch.setattr(verifying, "kernels", lambda lacking=lacking: Lacking(*lacking))
        references.append(Reference.of(bundle, verifying._inputs(bundle, 2, 0), tmp_path).expected)
        nodes = onnx.load(tmp_path / "reference.onnx").graph.node
        assert any(name.endswith("/whole") for node in nodes for name in node.output) == bool(lacking)
    assert references[0] == references[1]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in pass_names(Choosy())]
)
def test_a_fault_in_a_pass_is_named(name: str, folder: Path) -> None:
    bundle = Bundle.of(folder)
    case = case_of(bundle)
    names = pass_names(Choosy())
    behind = names[names.index(name) + 1 :]
    for seed in range(SEEDS):
        rewrite = for_cpu_with(name, seed)
        # it shows at once, and the passes behind it do not take it away
        if all(differs(lambda rewrite=rewrite, w=w: rewrite(bundle.step, Choosy(), w), case) for w in (behind, ())):  # type: ignore[misc]
            passes = Passes(names, lambda count, rewrite=rewrite: rewrite(bundle.step, Choosy(), names[count:]))  # type: ignore[misc]
            place = in_passes(bundle.step, passes, case)
            assert place is not None and place.cause == f"pass {name}", place
            return
    pytest.fail(f"none of {SEEDS} faults changes an output")


def test_a_pass_that_dies_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(step: onnx.ModelProto, machine: Machine, without: tuple[str, ...] = ()) -> onnx.ModelProto:
        if "batch-small-tensors" not in without:
            raise KeyError("lost")
        return for_cpu(step, machine, without)

    monkeypatch.setattr(ort, "for_cpu", dying)
    monkeypatch.setattr(ort, "kernels", Choosy)
    (row,) = verify(folder, ["onnxruntime"], steps=1)
    assert row.wrong and row.failure == "KeyError: 'lost'"
    assert row.place is not None and row.place.cause == "pass batch-small-tensors"


@pytest.mark.parametrize("kind", ["QLinearConv", "MatMulInteger"])
def test_a_wrong_kernel_is_named(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the canonical step does not use, and one that only sessions with optimizations have wrong."""
    monkeypatch.setattr(ort, "kernels", Choosy)
    monkeypatch.setattr(onnxruntime, "InferenceSession", wrong_kernel(kind, optimized_alone=kind == "MatMulInteger"))
    rows = list(verify(folder, ["onnxruntime"], steps=1))
    wrong = [row for row in rows if row.wrong]
    assert [row.runner.partition(", ")[2] for row in rows if not row.wrong] == (
        [] if kind == "QLinearConv" else ["optimizations off, 1 thread", "optimizations off, 2 threads"]
    )
    for row in wrong:
        assert row.difference is not None and row.place is not None
        assert row.place.cause == f"kernel {kind}" and row.place.node.endswith(f"({kind})")


def test_a_wrong_kernel_of_the_reference_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime has wrong in the canonical step shows beside the evaluators."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", wrong_kernel("ConvInteger"))
    rows = list(verify(folder, verifying.EVALUATORS, steps=1))
    assert [row.place.cause for row in rows if row.place] == ["kernel ConvInteger"] * 2


def test_the_command_says_it_in_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the fault for which intermediate tensors were once shown to the passes, which then made two nodes of one name."""
    monkeypatch.setattr(ort, "for_cpu", for_cpu_with("mask-by-multiplication", 0))
    monkeypatch.setattr(ort, "kernels", Choosy)
    done = CliRunner().invoke(cli, ["verify", str(folder), "--targets", "onnxruntime", "--steps", "2", "--json"])
    assert done.exit_code == 1
    assert {row["place"]["cause"] for row in json.loads(done.stdout)} == {"pass mask-by-multiplication"}
