"""Pricing and fitting tables of measured kernels, on tables made here from known constants."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from benchmarks import kernels
from benchmarks.kernel_fit import __main__ as kernel_fit
from benchmarks.kernel_fit.calibrations import class_of, refitted
from benchmarks.kernel_fit.fits import fit_curve, plain
from benchmarks.kernel_fit.predict import errors, predicted, size_classes
from benchmarks.kernel_fit.solver import Constant, solve
from benchmarks.kernel_fit.tables import FORMS, WORDS, Table, read_tables
from memcalc.engine.timing.kernel_times import collective_s, gemm_s
from memcalc.errors import ConfigError
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.profiles import profiles_dir, read_toml
from memcalc.inputs.rates import Rates, merged, rates_from, rates_of

H200 = rates_of(load_gpu("h200-141gb")[0])
SIDES = (64, 96, 128, 192, 257, 512, 768, 1024, 1536, 2048, 4096, 6144, 8192, 14336)
COLUMNS = ("system", "latency_ms_median", "latency_ms_min", "latency_ms_max")


def write(path: Path, form: str, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        word = [WORDS[form]] if form in WORDS else []
        writer = csv.DictWriter(file, [*word, *FORMS[form], *COLUMNS])
        writer.writeheader()
        writer.writerows(rows)
    return path


def gemm_rows(seconds: Callable[..., float], count: int = 240) -> list[dict[str, Any]]:
    draw = random.Random(5)
    shapes = {tuple(draw.choice(SIDES) for _ in range(3)) for _ in range(count)}
    return [
        {"system": "h200_sxm", "dtype": "bf16", "m": m, "n": n, "k": k,
         "latency_ms_median": 1e3 * seconds(m, n, k)}
        for m, n, k in sorted(shapes)
    ]  # fmt: skip


def by_rates(rates: Rates, slower: float = 1.0) -> Callable[..., float]:
    return lambda m, n, k: slower * gemm_s(rates, "bf16", 1, m, n, k)


def run(main: Callable[..., None], *words: object) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(word) for word in words])


def table_of(tmp_path: Path, form: str, rows: Sequence[dict[str, Any]]) -> Table:
    [table] = read_tables(write(tmp_path / f"{form}.csv", form, rows), form)
    return table


def test_a_table_of_our_own_times_has_no_error_and_a_slower_one_its_slowness(tmp_path):
    exact = write(tmp_path / "exact.csv", "gemm", gemm_rows(by_rates(H200)))
    slower = write(tmp_path / "slower.csv", "gemm", gemm_rows(by_rates(H200, slower=1.25)))
    found = json.loads(run(kernels.main, "--gemm", exact, "--json").stdout)
    assert {row["sizes"] for row in found["rows"]} == {"all", "large", "small"}
    for row in found["rows"]:
        assert row["mean_abs"] == pytest.approx(0, abs=1e-9)
        assert (row["system"], row["what"], row["calibration"]) == (
            "h200_sxm", "bf16", "default-hopper",
        )  # fmt: skip
    for row in json.loads(run(kernels.main, "--gemm", slower, "--json").stdout)["rows"]:
        assert row["mean_abs"] == pytest.approx(0.2)
        assert row["bias"] == pytest.approx(-0.2)
        assert row["p90"] == pytest.approx(0.2)


def test_held_out_rows_are_about_half_and_the_same_on_every_system(tmp_path):
    path = write(tmp_path / "gemm.csv", "gemm", gemm_rows(by_rates(H200)))
    all_rows = json.loads(run(kernels.main, "--gemm", path, "--json").stdout)["rows"][0]["n"]
    held = json.loads(run(kernels.main, "--gemm", path, "--held-out", "--json").stdout)
    assert 0.4 < held["rows"][0]["n"] / all_rows < 0.6
    here = table_of(tmp_path, "gemm", gemm_rows(by_rates(H200)))
    rows = [{**row, "system": "a100_sxm"} for row in gemm_rows(by_rates(H200))]
    there = table_of(tmp_path, "gemm", rows)
    assert here.is_held_out().tolist() == there.is_held_out().tolist()


def test_every_form_is_priced_and_shown(tmp_path):
    heads = {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "system": "h100_sxm"}
    files = []
    for form, rows in {
        "attention": [{"batch_size": 2, "seq": 4096, "latency_ms_median": 2.0, **heads}],
        "decode": [{"batch_size": 8, "context": 4095, "latency_ms_median": 0.1, **heads}],
        "collectives": [{"system": "gb300", "collective": "alltoall", "num_gpus": 4,
                         "message_bytes": 1 << 24, "latency_ms_median": 0.05}],
    }.items():  # fmt: skip
        files += [f"--{form}", write(tmp_path / f"{form}.csv", form, rows)]
    shown = run(kernels.main, *files)
    assert shown.exit_code == 0
    for word in ("attention", "decode", "all-to-all", "h100_sxm", "gb300"):
        assert word in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_rows_that_cannot_be_the_whole_sequence_are_told_apart(tmp_path):
    whole = {"system": "h100_sxm", "batch_size": 8, "seq": 8192, "num_heads": 32,
             "num_key_value_heads": 8, "head_dim": 128}  # fmt: skip
    rows = [
        {**whole, "latency_ms_median": 7.0},
        {**whole, "latency_ms_median": 0.3},  # faster than the peak: a window of the sequence
        {**whole, "head_dim": 64, "latency_ms_median": 4.0, "latency_ms_min": 0.5,
         "latency_ms_max": 5.0},
    ]  # fmt: skip
    for row in rows[:2]:
        row |= {"latency_ms_min": row["latency_ms_median"], "latency_ms_max": 7.5}
    path = write(tmp_path / "attention.csv", "attention", rows)
    assert read_tables(path, "attention")[0].is_sound().tolist() == [True, False, False]
    found = json.loads(run(kernels.main, "--attention", path, "--json").stdout)["rows"]
    assert {row["sizes"]: row["n"] for row in found} == {
        "all": 3, "large": 3, "all, sound": 1, "large, sound": 1,
    }  # fmt: skip


def good(**change: Any) -> dict[str, Any]:
    row = {"system": "h200_sxm", "dtype": "bf16", "m": 64, "n": 64, "k": 64}
    return {**row, "latency_ms_median": 1.0, **change}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (good(m="many"), "line 2: m: got 'many'; rule: a whole number above 0"),
        (good(m=-1), "line 2: m: got '-1'; rule: a whole number above 0"),
        (good(k=1.5), "line 2: k: got '1.5'"),
        (
            good(latency_ms_median=0),
            "line 2: latency_ms_median: got '0'; rule: milliseconds above 0",
        ),
        (good(latency_ms_median="nan"), "latency_ms_median: got 'nan'"),
        (good(system="h2000"), "line 2: system: got 'h2000', not known; nearest: h20"),
        (good(dtype="fp3"), "products in fp3: got none on this device"),
    ],
)
def test_a_bad_row_is_one_line_and_exit_2(tmp_path, row, message):
    shown = run(kernels.main, "--gemm", write(tmp_path / "bad.csv", "gemm", [row]))
    assert shown.exit_code == 2
    assert message in shown.stderr
    assert shown.stderr.startswith("error: ")
    assert shown.stderr.count("\n") == 1


def test_files_that_are_no_table_are_one_line_and_exit_2(tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n", encoding="utf-8")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    for main in (kernels.main, kernel_fit.main):
        for words, message in (
            ((), "tables: got none; rule: at least one of --gemm"),
            (("--gemm", other), "got no column system"),
            (("--decode", tmp_path / "none.csv"), "cannot be read"),
            (("--gemm", binary), "cannot be read"),
        ):
            shown = run(main, *words)
            assert (shown.exit_code, shown.stderr.count("\n")) == (2, 1)
            assert message in shown.stderr
    row = {"system": "h100_sxm", "collective": "gossip", "num_gpus": 2, "message_bytes": 8}
    path = write(tmp_path / "c.csv", "collectives", [{**row, "latency_ms_median": 1}])
    assert "collective: got 'gossip'" in run(kernels.main, "--collectives", path).stderr


def test_errors_are_relative_to_what_was_measured():
    found = errors(np.array([1.1, 0.8, 1.0]), np.array([1.0, 1.0, 1.0]))
    assert found.n == 3
    assert found.mean_abs == pytest.approx(0.1)
    assert found.bias == pytest.approx(-0.1 / 3)


def test_the_solver_finds_constants_through_wild_rows():
    x = np.linspace(1, 50, 200)
    measured = 3.0 + 0.7 * x
    measured[::17] *= 4
    constants = {"start": Constant(1.0), "slope": Constant(5.0), "share": Constant(0.5, True)}

    def off(c: Any) -> np.ndarray:
        return np.log((c["start"] + c["slope"] * x) / measured)

    found = solve(constants, off)
    assert found["start"] == pytest.approx(3.0, rel=0.02)
    assert found["slope"] == pytest.approx(0.7, rel=0.02)
    assert found["share"] == pytest.approx(0.5)  # no row says anything of it


def other_device() -> Rates:
    """An H200 that reaches other shares than the default's."""
    raw = read_toml(profiles_dir() / "calibrations" / "default-hopper.toml")
    other = {"share": 0.55, "t0_s": 9e-6, "memory_share": 0.6, "padding": 0.9}
    raw = merged(raw, {"gemm": {"bf16": other}, "gpu": {"h200-141gb": {}}})
    return rates_from(load_gpu("h200-141gb")[0], {**raw, "gpu": {}}, "other")


