"""The stages of the sweep, each a walk over what is left to do while the clock allows. No torch.

Setups of one (precision, compiled) group share a process; a process that hangs, dies or is not clean
is replaced. Checked by: tests/harness/test_gpu_sweep.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.sweep import predictions
from benchmarks.sweep.children import Child, ChildFailed, Clock, Log
from benchmarks.sweep.kept import Kept
from benchmarks.sweep.questions import QUESTIONS
from benchmarks.sweep.setups import Spec, memory_setups, tiny_setups
from memcalc.harness.record_head import new_record

#: Every so many setups one is measured again in a process of its own.
CONTROL_EVERY = 20
#: Seconds a process takes to start and reach the device, and what is left at the end for the report.
_START_S, _REPORT_S = {"cuda": 12.0, "cpu": 4.0}, 3.0
_LEAST_TIMEOUT_S = 90.0
_FIRST_S = 30.0  # torch's libraries are read from a cold disk
_ORDER = ("bf16-mixed", "bf16", "bf16-master", "fp16-mixed", "tf32", "fp32", "fp8-mixed")
Tell = Callable[[str, int, int], None]


@dataclass
class Sweep:
    """One call of the sweep: where it runs, its clock, what it has and keeps."""

    device: str
    out: Path
    clock: Clock
    log: Log
    kept: Kept
    tiny: bool
    tell: Tell = lambda stage, done, total: None
    spare: Child | None = None
    children: list[Child] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """cuda or cpu."""
        return str(self.facts.get("type", "cuda"))

    @property
    def name(self) -> str:
        """The device's name."""
        return str(self.facts.get("name"))

    def count(self, stage: str, what: str) -> None:
        """One more of something in a stage's tally."""
        tally = self.counts.setdefault(stage, {})
        tally[what] = tally.get(what, 0) + 1

    def timeout_s(self, kind: str, guess_s: float) -> float:
        """How long a job may take: several times the guess, never beyond the end."""
        patience = max(_LEAST_TIMEOUT_S, 5 * guess_s * self.clock.stretch(kind))
        return max(1.0, min(patience, self.clock.left_s() - _REPORT_S))

    def allows(self, kind: str, guess_s: float, fresh: bool = False) -> bool:
        """Whether a job, and the start of a process for it, still fits."""
        start = _START_S[self.kind] if fresh else 0.0
        return self.clock.allows(kind, guess_s, start + _REPORT_S)

    def start(self, fresh: bool = True) -> Child:
        """A process for some jobs; on a GPU's machine the next one is made ready meanwhile.

        On a CPU, where no context is left behind, a process that was given back may serve again.
        """
        if self.kind == "cpu":
            child = None if fresh else self.spare
            self.spare = self.spare if fresh else None
            return child or self._made(preload=False)
        child = self.spare or self._made(preload=True)
        self.spare = self._made(preload=True)
        return child

    def give_back(self, child: Child) -> None:
        """Be done with a process: it ends, or on a CPU waits for other jobs."""
        if self.kind == "cpu" and self.spare is None and child.process.poll() is None:
            self.spare = child
        else:
            child.close()

    def _made(self, preload: bool) -> Child:
        child = Child(self.device, self.log, preload)
        self.children.append(child)
        return child

    def close(self) -> None:
        """End every process that still runs: the one made ready, and the one an interrupt left."""
        for child in self.children:
            if child.process.poll() is None:
                child.kill()

    @contextlib.contextmanager
    def child(self) -> Iterator[Child]:
        """`start` and `give_back` as a context."""
        child = self.start(fresh=False)
        try:
            yield child
        finally:
            self.give_back(child)

    def ask(self, child: Child, job: dict[str, Any], guess_s: float) -> dict[str, Any]:
        """A job's answer; {"status": "failed", "error"} when the child ended or hung."""
        try:
            reply = child.ask(job, self.timeout_s(job["kind"], guess_s))
        except ChildFailed as failure:
            self.log.line(f"{job['kind']}: {failure}")
            return {"status": "failed", "error": str(failure), "error_type": failure.how}
        self.clock.learn(job["kind"], guess_s, reply.get("spent_s", guess_s))
        return reply


def find_device(sweep: Sweep) -> None:
    """Learn the device's facts from a first process. Raises ConfigError where it is not there."""
    from memcalc.errors import ConfigError

    with sweep.child() as child:
        reply = sweep.ask(child, {"kind": "facts"}, _FIRST_S)
    if reply["status"] != "ok":
        raise ConfigError(str(reply.get("error", "device: no answer")))
    sweep.facts = reply["device"]
    sweep.log.line(f"device: {sweep.name}, {sweep.facts['total_bytes']} bytes")


def questions(sweep: Sweep) -> None:
    """The open questions: those that need it in processes of their own, the rest in one."""
    answered = sweep.kept.answered(sweep.name)
    left = [q for q in QUESTIONS if q.id not in answered]
    shared: Child | None = None
    try:
        for number, question in enumerate(left):
            sweep.tell("questions", number, len(left))
            if question.blocked:
                _keep_question(sweep, question.id, "skipped", {"reason": question.blocked})
                continue
            alone = question.fresh and sweep.kind == "cuda"
            if not sweep.allows("question", question.guess_s, alone or shared is None):
                sweep.count("questions", "no time")
                continue
            if alone or shared is None or shared.process.poll() is not None:
                child = sweep.start(fresh=False)
                shared = shared if alone else child
            else:
                child = shared
            answered_it = _ask_question(sweep, child, question.id, question.guess_s)
            if alone:
                child.close()
            elif not answered_it and shared is not None:
                shared.close()  # after some errors a process can do nothing more
                shared = None
    finally:
        if shared is not None:
            sweep.give_back(shared)


