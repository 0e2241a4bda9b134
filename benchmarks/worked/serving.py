"""Cases I: caches and speed of inference."""

from __future__ import annotations

from typing import Final

from benchmarks.worked.case import Case, Figure

_FOUR_BITS: Final = "infer llama-7b --weights ggml-2023:Q4_0 --engine llama.cpp --context 512"
_RATE: Final = "time.decode_tokens_per_s"
_GLM: Final = "infer chatglm-6b --weights fp16 --context 512 --gpu {}"
_INT8: Final = tuple(
    f"infer llama-7b --context 512 --gpu a100-80gb --weights {name}" for name in ("fp16", "int8")
)
#: Model: layers, KV heads, head width of the published configurations.
_SHAPES: Final = {
    "llama-3-8b": (32, 8, 128),
    "llama-2-7b": (32, 32, 128),
    "llama-2-70b": (80, 8, 128),
    "qwen2.5-32b": (64, 8, 128),
}


def _cache(model: str, batch: int, context: int) -> Figure:
    layers, heads, width = _SHAPES[model]
    return Figure(
        f"{model}, {batch} x {context} positions", 2.0 * layers * batch * context * heads * width * 2,
        "bytes", (f"infer {model} --batch {batch} --context {context}",), "kv_cache_bytes",
    )  # fmt: skip


SERVING: Final = (
    Case("I1", "keys and values: 2 x layers x batch x context x KV heads x head width x bytes", "cache",
         tuple(
             _cache(model, batch, context)
             for model in _SHAPES
             for batch, context in ((1, 2048), (32, 8192), (7, 333))
         ), ("tests/oracle/test_kv_cache.py",)),
    Case("I2", "a 7B in 4 bits decodes about 10 tokens/s on a CPU, 10 times that on an A6000", "taught", (
        *(
            Figure(f"CPU of {rate} GB/s", 10.0, "tokens/s",
                   (f"{_FOUR_BITS} --device cpu --host-bandwidth {rate}",), _RATE, (5.0, 20.0),
                   "decoding reads all weights for each token: the source names no CPU",
                   "time.bound == 'weights'")
            for rate in (50, 90)
        ),
        *(
            Figure(f"A6000 over a CPU of {rate} GB/s", 10.0, "times",
                   (f"{_FOUR_BITS} --gpu rtx-a6000", f"{_FOUR_BITS} --device cpu --host-bandwidth {rate}"),
                   f"{_RATE} / second.{_RATE}", (5.0, 20.0),
                   f"768 GB/s over {rate} is {768 / rate:.1f}; neither reaches its bandwidth")
            for rate in (50, 90)
        ),
    )),
    Case("I3", "ChatGLM-6B in fp16: a V100 is about 40 % slower than an A800", "taught", (
        Figure("V100 over A800", 0.6, "times", (_GLM.format("v100-32gb"), _GLM.format("a800-80gb")),
               f"{_RATE} / second.{_RATE}", (0.42, 0.78),
               "bandwidth alone gives 0.44; eager decoding waits for launches on both"),
        Figure("A800", 100.0, "characters/s", (_GLM.format("a800-80gb"),), f"1.6 * {_RATE}", None,
               "a token is 1.4 to 1.8 characters (1.6 is taken) and the code of 2023 is not today's"),
    )),
    Case("I4", "int8 weights by LLM.int8 spare memory, not time", "int8", (
        Figure("memory of weights", (0.5, 0.6), "of fp16's", _INT8,
               "second.weights_bytes / weights_bytes", (0.45, 0.6)),
        Figure("time of a token is not shorter", "yes", "", _INT8,
               "second.time_per_output_token_s >= time_per_output_token_s",
               shown="any('do not make decoding faster' in note for note in second.notes)"),
    )),
)  # fmt: skip
