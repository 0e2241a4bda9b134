"""A row as arguments of an estimate, what it assumed, and the reasons it cannot be one."""

from __future__ import annotations

import re

import pytest

from memcalc.accuracy.notes import NotExpressedError
from memcalc.accuracy.setups import NEAREST_STACK, SAME_CHIP, express
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.profiles import profile_names
from memcalc.inputs.training import TrainingSetup
from tests.unit.accuracy_rows import row


def test_a_row_that_states_all_is_taken_as_stated() -> None:
    stated = express(
        row(
            grad_accum=4, precision="bf16", optimizer="sgd", optimizer_impl="loop", loss="plain",
            recompute="full:1", attention="eager", stack="hf", gpu="H100 80GB", compile="false",
        )
    )  # fmt: skip
    assert stated.setup == TrainingSetup(
        seq_len=128, micro_batch_size=2, grad_accum_steps=4, precision="bf16", optimizer="sgd",
        optimizer_impl="loop", loss="plain", recompute="full", recompute_layers=1,
        attention="eager", stack="hf", num_layers=2,
    )  # fmt: skip
    assert (stated.config.name, stated.gpu) == ("gpt2", "h100-80gb")
    assert stated.plan == ParallelPlan() and len(stated.assumed) == 1  # the form factor


def test_what_a_row_leaves_open_is_the_default_and_is_named() -> None:
    stated = express(row(precision=None, global_batch=6))
    assert stated.setup == TrainingSetup(
        seq_len=128, micro_batch_size=2, global_batch=6, num_layers=2
    )
    assert stated.assumed == [
        "precision not stated: bf16-mixed", "optimizer not stated: adamw",
        "recompute not stated: none", "attention not stated: flash", "stack not stated: torch",
        "GPU not stated: workspace and context of a Hopper card",
    ]  # fmt: skip


def test_a_layout_is_taken_degree_by_degree() -> None:
    stated = express(
        row(
            n_gpus=64, gpus_per_node=8, tp=2, pp=4, cp=2, ep=4, dp=4, sp="true", zero=1, vpp=2,
            shard_group=2, stage_layers="1 1 1 1 1 1 1 1", cp_method="ulysses", offload="optimizer",
        )
    )  # fmt: skip
    assert stated.plan == ParallelPlan(
        gpus=64, gpus_per_node=8, tp=2, pp=4, cp=2, ep=4, dp=4, sp=True, zero=1, vpp=2, shard=2,
        schedule="interleaved", stage_layers=(1,) * 8, cp_method="ulysses", offload="optimizer",
    )  # fmt: skip


def test_internevo_sums_gradients_beside_backward() -> None:
    plan = express(row(source="InternEvo x", dp=8, zero=1)).plan
    assert plan.overlap_grad_reduce is True and plan.overlap_param_gather is None


@pytest.mark.parametrize(
    ("cells", "plan"),
    [
        ({"fsdp": "fsdp2", "zero": 3, "dp": 8}, ParallelPlan(dp=8, fsdp=True, zero=3)),
        (
            {"fsdp": "fsdp2", "zero": 2, "dp": 8},
            ParallelPlan(dp=8, fsdp=True, zero=3, reshard=False),
        ),
        ({"fsdp": "fsdp1", "zero": 2, "dp": 8}, ParallelPlan(dp=8, zero=2)),
        ({"sp": "false"}, ParallelPlan()),
        ({"sp": "false", "tp": 2}, ParallelPlan(tp=2, sp=False)),
    ],
)
def test_sharding_and_sequence_parallelism(cells: dict[str, object], plan: ParallelPlan) -> None:
    assert express(row(**cells)).plan == plan


def test_sdpa_is_the_kernel_pytorch_would_pick() -> None:
    assert express(row(attention="sdpa")).setup.attention == "flash"
    assert express(row(attention="sdpa", precision="fp32")).setup.attention == "efficient"


def test_flash_attention_in_triton_keeps_what_flash_keeps_at_its_own_speed() -> None:
    stated = express(row(attention="triton"))
    assert stated.setup.attention == "flash"
    assert stated.kernels == {"attention_code": "triton"}


@pytest.mark.parametrize("source", ["nanotron x", "torchtitan x", "Megatron PTD-P", "InternEvo x"])
def test_frameworks_that_clip_by_default_are_priced_so(source: str) -> None:
    assert express(row(source=source)).setup.grad_clip
    assert not express(row()).setup.grad_clip


def test_llm_foundry_keeps_16_bit_logits_and_steps_in_a_loop() -> None:
    found = express(row(source="llm-foundry MPT bench")).setup
    assert (found.loss, found.optimizer_impl, found.grad_clip) == ("plain", "loop", True)
    stated = express(row(source="llm-foundry MPT bench", loss="fp32", optimizer_impl="fused")).setup
    assert (stated.loss, stated.optimizer_impl) == ("fp32", "fused")


