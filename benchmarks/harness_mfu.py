"""Our decoder against transformers' Llama, eager and compiled, alternating in one run.

    python -m benchmarks.harness_mfu --device cuda             both cases, a table
    python -m benchmarks.harness_mfu --device cpu --tiny       a few seconds; its figures say nothing

Cases: 1.3B parameters at s = 2048, and 8 layers of Llama-3-8B at s = 8192, bf16. Within a pair (eager,
then compiled) the two take turns, block by block, so that clocks and temperature are shared; every
step time is kept and medians are compared. Utilisation counts the model's FLOPs with attention over
the full square and half of it ("causal"), over the datasheet's dense peak and a measured product.
Our attention kernel, loss and projections are the fastest of a short trial, which is recorded too.
Not yet run on a GPU. Checked by: tests/harness/test_harness_mfu.py.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.sweep.program import run_command
from benchmarks.sweep.rivals import MAKERS, Case, Ours, Runner, release
from benchmarks.sweep.setups import model_of
from memcalc.engine.flops import step_flops
from memcalc.errors import unknown
from memcalc.harness.device import device_facts, pick_device, synchronize
from memcalc.harness.failures import first_line, is_out_of_memory
from memcalc.harness.record_head import new_record, stated
from memcalc.harness.records import append
from memcalc.harness.step_clock import StepClock, frozen_garbage, spread_of
from memcalc.harness.utilisation import datasheet_peak, measured_ceiling, utilisation
from memcalc.harness.watch.profiling import profile_step

CASES = ("1.3b", "8b-slice")
#: Rounds of turns, steps a turn, steps before the clock.
_ROUNDS, _STEPS, _WARMUP = 4, 5, 3
_LARGE_BYTES = 100 << 30


def case_of(name: str, device: torch.device, tiny: bool) -> Case:
    """The sizes of a case on a device; cards under 100 GiB get half the micro-batch."""
    if tiny or device.type == "cpu":
        layers = 2 if name == "1.3b" else 3
        config = dataclasses.replace(model_of("tiny-llama"), num_hidden_layers=layers)
        return Case(config, 32, 2, 2)
    total = torch.cuda.get_device_properties(device).total_memory
    large = total > _LARGE_BYTES
    if name == "1.3b":
        return Case(model_of("llama-1.3b"), 2048, 8 if large else 4, 2 if large else 4)
    config = dataclasses.replace(model_of("llama-3.1-8b"), num_hidden_layers=8)
    return Case(config, 8192, 2 if large else 1, 2 if large else 4)


def steps_of(runner: Runner, device: torch.device, count: int) -> list[float]:
    """Seconds of each of `count` steps, nothing read back between them."""
    clock = StepClock(device)
    with frozen_garbage():
        clock.mark()
        for _ in range(count):
            runner.run()
            clock.mark()
        return clock.seconds()


#: What is tried of our decoder, one after the other, each with the best so far of the others.
CHOICES = (
    {"attention": "flash"}, {"attention": "cudnn"}, {"loss": "chunked"}, {"fused_qkv": True},
    {"fused_gate_up": True},
)  # fmt: skip


def trial(case: Case, device: torch.device) -> tuple[Case, list[dict[str, Any]]]:
    """The case with our decoder's fastest settings, and what each took, eager; none on a CPU."""
    taken: list[dict[str, Any]] = []
    best = float("inf")
    for change in CHOICES if device.type == "cuda" else ():
        tried = case._replace(**change)
        row: dict[str, Any] = dict(tried.settings)
        taken.append(row)
        try:
            row["step_s"] = _quick(tried, device)
            if row["step_s"] < best:
                best, case = row["step_s"], tried
        except Exception as error:  # a kernel the device lacks, or no room for it
            row["error"] = first_line(error)
        release(device)
    return case, taken


def _quick(case: Case, device: torch.device) -> float:
    """Median seconds of three eager steps."""
    runner = Ours(case, device, compiled=False)
    steps_of(runner, device, 1)
    return sorted(steps_of(runner, device, 3))[1]


