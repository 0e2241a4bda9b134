"""The report's statistics by hand, its records, and the files it takes reasons and tests from."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from memcalc.accuracy.proof import records
from memcalc.accuracy.proof.items import Class, Item, ours, scored, stats, theirs
from memcalc.accuracy.rows import published_rows, read_rows

ROOT = Path(__file__).parents[2]
ITEMS = (
    Item("a", "first", "one", 10.0, 40.0, 0.5, part="one"),
    Item("b", "its twin", "one", -20.0, None, 0.5, part="one"),
    Item("c", "alone", "two", 2.0, -4.0, 1.0, part="two"),
)


def test_statistics_are_weighted_by_measurement() -> None:
    found = stats(ITEMS, ours)
    assert found is not None
    assert found["mean_pct"] == pytest.approx((5 + 10 + 2) / 2)
    assert found["bias_pct"] == pytest.approx((5 - 10 + 2) / 2)
    assert (found["worst_pct"], found["n"], found["measurements"]) == (20.0, 3, 2.0)
    other = stats(ITEMS, theirs)
    assert other is not None and other["n"] == 2 and other["worst_pct"] == 40.0
    assert stats((), ours) is None


def test_a_class_names_its_worst_rows_with_their_reasons() -> None:
    found = scored(Class("g", "n", "figures", ITEMS), {"b": "known"})
    assert [(row["id"], row["why"]) for row in found["worst"]] == [
        ("b", "known"), ("a", None), ("c", None),
    ]  # fmt: skip
    assert found["sources"] == {
        "n": 2,
        "mean_pct": pytest.approx(8.5),
        "bias_pct": pytest.approx(-1.5),
    }
    assert list(found["parts"]) == ["one", "two"] and found["equal"] == 0


#: Classes whose bytes are not all equal: the most a row lies off, in percent. A loss that is summed and lists
#: on the host are some bytes; the compiler's order inside backward is not followed; a bound of loading.
APART = {
    "peak of a rank: pipeline": 0.1,
    "saved for backward, transformers, autocast": 0.002,
    "peak over parameters, transformers, autocast": 0.002,
    "torch-compile: peak of a step, blocks decide": 5.35,
    "torch-compile: peak of a step, chosen": 1.0,
    "compiled layers of torchtune, torchtitan: peak": 8.0,
    "loading by from_pretrained: peak": 7.0,
}


def test_the_exact_records_are_all_there_and_equal() -> None:
    classes = {one.name: one for one in records.exact(records.folder())}
    assert len(classes) == 44
    assert sum(len(one.items) for one in classes.values()) == 3521
    for name, one in classes.items():
        off = [item for item in one.items if item.error]
        assert bool(off) == (name in APART), name
        assert all(abs(item.error) < APART[name] for item in off), name
    rows = [item.id for item in classes["peak of a rank: pipeline"].items if item.error]
    assert all(": zb" in row or "dualpipe" in row for row in rows)  # the loss that is summed
    rows = [i.id for name in APART if "autocast" in name for i in classes[name].items if i.error]
    assert all("falcon" in row for row in rows)


def test_a_class_without_a_closed_form_has_none() -> None:
    classes = {one.name: one for one in records.exact(records.folder())}
    found = scored(classes["evaluation: peak over what stands"], {})
    assert found["textbook"] is None and found["memcalc"]["n"] == found["equal"] == 16


def test_clocks_and_kernels_are_read() -> None:
    names = {one.name: len(one.items) for one in records.clocks(records.folder())}
    assert names["step, decoders drawn"] == 40 and len(names) == 3
    rows = records.kernels()
    assert {"bf16", "attention", "all_reduce"} <= {row["kernel"] for row in rows}
    assert all(row["n"] > 0 and row["plain_mean_pct"] > 0 for row in rows)


def test_reasons_are_of_rows_that_there_are() -> None:
    text = (ROOT / "benchmarks" / "report" / "reasons.toml").read_text("utf-8")
    reasons = tomllib.loads(text)["reason"]
    known = {row.id for row in read_rows(published_rows()).rows}
    known |= {item.id for one in records.exact(records.folder()) for item in one.items}
    assert set(reasons) <= known
    for said in reasons.values():
        if said.startswith("as R"):
            assert said.removeprefix("as ") in reasons


def test_what_tests_hold_names_tests_that_there_are() -> None:
    rows = tomllib.loads((ROOT / "benchmarks" / "report" / "held.toml").read_text("utf-8"))["row"]
    assert len(rows) > 20
    for row in rows:
        assert row["n"] and row["result"]
        for test in row["tests"]:
            assert (ROOT / test).is_file(), test
