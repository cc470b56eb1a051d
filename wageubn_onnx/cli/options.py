"""What commands share: options, types, how results are printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.terminal import Terminal, shortened

PATH = click.Path(path_type=Path)


def numbers(kind: type[int] | type[float]) -> Callable[[Any], tuple[float, ...]]:
    """Return an option type: a comma-separated list of numbers of one kind, such as ``0.49,0.48,0.45``."""

    def listed(value: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):  # a default
            return value
        try:
            return tuple(kind(word) for word in str(value).split(","))
        except ValueError as error:
            words = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(f"{value!r} is not a comma-separated list of {words}") from error

    return listed


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show a spinner on a terminal's stderr while the block runs."""
    with Terminal(stderr=True).status(Text(shortened(what))):
        yield


@contextmanager
def reading(model: Path) -> Iterator[None]:
    """Turn protobuf's refusal of a file that is no ONNX model into one line."""
    from google.protobuf.message import DecodeError

    try:
        yield
    except DecodeError as error:
        raise WageubnError(f"{model}: not an ONNX model, or a damaged one; export it again") from error


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    click.echo(json.dumps(value, indent=2))


def example(text: str) -> str:
    """Return the last line of a command's help."""
    return f"Example: {text}"


training_python_option = click.option(
    "--training-python",
    type=PATH,
    metavar="PYTHON",
    help="Interpreter of an environment with onnxruntime-training; else without.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
threads_option = click.option("--threads", type=click.IntRange(min=1), help="Threads of onnxruntime [default: its own].")
float_option = click.option("--float", "in_float", is_flag=True, help="Use the FP32 models of DIR instead.")
data_option = click.option(
    "--data",
    "data_path",
    required=True,
    type=PATH,
    metavar="DATA",
    help="An .npz with uint8 NCHW x_train, y_train, x_test, y_test, or folders train/CLASS/ and test/CLASS/ of images.",
)
