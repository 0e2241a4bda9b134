"""ChatGLM: two generations under one model_type, neither with a class in transformers 5.23.

Source: configuration_chatglm.py and modeling_chatglm.py as published with THUDM/chatglm-6b and
THUDM/chatglm2-6b on the Hub. Checked by: unit/test_hf_import_gpt.py.
"""

from __future__ import annotations

from memcalc.errors import NotInThisVersionError
from memcalc.inputs.hf_common import Kwargs, derived_head_dim
from memcalc.inputs.hf_fields import Fields


def chatglm(f: Fields) -> Kwargs:
    """The first generation states inner_hidden_size, the later ones ffn_hidden_size."""
    if f.size_or_none("pre_seq_len"):
        f.notes.append("pre_seq_len: the prefix encoder of P-tuning is not priced here")
    f.note_unless("quantization_bit", 0, None, why="published weights; precision is of the setup")
    f.skip("prefix_projection")
    return _first(f) if f.has("inner_hidden_size") else _second(f)


def _first(f: Fields) -> Kwargs:
    """ChatGLM-6B: x = norm(a x + f(x)) twice a layer after a first norm, biases, plain GELU MLP.

    A layer computes n = norm(x); x = a n + attention(n) with a constant a: the same chain as a norm
    after the embedding and one after each residual sum, 2 * layers + 1 norms in all. The factor a
    is a scalar product that saves nothing. Both halves of each head are rotated (2D positions).
    """
    hidden, heads = f.size("hidden_size"), f.size("num_attention_heads")
    f.skip("position_encoding_2d")
    return {
        "vocab_size": f.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": f.size("inner_hidden_size"),
        "num_hidden_layers": f.layers("num_layers", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": derived_head_dim(hidden, heads),
        "max_position_embeddings": f.size("max_sequence_length", default=2048),
        "tie_word_embeddings": f.flag("tie_word_embeddings", True),
        "hidden_act": "gelu_pytorch_tanh",
        "gated_mlp": False,
        "norm_type": "layernorm",
        "norm_placement": "post-residual",
        "embedding_norm": True,
        "final_norm": False,
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
    }


def _second(f: Fields) -> Kwargs:
    """ChatGLM2-6B and later: RMS norms, gated SiLU, grouped KV heads, half of each head rotated."""
    hidden, heads = f.size("hidden_size"), f.size("num_attention_heads")
    if not f.flag("rmsnorm", True) or not f.flag("post_layer_norm", True):
        raise NotInThisVersionError("rmsnorm, post_layer_norm: got false; rule: both true")
    bias = f.flag("add_bias_linear", False)
    head_dim = f.size("kv_channels", default=128)
    groups = f.size("multi_query_group_num", default=1)
    f.note_unless("apply_residual_connection_post_layernorm", False, None, why="priced as false")
    f.note_unless("fp32_residual_connection", False, None, why="residuals are priced as computed")
    return {
        "vocab_size": f.size("padded_vocab_size", "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": f.size("ffn_hidden_size"),
        "num_hidden_layers": f.layers("num_layers", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups if f.flag("multi_query_attention", False) else heads,
        "head_dim": head_dim,
        "max_position_embeddings": f.size("seq_length", default=2048),
        "tie_word_embeddings": f.flag("tie_word_embeddings", True),
        "rotary_dim": max(1, head_dim // 2),
        "attention_bias": bias or f.flag("add_qkv_bias", False),
        "attention_output_bias": bias,
        "mlp_bias": bias,
        "attention_dropout": f.rate("attention_dropout"),
        "residual_dropout": f.rate("hidden_dropout"),
    }
