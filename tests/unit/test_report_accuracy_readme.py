"""Every figure of README's table "How exact" is found in REPORT.md, on lines that count the same rows.

A figure agrees where a figure of the report rounds to it. Lines of the report that belong to a row of README
are those that hold one of its n as a number of their own. Rows that tests alone hold state what
benchmarks/report/held.toml states.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPORT = (ROOT / "benchmarks" / "REPORT.md").read_text("utf-8").splitlines()
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])")
#: What in a result is no figure of accuracy: names and references.
_ASIDE = re.compile(r"\(\[[^)]*\)\)?|\[[^]]*\]\([^)]*\)|`[^`]*`")
_WORDS = {"nine of ten": ""}


def readme_rows() -> list[list[str]]:
    text = (ROOT / "README.md").read_text("utf-8")
    table = text.partition("## How exact")[2].partition("\n\n")[2].partition("\n\n")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def figures(text: str) -> list[str]:
    for words, other in _WORDS.items():
        text = text.replace(words, other)
    return [number.replace(",", "") for number in _NUMBER.findall(_ASIDE.sub(" ", text))]


def agrees(stated: str, shown: str) -> bool:
    """Whether a figure of the report rounds to the README's, whatever the sign it is written with."""
    if stated == shown:
        return True
    if "e" in stated or "e" in shown:
        return float(stated) == float(shown)
    digits = len(stated.partition(".")[2])
    value, other = float(stated), float(shown)
    signed = stated[0] in "+-"
    return abs((other if signed else abs(other)) - value) <= 0.5 * 10**-digits + 1e-9


def missing(row: list[str]) -> list[str]:
    """Figures of a row's n and result that its lines of the report do not have."""
    counted = figures(row[2].replace(" x ", " "))
    factor = row[2].partition(" x ")[0] if " x " in row[2] else None
    counts = {one for one in counted if one != factor}
    lines = [figures(line) for line in REPORT]
    near = {number for found in lines if counts & set(found) for number in found}
    wanted = [*counted, *figures(row[3])]
    return [one for one in wanted if one != factor and not any(agrees(one, n) for n in near)]


def test_the_table_is_read() -> None:
    rows = readme_rows()
    assert len(rows) > 25 and all(len(row) == 4 for row in rows), [r for r in rows if len(r) != 4]


@pytest.mark.parametrize("row", readme_rows(), ids=lambda row: row[0][:40])
def test_figures_of_the_readme_are_in_the_report(row: list[str]) -> None:
    assert not missing(row), row


def test_a_wrong_figure_is_seen() -> None:
    memory = next(row for row in readme_rows() if row[0].startswith("memory of published"))
    assert not missing(memory)
    assert missing([*memory[:3], memory[3].replace("4.3", "3.9")]) == ["3.9"]
    assert missing([memory[0], memory[1], "69", memory[3]])


def test_rows_that_tests_hold_are_those_of_the_report() -> None:
    text = (ROOT / "benchmarks" / "report" / "held.toml").read_text("utf-8")
    held = {row["what"]: (row["n"], row["result"]) for row in tomllib.loads(text)["row"]}
    shared = 0
    for what, _, count, result in readme_rows():
        if what in held:
            shared += 1
            plain = re.sub(r" ?\(?\[[^]]*\]\([^)]*\)\)?", "", result)
            assert (count, plain) == held[what], what
    assert shared >= 20
