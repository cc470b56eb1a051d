"""An export is whole or absent, trains by itself, and computes the bits of the step that it came from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from networks import BATCH, images, labels
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export import ort
from wageubn_onnx.export import verify as verifying
from wageubn_onnx.export.base import Bundle
from wageubn_onnx.export.export import export
from wageubn_onnx.export.table import TARGETS
from wageubn_onnx.export.verify import Row, verify
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.cpu.machine import MENDED, Kernel
from wageubn_onnx.passes.targets.portable import portable
from wageubn_onnx.proofs.audit import audit_model
from wageubn_onnx.runtime.kernels import Kernels
from wageubn_onnx.runtime.session import TrainingSession


@pytest.fixture(scope="module")
def folder(tiny_artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "tiny"
    tiny_artifacts.save(path)
    return path


def test_onnxruntime_computes_the_same_bits(folder: Path) -> None:
    rows = list(verify(folder, ["onnxruntime"], steps=3))
    assert len(rows) == 4
    assert all(row.same and row.steps == 3 and row.tensors > 100 for row in rows)


@pytest.mark.parametrize("name", verifying.EVALUATORS)
def test_evaluators_compute_the_same_bits(name: str, folder: Path) -> None:
    (row,) = verify(folder, [name], steps=1)
    assert row.same


def test_the_onnxruntime_of_another_environment(folder: Path, tmp_path: Path) -> None:
    rows = list(verify(folder, ["onnxruntime"], steps=2, pythons=[Path(sys.executable)]))
    assert len(rows) == 8
    assert all(row.same for row in rows)
    with pytest.raises(WageubnError, match="absent: cannot be run"):
        list(verify(folder, ["onnxruntime"], steps=1, pythons=[tmp_path / "absent"]))


def test_the_manifest_says_what_the_step_needs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 by uint8 is exact on some machines only; elsewhere, and in old kernels, the step does without."""
    for exact, needs in ((True, [ort.INT8]), (False, [])):
        able = {Kernel.ARITHMETIC, *MENDED, *([Kernel.INT8] if exact else [])}
        monkeypatch.setattr(ort, "kernels", lambda able=able: Kernels("a machine", frozenset(able)))
        export(folder, "onnxruntime", tmp_path / str(exact))
        manifest = json.loads((tmp_path / str(exact) / "manifest.json").read_text())
        assert manifest["needs"] == needs
        assert (ort.INT8 in (tmp_path / str(exact) / "README.md").read_text()) == exact


def broken(model: onnx.ModelProto, machine: object, without: Collection[str] = ()) -> onnx.ModelProto:
    """By `tidy`, with the first comparison by Greater turned around."""
    result = inline(model)
    if "tidy" not in without:
        result = tidy(result)
        node = next(n for n in result.graph.node if n.op_type == "Greater")
        node.op_type = "Less"
    return result


def test_a_difference_is_found_where_it_begins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "for_cpu", broken)
    (row, *_) = verify(folder, ["onnxruntime"], steps=2)
    assert not row.same
    assert row.difference is not None and row.difference.expected != row.difference.found
    assert row.place is not None and row.place.cause == "pass tidy" and row.place.node.endswith("(Less)")


def test_tidy_leaves_fewer_nodes_and_integers_alone(tiny_artifacts: Artifacts) -> None:
    inlined = inline(tiny_artifacts.files["int_training"])
    made = tidy(inlined)
    assert len(made.graph.node) < 0.7 * len(inlined.graph.node)
    assert "Constant" not in {n.op_type for n in made.graph.node}
    assert [o.name for o in made.graph.output] == [o.name for o in inlined.graph.output]
    onnx.checker.check_model(made, full_check=True)
    assert not [f for f in audit_model(made).findings if f.kind == "dtype"]


def test_portable_computes_the_same_with_old_kernels(folder: Path, tiny_artifacts: Artifacts, tmp_path: Path) -> None:
    out = export(folder, "onnxruntime", tmp_path / "out", portable=True)
    made = onnx.shape_inference.infer_shapes(onnx.load(out / ort.STEP), strict_mode=True)
    dtypes = {v.name: v.type.tensor_type.elem_type for v in (*made.graph.input, *made.graph.output, *made.graph.value_info)}
    dtypes |= {t.name: t.data_type for t in made.graph.initializer}
    wide = {onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*made.graph.value_info, *made.graph.output)}
    columns = [sizes[n.output[0]][-1] for n in made.graph.node if n.op_type == "MatMulInteger"]
    columns += [np.prod(sizes[n.output[0]][2:]) for n in made.graph.node if n.op_type == "ConvInteger"]
    assert len(columns) > 10 and not any(size % 16 for size in columns)  # as every release is right about
    assert {dtypes[n.input[0]] for n in made.graph.node if n.op_type in ("Add", "Mul", "Greater", "Equal", "Max", "Clip")} <= wide
    bundle = Bundle.of(folder)
    bundle = replace(bundle, lowered=bundle.step)
    feeds = verifying._inputs(bundle, 2, 0)
    given = [
        run.steps(bundle.state, feeds)
        for run in (*ort.runners(out)[:1], verifying.Evaluator("interpreter", replace(bundle, lowered=bundle.step)))
    ]
    for found, expected in zip(*given, strict=True):
        assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_a_product_that_old_releases_lack_is_named(tiny_artifacts: Artifacts) -> None:
    made = tidy(inline(tiny_artifacts.files["int_training"]))
    node = next(n for n in made.graph.node if n.op_type == "ConvInteger")
    value = next(v for v in made.graph.value_info if v.name == node.input[1])
    value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    with pytest.raises(WageubnError, match=r"node .*1.17 has no ConvInteger of UINT8 by INT8"):
        portable(made)


