"""The ranks of a layout that differ in memory: one plan a chunk of the model, one rank a stage.

A pipeline cuts the blocks into pp x vpp chunks; rank r of a stage holds the chunks its schedule gives
it. Embedding is on the first chunk, final norm, head and loss on the last.
Checked by: unit/test_stages.py.
"""

from __future__ import annotations

from itertools import accumulate

from memcalc.engine.make_plan import block_kinds
from memcalc.engine.parallel.megatron.nanotron_layout import runs_nanotron, stage_layers
from memcalc.engine.plan import Plan


def chunk_layers(plan: Plan) -> list[range]:
    """The blocks of each chunk in the order of the forward pass: evenly, first chunks one more.

    nanotron cuts by cost unless the layers of each stage are stated.
    """
    chunks, layers = plan.parallel.chunks, plan.config.num_hidden_layers
    counts = plan.parallel.stage_layers
    if counts is None and runs_nanotron(plan.kernels):
        counts = stage_layers(plan.config, chunks)
    elif counts is None:
        each, more = divmod(layers, chunks)
        counts = tuple(each + (chunk < more) for chunk in range(chunks))
    ends = list(accumulate(counts))
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


def chunk_plan(plan: Plan, chunk: int) -> Plan:
    """The plan of one chunk: its blocks' kinds, and whether the model begins or ends with it."""
    if plan.parallel.chunks == 1:
        return plan
    layers = chunk_layers(plan)[chunk]
    kinds = block_kinds(plan.resolved, plan.kernels, layers)
    return plan._replace(kinds=kinds, ends=(chunk == 0, chunk == plan.parallel.chunks - 1))
