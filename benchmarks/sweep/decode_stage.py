"""The stage of the sweep that generates tokens: some ten generations by the harness's decoder.

Each record holds the bytes of every phase by tracker and allocator, the seconds of every pass, and the
estimate by default rates beside them. One process for all, a new one after a failure. No torch.
Checked by: tests/harness/test_decode_stage.py.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from benchmarks.sweep.children import Child
from benchmarks.sweep.setups import model_of
from benchmarks.sweep.stages import Sweep
from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.harness.record_head import new_record
from memcalc.inputs.training import TrainingSetup

#: Kind of the records: that of `verify --decode`.
KIND = "verify-decode"
_FINAL = ("ok", "oom", "refused")
_START_S = 3.0
#: A pass at the least, Python and launches included, and bytes/s that weights are read at.
_LAYER_S, _BYTES_PER_S = 0.002, 1.0e12
_GENERATIONS = 7  # warm-up, timed, read and tracked, which is slow


class Asked(NamedTuple):
    """One generation: a model, how much of it, what is generated."""

    model: str
    layers: int | None
    precision: str
    batch: int
    prompt: int
    new_tokens: int
    cache: str
    attention: str = "flash"

    @property
    def key(self) -> str:
        """The hash of what is stated."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:16]

    def label(self) -> str:
        """A line a reader knows it by."""
        return f"generate {' '.join(str(part) for part in self if part is not None)}"

    def setup(self) -> TrainingSetup:
        """The training setup a generation's plan is made of."""
        return TrainingSetup(
            seq_len=self.prompt + self.new_tokens, micro_batch_size=self.batch,
            precision=self.precision, attention=self.attention, num_layers=self.layers,
            optimizer="none",
        )  # fmt: skip

    def plan(self) -> Plan:
        """The engine's plan."""
        return plan_of(model_of(self.model), self.setup())

    def guess_s(self) -> float:
        """About how long it takes, for the deadline alone."""
        plan = self.plan()
        config = plan.config
        width = config.hidden_size * (4 * config.hidden_size + 3 * config.intermediate_size)
        read_s = 4.0 * width * config.num_hidden_layers / _BYTES_PER_S
        step_s = read_s + config.num_hidden_layers * _LAYER_S
        return 2.0 + _GENERATIONS * (self.new_tokens + 4) * step_s


def asked(tiny: bool) -> list[Asked]:
    """What is generated: whole models of 1B to 8B, every kind of cache, long contexts, experts."""
    if tiny:
        return [
            Asked("tiny-llama", None, "fp32", 2, 16, 4, "grow"),
            Asked("tiny-qwen2", None, "bf16", 1, 16, 4, "whole"),
        ]
    return [
        Asked("llama-3.2-1b", None, "bf16", 1, 128, 64, "grow"),
        Asked("llama-3.2-1b", None, "bf16", 16, 1024, 64, "whole"),
        Asked("llama-3.2-1b", None, "fp32", 1, 128, 32, "static", "eager"),
        Asked("llama-3.1-8b", None, "bf16", 1, 512, 64, "whole"),
        Asked("llama-3.1-8b", None, "bf16", 16, 2048, 32, "grow"),
        Asked("llama-3.1-8b", None, "bf16", 4, 8192, 32, "whole"),
        Asked("qwen2.5-7b", None, "bf16", 8, 1024, 32, "grow"),
        Asked("gpt2-xl", None, "bf16", 8, 512, 64, "static", "eager"),
        Asked("gemma-2-2b", None, "bf16", 2, 4096, 32, "grow", "eager"),
        Asked("mixtral-8x7b", 2, "bf16", 4, 512, 32, "grow"),
        Asked("deepseek-v2-lite", 8, "bf16", 4, 1024, 32, "grow"),
    ]


def decode(sweep: Sweep) -> None:
    """Run every generation that is left."""
    done = {
        record["sweep"]["key"]
        for record in sweep.kept.of(KIND, sweep.name)
        if record.get("status") in _FINAL
    }
    wanted, child = asked(sweep.tiny), None
    for number, one in enumerate(wanted):
        sweep.tell("decode", number, len(wanted))
        if one.key in done:
            sweep.count("decode", "had before")
        elif not sweep.allows("decode", one.guess_s() + _START_S, child is None):
            sweep.count("decode", "no time")
        else:
            child = child or sweep.start()
            if not _generate(sweep, child, one):
                child.close()
                child = None
    if child is not None:
        child.close()


def _generate(sweep: Sweep, child: Child, one: Asked) -> bool:
    """Run one and keep its record; whether the process can take another."""
    job = {"kind": "decode", "asked": list(one), "steps": 1 if sweep.tiny else 3}
    reply = sweep.ask(child, job, one.guess_s())
    record = reply.get("record")
    if record is None:
        said = {"type": reply.get("error_type"), "message": reply.get("error", reply["status"])}
        record = {**new_record(KIND, one.plan()), "status": "failed", "error": said,
                  "device": sweep.facts}  # fmt: skip
    record["sweep"] = {"key": one.key, "label": one.label(), "role": "decode"}
    sweep.kept.add(record)
    sweep.count("decode", record["status"])
    sweep.log.line(f"{one.label()}: {record['status']}")
    return bool(record["status"] == "ok")