def test_the_example_trains_and_its_state_comes_back(folder: Path, tmp_path: Path) -> None:
    """From the exported folder alone; `TrainingSession` goes on from what it saved."""
    out = export(folder, "onnxruntime", tmp_path / "out", portable=True)
    np.savez(tmp_path / "data.npz", x_train=images(3 * BATCH), y_train=labels(3 * BATCH))
    command = [sys.executable, str(out / ort.TRAIN), str(out), str(tmp_path / "data.npz")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("loss") == 3
    trained = dict(np.load(tmp_path / "trained.npz"))
    session = TrainingSession(folder, threads=1)
    order = np.random.default_rng(0).permutation(3 * BATCH)
    for start in range(0, 3 * BATCH, BATCH):
        chosen = order[start : start + BATCH]
        session.step(images(3 * BATCH)[chosen], labels(3 * BATCH)[chosen], lr=5 / 512)
    assert {key: value.tobytes() for key, value in session.state().items()} == {k: v.tobytes() for k, v in trained.items()}


def test_another_first_step_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    """In one line, and nothing is written: as on a machine where some kernel is wrong."""
    out = export(folder, "onnxruntime", tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"first_step": "0" * 64}))
    np.savez(tmp_path / "data.npz", x_train=images(BATCH), y_train=labels(BATCH))
    command = [sys.executable, str(out / ort.TRAIN), str(out), str(tmp_path / "data.npz")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and not done.stdout and len(done.stderr.splitlines()) == 1
    assert f"does not compute this step exactly on this processor: install another release ({manifest['releases']}" in done.stderr
    assert not (tmp_path / "trained.npz").exists()


def test_a_trained_state_is_exported(folder: Path, tmp_path: Path) -> None:
    session = TrainingSession(folder, threads=1)
    session.step(images(BATCH), labels(BATCH), lr=0.1)
    session.save(tmp_path / "trained.safetensors")
    out = export(folder, "onnxruntime", tmp_path / "out", state=tmp_path / "trained.safetensors")
    found = np.load(out / ort.STATE)
    assert all(np.array_equal(found[key], value) for key, value in session.state().items())


def test_the_same_files_every_time(folder: Path, tmp_path: Path) -> None:
    for target in TARGETS:
        if target.missing() or target.name == "iree":  # a minute to compile: tests/export/test_iree.py
            continue
        first, second = (export(folder, target.name, tmp_path / f"{target.name}{i}") for i in range(2))
        files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
        assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
        assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files), target.name


def test_an_export_takes_the_place_of_an_export_alone(folder: Path, tmp_path: Path) -> None:
    out = export(folder, "onnxruntime", tmp_path / "out")
    (out / "trained.npz").write_text("mine")
    export(folder, "web", out)
    assert (out / "trained.npz").read_text() == "mine"
    assert not (out / ort.TRAIN).exists()
    assert ArtifactFolder(out).files.keys() == {p.name for p in out.iterdir()} - {"manifest.json", "trained.npz"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for place, words in ((tmp_path / "mine", "holds other files"), (folder, "holds other files")):
        with pytest.raises(WageubnError, match=words):
            export(folder, "onnxruntime", place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]


def test_what_is_wrong_is_said_in_one_line(folder: Path, tmp_path: Path, tiny_artifacts: Artifacts) -> None:
    with pytest.raises(WageubnError, match="target nothing: unknown; choose one of onnxruntime"):
        export(folder, "nothing", tmp_path / "out")
    with pytest.raises(WageubnError, match="has no option 'budget'"):
        export(folder, "onnxruntime", tmp_path / "out", budget=1)
    with pytest.raises(WageubnError, match="target nothing: unknown"):
        list(verify(folder, ["nothing"]))
    bundle = Bundle.of(folder)
    key = bundle.manifest["state"][0]["key"]
    with pytest.raises(WageubnError, match=f"state '{key}' is missing"):
        replace(bundle, state={}).check_state()
    assert not (tmp_path / "out").exists()


def test_rows_are_json(folder: Path) -> None:
    row = Row("c", "gcc", 1, 2, verifying.Difference(0, "loss", [], 1, 2))
    assert json.loads(json.dumps(row.as_json()))["difference"]["tensor"] == "loss"
    assert not row.same
