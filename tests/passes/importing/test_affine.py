"""Mul, Div, Add and Sub with constants: into the layer before, into a BN with its statistics, or into one without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sources import WIDTH, assert_same_function, head, imported, operators, parameters, save, stem

from networks import CLASSES, MEAN, STD, Net, images, labels, relative, run_ort, with_own_statistics
from wageubn_onnx.config import PRESETS, Config
from wageubn_onnx.passes.importing.formats import note_ranges
from wageubn_onnx.passes.importing.forward import import_forward
from wageubn_onnx.pipeline import FORWARD, convert
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.proofs.audit import audit_model
from wageubn_onnx.runtime.engine import Session
from wageubn_onnx.runtime.session import TrainingSession

STATISTICS = ("running_mean", "running_var")
HEAD = ["GlobalAveragePool", "Flatten", "Gemm"]
C = (1, WIDTH, 1, 1)


def convolved(n: Net) -> str:
    """A second convolution, which no BN reads."""
    return n.conv(stem(n), "second", WIDTH, WIDTH)


def scaled(n: Net, x: str) -> str:
    return n.node("Mul", x, n.uniform("a", -2, 2, *C), name="scale")


def shifted(n: Net, x: str) -> str:
    return n.node("Add", n.uniform("b", -1, 1, *C[1:]), x, name="shift")


def normalised(n: Net, x: str) -> str:
    """(x - mean) / std * gamma + beta."""
    x = n.node("Sub", x, n.uniform("mean", -1, 1, *C), name="centre")
    x = n.node("Div", x, n.uniform("std", 0.5, 2, *C), name="unit")
    return n.node("Add", n.node("Mul", x, n.uniform("gamma", -1, 1, *C)), n.uniform("beta", -1, 1, *C))


def mirrored(n: Net, x: str) -> str:
    """(mean - x) / std * gamma."""
    x = n.node("Sub", n.uniform("mean", -1, 1, *C), x)
    return n.node("Mul", n.node("Div", x, n.uniform("std", 0.5, 2, *C)), n.uniform("gamma", 0.5, 1, *C))


STEM = ["Conv", "BatchNormalization", "Relu"]
# name: (builder of the logits, operators of `forward`)
DIALECTS: dict[str, tuple[Callable[[Net], str], list[str]]] = {
    "a bias as Add": (lambda n: head(n, shifted(n, convolved(n))), [*STEM, "Conv", *HEAD]),
    "a factor of a convolution": (lambda n: head(n, scaled(n, convolved(n))), [*STEM, "Conv", *HEAD]),
    "a folded BN as Mul and Add": (
        lambda n: head(n, n.relu(shifted(n, scaled(n, convolved(n))))), [*STEM, "Conv", "Relu", *HEAD],
    ),
    "a bias and then a factor": (
        lambda n: head(n, scaled(n, n.conv(stem(n), "second", WIDTH, WIDTH, bias=True))), [*STEM, "Conv", *HEAD],
    ),
    "a scale layer after BN": (
        lambda n: head(n, n.relu(shifted(n, scaled(n, n.bn(convolved(n), "bn2", WIDTH))))), [*STEM, *STEM, *HEAD],
    ),
    "one number": (
        lambda n: head(n, n.node("Div", n.bn(convolved(n), "bn2", WIDTH), n.tensor("two", 2.0))), [*STEM, *STEM[:2], *HEAD],
    ),
    "a constant minus a map": (
        lambda n: head(n, n.node("Sub", n.uniform("c", -1, 1, *C), n.bn(convolved(n), "bn2", WIDTH))), [*STEM, *STEM[:2], *HEAD],
    ),
    "BN taken apart": (lambda n: head(n, n.relu(normalised(n, stem(n)))), [*STEM, "BatchNormalization", "Relu", *HEAD]),
    "a BN of the negative, taken apart": (
        lambda n: head(n, n.relu(mirrored(n, stem(n)))), [*STEM, "BatchNormalization", "Relu", *HEAD],
    ),
    "a scale and a shift of an activation": (
        lambda n: head(n, shifted(n, scaled(n, stem(n)))), [*STEM, "BatchNormalization", *HEAD],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_computes_what_it_did(name: str, tmp_path: Path) -> None:
    build, expected = DIALECTS[name]
    n = Net(seed=len(name))
    forward = assert_same_function(n.model(build(n)), tmp_path, images(4, seed=1, normalised=True))
    assert sorted(operators(forward)) == sorted(expected)


def test_statistics_that_stand_in_the_file_are_found(tmp_path: Path) -> None:
    n = Net()
    forward = assert_same_function(n.model(head(n, n.relu(normalised(n, stem(n))))), tmp_path, images(2, normalised=True))
    found, source = parameters(forward), {t.name: np.frombuffer(t.raw_data, np.float32) for t in n.tensors}
    np.testing.assert_array_equal(found["centre.running_mean"], source["mean"])
    np.testing.assert_allclose(found["centre.running_var"] + 1e-5, source["std"] ** 2, rtol=1e-6)
    np.testing.assert_array_equal(found["centre.weight"], source["gamma"])
    np.testing.assert_array_equal(found["centre.bias"], source["beta"])


def test_statistics_that_are_gone_are_marked(tmp_path: Path) -> None:
    """Batch statistics would not keep this function; calibration finds them again."""
    n = Net()
    model = import_forward(save(n.model(head(n, shifted(n, scaled(n, stem(n))))), tmp_path), Config())
    (state,) = (s for s in model.states.values() if s.kind == "running_mean" and s.layer == "scale")
    assert state.info["calibrate"]
    assert not state.frozen


# -- constant maps --------------------------------------------------------------------------------------------------------


def block(n: Net, identity: bool) -> str:
    """A residual sum, of a BN and the stem or another BN."""
    x = stem(n)
    y = n.bn(n.conv(x, "branch", WIDTH, WIDTH), "branch_bn", WIDTH)
    return n.node("Add", y, x if identity else n.bn(n.conv(x, "short", WIDTH, WIDTH, k=1), "short_bn", WIDTH))


def times(n: Net, x: str, *factors: float) -> str:
    value = np.reshape(factors, (-1, 1, 1)) if len(factors) > 1 else factors[0]
    return n.node("Mul", x, n.tensor("k", value), name="times")


def pooled(n: Net, kind: str, x: str) -> str:
    return n.node(kind, x, kernel_shape=[2, 2], strides=[2, 2])


# name: (what is before the head, whether a layer takes it over)
CONSTANT_MAPS: dict[str, tuple[Callable[[Net], str], bool]] = {
    "half an activation": (lambda n: times(n, stem(n), 0.5), True),
    "an activation by channel": (lambda n: times(n, stem(n), 0.5, 2, 1, 3), True),
    "an activation, over two": (lambda n: n.node("Div", stem(n), n.tensor("two", 2.0)), True),
    "a sum of projections": (lambda n: times(n, block(n, False), 0.7071), True),
    "an activated sum of projections": (lambda n: times(n, n.relu(block(n, False)), 0.7071), True),
    "behind pools": (lambda n: times(n, pooled(n, "AveragePool", pooled(n, "MaxPool", stem(n))), 0.7), True),
    "a sum of identities": (lambda n: n.relu(times(n, block(n, True), 0.7071)), False),
    "minus an activation": (lambda n: times(n, stem(n), -0.5), False),
    "an activation of both signs by channel": (lambda n: times(n, stem(n), 0.5, -2, 1, 3), False),
    "minus an average": (lambda n: times(n, pooled(n, "AveragePool", n.bn(convolved(n), "bn2", WIDTH)), -0.5), True),
    "minus a maximum": (lambda n: times(n, pooled(n, "MaxPool", n.bn(convolved(n), "bn2", WIDTH)), -0.5), False),
    "an offset": (lambda n: n.node("Add", stem(n), n.tensor("more", 0.25)), False),
    "an offset by channel": (lambda n: shifted(n, stem(n)), False),
    "one minus an activation": (lambda n: n.node("Sub", n.tensor("one", 1.0), stem(n)), False),
    "a factor and an offset by channel": (lambda n: shifted(n, scaled(n, stem(n))), False),
    "a sum that another reads": (lambda n: n.node("Add", x := block(n, False), times(n, x, 0.5)), False),
    "nothing": (lambda n: times(n, block(n, False), 1.0), True),
}


@pytest.mark.parametrize("name", CONSTANT_MAPS)
def test_a_constant_map_is_no_folded_batch_norm(name: str, tmp_path: Path) -> None:
    """In a network that keeps every BN: taken over by the layers before where that is exact, else a BN that stays as it is."""
    build, taken = CONSTANT_MAPS[name]
    n = Net(seed=len(name))
    source = n.model(head(n, build(n)))
    forward = assert_same_function(source, tmp_path, images(4, seed=1, normalised=True))
    kept = sum(node.op_type == "BatchNormalization" for node in source.graph.node)
    assert operators(forward).count("BatchNormalization") == kept + (not taken)
    for config in (Config(), Config(calibrate=images(8))):
        made = FORWARD(tmp_path / "source.onnx", config)
        assert made.notes["folded"] is None and made.notes["said"] == []
        frozen = {state.kind for state in made.states.values() if state.frozen}
        assert frozen == (set() if taken else {"gamma", "beta", "running_mean", "running_var"})


class Canonical(TrainingSession):
    """The step as the file has it, without the forms that a machine's kernels do best."""

    _open_step = Session._open_step


