"""Keys of config.json files that change neither memory nor speed of a training step.

A key in this list is passed over in silence; any other key that no family reads becomes a note.
"""

from __future__ import annotations

#: Of every family: identity, tokens, initialisation, generation, files, routing.
_IRRELEVANT_KEYS = """
    architectures model_type name_or_path transformers_version use_cache tokenizer_class
    task_specific_params problem_type id2label label2id num_labels finetuning_task prefix
    return_dict torchscript use_bfloat16 pruned_heads is_encoder_decoder is_decoder
    chunk_size_feed_forward
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    mask_token_id gmask_token_id boi_token_index eoi_token_index image_token_index boi_token_id
    eoi_token_id image_token_id eos_id bos_id word_embed_init
    initializer_range initializer_factor init_std offset_alibi initializer_gain embd_init_std
    rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon norm_epsilon norm_eps
    rope_theta rotary_emb_base rope_interleave rope_interleaved rope_local_base_freq rope_ratio
    original_max_position_embeddings initial_context_length original_rope rotary
    query_pre_attn_scalar scale_attn_weights scale_attn_by_inverse_layer_idx
    pretraining_tp slow_but_exact masked_softmax_fusion attention_softmax_in_fp32
    apply_query_key_layer_scaling bias_dropout_fusion skip_bias_add skip_bias_add_qkv
    unk_token dropout_classifier classifier_dropout summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout predict_special_tokens n_special
    temperature top_p top_k do_sample max_length min_length repetition_penalty num_beams
    length_penalty early_stopping num_return_sequences no_repeat_ngram_size bad_words_ids
    output_attentions output_hidden_states max_new_tokens typical_p diversity_penalty
    num_beam_groups forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty encoder_no_repeat_ngram_size
    tie_encoder_decoder cross_attention_hidden_size return_dict_in_generate output_scores
    router_aux_loss_coef aux_loss_alpha seq_aux norm_topk_prob scoring_func topk_method n_group
    topk_group routed_scaling_factor ep_size swiglu_alpha swiglu_limit cache_implementation
    gradient_checkpointing model_parallel tokenizer_padding_side attn_implementation license
    is_llama_config unsloth_version unsloth_fixed use_parallel_residual_fused z_loss_weight
    n_ctx mm_tokens_per_image
"""
IRRELEVANT_KEYS = frozenset(_IRRELEVANT_KEYS.split())
