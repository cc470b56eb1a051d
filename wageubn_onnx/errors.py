"""The one exception a user ever sees: a single line that names what is wrong and what to do."""

from __future__ import annotations


class WageubnError(Exception):
    """Bad input or an impossible request.

    The message is one line: the node, op, shape, key or file at fault, why it is refused, and what to do.
    The command line prints it and exits with 2; it never shows a traceback for it.
    """


class UnsupportedOperator(WageubnError):
    """An operator without a rule; the message names the operator and the node."""


class ProofFailed(WageubnError):
    """A bound that conversion needs does not hold; the message names the node, the bound and the limit."""
