"""Nothing in a name reaches a terminal as more than text."""

from __future__ import annotations

import io
import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from networks import tiny
from wageubn_onnx.cli import cli
from wageubn_onnx.terminal import LONGEST_LINE, LONGEST_WORD, Terminal, make_table, printable, shortened

RED, BACKWARDS, LINES = "\x1b[31mred", "\u202eesrever", "one\nerror: two"
NAMES = (RED, BACKWARDS, LINES, "\x9b2J", "\x00\x07\x08", "[bold]", "\u2028", "\ufeff")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢字 \U0001f600", "plain é 漢字 \U0001f600"),
        (RED, "\\x1b[31mred"),
        (BACKWARDS, "\\u202eesrever"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x7f\x80\x9b", "\\x7f\\x80\\x9b"),
        ("\u2028\u200b\ufeff\u00ad", "\\u2028\\u200b\\ufeff\\xad"),
        ("half \udc80", "half \\udc80"),  # of a file name that is no UTF-8
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_long_names_keep_their_ends() -> None:
    word = "start" + "x" * 10_000 + "end"
    cut = shortened(f"node {word!r}: reason")
    assert cut.startswith("node 'start") and "end': reason" in cut and len(cut) < LONGEST_WORD
    assert len(shortened("a " * 10_000)) < LONGEST_LINE
    assert shortened("  two  spaces ") == "  two  spaces "


def test_tables_and_spinners() -> None:
    for name in NAMES:
        out = io.StringIO()
        console = Terminal(file=out, force_terminal=True, width=200, color_system=None)
        console.print(make_table(name, ["column"], [[name]]))
        console.say(name)
        console.print(name, markup=False)  # what rich is given otherwise
        assert printable(name) in out.getvalue()
        assert "\x1b" not in out.getvalue().replace("\\x1b", "") and "\u202e" not in out.getvalue()
    assert issubclass(Terminal, Console)


def hostile(folder: Path) -> Path:
    """``tiny`` with odd names of nodes, tensors, an axis and the producer; it converts."""
    model = tiny()
    model.graph.node[0].name, model.graph.node[3].name = RED, LINES
    model.producer_name = BACKWARDS
    for old, new in {"stem.weight": RED, "stem_bn.bias": LINES, "a1.weight": BACKWARDS}.items():
        next(t for t in model.graph.initializer if t.name == old).name = new
        for node in model.graph.node:
            node.input[:] = [new if i == old else i for i in node.input]
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = RED
    onnx.save(model, folder / "hostile.onnx")
    return folder / "hostile.onnx"


def test_commands_on_hostile_names(tmp_path: Path) -> None:
    file, other, out = hostile(tmp_path), tmp_path / "plain.onnx", tmp_path / "out"
    onnx.save(tiny(), other)
    commands = [
        ("convert", file, "-o", out, "--batch", "2"),
        ("inspect", file, "--layers"),
        ("inspect", out / "int_eval.onnx"),
        ("diff", file, other),
        ("diff", out / "quant_eval.onnx", out / "int_eval.onnx"),
        ("audit", file),
        ("audit", out / "int_eval.onnx", "--ranges", "--all"),
        ("convert", tmp_path / LINES, "-o", tmp_path / "none"),
        *(("convert", file, "-o", tmp_path / "none", option, RED) for option in ("--freeze", "--profile", "--calibrate")),
    ]
    for command in commands:
        result = run(*command)
        assert result.exit_code in (0, 1, 2), result.output
        assert result.exit_code != 2 or result.stderr.count("\n") == 1
        assert all(line.isprintable() and not line.startswith("error: two") for line in result.output.split("\n"))
    page = tmp_path / "page.html"
    assert run("diff", file, other, "--html", page).exit_code == 1
    assert "\x1b" not in page.read_text() and "\u202e" not in page.read_text()


def test_json_has_names_whole(tmp_path: Path) -> None:
    result = run("inspect", hostile(tmp_path), "--json", "--layers")
    assert "\x1b" not in result.output
    assert any(RED in layer["layer"] for layer in json.loads(result.stdout)["layers"])