def alternate(runners: Iterable[Runner], device: torch.device, plan: tuple[int, int, int]) -> Any:
    """Step times by runner, turn by turn. plan: rounds, steps a turn, steps before the clock."""
    rounds, steps, warmup = plan
    every = list(runners)
    first: dict[str, float] = {}
    losses: dict[str, list[float]] = {runner.name: [] for runner in every}
    for runner in every:
        start = time.perf_counter()
        for _ in range(warmup):
            loss = runner.run()
            losses[runner.name].append(float(loss) if loss is not None else float("nan"))
        synchronize(device)
        first[runner.name] = time.perf_counter() - start
    turns: dict[str, list[list[float]]] = {runner.name: [] for runner in every}
    for _ in range(rounds):
        for runner in every:
            turns[runner.name].append(steps_of(runner, device, steps))
    for runner in every:
        loss = runner.run()
        losses[runner.name].append(float(loss) if loss is not None else float("nan"))
    return {"turns": turns, "warmup_s": first, "losses": losses}


def pair(case: Case, device: torch.device, compiled: bool, tiny: bool) -> list[dict[str, Any]]:
    """Both runners, eager or compiled: what each took. One that cannot run leaves the other."""
    runners: list[Runner] = []
    rows: list[dict[str, Any]] = []
    for kind, make in MAKERS.items():
        try:
            runners.append(make(case, device, compiled))
        except ImportError as error:
            rows.append({"name": kind, "status": "skipped", "reason": first_line(error)})
    plan = (2, 2, 1) if tiny else (_ROUNDS, _STEPS, _WARMUP)
    found = alternate(runners, device, plan)
    for runner in runners:
        turns = found["turns"][runner.name]
        losses = found["losses"][runner.name]
        rows.append({
            "name": runner.name, "status": "ok", "turns_s": turns,
            **spread_of([s for turn in turns for s in turn]),
            "warmup_s": found["warmup_s"][runner.name], "losses": losses,
            "loss_fell": losses[-1] < losses[0],
            "profile": _profile(runner, device) if device.type == "cuda" else None,
        })  # fmt: skip
    return rows


def _profile(runner: Runner, device: torch.device) -> dict[str, Any]:
    try:
        return profile_step(runner.run, device)
    except Exception as error:
        return {"error": first_line(error)}


