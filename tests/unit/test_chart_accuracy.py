"""The accuracy chart: rows and records as points, errors and scores as `memcalc accuracy` has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.accuracy.groups import FITTED_SOURCES
from memcalc.cli.app import parse_arguments
from memcalc.cli.charts.accuracy import found as found_of
from memcalc.engine.make_plan import plan_of
from memcalc.errors import ConfigError
from memcalc.harness.record_head import new_record
from memcalc.harness.records import append_all
from memcalc.inputs.models import load_model
from memcalc.output.charts.accuracy import draw, page
from memcalc.output.charts.house import drawn
from memcalc.output.console import render
from memcalc.planning.charts.accuracy import EDGES, histogram
from memcalc.units import GIB
from tests.unit.accuracy_rows import SMALL, write
from tests.unit.charts_support import assert_nothing_is_cut_off, legend_names

SETUP = TrainingSetup(seq_len=128, micro_batch_size=2, num_layers=2, precision="bf16")
_RATE = {"mem_gb": None, "mem_kind": None, "gpu": "h100", "n_gpus": 1, "stack": "torch"}


def _found(*words: object) -> dict[str, Any]:
    command = parse_arguments("chart", ["accuracy", *map(str, words)])
    found: dict[str, Any] = json.loads(json.dumps(found_of(command)))
    return found


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Memory exact, 2 % high and of unknown kind; speed 3 % high, a step 100 % fast, a fitted source."""
    right = estimate("gpt2", SETUP).memory.peak_allocated_bytes / GIB
    time = estimate("gpt2", SETUP, gpu="h100-80gb").time
    assert time.tokens_per_s_per_gpu is not None and time.step_s is not None
    rate = time.tokens_per_s_per_gpu
    return write(tmp_path_factory.mktemp("rows") / "own.csv", [
        {**SMALL, "mem_gb": right},
        {**SMALL, "id": "two", "mem_gb": right / 1.02, "seq": 128, "grad_accum": 1},
        {**SMALL, "id": "three", "mem_gb": right / 1.5, "mem_kind": "unknown"},
        {**SMALL, **_RATE, "id": "four", "tokens_per_s_per_gpu": rate / 1.03},
        {**SMALL, **_RATE, "id": "five", "step_s": 2 * time.step_s, "source": "theirs"},
        {**SMALL, **_RATE, "id": "six", "tokens_per_s_per_gpu": rate / 1.07,
         "source": FITTED_SOURCES[0]},
        {**SMALL, "id": "seven", "run": "decode"},
    ])  # fmt: skip


@pytest.fixture(scope="module")
def found(rows: Path) -> dict[str, Any]:
    return _found("--rows", rows)


def test_rows_are_the_figures_with_their_errors(found: dict[str, Any]) -> None:
    by_id = {row["id"]: row for row in found["rows"]}
    errors = {name: round(row["error_pct"], 3) for name, row in by_id.items()}
    assert errors == {"one": 0, "two": 2, "three": 50, "four": 3, "five": 100, "six": 7}
    assert [name for name, row in by_id.items() if not row["scored"]] == ["three"]
    assert [name for name, row in by_id.items() if row["fitted"]] == ["six"]
    assert found["counts"]["unexpressed"] == 1


def test_a_step_time_is_shown_as_the_tokens_it_means(found: dict[str, Any]) -> None:
    time = estimate("gpt2", SETUP, gpu="h100-80gb").time
    (row,) = (row for row in found["rows"] if row["id"] == "five")
    assert row["kind"] == "step_s" and row["unit"] == "tokens/s"
    assert row["predicted"] == pytest.approx(time.tokens_per_s_per_gpu)
    assert row["measured"] == pytest.approx(2 * 128 / (2 * (time.step_s or 0)))


