"""Worked cases of runs divided as Megatron divides them: published layouts, and what their papers say.

GB is 10^9 bytes. Where a layout ran on a card, the estimate has to fit it; where a paper gives a closed
form, the engine's own bytes are held against it. Megatron of that time added 16-bit gradients to fp16
runs, as `fp16-mixed` does here.
"""

from __future__ import annotations

from functools import cache

import pytest

from memcalc import ParallelPlan, TrainingSetup, estimate
from memcalc.engine.results import Estimate
from memcalc.inputs.model import ModelConfig
from tests.unit.megatron_support import gpt

GB = 10**9
S, V = 2048, 51200
#: Narayanan et al. 2021 (arXiv:2104.04473), table 1, with Megatron-LM's scripts of it (examples/
#: academic_paper_scripts/sc21/run_table_1.sh), and Korthikanti et al. 2022 (arXiv:2205.05198),
#: tables 3 and 5: layers, hidden, heads; tp, pp, chunks, dp; micro-batch, global batch; recompute, sp.
RAN_ON_A100_80GB = {
    "3.6B": ((30, 3072, 32), (2, 1, 1, 32), (16, 512), ("full", False)),
    "39.1B": ((48, 8192, 64), (8, 2, 1, 32), (4, 1536), ("full", False)),
    "145.6B": ((80, 12288, 96), (8, 8, 2, 24), (2, 2304), ("full", False)),
    "310.1B": ((96, 16384, 128), (8, 16, 2, 15), (1, 2160), ("full", False)),
    "22B selective": ((48, 6144, 64), (8, 1, 1, 1), (4, 4), ("selective", True)),
    "175B selective": ((96, 12288, 96), (8, 8, 3, 1), (1, 64), ("selective", True)),
    "530B full": ((105, 20480, 128), (8, 35, 3, 1), (1, 280), ("full", False)),
    "530B selective": ((105, 20480, 128), (8, 35, 3, 1), (1, 280), ("selective", True)),
}


def model(layers: int, hidden: int, heads: int) -> ModelConfig:
    """The papers' GPT: vocabulary 51,200, 2,048 learned positions, dropout."""
    return gpt(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=4 * hidden,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=hidden // heads,
    )  # fmt: skip


@cache
def ran(name: str, recompute: str | None = None) -> Estimate:
    """The estimate of a published run."""
    shape, (tp, pp, vpp, dp), (micro, batch), (stated, sp) = RAN_ON_A100_80GB[name]
    setup = TrainingSetup(
        stack="megatron", seq_len=S, micro_batch_size=micro, global_batch=batch,
        precision="fp16-mixed", attention="eager", recompute=recompute or stated,
    )  # fmt: skip
    schedule = "interleaved" if vpp > 1 else "1f1b"
    layout = ParallelPlan(tp=tp, pp=pp, vpp=vpp, dp=dp, sp=sp, schedule=schedule)
    return estimate(model(*shape), setup, parallel=layout, gpu="a100-80gb", allocator=False)


@pytest.mark.parametrize("name", RAN_ON_A100_80GB)
def test_what_ran_on_a100_of_80_gb_fits_them(name):
    assert ran(name).fits


@pytest.mark.parametrize("name", ["175B selective", "530B selective"])
def test_without_recomputation_the_same_runs_do_not_fit(name):
    """The papers recompute because the scores of all micro-batches in flight exceed the card."""
    assert ran(name, "none").fits is False


@pytest.mark.parametrize("name", ["175B selective", "530B selective"])
def test_interleaved_stages_keep_what_the_paper_says(name):
    """Korthikanti, section 4.2.3: sbh L (34/t)(1 + (p-1)/(pm)) on the first stage.

    The formula leaves out the norms' statistics (16 sb a layer) and, of the 2p micro-batches in flight
    in the chunk with the embedding, its mask (sbh); what is sent (2sbh) may be counted until it is.
    """
    (layers, h, _), (t, p, m, _), (b, _), _ = RAN_ON_A100_80GB[name]
    in_flight = layers * (1 + (p - 1) / (p * m))
    expected = S * b * in_flight * (34 * h + 16) / t
    each = 2 * p * S * b * h / t
    saved = ran(name).memory.stages[0].saved_for_backward_bytes
    assert (expected + each) * 0.999 < saved < (expected + 3 * each) * 1.001


def test_d11_the_papers_two_techniques_leave_a_fifth_of_the_activations():
    """530B: (34/t) / (10 + 24/t + 5as/ht) = 20 % of tensor parallelism alone (their figure 7)."""
    config = model(105, 20480, 128)

    def saved(recompute: str, sp: bool, **changes: object) -> int:
        setup = TrainingSetup(
            stack="megatron", seq_len=S, recompute=recompute, num_layers=4,
            **{"attention": "eager"} | changes,
        )  # fmt: skip
        layout = ParallelPlan(tp=8, sp=sp)
        memory = estimate(config, setup, parallel=layout, allocator=False).memory
        return memory.saved_per_layer_bytes

    whole = saved("none", False)
    assert saved("selective", True) / whole == pytest.approx(4.25 / 21, rel=0.001)
    assert saved("none", True) < whole and saved("selective", False) < whole
    assert saved("full", True) < saved("selective", True)
    assert saved("none", True, attention="flash") < saved("none", True)


def test_d4_mt_nlg_530b_on_280_gpus_a_replica():
    """Smith et al. 2022 (arXiv:2201.11990): tp 8, pp 35; 18 bytes a parameter are 34.1 GB a GPU."""
    setup = TrainingSetup(
        stack="megatron", seq_len=S, micro_batch_size=1, grad_accum_steps=35, recompute="full"
    )
    for dp, nodes in ((8, 280), (10, 350), (12, 420)):
        layout = ParallelPlan(tp=8, pp=35, dp=dp)
        assert layout.size == nodes * 8
    layout = ParallelPlan(tp=8, pp=35, dp=8)
    result = estimate("mt-nlg-530b", setup, parallel=layout, gpu="a100-80gb", allocator=False)
    held = [sum(stage.states.values()) for stage in result.memory.stages]
    assert 18 * result.model.parameters / 280 / GB == pytest.approx(34.1, abs=0.1)
    assert sum(held) / 35 / GB == pytest.approx(34.1, rel=0.005)
    assert result.fits


@pytest.mark.parametrize(("pp", "fits"), [(8, True), (4, False)])
def test_w15_gpt_3_as_megatron_divides_it_takes_64_a100(pp, fits):
    """64 GPUs: 18 bytes over 64 are 49 GB each. 32: 98 GB, above 80 GiB before any activation."""
    setup = TrainingSetup(stack="megatron", seq_len=S, grad_accum_steps=8, recompute="full")
    layout = ParallelPlan(tp=8, pp=pp)
    result = estimate("gpt-3-175b", setup, parallel=layout, gpu="a100-80gb", allocator=False)
    held = sum(sum(stage.states.values()) for stage in result.memory.stages) / pp
    assert held / GB == pytest.approx(18 * 174.6 / (8 * pp), rel=0.01)
    assert result.fits is fits
