"""What a layout makes of a Megatron model: a rank's kernels and dims.

Heads, key/value heads and MLP columns are divided over tp; the vocabulary is padded to a multiple of
128 tp first. Sequence parallelism gives the stream s/t positions. Experts are spread over ep and each
divided over etp (tp unless stated).
Source: Megatron-Core 0.14, training/tokenizer (vocab_size_with_padding), parallel_state.py,
transformer/attention.py, transformer_config.py. Checked by: unit/test_megatron_layout.py.
"""

from __future__ import annotations

import math

from memcalc.engine.dims import dim_sizes
from memcalc.engine.kernels import Kernels, Megatron
from memcalc.engine.optimizer import OptimizerPlan
from memcalc.engine.parallel.megatron.megatron_rules import (
    DTYPES,
    check_model,
    check_setup,
    expert_split,
    recomputed,
)
from memcalc.engine.sizes import Size
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import Stack
from memcalc.inputs.training import ResolvedSetup, TrainingSetup

#: make_vocab_size_divisible_by: rows of the vocabulary, times tp.
VOCABULARY_STEP = 128
#: Whose layers these are: the value of `code` in a stack's `[parallel]` table.
MEGATRON_CODES = ("megatron", "nanotron", "megatron-deepspeed")


def megatron_kernels(kernels: Kernels, resolved: ResolvedSetup, stack: Stack) -> Kernels:
    """The kernels of an undivided Megatron model. Raises ConfigError for what its code has not."""
    setup, config = resolved.setup, resolved.config
    check_model(config, stack.name)
    check_setup(setup, kernels, stack.name)
    dtype = DTYPES[setup.precision]
    return kernels._replace(
        param_dtype=dtype,
        compute_dtype=dtype,
        autocast=False,
        loss="fused" if kernels.loss == "fused" else "fp32",
        megatron=Megatron(
            code=str(stack.parallel["code"]),
            adds_in_place=bool(stack.parallel.get("adds_in_place", True)),
            several_experts=config.moe is not None and config.moe.num_experts > 1,
            recomputes=recomputed(setup, config),
        ),
    )


def megatron_split(kernels: Kernels, layout: ParallelPlan, resolved: ResolvedSetup) -> Kernels:
    """The kernels of one rank's layers."""
    assert kernels.megatron is not None
    config = resolved.config
    experts = config.moe.num_experts if config.moe else 1
    return kernels._replace(
        megatron=kernels.megatron._replace(
            split=layout.tp > 1,
            sequence=bool(layout.sp),
            context="none" if layout.cp == 1 else layout.cp_method,
            ring=layout.cp,
            experts_apart=layout.ep > 1,
            experts_split=expert_split(layout) > 1,
            several_experts=experts > layout.ep,
            capacity=_capacity(resolved.setup) if config.moe else "none",
        )
    )


def _capacity(setup: TrainingSetup) -> str:
    if setup.capacity_factor is None:
        return "none"
    return "pad" if setup.pad_to_capacity else "drop"


def padded_vocabulary(rows: int, tp: int) -> int:
    """Rows of the vocabulary as stored: the next multiple of 128 tp."""
    step = VOCABULARY_STEP * tp
    return -(-rows // step) * step


def megatron_values(
    values: dict[str, int], config: ModelConfig, layout: ParallelPlan, setup: TrainingSetup
) -> dict[str, int]:
    """The dim values of one rank, from those of the whole model."""
    own, tp = dict(values), layout.tp
    own["s"] = values["s"] // layout.cp
    own["s_t"] = own["s"] // tp if layout.sp else own["s"]
    own["a"] = values["a"] // tp
    own["k"] = values["k"] // tp
    own["g"] = own["a"] // own["k"]
    own["f"] = values["f"] // tp
    own["V"] = padded_vocabulary(values["V"], tp) // tp
    if config.moe:
        own |= _expert_values(values, own, layout, setup)
    return own


def _expert_values(
    values: dict[str, int], own: dict[str, int], layout: ParallelPlan, setup: TrainingSetup
) -> dict[str, int]:
    """Experts of a rank, the rows it sends and those that pass through its experts.

    Each of ep ranks sends an expert at most its capacity C, so one rank's experts get C E of them.
    """
    split = expert_split(layout)
    sent = own["b"] * own["s_t"] * values["t"]
    received = math.ceil(sent * setup.imbalance) if layout.ep > 1 else sent
    found = {
        "e": values["E"] // layout.ep, "m": values["m"] // split, "n": values["n"] // layout.tp,
    }  # fmt: skip
    if setup.capacity_factor is not None:
        found["C"] = math.ceil(sent / values["E"] * setup.capacity_factor)
        most = found["C"] * values["E"]
        sent, received = min(sent, most), min(received, most)
        if setup.pad_to_capacity:
            sent = received = most
    return found | {"R_s": sent, "R_p": received, "R": received * split}


def megatron_sizes(values: dict[str, int], layout: ParallelPlan) -> dict[str, Size]:
    """The Size of each letter; letters that are the same thing on this layout share one."""
    sizes = dim_sizes(values)
    if not layout.sp:
        sizes["s_t"] = sizes["s"]
    if layout.ep == 1 and "e" in sizes:
        sizes["e"] = sizes["E"]
    return sizes


def megatron_optimizer(optimizer: OptimizerPlan, kernels: Kernels) -> OptimizerPlan:
    """The optimizer's step as Megatron runs it: fp32 masters of 16-bit parameters, one kernel."""
    dtype = kernels.param_dtype
    return optimizer._replace(
        impl="multi_tensor",
        master=dtype != "fp32" and optimizer.name != "none",
        widens_gradients=dtype == "fp16" and optimizer.name != "none",
    )
