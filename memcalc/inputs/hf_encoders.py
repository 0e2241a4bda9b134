"""Encoders and encoder-decoders: T5, mT5 and BERT.

Each reader follows one configuration class of transformers 5.23. Its T5 classes tie the head to the
embedding whatever the file says, but `from_pretrained` leaves them apart where a checkpoint holds both,
as those of T5 1.1, mT5 and what was trained from them do: the file's own `tie_word_embeddings` decides here.
Checked by: unit/test_hf_import_encoders.py, oracle/test_profile_parameters.py.
"""

from __future__ import annotations

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.files import shown
from memcalc.inputs.hf_common import Kwargs, derived_head_dim
from memcalc.inputs.hf_fields import ACTIVATIONS, Fields

#: T5 has no longest sequence; 512 is what it was pre-trained on (Raffel et al. 2020, sec. 3.1.2).
_POSITIONS = 512


def t5(f: Fields) -> Kwargs:
    """T5 1.0 and 1.1: relative positions in buckets, RMSNorm, heads as wide as d_kv says."""
    tied = f.flag("tie_word_embeddings", True)
    scaled = f.flag("scale_decoder_outputs", tied)  # as transformers 5 writes what T5 1.0 does
    return {**_t5(f, "relu"), "tie_word_embeddings": tied, "head_scale": scaled}


def mt5(f: Fields) -> Kwargs:
    """mT5, T5 1.1's code with a larger vocabulary."""
    return {**_t5(f, "gated-gelu"), "tie_word_embeddings": f.flag("tie_word_embeddings", True)}


def _t5(f: Fields, activation: str) -> Kwargs:
    layers, heads = f.layers("num_layers", "num_hidden_layers"), f.size("num_heads")
    rate = f.rate("dropout_rate", 0.1)
    f.skip("relative_attention_max_distance", "dense_act_fn", "is_gated_act", "n_positions")
    f.skip("d_kv", "num_decoder_layers", "output_past")
    return {
        "vocab_size": f.size("vocab_size"),
        "hidden_size": f.size("d_model", "hidden_size"),
        "intermediate_size": f.size("d_ff"),
        "num_encoder_layers": layers,
        "num_hidden_layers": f.size_or_none("num_decoder_layers") or layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": f.size("d_kv", "head_dim", default=64),
        "max_position_embeddings": f.size("n_positions", default=_POSITIONS),
        "position_embedding": "bucketed",
        "relative_buckets": f.size("relative_attention_num_buckets", default=32),
        "attention_dropout": rate,
        "residual_dropout": rate,
        "embedding_dropout": rate,
        **_feed_forward(f, activation),
    }


def _feed_forward(f: Fields, default: str) -> Kwargs:
    """`relu` or `gated-gelu`; a gated gelu is the one of GPT-2, made of separate operators."""
    f.read.add("feed_forward_proj")
    stated = f.config.get("feed_forward_proj", default)
    words = stated.split("-") if isinstance(stated, str) else []
    if not words or len(words) > 2 or words[-1] not in ACTIVATIONS or words[0] not in (
        "gated", words[-1],
    ):  # fmt: skip
        raise ConfigError(
            f"feed_forward_proj: got {shown(stated)}; rule: an activation, or gated- and one; "
            "nearest valid: relu, gated-gelu"
        )
    act = "gelu_new" if stated == "gated-gelu" else words[-1]
    return {"hidden_act": act, "gated_mlp": len(words) == 2}


def bert(f: Fields) -> Kwargs:
    """BERT with its head for masked language modelling, tied to the embedding."""
    for key in ("is_decoder", "add_cross_attention"):
        if f.flag(key, False):
            raise NotInThisVersionError(f"{key}: got true, not in this version; rule: false")
    f.note_unless("position_embedding_type", "absolute", None, why="only absolute is priced")
    hidden, heads = f.size("hidden_size"), f.size("num_attention_heads")
    rows = f.size("max_position_embeddings", default=512)
    f.skip("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
    f.skip("pooler_size_per_head", "pooler_type", "directionality")
    return {
        "vocab_size": f.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": f.size("intermediate_size"),
        "num_hidden_layers": f.layers("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": derived_head_dim(hidden, heads),
        "max_position_embeddings": rows,
        "num_position_rows": rows,
        "position_embedding": "learned",
        "token_types": f.size("type_vocab_size", default=2),
        "bidirectional": True,
        "head_transform": True,
        "tie_word_embeddings": f.flag("tie_word_embeddings", True),
        "hidden_act": f.activation("hidden_act", "gelu"),
        "gated_mlp": False,
        "norm_type": "layernorm",
        "norm_placement": "post-residual",
        "final_norm": False,
        "embedding_norm": True,
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
        "lm_head_bias": True,
        "attention_dropout": f.rate("attention_probs_dropout_prob", 0.1),
        "residual_dropout": (rate := f.rate("hidden_dropout_prob", 0.1)),
        "embedding_dropout": rate,
    }