def test_a_fit_finds_another_devices_times_on_rows_it_never_saw(tmp_path):
    table = table_of(tmp_path, "gemm", gemm_rows(by_rates(other_device())))
    raw = read_toml(profiles_dir() / "calibrations" / "default-hopper.toml")
    found = refitted({**raw, "gpu": {}}, [table])
    [whole] = [row for row in found["errors"] if (row.get("what"), row["sizes"]) == ("bf16", "all")]
    assert whole["n"] == table.is_held_out().sum()
    assert whole["mean_abs"] < 0.02
    assert whole["mean_abs"] < whole["plain_mean_abs"] / 3
    assert found["gemm"]["bf16"]["share"] == pytest.approx(0.55, rel=0.1)
    assert found["fitted_on"] == ["h200-141gb"]
    rates = rates_from(table.gpu, found, "found")
    guess = predicted(table, rates)[table.is_held_out()]
    assert errors(guess, table.seconds[table.is_held_out()]).mean_abs == pytest.approx(
        whole["mean_abs"], abs=1e-4
    )


def test_two_lines_of_a_collective_are_found(tmp_path):
    rows = []
    link = H200.links.link
    for octave in range(9, 30):
        wire = (1 << octave) * 7 / 8
        seconds = min(12e-6 + wire / 150e9, 40e-6 + wire / 330e9)
        rows.append({"system": "h200_sxm", "collective": "all_gather", "num_gpus": 8,
                     "message_bytes": 1 << octave, "latency_ms_median": 1e3 * seconds})  # fmt: skip
    table = table_of(tmp_path, "collectives", rows)
    assert table.is_held_out().sum() in (10, 11)
    found = fit_curve([table], 8)
    assert found["small_s"] == pytest.approx(12e-6, rel=0.03)
    assert found["large_s"] == pytest.approx(40e-6, rel=0.1)
    assert found["large_share"] == pytest.approx(330 / 450, rel=0.02)
    guess = [collective_s(link, "all_gather", size, 8) for size in table.sizes["message_bytes"]]
    assert predicted(table, H200) == pytest.approx(guess)


