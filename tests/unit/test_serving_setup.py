"""Serving setups: what is refused in one line, what is filled in, and the engines' profiles."""

from __future__ import annotations

import pytest

from memcalc.engine.serving.infer import infer
from memcalc.engine.serving.serving_plan import serving_plan
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.engines import ENGINES, load_engine
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.profiles import profile_names
from memcalc.inputs.serving import ServingSetup, resolve_serving


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch": 0}, "batch: got 0"),
        ({"context": 1}, "context: got 1; rule: a prompt and a new token"),
        ({"context": 64, "prompt": 64}, "prompt: got 64; rule: below the context of 64"),
        ({"engine": "tgi"}, "engine: got 'tgi'"),
        ({"kv_cache": "int3"}, "kv_cache: got 'int3'"),
        ({"engine": "vllm", "kv_cache": "int8"}, "kv_cache: got int8 on engine vllm"),
        ({"engine": "llama.cpp", "kv_cache": "fp8"}, "kv_cache: got fp8 on engine llama.cpp"),
        ({"kv_cache": "fp8", "cache": "static"}, "cache: got static in fp8"),
        ({"draft_tokens": 3}, "draft_tokens: got 3 without a draft"),
        ({"draft": "ngram", "acceptance": 1.5}, "acceptance: got 1.5"),
        ({"draft": "ngram", "draft_tokens": 65}, "draft_tokens: got 65"),
        ({"draft": "ngram", "batch": 2}, "batch: got 2 with a draft on engine transformers"),
        ({"draft": "self:16"}, "draft: got 'self:16'; rule: self:N"),
        ({"draft": "gpt2", "engine": "vllm"}, "draft: got gpt2 with 50257 tokens"),
        ({"gpu_layers": 4}, "gpu_layers: got 4 on engine transformers"),
        ({"gpu_layers": "most", "engine": "llama.cpp"}, "gpu_layers: got 'most'"),
        ({"device": "cpu", "engine": "vllm"}, "device: got cpu on engine vllm"),
        ({"device": "tpu"}, "device: got 'tpu'"),
        ({"imbalance": 0.5}, "imbalance: got 0.5"),
        ({"host_bytes_per_s": 1.0, "device": "cpu"}, "host_bandwidth: got"),
        ({"cache": "paged"}, "cache: got paged on engine transformers"),
        ({"engine": "vllm", "cache": "grow"}, "cache: got grow on engine vllm"),
        ({"shared_prefix": 8}, "shared_prefix: got 8 on engine transformers"),
        ({"engine": "vllm", "shared_prefix": 99, "prompt": 9}, "shared_prefix: got 99; rule: at most"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization: got 1.5"),
        ({"weights": "q5"}, "weights: got 'q5'"),
        ({"batch": 1 << 30, "context": 1 << 20}, "batch x context"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(fields, said) -> None:
    with pytest.raises(ConfigError) as error:
        infer("llama-3.2-1b", ServingSetup(**fields))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "fields", "layout"),
    [
        ("gpt-1", {"engine": "vllm"}, {}),
        ("llama-3-8b", {}, {"pp": 2}),
        ("llama-3-8b", {"engine": "vllm"}, {"cp": 2}),
        ("llama-3-8b", {}, {"fsdp": True}),
        ("llama-3-8b", {"engine": "llama.cpp"}, {"tp": 2}),
        ("gpt-oss-20b", {}, {"tp": 2}),
        ("llama-3-8b", {"engine": "vllm", "draft": "ngram"}, {"pp": 2}),
    ],
)
def test_what_is_not_there_yet_says_so(model, fields, layout) -> None:
    with pytest.raises(
        NotInThisVersionError, match="not in this version|vLLM has no model|has no plan for"
    ):
        infer(model, ServingSetup(**fields), parallel=ParallelPlan(**layout))


def test_degrees_that_do_not_divide_the_heads_name_those_that_do() -> None:
    with pytest.raises(ConfigError, match="tp: got 3.*valid: 1, 2, 4, 8, 16, 32"):
        infer("llama-3-8b", ServingSetup(), parallel=ParallelPlan(tp=3))
    with pytest.raises(ConfigError, match="gpus: got 2, 2 replicas with engine transformers"):
        infer("llama-3-8b", ServingSetup(), parallel=ParallelPlan(gpus=2))
    vllm = ServingSetup(engine="vllm")
    with pytest.raises(ConfigError, match="ep: got 2; rule: .* valid: 1, 4"):
        infer("mixtral-8x7b", vllm, parallel=ParallelPlan(tp=4, ep=2))
    with pytest.raises(ConfigError, match="ep: got 2 for llama-3-8b without experts"):
        infer("llama-3-8b", vllm, parallel=ParallelPlan(tp=2, ep=2))
    with pytest.raises(ConfigError, match="pp: got 64; rule: at most the 32 layers"):
        infer("llama-3-8b", vllm, parallel=ParallelPlan(pp=64))


def test_learned_positions_end_the_context() -> None:
    with pytest.raises(ConfigError, match="context: got 4096; rule: at most 1024"):
        infer("gpt2", ServingSetup(context=4096))
    limited = infer("gpt2", ServingSetup(context=512), gpu="h100")
    assert limited.max_context == 1024


def test_defaults_are_filled_in_from_the_model_and_the_engine() -> None:
    resolved = resolve_serving(ServingSetup(engine="vllm"), load_model("llama-3-8b"))
    assert (resolved.context, resolved.prompt, resolved.generated) == (2048, 1024, 1024)
    assert (resolved.cache, resolved.kv_dtype, resolved.cuda_graphs) == ("paged", "bf16", True)
    stated = resolve_serving(
        ServingSetup(context=4096, prompt=4000, weights="fp16"), load_model("llama-3-8b")
    )
    assert (stated.prompt, stated.generated, stated.kv_dtype) == (4000, 96, "fp16")


def test_a_shorter_context_halves_a_prompt_that_no_longer_fits() -> None:
    resolved = resolve_serving(ServingSetup(context=4096, prompt=4000), load_model("llama-3-8b"))
    assert resolved.sized(2, 5000).prompt == 4000
    assert resolved.sized(2, 1000).prompt == 500


def test_engines_have_profiles_with_sources() -> None:
    assert set(profile_names("engines")) == set(ENGINES)
    for name in ENGINES:
        engine = load_engine(name)
        assert engine.name == name and all(engine.sources.values())


def test_sliding_windows_have_no_quantised_cache() -> None:
    with pytest.raises(ConfigError, match="kv_cache: got fp8 for gemma-2-2b with sliding windows"):
        infer("gemma-2-2b", ServingSetup(kv_cache="fp8"))


def test_soft_caps_fall_back_to_eager_attention_with_a_note() -> None:
    plan = serving_plan(resolve_serving(ServingSetup(), load_model("gemma-2-2b")))
    assert plan.timed.attention == "eager"
    assert any("eager" in note for note in plan.notes)


def test_a_truncated_model_serves() -> None:
    whole, part = (
        infer("llama-3-8b", ServingSetup(num_layers=layers, context=256)) for layers in (None, 8)
    )
    assert part.kv_bytes_per_token * 4 == whole.kv_bytes_per_token
