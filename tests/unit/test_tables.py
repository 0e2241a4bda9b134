"""Rows as CSV and Markdown: columns of all rows, labels spread, nothing that breaks a table."""

from __future__ import annotations

import csv
import io

from memcalc.output.tables import csv_text, flat, markdown_text

ROWS = [
    {
        "labels": {"gpu": "h100", "tp": "2"},
        "fits": True,
        "parts": {"loss": 5, "buffers": 0},
        "gpu": "x",
    },
    {
        "labels": {"tp": "4"},
        "fits": None,
        "reason": 'a "b", c|d\ne',
        "parts": {},
        "layers": [[0, 3]],
    },
]


def test_labels_become_columns_and_yield_to_the_rows_own() -> None:
    row = flat(ROWS[0])
    assert row == {"tp": "2", "fits": True, "parts.loss": 5, "parts.buffers": 0, "gpu": "x"}


def test_csv_reads_back() -> None:
    found = list(csv.DictReader(io.StringIO(csv_text(ROWS))))
    assert [row["tp"] for row in found] == ["2", "4"]
    assert found[0]["parts.loss"] == "5" and found[0]["fits"] == "true"
    assert found[1]["parts.loss"] == "" and found[1]["reason"] == 'a "b", c|d\ne'
    assert found[1]["layers"] == "[[0, 3]]"


def test_markdown_keeps_one_line_a_row() -> None:
    lines = markdown_text(ROWS).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "c\\|d e" in lines[3]
    columns = [cell.strip() for cell in lines[0].split("|")]
    aligned = [cell.strip() for cell in lines[1].split("|")]
    assert aligned[columns.index("parts.loss")] == "---:" and aligned[columns.index("tp")] == "---"
