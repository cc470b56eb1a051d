"""Schedules: the learning rate and the gradient range of every step of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def constant(progress: float) -> float:
    """Return 1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """Return (1 + cos(pi * progress)) / 2: from 1 down to 0 (Loshchilov and Hutter, SGDR, 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def step(progress: float) -> float:
    """Return 1, then 1/10 from half of the run on, then 1/100 from three quarters on (He et al., 2016)."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine, "step": step}


def learning_rate(name: str, peak: float, smallest: float, index: int, total: int) -> float:
    """Return the rate of step ``index`` of ``total``: ``peak`` times the schedule, but at least ``smallest``.

    ``smallest`` is the session's: the tail of a schedule would round to 0 in integers, so it is held there instead.
    """
    return max(peak * SCHEDULES[name](index / total), smallest)


def gradient_range(ranges: Sequence[int], index: int, total: int) -> int:
    """Return the gradient range of step ``index`` of ``total``: each of ``ranges`` serves an equal part of the run."""
    return ranges[index * len(ranges) // total]
