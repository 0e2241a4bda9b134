"""Options of `infer` and `solve batch|context`: rows of the option table on how a model is served.

What training has too (--weights, --attention, --layers, --tp, --gpu) is in the other tables.
"""

from __future__ import annotations

from typing import Any, Final

from memcalc.cli.option import ESTIMATE, MEASURE, Option
from memcalc.inputs.engines import ENGINES
from memcalc.inputs.serving import CACHES, KV_CACHES

_COMMANDS: Final = ("infer", "chart", "solve")


def _serve(name: str, kind: str, said: str, default: str = "", **more: Any) -> Option:
    field = more.pop("serving", name.replace("-", "_"))
    commands = (*_COMMANDS, *more.pop("also", ()))
    return Option(name, kind, "Serving", said, default, serving=field, commands=commands, **more)


SERVING_OPTIONS: Final = (
    _serve("engine", "text", "Whose code serves; with --rlhf: generates", "transformers", choices=ENGINES,
           also=ESTIMATE),
    Option("decode", "count", "Serving", "Generate so many tokens a sequence here, in place of training",
           "train", commands=MEASURE),
    _serve("batch", "count", "Sequences at once", "1", also=MEASURE),
    _serve("context", "count", "Positions of a sequence at its end, prompt included; 8k = 8192",
           "min(2048, the model's maximum)"),
    _serve("prompt", "count", "Positions of the prompt", "half of the context; --decode: 32",
           also=(*MEASURE, *ESTIMATE)),
    _serve("kv-cache", "text", "Dtype of the cache", "the activations'", choices=KV_CACHES),
    _serve("cache", "text", "How the cache is held: grow (by token), tuple or static, paged (vllm), whole "
           "(llama.cpp)", "the engine's; --decode: grow", choices=CACHES, also=MEASURE),
    _serve("prefill-tokens", "count", "Prompt positions of one pass at most (vllm)", "8192"),
    _serve("shared-prefix", "count", "Positions all prompts begin with, cached once (vllm)", "none"),
    _serve("gpu-memory-utilization", "number", "Share of the GPU that the engine takes (vllm)",
           "0.9"),
    _serve("no-cuda-graphs", "flag", "Every kernel is launched from Python", "",
           serving="cuda_graphs"),
    _serve("draft", "name", "Model that proposes tokens; ngram: none, self:N: the model's first N "
           "layers", "none"),
    _serve("draft-tokens", "count", "Tokens proposed a step", "5"),
    _serve("acceptance", "number", "Probability that a proposed token is taken", "0.7"),
    _serve("gpu-layers", "gpu-layers", "Layers on the GPU, the last ones; auto: as many as fit "
           "(llama.cpp)", "all"),
    _serve("host-memory", "memory", "Memory of the host, as 64GiB", "the cluster's, else enough",
           serving="host_memory_bytes"),
    _serve("host-bandwidth", "number", "GB/s of the host's memory", "51.2",
           serving="host_bytes_per_s"),
    _serve("repeat-kv", "flag", "Keys and values are copied to every query head, as transformers "
           "did up to 4.47", ""),
)  # fmt: skip