def test_a_row_says_how_its_nodes_are_joined() -> None:
    cells = {"gpu": "a100-80gb-sxm", "gpus_per_node": 8}
    stated = express(row(node_network_gbps=400, interconnect_text="4x100Gb RoCE", **cells))
    assert stated.cluster is not None and stated.device is stated.cluster
    assert stated.cluster.node_network_bytes_per_s == 50e9
    assert stated.cluster.gpu_network_bytes_per_s == 6.25e9
    assert stated.cluster.link_bytes_per_s == 300e9
    named = express(row(cluster="jean-zay-a100", **cells))
    assert named.cluster is not None and named.cluster.slug == "jean-zay-a100"
    silent = express(row(**cells))
    assert silent.cluster is None and silent.device == "a100-80gb"
    over_host = express(row(node_network_gbps=400, gpu="l40s")).cluster
    assert over_host is not None and (stated.cluster.topology, over_host.topology) == (
        "switch",
        "host",
    )


def test_torchtunes_plain_loss_takes_fp32_logits() -> None:
    assert express(row(stack="other:torchtune", loss="plain")).setup.loss == "fp32"
    assert express(row(stack="other:torchtune", loss="chunked")).setup.loss == "chunked"
    assert express(row(stack="torch", loss="plain")).setup.loss == "plain"


def test_a_step_inside_backward_is_part_of_the_setup() -> None:
    assert express(row(optimizer_in_backward="true")).setup.optimizer_in_backward
    assert not express(row()).setup.optimizer_in_backward


def test_a_release_before_the_stacks_own_changes_its_kernels() -> None:
    early = express(row(stack="torchtitan", source="torchtitan 2024-12"))
    assert early.kernels == {"compile_loss": False}
    assert express(row(source="InternEvo x")).kernels == {"attention_code": "flash1"}
    launched = express(row(stack="torchtitan", source="torchtitan H200 (Trainy)"))
    assert launched.kernels == {"expandable_segments": False}
    assert express(row(stack="torchtitan")).kernels == {}


def test_paged_states_are_priced_as_resident() -> None:
    stated = express(row(optimizer="paged-adamw-8bit"))
    assert stated.setup.optimizer == "adamw-8bit"
    assert "paged states priced as resident" in stated.assumed


def test_a_framework_without_a_profile_takes_the_nearest_stack() -> None:
    name = next((n for n in NEAREST_STACK if n not in profile_names("stacks")), None)
    if name is not None:
        stated = express(row(stack=f"other:{name}"))
        assert stated.setup.stack == NEAREST_STACK[name]
        assert f"stack {name} priced as {NEAREST_STACK[name]}" in stated.assumed
    assert express(row(stack="other:hf")).setup.stack == "hf"


def test_a_card_without_a_profile_takes_the_same_chips() -> None:
    for spelling, slug in SAME_CHIP.items():
        stated = express(row(gpu=spelling))
        assert stated.gpu == slug == load_gpu(slug)[0].slug
        assert any(spelling in said for said in stated.assumed)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"run": "decode"}, "serving (decode) by an engine that is not stated"),
        ({"mem_rank": "weights"}, "the weights alone"),
        ({"mem_rank": "kv-pool"}, "the KV cache alone"),
        ({"run": "decode", "stack": "other:sglang"}, "serving (decode) by sglang"),
        ({"peft": "qlora"}, "qlora: lora_rank is not stated"),
        ({"precision": "nf4"}, "weights in nf4 do not train"),
        ({"precision": "mxfp8-mixed"}, "precision mxfp8-mixed"),
        ({"priceable": "no", "why_not": "layout unpublished"}, "is unknown: layout unpublished"),
        ({"seq": None}, "seq is not stated"),
        ({"micro_batch": None}, "micro_batch is not stated"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"stack": "other:llm.c"}, "stack 'llm.c'"),
        ({"gpu": "h1000"}, "gpu: got 'h1000'"),
        (
            {"gpu": "h100", "cluster": "jean-zay-a100"},
            "cluster: got jean-zay-a100; rule: one of h100",
        ),
        ({"recompute": "sac", "stack": "torch", "vpp": 2, "schedule": "gpipe"}, "vpp: got 2"),
    ],
)
def test_a_row_that_cannot_be_priced_says_why(changed: dict[str, object], reason: str) -> None:
    with pytest.raises(NotExpressedError, match=re.escape(reason)) as caught:
        express(row(**changed))
    assert "\n" not in str(caught.value)
