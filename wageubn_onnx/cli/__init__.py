"""The command line, `wageubn-onnx`: one file a family of commands, which are listed here."""

from __future__ import annotations

from wageubn_onnx.cli import audit, bench, convert, export, read, train
from wageubn_onnx.cli.group import cli

__all__ = ["cli"]

for command in (
    convert.convert,
    audit.audit,
    train.train,
    train.evaluate,
    read.diff,
    read.inspect,
    read.passes,
    export.export,
    export.verify,
    bench.bench,
):
    cli.add_command(command)
