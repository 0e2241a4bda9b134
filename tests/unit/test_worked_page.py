"""The page of worked cases, and that its tables leave nothing out: cases, reasons, sources, tests."""

from __future__ import annotations

import re

import pytest

from benchmarks.worked.__main__ import main
from benchmarks.worked.case import (
    ROOT,
    Figure,
    Found,
    answer,
    as_value,
    difference,
    evaluate,
    written,
)
from benchmarks.worked.cases import CASES, KINDS, name_of_test
from benchmarks.worked.page import PAGE, figures, ours_on, page
from benchmarks.worked.sources import SOURCES
from tests.unit.worked_support import STALE

#: How many cases there are of each letter.
NUMBERS = {"W": 16, "P": 9, "D": 13, "R": 3, "U": 5, "I": 4, "A": 6}


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_no_case_is_left_out() -> None:
    wanted = [f"{letter}{n}" for letter, most in NUMBERS.items() for n in range(1, most + 1)]
    assert [case.number for case in CASES] == wanted


def test_the_page_is_of_these_tables(text: str) -> None:
    """Its figures are compared where they are computed, with each case."""
    assert page(ours_on(text)) == text, STALE


def test_a_page_with_another_figure_or_reason_is_another_page(text: str) -> None:
    ours = ours_on(text)
    changed = ["1.5" if one == "13.48" else one for one in ours]
    assert changed != ours and page(changed) != text
    assert ours_on(page(changed)) == changed
    with pytest.raises(ValueError, match="shorter"):
        page(ours[:-1])


@pytest.mark.parametrize("case", CASES, ids=[case.number for case in CASES])
def test_every_test_that_is_named_exists(case) -> None:  # type: ignore[no-untyped-def]
    for name in (name_of_test(case).partition("[")[0], *case.tests):
        path, _, function = name.partition("::")
        path = path if path.startswith("tests/") else f"tests/unit/{path}"
        code = (ROOT / path).read_text(encoding="utf-8")
        assert not function or re.search(rf"^def {function}\(", code, re.MULTILINE), name


def test_sources_are_public_and_all_are_used() -> None:
    assert {key for case in CASES for key in case.source.split(", ")} == set(SOURCES)
    assert not re.search(r"[\s`(](/work|/root|/tmp|/home)", PAGE.read_text(encoding="utf-8"))


def test_every_figure_is_asked_once_a_case() -> None:
    for case in CASES:
        asked = [figure.asked for figure in case.figures]
        assert len(asked) == len(set(asked)), case.number


def test_bands_hold_the_sources_figure() -> None:
    """An interval that ours must lie in is around theirs, or says why it is not."""
    for case, figure in figures():
        band, theirs = figure.allowed, figure.theirs
        if (
            isinstance(band, tuple)
            and isinstance(theirs, float)
            and not band[0] <= theirs <= band[1]
        ):
            assert figure.why and figure.shown, (case.number, figure.asked)
        if band is None:
            assert figure.why, (case.number, figure.asked)


def found(theirs: object, ours: object, allowed: object) -> Found:
    return Found(Figure("", theirs, "", (), "", allowed), ours, True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("theirs", "ours", "allowed", "holds"),
    [
        (10.0, 10.0, 0.0, True),
        (10.0, 10.001, 0.0, False),
        (10.0, 11.4, 0.15, True),
        (10.0, 11.6, 0.15, False),
        (10.0, 8.4, 0.15, False),
        ((16.0, 20.0), 20.1, (16.0, 20.0), False),
        (3.0, 0.8, (0.6, 1.6), True),
        ("fits", "fits", 0.0, True),
        ("yes", "no", 0.0, False),
        (990.0, 12_000.0, None, True),
    ],
)
def test_what_a_case_allows(theirs: object, ours: object, allowed: object, holds: bool) -> None:
    assert found(theirs, ours, allowed).allowed is holds


def test_differences() -> None:
    assert difference(10.0, 11.0) == pytest.approx(0.1)
    assert difference((16.0, 20.0), 18.0) == 0
    assert difference((16.0, 20.0), 22.0) == pytest.approx(0.1)
    assert difference((16.0, 20.0), 8.0) == pytest.approx(-0.5)
    assert difference(0.0, 0.0) == 0 and difference(0.0, 1.0) == float("inf")
    assert difference("yes", 1.0) is None


@pytest.mark.parametrize(
    "value", [0.0, 14.0, 13.476831232, 82_432.0, 0.5833333, 34_359_738_368.0, 1536.5]
)
def test_a_written_figure_reads_back(value: float) -> None:
    again = as_value(written(value))
    assert isinstance(again, float) and again == pytest.approx(value, rel=5e-4)
    assert written(again) == written(value)


def test_words_stay_words() -> None:
    assert as_value(written("--pp --tp")) == "--pp --tp" and as_value("1.2.3") == "1.2.3"


def test_commands_that_are_refused_are_no_answers() -> None:
    with pytest.raises(RuntimeError, match="status 2"):
        answer("estimate no-such-model")


def test_expressions_see_the_json_and_little_else() -> None:
    command = ("mfu --tflops 100 --gpu a100-80gb",)
    assert evaluate("flops_ratio.ratio", command) == 100 / 312
    assert evaluate("second.flops_ratio.ratio + GB", command * 2) == 100 / 312 + 1e9
    for expression in ("__import__('os')", "open('x')", "nothing"):
        with pytest.raises((NameError, AttributeError)):
            evaluate(expression, command)


def test_single_cases_are_printed_and_the_page_is_left_alone(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert main(["U1", "U2"]) == 0
    said = capsys.readouterr().out
    assert "U1 utilisation" in said and "1,536" in said and "NOT ALLOWED" not in said
    assert main(["W99"]) == 2
    assert PAGE.read_text(encoding="utf-8") == text


def test_letters_have_tables_and_headings(text: str) -> None:
    for letter, (heading, cases, _) in KINDS.items():
        assert f"## {heading}\n" in text
        assert all(case.number.startswith(letter) for case in cases)
        assert all(f"### {case.number} {case.about}\n" in text for case in cases)
