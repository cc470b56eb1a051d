"""The table of kernels: asked once, kept, believed on its own machine only; what is exact and what is faster decide together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from wageubn_onnx.cli import cli
from wageubn_onnx.passes.targets.cpu import inlined_passes_for, passes_for
from wageubn_onnx.passes.targets.cpu.machine import MENDED, Kernel, missing
from wageubn_onnx.runtime import kernels
from wageubn_onnx.runtime.cache import Cache
from wageubn_onnx.runtime.kernels import SHIPPED, Kernels, Measured

SMALL = (1, 4, 6, 4, 3)
ALL = frozenset(Kernel)
SOME = ALL - {Kernel.INT8, Kernel.POOL}


class Asked:
    """In the place of the probes: what they say, and how often they were asked."""

    def __init__(self, exact: frozenset[Kernel]) -> None:
        self.exact, self.times = exact, 0

    def __call__(self) -> frozenset[Kernel]:
        self.times += 1
        return self.exact


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """A cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "SHAPES", (SMALL,))
    made = Asked(SOME)
    monkeypatch.setattr(kernels, "exact_kernels", made)
    return made


def test_the_kernels_are_asked_once(asked: Asked) -> None:
    table = kernels.kernels()
    assert table == Kernels(kernels.this_machine(), SOME, SHIPPED)
    assert kernels.kernels() == table and asked.times == 1


def test_another_machine_asks_again(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.kernels()
    monkeypatch.setattr(kernels, "this_machine", lambda: "another processor, onnxruntime 9.9")
    assert kernels.kernels().machine == "another processor, onnxruntime 9.9" and asked.times == 2
    monkeypatch.undo()


def test_what_the_processor_can_do_is_part_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for flags in ("avx512_vnni sse", "amx_int8 avx512_vnni sse"):
        text = f"processor : 0\nmodel name : CPU\nflags : {flags}\n"
        monkeypatch.setattr(Path, "is_file", lambda self: True)
        monkeypatch.setattr(Path, "read_text", lambda self, text=text: text)
        names.append(kernels.this_machine())
    assert names[0] != names[1] and all(name.startswith("CPU (") for name in names)


def test_what_was_measured_is_kept_and_read() -> None:
    result = CliRunner().invoke(cli, ["bench", "kernels", "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.output)
    assert [tuple(m["shape"]) for m in printed["measured"]] == [SMALL]
    assert printed["exact"] == {kernel.name: kernel in SOME for kernel in Kernel}
    assert [m.shape for m in kernels.kernels().measured] == [SMALL]
    table = CliRunner().invoke(cli, ["bench", "kernels"])
    assert "NhwcMaxPool" in table.output and "not used" in table.output


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kernels.kernels().exact == SOME  # a session does without
    result = CliRunner().invoke(cli, ["bench", "kernels"])
    assert result.exit_code == 2 and "cannot be written; set XDG_CACHE_HOME" in result.output


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "\x00", '{"exact": 1}', '{"exact": {"POOL": true}, "measured": [{"shape": 3}]}', '{"owner": "another"}'],
)
@pytest.mark.parametrize("owned", [False, True])
def test_a_damaged_or_foreign_cache_is_not_believed(content: str, owned: bool, asked: Asked) -> None:
    cache = Cache(kernels.this_machine())
    cache.file.parent.mkdir(parents=True)
    if owned and content.startswith('{"'):
        content = json.dumps(json.loads(content) | {"owner": cache.owner})
    cache.file.write_text(content)
    assert kernels.kernels() == Kernels(kernels.this_machine(), SOME, SHIPPED)
    assert asked.times == 1


def test_the_nearest_shape_decides_and_exactness_first() -> None:
    measured = (Measured((16, 64, 56, 64, 3), 2.0, 0.5, 0.8), Measured((16, 512, 7, 512, 1), 0.5, 2.0, 3.0))
    table = Kernels("here", ALL, measured)
    assert table.prefers_int8([16, 64, 28, 28], [128, 64, 3, 3])
    assert not table.prefers_int8([16, 512, 14, 14], [512, 512, 1, 1])
    assert not table.prefers_fused([16, 64, 28, 28], [128, 64, 3, 3])
    assert table.prefers_fused([16, 512, 14, 14], [512, 512, 1, 1])
    assert table.prefers_matrix([16, 512, 14, 14], [512, 512, 1, 1])
    assert not table.prefers_matrix([16, 64, 28, 28], [128, 64, 3, 3])
    inexact = Kernels("here", ALL - {Kernel.INT8, Kernel.QLINEAR_CONV, Kernel.QLINEAR_MATMUL}, measured)
    assert not inexact.prefers_int8([16, 64, 28, 28], [128, 64, 3, 3])
    assert not inexact.prefers_fused([16, 512, 14, 14], [512, 512, 1, 1])
    assert not inexact.prefers_matrix([16, 512, 14, 14], [512, 512, 1, 1])


def forms(*lacking: Kernel) -> set[str]:
    machine = Kernels("here", ALL - set(lacking))
    return {*passes_for(machine), *inlined_passes_for(machine)}


def test_the_answers_choose_the_forms() -> None:
    everything = forms()
    assert {"fuse-requantization", "channels-last", "batchnorm-statistics-by-products", "int8-images"} <= everything
    assert not {"pad-matrix-products", "pad-convolutions"} & everything
    assert forms(Kernel.MATMUL) - everything == {"pad-matrix-products"}
    assert forms(Kernel.CONV) - everything == {"pad-convolutions"}
    assert everything - forms(Kernel.INT8) == {"int8-images", "swap-weight-gradient-operands"}
    assert everything - forms(Kernel.QLINEAR_ADD) == {"fuse-affine-maps", "fuse-momentum"}
    assert "fuse-requantization" not in forms(Kernel.POOL) and "split-weights-high-low" in forms(Kernel.POOL)
    assert "split-weights-high-low" not in forms(Kernel.UNSIGNED)


def test_what_is_missing_is_what_no_form_can_replace() -> None:
    def found(*lacking: Kernel) -> Kernel | None:
        return missing(Kernels("here", ALL - set(lacking)))

    assert found() is None and found(*MENDED) is None
    assert found(*(k for k in Kernel if k not in (Kernel.ARITHMETIC, *MENDED))) is None
    assert found(Kernel.ARITHMETIC) is Kernel.ARITHMETIC
    for kernel, instead in MENDED.items():
        assert found(instead) is None
        assert found(kernel, instead) is kernel
