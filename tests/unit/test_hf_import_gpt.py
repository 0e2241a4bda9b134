"""config.json -> ModelConfig for the GPT line, ChatGLM and Baichuan, on the files as published."""

from __future__ import annotations

from typing import Any

from memcalc.inputs.hf import model_from_config
from memcalc.inputs.model import ModelConfig


def read(**config: Any) -> ModelConfig:
    return model_from_config(config, "m")


DIMS = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}

GPT2 = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}


def test_gpt2_as_published() -> None:
    model = read(
        model_type="gpt2", **GPT2, activation_function="gelu_new", attn_pdrop=0.1, embd_pdrop=0.1,
        layer_norm_epsilon=1e-05, n_ctx=1024, n_positions=1024, resid_pdrop=0.1,
        summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    )  # fmt: skip
    assert model.intermediate_size == 3072 and not model.gated_mlp
    assert model.position_embedding == "learned" and model.num_position_rows == 1024
    assert model.attention_bias and model.attention_output_bias and model.mlp_bias
    assert model.tie_word_embeddings and model.norm_type == "layernorm" and model.final_norm
    assert model.attention_dropout == model.embedding_dropout == 0.1 and not model.notes


def test_gpt2_common_spelling_reads_the_same() -> None:
    other = read(
        model_type="gpt2", vocab_size=50257, hidden_size=768, num_hidden_layers=12,
        num_attention_heads=12, max_position_embeddings=1024,
    )  # fmt: skip
    assert other == read(model_type="gpt2", **GPT2)


def test_gpt1_norms_after_the_sum_without_final_norm() -> None:
    model = read(model_type="openai-gpt", **{**GPT2, "vocab_size": 40478}, afn="gelu")
    assert model.norm_placement == "post-residual" and not model.final_norm
    assert model.hidden_act == "gelu_new" and model.num_position_rows == 512


def test_gptj_parallel_one_norm_head_bias() -> None:
    model = read(model_type="gptj", **GPT2, rotary_dim=64)
    assert model.parallel_block and model.parallel_norms == 1 and model.lm_head_bias
    assert model.rotary_dim == 64 and model.mlp_bias and not model.attention_bias
    assert not model.tie_word_embeddings


def test_gpt_neox_parallel_two_norms() -> None:
    model = read(model_type="gpt_neox", **DIMS, rotary_pct=0.25, hidden_dropout=0.1)
    assert model.parallel_block and model.parallel_norms == 2 and model.rotary_dim == 4
    assert model.residual_dropout == model.embedding_dropout == 0.1 and model.attention_bias
    serial = read(model_type="gpt_neox", **DIMS, use_parallel_residual=False)
    assert not serial.parallel_block


OPT = {"vocab_size": 50272, "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24,
       "num_attention_heads": 16}  # fmt: skip


def test_opt_has_two_more_position_rows() -> None:
    model = read(model_type="opt", **OPT, _remove_final_layer_norm=False, prefix="</s>")
    assert model.num_position_rows == 2050 and model.norm_placement == "pre" and model.final_norm
    assert model.hidden_act == "relu" and model.residual_dropout == 0.1 and not model.notes


def test_opt_350m_projects_its_embedding_and_norms_after() -> None:
    model = read(
        model_type="opt", **OPT, do_layer_norm_before=False, word_embed_proj_dim=512, layerdrop=0.1
    )
    assert model.word_embed_proj_dim == 512 and model.norm_placement == "post-residual"
    assert not model.final_norm and "layerdrop" in model.notes[0]


def test_bloom_spellings_and_alibi() -> None:
    model = read(
        model_type="bloom", vocab_size=250880, n_embed=1024, n_layer=24, num_attention_heads=16,
        seq_length=2048, offset_alibi=100, masked_softmax_fusion=True, unk_token_id=0,
    )  # fmt: skip
    assert model.position_embedding == "alibi" and model.embedding_norm
    assert model.intermediate_size == 4096 and model.attention_bias and not model.notes


FALCON = {"vocab_size": 65024, "hidden_size": 512, "num_hidden_layers": 2,
          "num_attention_heads": 8}  # fmt: skip


def test_falcon_7b_one_kv_head_one_norm() -> None:
    model = read(model_type="falcon", **FALCON, num_kv_heads=8, multi_query=True)
    assert model.num_key_value_heads == 1 and model.parallel_block and model.parallel_norms == 1
    assert model.tie_word_embeddings and model.position_embedding == "rope"


def test_falcon_40b_groups_and_two_norms() -> None:
    model = read(
        model_type="falcon", **FALCON, num_kv_heads=2, new_decoder_architecture=True,
        parallel_attn=True, multi_query=True,
    )  # fmt: skip
    assert model.num_key_value_heads == 2 and model.parallel_norms == 2
    one = read(
        model_type="falcon", **FALCON, new_decoder_architecture=True, num_ln_in_parallel_attn=1
    )
    assert one.parallel_norms == 1 and one.num_key_value_heads == 8


def test_falcon_rw_alibi_serial_biases() -> None:
    model = read(
        model_type="falcon", **FALCON, alibi=True, bias=True, multi_query=False, parallel_attn=False
    )
    assert model.position_embedding == "alibi" and not model.parallel_block
    assert model.attention_bias and model.mlp_bias and model.num_key_value_heads == 8


def test_chatglm_generations() -> None:
    first = read(
        model_type="chatglm", vocab_size=130528, hidden_size=4096, inner_hidden_size=16384,
        num_layers=28, num_attention_heads=32, max_sequence_length=2048, position_encoding_2d=True,
        layernorm_epsilon=1e-05, mask_token_id=130000, gmask_token_id=130001, pre_seq_len=None,
        prefix_projection=False, quantization_bit=0,
    )  # fmt: skip
    second = read(
        model_type="chatglm", padded_vocab_size=65024, hidden_size=4096, ffn_hidden_size=13696,
        num_layers=28, num_attention_heads=32, kv_channels=128, multi_query_attention=True,
        multi_query_group_num=2, add_qkv_bias=True, seq_length=32768, tie_word_embeddings=False,
        rmsnorm=True, post_layer_norm=True, attention_softmax_in_fp32=True,
    )  # fmt: skip
    assert first.norm_type == "layernorm" and not first.gated_mlp and first.mlp_bias
    assert first.norm_placement == "post-residual" and first.embedding_norm and not first.final_norm
    assert second.num_key_value_heads == 2 and second.rotary_dim == 64 and second.gated_mlp
    assert second.attention_bias and not second.attention_output_bias
    assert not first.notes and not second.notes


BAICHUAN_13B = {**DIMS, "hidden_size": 5120, "num_attention_heads": 40, "model_max_length": 4096}


def test_baichuan_sizes_are_told_apart_by_their_keys() -> None:
    big = read(model_type="baichuan", **BAICHUAN_13B)
    small = read(
        model_type="baichuan", **{**DIMS, "hidden_size": 4096}, max_position_embeddings=4096,
        model_max_length=4096,
    )  # fmt: skip
    assert big.position_embedding == "alibi" and big.max_position_embeddings == 4096
    assert small.position_embedding == "rope" and not small.notes and not big.notes
    odd = read(model_type="baichuan", **DIMS, model_max_length=4096)
    assert odd.position_embedding == "alibi" and "hidden_size = 64" in odd.notes[0]
