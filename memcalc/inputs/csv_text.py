"""Texts as cells of a CSV file that a spreadsheet opens: none of them is a formula.

Spreadsheets run a cell that begins with = + - or @. What a user names (models, setups, rows) may begin
so; such a text gets an apostrophe before it, which spreadsheets take as "this is text". Numbers stay.
Source: OWASP, CSV Injection. Checked by: unit/test_malicious.py.
"""

from __future__ import annotations

import re
from typing import Any, Final

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER: Final = re.compile(r"[-+]?(\d[\d,_]*(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s?%?")


def safe_cell(value: Any) -> Any:
    """The value, with an apostrophe before a text that a spreadsheet would run; control characters out.

    Numbers as texts stay what they are, and so do values that are no text.
    """
    if not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in value)
    if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) and text != "-":
        return f"'{text}"
    return text
