"""What IREE compiles is the step's bits, on this machine, and a file for another; what it does wrong, as the smallest models."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx.reference import ReferenceEvaluator

from networks import BATCH, images, labels
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export import iree
from wageubn_onnx.export.base import Array
from wageubn_onnx.export.export import export
from wageubn_onnx.export.verify import verify
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.iree import for_iree

reason = iree.missing() or iree.cannot_run()
needs_iree = pytest.mark.skipif(reason is not None, reason=f"target iree {reason}")
AARCH64 = 183  # e_machine, ELF's number of the architecture


def model(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, list[int | str]]], output: int, **constants: Array
) -> onnx.ModelProto:
    """With the output y; ``inputs``: dtype and shape by name."""
    graph = h.make_graph(
        nodes,
        "step",
        [h.make_tensor_value_info(name, *of) for name, of in inputs.items()],
        [h.make_tensor_value_info("y", output, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


NEG = model([h.make_node("Neg", ["x"], ["y"])], {"x": (T.INT64, [2])}, T.INT64)
CAST = model([h.make_node("Cast", ["x"], ["y"], to=T.INT16)], {"x": (T.INT32, [2])}, T.INT16)
SLICE = model(
    [
        h.make_node("Cast", ["x"], ["wide"], to=T.INT32),
        h.make_node("Slice", ["wide", "start", "end", "axes", "step"], ["strided"]),
        h.make_node("Cast", ["strided"], ["narrow"], to=T.INT8),
        h.make_node("Cast", ["narrow"], ["image"], to=T.UINT8),
        h.make_node("ConvInteger", ["image", "weight", "zero", "zero"], ["y"]),
    ],
    {"x": (T.UINT8, ["N", 6, 6, 6]), "weight": (T.UINT8, [8, 6, 1, 1])},
    T.INT32,
    start=np.array([1, 1]),
    end=np.array([6, 6]),
    axes=np.array([2, 3]),
    step=np.array([2, 2]),
    zero=np.array(128, np.uint8),
)
PADS = model(
    [h.make_node("ConvInteger", ["x", "weight", "zero", "zero"], ["y"], pads=[0, 1, 1, 0], kernel_shape=[2, 2])],
    {"x": (T.UINT8, [2, 3, 4, 4]), "weight": (T.UINT8, [5, 3, 2, 2])},
    T.INT32,
    zero=np.array(128, np.uint8),
)
X = np.array([2**24 + 1, -(2**40) - 1], np.int64)  # no float32


def run(made: onnx.ModelProto, folder: Path, *operands: Array) -> Array:
    iree.compiled(made, folder / "one.vmfb")
    return np.asarray(iree.function(folder / "one.vmfb", "step")(*operands))


@needs_iree
def test_neg_of_int64_goes_through_float32(tmp_path: Path) -> None:
    """Where this fails, IREE has mended it, and `for_iree` can leave Neg alone."""
    assert run(NEG, tmp_path, X).tolist() == (-X.astype(np.float32).astype(np.int64)).tolist() != (-X).tolist()
    assert run(for_iree(NEG), tmp_path, X).tolist() == (-X).tolist()


@needs_iree
def test_a_cast_to_int16_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(WageubnError, match="target iree: iree_compile: .*failed to legalize operation 'torch.operator'"):
        run(CAST, tmp_path)
    assert run(for_iree(CAST), tmp_path, np.array([5, -7], np.int32)).tolist() == [5, -7]


@needs_iree
def test_a_convolution_with_uneven_pads_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(WageubnError, match="target iree: iree_compile: .*failed to legalize operation 'torch.operator'"):
        run(PADS, tmp_path)
    draw = np.random.default_rng(0)
    feeds = {"x": draw.integers(0, 256, (2, 3, 4, 4), np.uint8), "weight": draw.integers(0, 256, (5, 3, 2, 2), np.uint8)}
    (expected,) = ReferenceEvaluator(PADS).run(None, feeds)
    assert np.array_equal(run(for_iree(PADS), tmp_path, *feeds.values()), expected)


def test_uneven_pads_become_a_pad_of_the_zero_point() -> None:
    """Without IREE: the convolution that is left has none."""
    made = for_iree(PADS)
    assert [node.op_type for node in made.graph.node] == ["Pad", "ConvInteger"]
    assert [list(a.ints) for a in made.graph.node[1].attribute if a.name == "pads"] == [[0, 0, 0, 0]]
    draw = np.random.default_rng(0)
    feeds = {"x": draw.integers(0, 256, (2, 3, 4, 4), np.uint8), "weight": draw.integers(0, 256, (5, 3, 2, 2), np.uint8)}
    (expected,), (found,) = (ReferenceEvaluator(m).run(None, feeds) for m in (PADS, made))
    assert np.array_equal(found, expected)


def test_neg_and_casts_are_others() -> None:
    """Without IREE."""
    assert [node.op_type for node in for_iree(NEG).graph.node] == ["Sub"]
    assert ReferenceEvaluator(for_iree(NEG)).run(None, {"x": X})[0].tolist() == (-X).tolist()
    (cast,) = for_iree(CAST).graph.node
    assert cast.attribute[0].i == T.INT32


@needs_iree
def test_a_strided_slice_of_open_size_is_not_compiled_into_a_product(tmp_path: Path) -> None:
    with pytest.raises(WageubnError, match="target iree: iree_compile: .*stack allocation size overflows"):
        run(SLICE, tmp_path)
    draw = np.random.default_rng(0)
    feeds = {"x": draw.integers(0, 128, (4, 6, 6, 6), np.uint8), "weight": draw.integers(0, 256, (8, 6, 1, 1), np.uint8)}
    (expected,) = ReferenceEvaluator(SLICE).run(None, feeds)
    assert np.array_equal(run(iree._of_batch(SLICE, 4), tmp_path, *feeds.values()), expected)


def test_the_pass_keeps_every_integer(tiny_artifacts: Artifacts, tmp_path: Path) -> None:
    """Its step in onnxruntime, with int16 as int32, gives the step's values, in the tensors' order."""
    before = tidy(inline(tiny_artifacts.files["int_training"]))
    after = for_iree(before)
    onnx.checker.check_model(after, full_check=True)
    types = {v.type.tensor_type.elem_type for v in (*after.graph.input, *after.graph.output, *after.graph.value_info)}
    types |= {t.data_type for t in after.graph.initializer}
    assert T.INT16 not in types and not types & {T.FLOAT, T.DOUBLE}
    assert [o.name for o in after.graph.output] == [o.name for o in before.graph.output]
    feeds = {e["in"]: tiny_artifacts.state[e["key"]] for e in tiny_artifacts.manifest["state"]}
    feeds |= {"images": images(BATCH), "labels": labels(BATCH)}
    feeds |= {name: np.array(value, np.int32) for name, value in (("lr", 8), ("gradient_range", 128), ("seed", 0))}
    wide = {i.name: h.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in after.graph.input}
    expected = ReferenceEvaluator(before).run(None, feeds)
    found = ReferenceEvaluator(after).run(None, {name: value.astype(wide[name]) for name, value in feeds.items()})
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_what_is_absent_is_said_in_one_line(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WageubnError, match=r"target iree: needs iree-base-compiler; pip install 'wageubn-onnx\[iree\]'"):
        export(tiny_folder, "iree", tmp_path / "out")


@needs_iree
@pytest.mark.slow
def test_the_step_and_its_example(tiny_folder: Path, tmp_path: Path) -> None:
    (row,) = verify(tiny_folder, ["iree"], steps=10)
    assert row.same and row.steps == 10
    out = export(tiny_folder, "iree", tmp_path / "out")
    np.savez(tmp_path / "data.npz", x_train=images(2 * BATCH), y_train=labels(2 * BATCH))
    command = [sys.executable, str(out / iree.TRAIN), str(out), str(tmp_path / "data.npz")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("loss") == 2
    trained, initial = np.load(tmp_path / "trained.npz"), np.load(out / iree.STATE)
    assert {k: (v.dtype, v.shape) for k, v in trained.items()} == {k: (v.dtype, v.shape) for k, v in initial.items()}


@needs_iree
@pytest.mark.slow
def test_a_program_for_another_platform_and_its_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    out, again = (export(tiny_folder, "iree", tmp_path / name, triple="aarch64-linux-gnu") for name in ("out", "again"))
    for name in (iree.STEP, iree.EVAL):
        program = (out / name).read_bytes()
        assert program == (again / name).read_bytes()
        at = program.index(b"\x7fELF")
        assert int.from_bytes(program[at + 18 : at + 20], "little") == AARCH64
    assert "aarch64-linux-gnu" in (out / "README.md").read_text()
