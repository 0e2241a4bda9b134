"""remedy: when a setup does not fit, the cheapest change that makes it fit, each one an estimate.

Changes are tried in order of what they cost the run: nothing, a little speed, sharding over the GPUs there
are, recomputation, then what changes the numerics or the task. The first that fits on its own is named
first; when none does, the free ones are kept and the search goes on with them in place. A few tries, so
that an estimate stays quick: `memcalc advise` (planning/advise) prices all of them, and layouts, GPUs,
adapters and their speed too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.estimate import estimate
from memcalc.engine.make_plan import plan_of
from memcalc.engine.results import Estimate
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan, with_degrees
from memcalc.inputs.training import ResolvedSetup, TrainingSetup, resolve
from memcalc.units import gib

_SMALLEST_SEQ = 128
#: Changes that are enough alone, at most so many.
_MOST = 3
#: Changes tried in vain once one is known that is enough.
_AFTER_THE_FIRST = 3


class Run(NamedTuple):
    """What is changed: the setup and how GPUs divide it."""

    setup: TrainingSetup
    parallel: ParallelPlan | None


Change = tuple[str, Callable[[Run], Run]]


def _micro(setup: TrainingSetup, micro: int) -> TrainingSetup:
    """Halve the micro-batch and accumulate instead: the same global batch."""
    accum = (setup.grad_accum_steps or 1) * ((setup.micro_batch_size or 1) // micro)
    return replace(setup, micro_batch_size=micro, grad_accum_steps=accum)


def _sharding(run: Run) -> list[Change]:
    """Sharding states over copies that each hold all of them, by what the stack calls it."""
    if run.parallel is None:
        return []
    layout = with_degrees(run.parallel)
    if layout.copies == 1 or layout.sharded:
        return []
    stack = run.setup.base
    if stack in ("megatron", "nanotron", "megatron-deepspeed"):
        return [("--zero 1 (optimizer states shared by the copies)", _divided(zero=1))]
    if stack == "deepspeed":
        return [("--zero 3 (states shared by the copies)", _divided(zero=3))]
    return [("--fsdp (states shared by the copies)", _divided(fsdp=True))]


def _divided(**fields: Any) -> Callable[[Run], Run]:
    def divided(run: Run) -> Run:
        return run._replace(parallel=replace(run.parallel or ParallelPlan(), **fields))

    return divided


def _changes(run: Run, seq: int) -> list[Change]:
    """The changes open to this setup, cheapest first."""
    setup = run.setup
    changes: list[Change] = []

    def add(label: str, **fields: Any) -> None:
        if any(getattr(setup, name) != value for name, value in fields.items()):
            changes.append((label, _set(fields)))

    if setup.optimizer == "adamw":
        add("--optimizer-impl fused (no slower)", optimizer_impl="fused")
    if setup.attention == "eager":
        add("--attention flash (faster)", attention="flash")
    if setup.base == "torch":
        add("--loss chunked (head and loss in chunks of tokens)", loss="chunked")
    changes += _sharding(run)
    micro = setup.micro_batch_size or 1
    while micro > 1:
        micro //= 2
        if (setup.micro_batch_size or 1) % micro == 0:
            changes.append((f"--micro-batch {micro} (accumulating the rest)", _to_micro(micro)))
    if setup.recompute in ("none", "selective"):
        add("--recompute sac (keeps matmuls and attention)", recompute="sac")
    if setup.recompute == "none" and setup.base == "megatron":
        add(
            "--recompute selective --recompute-modules moe_act,layernorm (nothing is multiplied)",
            recompute="selective",
            recompute_modules=("moe_act", "layernorm"),
        )
    if setup.recompute != "full" or setup.recompute_layers is not None:
        whole = {"recompute": "full", "recompute_layers": None, "recompute_modules": ()}
        add("--recompute full (one more forward)", **whole)
    if setup.precision in ("fp32", "tf32"):
        add("--precision bf16-mixed", precision="bf16-mixed")
    if setup.optimizer == "adamw":
        add("--optimizer adamw-8bit", optimizer="adamw-8bit", optimizer_impl=None)
    if setup.precision not in ("bf16", "bf16-master"):
        add("--precision bf16 (states in 16 bit)", precision="bf16")
    for shorter in sorted({seq // 2, seq // 4, _SMALLEST_SEQ}, reverse=True):
        if _SMALLEST_SEQ <= shorter < seq:
            add(f"--seq {shorter}", seq_len=shorter)
    return changes


def _set(fields: dict[str, Any]) -> Callable[[Run], Run]:
    return lambda run: run._replace(setup=replace(run.setup, **fields))


def _to_micro(micro: int) -> Callable[[Run], Run]:
    return lambda run: run._replace(setup=_micro(run.setup, micro))


def _sized(resolved: ResolvedSetup) -> TrainingSetup:
    """The setup with every size stated."""
    return replace(
        resolved.setup, seq_len=resolved.seq_len, micro_batch_size=resolved.micro_batch_size,
        grad_accum_steps=resolved.grad_accum_steps, global_batch=None,
    )  # fmt: skip


def remedies(
    config: ModelConfig,
    setup: TrainingSetup,
    device: Device,
    kernels: Mapping[str, Any] | None = None,
    parallel: ParallelPlan | None = None,
) -> list[str]:
    """What makes the setup fit, cheapest first; the last line says so when nothing does.

    Checked by: unit/test_remedy.py.
    """
    copies = 1 if parallel is None else with_degrees(parallel).copies
    resolved = resolve(setup, config, copies)
    base = Run(_sized(resolved), parallel)

    def tried(changed: Run) -> Estimate:
        how: dict[str, Any] = {"gpu": device, "kernels": kernels, "parallel": changed.parallel}
        quick = estimate(config, changed.setup, **how, allocator=False)
        if not quick.fits:  # what is allocated is too much already
            return quick
        return estimate(config, changed.setup, **how)

    def is_open(change: Change) -> bool:
        """Whether the stack's code has this choice."""
        try:
            changed = change[1](base)
            plan_of(config, changed.setup, kernels, changed.parallel)
        except ConfigError:
            return False
        return True

    changes = [change for change in _changes(base, resolved.seq_len) if is_open(change)]
    lines: list[str] = []
    more = _AFTER_THE_FIRST
    for label, change in changes:
        result = tried(change(base))
        if result.fits:
            lines.append(_line(label, result))
        elif lines:
            more -= 1
        if len(lines) == _MOST or not more:
            return lines
    several = parallel is not None and with_degrees(parallel).size > 1
    return lines or _combined(base, changes, tried, several)


