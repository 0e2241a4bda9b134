"""Feedback training as text: models, phases, the four numbers, what is alive at the worst, the verdict."""

from __future__ import annotations

from memcalc.engine.feedback.results import FeedbackEstimate, PhaseRow
from memcalc.output.console import Page
from memcalc.output.estimate_text import breakdown_table, numbers_table, verdict_line
from memcalc.output.time_text import duration
from memcalc.units import count_text, gib


def feedback_page(page: Page, result: FeedbackEstimate) -> None:
    """The whole page."""
    _title(page, result)
    _models(page, result)
    _phases(page, result)
    _inside(page, result)
    numbers_table(page, result.estimate.memory)
    breakdown_table(page, result.estimate.memory)
    _rates(page, result)
    styles = {"fits": "bold green", "tight": "bold yellow", "does-not-fit": "bold red"}
    page.line(verdict_line(result.estimate), styles.get(result.estimate.verdict or "", "bold"))


def _title(page: Page, result: FeedbackEstimate) -> None:
    model, setup = result.estimate.model, result.estimate.setup
    said = result.settings
    page.line(
        f"{model.name}: {count_text(model.parameters)} parameters ({model.parameters:,}), "
        f"{model.num_hidden_layers} layers, {result.method}",
        "bold",
    )
    rollout = ""
    if result.method in ("ppo", "grpo"):
        group = f" in groups of {said['group']}" if result.method == "grpo" else ""
        rollout = f", rollout {said['rollout_batch']}{group}, {said['epochs']} passes over it"
        rollout += f", engine {said['engine']}"
    reference = "" if result.method == "rm" else f", reference {said['reference']}"
    page.line(
        f"prompt {said['prompt']} + response {said['generate']} = seq {setup['seq_len']}, micro-batch "
        f"{setup['micro_batch_size']}, grad-accum {setup['grad_accum_steps']}{rollout}{reference}, "
        f"{setup['precision']}, {setup['optimizer']} ({setup['optimizer_impl']}), recompute "
        f"{setup['recompute']}, stack {setup['stack']}, gpu {setup['gpu'] or 'none'}"
    )
    page.line()


def _models(page: Page, result: FeedbackEstimate) -> None:
    rows = [
        (row.name, row.role, count_text(row.parameters) if row.parameters else "", _size(row.weights_bytes),
         _size(row.gradient_bytes), _size(row.optimizer_bytes), _size(row.states_bytes))
        for row in result.models
    ]  # fmt: skip
    page.table(("Model", "role", ">params", ">weights", ">gradients", ">optimizer", ">GiB"), rows)
    page.line(f"sum of states: {gib(result.states_bytes)} ({result.states_bytes:,} bytes)")
    host = sum(row.host_bytes for row in result.models)
    if host:
        page.line(f"of it on the host outside their phase: {gib(host)}")
    page.line()


def _size(value: int) -> str:
    return f"{value / 2**30:,.2f}" if value else "-"


def _phases(page: Page, result: FeedbackEstimate) -> None:
    """A row a phase: what stands, what the phase takes, the peak, its time."""
    rows = []
    for row in result.phases:
        memory = row.memory
        mark = " *" if memory.name == result.worst else ""
        standing = sum(memory.standing.values())
        rows.append(
            (memory.name + mark, _size(standing), _size(memory.engine_bytes),
             _size(memory.working.bytes), _size(memory.peak_bytes), _time(row), _share(row))
        )  # fmt: skip
    page.table(("Phase", ">standing", ">engine", ">working", ">peak GiB", ">time", ">share"), rows)
    worst = next(row.memory for row in result.phases if row.memory.name == result.worst)
    page.line(f"*: the worst phase; it peaks at {worst.working.at}")
    page.line()


def _time(row: PhaseRow) -> str:
    return "" if row.seconds is None else duration(row.seconds)


def _share(row: PhaseRow) -> str:
    return "" if row.share is None else f"{row.share:.1%}"


def _inside(page: Page, result: FeedbackEstimate) -> None:
    """The phases of an update's own step."""
    rows = [
        (row.memory.name, name, gib(row.memory.peak_bytes - row.memory.working.bytes + size))
        for row in result.phases
        for name, size in row.memory.working.inside.items()
    ]
    page.table(("Update", "its phase", ">peak requested"), rows)


def _rates(page: Page, result: FeedbackEstimate) -> None:
    time = result.estimate.time
    if time.step_s is None or time.tokens_per_s is None:
        page.line("Time: unknown; name a GPU with --gpu")
        page.line()
        return
    what = "pairs" if result.method in ("dpo", "rm") else "sequences"
    each = 2 if what == "pairs" else 1
    page.line(
        f"an iteration takes {duration(time.step_s)}: {(time.samples_per_s or 0) / each:.4g} {what}/s, "
        f"{time.tokens_per_s:,.0f} tokens/s"
    )
    if result.generated_tokens_per_s is not None:
        page.line(
            f"{result.generated_tokens_per_s:,.0f} generated tokens/s over the whole iteration"
        )
    page.line("not compared with any run: no band")
    page.line()
