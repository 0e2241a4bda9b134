"""The documentation's tables of keys, printed from the tables that read and write them.

`python -m memcalc.planning.interop.document docs/interop.md` puts them between their markers again.
Checked by: unit/test_interop_tables.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from memcalc.planning.interop.formats import FORMATS
from memcalc.planning.interop.tool import Tool

_MARK: Final = "<!-- keys: {} -->"


def tables() -> dict[str, str]:
    """Markdown by the marker's name: the keys of each tool, and what it cannot state."""
    found = {}
    for (name, version), form in FORMATS.items():
        label = f"{name} {version}".strip()
        found[label] = _keys(form.tool)
        found[f"{name}, not stated"] = _reasons(form.tool)
        found[f"{name}, other keys"] = _others(form.tool)
    return found


def _keys(tool: Tool) -> str:
    lines = ["| key | memcalc | how |", "|---|---|---|"]
    lines += [f"| `{row.key}` | {_code(row.options)} | {row.says} |" for row in tool.rows]
    return "\n".join(lines)


def _code(options: str) -> str:
    return ", ".join(f"`{one}`" for one in options.split(", ") if one)


def _reasons(tool: Tool) -> str:
    lines = ["| setting | where it is instead |", "|---|---|"]
    lines += [f"| {name} | {why or 'not among its settings'} |" for name, why in _sorted(tool)]
    return "\n".join(lines)


def _sorted(tool: Tool) -> Iterator[tuple[str, str]]:
    yield from sorted(tool.reasons.items())


def _others(tool: Tool) -> str:
    priced = [f"| `{key}` | {why or 'see above'} |" for key, why in tool.unpriced.items()]
    idle = ", ".join(f"`{key}`" for key in tool.no_effect)
    head = ["| key that is not modelled | what the estimate has |", "|---|---|", *priced]
    return "\n".join([*head, "", f"Without effect on memory or time: {idle}."])


def filled(text: str) -> str:
    """A page with every table between its two markers."""
    for name, table in tables().items():
        mark = re.escape(_MARK.format(name))
        text = re.sub(
            f"({mark}\n).*?({mark})",
            lambda match, table=table: f"{match[1]}{table}\n{match[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(filled(page.read_text("utf-8")), "utf-8")
