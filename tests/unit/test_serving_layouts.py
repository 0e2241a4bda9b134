"""Several devices: what each holds sums to the model, and times are those of the parts put together."""

from __future__ import annotations

import pytest

from memcalc.engine.device_side import device_of
from memcalc.engine.serving.cache_use import held_cache_bytes
from memcalc.engine.serving.infer import infer, prepared
from memcalc.engine.serving.rank_values import rank_values
from memcalc.engine.serving.serving_layout import stage_counts
from memcalc.engine.serving.serving_plan import ServingPlan, serving_plan
from memcalc.engine.serving.verdict import max_batch, max_context, need_of, needs_of
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.serving import ServingSetup, resolve_serving


def plan(model: str, layout: ParallelPlan, **fields) -> ServingPlan:  # type: ignore[no-untyped-def]
    fields = {"engine": "vllm", **fields}
    return serving_plan(resolve_serving(ServingSetup(**fields), load_model(model)), layout)


def answer(model: str, layout: ParallelPlan | None = None, gpu: str = "h100", **fields):  # type: ignore[no-untyped-def]
    return infer(model, ServingSetup(**{"engine": "vllm", **fields}), parallel=layout, gpu=gpu)


@pytest.mark.parametrize(
    ("layers", "stages", "counts"),
    [
        (32, 4, [8, 8, 8, 8]),
        (30, 4, [7, 8, 8, 7]),
        (61, 8, [7, 7, 8, 8, 8, 8, 8, 7]),
        (9, 2, [5, 4]),
    ],
)
def test_the_remainder_goes_to_the_stages_before_the_last(layers, stages, counts) -> None:
    assert stage_counts(layers, stages) == counts


@pytest.mark.parametrize(
    ("model", "pp"), [("llama-3-8b", 4), ("qwen2.5-0.5b", 3), ("deepseek-v2-lite", 2)]
)
def test_stages_hold_the_model_between_them(model: str, pp: int) -> None:
    """Weights once, but for a tied embedding, which the last stage has a copy of; the cache once."""
    whole, parts = (plan(model, ParallelPlan(pp=n), batch=3, context=100) for n in (1, pp))
    own = [parts.on(place) for place in parts.places]
    weights = sum(one.weights().resident_bytes for one in own)
    config = parts.config
    tied = config.vocab_size * config.hidden_size * 2 if config.tie_word_embeddings else 0
    assert weights == whole.weights().resident_bytes + tied
    assert sum(map(held_cache_bytes, own)) == held_cache_bytes(whole)
    assert [place.part.ends for place in parts.places][0] == (True, False)
    assert [place.part.ends for place in parts.places][-1] == (False, True)


def test_a_token_waits_for_the_slowest_stage_or_for_all() -> None:
    """Two micro-batches over two stages: twice the slower stage at least, and both of them in turn."""
    layout = ParallelPlan(pp=2)
    both = answer("llama-3-8b", layout, batch=32).time
    half = answer("llama-3-8b", batch=16).time
    assert half.time_per_output_token_s < both.time_per_output_token_s
    assert both.time_per_output_token_s < 1.15 * half.time_per_output_token_s
    alone = answer("llama-3-8b", layout, batch=1).time
    single = answer("llama-3-8b", batch=1).time
    assert alone.time_per_output_token_s == pytest.approx(
        single.time_per_output_token_s + alone.step_exchanges_s, rel=0.01
    )


def test_a_pipeline_answers_for_its_worst_stage_and_lists_all() -> None:
    found = answer("llama-3-70b", ParallelPlan(pp=4), batch=8)
    assert [stage.place for stage in found.stages] == [f"stage {n}" for n in range(4)]
    assert found.kv_cache_bytes == found.kv_bytes_per_token * 8 * 2048
    rooms = [stage.headroom_bytes for stage in found.stages]
    assert found.memory.headroom_bytes == min(rooms)
    assert found.to_dict()["memory"]["stages"][2]["weights_bytes"] == found.stages[2].weights_bytes


