"""What a session is sure of before it opens; where it cannot be, one line that says what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from networks import BATCH, images, labels
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.cli import cli
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu import exact_form, for_cpu
from wageubn_onnx.passes.targets.cpu.machine import MENDED, Kernel
from wageubn_onnx.proofs.interpreter import interpret
from wageubn_onnx.runtime import kernels as tables
from wageubn_onnx.runtime import selftest, session
from wageubn_onnx.runtime.kernels import Kernels, kernels
from wageubn_onnx.runtime.releases import RIGHT
from wageubn_onnx.runtime.session import TrainingSession


@pytest.fixture(scope="module")
def folder(tiny_artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("selftest") / "tiny"
    tiny_artifacts.save(path)
    return path


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty, and the probes answered by what this machine's said before."""
    exact = kernels().exact
    monkeypatch.setattr(tables, "exact_kernels", lambda: exact)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("profile", selftest.STEPS)
def test_the_digests_are_those_of_exact_integers(profile: str) -> None:
    step, feeds = selftest.load(profile)
    values = interpret(step, feeds)
    assert selftest.digest({o.name: values[o.name] for o in step.graph.output}) == selftest.STEPS[profile]


def test_its_steps_have_rests_everywhere() -> None:
    """Products of at least 32 rows and a rest of 16 columns; channels of a kernel each in 16s, with a bias found at run time."""
    step, _ = selftest.load("fast")
    made = for_cpu(step, Kernels("able", frozenset(Kernel)))
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*made.graph.value_info, *made.graph.output)}
    products = [shapes[n.input[0]][-2:-1] + shapes[n.input[1]][-1:] for n in made.graph.node if n.op_type == "MatMulInteger"
                if n.input[0] in shapes and n.input[1] in shapes]  # fmt: skip
    assert any(rows >= 32 and columns % 16 for rows, columns in products)
    kernels_of = [n for n in made.graph.node if n.op_type == "QLinearConv" and n.input[3].endswith("/unsigned")]
    assert any(attributes(n)["group"] % 16 == 0 for n in kernels_of)


def test_a_session_tests_itself_once(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(selftest, "result", lambda *given: runs.append(given[0]) or selftest.STEPS[given[0]])
    first = selftest.trusted_kernels()
    assert runs == list(selftest.STEPS) and selftest.trusted_kernels() == first and len(runs) == 2
    selftest.trusted_kernels(optimize=True)  # other options, another test
    assert len(runs) == 4


@pytest.mark.parametrize("outcome", ["other bits", "a kernel that is lacking"])
def test_other_bits_are_refused(outcome: str, own_cache: None, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    if outcome == "other bits":
        monkeypatch.setattr(selftest, "for_cpu", lambda step, machine: turned(for_cpu(step, machine)))
    else:
        monkeypatch.setattr(selftest, "for_cpu", lambda step, machine: step_with_unknown(for_cpu(step, machine)))
    for _ in range(2):  # a failure is not kept
        with pytest.raises(WageubnError, match="^self-test: a step of profile full8 is not right on .*install another release"):
            TrainingSession(folder)


def turned(model: onnx.ModelProto) -> onnx.ModelProto:
    """With one subtraction of small numbers the other way round."""
    node = next(n for n in model.graph.node if n.op_type == "Sub")
    node.input[:] = [node.input[1], node.input[0]]
    return model


def step_with_unknown(model: onnx.ModelProto) -> onnx.ModelProto:
    next(n for n in model.graph.node if n.op_type == "Add").op_type = "NoSuchOperator"
    return model


@pytest.mark.parametrize("kernel", [Kernel.ARITHMETIC, *MENDED])
def test_without_an_exact_form_a_session_refuses(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    lacking = {kernel} | ({MENDED[kernel]} if kernel in MENDED else set())
    monkeypatch.setattr(selftest, "kernels", lambda: Kernels("this CPU, onnxruntime 9", frozenset(Kernel) - lacking))
    with pytest.raises(WageubnError) as refused:
        TrainingSession(folder)
    line = str(refused.value)
    assert line.startswith(f"{kernel.value}: not exact on this CPU, onnxruntime 9; ") and "\n" not in line
    assert f"({RIGHT} are right)" in line
    result = CliRunner().invoke(cli, ["export", str(folder), "--target", "onnxruntime", "-o", str(folder.parent / "none")])
    assert result.exit_code == 2 and kernel.value in " ".join(result.output.split())
    assert not (folder.parent / "none").exists()


def rests(model: onnx.ModelProto) -> list[str]:
    """The integer products of ``model``, and of its branches, that have a rest of 16 columns or places."""
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)

    def found(graph: onnx.GraphProto, outer: dict[str, list[int]]) -> Iterator[str]:
        values = (*graph.input, *graph.output, *graph.value_info)
        shapes = outer | {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        for node in graph.node:
            for branch in (a.g for a in node.attribute if a.HasField("g")):
                yield from found(branch, shapes)
            columns = {"MatMulInteger": slice(-1, None), "ConvInteger": slice(2, None)}.get(node.op_type)
            if columns is not None and math.prod(shapes[node.output[0]][columns]) % 16:
                yield node.name

    return list(found(model.graph, {}))


def test_a_machine_that_is_wrong_about_rests_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tiny_artifacts: Artifacts
) -> None:
    """As one with AMX and onnxruntime 1.21 to 1.24: training and inference in whole products."""
    usual = TrainingSession(folder, threads=1)
    amx = Kernels("with AMX", kernels().exact - {Kernel.MATMUL, Kernel.CONV, Kernel.INT8, Kernel.SUMS})
    for stage, form in (("int_training", for_cpu), ("int_eval", exact_form)):
        assert not rests(form(tiny_artifacts.files[stage], amx))
    assert rests(inline(tiny_artifacts.files["int_eval"]))
    monkeypatch.setattr(session, "trusted_kernels", lambda optimize=False: amx)
    padded = TrainingSession(folder, threads=1)
    for seed in range(2):
        results = [s.step(images(BATCH, seed), labels(BATCH, seed), seed=seed).loss for s in (usual, padded)]
        assert results[0] == results[1]
    for key, value in usual.state().items():
        np.testing.assert_array_equal(value, padded.state()[key], err_msg=key)
    drawn = images(7, seed=9)
    np.testing.assert_array_equal(usual.evaluate(drawn).logits, padded.evaluate(drawn).logits)
