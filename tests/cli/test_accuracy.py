"""memcalc accuracy: the contract's JSON, tables, CSV, a user's own file, and what is refused."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.accuracy.groups import FITTED_SOURCES
from memcalc.units import GIB
from tests.unit.accuracy_rows import SMALL, write

_SCORES = {"n", "mae_pct", "bias_pct", "median_pct", "p90_pct", "worst_pct"}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's file: a row exactly right, one 2 % high, one of unknown kind, two left out."""
    setup = TrainingSetup(seq_len=128, micro_batch_size=2, num_layers=2, precision="bf16")
    right = estimate("gpt2", setup).memory.peak_allocated_bytes / GIB
    rows = [
        {**SMALL, "mem_gb": right, "confidence": "high", "priceable": "yes"},
        {**SMALL, "id": "two", "mem_gb": right / 1.02, "confidence": "med", "grad_accum": 1},
        {**SMALL, "id": "three", "mem_gb": right, "mem_kind": "unknown", "source": "theirs"},
        {**SMALL, "id": "four", "run": "decode"},
        {**SMALL, "id": "five", "mem_gb": "", "mem_kind": "", "step_s": 0.25},
    ]
    return write(tmp_path / "own.csv", rows)


def test_the_json_holds_the_contract(memcalc, own: Path) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("accuracy", "--rows", own, "--json")
    assert outcome.status == 0 and outcome.err == ""
    found = outcome.json
    assert (found["schema"], found["file"]) == (1, str(own))
    assert set(found["memory"]) == {"allocated", "all"} and found["throughput"] == {}
    assert set(found["memory"]["allocated"]) >= _SCORES
    exact, high, unknown = found["rows"]
    assert (exact["id"], exact["kind"], exact["error_pct"]) == (
        "one",
        "allocated",
        pytest.approx(0, abs=1e-6),
    )
    assert isinstance(exact["predicted"], int) and isinstance(exact["measured"], int)
    assert high["error_pct"] == pytest.approx(2, abs=1e-5)
    assert (unknown["id"], unknown["scored"]) == ("three", False)
    (left,) = found["unexpressed"]
    assert left["id"] == "four" and "serving" in left["reason"]
    assert [row["id"] for row in found["unscored"]] == ["five"]
    counts = {"rows": 5, "scored": 2, "shown_only": 1, "unexpressed": 1, "unscored": 1}
    assert found["counts"] == counts
    assert found["unscored"][0]["reason"].startswith("no time is predicted: no GPU")
    assert any("unknown kind" in note for note in found["notes"])


def test_the_scores_are_those_of_the_rows(memcalc, own: Path) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("accuracy", "--rows", own, "--json").json
    whole = found["memory"]["allocated"]
    assert whole["n"] == 2 and whole["measurements"] == 1  # one setup, the micro-batches aside
    assert whole["mae_pct"] == whole["bias_pct"] == pytest.approx(1, abs=1e-5)
    assert whole["worst_pct"] == pytest.approx(2, abs=1e-5) and whole["worst_id"] == "two"
    assert found["by_confidence"]["memory"]["high"]["all"]["mae_pct"] == pytest.approx(0, abs=1e-6)
    assert found["by_priceable"]["memory"]["not stated"]["all"]["n"] == 1
    assert found["by_source"]["memory"]["theirs"] == {}
    assert found["over_sources"]["memory"]["sources"] == 1


def test_the_tables_are_eighty_columns_and_name_every_row(memcalc, own: Path) -> None:  # type: ignore[no-untyped-def]
    text = memcalc("accuracy", "--rows", own).out
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"{name} " in text for name in ("one", "two", "three", "four", "five"))
    assert "not scored" in text and "2 scored, 1 shown only, 1 not expressed" in text


def test_csv_has_a_line_for_every_row(memcalc, own: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = memcalc("accuracy", "--rows", own, "--csv").out
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(text))}
    status = {name: row["status"] for name, row in rows.items()}
    assert status == {"one": "scored", "two": "scored", "three": "shown only",
                      "four": "unexpressed", "five": "unscored"}  # fmt: skip
    assert float(rows["two"]["error_pct"]) == pytest.approx(2, abs=1e-5)
    out = tmp_path / "errors.csv"
    assert memcalc("accuracy", "--rows", own, "--csv", "-o", out).out == ""
    assert out.read_text("utf-8") == text


