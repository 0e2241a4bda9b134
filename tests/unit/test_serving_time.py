"""Time of serving: limits it cannot beat, and how it changes with sizes, engines and formats."""

from __future__ import annotations

import pytest

from memcalc.engine.device_side import device_of
from memcalc.engine.serving.infer import infer
from memcalc.engine.serving.pass_time import pass_time, pricing
from memcalc.engine.serving.serving_plan import serving_plan
from memcalc.engine.timing.topology import wires_of
from memcalc.inputs.choose_rates import choose_rates
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.serving import ServingSetup, resolve_serving


def time_of(model: str = "llama-3-8b", gpu: str = "h100-80gb", tp: int = 1, **fields):  # type: ignore[no-untyped-def]
    return infer(model, ServingSetup(**fields), parallel=ParallelPlan(tp=tp), gpu=gpu).time


@pytest.mark.parametrize("gpu", ["h100-80gb", "a100-80gb", "rtx-4090", "v100-32gb", "mi300x"])
@pytest.mark.parametrize("engine", ["transformers", "vllm", "llama.cpp"])
@pytest.mark.parametrize("batch", [1, 32])
def test_no_token_beats_the_memorys_bandwidth(gpu: str, engine: str, batch: int) -> None:
    """Weights but for the embedding, and the cache, are read at least once."""
    time = time_of("qwen2.5-1.5b", gpu, engine=engine, batch=batch, context=1024, weights="fp16")
    assert time.time_per_output_token_s > time.lower_bound_s > 0
    assert time.low_s <= time.time_per_output_token_s * 1.05 and time.high_s > time.low_s


def test_the_request_is_its_prompt_and_its_steps() -> None:
    time = time_of(batch=4, context=300, prompt=100)
    steps = 300 - 100 - 1
    whole = time.prefill_s + steps * time.time_per_output_token_s
    assert time.request_s == pytest.approx(whole)
    assert time.tokens_per_s == pytest.approx(4 * 200 / whole)
    assert time.decode_tokens_per_s == pytest.approx(4 / time.time_per_output_token_s)


def test_larger_batches_decode_more_and_wait_longer() -> None:
    times = [time_of(engine="vllm", batch=batch) for batch in (1, 8, 64)]
    rates = [time.decode_tokens_per_s for time in times]
    assert rates == sorted(rates) and rates[2] > 10 * rates[0]
    steps = [time.time_per_output_token_s for time in times]
    assert steps == sorted(steps)


def test_longer_contexts_and_prompts_take_longer() -> None:
    steps = [
        time_of(engine="vllm", batch=16, context=n).time_per_output_token_s for n in (256, 4096)
    ]
    assert steps[0] < steps[1]
    prompts = [time_of(engine="vllm", context=9000, prompt=n).prefill_s for n in (64, 1024, 8192)]
    assert prompts == sorted(prompts) and prompts[0] < prompts[2]


def test_eager_decoding_waits_for_python_where_graphs_do_not() -> None:
    eager = time_of("qwen2.5-0.5b", engine="transformers")
    assert eager.bound == "launching"
    assert eager.time_per_output_token_s == eager.step_launch_s > eager.step_kernels_s
    graphs = time_of("qwen2.5-0.5b", engine="vllm")
    assert graphs.step_launch_s == 0 and graphs.bound != "launching"
    plain = time_of("qwen2.5-0.5b", engine="vllm", cuda_graphs=False)
    assert plain.time_per_output_token_s > graphs.time_per_output_token_s


def test_ranks_decode_faster_and_pay_for_their_sums() -> None:
    one, four = (time_of("llama-3-70b", engine="vllm", tp=tp) for tp in (1, 4))
    assert one.step_exchanges_s == 0 < four.step_exchanges_s
    assert one.time_per_output_token_s / 4 < four.time_per_output_token_s
    assert four.time_per_output_token_s < one.time_per_output_token_s


def test_fewer_bits_decode_faster_where_the_kernel_unpacks_as_it_reads() -> None:
    dense, packed = (time_of(engine="vllm", weights=name, context=512) for name in ("bf16", "gptq"))
    assert packed.time_per_output_token_s < 0.6 * dense.time_per_output_token_s
    written = time_of(weights="nf4", batch=64, context=512, cuda_graphs=True)
    whole = time_of(weights="bf16", batch=64, context=512, cuda_graphs=True)
    assert written.time_per_output_token_s > whole.time_per_output_token_s


def test_a_prompt_in_pieces_sees_what_came_before() -> None:
    """Pieces of 1024 of a prompt of 4096: their products are those of one pass, their keys grow."""
    whole = time_of(engine="vllm", context=5000, prompt=4096)
    pieces = time_of(engine="vllm", context=5000, prompt=4096, prefill_tokens=1024)
    assert whole.prefill_s < pieces.prefill_s < 1.5 * whole.prefill_s


def test_a_shared_prefix_is_computed_once() -> None:
    fields = {"engine": "vllm", "batch": 16, "context": 4096, "prompt": 2048}
    alone, shared = (time_of(**fields, shared_prefix=n).prefill_s for n in (0, 1920))
    assert shared < 0.3 * alone


def test_a_decode_step_moves_weights_and_cache_once() -> None:
    """Bytes read and written by the kernels: parameters but for the embedding, cache, little else."""
    resolved = resolve_serving(
        ServingSetup(engine="vllm", batch=8, context=4097), load_model("llama-3-8b")
    )
    plan, device = serving_plan(resolved), device_of("h100-80gb")
    rates, _ = choose_rates(device.gpu, "default")
    how = pricing(plan, rates, wires_of(device, plan.layout, rates))
    step = pass_time(plan.decode(4096, timed=True), how)
    weights = 2 * (8_030_261_248 - 128256 * 4096)
    cache = 8 * 4097 * 131_072
    assert weights + cache < step.moved_bytes < 1.01 * (weights + cache)


def test_joining_a_growing_cache_moves_it_twice_more() -> None:
    grown, static = (
        time_of(batch=32, context=8192, cache=cache).step_kernels_s for cache in ("grow", "static")
    )
    assert grown > static
