"""Sizes: exact polynomials over named dims."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine.sizes import ONE, ZERO, Size, dim, number, product

B, S, H = dim("b"), dim("s"), dim("h")
DIMS = {"b": 3, "s": 17, "h": 5}


@st.composite
def polynomials(draw: st.DrawFn) -> Size:
    total = ZERO
    for _ in range(draw(st.integers(0, 4))):
        names = draw(st.lists(st.sampled_from([B, S, H]), max_size=3))
        total = total + product(tuple(names)) * draw(st.integers(-9, 9))
    return total


exact = settings(deadline=None, derandomize=True, max_examples=100)


@exact
@given(polynomials(), polynomials(), polynomials())
def test_sizes_form_a_commutative_ring(x, y, z):
    assert x + y is y + x
    assert x * y is y * x
    assert (x + y) * z is x * z + y * z
    assert x - x is ZERO
    assert x * ONE is x


@exact
@given(polynomials(), polynomials())
def test_values_are_exact_integers(x, y):
    assert (x + y).value(DIMS) == x.value(DIMS) + y.value(DIMS)
    assert (x * y).value(DIMS) == x.value(DIMS) * y.value(DIMS)
    assert (-x).value(DIMS) == -x.value(DIMS)


@exact
@given(polynomials(), st.integers(1, 9))
def test_over_rounds_up(x, divisor):
    assert x.over(divisor).value(DIMS) == -(-x.value(DIMS) // divisor)


def test_equal_sizes_are_one_object():
    assert B * S * 2 is number(2) * S * B
    assert pickle.loads(pickle.dumps(B * S + 1)) is B * S + 1
    assert copy.deepcopy(B * S) is B * S


def test_no_overflow_at_sizes_of_real_models():
    assert (dim("a") * dim("c")).value({"a": 405 * 10**9, "c": 16 * 10**6}) == 6_480_000 * 10**12


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (ZERO, "0"),
        (ONE, "1"),
        (2 * B * S * H, "2 b s h"),
        (B * B * S + 4, "b^2 s + 4"),
        (H - 2 * S, "h - 2 s"),
        (-1 * B, "- b"),
    ],
)
def test_sizes_print_as_in_papers(size, text):
    assert sorted(str(size).split()) == sorted(text.split())


def test_a_dim_without_a_value_is_named():
    with pytest.raises(KeyError, match="h"):
        (B * H).value({"b": 1})


def test_dims_are_the_names_used():
    assert (B * S + H - H).dims == {"b", "s"}
    assert number(7).dims == frozenset()
