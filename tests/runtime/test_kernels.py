"""The table of kernels: measured, kept, believed on its own machine only; and the default asks the kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from wageubn_onnx.cli import cli
from wageubn_onnx.runtime import kernels
from wageubn_onnx.runtime.kernels import Kernels, Measured

SMALL = (1, 4, 6, 4, 3)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "SHAPES", (SMALL,))


def asked() -> Kernels:
    return Kernels(
        kernels.this_machine(),
        kernels.has_unsigned(),
        kernels.int8_is_exact(),
        kernels.has_unsigned() and kernels.fused_is_exact(),
    )


def test_the_default_asks_the_kernel() -> None:
    table = kernels.kernels()
    assert table == asked()
    assert table.prefers_int8([16, 64, 56, 56], [64, 64, 3, 3]) == table.int8_is_exact
    assert table.prefers_fused([16, 64, 56, 56], [64, 64, 3, 3]) == table.fused_is_exact
    assert not table.prefers_fused([1, 512, 7, 7], [512, 512, 3, 3])


def test_what_was_measured_is_kept_and_read() -> None:
    result = CliRunner().invoke(cli, ["bench", "kernels", "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.output)
    assert [tuple(m["shape"]) for m in printed["measured"]] == [SMALL]
    assert json.loads(kernels.cache_file().read_text()) == printed
    assert [m.shape for m in kernels.kernels().measured] == [SMALL]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"machine": "another", "has_unsigned": true, "int8_is_exact": true, "fused_is_exact": true, "measured": []}',
    ],
)
def test_a_damaged_or_foreign_table_is_not_believed(content: str) -> None:
    kernels.cache_file().parent.mkdir(parents=True)
    kernels.cache_file().write_text(content)
    assert kernels.kernels() == asked()


def test_the_nearest_shape_decides_and_exactness_first() -> None:
    measured = (Measured((16, 64, 56, 64, 3), 2.0, 0.5, 0.8), Measured((16, 512, 7, 512, 1), 0.5, 2.0, 3.0))
    table = Kernels("here", True, True, True, measured)
    assert table.prefers_int8([16, 64, 28, 28], [128, 64, 3, 3])
    assert not table.prefers_int8([16, 512, 14, 14], [512, 512, 1, 1])
    assert not table.prefers_fused([16, 64, 28, 28], [128, 64, 3, 3])
    assert table.prefers_fused([16, 512, 14, 14], [512, 512, 1, 1])
    assert table.prefers_matrix([16, 512, 14, 14], [512, 512, 1, 1])
    assert not table.prefers_matrix([16, 64, 28, 28], [128, 64, 3, 3])
    inexact = Kernels("here", True, False, False, measured)
    assert not inexact.prefers_int8([16, 64, 28, 28], [128, 64, 3, 3])
    assert not inexact.prefers_fused([16, 512, 14, 14], [512, 512, 1, 1])
    assert not inexact.prefers_matrix([16, 512, 14, 14], [512, 512, 1, 1])
