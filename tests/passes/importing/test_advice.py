"""What the installed PyTorch does to BN by default, and that every call that users are advised to make keeps it."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest

from networks import MEAN, STD, folded, images, relative, run_ort, to_float
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import to_proto
from wageubn_onnx.passes.importing.advice import AFTERWARDS, EXPORTS, OTHERWISE, TORCH_CALLS, keeping_batch_norm
from wageubn_onnx.pipeline import FORWARD
from wageubn_onnx.stages import check_stage

torch = pytest.importorskip("torch")
nn = torch.nn

ROOT = Path(__file__).resolve().parents[3]
WIDTH, CLASSES = 6, 5
PIXELS = images(24, seed=5)
DEFAULTS = ("torch.onnx.export(model.eval(), images, FILE)", "torch.onnx.export(model.eval(), images, FILE, dynamo=False)")


def conv(i: int, o: int, k: int = 3, stride: int = 1, **options: Any) -> Any:
    return nn.Conv2d(i, o, k, stride, k // 2, **{"bias": False} | options)


class Residual(nn.Module):  # type: ignore[misc]
    """x + f(x), or short(x) + f(x); what follows the sum."""

    def __init__(self, branch: Any, short: Any = None, after: Any = None) -> None:
        super().__init__()
        self.branch, self.short, self.after = branch, short or nn.Identity(), after or nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.after(self.short(x) + self.branch(x))


def layers(i: int, o: int, first: str, stride: int = 1) -> Any:
    """A convolution with BN and ReLU after it (``first`` is "conv") or before."""
    if first == "conv":
        return nn.Sequential(conv(i, o, stride=stride), nn.BatchNorm2d(o), nn.ReLU())
    return nn.Sequential(nn.BatchNorm2d(i), nn.ReLU(), conv(i, o, stride=stride))


def original() -> Any:
    """He et al., arXiv 1512.03385."""
    first = nn.Sequential(layers(WIDTH, WIDTH, "conv"), conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH))
    second = nn.Sequential(layers(WIDTH, 8, "conv", 2), conv(8, 8), nn.BatchNorm2d(8))
    short = nn.Sequential(nn.AvgPool2d(2), conv(WIDTH, 8, 1), nn.BatchNorm2d(8))  # ResNet-D's
    blocks = Residual(first, after=nn.ReLU()), Residual(second, short, nn.ReLU())
    return nn.Sequential(layers(3, WIDTH, "conv"), nn.MaxPool2d(2), *blocks, *classifier(8))


def preactivation() -> Any:
    """He et al., arXiv 1603.05027: identity shortcuts, BN before every convolution but the first."""
    blocks = [Residual(nn.Sequential(layers(WIDTH, WIDTH, "bn"), layers(WIDTH, WIDTH, "bn"))) for _ in range(2)]
    return nn.Sequential(conv(3, WIDTH, stride=2), *blocks, nn.BatchNorm2d(WIDTH), nn.ReLU(), *classifier(WIDTH))


def wide() -> Any:
    """Zagoruyko and Komodakis, arXiv 1605.07146: BN and ReLU before a block whose shortcut is a convolution."""
    block = Residual(nn.Sequential(layers(WIDTH, 8, "conv", 2), nn.Dropout(0.3), conv(8, 8)), conv(WIDTH, 8, 1, 2))
    first = nn.Sequential(nn.BatchNorm2d(WIDTH), nn.ReLU(), block)
    return nn.Sequential(conv(3, WIDTH), first, nn.BatchNorm2d(8), nn.ReLU(), *classifier(8))


def pyramid() -> Any:
    """Han et al., arXiv 1610.02915: a block ends in BN, and the sum is read by another."""

    def branch() -> Any:
        return nn.Sequential(nn.BatchNorm2d(WIDTH), layers(WIDTH, WIDTH, "conv"), conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH))

    blocks = Residual(branch()), Residual(branch())
    return nn.Sequential(conv(3, WIDTH, stride=2), *blocks, nn.BatchNorm2d(WIDTH), nn.ReLU(), *classifier(WIDTH))


def classifier(width: int) -> list[Any]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


NETWORKS = {"original": original, "preactivation": preactivation, "wide": wide, "pyramid": pyramid}


def with_networks(calls: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every network by the older exporter; one by the default one, which takes seconds."""
    return [(name, call) for call in calls for name in (NETWORKS if "dynamo=False" in call else ["preactivation"])]


def trained(build: Any) -> Any:
    """Statistics of PIXELS, and gamma and beta as training may leave them."""
    torch.manual_seed(0)
    network, handles = build(), []
    for bn in batch_norms(network):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.uniform_(bn.bias, -0.4, 0.4)
        bn.momentum = None  # the average of all that is seen
        handles.append(bn.register_forward_hook(without_correction))
    for dropout in (module for module in network.modules() if isinstance(module, nn.Dropout)):
        dropout.p = 0.0
    network.train()(torch.from_numpy(to_float(PIXELS)))
    for handle in handles:
        handle.remove()
    return network


