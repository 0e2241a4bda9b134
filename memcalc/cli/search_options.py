"""Options of `search` alone: rows of the one table (`cli/options.py`)."""

from __future__ import annotations

from typing import Any, Final

from memcalc.cli.option import Option
from memcalc.planning.search.wishes import AXES, NUMBERS, RANKS

_SEARCH: Final = ("search",)
#: Bounds where none is stated, in words.
_USUAL: Final = {
    "tp": "64; with experts the GPUs of a fast domain", "vpp": "12", "micro-batch": "131,072 tokens",
    "cp": "1,024 positions a rank at least",
}  # fmt: skip


def _search(name: str, kind: str, said: str, default: str = "", **more: Any) -> Option:
    return Option(name, kind, "Search", said, default, commands=_SEARCH, **more)


SEARCH_OPTIONS: Final = (
    _search("fix", "many",
            "Values of an axis, as tp=8, pp=1..8 or recompute=none,full:4; may be repeated. Axes: "
            + ", ".join(AXES)),
    *(
        _search(f"max-{axis}", "count", f"Largest {axis}", _USUAL.get(axis, ""))
        for axis in NUMBERS
    ),
    _search("min-headroom", "text", "Share of usable memory that must stay free, as 5%", "0%"),
    _search("rank", "text", "What comes first: the most tokens/s, the least time or cost", "tokens",
            choices=RANKS),
)  # fmt: skip
