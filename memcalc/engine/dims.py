"""Named dims of a model: the letters of every Size, their values, and which of them are traced as 1.

b sequences of a micro-batch, s positions, h hidden, a query heads, k key/value heads, g = a / k,
d head width, r rotated width, f MLP width, V vocabulary, P rows of a position table, N positions
at most, w narrow embedding width; experts: E in all in G groups (t_G of them a token), t per
token, m width of one, n shared width, R token rows routed to this rank (b s t when balanced);
latent attention: q_r and c ranks of queries and of keys/values, d_n and d_r the parts of a query
head without and with positions, d_v value head width; encoders: u positions of a decoder that
reads an encoder's s, B rows of a table of relative positions, Y of one of segments. a_c and k_c:
heads of a rank where attention is divided over heads.
"""

from __future__ import annotations

import math

from memcalc.engine.sizes import ONE, Size, dim
from memcalc.inputs.model import ModelConfig, MoeConfig


def dim_values(
    config: ModelConfig, micro_batch: int, seq: int, imbalance: float = 1.0, target: int = 0
) -> dict[str, int]:
    """The integer behind each letter, for one model and one micro-batch.

    target: positions of an encoder-decoder's decoder; 0: as many as the encoder's.
    imbalance: token rows this rank's experts receive, over the balanced share.
    """
    a, k, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    r = d if config.rotary_dim is None else config.rotary_dim
    values = {
        "b": micro_batch, "s": seq, "h": config.hidden_size, "a": a, "k": k, "g": a // k, "d": d,
        "r": r, "r/2": r // 2, "d-r": d - r, "f": config.intermediate_size, "V": config.vocab_size,
        "P": config.num_position_rows, "w": config.word_embed_proj_dim or config.hidden_size,
        "N": config.max_position_embeddings,
    }  # fmt: skip
    if config.is_encoder_decoder:
        values |= {"u": target or seq, "B": config.relative_buckets}
    if config.token_types:
        values["Y"] = config.token_types
    if config.moe:
        values |= _expert_values(config.moe)
        rows = micro_batch * seq * config.moe.num_experts_per_tok * imbalance
        values["R"] = math.ceil(rows) if isinstance(rows, (int, float)) else -(-rows // 1)
    if config.mla:
        mla = config.mla
        values |= {"c": mla.kv_lora_rank, "q_r": mla.q_lora_rank or 0, "d_v": mla.v_head_dim}
        values |= {"d_n": mla.qk_nope_head_dim, "d_r": mla.qk_rope_head_dim}
        values |= {"d_r/2": mla.qk_rope_head_dim // 2}
    return values


def _expert_values(moe: MoeConfig) -> dict[str, int]:
    groups = max(1, moe.expert_groups)
    return {
        "E": moe.num_experts, "t": moe.num_experts_per_tok, "m": moe.moe_intermediate_size,
        "n": moe.shared_intermediate_size, "G": groups, "t_G": moe.groups_per_token,
        "E/G": moe.num_experts // groups,
    }  # fmt: skip


def dim_sizes(values: dict[str, int]) -> dict[str, Size]:
    """The Size of each letter: the constant 1 where its value is 1, since layouts depend on that.

    Letters that are the same thing share one Size: k is a without grouping, g is a with one group.
    """
    sizes = {name: ONE if value == 1 else dim(name) for name, value in values.items()}
    if values["k"] == values["a"]:
        sizes["k"] = sizes["a"]
    elif values["k"] == 1:
        sizes["g"] = sizes["a"]
    if values["w"] == values["h"]:
        sizes["w"] = sizes["h"]
    if values["r"] == values["d"]:
        sizes["r"] = sizes["d"]
    if values.get("d_r") == values["r"]:
        sizes["r"], sizes["r/2"] = sizes["d_r"], sizes["d_r/2"]
    if values.get("d_v") == values["d"]:
        sizes["d_v"] = sizes["d"]
    if "k_c" in values and values["k"] == values["a"]:
        sizes["k_c"] = sizes["a_c"]
    if values.get("G") == 1:
        sizes["E/G"] = sizes["E"]
    elif values.get("E/G") == 1:
        sizes["G"] = sizes["E"]
    return sizes
