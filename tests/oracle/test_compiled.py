"""Stack torch-compile: the engine's compiled blocks against PyTorch's compiler.

The compiler's CUDA programs, run on tensors without data (support/inductor.py), give saved bytes and
every peak of a step without a GPU; the real torch.compile runs on a CPU. The cases here are few, for
each takes the compiler some seconds; `python -m tests.oracle.support.compiled` draws as many as
wanted, `python -m tests.oracle.support.compiled_families` goes through every dense family.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from memcalc.engine.explain import explain_plan
from memcalc.engine.flops import step_flops
from memcalc.engine.make_plan import make_plan, plan_of
from memcalc.engine.memory import step_memory
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup, resolve
from tests.oracle.support.compiled import compiled_plan, cpu_facts, differences, meta_facts
from tests.oracle.support.compiled_families import compiled, shrunk
from tests.oracle.support.reference import How, RefConfig, model_of, setup_of

RELEASE = "2.13"  # whose internals support/inductor.py knows
needs_the_release = pytest.mark.skipif(
    not torch.__version__.startswith(RELEASE),
    reason=f"the compiler's internals are torch {RELEASE}'s",
)
needs_a_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))),
    reason="torch.compile on a CPU needs a C++ compiler",
)

#: Each with one more thing in it: biases, norms of q and k, dropout, recomputation, other kernels.
STEPS: dict[str, tuple[dict[str, Any], How]] = {
    "llama, bf16": ({"norm": "fused"}, How()),
    "llama, autocast, recomputed": (
        {"precision": "mixed", "qk_norm": True, "qkv_bias": True, "recompute": "full", "h": 128},
        How(accum=2, set_to_none=False),
    ),
    "llama, eager attention": ({"attention": "eager", "dropout": 0.1, "k": 1}, How()),
    "gpt2, autocast": (
        {"family": "gpt2", "k": 4, "precision": "mixed", "dropout": 0.1, "attention": "efficient"},
        How(),
    ),
}


@needs_the_release
@pytest.mark.parametrize("name", STEPS)
def test_saved_bytes_and_peaks_are_those_of_the_cuda_programs(name: str) -> None:
    changed, how = STEPS[name]
    plan = compiled_plan(RefConfig(**{"V": 128, "L": 2, "s": 128, **changed}), how)
    assert differences(plan, meta_facts(plan)) == {}


@needs_the_release
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_long_rows_of_eager_scores_are_stored_once_more_in_backward(precision: str) -> None:
    """What a softmax's backward sums over a row of more than 1,024, where it is dear to make anew.

    In fp32 it is not: its result is kept. The rest is the order of kernels inside backward.
    """
    cfg = RefConfig(V=128, L=2, b=1, s=1088, attention="eager", norm="fused", precision=precision)
    plan = compiled_plan(cfg)
    facts = meta_facts(plan)
    assert set(differences(plan, facts)) <= {"backward", "peak"}
    assert step_memory(plan).peak_bytes == pytest.approx(facts.peak, rel=0.01)
    in_one_pass = plan._replace(kernels=plan.kernels._replace(long_rows=False))
    more = step_memory(plan).peak_bytes / step_memory(in_one_pass).peak_bytes - 1
    assert more > 0.2 if precision == "bf16" else more == 0


@needs_the_release
@pytest.mark.parametrize("name", ["gemma-2-27b", "opt-1.3b"])
def test_families_keep_what_the_cuda_programs_keep(name: str) -> None:
    """Norms on both sides of a branch, branches side by side, relu's mask, norms after a branch."""
    plan = compiled(shrunk(load_model(name)))
    assert differences(plan, meta_facts(plan)) == {}


@needs_a_compiler
@pytest.mark.parametrize(
    "changed",
    [
        {"attention_bias": True, "recompute": "full"},
    ],
    ids=["llama"],
)
def test_torch_compile_on_a_cpu_takes_the_same_bytes(changed: dict[str, Any]) -> None:
    plan = compiled_plan(RefConfig(norm="decomposed", L=2, **changed), device="cpu")
    assert differences(plan, cpu_facts(plan)) == {}


