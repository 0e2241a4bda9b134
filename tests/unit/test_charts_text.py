"""Charts as text: shares to a character, plain characters in a pipe, nothing wider than the page."""

from __future__ import annotations

import pytest
from rich.text import Text

from memcalc.output.charts.palette import CATEGORIES, name_of
from memcalc.output.charts.text import COLOURS, area, bars, put_key, shortened, stacked
from memcalc.output.console import Page
from memcalc.units import GIB


def test_every_category_has_a_letter_of_its_own() -> None:
    assert set(COLOURS) == set(CATEGORIES)
    assert len({letter for _, letter in COLOURS.values()}) == len(COLOURS)


@pytest.mark.parametrize("fancy", [False, True])
def test_a_stacked_bar_gives_each_its_share(fancy: bool) -> None:
    page = Page(fancy)
    bar = stacked(page, {"parameters": 25, "loss": 50, "context": 0.4}, 100, 40)
    assert len(bar) == 30  # 75.4 of 100
    assert bar.plain == ("█" * 30 if fancy else "P" * 10 + "L" * 20)


def test_bars_share_a_scale_and_stay_on_the_page() -> None:
    page = Page(False)
    bars(page, [("a long label " * 9, 10, "10 GiB"), ("b", 5, "5 GiB"), ("c", -1, "-")])
    lines = page.text().splitlines()
    counts = [line.count("#") for line in lines]
    assert counts[0] == pytest.approx(2 * counts[1], abs=1) and counts[2] == 0
    assert max(map(len, lines)) <= 80 and page.text().isascii()


def test_an_area_is_as_high_as_its_columns() -> None:
    page = Page(False)
    left = area(page, [{"parameters": GIB, "loss": GIB}, {"parameters": GIB, "loss": 0}], 4)
    lines = [line[left:] for line in page.text().splitlines()]
    assert [line.ljust(2) for line in lines[:4]] == ["L ", "L ", "PP", "PP"]
    assert page.text().startswith("2.0 GiB")


def test_a_key_breaks_between_names() -> None:
    page = Page(False)
    put_key(page, CATEGORIES)
    lines = page.text().splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) > 1
    for category in CATEGORIES:
        entry = f"{COLOURS[category][1]} {name_of(category)}"
        assert any(entry in line for line in lines), entry


def test_a_long_label_keeps_its_ends() -> None:
    assert shortened("abcdefghij", 6) == "ab..ij" and shortened("abc", 6) == "abc"


def test_a_narrow_terminal_cuts_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("parameters", "0.46 GiB", "497,759,232", "of the model")]
    columns = ("At the peak", ">size", ">bytes", "meaning")
    monkeypatch.setenv("COLUMNS", "40")
    narrow = Page(True)
    narrow.table(columns, rows)
    assert "497,759,232" in narrow.text() and "0.46 GiB" in narrow.text()
    narrow.line("words " * 12)
    assert max(len(line) for line in narrow.text().splitlines()[-2:]) <= 40  # text still folds
    monkeypatch.setenv("COLUMNS", "60")
    fits = Page(True)
    fits.table(columns, [(*rows[0][:3], "of the model " * 4)])
    lines = Text.from_ansi(fits.text()).plain.splitlines()
    assert max(map(len, lines)) <= 60 and len(lines) > 3  # room enough: the last column folds


def test_parts_of_a_page_are_one_empty_line_apart() -> None:
    page = Page(False)
    page.table(("a", ">b"), [("1", "2")])
    page.line()
    page.line("next")
    assert page.text() == "a   b\n-----\n1   2\n\nnext\n"
