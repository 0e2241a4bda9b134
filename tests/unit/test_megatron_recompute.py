"""Megatron's selective recomputation, module by module: what a layer keeps less, and what it costs."""

from __future__ import annotations

import pytest

from memcalc.engine.aten.pointwise import scale, square
from memcalc.engine.autograd import backward
from memcalc.engine.checkpoint_discard import Discarded
from memcalc.engine.flops import step_flops
from memcalc.engine.sizes import dim
from memcalc.engine.tensors import Tape
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.unit.megatron_support import deepseek, gpt, llama, megatron

S, H, A, D, D_V, Q_R, C, D_R = 2048, 7168, 128, 192, 128, 1536, 512, 64
EXPERT, ROWS, SHARED = 2048, 2048 * 8, 2048


def kept(config, *modules: str, **layout: object) -> int:
    """Bytes a layer keeps under selective recomputation of these modules, or of nothing."""
    selective = {"recompute": "selective", "recompute_modules": modules} if modules else {}
    _, memory = megatron(config, ParallelPlan(**layout), **selective)
    return memory.saved_per_layer_bytes


def test_the_activation_of_experts_keeps_its_input_only():
    assert kept(deepseek()) - kept(deepseek(), "moe_act") == 2 * ROWS * EXPERT


def test_norms_that_stand_alone_keep_their_input_only():
    """DeepSeek: both norms, 2h and an fp32 statistic a position; a Llama layer has none alone."""
    assert kept(deepseek()) - kept(deepseek(), "layernorm") == 2 * S * (2 * H + 4)


def test_latent_attention_keeps_the_latents_only():
    """Less: queries, keys, values, normed latents; the projection of both is kept whole for its part."""
    heads = 2 * S * A * (2 * D + D_V)
    normed = 2 * S * (Q_R + C) + 2 * 4 * S
    assert kept(deepseek()) - kept(deepseek(), "mla_up_proj") == heads + normed - 2 * S * D_R


def test_shared_experts_keep_their_input_only():
    assert kept(deepseek()) - kept(deepseek(), "shared_experts") == 2 * S * 3 * SHARED


def test_the_whole_mixture_keeps_its_input_only():
    """What is left of it: the stream, the normed stream, a statistic; the dispatcher's are elsewhere."""
    mla = 2 * S * (2 * H + Q_R * 2 + C * 2 + A * (2 * D + 2 * D_V)) + 4 * S * (A + 3) + 16
    assert kept(deepseek(), "moe") == mla + S * (2 * H * 2 + 4)


def test_a_dense_mlp_keeps_its_input_only():
    assert kept(llama()) - kept(llama(), "mlp") == S * (2 * 8192 + 4 + 6 * 28672)


def test_modules_add_up():
    parts = ("moe_act", "layernorm", "mla_up_proj", "shared_experts")
    whole = kept(deepseek())
    assert whole - kept(deepseek(), *parts) == sum(whole - kept(deepseek(), one) for one in parts)


@pytest.mark.parametrize("module", ["moe_act", "layernorm", "mla_up_proj", "moe", "mlp"])
def test_the_peak_falls_and_flops_grow(module):
    """Fewer bytes at the peak; only modules with products cost FLOPs."""
    plain, memory = megatron(deepseek(), ParallelPlan(dp=8, ep=8, zero=1))
    setup = {"recompute": "selective", "recompute_modules": (module,)}
    plan, less = megatron(deepseek(), ParallelPlan(dp=8, ep=8, zero=1), **setup)
    assert less.peak_bytes < memory.peak_bytes
    more = step_flops(plan.whole).executed - step_flops(plain.whole).executed
    assert (more > 0) == (module in ("mla_up_proj", "moe", "mlp"))


def test_core_attention_is_what_selective_means_unless_stated():
    config = gpt()
    named = megatron(config, None, recompute="selective", recompute_modules=("core_attn",))[1]
    assert named == megatron(config, None, recompute="selective")[1]


def test_block_wise_recomputation_of_some_layers():
    """full:N of Megatron's method `block`: N layers keep 2sbh, the others everything."""
    _, none = megatron(gpt())
    _, full = megatron(gpt(), recompute="full")
    _, four = megatron(gpt(), recompute="full", recompute_layers=4)
    assert four.saved_bytes == none.saved_bytes - (none.saved_bytes - full.saved_bytes) * 4 // 6


@pytest.mark.parametrize(
    ("config", "module", "valid"),
    [(llama(), "moe_act", "core_attn, mlp"), (gpt(), "mla_up_proj", "core_attn, mlp")],
)
def test_a_module_the_model_has_not_is_refused(config, module, valid):
    with pytest.raises(ConfigError, match=f"valid: {valid}$"):
        kept(config, module)


def test_modules_need_selective_recomputation_on_megatron():
    with pytest.raises(ConfigError, match="rule: recompute selective on stack megatron"):
        TrainingSetup(stack="megatron", recompute="full", recompute_modules=("mlp",))
    with pytest.raises(ConfigError, match="rule: recompute selective on stack megatron"):
        TrainingSetup(recompute="selective", recompute_modules=("mlp",))
    with pytest.raises(ConfigError, match="not known; valid: core_attn"):
        TrainingSetup(stack="megatron", recompute="selective", recompute_modules=("attention",))


def test_outputs_are_freed_in_forward_and_made_twice_in_backward():
    """y = 2x freed once z = y^2 is there; backward of z makes 2x anew and copies it into y."""
    tape = Tape()
    x = tape.external((dim("n"),), "fp32")
    x.requires_grad = True
    call = Discarded(lambda one: (scale(one),), x)
    z = square(call.outputs[0])
    call.discard(z)
    forward = list(tape.events)
    assert [tape.names[e] for e in forward if e >= 0] == ["mul.Tensor", "pow.Tensor_Scalar"]
    assert forward[-1] == ~0  # y, although z keeps it
    backward(z, tape.external(z.shape, z.dtype))
    made = [tape.names[e] for e in tape.events[len(forward) :] if e >= 0]
    assert made[:2] == ["mul.Tensor", "resize_"]
    freed = {~e for e in tape.events if e < 0}
    assert freed >= {0, 2, 3}  # y in forward, both copies in backward
    assert x.grad is not None
