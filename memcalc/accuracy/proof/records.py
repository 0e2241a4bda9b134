"""Classes whose figures are in the repository's records: oracles, clocks on a CPU, kernels left out of fits.

exact/*.jsonl: benchmarks/exact_records.py. cpu_time.jsonl, decode_time.jsonl: benchmarks of those names.
Errors of kernels: profiles/calibrations, which benchmarks/kernel_fit makes; summed up, without their rows.
Checked by: unit/test_report_accuracy_proof.py, harness/test_report_accuracy_exact.py.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from memcalc.accuracy.proof.items import Class, Item
from memcalc.errors import ConfigError
from memcalc.inputs.profiles import profiles_dir

EXACT: Final = "Exact: held against an oracle"
CLOCK: Final = "Time on a CPU"
TORCH, HF, PEFT = "PyTorch", "transformers", "PEFT"
_ON_FAKE_RANKS: Final = ", fake process group"
#: Files of exact records in the order of the report, and who judges them.
FILES: Final = {
    "profiles": HF, "widths": TORCH, "saved": TORCH, "peaks": TORCH,
    "compiled": "PyTorch's compiler, CUDA programs", "ranks": f"{TORCH}{_ON_FAKE_RANKS}",
    "families": HF, "autocast": HF, "encoders": HF, "adapters": PEFT,
    "packed": f"{PEFT}, bitsandbytes", "tuned_ranks": f"{PEFT}{_ON_FAKE_RANKS}",
    "feedback": "TRL's losses, written again", "phases": TORCH, "evaluations": HF, "loads": HF,
    "phase_ranks": f"{TORCH}{_ON_FAKE_RANKS}", "caches": HF, "generations": TORCH,
}  # fmt: skip
_ALL: Final = "all"


def folder() -> Path:
    """The repository's benchmarks: beside the package, or in the working directory.

    Raises ConfigError where neither has the records.
    """
    package = Path(__file__).resolve().parents[2]
    for place in (package.parent / "benchmarks", Path("benchmarks")):
        if (place / "exact").is_dir():
            return place
    raise ConfigError(
        "--report: got no benchmarks/exact here; rule: in a checkout of the repository, where the records are"
    )


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none where it is not there. Raises ConfigError for what is no record."""
    if not path.is_file():
        return []
    try:
        found = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--report: cannot read '{path}': {error}") from None
    return found


def exact(benchmarks: Path) -> Iterator[Class]:
    """A class for every kind of bytes that an oracle judged."""
    for file, judge in FILES.items():
        of: dict[str, list[Item]] = {}
        releases = set()
        for row in lines(benchmarks / "exact" / f"{file}.jsonl"):
            releases.add(str(row["torch"]).partition("+")[0])
            of.setdefault(row["class"], []).append(_item(file, row))
        against = judge
        if releases:
            against = against.replace(TORCH, f"{TORCH} {', '.join(sorted(releases))}")
        for name, items in of.items():
            shown = f"peak of a rank: {name}" if judge.endswith(_ON_FAKE_RANKS) else name
            yield Class(EXACT, shown, against, items)


def _item(file: str, row: Mapping[str, Any]) -> Item:
    oracle = row["oracle"]
    written = row["textbook"]
    return Item(
        f"{file} {row['name']}", row["config"], file, _percent(row["predicted"], oracle),
        None if written is None else _percent(written, oracle), measured=oracle,
    )  # fmt: skip


def _percent(predicted: float, measured: float) -> float:
    return 0.0 if predicted == measured else 100 * (predicted / measured - 1)


def clocks(benchmarks: Path) -> Iterator[Class]:
    """Steps and generations timed on a CPU, each by rates measured on it; errors are of seconds."""
    runs = lines(benchmarks / "cpu_time.jsonl")
    items = [
        Item(f"cpu_time {number}.{place}", row["label"], f"run {number}",
             100 * (row["predicted_s"] / row["measured_s"] - 1),
             _by_products(run, row), part=f"run {number}: {run['device']['name']}")
        for number, run in enumerate(runs, 1) for place, row in enumerate(run["rows"], 1)
    ]  # fmt: skip
    if items:
        yield Class(CLOCK, "step, decoders drawn", "this project's clock", items, "s")
    runs = lines(benchmarks / "decode_time.jsonl")
    for name, told, seen in (
        ("generation: a token", "predicted_s", "measured_s"),
        ("generation: the prompts", "predicted_prefill_s", "measured_prefill_s"),
    ):
        items = [
            Item(f"decode_time {number}.{place}", row["label"], f"run {number}",
                 100 * (row[told] / row[seen] - 1))
            for number, run in enumerate(runs, 1) for place, row in enumerate(run["rows"], 1)
        ]  # fmt: skip
        if items:
            yield Class(CLOCK, name, "this project's clock", items, "s")


def _by_products(run: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """6ND at 40 % of the rate that the CPU's products were measured to reach."""
    from memcalc.accuracy.textbook import by_width, step_seconds

    decoder = row["decoder"]
    dtype = "fp32" if decoder["precision"] == "fp32" else "bf16"
    rates = [
        one["flops_per_s"] for one in run["calibration"]["summary"]["gemm_ceiling"]
        if one["dtype"] == dtype and one["how"] == "burst"
    ]  # fmt: skip
    if not rates:
        return None
    count = by_width(decoder["layers"], decoder["hidden_size"], decoder["vocab_size"])
    tokens = decoder["seq_len"] * decoder["micro_batch_size"]
    written = step_seconds(count, tokens, rates[0])
    return 100 * (written / float(row["measured_s"]) - 1)


def kernels() -> list[dict[str, Any]]:
    """Errors of kernels on shapes no fit has seen, in percent: n, mean, bias, p90, a plain fit's mean."""
    found = []
    for path in sorted((profiles_dir() / "calibrations").glob("default-*.toml")):
        raw = tomllib.loads(path.read_text("utf-8"))
        for row in raw.get("errors", ()):
            if row["sizes"] == _ALL or (row["form"] == "gemm" and row.get("what") == "bf16"):
                found.append(
                    {
                        "system": row["system"], "kernel": row.get("what") or row["form"],
                        "sizes": row["sizes"], "n": row["n"], "mean_pct": 100 * row["mean_abs"],
                        "bias_pct": 100 * row["bias"], "p90_pct": 100 * row["p90"],
                        "plain_mean_pct": 100 * row["plain_mean_abs"],
                    }
                )  # fmt: skip
    return found
