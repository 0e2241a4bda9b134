"""The tables of keys: complete, about options there are, and the ones the documentation prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from memcalc.cli.interop_options import TOOLS
from memcalc.cli.options import BY_NAME
from memcalc.planning.interop.document import filled, tables
from memcalc.planning.interop.facts import LAYOUT, TRAINING
from memcalc.planning.interop.formats import FORMATS, NAMES
from memcalc.planning.interop.rows import MEANINGS

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
TABLES = [form.tool for form in FORMATS.values()]


def test_the_page_holds_the_tables_that_are_used():
    text = PAGE.read_text("utf-8")
    assert filled(text) == text, "python -m memcalc.planning.interop.document docs/interop.md"
    for name, table in tables().items():
        assert f"<!-- keys: {name} -->\n{table}\n" in text


def test_the_page_says_what_each_remark_means():
    text = PAGE.read_text("utf-8")
    for kind, meaning in MEANINGS.items():
        assert f"| {kind} | {meaning} |" in text


@pytest.mark.parametrize("tool", TABLES, ids=lambda tool: tool.known)
def test_a_key_has_one_row_and_no_second_meaning(tool):
    keys = [row.key for row in tool.rows]
    assert len(keys) == len(set(keys))
    assert not set(keys) & set(tool.unpriced)
    assert not set(keys) & set(tool.no_effect)
    assert set(tool.harmless) <= set(tool.unpriced) | {
        key for key in tool.harmless if any(key.startswith(known) for known in tool.unpriced)
    }
    assert set(tool.auto) <= set(keys)


@pytest.mark.parametrize("tool", TABLES, ids=lambda tool: tool.known)
def test_rows_name_options_there_are(tool):
    for row in tool.rows:
        for option in filter(None, row.options.split(", ")):
            name = option.partition(" ")[0].removeprefix("--")
            assert option == "MODEL" or name in BY_NAME, (row.key, option)


@pytest.mark.parametrize("tool", TABLES, ids=lambda tool: tool.known)
def test_reasons_are_of_fields_there_are(tool):
    known = {*TRAINING, *LAYOUT, "model"}
    assert set(tool.reasons) <= known, set(tool.reasons) - known
    assert set(tool.elsewhere) <= set(tool.reasons)


def test_the_options_name_the_tools_there_are():
    assert TOOLS == NAMES
