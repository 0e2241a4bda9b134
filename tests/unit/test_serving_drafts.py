"""Speculative decoding: expected tokens, the draft's memory, and the time of a step."""

from __future__ import annotations

import pytest

from memcalc.engine.serving.infer import infer
from memcalc.engine.serving.serving_plan import serving_plan
from memcalc.inputs.models import load_model
from memcalc.inputs.serving import ServingSetup, resolve_serving


def answer(model: str = "llama-3-8b", **fields):  # type: ignore[no-untyped-def]
    return infer(model, ServingSetup(**{"engine": "vllm", **fields}), gpu="h100")


@pytest.mark.parametrize(
    ("acceptance", "drafted", "tokens"),
    [(0.0, 4, 1.0), (1.0, 4, 5.0), (0.5, 1, 1.5), (0.8, 5, 3.68928), (0.6, 2, 1.96)],
)
def test_expected_tokens_are_the_papers(acceptance, drafted, tokens) -> None:
    """The sum of a^i for i from 0 to K."""
    setup = ServingSetup(draft="ngram", draft_tokens=drafted, acceptance=acceptance)
    resolved = resolve_serving(setup, load_model("gpt2"))
    assert resolved.tokens_a_step == pytest.approx(tokens)
    assert tokens == pytest.approx(sum(acceptance**i for i in range(drafted + 1)))


def test_a_draft_has_weights_and_a_cache_of_its_own() -> None:
    """Llama-3.2-1B beside Llama-3-8B: 1,235,814,400 parameters, 16 layers of 2 x 8 x 64 x 2 bytes."""
    alone, drafted = (answer(batch=4, context=1024, draft=name) for name in (None, "llama-3.2-1b"))
    assert drafted.weights_bytes - alone.weights_bytes == 2 * 1_235_814_400
    own = 16 * 2 * 8 * 64 * 2
    assert drafted.kv_bytes_per_token - alone.kv_bytes_per_token == own
    blocks = -(-(1024 + 5) // 16) * 16  # room for what is proposed
    assert drafted.kv_cache_bytes == 4 * (blocks * 131_072 + 1024 * own)
    assert drafted.max_batch < alone.max_batch


def test_words_of_the_prompt_and_first_layers_weigh_nothing() -> None:
    alone, ngram, layers = (answer(draft=name) for name in (None, "ngram", "self:8"))
    assert alone.weights_bytes == ngram.weights_bytes == layers.weights_bytes
    assert ngram.kv_bytes_per_token == alone.kv_bytes_per_token
    assert layers.kv_bytes_per_token == alone.kv_bytes_per_token * 40 // 32
    assert ngram.time.draft_s is None and layers.time.draft_s > 0


def test_a_step_is_its_drafts_and_one_pass() -> None:
    found = answer(draft="llama-3.2-1b", draft_tokens=4, acceptance=0.8).time
    draft = infer(
        "llama-3.2-1b", ServingSetup(engine="vllm"), gpu="h100"
    ).time.time_per_output_token_s
    plain = answer().time.time_per_output_token_s
    assert found.draft_s == pytest.approx(4 * draft, rel=1e-6)
    verified = found.step_s - found.draft_s
    assert plain < verified < 1.1 * plain  # five positions read the weights once
    expected = sum(0.8**i for i in range(5))
    assert found.time_per_output_token_s == pytest.approx(found.step_s / expected)
    assert found.tokens_per_step == pytest.approx(expected)


def test_more_accepted_tokens_are_faster_and_none_are_slower_than_plain() -> None:
    times = [
        answer(draft="llama-3.2-1b", acceptance=a).time.time_per_output_token_s
        for a in (0.0, 0.4, 0.8, 1.0)
    ]
    assert times == sorted(times, reverse=True)
    plain = answer().time.time_per_output_token_s
    assert times[-1] < plain < times[0]


def test_all_proposed_positions_have_logits() -> None:
    plan = serving_plan(
        resolve_serving(ServingSetup(draft="ngram", draft_tokens=7, context=64), load_model("gpt2"))
    )
    one = plan.verify(32)
    heads = [k.ran for k in one.structure.kernels if k.op == "lm_head"]
    assert [ran.shape[1].value(one.values) for ran in heads] == [8]


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_other_engines_draft_too(engine: str) -> None:
    found = infer(
        "llama-3-8b", ServingSetup(engine=engine, draft="llama-3.2-1b", context=512), gpu="h100"
    )
    assert found.fits and found.time.tokens_per_step == pytest.approx((1 - 0.7**6) / 0.3)
    assert any("taken with probability 0.7, assumed" in line for line in found.assumptions)
