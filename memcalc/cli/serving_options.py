"""Options of `infer` and `solve batch|context`: rows of the option table on how a model is served.

What training has too (--weights, --attention, --layers, --tp, --gpu) is in the other tables.
"""

from __future__ import annotations

from typing import Any, Final

from memcalc.cli.option import Option
from memcalc.inputs.engines import ENGINES
from memcalc.inputs.serving import CACHES, KV_CACHES


def _serve(name: str, kind: str, said: str, default: str = "", **more: Any) -> Option:
    field = more.pop("serving", name.replace("-", "_"))
    return Option(name, kind, "Serving", said, default, serving=field, commands=("infer", "solve"),
                  **more)  # fmt: skip


SERVING_OPTIONS: Final = (
    _serve("engine", "text", "Whose code serves", "transformers", choices=ENGINES),
    _serve("batch", "count", "Sequences at once", "1"),
    _serve("context", "count", "Positions of a sequence at its end, prompt included; 8k = 8192",
           "min(2048, the model's maximum)"),
    _serve("prompt", "count", "Positions of the prompt", "half of the context"),
    _serve("kv-cache", "text", "Dtype of the cache", "the activations'", choices=KV_CACHES),
    _serve("cache", "text", "How the cache is held: grow (by token), tuple or static, paged (vllm), whole "
           "(llama.cpp)", "the engine's", choices=CACHES),
    _serve("prefill-tokens", "count", "Prompt positions of one pass at most (vllm)", "8192"),
    _serve("shared-prefix", "count", "Positions all prompts begin with, cached once (vllm)", "none"),
    _serve("gpu-memory-utilization", "number", "Share of the GPU that the engine takes (vllm)",
           "0.9"),
    _serve("no-cuda-graphs", "flag", "Every kernel is launched from Python", "",
           serving="cuda_graphs"),
    _serve("repeat-kv", "flag", "Keys and values are copied to every query head, as transformers "
           "did up to 4.47", ""),
)  # fmt: skip
