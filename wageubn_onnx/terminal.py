"""All text for a terminal goes through here, so that nothing in a file can steer the terminal or look like another line.

Names come from models, manifests, checkpoints and folders that somebody else made. One may hold an escape sequence, a line break
or a character that turns the direction of writing; `printable` writes such characters as Python does in a string, ``\\x1b``.
JSON needs none of this: its own escapes do the same, and programs get every name whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

LONGEST_WORD = 200  # characters without a space between them: longer names keep their two ends
LONGEST_LINE = 2_000
UNFOLDED = 10_000  # characters: wider than any table


def printable(text: str) -> str:
    """``text`` with every character that is not printed written as an escape: control, direction, separators, half surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str) -> str:
    """``text`` on one line, `printable`, its long words and a long whole cut in their middle."""
    return _cut(" ".join(_cut(word, LONGEST_WORD) for word in printable(text).split(" ")), LONGEST_LINE)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}...{text[len(text) - most // 4 :]}"


def say(line: str, err: bool = False) -> None:
    """Print one line, `shortened`; to standard error on request."""
    click.echo(shortened(line), err=err)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of texts as they are, none of them markup; long cells fold."""
    made = Table(title=Text(shortened(title)), title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(shortened(cell)) for cell in row))
    return made


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to standard output, as wide as its cells where that is a file or a pipe, which have no edge to fold at."""
    console, made = Terminal(), make_table(title, columns, rows)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, console.measure(made, options=console.options.update(width=UNFOLDED)).maximum)
    console.print(made)


class Terminal(Console):
    """rich's console, without guesses at what a number or a path is; whatever it prints is `printable`."""

    def __init__(self, **options: Any) -> None:
        """``options`` as rich takes them."""
        super().__init__(**({"highlight": False} | options))

    def say(self, line: str) -> None:
        """Print one line, folded at the console's width."""
        self.print(Text(shortened(line)))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, line by line."""
        for segment in super().render(renderable, options):
            text = "\n".join(map(printable, segment.text.split("\n")))
            yield segment if segment.control or text == segment.text else segment._replace(text=text)
