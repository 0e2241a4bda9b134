"""Files of measured runs: what is read, and what is refused in one line that says where."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from memcalc.accuracy import rows as reading
from memcalc.accuracy.columns import BY_NAME, read_cell
from memcalc.accuracy.rows import published_rows, read_rows
from memcalc.errors import ConfigError
from tests.unit.accuracy_rows import SMALL, write

ROOT = Path(__file__).parents[2]


def _file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "runs.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_users_own_file_with_few_columns_is_read(tmp_path: Path) -> None:
    text = "model,seq,micro_batch,mem_gb\n\nllama-3.2-1b,8k,4.0,23.5\n"
    (row,) = read_rows(_file(tmp_path, text)).rows
    assert (row.line, row.id, row.source) == (3, "line 3", "(no source)")
    assert dict(row.cells) == {
        "model": "llama-3.2-1b", "seq": 8192, "micro_batch": 4, "mem_gb": 23.5,
    }  # fmt: skip


def test_missing_cells_of_every_spelling_state_nothing(tmp_path: Path) -> None:
    text = "model,mem_gb,tp,dp,precision,sp\ngpt2,1, ,nan,NA,NULL\n"
    assert set(read_rows(_file(tmp_path, text)).rows[0].cells) == {"model", "mem_gb"}


def test_quoted_text_marks_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    text = '\ufeffid,model,ref,mem_gb\na,gpt2,"page 3, ""table 2""\nline two",1\nb,gpt2,,2\n'
    first, second = read_rows(_file(tmp_path, text)).rows
    assert first.text("ref") == 'page 3, "table 2"\nline two' and first.id == "a"
    assert (first.line, second.line) == (2, 4)


def test_own_columns_are_passed_over_with_a_note(tmp_path: Path) -> None:
    text = "model,mem_gb,microbatch,host\ngpt2,1,4,node7\n"
    found = read_rows(_file(tmp_path, text))
    assert found.notes == [
        "column 'microbatch' is not read; nearest: micro_batch", "column 'host' is not read",
    ]  # fmt: skip
    assert "microbatch" not in found.rows[0].cells


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seq", "4096", 4096), ("seq", "4k", 4096), ("tp", "8.0", 8), ("sp", "TRUE", True),
        ("compile", "no", False), ("mem_gb", "66.55", 66.55), ("recompute", "full:16", "full:16"),
        ("stage_layers", "9 9, 8;0", (9, 9, 8, 0)), ("zero", "0", 0),
        ("mla", "kv_lora_rank=512;v=128", {"kv_lora_rank": 512, "v": 128}),
    ],
)  # fmt: skip
def test_cells_are_read_by_their_column(name: str, text: str, value: object) -> None:
    assert read_cell(BY_NAME[name], text) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("micro_batch", "four", "micro_batch: got 'four'"), ("tp", "0", "tp: got '0'; rule: 1 to"),
        ("tp", "1.5", "rule: a whole number"), ("seq", "9" * 12, "seq: got"),
        ("mem_gb", "-3", "mem_gb: got '-3'; rule: a number above 0"), ("step_s", "inf", "above 0"),
        ("sp", "maybe", "sp: got 'maybe'; valid: true, false"),
        ("mem_kind", "alocated", "nearest: allocated"), ("precision", "bf61", "nearest: bf16"),
        ("recompute", "sac:3", "only full:N"), ("recompute", "all", "recompute: got 'all'"),
        ("recompute", "full:x", "recompute: got 'x'"), ("mla", "512", "name=number"),
        ("ref", "x" * 500, "got 500 characters"), ("stage_layers", "4 a", "stage_layers: got 'a'"),
    ],
)  # fmt: skip
def test_a_cell_that_is_no_value_says_what_would_be(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_cell(BY_NAME[name], text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: rule: a header"),
        ("model;mem_gb\ngpt2;3\n", "line 1: rule: a header of column names, comma-separated"),
        ("seq,mem_gb\n8,3\n", "line 1: no column says which model ran; valid: model, hidden_size"),
        ("model,seq\ngpt2,8\n", "line 1: no column says what was measured; valid: mem_gb"),
        ("model,mem_gb,mem_gb\ngpt2,1,1\n", "line 1: column 'mem_gb' twice"),
        ("model,mem_gb\n", "has a header and no row"),
        ("model,mem_gb\ngpt2,1,2\n", "line 2: got 3 cells; rule: 2, as the header"),
        ("id,model,mem_gb\nr7,gpt2,x\n", "line 2 (id r7): mem_gb: got 'x'"),
        ("model,mem_gb\ngpt2,1\ngpt2,0\n", "line 3: mem_gb: got '0'"),
        ("id,model,mem_gb\na,gpt2,1\na,gpt2,2\n", "line 3: id 'a' is that of line 2"),
        ('model,mem_gb\n"gpt2,1\n', "no CSV"),
        (b"model,mem_gb\ngpt2\xff,1\n", "no UTF-8 text (byte 17)"),
        ("model,mem_gb\ngp\0t2,1\n", "NUL"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_says_where(tmp_path, text, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        read_rows(_file(tmp_path, text))
    assert "\n" not in str(caught.value) and "runs.csv" in str(caught.value)


@pytest.mark.parametrize("path", [Path("/nowhere/runs.csv"), Path("/"), Path("a\0b")])
def test_what_is_no_file_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="^rows: "):
        read_rows(path)


def test_a_file_too_large_for_a_table_is_not_opened(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "runs.csv", [SMALL])
    monkeypatch.setattr(reading, "MAX_BYTES", 10)
    with pytest.raises(ConfigError, match="rule: at most 10"):
        read_rows(path)


def test_an_installed_package_reads_its_own_published_rows(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "memcalc"
    monkeypatch.setattr(reading, "__file__", str(package / "accuracy" / "rows.py"))
    assert published_rows() == tmp_path / "benchmarks" / "published" / "runs.csv"
    (package / "_published").mkdir(parents=True)
    assert published_rows() == package / "_published" / "runs.csv"


def test_the_wheel_takes_the_published_rows_along() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    (source,) = [path for path, target in included.items() if target == "memcalc/_published"]
    assert (ROOT / source / "runs.csv").is_file()
