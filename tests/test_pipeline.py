"""THE list, and what `convert` writes: the same bytes every time, all of it or nothing, and a manifest that holds true."""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib
import json
import pkgutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

import wageubn_onnx.artifacts.artifacts
import wageubn_onnx.passes
from networks import BATCH, CLASSES, MEAN, STD, images, labels, preactivation, run_ort, tiny, to_float
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.config import Config
from wageubn_onnx.errors import ProofFailed, WageubnError
from wageubn_onnx.graph import DOMAIN, node_tag
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.targets import table
from wageubn_onnx.pipeline import STAGES, convert
from wageubn_onnx.symbols import SYMBOLS

STATES = ("state.safetensors", "quant_state.safetensors", "fp_state.safetensors")
FILES = {f"{stage.name}.onnx" for stage in STAGES} | {"manifest.json", *STATES}
CONFIG = Config(batch=BATCH, mean=MEAN, std=STD)
Entry = dict[str, Any]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# -- the list -------------------------------------------------------------------------------------------------------------


def all_passes() -> list[Pass]:
    return list(dict.fromkeys(step for stage in STAGES for step in stage.passes))


def pass_modules() -> list[str]:
    found = pkgutil.walk_packages(wageubn_onnx.passes.__path__, "wageubn_onnx.passes.")
    return [m.name for m in found if not m.ispkg]


def test_names_are_unique_and_every_pass_says_what_it_does() -> None:
    passes = all_passes()
    assert len({p.name for p in passes}) == len(passes) > 15
    assert len({s.name for s in STAGES}) == len(STAGES) == 6
    for step in (*passes, *STAGES):
        assert step.summary and "\n" not in step.summary
        assert step.name == step.name.lower().strip()


@pytest.mark.parametrize("name", pass_modules())
def test_every_module_of_passes_says_what_it_is_for(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ and module.__doc__.strip()
    for value in vars(module).values():
        if isinstance(value, Pass) and value.module == name:
            assert value.run.__doc__


def test_every_pass_is_listed() -> None:
    """Every `Pass` that a module of passes/ makes is in THE list, or in that of targets."""
    listed = {id(p) for p in (*all_passes(), *(p for passes in table.PASSES.values() for p in passes))}
    made = 0
    for name in pass_modules():
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, Pass):
                assert id(value) in listed, (name, value.name)
                made += 1
    assert made == len(listed)


