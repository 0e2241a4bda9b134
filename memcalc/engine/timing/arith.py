"""Arithmetic that takes Python numbers and numpy arrays alike, without importing numpy.

Time formulas are closed forms over sizes; a sweep passes whole arrays where one estimate passes
numbers. `max` and `min` of Python fail on arrays and `math` functions too, hence these.
Checked by: unit/test_kernel_times.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

#: A Python number or a numpy array; Any, for numpy must not be needed to read these types.
Num = Any


def extremes(value: Num) -> tuple[Callable[..., Num], Callable[..., Num]]:
    """Functions (least, most) of two values where one is like this: built in, or numpy's for arrays."""
    if isinstance(value, (int, float)):
        return min, max
    import numpy

    return numpy.minimum, numpy.maximum


def maximum(a: Num, b: Num) -> Num:
    """The larger of two, element by element where one is an array."""
    return extremes(a + b)[1](a, b)


def minimum(a: Num, b: Num) -> Num:
    """The smaller of two, element by element where one is an array."""
    return extremes(a + b)[0](a, b)


def ceil_div(a: Num, b: Num) -> Num:
    """a / b rounded up, for whole or real numbers above 0; `//` on negatives rounds up."""
    return -(-a // b)


def log2(a: Num) -> Num:
    """The binary logarithm of a number or of each element."""
    if isinstance(a, (int, float)):
        return math.log2(a)
    import numpy

    return numpy.log2(a)
