"""The group `wageubn-onnx`, and how whatever goes wrong is reported.

Exit codes: 0 success, 1 the answer is no, 2 bad input, 3 a fault of this program, 130 interrupted. 2 and 3 print one line.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

import click

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.terminal import printable, say, shortened

BAD_INPUT, FAULT = 2, 3
INTERRUPTED = 130  # what shells report of Ctrl-C
LONGEST_FAULT = 300  # characters of an exception's text


class OneLineErrors(click.Group):
    """A group that reports whatever goes wrong as one line `error: ...` on stderr, and never as a traceback.

    Bad input exits with 2. An exception that nobody foresaw is a fault of this program, which the line says, and exits with 3;
    ``debug`` shows its traceback, too.
    """

    debug = False

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as click does, but with this program's errors and exit codes."""
        kwargs["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a terminal may lack a name's letters
        try:
            code = super().main(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(BAD_INPUT)
        except click.ClickException as error:
            hint = f"; see {error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else ""
            fail(error.format_message().rstrip(".") + hint)
        except WageubnError as error:
            fail(str(error))
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except MemoryError:
            fail("out of memory; give a smaller model, batch, image size or data set, or a machine with more")
        except click.Abort:
            sys.exit(INTERRUPTED)
        except Exception as error:  # noqa: BLE001 (the one place where what nobody foresaw ends)
            self._report(error)
        sys.exit(code if isinstance(code, int) else 0)

    def _report(self, error: Exception) -> None:
        """Tell a fault of ours from bad input, and how to report it."""
        if self.debug:
            for line in "".join(traceback.format_exception(error)).splitlines():
                click.echo(printable(line), err=True)
        advice = "" if self.debug else "; `wageubn-onnx --debug ...` with the same command shows where"
        what = shortened(f"{type(error).__name__}: {error}")[:LONGEST_FAULT]
        fail(f"a fault of wageubn-onnx itself ({what}); please report it with the command and its input{advice}", FAULT)


def fail(message: str, code: int = BAD_INPUT) -> None:
    """Print one line on stderr and exit."""
    say("error: " + " ".join(message.split()), err=True)
    sys.exit(code)


def _set_debug(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if isinstance(ctx.command, OneLineErrors):
        ctx.command.debug = wanted


@click.group(cls=OneLineErrors)
@click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of a fault of this program.",
)
def cli() -> None:
    """Turn a trained FP32 ResNet .onnx into integer-only training graphs, and train with them."""
