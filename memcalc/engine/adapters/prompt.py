"""Virtual tokens: prompt tuning, P-tuning's encoder, and prefix tuning, as PEFT runs them on transformers.

Symbols: N virtual tokens (dim v_t), s_i real ones, h hidden, e the width inside an encoder. Prompt tuning
joins N trained rows to the embeddings of every sequence, so that a block sees s = N + s_i positions; with
P-tuning an MLP makes them of N rows. Prefix tuning gives every layer N trained keys and values: one table
(N, 2 L k d), or an MLP of one (N, k d), is cut by layer and laid into a DynamicCache before the first
block; a layer then reads N + s keys. All of it is in fp32 and cast to the model's dtype.
Source: PEFT 0.21.2, peft_model.py (PeftModelForCausalLM.forward, get_prompt), tuners/prompt_tuning,
tuners/p_tuning, tuners/prefix_tuning; transformers 5.23, cache_utils.py (DynamicCache).
Checked by: oracle/test_peft_virtual.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.engine.adapters.bottleneck import own_linear, relu
from memcalc.engine.adapters.leaf import added
from memcalc.engine.aten.fused import embedding
from memcalc.engine.aten.parted import repeat, unbind
from memcalc.engine.aten.pointwise import tanh, to
from memcalc.engine.aten.shape import cat, narrow, permute, reshape, split
from memcalc.engine.dtypes import promote
from memcalc.engine.sizes import ONE, Size, number
from memcalc.engine.tensors import PREFIX, Tensor
from memcalc.errors import NotInThisVersionError

if TYPE_CHECKING:
    from memcalc.engine.build import Build

#: Letters among the dims: virtual tokens, real tokens, an encoder's width, layers times two.
TOKENS, REAL, INSIDE, TABLES = "v_t", "s_i", "e_p", "2L"
FEEDS_EMBEDDING = ("prompt", "p-tuning")
#: Families with P-tuning v2 in code of their own, without a cache object: it can be checkpointed.
OWN_CODE = ("chatglm",)


class PrefixCache:
    """Trained keys and values of every layer, and after its forward all keys and values of it."""

    def __init__(self, keeps: bool) -> None:
        self.held: list[list[Tensor]] = []  # keys and values of each layer
        self.keeps = keeps  # what is joined takes the prefix's place

    def update(self, build: Build, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix joined with a layer's own keys and values: what attention reads."""
        build.at("prefix_cache", "attention")
        pair = self.held[build.tape.block]
        if pair[0].shape[1] is not key.shape[1]:
            raise NotInThisVersionError(
                f"peft: prefix tuning of {build.config.model_type}, whose keys have other heads than PEFT "
                "lays out, is not in this version; valid: prompt, p-tuning"
            )
        if not self.keeps:
            return _joined(build, pair[0], key), _joined(build, pair[1], value)
        pair[0] = _joined(build, pair[0], key)
        pair[1] = _joined(build, pair[1], value)
        return pair[0], pair[1]


def _joined(build: Build, before: Tensor, new: Tensor) -> Tensor:
    """torch.cat of a prefix and what follows; autocast widens the narrower of two dtypes."""
    wide = promote(before.dtype, new.dtype)
    return cat((to(before, wide), to(new, wide)), 2, build["s_kv"])


def is_virtual(build: Build) -> bool:
    """Whether a method of virtual tokens is on that changes the embeddings."""
    adapter = build.kernels.adapter
    return adapter is not None and adapter.method in FEEDS_EMBEDDING


def prompted(build: Build, x: Tensor) -> Tensor:
    """Embeddings (b, s_i, h) with the virtual tokens' before them: (b, s, h); x itself without any."""
    if not is_virtual(build):
        return x
    tape, b, n = build.tape, build["b"], build[TOKENS]
    build.at("prompt", "embedding")
    ignored = tape.empty("_to_copy", (b, n), "int64")
    labels = tape.empty("cat", (b, build["s"]), "int64")
    prompts = repeat(_prompts(build), (b, n, build["h"]))
    prompts = to(prompts, x.dtype)
    joined = cat((prompts, x), 1, build["s"])
    build.lent += [ignored, labels, prompts, joined]
    return joined


def _prompts(build: Build) -> Tensor:
    """The virtual tokens of one sequence, (1, N, h) in fp32."""
    rows = _rows(build, ONE, build["h"])
    adapter = build.kernels.adapter
    if adapter is None or adapter.method == "prompt":
        return rows
    h, e = build["h"], build[INSIDE]
    hidden = relu(own_linear(build, rows, "prompt_encoder.mlp_head.0", (h, e)))
    hidden = relu(own_linear(build, hidden, "prompt_encoder.mlp_head.2", (e, e)))
    return own_linear(build, hidden, "prompt_encoder.mlp_head.4", (e, h))


def _rows(build: Build, count: Size, width: Size) -> Tensor:
    """Rows of the trained table (count, N, width); indices of all sequences are made for one or all."""
    n = build[TOKENS]
    index = build.tape.empty("_to_copy", (build["b"], n), "int64")
    weight = added(build, "prompt_encoder.embedding.weight", (n, width))
    return embedding(weight, index.view_as((count, n), None, None))


def prefixed(build: Build, layers: int) -> None:
    """Fill `build.prefix` where the method is prefix tuning: runs before anything else does."""
    adapter = build.kernels.adapter
    if adapter is None or adapter.method != "prefix":
        return
    build.at(PREFIX, "embedding")
    parts = _by_layer(build, layers)
    cached = build.config.model_type not in OWN_CODE
    build.prefix = PrefixCache(cached)
    for index, part in enumerate(parts):
        build.tape.mark("cache block", index)
        build.tape.block = index
        build.at(PREFIX, "attention")
        if not cached:
            build.prefix.held.append(list(unbind(part)))
            continue
        key, value = unbind(
            narrow(part, number(2), 0)
        )  # DynamicCache takes its first two, all there are
        build.prefix.held.append([cat((one,), 2, build[TOKENS]) for one in (key, value)])
        del key, value
    build.tape.block = -1
    build.tape.mark("cache end", -1)


def _by_layer(build: Build, layers: int) -> tuple[Tensor, ...]:
    """The keys and values (2, b, k, N, d) of each layer: views of one tensor."""
    b, n, d = build["b"], build[TOKENS], build["d"]
    k = build[
        "a" if build.kernels.traits.block == "falcon" else "k"
    ]  # whose configuration says less
    whole = build[TABLES] * k * d
    adapter = build.kernels.adapter
    assert adapter is not None
    if adapter.projects:
        e = build[INSIDE]
        past = tanh(
            own_linear(build, _rows(build, b, k * d), "prompt_encoder.transform.0", (k * d, e))
        )
        past = own_linear(build, past, "prompt_encoder.transform.2", (e, whole))
    else:
        past = _rows(build, b, whole)
    past = to(past, build.kernels.param_dtype)
    past = permute(reshape(past, (b, n, build[TABLES], k, d)), (2, 0, 3, 1, 4))
    return split(past, (number(2),) * layers, 0)