def test_scores_leave_out_what_was_fitted_and_what_is_not_scored(found: dict[str, Any]) -> None:
    memory, rate = found["panels"]
    assert (memory["n"], memory["shown_only"], memory["fitted_n"]) == (2, 1, 0)
    assert memory["score"]["worst_pct"] == pytest.approx(2, abs=1e-4)
    assert (rate["n"], rate["fitted_n"]) == (2, 1)
    assert rate["score"]["worst_pct"] == pytest.approx(100) == rate["worst"][0]["error_pct"]
    assert rate["fitted_score"]["median_pct"] == pytest.approx(7)
    assert rate["within_pct"] == {"5": 0.5, "10": 0.5}
    assert found["fitted_sources"] == [FITTED_SOURCES[0]]


def test_a_bin_holds_its_lower_edge_and_what_is_beyond_is_counted() -> None:
    errors = [-50.1, -50, -0.01, 0, 4.99, 5, 49.9, 50, 300]
    made = histogram([{"error_pct": error} for error in errors])
    assert (made["below"], made["above"]) == (1, 2)
    assert {EDGES[i]: n for i, n in enumerate(made["counts"]) if n} == {-50: 1, -5: 1, 0: 2, 5: 1,
                                                                       45: 1}  # fmt: skip
    assert made["below"] + made["above"] + sum(made["counts"]) == len(errors)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_holds_every_figure(found: dict[str, Any], theme: str) -> None:
    figure = drawn(found, draw, theme)
    stated = {f"{row['what']} {row['kind']} {row['id']}": row for row in found["rows"]}
    seen = {}
    for axes in figure.axes:
        for dot in axes.collections:
            row = stated.get(str(dot.get_gid()))
            if row is not None:
                scale = GIB if row["unit"] == "bytes" else 1
                (at,) = dot.get_offsets()
                expected = [row["measured"] / scale, row["predicted"] / scale]
                assert list(at) == pytest.approx(expected)
                seen[dot.get_gid()] = bool(len(dot.get_facecolor())) and row["scored"]
    assert seen.keys() == stated.keys()
    assert [name for name, filled in seen.items() if not filled] == [
        "memory unknown three", "throughput tokens_per_s_per_gpu six",
    ]  # fmt: skip
    assert_nothing_is_cut_off(figure)
    names = legend_names(figure)
    assert {"h100", "of a source fitted to", "not scored", "1:1", "within 5 %"} <= {*names}


def test_the_histogram_in_the_picture_is_the_objects(found: dict[str, Any]) -> None:
    figure = drawn(found, draw)
    for panel in found["panels"]:
        name = f"error of predicted {panel['label']}, %"
        (axes,) = (axes for axes in figure.axes if axes.get_xlabel() == name)
        heights = [bar.get_height() for bar in axes.patches if bar.get_gid() == "scored"]
        assert heights == panel["histogram"]["counts"]
        fitted = [bar.get_height() for bar in axes.patches if bar.get_gid() == "fitted"]
        assert fitted in ([], panel["fitted_histogram"]["counts"])
        assert bool(fitted) is bool(panel["fitted_n"])


def test_guides_and_the_line_are_where_they_say(found: dict[str, Any]) -> None:
    for axes in drawn(found, draw).axes:
        lines = [line for line in axes.lines if line.get_gid() == "1:1"]
        for line in lines:
            assert list(line.get_xdata()) == list(line.get_ydata())
            bands = {g.get_gid(): g.get_paths()[0].vertices for g in axes.collections}
            for share in found["guides_pct"]:
                ratios = [y / x for x, y in bands[f"guide {share}"]]
                assert min(ratios) == pytest.approx(1 - share / 100)
                assert max(ratios) == pytest.approx(1 + share / 100)


def test_the_text_has_scores_and_the_worst_in_eighty_columns(found: dict[str, Any]) -> None:
    text = render(lambda sheet: page(sheet, found), to_file=True)
    assert max(map(len, text.split("\n"))) <= 80 and text.isascii()
    assert "above +50 %" in text and "+100.0 %" in text and FITTED_SOURCES[0] in text