@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-2-7b", "mistral-7b-v0.3"])
def test_a_llama_block_keeps_what_the_formula_says(model: str, precision: str) -> None:
    """Per token 6f + 8h + 4ad + 4kd + 4a + 8 bytes, the block's input among them, and 24 of RNG state.

    Under autocast the input is fp32 and the 16-bit copies of the weights stay: 2h more and 2 a weight.
    """
    config = load_model(model)
    plan = plan_of(config, TrainingSetup(seq_len=512, precision=precision, compile=True))
    h, f, a = config.hidden_size, config.intermediate_size, config.num_attention_heads
    k, d = config.num_key_value_heads, config.head_dim
    kept = 512 * (6 * f + 8 * h + 4 * a * d + 4 * k * d + 4 * a + 8) + 24
    if precision == "bf16-mixed":
        kept += 512 * 2 * h + 2 * (h * d * (2 * a + 2 * k) + 3 * h * f)
    assert step_memory(plan).saved_per_layer_bytes == kept


def test_compile_and_the_stack_are_one_thing() -> None:
    config = load_model("qwen3-0.6b")
    asked = plan_of(config, TrainingSetup(seq_len=256, compile=True))
    named = plan_of(config, TrainingSetup(seq_len=256, stack="torch-compile"))
    plain = plan_of(config, TrainingSetup(seq_len=256))
    assert asked.kernels == named.kernels != plain.kernels
    assert step_memory(asked) == step_memory(named)
    assert step_memory(asked).saved_bytes < step_memory(plain).saved_bytes


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("model", ["llama-3.2-1b", "gpt2", "gemma-2-2b", "pythia-160m"])
def test_the_ledger_of_compiled_blocks_adds_up(model: str, recompute: str) -> None:
    """Rows sum to the saved bytes; products are eager code's, but all of a block are recomputed."""
    config, setup = load_model(model), TrainingSetup(seq_len=256, recompute=recompute)
    plan, plain = plan_of(config, replace(setup, compile=True)), plan_of(config, setup)
    rows = explain_plan(plan).rows
    assert sum(row.saved.total for row in rows) == step_memory(plan).saved_bytes
    assert {row.op for row in rows} == {row.op for row in explain_plan(plain).rows}
    ours, eager = step_flops(plan), step_flops(plain)
    assert (ours.forward, ours.dgrad, ours.wgrad) == (eager.forward, eager.dgrad, eager.wgrad)
    head = 2 * 256 * config.hidden_size * config.vocab_size
    assert ours.recompute == (ours.forward - head if recompute == "full" else 0)


@pytest.mark.parametrize(
    ("model", "stated", "said"),
    [
        ("mixtral-8x7b", {}, "experts"),
        ("gpt-1", {}, "norms after the sum"),
        ("chinchilla-70b", {}, "relative positions"),
        ("bloom-560m", {"attention": "eager"}, "ALiBi in eager attention"),
        ("llama-3.2-1b", {"recompute": "sac"}, "recompute 'sac'"),
        ("llama-3.2-1b", {"recompute": "full", "reentrant": True}, "reentrant"),
        ("llama-3.2-1b", {"precision": "fp8-mixed"}, "fp8-mixed"),
        ("llama-3.2-1b", {"stack": "hf"}, "not in this version"),
    ],
)
def test_what_was_not_compared_is_refused(model: str, stated: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_of(load_model(model), TrainingSetup(compile=True, **stated))


def test_no_gradients_no_kept_tensors() -> None:
    """What a compiled block keeps dies with its backward: the next micro-batch begins where it did."""
    cfg = RefConfig(norm="fused", L=3)
    plan = make_plan(resolve(setup_of(cfg), model_of(cfg)), load_stack("torch-compile"))
    structure, _runs = plan.structure(True)
    alive = sum(1 if event >= 0 else -1 for event in structure.events)
    assert alive == 0
