"""config.json of T5, mT5 and BERT: what is read, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.hf import model_from_config

T5 = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 512, "d_ff": 2048, "num_layers": 6,
    "num_heads": 8,
}  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip


def test_t5_reads_both_halves_and_its_own_head_width() -> None:
    model = model_from_config({**T5, "d_kv": 128, "num_decoder_layers": 4}, "m")
    assert (model.num_encoder_layers, model.num_hidden_layers, model.head_dim) == (6, 4, 128)
    assert (model.position_embedding, model.relative_buckets) == ("bucketed", 32)
    assert model.is_encoder_decoder and model.is_encoder and not model.bidirectional
    assert model.tie_word_embeddings and model.head_scale and not model.gated_mlp
    assert model.hidden_act == "relu" and model.attention_dropout == 0.1


def test_t5_1_1_has_a_gated_gelu_and_a_head_of_its_own() -> None:
    keys = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    model = model_from_config(keys, "m")
    assert model.gated_mlp and model.hidden_act == "gelu_new"
    assert not model.tie_word_embeddings and not model.head_scale


def test_mt5_never_scales_its_head() -> None:
    keys = {**T5, "model_type": "mt5"}
    model = model_from_config(keys, "m")
    assert model.gated_mlp and not model.head_scale and model.tie_word_embeddings


def test_bert_is_an_encoder_alone() -> None:
    model = model_from_config(BERT, "m")
    assert model.is_encoder and not model.is_encoder_decoder and model.bidirectional
    assert (model.num_position_rows, model.token_types, model.head_dim) == (512, 2, 64)
    assert model.norm_placement == "post-residual" and model.lm_head_bias


@pytest.mark.parametrize("forward", ["gated", "gated-wobble", "a-b-c", "relu-gated", 3, ""])
def test_a_feed_forward_that_no_class_takes_is_refused(forward: Any) -> None:
    with pytest.raises(ConfigError, match="feed_forward_proj: got .*nearest valid: relu"):
        model_from_config({**T5, "feed_forward_proj": forward}, "m")


@pytest.mark.parametrize("key", ["is_decoder", "add_cross_attention"])
def test_bert_as_a_decoder_is_refused(key: str) -> None:
    with pytest.raises(NotInThisVersionError, match=f"{key}: got true"):
        model_from_config({**BERT, key: True}, "m")


def test_what_is_not_priced_is_noted() -> None:
    model = model_from_config({**BERT, "position_embedding_type": "relative_key"}, "m")
    assert any("only absolute" in note for note in model.notes)