@pytest.mark.parametrize("profile", ["full8", "fast"])
def test_constant_maps_train_as_integers(profile: str, tmp_path: Path) -> None:
    """A factor and an offset that stay: near FP32 at once, the same bits however the step is rewritten, a falling loss."""
    n = Net()
    x = n.relu(times(n, block(n, True), 0.7071))
    x = n.relu(n.bn(n.conv(n.node("Sub", n.tensor("one", 1.0), x, name="offset"), "last", WIDTH, WIDTH), "last_bn", WIDTH))
    source = with_own_statistics(n.model(head(n, x)))
    path, config = save(source, tmp_path), Config(batch=4, mean=MEAN, std=STD, profile=load_profile(profile))
    made = convert(path, config, tmp_path / "net")
    assert audit_model(made.files["int_training"]).findings == []
    session, canonical = (kind(tmp_path / "net", threads=1) for kind in (TrainingSession, Canonical))
    pixels, truth = images(), labels()
    (expected,) = run_ort(source, {"x": images(64, seed=1000, normalised=True)}).values()
    found = np.ldexp(session.evaluate(images(64, seed=1000)).logits.astype(np.float64), made.manifest["exponents"]["logits"])
    assert relative(found, expected) < 0.08  # 0.06 without the two maps
    losses = [session.step(pixels, truth, lr=0.1).loss for _ in range(12)]
    assert losses[:3] == [canonical.step(pixels, truth, lr=0.1).loss for _ in range(3)]
    assert losses[-1] < 0.8 * losses[0], losses


