"""memcalc compare: the rows, their order, what is marked, every form of output, and bad input."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex

import pytest

from memcalc.cli.chart_options import VALUES
from memcalc.cli.charts.compare import EXACT
from memcalc.planning.compare_columns import COLUMNS
from memcalc.planning.rows import KEYS
from memcalc.units import GIB

#: Two layers of gpt2 on a 24 GiB card: two micro-batches fit, one does not, one is refused (5 of 12 heads).
_SMALL = (
    "compare",
    "gpt2",
    "--layers",
    "2",
    "--gpu",
    "4090",
    "--seq",
    "256",
    "--attention",
    "eager",
)
_LINE = (*_SMALL, "--micro-batch", "1,8,2000")


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    from memcalc.cli.app import parse_arguments
    from memcalc.cli.charts.compare import comparison

    return comparison(parse_arguments("compare", list(_LINE[1:])))


def rows_of(text: str) -> list[list[str]]:
    """Cells of a plain table: the lines between its rule and the next blank line."""
    lines = text.splitlines()
    rule = next(at for at, line in enumerate(lines) if line.startswith("-----"))
    until = lines.index("", rule)
    return [re.split(r"\s{2,}", line.strip()) for line in lines[rule + 1 : until]]


def test_rows_are_those_of_estimate(memcalc, found) -> None:  # type: ignore[no-untyped-def]
    for row in found["rows"]:
        alone = memcalc(*shlex.split(row["command"])[1:], "--json").json
        assert alone["memory"]["device_used_bytes"] == row["device_used_bytes"]
        assert alone["memory"]["headroom_bytes"] == row["headroom_bytes"]
        assert alone["verdict"] == row["verdict"] and alone["fits"] == row["fits"]
        for key in ("step_s", "low_s", "high_s", "tokens_per_s", "mfu", "calibration"):
            assert alone["time"][key] == row[key]


def test_what_fits_comes_first_the_fastest_of_it_on_top(found) -> None:  # type: ignore[no-untyped-def]
    assert [row["labels"]["micro-batch"] for row in found["rows"]] == ["8", "1", "2000"]
    assert [row["fits"] for row in found["rows"]] == [True, True, False]
    assert found["best"] == found["rows"][0] and found["fits_count"] == 2 and found["count"] == 3


def test_what_does_not_fit_is_in_order_of_what_it_lacks(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = (*_SMALL, "--micro-batch", "3000,1,2000,2500", "--json")
    rows = memcalc(*words).json["rows"]
    assert [row["labels"]["micro-batch"] for row in rows] == ["1", "2000", "2500", "3000"]


def test_the_table_shows_the_rows_and_marks_the_best(memcalc, found) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*_LINE)
    assert outcome.status == 0 and outcome.out.isascii()
    assert max(map(len, outcome.out.splitlines())) <= 80
    shown = rows_of(outcome.out)
    for row, cells in zip(found["rows"], shown, strict=True):
        used = f"{row['device_used_bytes'] / GIB:,.2f}"
        assert cells[:2] in ([row["labels"]["micro-batch"], mark + used] for mark in ("", "*"))
        assert cells[3].lstrip("*") == f"{row['tokens_per_s']:,.0f}"
        assert cells[4].lstrip("*") == f"{100 * row['mfu']:.1f}%"
    marked = [[cell.startswith("*") for cell in cells] for cells in shown]
    # the fastest is the first row, the least memory the second; what does not fit is best in nothing
    assert marked == [
        [False, False, False, True, True], [False, True, False, False, False], [False] * 5,
    ]  # fmt: skip
    assert "*: best of the column among what fits" in outcome.out


def test_what_does_not_fit_says_by_how_much(memcalc, found) -> None:  # type: ignore[no-untyped-def]
    last = found["rows"][-1]
    short = (last["device_used_bytes"] - last["usable_bytes"]) / GIB
    assert rows_of(memcalc(*_LINE).out)[-1][2] == f"short {short:,.1f} GiB"


def test_the_bands_and_the_calibration_stand_below(memcalc, found) -> None:  # type: ignore[no-untyped-def]
    row, (band,) = found["rows"][0], found["bands"]
    assert band["low_share"] == pytest.approx(row["low_s"] / row["step_s"] - 1)
    assert band["high_share"] == pytest.approx(row["high_s"] / row["step_s"] - 1)
    text = " ".join(memcalc(*_LINE).out.split())
    less, more = f"{-band['low_share']:.0%}", f"{band['high_share']:.0%}"
    assert f"rates default-ada, {less} less to {more} more" in text


def test_refused_setups_come_last_with_their_reason(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = (*_SMALL, "--set", "model.vocab_size=50304", "--tp", "5,2,1")
    outcome = memcalc(*words)
    assert outcome.status == 0
    table, _, refused = outcome.out.partition("Refused\n")
    assert len(rows_of(table)) == 2
    assert "tp=5 does not divide 12 heads" in " ".join(refused.split())
    rows = memcalc(*words, "--json").json["rows"]
    assert [row["labels"]["tp"] for row in rows if row["reason"]] == ["5"] and rows[-1]["reason"]
    assert all(rows[-1][key] is None for key in ("fits", "device_used_bytes", "step_s"))


def test_nothing_fits_is_said_and_no_error(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*_SMALL, "--micro-batch", "2000,3000")
    assert outcome.status == 0
    assert "nothing fits: the closest is" in outcome.out and "*" not in outcome.out
    found = memcalc(*_SMALL, "--micro-batch", "2000,3000", "--json").json
    assert found["fits_count"] == 0 and found["best"] is None and found["best_values"] == {}


def test_without_a_gpu_there_is_memory_and_no_verdict(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("compare", "gpt2", "--layers", "2", "--seq", "64", "--micro-batch", "4,1")
    outcome = memcalc(*words)
    assert outcome.status == 0 and "no GPU named: memory only, no verdict" in outcome.out
    assert [cells[0] for cells in rows_of(outcome.out)] == ["1", "4"]  # the least memory first
    assert memcalc(*words, "--json").json["fits_count"] is None


def test_a_price_adds_the_cost_of_a_million_tokens(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = (*_SMALL, "--gpus", "2", "--fsdp", "--micro-batch", "1,8", "--price", "3")
    row = memcalc(*words, "--json").json["rows"][0]
    assert row["gpus"] == 2
    assert row["usd_per_million_tokens"] == pytest.approx(3 * 2 / 3600 / row["tokens_per_s"] * 1e6)
    text = memcalc(*words).out
    assert "M tokens" in text and "tokens/s" in text and "a GPU" in text
    assert "cost: at 3 USD an hour of a GPU" in text
    assert "M tokens" not in memcalc(*words[:-2]).out


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("memory", ["1", "8", "2000"]),
        ("-memory", ["2000", "8", "1"]),
        ("headroom", ["1", "8", "2000"]),
        ("tokens-per-s", None),
        ("micro-batch", ["1", "8", "2000"]),
        ("-micro_batch", ["2000", "8", "1"]),
        ("fits", ["1", "8", "2000"]),
    ],
)
def test_rows_can_be_sorted_by_any_column(memcalc, sort: str, order: list[str] | None) -> None:  # type: ignore[no-untyped-def]
    rows = memcalc(*_LINE, "--sort", sort, "--json").json["rows"]
    if order is None:
        speeds = [row["tokens_per_s"] for row in rows]
        assert speeds == sorted(speeds, reverse=True)
    else:
        assert [row["labels"]["micro-batch"] for row in rows] == order


def test_top_keeps_the_first_rows_and_says_so(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*_LINE, "--top", "2")
    assert len(rows_of(outcome.out)) == 2
    assert "1 of 3 rows left out by --top" in outcome.out
    assert memcalc(*_LINE, "--top", "2", "--json").json["fits_count"] == 2


def test_columns_are_those_asked_for(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*_LINE, "--columns", "requested,step-time,bound")
    assert [len(cells) for cells in rows_of(outcome.out)] == [4, 4, 4]
    header = memcalc(*_LINE, "--columns", "requested,bound", "--csv").out.splitlines()[0]
    assert header == "micro-batch,peak_requested_bytes,bound,reason"
    assert set(VALUES) <= set(COLUMNS)
    for column in COLUMNS.values():
        assert column.key in KEYS


def test_csv_has_every_figure_and_a_column_for_each_option(memcalc, found) -> None:  # type: ignore[no-untyped-def]
    table = list(csv.DictReader(io.StringIO(memcalc(*_LINE, "--csv").out)))
    assert [line["micro-batch"] for line in table] == ["8", "1", "2000"]
    for line, row in zip(table, found["rows"], strict=True):
        assert int(line["device_used_bytes"]) == row["device_used_bytes"]
        assert float(line["low_s"]) == row["low_s"] and float(line["high_s"]) == row["high_s"]
        assert line["fits"] == str(row["fits"]).lower() and line["command"] == row["command"]


def test_markdown_has_the_table_with_the_best_in_bold(memcalc, found) -> None:  # type: ignore[no-untyped-def]
    lines = memcalc(*_LINE, "--markdown").out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3 and len({line.count("|") for line in table}) == 1
    assert f"**{found['rows'][0]['tokens_per_s']:,.0f}**" in table[2]
    assert "**" not in table[4]


@pytest.mark.parametrize("ending", ["json", "csv", "md", "txt"])
def test_the_ending_of_a_file_says_the_form(memcalc, tmp_path, ending: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / f"table.{ending}"
    outcome = memcalc(*_LINE, "-o", path)
    assert outcome.status == 0 and outcome.out == ""
    flags = {"json": ["--json"], "csv": ["--csv"], "md": ["--markdown"], "txt": []}
    assert path.read_text() == memcalc(*_LINE, *flags[ending]).out


def test_json_is_the_object_the_rest_is_written_from(memcalc, found) -> None:  # type: ignore[no-untyped-def]
    assert memcalc(*_LINE, "--json").json == json.loads(json.dumps(found))
    assert [column["name"] for column in found["columns"]][0] == "micro-batch"
    assert all(set(KEYS) <= set(row) for row in found["rows"])


def test_quiet_is_one_line(memcalc, found) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*_LINE, "--quiet")
    assert outcome.out.startswith("cases 3 fit 2 refused 0 tokens_per_s_per_gpu ")
    assert outcome.out.endswith(f"best {found['best']['command']}\n") and outcome.err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sort", "speed"), "--sort: got 'speed'"),
        (("--sort", "seq"), "--sort: got 'seq'"),
        (("--columns", "memory,nothing"), "--columns: got 'nothing'"),
        (("--columns", ","), "names of columns"),
        (("--top", "0"), "at least 1"),
        (("--price", "0"), "--price: got 0; rule: above 0"),
        (("--json", "--csv"), "one form of output"),
        (("-o", "table.png"), "memcalc chart compare"),
        (("-o", "table.csv", "--json"), "with --json"),
        (("-o", "nowhere/table.csv"), "cannot write"),
        (("--tp", "5,7"), "does not divide 12 heads"),
    ],
)
def test_bad_input_is_one_line_and_status_2(memcalc, words, said: str) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*_LINE, *words)
    assert outcome.status == 2 and said in outcome.error


def test_chart_compare_without_a_file_is_text(memcalc, found) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("chart", "compare", *_LINE[1:])
    assert outcome.status == 0 and outcome.out.isascii()
    assert max(map(len, outcome.out.splitlines())) <= 80
    for row in found["rows"]:
        assert f"{row['device_used_bytes'] / GIB:,.2f} GiB" in outcome.out
    assert memcalc("chart", "compare", *_LINE[1:], "--json").json["rows"] == found["rows"]


def test_help_has_examples_and_every_kind_completes(memcalc, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from memcalc.cli.chart_options import KINDS

    for command in ("compare", "chart", "report"):
        assert f"memcalc {command} " in memcalc(command, "--help").out
    monkeypatch.setenv("_MEMCALC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "memcalc chart ")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert set(KINDS) <= set(memcalc("chart").out.split())


def test_more_cases_than_are_priced_one_by_one_give_the_same_figures(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("--layers", "2", "--gpu", "4090", "--seq", "64,128", "--micro-batch", "1..60")
    found = memcalc("compare", "gpt2", *words, "--json").json
    assert len(found["rows"]) == 120 > EXACT and "seq" not in found["subtitle"]
    for row in (found["rows"][0], found["rows"][77]):
        alone = memcalc(*shlex.split(row["command"])[1:], "--json").json
        for key in ("peak_requested_bytes", "peak_allocated_bytes", "device_used_bytes"):
            assert alone["memory"][key] == row[key]
        assert alone["time"]["step_s"] == pytest.approx(row["step_s"], rel=1e-9)
        assert alone["verdict"] == row["verdict"]
