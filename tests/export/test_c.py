"""The C sources compute the step's bits, on a host and on a core without FPU, within the memory that they state."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from networks import BATCH, images, labels, run_ort
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export import c
from wageubn_onnx.export import verify as verifying
from wageubn_onnx.export.base import Bundle
from wageubn_onnx.export.export import export
from wageubn_onnx.export.memory import planned
from wageubn_onnx.export.verify import verify
from wageubn_onnx.passes.targets.depth_first import depth_first
from wageubn_onnx.passes.targets.kernels import Kernels, tensor_types
from wageubn_onnx.passes.targets.slices import reversed_slices_to_gathers
from wageubn_onnx.pipeline import convert
from wageubn_onnx.runtime.session import TrainingSession

GCC = shutil.which("gcc")
needs_emx = pytest.mark.skipif(c.missing() is not None, reason=str(c.missing()))
needs_gcc = pytest.mark.skipif(GCC is None, reason="gcc is not installed")


@pytest.fixture(scope="module")
def folder(tiny_artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c") / "tiny"
    tiny_artifacts.save(path)
    return path


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(folder, "c", tmp_path_factory.mktemp("exported") / "c")


def compiled(exported: Path, program: Path, *sources: str, options: tuple[str, ...] = ("-O1",)) -> Path:
    assert GCC
    command = [GCC, *c.FLAGS, *options, f"-I{exported}", *sources, "wageubn.c", "state.c", "initial.c", "-o", str(program)]
    subprocess.run(command, cwd=exported, check=True)
    return program


@needs_emx
@needs_gcc
def test_c_computes_the_same_bits(folder: Path) -> None:
    (row,) = verify(folder, ["c"], steps=3)
    assert row.same, row
    assert row.tensors > 100


@needs_emx
@needs_gcc
def test_it_trains_from_its_folder_without_a_float(folder: Path, exported: Path, tmp_path: Path) -> None:
    """By `make` and the README's call, with no register for floats to be had. `TrainingSession` gives the same bits."""
    options = "-O1 -mgeneral-regs-only" if platform.machine() in ("x86_64", "aarch64") else "-O1"
    subprocess.run(["make", f"CFLAGS={options}", "train"], cwd=exported, check=True, capture_output=True)
    images(BATCH).tofile(tmp_path / "images")
    labels(BATCH).astype(np.uint8).tofile(tmp_path / "labels")
    done = subprocess.run(
        [exported / "train", "images", "labels", "2", "8"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"(epoch \d: loss \d+/1000, \d of 4 right\n){2}", done.stdout)
    (exported / "train").unlink()
    session = TrainingSession(folder, threads=1)
    saved = (tmp_path / "state.bin").read_bytes()
    order = order_of_train(BATCH)
    for _ in range(2):
        shuffle = next(order)
        session.step(images(BATCH)[shuffle], labels(BATCH)[shuffle], lr=8 / 512)
    bundle = Bundle.of(folder)
    program = c.Program.of(replace(bundle, lowered=c.passes(bundle).whole))
    assert saved[16:] == b"".join(session.state()[f.key].tobytes() for f in program.state)


def order_of_train(count: int):  # type: ignore[no-untyped-def]
    """The order of images in each epoch of train.c."""
    order, random = np.arange(count), 1
    while True:
        for i in range(count - 1, 0, -1):
            random = (random * 1664525 + 1013904223) % 2**32
            other = random * (i + 1) >> 32
            order[[i, other]] = order[[other, i]]
        yield order.copy()


CHECKS = r"""
#include <stdio.h>
#include "wageubn.h"
static wageubn_state state;
static uint8_t saved[WAGEUBN_SAVED_BYTES];
int main(int argc, char **argv)
{
    static uint8_t image[WAGEUBN_IMAGE_BYTES];
    WAGEUBN_LOGIT logits[WAGEUBN_CLASSES];
    FILE *file = fopen(argv[argc - 1], "rb");
    if (wageubn_load(&state, wageubn_initial) != 0)
        return 1;
    while (fread(image, 1, sizeof image, file) == sizeof image) {
        wageubn_eval(&state, image, logits);
        for (int i = 0; i < WAGEUBN_CLASSES; i++)
            printf("%ld ", (long)logits[i]);
    }
    wageubn_save(&state, saved);
    for (size_t i = 0; i < sizeof saved; i++)
        if (saved[i] != wageubn_initial[i])
            return 2;
    saved[8]++;
    if (wageubn_load(&state, saved) != 1) /* another network */
        return 3;
    saved[8]--;
    saved[16 + 3] = 0x7f; /* the highest byte of a weight, which has 24 bits */
    if (wageubn_load(&state, saved) != 2)
        return 4;
    printf("%d", (int)(sizeof(wageubn_state) + sizeof(wageubn_batch) + sizeof(wageubn_result)));
    return 0;
}
"""


@needs_emx
@needs_gcc
def test_logits_states_and_sizes(folder: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "checks.c").write_text(CHECKS)
    images(3).tofile(tmp_path / "images")
    program = compiled(exported, tmp_path / "checks", str(tmp_path / "checks.c"))
    done = subprocess.run([program, tmp_path / "images"], capture_output=True, text=True, check=True)
    *logits, size = map(int, done.stdout.split())
    bundle = Bundle.of(folder)
    named = [i.name for i in bundle.evaluation.graph.input]
    state = {entry["in"]: bundle.state[entry["key"]] for entry in bundle.manifest["state"] if entry["in"] in named}
    feeds = state | {bundle.manifest["eval"]["images"]: images(3)}
    assert logits == run_ort(bundle.evaluation, feeds)[bundle.manifest["eval"]["logits"]].reshape(-1).tolist()
    memory = c.ArtifactFolder(exported).manifest["c"]["memory"]
    assert size == memory["total"] - memory["arena"]
    assert memory["total"] == sum(bytes_ for part, bytes_ in memory.items() if part != "total")


@needs_emx
def test_a_budget_says_what_fits(folder: Path, tmp_path: Path, exported: Path) -> None:
    total = c.ArtifactFolder(exported).manifest["c"]["memory"]["total"]
    export(folder, "c", tmp_path / "enough", budget=str(total))
    with pytest.raises(
        WageubnError, match=rf"needs {total:,} bytes .* over the budget of 65,536; convert with --batch 2, which needs"
    ):
        export(folder, "c", tmp_path / "out", budget="64k")
    with pytest.raises(WageubnError, match="over the budget of 40,960; convert with --batch 1 --train-last"):
        export(folder, "c", tmp_path / "out", budget="40k")
    with pytest.raises(WageubnError, match="even --batch 1 --train-last 1 needs"):
        export(folder, "c", tmp_path / "out", budget="1k")
    with pytest.raises(WageubnError, match="budget 'much': give bytes"):
        export(folder, "c", tmp_path / "out", budget="much")


def test_no_tensor_is_overwritten_before_its_last_reader(tiny_artifacts: Artifacts) -> None:
    """By a walk over the plan: whoever reads bytes of the arena finds what the tensor's own maker wrote there."""
    bundle = bundle_of(tiny_artifacts)
    program = c.Program.of(replace(bundle, lowered=c.passes(bundle).whole))
    model, memory, types = program.step, program.step_memory, tensor_types(program.step)
    written = np.full(memory.size, -1)
    number = {name: i for i, name in enumerate(memory.offsets)}
    for node in model.graph.node:
        if node.output[0] in memory.roots:
            continue
        for name in node.input:
            check(memory.roots.get(name, name), written, memory.offsets, number, types)
        for name in node.output:
            if name in memory.offsets:
                written[memory.offsets[name] : memory.offsets[name] + types[name].bytes] = number[name]
    for name in memory.copied:
        check(name, written, memory.offsets, number, types)
    alone = sum(types[name].bytes for node in model.graph.node for name in node.output if name)
    assert memory.size < alone / 20


def check(name, written, offsets, number, types) -> None:  # type: ignore[no-untyped-def]
    if name in offsets:
        assert (written[offsets[name] : offsets[name] + types[name].bytes] == number[name]).all(), name


def bundle_of(artifacts: Artifacts) -> Bundle:
    return Bundle(artifacts.files["int_training"], artifacts.files["int_eval"], artifacts.state, artifacts.manifest)


def test_an_output_waits_for_the_last_reader_of_its_home() -> None:
    """y replaces x, and z reads x afterwards: y lies in the arena until the end."""
    value = h.make_tensor_value_info
    nodes = [h.make_node("Neg", ["x"], ["y"]), h.make_node("Add", ["x", "y"], ["z"])]
    graph = h.make_graph(nodes, "g", [value("x", T.INT32, [4])], [value("y", T.INT32, [4]), value("z", T.INT32, [4])])
    model = h.make_model(graph)
    assert planned(model, {"y": "x"}).copied == ("y",)
    assert planned(model, {}).copied == ()
    assert planned(model, {"z": "x"}).copied == ()


def slicing(step: int) -> onnx.ModelProto:
    """x[:, ::step], the smallest model with a Slice that runs backwards where step is negative."""
    value = h.make_tensor_value_info
    start, end = (-1, -(2**62)) if step < 0 else (0, 2**62)
    constants = [numpy_helper.from_array(np.array([v], np.int64), n) for n, v in zip("sedt", (start, end, 1, step), strict=True)]
    node = h.make_node("Slice", ["x", "s", "e", "d", "t"], ["y"], "turned")
    shape = [2, -(-4 // abs(step))]
    graph = h.make_graph([node], "g", [value("x", T.INT8, [2, 4])], [value("y", T.INT8, shape)], constants)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)


@needs_emx
def test_emx_onnx_cgen_takes_no_slice_that_runs_backwards() -> None:
    """What `reversed_slices_to_gathers` is for. When this fails, the pass is no longer needed."""

    def generate(model: onnx.ModelProto) -> str:
        constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        kernels = Kernels()
        calls = [kernels.call(node, tensor_types(model), constants) for node in model.graph.node]
        return c._generated(kernels, calls)

    with pytest.raises(WageubnError, match="node 'turned': emx-onnx-cgen does not take it: .*positive steps"):
        generate(slicing(-1))
    assert "k0" in generate(reversed_slices_to_gathers(slicing(-1)))


def test_slices_backwards_become_gathers() -> None:
    x = np.arange(8, dtype=np.int8).reshape(2, 4)
    made = reversed_slices_to_gathers(slicing(-1))
    assert [n.op_type for n in made.graph.node] == ["Gather"]
    (found,) = onnx.reference.ReferenceEvaluator(made).run(None, {"x": x})
    assert np.array_equal(found, x[:, ::-1])
    assert reversed_slices_to_gathers(slicing(2)) == slicing(2)
    with pytest.raises(WageubnError, match="node 'turned'"):
        reversed_slices_to_gathers(slicing(-2))


def test_depth_first_changes_the_order_alone(tiny_artifacts: Artifacts) -> None:
    model = tiny_artifacts.files["int_eval"]
    made = depth_first(model)
    assert sorted(n.SerializeToString() for n in made.graph.node) == sorted(n.SerializeToString() for n in model.graph.node)
    onnx.checker.check_model(made)  # nodes stand behind what they read


def test_members_are_identifiers_of_c() -> None:
    kind = c.Type(np.dtype(np.int32), (2,))
    keys = ["a.b", "a_b", "int", "1.weight", "/x/w", "loss"]
    names = [f.name for f in c._fields([(key, key) for key in keys], dict.fromkeys(keys, kind))]
    assert names == ["a_b", "a_b_", "t_int", "t_1_weight", "t__x_w", "loss"]
    assert c._literal(-(2**31), 4) == "(-2147483647 - 1)"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(c.shutil, "which", lambda name: None)
    monkeypatch.setattr(c.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WageubnError, match=r"target c: emx-onnx-cgen is not installed; pip install 'wageubn-onnx\[c\]'"):
        export(folder, "c", tmp_path / "out")
    with pytest.raises(WageubnError, match="no C compiler; install Debian's package gcc"):
        c.runners(tmp_path)
    with pytest.raises(WageubnError, match="arm-none-eabi-gcc is not installed; apt install gcc-arm-none-eabi"):
        c.cortex_m(tmp_path)


@needs_emx
@pytest.mark.slow
def test_a_cortex_m_trains_without_a_float(folder: Path, exported: Path, tmp_path: Path) -> None:
    try:
        board = c.cortex_m(exported)
    except WageubnError as error:
        pytest.skip(str(error))
    board.build(tmp_path / "program.elf")
    symbols = subprocess.run(["arm-none-eabi-nm", tmp_path / "program.elf"], capture_output=True, text=True, check=True).stdout
    assert "wageubn_step" in symbols
    assert not re.findall(r"__aeabi_[fd]\w*|__aeabi_\w+2[fd]\b", symbols)
    bundle = Bundle.of(folder)
    feeds = verifying._inputs(bundle, 3, seed=0)
    reference = verifying.ort.InProcess(folder / "int_training.onnx", bundle.manifest, optimize=False, threads=1)
    expected = map(verifying._digests, reference.steps(bundle.state, feeds))
    assert list(map(verifying._digests, board.steps(bundle.state, feeds))) == list(expected)


@needs_emx
@needs_gcc
@pytest.mark.slow
def test_the_digits_network(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "models" / "digits_resnet.onnx"
    convert(source, Config(batch=8), tmp_path / "digits")
    (row,) = verify(tmp_path / "digits", ["c"], steps=20)
    assert row.same, row