def test_quiet_is_one_line(memcalc, own: Path) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("accuracy", "--rows", own, "--quiet")
    assert outcome.err == "" and len(outcome.out.splitlines()) == 1
    assert outcome.out.startswith("rows 5 scored 2 mae_pct 1 bias_pct 1 worst_pct 2 sources 1")


def test_filters_choose_rows(memcalc, own: Path) -> None:  # type: ignore[no-untyped-def]
    def ids(*words: str) -> list[str]:
        return [
            row["id"] for row in memcalc("accuracy", "--rows", own, "--json", *words).json["rows"]
        ]

    assert ids("--confidence", "high") == ["one"]
    assert ids("--priceable", "yes", "--source", "MIN") == ["one"]
    assert ids("--source", "theirs") == ["three"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--source", "thiers"), "--source: got 'thiers', not known; nearest: theirs"),
        (
            ("--confidence", "low"),
            "--confidence: got low; rule: a value of a row; valid: high, med",
        ),
        (("--confidence", "hi"), "nearest: high"),
        (("--priceable", "maybe"), "--priceable: got 'maybe'"),
        (("--json", "--csv"), "--csv: got --json too"),
        (("extra",), "argument: got 'extra' too many"),
        (("--gpu", "h100"), "--gpu: not an option of accuracy"),
    ],
)
def test_bad_words_are_refused(memcalc, own: Path, words: tuple[str, ...], said: str) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("accuracy", "--rows", own, *words)
    assert outcome.status == 2 and said in outcome.error


def test_a_file_none_of_whose_rows_can_be_priced_says_why_and_is_done(
    memcalc, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "own.csv", [{**SMALL, "run": "decode"}])
    assert memcalc("accuracy", "--rows", path, "--json").json["memory"] == {}
    outcome = memcalc("accuracy", "--rows", path)
    assert outcome.status == 0
    assert re.search(r"one +serving \(decode\) by an engine that is not stated", outcome.out)
    line = memcalc("accuracy", "--rows", path, "--quiet").out
    assert line.startswith("rows 1 scored 0 mae_pct none")