def test_the_fit_writes_files_that_a_second_run_leaves_as_they_are(tmp_path):
    home = tmp_path / "calibrations"
    home.mkdir()
    shipped = profiles_dir() / "calibrations" / "default-hopper.toml"
    (home / shipped.name).write_bytes(shipped.read_bytes())
    path = write(tmp_path / "gemm.csv", "gemm", gemm_rows(by_rates(other_device()), count=80))
    words = ("--gemm", path, "--folder", home)
    printed = run(kernel_fit.main, *words)
    assert printed.exit_code == 0
    assert "[gemm.bf16]" in printed.stdout
    assert (home / shipped.name).read_bytes() == shipped.read_bytes()
    first = json.loads(run(kernel_fit.main, *words, "--write", "--json").stdout)
    products = [
        row for row in first["hopper"] if (row["form"], row.get("what")) == ("gemm", "bf16")
    ]
    assert {row["system"] for row in products} == {"h200_sxm"}
    before = read_toml(shipped)
    kept = [row for row in before["errors"] if row["form"] == "decode"]
    assert [row for row in first["hopper"] if row["form"] == "decode"] == kept
    once = (home / shipped.name).read_bytes()
    assert once != shipped.read_bytes()
    run(kernel_fit.main, *words, "--write")
    assert (home / shipped.name).read_bytes() == once
    written = rates_of(load_gpu("h200-141gb")[0], str(home / shipped.name))
    assert written.attention == H200.attention, "what no table says stays"
    assert written.gemm["fp8"] == H200.gemm["fp8"]
    assert written.decode == H200.decode
    assert written.gemm["bf16"] != H200.gemm["bf16"]


def test_classes_and_plain_fits(tmp_path):
    table = table_of(tmp_path, "gemm", gemm_rows(by_rates(H200)))
    assert class_of(table) == "hopper"
    rough = errors(plain(table), table.seconds)
    assert 0.01 < rough.mean_abs < 0.3
    large = size_classes(table)["large"]
    assert (table.flops()[large] >= 2e10).all()
    with pytest.raises(ConfigError, match="no rows"):
        read_tables(write(tmp_path / "empty.csv", "gemm", []), "gemm")
