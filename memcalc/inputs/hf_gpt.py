"""Families of the GPT line: layer norms, a plain MLP, biases, learned, rotary or ALiBi positions.

Each reader follows one configuration class of transformers 5.23; the sizes that name a model are
required. Checked by: unit/test_hf_import_gpt.py, oracle/test_profile_parameters.py.
"""

from __future__ import annotations

from memcalc.errors import NotInThisVersionError
from memcalc.inputs.hf_common import Kwargs, attention_biases, derived_head_dim, partial_rotary
from memcalc.inputs.hf_fields import Fields


def _gpt_dims(f: Fields, positions: int) -> Kwargs:
    """The keys of GPT-1, GPT-2 and GPT-J, under their own or their common spelling."""
    hidden = f.size("n_embd", "hidden_size")
    heads = f.size("n_head", "num_attention_heads")
    return {
        "vocab_size": f.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": f.size_or_none("n_inner") or 4 * hidden,
        "num_hidden_layers": f.layers("n_layer", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": derived_head_dim(hidden, heads),
        "max_position_embeddings": f.size(
            "n_positions", "max_position_embeddings", default=positions
        ),
        "gated_mlp": False,
        "norm_type": "layernorm",
        "mlp_bias": True,
    }


def _gpt_dropouts(f: Fields, default: float) -> Kwargs:
    return {
        "attention_dropout": f.rate("attn_pdrop", default),
        "residual_dropout": f.rate("resid_pdrop", default),
        "embedding_dropout": f.rate("embd_pdrop", default),
    }


def gpt2(f: Fields) -> Kwargs:
    """GPT-2, and models published with its shape (GPT-3, MT-NLG): learned positions, biases."""
    if f.flag("add_cross_attention", False):
        raise NotInThisVersionError(
            "add_cross_attention: got true, not in this version; rule: decoder-only models"
        )
    f.note_unless(
        "reorder_and_upcast_attn", False, None, why="scores computed in fp32 are not priced"
    )
    dims = _gpt_dims(f, 1024)
    return {
        **dims,
        **_gpt_dropouts(f, 0.1),
        "tie_word_embeddings": f.flag("tie_word_embeddings", True),
        "hidden_act": f.activation("activation_function", "gelu_new"),
        "position_embedding": "learned",
        "num_position_rows": dims["max_position_embeddings"],
        "attention_bias": True,
        "attention_output_bias": True,
    }


def openai_gpt(f: Fields) -> Kwargs:
    """GPT-1: norms after each residual sum, no final norm; its "gelu" is the tanh form."""
    dims = _gpt_dims(f, 512)
    act = f.choice("afn", "gelu", ("gelu", "relu", "silu", "swish"))
    return {
        **dims,
        **_gpt_dropouts(f, 0.1),
        "intermediate_size": 4 * dims["hidden_size"],
        "tie_word_embeddings": f.flag("tie_word_embeddings", True),
        "hidden_act": "gelu_new" if act == "gelu" else act,
        "norm_placement": "post-residual",
        "final_norm": False,
        "position_embedding": "learned",
        "num_position_rows": dims["max_position_embeddings"],
        "attention_bias": True,
        "attention_output_bias": True,
    }


def gptj(f: Fields) -> Kwargs:
    """GPT-J: attention and MLP in parallel under one norm, biases in the MLP and the head only."""
    return {
        **_gpt_dims(f, 2048),
        **_gpt_dropouts(f, 0.0),
        "tie_word_embeddings": f.flag("tie_word_embeddings", False),
        "hidden_act": f.activation("activation_function", "gelu_new"),
        "parallel_block": True,
        "rotary_dim": f.size_or_none("rotary_dim", default=64),
        "lm_head_bias": True,
    }


def gpt_neox(f: Fields) -> Kwargs:
    """GPT-NeoX and Pythia: parallel block with a norm each, a quarter of each head rotated."""
    hidden, heads = f.size("hidden_size"), f.size("num_attention_heads")
    head_dim = derived_head_dim(hidden, heads)
    return {
        "vocab_size": f.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": f.size("intermediate_size"),
        "num_hidden_layers": f.layers("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "max_position_embeddings": f.size("max_position_embeddings", default=2048),
        "tie_word_embeddings": f.flag("tie_word_embeddings", False),
        "hidden_act": f.activation("hidden_act", "gelu"),
        "gated_mlp": False,
        "norm_type": "layernorm",
        "parallel_block": f.flag("use_parallel_residual", True),
        "parallel_norms": 2,
        "rotary_dim": partial_rotary(f, head_dim, "rotary_pct", 0.25),
        **attention_biases(f, True),
        "mlp_bias": True,
        "attention_dropout": f.rate("attention_dropout"),
        "residual_dropout": f.rate("hidden_dropout"),
        "embedding_dropout": f.rate("hidden_dropout"),
    }


def opt(f: Fields) -> Kwargs:
    """OPT: learned positions with two extra rows; OPT-350m norms after the residual sum."""
    if not f.flag("layer_norm_elementwise_affine", True):
        raise NotInThisVersionError(
            "layer_norm_elementwise_affine: got false, not in this version; rule: true"
        )
    hidden, heads = f.size("hidden_size"), f.size("num_attention_heads")
    positions = f.size("max_position_embeddings", default=2048)
    bias = f.flag("enable_bias", True)
    pre = f.flag("do_layer_norm_before", True)
    width = f.size_or_none("word_embed_proj_dim") or hidden
    f.note_unless("layerdrop", 0, 0.0, None, why="skipped layers are priced as run")
    f.skip("dropout", "attention_dropout", "activation_dropout")
    return {
        "vocab_size": f.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": f.size("ffn_dim"),
        "num_hidden_layers": f.layers("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": derived_head_dim(hidden, heads),
        "max_position_embeddings": positions,
        "tie_word_embeddings": f.flag("tie_word_embeddings", True),
        "hidden_act": f.activation("activation_function", "relu"),
        "gated_mlp": False,
        "norm_type": "layernorm",
        "norm_placement": "pre" if pre else "post-residual",
        "final_norm": pre and not f.flag("_remove_final_layer_norm", False),
        "position_embedding": "learned",
        "num_position_rows": positions + 2,
        "attention_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": bias,
        "word_embed_proj_dim": None if width == hidden else width,
        "attention_dropout": f.rate("attention_dropout"),
        "residual_dropout": f.rate("dropout", 0.1),
    }


def bloom(f: Fields) -> Kwargs:
    """BLOOM: ALiBi, a norm after the embedding; its own GELU (tanh form) saves its input only."""
    hidden = f.size("n_embed", "hidden_size")
    heads = f.size("n_head", "num_attention_heads")
    f.note_unless(
        "apply_residual_connection_post_layernorm", False, None, why="priced as false, same sizes"
    )
    return {
        "vocab_size": f.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": f.layers("n_layer", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": derived_head_dim(hidden, heads),
        "max_position_embeddings": f.size("seq_length", default=2048),
        "tie_word_embeddings": f.flag("tie_word_embeddings", True),
        "hidden_act": "gelu_pytorch_tanh",
        "gated_mlp": False,
        "norm_type": "layernorm",
        "embedding_norm": True,
        "position_embedding": "alibi",
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
        "attention_dropout": f.rate("attention_dropout"),
        "residual_dropout": f.rate("hidden_dropout"),
    }


def falcon(f: Fields) -> Kwargs:
    """Falcon: 7B (parallel, one norm, one KV head), 40B and 180B (grouped KV, two norms), RW.

    new_decoder_architecture overrides multi_query and parallel_attn, as in the model code.
    """
    hidden, heads = f.size("n_embed", "hidden_size"), f.size("num_attention_heads")
    new = f.flag("new_decoder_architecture", False)
    multi_query, parallel = f.flag("multi_query", True), f.flag("parallel_attn", True)
    stated_kv = f.size_or_none("num_kv_heads", "n_head_kv") or heads
    norms = f.size_or_none("num_ln_in_parallel_attn", default=2 if new else 1)
    bias = f.flag("bias", False)
    return {
        "vocab_size": f.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": f.size_or_none("ffn_hidden_size") or 4 * hidden,
        "num_hidden_layers": f.layers("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": stated_kv if new else 1 if multi_query else heads,
        "head_dim": derived_head_dim(hidden, heads),
        "max_position_embeddings": f.size("max_position_embeddings", default=2048),
        "tie_word_embeddings": f.flag("tie_word_embeddings", True),
        "hidden_act": f.activation("activation", "gelu"),
        "gated_mlp": False,
        "norm_type": "layernorm",
        "parallel_block": new or parallel,
        "parallel_norms": 2 if new and norms in (None, 2) else 1,
        "position_embedding": "alibi" if f.flag("alibi", False) else "rope",
        "attention_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": bias,
        "attention_dropout": f.rate("attention_dropout"),
        "residual_dropout": f.rate("hidden_dropout"),
    }
