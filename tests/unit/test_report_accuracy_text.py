"""REPORT.md's tables and charts from a small object: figures as they are printed, pictures the same twice."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.accuracy.proof.items import Class, Item, scored
from memcalc.output.accuracy_report import report_text
from memcalc.output.accuracy_report_parts import classes_table, percent, verdicts, worst
from memcalc.output.charts import house
from memcalc.output.charts.accuracy_report import DRAW, chart_objects

ITEMS = [
    Item("R1", "a | b", "one", 12.34, -250.0, measured=1e6, part="one"),
    Item("R2", "c", "two", 0.0, 3.0, measured=2e7, part="two"),
]


def _found() -> dict[str, Any]:
    classes = [
        scored(Class("Exact: held against an oracle", "bytes", "PyTorch", ITEMS), {"R1": "known"}),
        scored(Class("A GPU of our own", "allocated", "not measured yet", ()), {}),
    ]
    points = [
        {"group": "Exact: held against an oracle", "name": "bytes",
         "error_pct": [item.error for item in ITEMS],
         "textbook_pct": [item.textbook for item in ITEMS],
         "measured": [item.measured for item in ITEMS]},
    ]  # fmt: skip
    held = {"n": 2, "inside": 1, "share": 0.5, "width": 0.2}
    tested = {"all": held, "sources": held, "parts": held, "by_source": {"one": [1, 2]}}
    runs = [{"id": "R1", "source": "one", "factor": 1.1, "low": 0.9, "high": 1.2},
            {"id": "R2", "source": "one", "factor": 1.4, "low": 0.9, "high": 1.2}]  # fmt: skip
    bands = {
        "step time": tested, "driver-used memory": tested, "runs": runs,
        "classes": [{"stack": "", "architecture": "ampere", "low": 0.9, "high": 1.1, "setups": 20}],
        "memory": {"low": 0.9, "high": 1.1, "setups": 2},
    }  # fmt: skip
    return {
        "memcalc": "0.1.0", "short": False, "counts": {"rows": 3, "pairs": 2, "left": 1},
        "classes": classes, "kinds": {}, "devices": {}, "kernels": [], "bands": bands, "points": points,
        "verdicts": {"n": 4, "memcalc": 4, "textbook": 3, "wrong": []},
        "fitted": {"sources": ["x", "y"], "serving": "z"}, "held": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "signed", "said"),
    [
        (0, True, "0"), (0.01, False, "< 0.1"), (-0.01, True, "-0.0"), (4.26, False, "4.3"),
        (4.26, True, "+4.3"), (-99.94, True, "-99.9"), (12345.6, False, "12,346"), (None, False, ""),
    ],
)  # fmt: skip
def test_figures_as_they_are_printed(value: float | None, signed: bool, said: str) -> None:
    assert percent(value, signed) == said


def test_a_class_without_figures_says_that_it_is_not_measured() -> None:
    lines = list(classes_table(_found()["classes"]))
    assert lines[2].startswith("| bytes | PyTorch | 2 | 6.2 | 6.2 | +6.2 | 12.3 | 12.3 | 126 |")
    assert lines[3].startswith("| allocated | not measured yet | 0 | not measured yet |")


def test_the_worst_rows_have_their_reasons_and_cells_stay_cells() -> None:
    found = _found()
    [line] = worst(found["classes"])[2:]
    assert line == "| bytes | R1 | a \\| b | +12.3 | -250 | known |"
    assert "100.0 %" in next(iter(verdicts(found["verdicts"])))


def test_the_document_has_every_section_and_its_pictures() -> None:
    found = _found()
    text = report_text(found, {name: f"report/{name}.png" for name in chart_objects(found)})
    for said in ("## A GPU of our own", "## Printed bands", "1 of 2 figures", "report/bands.png"):
        assert said in text, said
    assert text == report_text(found, {name: f"report/{name}.png" for name in chart_objects(found)})


@pytest.mark.parametrize("name", DRAW)
def test_a_chart_is_the_same_bytes_twice(name: str) -> None:
    one = chart_objects(_found())[name]
    assert house.picture(one, DRAW[name], "png") == house.picture(one, DRAW[name], "png")
