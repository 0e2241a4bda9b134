"""Stand-ins for tests of the sweep: children that answer from a script, and CUDA's counters."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from benchmarks.sweep import children, predictions, stages
from benchmarks.sweep.children import ChildFailed, Clock, Log
from benchmarks.sweep.kept import Kept

_real_predict = predictions.predict
_predicted: dict[str, Any] = {}
FACTS = {"type": "cuda", "name": "NVIDIA H200", "total_bytes": 150_754_820_096}


def predict_once(spec, device, kind):
    """`predict`, which says the same of the same setup each time, asked once a process."""
    key = json.dumps([spec.model, spec.training, spec.kernels, repr(device), kind], sort_keys=True)
    if key not in _predicted:
        _predicted[key] = _real_predict(spec, device, kind)
    return copy.deepcopy(_predicted[key])


class Script:
    """Answers of all children of a sweep: a function of (child number, job), and what was asked."""

    def __init__(self, answer):
        self.answer, self.asked, self.children = answer, [], []

    def child(self, device, log, preload=False):
        made = FakeChild(self, len(self.children))
        self.children.append(made)
        return made


class FakeChild:
    def __init__(self, script, number):
        self.script, self.number, self.jobs, self.closed = script, number, 0, False
        self.process = SimpleNamespace(poll=lambda: 0 if self.closed else None)

    def ask(self, job, timeout_s):
        assert not self.closed, "asked after its end"
        self.jobs += 1
        self.script.asked.append((self.number, job))
        reply = self.script.answer(self.number, job)
        if isinstance(reply, ChildFailed):
            self.closed = True
            raise reply
        return {"spent_s": 0.1, **reply}

    def close(self):
        self.closed = True

    kill = close


def stop_the_clock(monkeypatch):
    """No time passes for a sweep's clock."""
    still = SimpleNamespace(monotonic=lambda: 0.0, strftime=time.strftime)
    monkeypatch.setattr(children, "time", still)


def sweep_of(tmp_path, monkeypatch, answer, minutes=1000.0, have=(), tiny=False, facts=FACTS):
    """A sweep whose children are scripted, and while which no time passes; (sweep, script)."""
    script = Script(answer)
    monkeypatch.setattr(stages, "Child", script.child)
    monkeypatch.setattr(predictions, "predict", predict_once)
    stop_the_clock(monkeypatch)
    folder = tmp_path / "out"
    kept = Kept(folder, have)
    log = Log(folder / "log.txt")
    sweep = stages.Sweep("cuda:0", folder, Clock(minutes), log, kept, tiny, facts=dict(facts))
    return sweep, script


def measured(job, status="ok", name="NVIDIA H200", held_after=None, **memory):
    """What a worker answers to a measure job."""
    record = {
        "schema": 1, "kind": "measure", "status": status, "device": {"name": name},
        "memory": memory, "sweep": {"held_after": held_after or {"allocated_bytes": 0}},
    }  # fmt: skip
    return {"status": status, "record": record}


class Counters(defaultdict):
    """torch.cuda.memory_stats of a device that holds nothing; every counter is 0."""

    def __init__(self):
        super().__init__(int)


def stand_in_for_cuda(monkeypatch: Any, torch: Any, trace: Any = (), free: int = 1 << 30) -> None:
    """Let code written for CUDA's runtime run on the CPU: counters of 0, no streams, no context."""
    cuda = torch.cuda
    nothing = lambda *a, **k: None  # noqa: E731
    stream = SimpleNamespace(synchronize=nothing)
    snapshot = {"segments": [], "device_traces": [list(trace)]}
    for name, value in {
        "init": nothing, "set_device": nothing, "synchronize": nothing, "empty_cache": nothing,
        "reset_peak_memory_stats": nothing, "memory_stats": lambda *a: Counters(),
        "memory_reserved": lambda *a: 0, "mem_get_info": lambda *a: (free, 2 * free),
        "get_device_capability": lambda *a: (9, 0), "Stream": lambda *a: stream,
        "stream": lambda s: contextlib.nullcontext(),
        "get_device_properties": lambda *a: SimpleNamespace(name="stand-in", total_memory=2 * free),
    }.items():  # fmt: skip
        monkeypatch.setattr(cuda, name, value)
    monkeypatch.setattr(cuda.memory, "_snapshot", lambda *a: snapshot)
    monkeypatch.setattr(cuda.memory, "_record_memory_history", nothing)