@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 4), (8, 8)])
def test_experts_are_divided_by_width_or_by_number(tp: int, ep: int) -> None:
    """Mixtral: 8 experts of 14336 columns in every one of 32 layers; the router is on every rank."""
    layout = ParallelPlan(tp=tp, ep=ep)
    held = [one for one in plan("mixtral-8x7b", layout).weights().leaves if "expert" in one.name]
    assert sum(one.elements for one in held) == 32 * 8 * 3 * 4096 * 14336 // tp
    values = rank_values(_values("mixtral-8x7b", 4, 10), layout, True)
    assert (values["e"], values["m"]) == ((8 // ep, 14336) if ep > 1 else (8, 14336 // tp))
    assert values["R"] == (4 * 10 * 2 // ep if ep > 1 else 80)
    assert values["R_c"] == 80  # buffers are for all rows


def _values(model: str, batch: int, new: int) -> dict[str, int]:
    from memcalc.engine.dims import dim_values

    return dim_values(load_model(model), batch, new)


def test_an_imbalance_gives_the_busiest_rank_more_rows() -> None:
    layout = ParallelPlan(tp=8, ep=8)
    even, uneven = (
        rank_values(_values("mixtral-8x7b", 8, 100), layout, True, of)["R"] for of in (1.0, 1.5)
    )
    assert (even, uneven) == (200, 300)
    times = [
        answer("mixtral-8x7b", layout, batch=64, imbalance=of, prompt=1024).time.prefill_s
        for of in (1.0, 2.0)
    ]
    assert times[1] > 1.2 * times[0]


def test_latents_are_on_every_rank_and_heads_are_divided() -> None:
    """DeepSeek-V2-Lite: 27 layers of (512 + 64) x 2 bytes a token, however many ranks."""
    one, four = (plan("deepseek-v2-lite", ParallelPlan(tp=tp), context=64) for tp in (1, 4))
    assert held_cache_bytes(one) == held_cache_bytes(four) == 64 * 27 * 576 * 2
    names = {"q_proj": 4, "kv_a_proj": 1, "kv_b_proj": 4, "o_proj": 4}
    for name, share in names.items():
        sizes = [
            sum(held.elements for held in own.weights().leaves if f".{name}." in held.name)
            for own in (one, four)
        ]
        assert sizes[0] == share * sizes[1], name


def test_transformers_divides_experts_and_leaves_latent_attention_whole() -> None:
    one, two = (
        plan("deepseek-v2-lite", ParallelPlan(tp=tp), engine="transformers") for tp in (1, 2)
    )

    def elements(own: ServingPlan, word: str) -> int:
        return sum(held.elements for held in own.weights().leaves if word in held.name)

    assert elements(one, "expert_") == 2 * elements(two, "expert_")
    assert elements(one, "q_proj") == elements(two, "q_proj") > 0


def test_replicas_of_attention_share_the_batch_and_the_experts() -> None:
    """dp 8 with ep 8: each replica holds all of attention, an eighth of the experts and of the requests."""
    layout = ParallelPlan(dp=8, ep=8)
    own = plan("mixtral-8x7b", layout, batch=64, context=128)
    assert own.sequences == 8
    assert held_cache_bytes(own) == 8 * 128 * 131_072
    whole = plan("mixtral-8x7b", ParallelPlan())
    experts = 32 * 8 * 3 * 4096 * 14336 * 2
    assert own.weights().resident_bytes == whole.weights().resident_bytes - experts * 7 // 8
    found = answer("mixtral-8x7b", layout, batch=64)
    assert found.time.step_exchanges_s > 0
    assert found.time.decode_tokens_per_s == pytest.approx(64 / found.time.time_per_output_token_s)


def test_replicas_of_a_dense_model_exchange_nothing() -> None:
    found = answer("llama-3-8b", ParallelPlan(dp=4), batch=64)
    alone = answer("llama-3-8b", batch=16)
    assert found.time.time_per_output_token_s == pytest.approx(alone.time.time_per_output_token_s)
    assert found.time.tokens_per_s == pytest.approx(4 * alone.time.tokens_per_s)
    assert found.max_batch == 4 * alone.max_batch


@pytest.mark.parametrize(
    ("model", "engine", "layout"),
    [
        ("mixtral-8x7b", "vllm", ParallelPlan(tp=2)),
        ("mixtral-8x7b", "vllm", ParallelPlan(tp=2, dp=2, ep=4)),
        ("deepseek-v2-lite", "vllm", ParallelPlan(tp=2, pp=2)),
        ("gemma-2-2b", "vllm", ParallelPlan(pp=3)),
        ("llama-2-13b", "llama.cpp", ParallelPlan(pp=2)),
    ],
)
def test_limits_agree_with_the_verdict_in_every_layout(model, engine, layout) -> None:
    own = plan(model, layout, engine=engine, context=600, batch=3)
    device = device_of("a100-80gb")
    held = tuple(own.on(place).weights().resident_bytes for place in own.places)

    def fits(batch: int, context: int) -> bool:
        return bool(need_of(own.sized(batch, context), device, held).fits)

    most, longest = max_batch(own, device, held), max_context(own, device, held)
    assert most and longest
    assert fits(most, 600) and not fits(most + 1, 600)
    assert fits(3, longest) and not fits(3, longest + 1)
    for need in needs_of(own.sized(most, 600), device, held):
        assert need.room_bytes >= 0


def test_llama_cpp_counts_the_output_as_a_layer() -> None:
    """Llama-2-7B, 32 layers and the output over 2 and 4 GPUs; the table of tokens is the host's."""
    for gpus, counts in ((2, [17, 15]), (4, [9, 8, 8, 7])):
        own = plan("llama-2-7b", ParallelPlan(pp=gpus), engine="llama.cpp")
        layers = [place.part.layers for place in own.gpu_places]
        assert [stop - first for first, stop in layers] == counts
        assert own.gpu_places[-1].part.ends == (False, True)
        assert own.places[0].host and own.places[0].part.layers == (0, 0)


def test_prepared_weights_are_the_places_own() -> None:
    made = prepared("llama-3-70b", ServingSetup(engine="vllm"), parallel=ParallelPlan(tp=2, pp=2))
    assert len(made.held) == 2 and sum(made.held) > 70e9