def _combined(
    base: Run,
    changes: list[Change],
    tried: Callable[[Run], Estimate],
    several: bool,
) -> list[str]:
    """No single change is enough: add them up, cheapest first, then drop what was not needed."""
    taken: list[Change] = []
    best = tried(base)
    for change in changes:
        result = tried(_applied(base, [*taken, change]))
        if _need(result) >= _need(best):
            continue
        taken, best = [*taken, change], result
        if best.fits:
            break
    if not best.fits:
        where = "to the training" if several else "on one GPU"
        how = "divide the model over more GPUs" if several else "shard the model over several GPUs"
        return [
            f"no change {where} is enough: with {_labels(taken)} it still needs "
            f"{gib(_need(best))}; {how}"
        ]
    for change in reversed(taken[:-1]):
        fewer = [kept for kept in taken if kept is not change]
        result = tried(_applied(base, fewer))
        if result.fits:
            taken, best = fewer, result
    return [_line(_labels(taken), best)]


def _applied(run: Run, changes: list[Change]) -> Run:
    for _, change in changes:
        run = change(run)
    return run


def _labels(changes: list[Change]) -> str:
    """The options of several changes; of several values for one option the last."""
    labels = [label.split(" (")[0] for label, _ in changes]
    return " ".join({label.split()[0]: label for label in labels}.values())


def _need(result: Estimate) -> int:
    """The least the process needs: what is allocated, and the context."""
    return result.memory.peak_allocated_bytes + result.memory.context_bytes


def _line(label: str, result: Estimate) -> str:
    memory = result.memory
    used, usable = memory.device_used_bytes or 0, memory.usable_bytes or 0
    if used > usable:
        return f"{label}: fits with {gib(_need(result))}, cached blocks given back"
    return f"{label}: fits with {gib(used)}"