def test_a_long_chain_of_factors_ends_soon(tmp_path: Path) -> None:
    """Each goes through all the activations before it."""
    n = Net()
    x = stem(n)
    for i in range(300):
        x = n.relu(n.node("Mul", x, n.tensor(f"k{i}", 1.01 if i % 2 else 1 / 1.01)))
    forward = imported(save(n.model(head(n, x)), tmp_path))
    assert operators(forward).count("BatchNormalization") == 1


def test_normalisation_of_the_image_stays_what_it_is(tmp_path: Path) -> None:
    n = Net()
    x = n.node("Sub", "x", n.tensor("mean", [[[0.4]], [[0.5]], [[0.6]]]), name="normalise")
    x = n.node("Div", x, n.tensor("std", 0.25))
    x = n.relu(n.bn(n.conv(x, "conv", 3, WIDTH, strides=[2, 2]), "bn", WIDTH))
    source = n.model(head(n, x))
    forward = assert_same_function(source, tmp_path, images(4, normalised=True))
    assert operators(forward)[0] == "BatchNormalization"
    states = import_forward(save(source, tmp_path), Config()).states.values()
    assert {s.kind for s in states if s.frozen} == {"gamma", "beta", "running_mean", "running_var"}
    assert {s.layer for s in states if s.frozen} == {"normalise"}