def _ask_question(sweep: Sweep, child: Child, name: str, guess_s: float) -> bool:
    """Ask one and keep its record; whether it went well."""
    job = {"kind": "question", "id": name, "tiny": sweep.tiny, "out": str(sweep.out)}
    reply = sweep.ask(child, job, guess_s)
    _keep_question(sweep, name, "failed", {"error": reply.get("error")}, reply.get("record"))
    return reply["status"] != "failed"


def _keep_question(
    sweep: Sweep, name: str, status: str, said: dict[str, Any], record: dict[str, Any] | None = None
) -> None:
    """Keep the record of a question, or one that says why there is no answer."""
    facts = {"id": name, "status": status, **said, "device": sweep.facts}
    record = record or {**new_record("question"), **facts}
    sweep.kept.add(record)
    sweep.count("questions", record["status"])
    sweep.log.line(f"question {name}: {record['status']}")


@dataclass
class Setup:
    """A setup to measure, its prediction and the seconds it may take."""

    spec: Spec
    role: str
    predicted: dict[str, Any]
    guess_s: float

    @property
    def size(self) -> float:
        """Predicted peak in bytes; what cannot be predicted comes last."""
        memory = self.predicted.get("memory")
        return float(memory["peak_requested_bytes"]) if memory else float("inf")


def planned(sweep: Sweep) -> list[list[Setup]]:
    """What is left to measure, by process: the groups, then every control alone."""
    specs = tiny_setups() if sweep.tiny else memory_setups()
    every = 4 if sweep.tiny else CONTROL_EVERY
    device = predictions.device_for(sweep.facts)
    done = sweep.kept.measured(sweep.name)
    groups: dict[tuple[str, bool], list[Setup]] = {}
    alone: list[list[Setup]] = []
    for number, spec in enumerate(specs):
        roles = ["main"] + (["control"] if number % every == every - 1 else [])
        for role in roles:
            if (spec.key, role) in done:
                sweep.count("memory", "had before")
                continue
            predicted = predictions.predict(spec, device, sweep.kind)
            setup = Setup(spec, role, predicted, predictions.guess_s(spec, predicted, sweep.kind))
            if role == "control":
                alone.append([setup])
            else:
                groups.setdefault(spec.group, []).append(setup)
    ordered = sorted(groups, key=lambda key: (key[1], _ORDER.index(key[0])))
    return [*(sorted(groups[key], key=lambda s: s.size) for key in ordered), *alone]


def memory(sweep: Sweep) -> None:
    """Measure every setup that is left, small ones first within a process."""
    batches = planned(sweep)
    total, done = sum(map(len, batches)), 0
    for batch in batches:
        child: Child | None = None
        for setup in batch:
            sweep.tell("memory", done, total)
            done += 1
            if reason := _refused(sweep, setup, child is None):
                sweep.count("memory", reason)
                sweep.log.line(f"{setup.spec.label()}: {reason}")
                continue
            child = child or sweep.start()
            if not _measure(sweep, child, setup):
                child.close()
                child = None
        if child is not None:
            child.close()


def _refused(sweep: Sweep, setup: Setup, starts: bool) -> str:
    """Why a setup is not run: no estimate, predicted not to fit, or no time."""
    if "error" in setup.predicted:
        return f"refused: {setup.predicted['error']}"
    if setup.predicted["fits"] is False and not setup.spec.expects_oom:
        return "predicted not to fit"
    return "" if sweep.allows("measure", setup.guess_s, starts) else "no time"


def _measure(sweep: Sweep, child: Child, setup: Setup) -> bool:
    """Measure one setup and keep its record; whether the process can take another."""
    spec = setup.spec
    steps = {"steps": 2, "warmup": 1}
    job = {"kind": "measure", "model": spec.model, "training": spec.training,
           "kernels": spec.kernels, **steps}  # fmt: skip
    reply = sweep.ask(child, job, setup.guess_s)
    left_over = reply["status"] == "unclean"
    if left_over and child.jobs > 1:
        sweep.log.line(f"{spec.label()}: process not clean, {reply['held']}; a new one")
        sweep.count("memory", "process replaced")
        with sweep.child() as fresh:
            reply = sweep.ask(fresh, job, setup.guess_s)
    whole = "record" in reply
    record = reply["record"] if whole else _failure(spec, reply, sweep.facts)
    extra = {"role": setup.role, "job": child.jobs, "guess_s": setup.guess_s,
             "expects_oom": spec.expects_oom}  # fmt: skip
    record["sweep"] = {"key": spec.key, "label": spec.label(), **record.get("sweep", {}), **extra}
    record["estimate"] = setup.predicted
    sweep.kept.add(record)
    sweep.count("memory", record["status"])
    sweep.log.line(f"{spec.label()} [{setup.role}]: {record['status']}")
    clean = not any((record["sweep"].get("held_after") or {}).values())
    return whole and clean and not left_over and record["status"] in ("ok", "oom", "refused")


def _failure(spec: Spec, reply: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The record of a setup whose process ended, hung, or answered with an error."""
    said = {"type": reply.get("error_type"), "message": reply.get("error", reply["status"])}
    return {**new_record("measure", spec.plan()), "status": "failed", "error": said,
            "device": facts, "memory": {}}  # fmt: skip
