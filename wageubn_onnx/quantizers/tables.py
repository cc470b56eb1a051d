"""The constant tables that the float and the integer functions share."""

from __future__ import annotations

import math

import numpy as np

POWERS = [2**k for k in range(31)]  # shift amount -> int32 factor
THRESHOLDS = [math.isqrt(2 ** (2 * j + 1)) + 1 for j in range(30)]  # ceil(2^(j+1/2)): m reaches j+1 of them -> round(log2 m)
WIDE_THRESHOLDS = [math.isqrt(2 ** (2 * j + 1)) + 1 for j in range(52)]

EXP_BITS, EXP_INDEX = 15, 8  # 2^(-r/256) in 1/2^15
EXP_TABLE = [round(2**EXP_BITS * 2 ** (-r / 2**EXP_INDEX)) for r in range(2**EXP_INDEX)]

LOG_FRACTION, LOG_INDEX = 12, 10  # log2(1 + (i+1/2)/1024) in 1/2^12
LOG_TABLE = [round(2**LOG_FRACTION * math.log2(1 + (i + 0.5) / 2**LOG_INDEX)) for i in range(2**LOG_INDEX)]


# The range R of a dynamic quantizer's result is guarded: beyond these powers of two the whole tensor is scaled to the guard, so
# that exponents stay bounded at any depth and no error signal is lost, only its size
RANGE_LEAST, RANGE_GREATEST = -64, 64


def float_thresholds(dtype: type) -> tuple[list[float], list[float]]:
    """Least floats of ``dtype`` not below 2^(j-1/2), and the range 2^j each opens, for j from -125 to 126; before, 2^-126.

    The square root of two is irrational, so a float reaches the real threshold exactly if it reaches the rounded-up one.
    """
    root = dtype(math.sqrt(0.5))
    if float(root) ** 2 < 0.5:
        root = np.nextafter(root, dtype(1))
    return [float(root) * 2.0**j for j in range(-125, 127)], [2.0**j for j in range(-126, 127)]
