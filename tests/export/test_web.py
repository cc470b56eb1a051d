"""The web target computes the step's bits under Node.js, and its page trains in a browser to the bits of `TrainingSession`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from browser import browser, missing, served
from networks import BATCH, images, labels
from wageubn_onnx.artifacts.files import load_tensors
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export import web
from wageubn_onnx.export.base import Array
from wageubn_onnx.export.export import export
from wageubn_onnx.export.verify import verify
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.runtime.session import TrainingSession
from wageubn_onnx.training.data import Dataset, save_data

COUNT, TESTS = 5 * BATCH + 1, 70  # images: an epoch drops one; the page tests 64 at a time


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    every, of = images(COUNT + TESTS), labels(COUNT + TESTS)
    save_data(Dataset(every[:COUNT], of[:COUNT], every[COUNT:], of[COUNT:]), path)
    return path


@pytest.fixture
def modules() -> Path:
    reason = web.cannot_run()
    if reason:
        pytest.skip(f"target web {reason}")
    found = web.node_modules()
    assert found is not None
    return found


@pytest.mark.parametrize(("optimize", "threads"), [(False, 1), (True, 2)])
def test_webassembly_computes_the_same_bits(
    optimize: bool, threads: int, modules: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = web.TARGET.__class__(**vars(web.TARGET) | {"runners": lambda folder: [web.NodeJs(folder, modules, optimize, threads)]})
    monkeypatch.setattr("wageubn_onnx.export.verify.TARGETS", (one,))
    (row,) = verify(tiny_folder, ["web"], steps=2)
    outputs = onnx.load(tiny_folder / "int_training.onnx").graph.output
    assert row.same and row.tensors == 2 * len(outputs)
    assert row.runner.startswith("onnxruntime-web 1.") and row.runner.endswith("2 threads" if threads == 2 else "1 thread")


def broken(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the first comparison by Greater turned around."""
    result = tidy(model)
    next(n for n in result.graph.node if n.op_type == "Greater").op_type = "Less"
    return result


@pytest.mark.slow
def test_a_difference_is_found_where_it_begins(modules: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "tidy", broken)
    (row, *_) = verify(tiny_folder, ["web"], steps=1)
    assert row.difference is not None and row.difference.node is not None and "(Greater)" in row.difference.node


@pytest.mark.slow
def test_the_digits_network_in_webassembly(modules: Path, tmp_path: Path) -> None:
    from wageubn_onnx import Config, convert

    convert(Path(__file__).parents[2] / "models" / "digits_resnet.onnx", Config(batch=8), tmp_path / "digits")
    rows = list(verify(tmp_path / "digits", ["web"], steps=20))
    assert len(rows) == 4 and all(row.same and row.steps == 20 for row in rows)


def test_the_page_trains_in_the_browser(modules: Path, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """Two epochs of clicks; what it saves is the state of `TrainingSession` after the same batches, and it loads it again."""
    if missing():
        pytest.skip(f"{missing()[0]} is absent: apt install chromium chromium-driver")
    out = export(tiny_folder, "web", tmp_path / "out", data=data)
    (out / "node_modules").symlink_to(modules)
    saved = tmp_path / "trained.safetensors"
    ready = "return document.body.dataset.state === 'ready'"
    with served(out) as address, browser(downloads=tmp_path) as page:
        page.open(address)
        page.wait(ready)
        assert page.run("return document.getElementById('error').textContent") == ""
        before = page.run("return document.getElementById('accuracy').textContent")
        page.run("rate.value = 0.25; epochs.value = 2; train.click()")
        page.wait(ready)
        points = page.run("return document.getElementById('raw').points.length")
        after = page.run("return document.getElementById('accuracy').textContent")
        page.run("save.click()")
        page.wait("return true")
        for _ in range(100):
            if saved.exists():
                break
            page.wait("return new Promise((done) => setTimeout(() => done(true), 100))")
        page.open(address)
        page.wait(ready)
        page.write("#load", str(saved))
        page.wait("return accuracy.textContent.includes('loaded')")
        loaded = page.run("return document.getElementById('accuracy').textContent")
        page.write("#load", str(tiny_folder / "fp_state.safetensors"))
        page.wait("return error.textContent")
        refused = page.run("return error.textContent")

    session = TrainingSession(tiny_folder, threads=1)
    held, of = images(COUNT + TESTS), labels(COUNT + TESTS)
    assert before == right("before training", session, held, of)
    for epoch in range(2):
        order = shuffled(COUNT, epoch)
        for start in range(0, COUNT - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            session.step(held[chosen], of[chosen], lr=0.25)
    assert points == 2 * (COUNT // BATCH)
    assert after == right(f"after {points} steps", session, held, of)
    assert loaded == right("with the state loaded", session, held, of)
    assert "is F32; a state and its data are integers" in refused
    found, expected = load_tensors(saved)[0], session.state()
    assert {key: value.tobytes() for key, value in found.items()} == {key: value.tobytes() for key, value in expected.items()}
    session.load(saved)


def right(when: str, session: TrainingSession, held: Array, of: Array) -> str:
    correct = session.evaluate(held[COUNT:], of[COUNT:]).correct
    assert correct is not None
    return f"Test images right {when}: {correct} of {TESTS} ({100 * correct / TESTS:.1f} %)"


def shuffled(n: int, epoch: int) -> list[int]:
    """The page's order of an epoch."""
    order, x = list(range(n)), (epoch + 1) * 0x9E3779B9 % 2**32
    for i in range(n - 1, 0, -1):
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        j = x % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def test_the_folder_is_complete(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    out = export(tiny_folder, "web", tmp_path / "out", data=data)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["target"] == {"name": "web", "options": {"data": "data.npz"}}
    tensors = load_tensors(out / manifest["data_file"])[0]
    assert np.array_equal(tensors["x_train"], images(COUNT + TESTS)[:COUNT]) and tensors["y_test"].dtype == np.int32
    assert "npm install" in (out / "README.md").read_text()
    assert TrainingSession(out, threads=1).batch == BATCH  # the folder is one that `eval` and `train` take, too


def test_data_of_another_network_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    for x, y, words in (
        (np.zeros((BATCH, 1, 12, 12), np.uint8), labels(BATCH), r"images are \[1, 12, 12\]; this network takes \[3, 12, 12\]"),
        (images(BATCH), labels(BATCH) + 90, r"label 9\d; this network knows the classes 0..4"),
        (images(1), labels(1), "1 images to train on; the step takes 4 at a time"),
    ):
        save_data(Dataset(x, y, x, y), tmp_path / "data.npz")
        with pytest.raises(WageubnError, match=words):
            export(tiny_folder, "web", tmp_path / "out", data=tmp_path / "data.npz")
        assert not (tmp_path / "out").exists()


def test_what_is_absent_is_said_in_one_line(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_PATH", str(tmp_path))
    monkeypatch.setattr(web, "MODULES", tmp_path / "node_modules")
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(WageubnError, match="target web: needs onnxruntime-web; npm install --prefix"):
        list(verify(tiny_folder, ["web"], steps=1))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(WageubnError, match="target web: needs Node.js"):
        list(verify(tiny_folder, ["web"], steps=1))
    export(tiny_folder, "web", tmp_path / "out")  # which needs neither
