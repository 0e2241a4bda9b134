"""A whole training run as text: its tokens and pace, then time, energy and cost with their range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.engine.words import layout_line
from memcalc.output.console import Page
from memcalc.units import count_text, si

_DAY, _HOUR, _MINUTE = 86400.0, 3600.0, 60.0
Spread = Mapping[str, float]


def train_time_page(page: Page, found: Mapping[str, Any]) -> None:
    """The whole page."""
    _title(page, found)
    _run(page, found["run"])
    _pace(page, found["pace"])
    page.line()
    _table(page, found)
    _availability(page, found["availability"])
    _optimal(page, found)


def quiet_line(found: Mapping[str, Any]) -> str:
    """Steps, seconds of the wall clock, GPU-hours, kWh and USD in one line; `none` is unknown."""

    def said(spread: Spread | None) -> str:
        return "none" if spread is None else f"{spread['expected']:.6g}"

    time = found["time"]
    return (
        f"steps {found['run']['steps']} wall_s {said(time['wall_s'])} "
        f"gpu_hours {said(time['gpu_hours'])} kwh {said(found['energy']['kwh'])} "
        f"usd {said(found['cost']['usd'])}"
    )


def duration(seconds: float, like: float | None = None) -> str:
    """Seconds in a unit that leaves at least two of it, of like where given: 20.8 days, 3.02 h, 740 ms."""
    for unit, name in ((_DAY, "days"), (_HOUR, "h"), (_MINUTE, "min"), (0.5, "s")):
        if (seconds if like is None else like) >= 2 * unit:
            return f"{_figures(seconds / max(unit, 1.0))} {name}"
    return f"{_figures(seconds * 1000)} ms"


def _figures(value: float, like: float | None = None) -> str:
    """Three figures, whole numbers above 100 with separators; like is for duration's sake."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def _title(page: Page, found: Mapping[str, Any]) -> None:
    model, setup = found["model"], found["setup"]
    page.line(
        f"{model['name']}: {count_text(model['parameters'])} parameters ({model['parameters']:,})",
        "bold",
    )
    gpu = setup["gpu"] or "none"
    page.line(
        f"seq {setup['seq_len']}, global batch {setup['global_batch']:,}, {setup['precision']}, "
        f"recompute {setup['recompute']}, stack {setup['stack']}, gpu {gpu}"
    )
    if layout := layout_line(setup):
        page.line(layout)
    page.line()


def _run(page: Page, run: Mapping[str, Any]) -> None:
    if run["samples"] is not None:
        filled = "packed" if run["packed"] else "padded to --seq"
        page.line(
            f"{run['samples']:,} samples x {_counted(run['epochs'], 'epoch')} of {run['sample_tokens']:g} "
            f"tokens, {filled}: {count_text(run['real_tokens'])} tokens"
        )
    padding = run["padding_share"]
    more = f", {padding:.1%} of them padding" if padding > 0 else ""
    page.line(
        f"{count_text(run['tokens'])} tokens computed{more}: {run['steps']:,} steps of "
        f"{run['tokens_per_step']:,}; {run['model_flops']:.3g} model FLOPs (full square)"
    )


def _counted(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _pace(page: Page, pace: Mapping[str, Any]) -> None:
    rests = f", calibration {pace['calibration']}" if pace["calibration"] else ""
    page.line(f"pace: {pace['basis']}{rests}")
    if pace["mfu"] is not None:
        page.line(
            f"utilisation: {pace['mfu']:.1%} full square, {pace['mfu_causal']:.1%} causal, "
            f"{pace['hfu']:.1%} executed, of {si(pace['peak_flops_per_s'], 'FLOP/s')} "
            f"({pace['peak_source']})"
        )


def _table(page: Page, found: Mapping[str, Any]) -> None:
    """What is expected, and the least and the most where they differ."""
    pace, time = found["pace"], found["time"]
    spreads: list[tuple[str, Spread | None, Any]] = [
        ("step time", pace["step_s"], duration),
        ("tokens/s", pace["tokens_per_s"], _figures),
        ("tokens/s a GPU", pace["tokens_per_s_per_gpu"], _figures),
        ("training", time["training_s"], duration),
        ("wall clock", time["wall_s"], duration),
        ("GPU-hours", time["gpu_hours"], _figures),
        ("energy, kWh", found["energy"]["kwh"], _figures),
        ("cost, USD", found["cost"]["usd"], _figures),
    ]
    wide = any(spread and spread["low"] != spread["high"] for _, spread, _ in spreads)
    rows = [_row(name, spread, said, wide) for name, spread, said in spreads]
    columns = ("The run", ">expected", ">least", ">most") if wide else ("The run", ">expected")
    page.table(columns, rows)


def _row(name: str, spread: Spread | None, said: Any, wide: bool) -> tuple[str, ...]:
    if spread is None:
        return (name, "unknown", "", "") if wide else (name, "unknown")
    middle = spread["expected"]
    cells = [said(middle, middle)]
    if wide:
        differ = spread["low"] != spread["high"]
        cells += [said(spread[end], middle) if differ else "" for end in ("low", "high")]
    return (name, *cells)


def _availability(page: Page, found: Mapping[str, Any]) -> None:
    if found["basis"] == "none":
        return
    line = f"availability {found['factor']:.1%}, {found['basis']}"
    if found["mtbf_s"] is not None:
        line = (
            f"availability {found['factor']:.1%}: a failure every {duration(found['mtbf_s'])}, "
            f"{found['failures']:,.3g} in all; checkpoints of {duration(found['checkpoint_s'])} best "
            f"after {duration(found['interval_s'])} of training, {duration(found['restart_s'])} to "
            "restart"
        )
    page.line(line)


def _optimal(page: Page, found: Mapping[str, Any]) -> None:
    optimal, run = found["compute_optimal"], found["run"]
    each = run["real_tokens"] / optimal["parameters"]
    page.line(
        f"compute-optimal: {optimal['tokens_per_parameter']} tokens a parameter, "
        f"{count_text(optimal['tokens'])}; this run has {each:.3g} a parameter, its tokens suit "
        f"{count_text(optimal['parameters_for_tokens'])} parameters"
    )
