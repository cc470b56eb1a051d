"""Each pass for onnxruntime's CPU kernels changes what it is for, and no bit of what the step computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import networks
from machines import Able, Lacking, Plain, everything_fires
from wageubn_onnx import Artifacts, Config, convert
from wageubn_onnx.composites import expanded
from wageubn_onnx.onnxir.edit import Rewrite, rewritten
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.nodes import MICROSOFT
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.cpu import bodies_for, for_cpu, passes_for
from wageubn_onnx.passes.targets.cpu.machine import LAST, Kernel
from wageubn_onnx.passes.targets.cpu.maps.batchnorm_statistics import lean_moments
from wageubn_onnx.passes.targets.cpu.products.int8_images import LATE, int8_images
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.runtime.kernels import kernels

Array = np.ndarray[Any, Any]
ModelPass = Callable[[onnx.ModelProto], onnx.ModelProto]


LACKING = {
    "with AMX": Lacking(Kernel.MATMUL, Kernel.CONV, Kernel.INT8, Kernel.SUMS, Kernel.QLINEAR_MATMUL),
    "channels second": Lacking(Kernel.POOL),
    "without sums and products of maps": Lacking(Kernel.QLINEAR_ADD, Kernel.QLINEAR_MUL),
}


def alone(rewrite: Rewrite) -> ModelPass:
    """One pass and no other."""
    return lambda model: rewritten(model, {"alone": rewrite})


PASSES: dict[str, ModelPass] = {
    name: (lambda model, name=name, rewrite=rewrite: expanded(rewritten(model, {name: rewrite})))  # type: ignore[misc]
    for name, rewrite in bodies_for(Able()).items()
}
PASSES |= {
    name: (lambda model, name=name, rewrite=rewrite: rewritten(expanded(model, but=LATE), {name: rewrite}))  # type: ignore[misc]
    for name, rewrite in passes_for(Able()).items()
}
WHOLE: dict[str, ModelPass] = {
    "all": lambda model: for_cpu(model, Able()),
    "all but the fused": lambda model: for_cpu(model, Plain()),
    **{name: (lambda model, machine=machine: for_cpu(model, machine)) for name, machine in LACKING.items()},  # type: ignore[misc]
}


@pytest.fixture(scope="module", params=["fast", "full8"])
def artifacts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    file = tmp_path_factory.mktemp("cpu") / "tiny.onnx"
    onnx.save(networks.tiny(), file)
    return convert(file, Config(batch=networks.BATCH, profile=load_profile(request.param)))


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def drawn(
    artifacts: Artifacts, seed: int, shape: tuple[int, ...] | None = None, classes: int = networks.CLASSES
) -> dict[str, Array]:
    """A step's inputs, states anywhere in their ranges; every other seed puts exponents at the least.

    shape: of random images, where they are not those of `networks`.
    """
    random = np.random.default_rng(seed)
    manifest, values = artifacts.manifest, {}
    for entry in manifest["state"]:
        declared, value = manifest["tensors"][entry["key"]], artifacts.state[entry["key"]]
        least, greatest = int(declared["min"]), int(declared["max"])
        exponent = entry["key"].endswith(".exponent")
        if exponent and seed % 2:
            values[entry["in"]] = np.full_like(value, least)
        elif exponent and seed % 4 == 0:
            values[entry["in"]] = value
        else:
            values[entry["in"]] = random.integers(least, greatest, value.shape, endpoint=True).astype(value.dtype)
    step = manifest["step"]
    scalars = {"lr": 1 + seed, "gradient_range": 2 ** (1 + seed % 7), "seed": seed}
    values |= {step[key]: np.array(value, np.int32) for key, value in scalars.items()}
    pixels = random.integers(0, 256, shape, dtype=np.uint8) if shape else networks.images(seed=seed)
    labels = networks.labels(len(pixels), seed, classes).astype(np.int32)
    return values | {step["images"]: pixels, step["labels"]: labels}


@pytest.mark.parametrize("name", [*PASSES, *WHOLE])
def test_no_bit_changes(name: str, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    everything_fires(monkeypatch)
    of_all = {*bodies_for(Plain()), *passes_for(Plain()), "all but the fused"} - {
        "batchnorm-statistics-by-products",
        "split-exponent-reductions",
    }  # which take uint8 where they may
    if not kernels().is_exact(*LAST) and name not in of_all:
        pytest.skip("this release of onnxruntime lacks unsigned arithmetic")
    if (
        not kernels().is_exact(Kernel.INT8)
        and name in ("int8-images", "swap-weight-gradient-operands", *WHOLE)
        and name not in of_all
    ):
        pytest.skip("this machine or release has no exact int8 by uint8")
    step = artifacts.files["int_training"]
    before, after = session(inline(step)), session(inline((PASSES | WHOLE)[name](step)))
    names = [o.name for o in before.get_outputs()]
    for seed in range(4):
        feeds = drawn(artifacts, seed)
        for output, a, b in zip(names, before.run(names, feeds), after.run(names, feeds), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{output}, seed {seed}")


def ops(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def test_each_pass_does_its_work(artifacts: Artifacts) -> None:
    step = expanded(artifacts.files["int_training"], but=LATE)

    def images(model: onnx.ModelProto) -> list[int]:
        typed = onnx.shape_inference.infer_shapes(inline(model))
        known = {v.name: v.type.tensor_type.elem_type for v in typed.graph.value_info}
        return [known[n.input[0]] for n in typed.graph.node if n.op_type == "ConvInteger"]

    whole, by_taps = tidy(inline(step)), tidy(inline(PASSES["flip-kernels-by-taps"](step)))
    assert ops(by_taps).count("Gather") > ops(whole).count("Gather") and ops(by_taps).count("Slice") < ops(whole).count("Slice")
    assert ops(PASSES["strided-slices-by-transpose"](step)).count("Transpose") > ops(step).count("Transpose")
    joint = ops(PASSES["batch-small-tensors"](step))
    assert joint.count("DirectQuantizeWide") < ops(step).count("DirectQuantizeWide")
    canonical = artifacts.files["int_training"]
    assert "MaxPool" in ops(canonical) and "MaxPool" not in ops(PASSES["max-pool-from-taps"](canonical))
    assert set(images(step)) == {onnx.TensorProto.UINT8}
    assert set(images(PASSES["int8-images"](step))) == {onnx.TensorProto.INT8}
    assert images(alone(lambda edit: int8_images(edit, lambda image, kernel: False))(step)) == images(step)
    hashed = ops(PASSES["hash-in-uint32"](step))
    assert "RandomBits" not in hashed and hashed.count("StepHash") == 1 and "HashedBits" in hashed
    if "fast" in str(artifacts.manifest["profile"]):  # the others have wider formats
        assert "FollowExponent" in ops(step) and "FollowExponent" not in ops(PASSES["split-exponent-reductions"](step))
        exponents = ops(PASSES["batch-small-tensors"](PASSES["split-exponent-reductions"](step)))
        assert exponents.count("ReduceMax") > 4 * exponents.count("FollowExponentExtremes") > 0
        narrowed = ops(PASSES["narrow-weight-gradients"](step))
        assert (
            narrowed.count("If")
            == ops(step).count("ConstantQuantizeStochastic") - narrowed.count("ConstantQuantizeStochastic")
            > 0
        )
        assert {"NormalizeHalfUp", "ReduceSumSquare"} <= set(ops(alone(lambda edit: lean_moments(edit, by_steps=False))(step)))
        assert "QLinearMul" in ops(PASSES["batchnorm-statistics-by-products"](step))
        fused = ops(PASSES["fuse-requantization"](PASSES["hoist-quantizers"](step)))
        assert fused.count("ProductQuantize") > 4 and fused.count("MatrixQuantize") > 4
        affine = ops(PASSES["fuse-affine-maps"](step))
        assert affine.count("AffineQuantize") > 15 and affine.count("Greater") < ops(step).count("Greater")
        assert ops(PASSES["normalize-by-reciprocals"](step)).count("AffineQuantize") == ops(step).count(
            "DirectQuantizeRootHalfUp"
        )


def test_both_branches_of_a_gradient_are_taken(artifacts: Artifacts) -> None:
    """A least exponent of the error wants the canonical nodes; an ordinary one does not."""
    if not kernels().is_exact(Kernel.UNSIGNED):
        pytest.skip("this release of onnxruntime lacks unsigned arithmetic")
    model = inline(PASSES["narrow-weight-gradients"](artifacts.files["int_training"]))
    conditions = [n.input[0] for n in model.graph.node if n.op_type == "If"]
    if not conditions:
        pytest.skip("full8 has gradients of two parts, which stay as they are")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in conditions)
    run = session(onnx.shape_inference.infer_shapes(model))
    assert {bool(v) for seed in range(4) for v in run.run(conditions, drawn(artifacts, seed))} == {False, True}


def test_the_step_for_the_cpu_is_tidy(artifacts: Artifacts, tmp_path: Path) -> None:
    step = for_cpu(artifacts.files["int_training"], Able())
    onnx.checker.check_model(step, full_check=True)
    assert not step.functions and "Constant" not in ops(step)

    def read(graph: onnx.GraphProto) -> set[str]:
        branches = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        return {name for node in graph.node for name in node.input}.union(*map(read, branches))

    wanted = read(step.graph) | {v.name for v in step.graph.output}
    assert wanted.issuperset(t.name for t in step.graph.initializer)
    assert [node.name for node in step.graph.node if wanted.isdisjoint(node.output)] == []
    assert len(step.graph.node) < len(tidy(inline(artifacts.files["int_training"])).graph.node) * 1.05
    assert {n.domain for n in step.graph.node if n.op_type == "QLinearConv"} <= {MICROSOFT}
    assert {i.name for i in step.graph.input} == {i.name for i in artifacts.files["int_training"].graph.input}
