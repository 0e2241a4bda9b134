"""Spaces whose states are put on the timeline itself (FSDP2, DDP, DeepSpeed's ZeRO): one estimate a setup.

Gathers and buckets are events of the traced step there, so that no part of it can be priced apart; a setup
takes about 10 ms. The spaces are small and listed in full:

    torchtitan, torch, torch-compile   tp within a fast domain, data parallel over the rest: fsdp over all of
        it or one node (shard), parameters freed after forward or kept (reshard); torch also DDP; recompute
        none, selective, sac (torchtitan), full
    deepspeed   ZeRO 0 to 3, offload of the optimizer or of all, recompute none, full
    megatron-deepspeed   tp within a fast domain, stages by 1F1B, ZeRO 0 and 1, recompute none, full

micro-batch: the divisors of a rank's batch. No stages elsewhere, no cp, no ep.
Checked by: unit/test_search.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from memcalc.engine.device_side import with_modules
from memcalc.engine.estimate import estimate
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan, divisors
from memcalc.inputs.stacks import load_stack
from memcalc.planning.search.collect import Collector, Kept
from memcalc.planning.search.wishes import Wishes

SCALAR_STACKS: Final = ("torchtitan", "torch", "torch-compile", "deepspeed", "megatron-deepspeed")
Options = dict[str, str | bool]
#: What is computed again, by stack.
_RECOMPUTE: Final = {
    "torchtitan": ("none", "sac", "selective", "full"),
    "torch": ("none", "selective", "full"),
    "torch-compile": ("none", "full"),
    "deepspeed": ("none", "full"),
    "megatron-deepspeed": ("none", "full"),
}


class Scalar:
    """The space of one of these stacks."""

    def __init__(self, wishes: Wishes, stack: str) -> None:
        self.wishes, self.stack = wishes, stack
        self.refused: dict[str, int] = {}
        self.considered = 0

    def run(self, into: Collector, tell: Callable[[str, int, int], None] | None) -> None:
        """Price every setup."""
        import numpy as np

        found = list(self.space())
        self.considered = len(found)
        device = with_modules(self.wishes.device, load_stack(self.stack))
        for done, (options, setup, layout) in enumerate(found):
            if tell is not None:
                tell(f"{self.stack} setups", done, len(found))
            try:
                result = estimate(
                    self.wishes.config, setup, parallel=layout, gpu=self.wishes.device,
                    allocator=False,
                )  # fmt: skip
            except ConfigError as error:
                reason = str(error)
                self.refused[reason] = self.refused.get(reason, 0) + 1
                continue
            memory, lacking = result.memory, None
            if memory.usable_bytes is not None:
                driver = device.context_bytes + memory.communication_bytes
                least = memory.peak_allocated_bytes + driver - memory.usable_bytes
                lacking = np.array([[float(least)]])
            step = np.array([[float(result.time.step_s or 0.0)]])
            allocated = np.array([[float(memory.peak_allocated_bytes)]])
            into.add((step, allocated, lacking), 1, (self, options))

    def options(self, kept: Kept) -> Options:
        """A kept setup's options of `memcalc estimate`."""
        found: Options = kept.what[0][1]
        return found

    def stages(self, kept: Kept) -> tuple[int, ...]:
        """The first, the second and the last, as far as there are so many."""
        pp = int(str(self.options(kept).get("pp", 1)))
        return tuple(sorted({0, min(1, pp - 1), pp - 1}))

    def space(self) -> Iterator[tuple[Options, Any, ParallelPlan]]:
        """Every setup: its options, and what they state."""
        wishes = self.wishes
        for axis in ("vpp", "cp", "ep") if self._has_stages else ("pp", "vpp", "cp", "ep"):
            if not wishes.allows(axis, 1):
                self.refused[f"{axis}: only 1 in the space of stack {self.stack}"] = 1
                return
        for tp, pp in self._degrees():
            dp = wishes.gpus // (tp * pp)
            if wishes.batch % dp:
                reason = f"global-batch: no multiple of dp {dp} (tp {tp}, pp {pp})"
                self.refused[reason] = self.refused.get(reason, 0) + 1
                continue
            for micro_batch in wishes.chosen("micro-batch", divisors(wishes.batch // dp)):
                for recompute in wishes.chosen("recompute", _RECOMPUTE[self.stack]):
                    for states in self._states(dp):
                        yield self._setup((tp, pp, dp), (micro_batch, recompute), states)

    @property
    def _has_stages(self) -> bool:
        return self.stack == "megatron-deepspeed"

    def _degrees(self) -> Iterator[tuple[int, int]]:
        """(tp, pp): tp where the stack's code splits layers, within a fast domain unless it is stated."""
        wishes, config = self.wishes, self.wishes.config
        splits = self._has_stages or load_stack(self.stack).parallel.get("tensor") == "dtensor"
        stated = "tp" in wishes.fixed or "tp" in wishes.most
        most = (wishes.gpus if stated else wishes.domain) if splits else 1
        for tp in wishes.chosen("tp", [t for t in divisors(wishes.gpus) if t <= most]):
            if config.num_attention_heads % tp:
                continue
            stages = [p for p in divisors(wishes.gpus // tp) if p <= config.num_hidden_layers]
            yield from ((tp, pp) for pp in wishes.chosen("pp", stages if self._has_stages else [1]))

    def _states(self, dp: int) -> Iterator[Options]:
        """Ways to hold states over dp ranks."""
        wishes = self.wishes
        if self._has_stages:
            for zero in wishes.chosen("zero", (0, 1)):
                yield {"zero": str(zero)}
            return
        if self.stack == "deepspeed":
            for zero in wishes.chosen("zero", (0, 1, 2, 3)):
                yield {"zero": str(zero)}
                if zero:
                    yield {"zero": str(zero), "offload": "optimizer"}
                if zero == 3:
                    yield {"zero": "3", "offload": "all"}
            return
        if self.stack != "torchtitan" and wishes.allows("zero", 0):
            yield {}
        if not wishes.allows("zero", 3):
            return
        shards = [dp] + [wishes.domain] * (dp > wishes.domain and dp % wishes.domain == 0)
        for shard in shards:
            for reshard in wishes.chosen("reshard", ("true", "false")):
                found: Options = {"fsdp": True}
                if shard < dp:
                    found["shard"] = str(shard)
                if reshard == "false":
                    found["reshard"] = "false"
                yield found

    def _setup(
        self, degrees: tuple[int, int, int], batch: tuple[int, str], states: Options
    ) -> tuple[Options, Any, ParallelPlan]:
        wishes, (tp, pp, dp) = self.wishes, degrees
        micro_batch, recompute = batch
        options: Options = {"stack": self.stack, "gpus": str(wishes.gpus)}
        options |= {"tp": str(tp)} if tp > 1 else {}
        options |= {"pp": str(pp)} if pp > 1 else {}
        options |= {"micro-batch": str(micro_batch), "recompute": recompute, **states}
        setup = replace(
            wishes.setup, stack=self.stack, micro_batch_size=micro_batch, grad_accum_steps=None,
            global_batch=wishes.batch, recompute=recompute, recompute_layers=None,
        )  # fmt: skip
        shard, reshard = states.get("shard"), states.get("reshard")
        layout = ParallelPlan(
            gpus=wishes.gpus, tp=tp, pp=pp, dp=dp, zero=int(str(states.get("zero", 0))),
            fsdp="fsdp" in states, shard=int(str(shard)) if shard else None,
            reshard=False if reshard else None, offload=str(states.get("offload", "none")),
            gpus_per_node=wishes.gpus_per_node,
        )  # fmt: skip
        return options, setup, layout