def run_case(
    name: str, device: torch.device, tiny: bool = False, modes: Iterable[str] = ("eager", "compiled"),
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The record of one case: sizes, the trial, every runner's steps, utilisation, ratios.

    settings: those of our decoder from an earlier record; None: by a trial.
    """
    case = case_of(name, device, tiny)._replace(**(settings or {}))
    case, taken = trial(case, device) if settings is None else (case, [])
    plan = case.plan(device)
    record = {
        **new_record("mfu"), "case": name, "tiny": tiny, "setup": stated(plan),
        "settings": case.settings, "trial": taken,
        "tokens_per_step": case.tokens, "device": device_facts(device),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for mode in modes:
        try:
            rows += pair(case, device, mode == "compiled", tiny)
        except Exception as error:
            status = "oom" if is_out_of_memory(error) else "failed"
            rows.append({"name": mode, "status": status, "reason": first_line(error)})
        release(device)
    _add_utilisation(rows, case, plan, device)
    ok = [row for row in rows if row["status"] == "ok"]
    record |= {"status": "ok" if ok else "failed", "runners": rows, "ratios": ratios(ok)}
    return record


def _add_utilisation(rows: list[dict[str, Any]], case: Case, plan: Any, device: Any) -> None:
    facts = device_facts(device)
    sheet = datasheet_peak(facts["name"], facts["total_bytes"], "bf16")
    ceiling = measured_ceiling(device, "bf16") if device.type == "cuda" else None
    flops = step_flops(plan)
    for row in rows:
        if row["status"] == "ok" and row["median_s"]:
            rate = case.tokens / row["median_s"]
            row["tokens_per_s"] = rate
            row["model_flops_per_s"] = rate * flops.model_per_token
            row["utilisation"] = utilisation(plan, rate, sheet, ceiling, None)


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Our throughput over theirs, for each mode both ran in."""
    speed = {row["name"]: row["tokens_per_s"] for row in rows if "tokens_per_s" in row}
    return {
        mode: speed[f"memcalc {mode}"] / speed[f"transformers {mode}"]
        for mode in ("eager", "compiled")
        if f"memcalc {mode}" in speed and f"transformers {mode}" in speed
    }


def run_job(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The sweep's form of `run_case`."""
    record = run_case(job["case"], device, job["tiny"], job["modes"], job.get("settings"))
    return {"status": record["status"], "record": record}


def run_residual(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Step times at 2 and 4 layers by mode: two blocks are the difference, the rest is the rest."""
    case = case_of("8b-slice", device, job["tiny"])._replace(grad_accum_steps=1, attention="flash")
    record = {**new_record("residual"), "tiny": job["tiny"], "device": device_facts(device),
              "modes": {}}  # fmt: skip
    for mode in job["modes"]:
        rows = {}
        for layers in (2, 4):
            config = dataclasses.replace(case.config, num_hidden_layers=layers)
            runner = Ours(case._replace(config=config), device, mode == "compiled")
            steps_of(runner, device, 1 if job["tiny"] else _WARMUP)
            seconds = steps_of(runner, device, 3 if job["tiny"] else 20)
            rows[layers] = {"step_s": seconds, **spread_of(seconds)}
            record["setup"] = stated(runner.step.plan)
            runner = None  # type: ignore[assignment]
            release(device)
        short, long = rows[2]["median_s"], rows[4]["median_s"]
        record["modes"][mode] = {
            "layers": rows, "block_s": (long - short) / 2, "rest_s": 2 * short - long,
        }  # fmt: skip
    missing = [mode for mode in job.get("wanted", job["modes"]) if mode not in record["modes"]]
    record |= {"status": "ok", "late": len(missing)}
    return {"status": "ok", "record": record}


def table(records: Iterable[dict[str, Any]]) -> Any:
    """A rich table of runners: milliseconds, tokens/s, utilisation by both conventions."""
    from rich.table import Table

    shown = Table(title="Training step, median of all turns")
    for column in ("case", "runner", "ms", "p10", "p90", "tokens/s", "MFU", "causal", "of matmul"):
        shown.add_column(column, justify="left" if column in ("case", "runner") else "right")
    for record in records:
        for row in record["runners"]:
            if row["status"] != "ok":
                shown.add_row(record["case"], row["name"], row["status"], row.get("reason", ""))
                continue
            used = row["utilisation"]
            sheet, ceiling = used["datasheet"] or {}, used["measured_matmul"] or {}
            times = [f"{row[name] * 1e3:.1f}" for name in ("median_s", "p10_s", "p90_s")]
            shares = [sheet.get("mfu"), sheet.get("mfu_causal"), ceiling.get("mfu_causal")]
            said = ["-" if share is None else f"{share:.1%}" for share in shares]
            shown.add_row(record["case"], row["name"], *times, f"{row['tokens_per_s']:,.0f}", *said)
    return shown


def command(
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1 or cpu")] = None,
    tiny: Annotated[bool, typer.Option(help="Tiny sizes, eager only")] = False,
    case: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CASES)}")] = None,
    eager_only: Annotated[bool, typer.Option(help="Leave the compiled pair out")] = False,
    out: Annotated[Path | None, typer.Option(help="Append the records there")] = None,
) -> None:
    """Run the cases asked for, print the table, append records where asked."""
    from rich.console import Console

    for name in case or ():
        if name not in CASES:
            raise unknown("--case", name, CASES)
    chosen = pick_device(device)
    modes = ("eager",) if tiny or eager_only else ("eager", "compiled")
    found = []
    for name in case or CASES:
        found.append(run_case(name, chosen, tiny, modes))
        if out is not None:
            append(out, found[-1])
    Console(width=None if sys.stdout.isatty() else 110).print(table(found))


def main(words: list[str]) -> int:
    """The program; the status it ends with."""
    return run_command(command, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