def batch_norms(network: Any) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def without_correction(bn: Any, inputs: Any, output: Any) -> None:
    """The variance as it is, which PyTorch keeps times n / (n - 1)."""
    bn.running_var.mul_(1 - bn.num_features / inputs[0].numel())


def export(call: str, model: Any, file: Path) -> onnx.ModelProto:
    """What a user runs who copies ``call``."""
    if "dynamo=False" not in call and importlib.util.find_spec("onnxscript") is None:
        pytest.skip("onnxscript, which PyTorch's default exporter needs, is not installed")
    names = {"torch": torch, "model": model, "images": torch.from_numpy(to_float(images(2))), "FILE": file}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eval(call, names)
    return onnx.load(file)


def imported(file: Path, **options: Any) -> Any:
    return FORWARD(file, Config(batch=2, mean=MEAN, std=STD, **options))


def logits(model: Any) -> Any:
    model.stage = "forward"
    proto = to_proto(model, {"logits": model.named["logits"]})
    check_stage(proto, "forward")
    return run_ort(proto, {"images": to_float(PIXELS)})["logits"]


def expected(network: Any) -> Any:
    with torch.no_grad():
        return network.eval()(torch.from_numpy(to_float(PIXELS))).numpy()


def count(model: Any) -> int:
    """Of BNs."""
    return sum(node.op == "BatchNormalization" for node in model.graph.nodes)


@pytest.mark.parametrize(("name", "call"), with_networks(TORCH_CALLS))
def test_an_advised_call_keeps_every_batch_norm(name: str, call: str, tmp_path: Path) -> None:
    """With the statistics that the network has: no refusal, no note, the same function."""
    network = trained(NETWORKS[name])
    before = expected(network)
    export(call, network, tmp_path / "net.onnx")
    model = imported(tmp_path / "net.onnx")
    assert count(model) == len(batch_norms(network))
    assert model.notes["folded"] is None and model.notes["said"] == []
    assert [key for key, state in model.states.items() if state.kind == "bias"] == [
        f"{len(network) - 1}.bias"
    ]  # the dense layer's
    assert abs(logits(model) - before).max() < 1e-5 * abs(before).max()
    assert (expected(network) == before).all()  # the export changed nothing in the network


@pytest.mark.parametrize(("name", "call"), with_networks(DEFAULTS))
def test_what_an_exporter_folds_by_default_comes_back(name: str, call: str, tmp_path: Path) -> None:
    """Refused without images, recovered with those of the statistics: each BN as it was, but for the scale in the weights."""
    network = trained(NETWORKS[name])
    norms = batch_norms(network)
    source = export(call, network, tmp_path / "net.onnx")
    left = sum(node.op_type == "BatchNormalization" for node in source.graph.node)
    assert left < len(norms)
    with pytest.raises(WageubnError, match=f"^{len(norms) - left} of .* pass --calibrate DATA .* or --keep-folded") as caught:
        imported(tmp_path / "net.onnx")
    assert all(call in str(caught.value) for call in TORCH_CALLS)
    model = imported(tmp_path / "net.onnx", calibrate=PIXELS)
    before = expected(network)
    assert count(model) == len(norms)
    assert abs(logits(model) - before).max() < 1e-5 * abs(before).max()
    for kind, name in (("beta", "bias"), ("gamma", "weight")):
        found = [state.value for state in model.states.values() if state.kind == kind]
        for value in (getattr(bn, name).detach().numpy() for bn in norms):
            assert any(each.shape == value.shape and relative(each, value) < 1e-3 for each in found), (name, value)
    assert count(imported(tmp_path / "net.onnx", keep_folded=True)) == left


@pytest.mark.parametrize("producer", [*EXPORTS, "", "another"])
def test_the_advice_is_for_the_exporter_that_wrote_the_file(producer: str, tmp_path: Path) -> None:
    model = folded()
    model.producer_name = producer
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(WageubnError) as caught:
        imported(tmp_path / "net.onnx")
    message = str(caught.value)
    assert message.endswith(keeping_batch_norm(producer)) and "\n" not in message
    assert EXPORTS.get(producer, OTHERWISE) in message and AFTERWARDS in message
    assert ("torch.onnx" in message) == (producer == "pytorch")


def test_the_pages_show_the_same_calls() -> None:
    page = (ROOT / "docs/import.md").read_text()
    assert all(call in page for call in TORCH_CALLS)
    assert all(call in page for producer, call in EXPORTS.items() if producer not in ("pytorch", "keras2onnx"))
    assert TORCH_CALLS[0] in (ROOT / "README.md").read_text()