def _record(kind: str, **more: Any) -> dict[str, Any]:
    """A run on a CPU of what SETUP says, its tensors a tenth above the estimate's."""
    plan = plan_of(load_model("gpt2"), SETUP, {"device": "cpu"})
    watched = estimate("gpt2", SETUP, kernels={"device": "cpu", "watched": True})
    peak = round(watched.memory.peak_requested_bytes * 1.1)
    device = {"type": "cpu", "name": "a CPU", "total_bytes": 1}
    memory = {"peak_requested_bytes": peak, "allocator": None}
    return {**new_record(kind, plan), "status": "ok", "device": device, "memory": memory,
            "time": {"tokens_per_s": 10.0}, **more}  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gpu = {"type": "cuda", "name": "NVIDIA H100 80GB HBM3", "total_bytes": 80 * GIB}
    compared = {"verified": True, "differences": [], "rows": [
        {"name": name, "predicted": predicted, "measured": measured}
        for name, predicted, measured in (
            ("peak requested", 7, 7), ("peak allocated", 21 * GIB, 20 * GIB),
            ("peak reserved", 24 * GIB, 24 * GIB), ("driver-used", 28 * GIB, None), ("tokens/s", 90.0, 100.0),
        )
    ]}  # fmt: skip
    verified = {"device": gpu, "comparison": compared, "memory": {"allocator": {}}}
    ranks = [
        {**verified, "rank": rank, "batch": {"id": "a", "ranks": 2}, "world": {"dp": 2},
         "memory": {"allocator": {}, "peak_allocated_bytes": 10 + rank}}
        for rank in (0, 1)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("records") / "runs.jsonl"
    append_all(path, [
        _record("measure"), _record("verify", **verified), _record("measure", status="oom"),
        *(_record("verify", **rank) for rank in ranks), {"schema": 1, "kind": "calibrate"},
    ])  # fmt: skip
    return path


def test_records_are_priced_or_hold_what_was_compared(records: Path) -> None:
    found = _found("--record", records)
    figures = [(row["id"], row["kind"], round(row["error_pct"], 2)) for row in found["rows"]]
    assert figures == [
        ("runs 1", "requested", round(100 * (1 / 1.1 - 1), 2)),
        ("runs 2", "allocated", 5.0),
        ("runs 2", "reserved", 0.0),
        ("runs 2", "tokens_per_s_per_gpu", -10.0),
        ("runs 4", "allocated", 5.0),
        ("runs 4", "reserved", 0.0),
        ("runs 4", "tokens_per_s_per_gpu", -10.0),
    ]
    rates = [row["measured"] for row in found["rows"] if row["what"] == "throughput"]
    assert rates == [pytest.approx(100), pytest.approx(50)]  # of two ranks a GPU's part
    assert found["counts"]["unexpressed"] == 1 and found["filters"]["source"] is None


def test_rows_and_records_together(rows: Path, records: Path) -> None:
    found = _found("--rows", rows, "--record", records, "--memory")
    assert {row["what"] for row in found["rows"]} == {"memory"}
    assert {row["source"] for row in found["rows"]} == {"mine", "runs.jsonl"}
    assert found["title"] == "predicted against measured: own.csv and runs.jsonl"
    assert_nothing_is_cut_off(drawn(found, draw))


def test_nothing_to_compare_is_still_a_chart(rows: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "none.csv", [{**SMALL, "run": "decode"}])
    found = _found("--rows", path)
    assert found["panels"] == [] and found["says"].startswith("nothing to compare: ")
    assert found["says"] in [text.get_text() for text in drawn(found, draw).axes[0].texts]
    text = " ".join(render(lambda sheet: page(sheet, found), to_file=True).split())
    assert found["says"] in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gpt2",), "got 'gpt2' too many; rule: memcalc chart accuracy"),
        (("--gpu", "h100"), "--gpu: got with chart accuracy; rule: one of --rows"),
        (("--record", "x.jsonl", "--source", "a"), "--source: got with --record alone"),
        (("--record", "/nowhere/x.jsonl"), "records: cannot read"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _found(*words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_runs_is_refused(tmp_path: Path) -> None:
    append_all(tmp_path / "other.jsonl", [{"schema": 1, "kind": "calibrate"}])
    with pytest.raises(ConfigError, match="without a run; rule: records of memcalc measure"):
        _found("--record", tmp_path / "other.jsonl")
