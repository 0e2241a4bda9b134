"""Arrays of sizes give what one size at a time gives, whatever is divided over ranks."""

from __future__ import annotations

import numpy as np
import pytest

from memcalc.engine.device_side import device_of
from memcalc.engine.dims import dim_values
from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.local import local_values
from memcalc.engine.timing.step_time import step_time
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import rates_of
from memcalc.inputs.training import TrainingSetup

SIZES = [(2, 512), (4, 2048), (3, 8192), (16, 1024)]
FIELDS = ("step_s", "forward_s", "backward_s", "exposed_s", "optimizer_s", "hidden_s")
CASES = {
    "one gpu": ("llama-3.2-1b", None, {}),
    "eager attention, recomputed": (
        "llama-7b",
        None,
        {"num_layers": 3, "attention": "eager", "recompute": "full"},
    ),
    "experts": ("mixtral-8x7b", None, {"num_layers": 2, "recompute": "sac"}),
    "compiled": ("llama-3.2-1b", None, {"compile": True, "loss": "chunked"}),
    "fsdp": ("llama-3.1-8b", ParallelPlan(dp=16, fsdp=True), {"num_layers": 4}),
    "tp": ("llama-3.1-8b", ParallelPlan(tp=4), {"num_layers": 4}),
}


def _plan(case, micro_batch, seq_len):
    model, parallel, fields = CASES[case]
    setup = TrainingSetup(micro_batch_size=micro_batch, seq_len=seq_len, **fields)
    return plan_of(load_model(model), setup, parallel=parallel)


@pytest.mark.parametrize("case", CASES)
def test_an_array_of_sizes_is_each_size_by_itself(case):
    device = device_of("h100-80gb")
    rates = rates_of(device.gpu)
    plan = _plan(case, *SIZES[0])
    micro_batches, lengths = (np.array(column, dtype=float) for column in zip(*SIZES, strict=True))
    values = dim_values(plan.config, micro_batches, lengths)
    values = local_values(values, plan.parallel) if CASES[case][1] else values
    together = step_time(plan._replace(values=values), device, rates)
    for place, size in enumerate(SIZES):
        alone = step_time(_plan(case, *size), device, rates)
        for field in FIELDS:
            whole = np.broadcast_to(getattr(together, field), len(SIZES))
            assert whole[place] == pytest.approx(getattr(alone, field), rel=1e-12), (size, field)
