"""Whose code runs a pipeline: the rules of a stack's `pipeline` key in its `[parallel]` table.

One entry a runtime. A stack states `pipeline = { value = "NAME", source = ... }` (none: torch), and may
state `schedules`, the list of those it has; each is a value of --schedule. What an entry says is all
that stages ask about a runtime, so that another stack adds a module with its step and a line here.
Checked by: unit/test_stages.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from memcalc.engine.parallel.pipeline.actions import Pipe
from memcalc.engine.parallel.pipeline.pipeline_megatron import megatron_step
from memcalc.engine.parallel.pipeline.pipeline_nanotron import nanotron_step
from memcalc.engine.parallel.pipeline.pipeline_program import Step
from memcalc.engine.parallel.pipeline.pipeline_torch import torch_step
from memcalc.inputs.stacks import Stack, load_stack


class PipelineRules(NamedTuple):
    """How a stack's code runs a pipeline.

    step: (schedule, pipe, rank) to a rank's instructions. fewer_batches: 1F1B runs with fewer
    micro-batches than stages, and the interleaved schedule only with multiples of the stages.
    all_ids: token ids of all micro-batches are there at once, beside those of the one at work; else
    those of the micro-batches in flight, on the first and the last stage. ties: a head that is the
    embedding has a copy on the last stage, whose gradient is summed with the first's.
    """

    step: Callable[[str, Pipe, int], Step]
    fewer_batches: bool = True
    all_ids: bool = False
    ties: bool = True


RULES: Final[Mapping[str, PipelineRules]] = {
    "torch": PipelineRules(torch_step, fewer_batches=False, all_ids=True, ties=False),
    "megatron": PipelineRules(megatron_step),
    "nanotron": PipelineRules(nanotron_step),
}


def rules_of(stack: Stack) -> PipelineRules:
    """The rules of a stack's pipelines."""
    return RULES[str(stack.parallel.get("pipeline", "torch"))]


def rules_of_code(code: str) -> PipelineRules:
    """The same of the stack whose name a setup states."""
    return rules_of(load_stack(code))
