"""What is written as TOML is read back equal."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.inputs.toml_text import to_toml, toml_value

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), _TEXT,
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_TEXT, _VALUES, max_size=5))
def test_any_tree_of_plain_values_comes_back_equal(tree) -> None:  # type: ignore[no-untyped-def]
    assert tomllib.loads(to_toml(tree)) == tree


def test_a_list_of_tables_has_a_line_for_each() -> None:
    text = to_toml({"a": {"rows": [{"x": 1, "y": 2.5}, {"x": 2}], "n": 1}})
    assert text == "[a]\nrows = [\n  { x = 1, y = 2.5 },\n  { x = 2 },\n]\nn = 1\n"


def test_none_is_left_out() -> None:
    tree = {"a": None, "b": [{"c": None, "d": 1}], "e": {"f": None}}
    assert tomllib.loads(to_toml(tree)) == {"b": [{"d": 1}], "e": {}}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), [None], {1, 2}])
def test_what_has_no_toml_is_refused(value) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no TOML"):
        toml_value(value)