def test_the_bare_name_passes_is_imported_nowhere() -> None:
    root = Path(wageubn_onnx.passes.__file__).resolve().parents[1]
    for file in (*(root / "passes").rglob("*.py"), *(root / "wageubn_onnx").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(n.split(".")[0] == "passes" for n in names), file


def test_every_declared_role_is_placed(tiny_artifacts: Artifacts) -> None:
    """The roles that passes declare stand in the tiny network, and each of them has a symbol."""
    declared = {role for step in all_passes() for role in step.roles}
    assert declared <= set(SYMBOLS)
    placed = {entry["role"] for entry in tiny_artifacts.manifest["quantizers"]}
    # it has no stream without a ReLU, no accumulator too long for int32, and no grid a channel
    assert declared - placed <= {"S", "E.acc", "BN.var", "BN.epsilon"}


# -- what is written ------------------------------------------------------------------------------------------------------


def test_the_same_bytes_every_time(tiny_file: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(tiny_file, CONFIG, tmp_path / name)
    first = contents(tmp_path / "a")
    assert set(first) == FILES
    assert first == contents(tmp_path / "b")


def test_calibration_changes_formats_and_is_as_deterministic(tiny_file: Path, tmp_path: Path) -> None:
    config = Config(batch=BATCH, mean=MEAN, std=STD, calibrate=images(8))
    one, two = (convert(tiny_file, config) for _ in range(2))
    assert one.files == two.files and one.manifest == two.manifest
    assert one.files["int_eval"] != convert(tiny_file, CONFIG).files["int_eval"]


def test_nothing_is_written_where_conversion_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(WageubnError):
        convert(tmp_path / "bad.onnx", CONFIG, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]


def test_nothing_is_written_where_the_proof_fails(tmp_path: Path) -> None:
    """2^26 images: a sum over them leaves what int64 arithmetic is exact for, and the message names the node."""
    onnx.save(tiny(), tmp_path / "tiny.onnx")
    with pytest.raises(ProofFailed, match=r"node '.+/.+': .*batch") as caught:
        convert(tmp_path / "tiny.onnx", Config(batch=2**26), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.onnx"]


def test_a_folder_with_other_files_is_refused(tiny_artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(WageubnError, match="holds other files"):
        tiny_artifacts.save(tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"do not lose me"}


def test_a_file_in_the_way_is_refused(tiny_artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(WageubnError, match="is a file"):
        tiny_artifacts.save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"


def test_an_empty_folder_and_a_deep_one_are_fine(tiny_artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    tiny_artifacts.save(tmp_path / "empty")
    tiny_artifacts.save(tmp_path / "a/b/c")
    assert contents(tmp_path / "empty") == contents(tmp_path / "a/b/c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty"]  # nothing temporary is left
    assert stat.S_IMODE((tmp_path / "a/b/c").stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) & 0o444 for file in (tmp_path / "a/b/c").iterdir()} == {0o444}


def test_its_own_folder_is_overwritten_and_what_lies_beside_stays(tiny_artifacts: Artifacts, tmp_path: Path) -> None:
    tiny_artifacts.save(tmp_path / "out")
    fresh = contents(tmp_path / "out")
    (tmp_path / "out/int_training.onnx").write_bytes(b"old")
    (tmp_path / "out/run").mkdir()
    (tmp_path / "out/run/checkpoint").write_text("mine")
    tiny_artifacts.save(tmp_path / "out")
    assert (tmp_path / "out/run/checkpoint").read_text() == "mine"
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()} == fresh


def test_a_folder_is_complete_or_absent(tiny_artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the last state is written: no folder, and nothing temporary."""

    def full(tensors: Any, path: Path) -> None:
        if path.name == "fp_state.safetensors":
            raise OSError(28, "No space left on device", str(path))
        save_file(tensors, path)

    monkeypatch.setattr(wageubn_onnx.artifacts.artifacts, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        tiny_artifacts.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_old_folder_survives_a_failed_write(
    tiny_artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_artifacts.save(tmp_path / "out")
    before = contents(tmp_path / "out")

    def full(tensors: Any, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(wageubn_onnx.artifacts.artifacts, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        tiny_artifacts.save(tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_left_as_it_was(enabled: bool, tiny_file: Path, tmp_path: Path) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        convert(tiny_file, CONFIG)
        assert gc.isenabled() is enabled
        with pytest.raises(WageubnError):
            convert(tmp_path / "absent.onnx", CONFIG)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_the_summary_counts_what_is_there(tiny_artifacts: Artifacts) -> None:
    rows = {stage: (nodes, quantizers, size) for stage, nodes, quantizers, size in tiny_artifacts.summary()}
    assert list(rows) == [stage.name for stage in STAGES]
    for stage, (nodes, _, size) in rows.items():
        assert nodes == len(tiny_artifacts.files[stage].graph.node)
        assert size <= len(tiny_artifacts.files[stage].SerializeToString()) < 1.1 * size  # `forward`: without the names
    assert rows["forward"][1] == rows["fp_training"][1] == 0
    assert rows["quant_training"][1] == rows["int_training"][1] > 100


def test_the_state_files_hold_the_initial_state(tiny_artifacts: Artifacts, tiny_folder: Path) -> None:
    for name in ("state", "quant_state", "fp_state"):
        expected = getattr(tiny_artifacts, name)
        found = load_file(tiny_folder / f"{name}.safetensors")
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert found[key].dtype == value.dtype
            np.testing.assert_array_equal(found[key], value)


def test_the_initial_float_state_is_the_source_s(tiny_artifacts: Artifacts) -> None:
    source = {t.name: numpy_helper.to_array(t) for t in tiny().graph.initializer}
    for key, value in tiny_artifacts.fp_state.items():
        if key.endswith(".momentum"):
            assert not value.any()
        elif key == "a1_bn.running_mean":  # the convolution's bias has moved here
            np.testing.assert_array_equal(value, source[key] - source["a1.bias"])
        else:
            np.testing.assert_array_equal(value, source[key])


# -- the manifest -----------------------------------------------------------------------------------------------------------

NUMPY = {t: onnx.helper.tensor_dtype_to_np_dtype(t).name for t in (2, 3, 5, 6, 7)}


def tensors_of(model: onnx.ModelProto) -> dict[str, tuple[str, list[int]]]:
    """dtype and shape of every integer tensor."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {v.name: v.type.tensor_type for v in values}
    return {name: (NUMPY[t.elem_type], [d.dim_value for d in t.shape.dim]) for name, t in types.items() if t.elem_type in NUMPY}


def test_the_manifest_is_json_and_what_lies_in_the_folder(tiny_artifacts: Artifacts, tiny_folder: Path, tiny_file: Path) -> None:
    written = json.loads((tiny_folder / "manifest.json").read_text())
    assert written.pop("sha256") == hashlib.sha256(json.dumps(written).encode()).hexdigest()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents(tiny_folder).items()}
    assert written.pop("files") == {name: digest for name, digest in hashes.items() if name != "manifest.json"}
    assert written == tiny_artifacts.manifest
    manifest = tiny_artifacts.manifest
    assert manifest["format"] == 2
    assert manifest["source"] == {"file": "tiny.onnx", "sha256": hashlib.sha256(tiny_file.read_bytes()).hexdigest()}
    assert manifest["input"] == {"scale": 1 / 255, "mean": list(MEAN), "std": list(STD)}
    assert str(tiny_folder.parent) not in json.dumps(manifest)


@pytest.mark.parametrize("section", ["step", "eval", "fp_step", "fp_eval"])
def test_every_named_tensor_is_an_input_or_output(section: str, tiny_artifacts: Artifacts) -> None:
    entry = dict(tiny_artifacts.manifest[section])
    graph = tiny_artifacts.files[entry.pop("model").removesuffix(".onnx")].graph
    inputs, outputs = {i.name for i in graph.input}, {o.name for o in graph.output}
    entry.pop("health", None)
    for key, name in entry.items():
        assert name in (outputs if key in ("loss", "correct", "logits") else inputs), key


def test_scalars_are_scalars_and_images_bytes(tiny_artifacts: Artifacts) -> None:
    found = tensors_of(tiny_artifacts.files["int_training"])
    step = tiny_artifacts.manifest["step"]
    for key in ("lr", "gradient_range", "seed", "loss", "correct"):
        assert found[step[key]] == ("int32", [])
    assert found[step["labels"]] == ("int32", [BATCH])
    assert found[step["images"]] == ("uint8", [BATCH, 3, 12, 12])
    evaluation = tensors_of(tiny_artifacts.files["int_eval"])
    assert evaluation["images"] == ("uint8", [0, 3, 12, 12])  # any batch
    assert evaluation["logits"][1] == [0, CLASSES]


@pytest.mark.parametrize(("section", "model"), [("state", "int_training"), ("fp_state", "fp_training")])
def test_every_state_goes_in_and_comes_out(section: str, model: str, tiny_artifacts: Artifacts) -> None:
    graph = tiny_artifacts.files[model].graph
    inputs = {i.name: i.type.tensor_type for i in graph.input}
    outputs = {o.name: o.type.tensor_type for o in graph.output}
    initial = getattr(tiny_artifacts, section)
    entries = tiny_artifacts.manifest[section]
    assert {e["key"] for e in entries} == set(initial)
    for entry in entries:
        before, after = inputs[entry["in"]], outputs[entry["out"]]
        assert before.elem_type == after.elem_type == onnx.helper.np_dtype_to_tensor_dtype(initial[entry["key"]].dtype)
        shape = list(initial[entry["key"]].shape)
        assert [d.dim_value for d in before.shape.dim] == [d.dim_value for d in after.shape.dim] == shape
    assert {e["in"] for e in entries} | {tiny_artifacts.manifest["step"][k] for k in ("images", "labels", "lr")} <= set(inputs)


def test_inference_takes_a_part_of_the_state(tiny_artifacts: Artifacts) -> None:
    taken = {i.name for i in tiny_artifacts.files["int_eval"].graph.input} - {"images"}
    assert taken < {e["in"] for e in tiny_artifacts.manifest["state"]}
    assert not any(name.endswith(".momentum") or name == "step" for name in taken)


def test_every_tensor_has_the_format_that_is_stated(tiny_artifacts: Artifacts) -> None:
    found = tensors_of(tiny_artifacts.files["int_training"])
    entries: dict[str, Entry] = tiny_artifacts.manifest["tensors"]
    activations = set(entries) - set(tiny_artifacts.state)
    assert set(tiny_artifacts.state) <= set(entries)
    assert len(activations) >= 10
    for name, entry in entries.items():
        dtype, shape = found[name]
        assert dtype == entry["dtype"]
        assert entry.get("shape", shape) == shape
        info = np.iinfo(dtype)
        assert info.min <= entry["min"] <= entry["max"] <= info.max
        assert isinstance(entry["exponent"], int)
    for key, value in tiny_artifacts.state.items():
        assert entries[key]["min"] <= value.min() and value.max() <= entries[key]["max"]


def test_stored_parameters_are_the_source_s_in_their_format(tiny_artifacts: Artifacts) -> None:
    """value * 2^exponent is what the source holds, times 2^scale_log2 per output channel, to half a unit."""
    scaled = 0
    for key, value in tiny_artifacts.state.items():
        entry = tiny_artifacts.manifest["tensors"][key]
        if key == "step" or key.endswith(".momentum"):
            assert not value.any()
            continue
        real = np.ldexp(value.astype(np.float64), entry["exponent"])
        expected = tiny_artifacts.fp_state[key].astype(np.float64)
        if "scale_log2" in entry:
            shift = np.array(entry["scale_log2"]).reshape(-1, *[1] * (expected.ndim - 1))
            expected, scaled = np.ldexp(expected, shift), scaled + 1
        assert abs(real - expected).max() <= 2.0 ** (entry["exponent"] - 1), key
    assert scaled == 18  # weight, mean and variance of six convolutions


def test_activations_stay_in_their_stated_range(tiny_artifacts: Artifacts) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny_artifacts.files["int_training"])
    names = sorted(set(tiny_artifacts.manifest["tensors"]) - set(tiny_artifacts.state))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    scalars = {"lr": 26, "gradient_range": 128, "seed": 0}
    feeds = {"images": images(), "labels": np.zeros(BATCH, np.int32), **{k: np.array(v, np.int32) for k, v in scalars.items()}}
    found = run_ort(model, {**feeds, **tiny_artifacts.state}, optimize=False)
    for name in names:
        entry = tiny_artifacts.manifest["tensors"][name]
        assert entry["min"] <= found[name].min() and found[name].max() <= entry["max"]
        assert len(np.unique(found[name])) > 3


def quantize_nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {n.name: n for n in model.graph.node if n.domain == DOMAIN and any(a.name == "role" for a in n.attribute)}


# The integer functions of a static grid and of one found at run time differ in what they take, not in what they compute
LOWERED = dict.fromkeys(["DirectQuantize", "GridQuantize"], ("DirectQuantize", "GridQuantize"))


def test_every_quantizer_is_listed_once_and_stands_in_the_step(tiny_artifacts: Artifacts) -> None:
    model = tiny_artifacts.files["int_training"]
    nodes, found = quantize_nodes(model), tensors_of(model)
    entries = tiny_artifacts.manifest["quantizers"]
    assert len(entries) == len(nodes) == len({e["node"] for e in entries})
    floats = quantize_nodes(tiny_artifacts.files["quant_training"])
    for entry in entries:
        node = nodes[entry["node"]]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert node.op_type == entry["function"]
        assert attributes["role"].decode() == entry["role"] == node_tag(node).role
        assert node_tag(node).layer == entry["layer"]
        assert attributes["rounding"].decode() == entry["rounding"]
        assert SYMBOLS[entry["role"]][0] in node.name
        dtype, _ = found[node.output[0]]
        info = np.iinfo(dtype)
        assert info.min <= entry["min"] < entry["max"] <= info.max
        exponents = entry.get("exponent", [])
        for name in [exponents] if isinstance(exponents, str) else exponents:
            assert found[name] == ("int32", [])
        assert ("fraction" in entry) != ("exponent" in entry)
        assert entry["function"].startswith(LOWERED.get(floats[entry["node"]].op_type, (floats[entry["node"]].op_type,)))


def test_both_graphs_have_the_same_quantizers(tiny_artifacts: Artifacts) -> None:
    floats, integers = (quantize_nodes(tiny_artifacts.files[s]) for s in ("quant_training", "int_training"))
    assert {(n, node_tag(v).role, node_tag(v).layer) for n, v in floats.items()} == {
        (n, node_tag(v).role, node_tag(v).layer) for n, v in integers.items()
    }


def test_exponents_give_scalars_their_value(tiny_artifacts: Artifacts) -> None:
    exponents = tiny_artifacts.manifest["exponents"]
    assert exponents["lr"] == -9
    assert {"lr", "loss", "logits"} <= set(exponents)
    assert all(isinstance(v, int) for v in exponents.values())


def test_gradients_are_exposed_on_request_only(tiny_file: Path, tiny_artifacts: Artifacts) -> None:
    plain = convert(tiny_file, CONFIG)
    trained = {k.removesuffix(".momentum") for k in tiny_artifacts.state if k.endswith(".momentum")}
    for stage in ("fp_training", "int_training"):
        with_gradients = {o.name for o in tiny_artifacts.files[stage].graph.output}
        without = {o.name for o in plain.files[stage].graph.output}
        extra = {f"{k}.gradient" for k in trained}
        if stage == "int_training":
            extra |= {f"{k}.gradient.exponent" for k in trained}
        assert with_gradients - without == extra
        assert without < with_gradients


def test_exposed_integer_gradients_point_where_the_float_ones_do(tiny_artifacts: Artifacts) -> None:
    """The cosine between both, per parameter, through seven layers of 8-bit errors; between random directions it is near 0."""
    x, y = images(), labels()
    fp = run_ort(
        tiny_artifacts.files["fp_training"],
        {"images": to_float(x), "labels": y, "lr": np.array(0.1, np.float32), **tiny_artifacts.fp_state},
    )
    scalars = {k: np.array(v, np.int32) for k, v in {"lr": 26, "gradient_range": 128, "seed": 0}.items()}
    integer = run_ort(tiny_artifacts.files["int_training"], {"images": x, "labels": y, **scalars, **tiny_artifacts.state})
    cosines = {}
    for key in [k.removesuffix(".gradient") for k in fp if k.endswith(".gradient")]:
        a, b = fp[f"{key}.gradient"].ravel().astype(np.float64), integer[f"{key}.gradient"].ravel().astype(np.float64)
        entry = tiny_artifacts.manifest["tensors"][key]
        if "scale_log2" in entry:  # w' = w * 2^k, so dL/dw = 2^k dL/dw'
            shape = (-1, *[1] * (fp[f"{key}.gradient"].ndim - 1))
            factor = np.ldexp(1.0, np.array(entry["scale_log2"])).reshape(shape)
            b = (integer[f"{key}.gradient"] * factor).ravel()
        cosines[key] = float(a @ b / np.sqrt((a @ a) * (b @ b)))
    assert min(cosines.values()) > 0.8, cosines
    assert np.median(list(cosines.values())) > 0.93, cosines
    loss = float(integer["loss"]) * 2.0 ** tiny_artifacts.manifest["exponents"]["loss"]
    assert loss == pytest.approx(float(fp["loss"]), rel=0.05)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 0.9997, 1.0])
def test_any_decay_of_running_statistics_is_proven(momentum: float, tmp_path: Path) -> None:
    """Keras has 0.99, Chainer writes 0; a finer decay is rounded, so that a variance's advance stays exact in int64."""
    model = preactivation()
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(onnx.helper.make_attribute("momentum", momentum))
    onnx.save(model, tmp_path / "net.onnx")
    assert convert(tmp_path / "net.onnx", CONFIG).files["int_training"].graph.node


def test_parameters_beyond_what_protobuf_holds_lie_beside_the_file(
    tiny_artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wageubn_onnx.artifacts.artifacts, "LARGEST", 0)
    tiny_artifacts.save(tmp_path / "out")
    beside = (tmp_path / "out" / "forward.onnx.data").stat().st_size
    assert beside >= sum(v.nbytes for v in tiny_artifacts.parameters.values() if v.nbytes >= 1024)  # onnx leaves small ones in
    onnx.checker.check_model(tmp_path / "out" / "forward.onnx", full_check=True)
    x = to_float(images())
    expected = run_ort(tiny_artifacts.files["forward"], {"images": x})["logits"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "forward.onnx")
    np.testing.assert_array_equal(session.run(["logits"], {"images": x})[0], expected)