def test_runs_that_train_adapters_are_a_table_of_their_own(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    lora = {**SMALL, "stack": "hf", "peft": "lora", "lora_rank": 8}
    path = write(tmp_path / "own.csv", [lora])
    found = memcalc("accuracy", "--rows", path, "--json").json
    assert set(found["adapters"]["memory"]["hf"]) >= _SCORES and found["memory"] == {}
    assert found["rows"][0]["class"] == "adapters"
    assert re.search(r"Adapters, error % +stack +rows", memcalc("accuracy", "--rows", path).out)


def test_a_bad_file_is_refused_in_one_line(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "bad.csv", [{**SMALL, "mem_gb": "lots"}])
    outcome = memcalc("accuracy", "--rows", path)
    assert outcome.status == 2
    assert outcome.error.endswith("line 2 (id one): mem_gb: got 'lots'; rule: a number above 0")


def test_columns_that_are_not_read_are_noted(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "own.csv", [{**SMALL, "host": "node7"}])
    outcome = memcalc("accuracy", "--rows", path, "--json")
    assert outcome.status == 0 and outcome.err == "note: column 'host' is not read\n"


def test_the_published_rows_are_the_default(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("accuracy", "--source", "torchtune flags", "--json")
    assert outcome.json["file"] == "the published runs"
    assert outcome.json["counts"]["rows"] == 5


@pytest.fixture
def timed(tmp_path: Path) -> Path:
    """Three runs of one source that give speed, one of them memory as well; 25 % and 60 % off."""
    setup = TrainingSetup(seq_len=128, micro_batch_size=2, num_layers=2, precision="bf16")
    time = estimate("gpt2", setup, gpu="a100").time
    if time.step_s is None:
        pytest.skip("no time model yet")
    trusted = {**SMALL, "gpu": "a100-80gb-sxm", "confidence": "high", "priceable": "yes"}
    bare = {**trusted, "mem_gb": "", "mem_unit": "", "mem_kind": ""}
    rows = [
        {**trusted, "id": "right", "step_s": time.step_s},
        {**bare, "id": "fast", "tokens_per_s_per_gpu": time.tokens_per_s_per_gpu / 1.2},
        {**bare, "id": "far", "step_s": time.step_s * 1.6, "source": "other", "confidence": "med"},
    ]
    return write(tmp_path / "timed.csv", rows)


def test_speed_is_scored_by_source_size_gpu_and_count(memcalc, timed: Path) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("accuracy", "--rows", timed, "--throughput", "--json").json
    assert found["memory"] == {} and found["what"] == ["throughput"]
    assert set(found["throughput"]) == {"step_s", "tokens_per_s_per_gpu", "all"}
    assert set(found["throughput"]["all"]) >= _SCORES
    errors = {row["id"]: row["error_pct"] for row in found["rows"]}
    assert errors == {"right": pytest.approx(0, abs=1e-6), "fast": pytest.approx(20),
                      "far": pytest.approx(60)}  # fmt: skip
    for split, name in (("by_source", "other"), ("by_gpu", "a100-80gb-sxm"),
                        ("by_model_size", "below 1 B"), ("by_gpus", "not stated")):  # fmt: skip
        assert found[split]["throughput"][name]["all"]["n"] >= 1
    assert [row["id"] for row in found["outliers"]] == ["far"]
    assert found["promised"]["rows"]["n"] == 2 and found["promised"]["over_sources"]["sources"] == 1
    assert found["fitted_sources"] == list(FITTED_SOURCES)
    parts = found["rows"][0]["parts"]
    assert parts["step_s"] == pytest.approx(found["rows"][0]["predicted"])


def test_speed_and_memory_can_be_asked_for_alone(memcalc, timed: Path) -> None:  # type: ignore[no-untyped-def]
    memory = memcalc("accuracy", "--rows", timed, "--memory", "--json").json
    assert memory["throughput"] == {} and [row["id"] for row in memory["rows"]] == ["right"]
    assert {row["reason"] for row in memory["unscored"]} == {"gives no memory"}
    both = memcalc("accuracy", "--rows", timed, "--json").json
    assert [(row["id"], row["what"]) for row in both["rows"]][:2] == [
        ("right", "memory"), ("right", "throughput"),
    ]  # fmt: skip
    line = memcalc("accuracy", "--rows", timed, "--throughput", "--quiet").out
    assert line.startswith("rows 3 scored 3 throughput_mae_pct ")


def test_runs_that_serve_are_scored_apart_by_engine(memcalc) -> None:  # type: ignore[no-untyped-def]
    """The published rows of Qwen2.5: memory and tokens/s of transformers, tokens/s of vLLM."""
    found = memcalc("accuracy", "--source", "Qwen2.5", "--json").json
    assert found["memory"] == {} and found["throughput"] == {}
    assert set(found["serving"]["throughput"]) == {"transformers", "vllm"}
    assert set(found["serving"]["throughput"]["vllm"]) >= _SCORES
    assert found["serving"]["memory"]["transformers"]["n"] >= 14
    assert found["serving"]["memory"]["transformers"]["mae_pct"] <= 6
    assert found["serving"]["throughput"]["transformers"]["mae_pct"] <= 25
    assert found["serving"]["throughput"]["vllm"]["mae_pct"] <= 15
    assert {row["class"] for row in found["rows"]} == {"serving"}
    memory = memcalc("accuracy", "--source", "Qwen2.5 inference", "--memory", "--json").json
    assert memory["serving"]["throughput"] == {} and memory["serving"]["memory"]
    text = memcalc("accuracy", "--source", "Qwen2.5").out
    assert "Serving, error %" in text and max(map(len, text.splitlines())) <= 80


def test_outliers_and_the_promise_are_printed(memcalc, timed: Path) -> None:  # type: ignore[no-untyped-def]
    text = memcalc("accuracy", "--rows", timed, "--throughput").out
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^far +other +step time +\+60\.0$", text, re.MULTILINE)
    assert re.search(r"^each row as one +2 +10\.0 +\+10\.0 ", text, re.MULTILINE)
    assert "By GPU" in text and "By model size" in text
