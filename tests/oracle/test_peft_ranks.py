"""Fine-tuning on several ranks: PEFT's models under PyTorch's own fully_shard and DDP, byte for byte.

A whole later step of the first rank on the fake process group: states, saved bytes, the peak of every
phase. Blocks whose input needs no gradient (the first one under LoRA, all below a frozen model's last
layers) are those FSDP2 reduces and frees when backward is over.
"""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest

from memcalc.engine.memory import step_memory
from memcalc.harness.ranks.layout import Layout
from memcalc.inputs.peft import PeftSetup
from tests.oracle.support.encoders import T5
from tests.oracle.support.rank_peft import TunedRank
from tests.oracle.support.tiny import TINY
from tests.oracle.test_peft import biases, last_layers, lora

LLAMA = {**TINY["llama"], "num_hidden_layers": 4}
DEEP = {**TINY["llama"], "num_hidden_layers": 7}
ALL = PeftSetup(rank=4, targets=("all-linear",))
NARROW = replace(ALL, dtype="bf16")
DORA = PeftSetup(method="dora", rank=4)
BITFIT = PeftSetup(method="bitfit")
FSDP, KEPT = Layout(dp=4, fsdp=True), Layout(dp=4, fsdp=True, reshard=False)
DDP = Layout(dp=2)
BASE = TunedRank(config=LLAMA, method=lora(ALL), setup=ALL, layout=FSDP)


SEQ2SEQ = PeftSetup(rank=4, dropout=0.1)
ENCODERS = TunedRank(
    config=T5, method=lora(SEQ2SEQ, task_type="SEQ_2_SEQ_LM"), setup=SEQ2SEQ, layout=DDP,
    seq=64, target=48, attention="efficient", base="fp32",
)  # fmt: skip


def frozen(layers: int, **changes: object) -> TunedRank:
    """All but the last layers frozen."""
    setup = PeftSetup(method="freeze", layers=layers)
    return replace(BASE, method=last_layers(layers), setup=setup, **changes)  # type: ignore[arg-type]


RUNS = {
    "fsdp, fp32 adapters beside bf16": replace(BASE, config=DEEP),
    "fsdp, bf16 adapters": replace(BASE, method=lora(NARROW), setup=NARROW),
    "fsdp, cast to bf16": replace(BASE, base="fp32", mixed=True),
    "fsdp, recomputed, clipped": replace(BASE, checkpoint="full", clip=True),
    "fsdp kept, three batches": replace(BASE, layout=KEPT, accum=3),
    "fsdp, on 4 of 8 between": replace(BASE, layout=Layout(dp=8, fsdp=True, reshard=4)),
    "hsdp, two batches": replace(BASE, layout=Layout(dp=8, fsdp=True, shard=4), accum=2),
    "fsdp, dora": replace(BASE, method=lora(DORA, use_dora=True), setup=DORA),
    "fsdp, ia3": replace(
        BASE, method=peft.IA3Config(task_type="CAUSAL_LM"), setup=PeftSetup(method="ia3")
    ),
    "fsdp, biases": replace(BASE, config=TINY["gpt2"], method=biases, setup=BITFIT),
    "fsdp, last 3 of 7": frozen(3, config=DEEP),
    "fsdp kept, last 3 of 7": frozen(3, config=DEEP, layout=KEPT),
    "fsdp, last layer, recomputed": frozen(1, checkpoint="full"),
    "ddp": replace(BASE, layout=DDP),
    "ddp, views, three batches": replace(BASE, layout=DDP, views=True, accum=3),
    "ddp, two batches, clipped": replace(BASE, layout=DDP, accum=2, clip=True),
    "ddp, last 2, views": frozen(2, layout=DDP, views=True),
    "every weight": replace(BASE, method=lambda model: None, setup=None),
    "t5, ddp": ENCODERS,
    "t5, fsdp, bf16, recomputed": replace(ENCODERS, base="bf16", checkpoint="full", layout=FSDP),
    "t5, every weight, fsdp": replace(ENCODERS, method=lambda model: None, setup=None, layout=FSDP),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_step_is_pytorchs_own(name: str) -> None:
    assert RUNS[name].differences() == {}


def test_a_rank_steps_and_reduces_what_trains_alone() -> None:
    """Of 4 ranks a quarter of everything; gradients, moments and buckets of the adapters alone."""
    sharded = step_memory(BASE.plan()).states
    whole = step_memory(replace(BASE, layout=DDP).plan())
    alone = whole.states
    assert sharded.trainable_parameters == alone.trainable_parameters < alone.parameters // 10
    assert sharded.gradient_bytes * 4 == alone.gradient_bytes == 4 * alone.trainable_parameters
    assert sharded.optimizer_bytes * 4 == alone.optimizer_bytes == 2 * alone.gradient_bytes
    plan = replace(BASE, layout=DDP).plan()
    assert sum(plan.strategy.buckets(plan)) == alone.gradient_bytes