@pytest.mark.parametrize(("preset", "is_said"), [("unit", True), ("raw", False)])
def test_pixels_that_are_scaled_twice_are_noticed(preset: str, is_said: bool, tmp_path: Path) -> None:
    """A network that takes 0 to 255 sees a constant image where its pixels are over 255 already."""
    n = Net()
    x = n.node("Sub", n.node("Div", "x", n.tensor("top", 255.0)), n.tensor("mean", 0.45))
    x = n.relu(n.bn(n.conv(n.node("Div", x, n.tensor("std", 0.25)), "conv", 3, WIDTH), "bn", WIDTH))
    notes = convert(save(n.model(head(n, x)), tmp_path), Config(batch=2, **PRESETS[preset])).notes
    assert any("makes a range of 0.016" in note and "--preset raw" in note for note in notes) == is_said


def test_a_bias_that_two_layers_share_stays_each_one_s_own(tmp_path: Path) -> None:
    """Sharing would make one of them train the other."""
    n = Net()
    x = n.node("Add", n.conv(stem(n), "second", WIDTH, WIDTH), n.uniform("b", -1, 1, *C), name="first_shift")
    x = n.node("Add", n.conv(n.relu(x), "third", WIDTH, WIDTH), "b", name="second_shift")
    forward = assert_same_function(n.model(head(n, x)), tmp_path, images(2, normalised=True))
    assert sum(name.endswith("bias") for name in parameters(forward)) == 1 + 1 + 2  # bn, fc, and the two


def test_gemm_alone_keeps_its_classes(tmp_path: Path) -> None:
    n = Net()
    x = n.node("Flatten", n.node("GlobalAveragePool", stem(n)))
    y = n.node("Add", n.gemm(x, WIDTH, CLASSES), n.uniform("more", -1, 1, 1, CLASSES))
    forward = assert_same_function(n.model(y), tmp_path, images(2, normalised=True))
    assert operators(forward) == [*STEM, *HEAD]


@pytest.mark.parametrize("fraction", [4, 6])
def test_a_normalised_image_fills_its_format_and_stays_inside(fraction: int, tmp_path: Path) -> None:
    """Pixels from 0 to 255 over the given scale, whatever the statistics in the file are."""
    n = Net()
    x = n.node("Sub", "x", n.tensor("mean", [[[0.4]], [[0.5]], [[0.6]]]), name="normalise")
    x = n.relu(n.bn(n.conv(n.node("Div", x, n.tensor("std", 0.25)), "conv", 3, WIDTH, strides=[2, 2]), "bn", WIDTH))
    table = tmp_path / "profile.toml"
    table.write_text(f'extends = "full8"\n[BN.x]\nfraction = {fraction}\n')
    config = Config(profile=load_profile(str(table)), scale=1 / 255, mean=(0.1,), std=(0.5,))
    model = import_forward(save(n.model(head(n, x)), tmp_path), config)
    note_ranges(model, config)
    mean, variance = (next(s.value for s in model.states.values() if s.layer == "normalise" and s.kind == k) for k in STATISTICS)
    ends = [(abs((pixel / 255 - 0.1) / 0.5 - mean) / np.sqrt(variance)).max() for pixel in (0, 255)]
    format_end = 2.0 ** (7 - fraction)
    assert format_end / 2 < max(ends) <= format_end
