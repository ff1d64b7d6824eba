"""A tiny random model of every decoder class of transformers, out of its own default config with the sizes made small.

One table of sizes for all; a class whose default can't be made small by it has an entry in `OWN`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = 6
WORDS = 96
WINDOW = 6
MOST = 20_000_000

SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim", "emb_dim", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "dim_ff", "dff"), 48),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(
        ("moe_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size", "shared_experts_intermediate_size"), 24
    ),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "n_inner", "d_inner", "router_hidden_size"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_blocks"), LAYERS),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "kv_channels", "dim_head", "d_head", "attention_head_size", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "index_head_dim", "attention_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads", "index_n_heads"), 4),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "laurel_rank", "hc_lowrank", "adapter_rank"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length", "context_length"), 128),
    **dict.fromkeys(("max_target_positions", "max_source_positions"), 128),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size", "local_attention"), WINDOW),
    **dict.fromkeys(("window_size",), WINDOW),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id"), 1),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 4),
    "zero_expert_num": 2,
    "index_topk": 4,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": WORDS,
    "num_kv_shared_layers": 2,
}
"""By field; set where the default config has it."""

_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1, 3, 5]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["linear_attention", "full_attention"] * 3},
    "mamba2": {"num_heads": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
    "hunyuan_v1_dense": _ROPE,
    "hunyuan_v1_moe": _ROPE,
    "ministral": _ROPE,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3},
    "nemotron": {"num_key_value_heads": 2},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"is_decoder": True},
}
"""What the table doesn't do, by kind."""


def tiny_config(kind: str) -> Any:
    default = AutoConfig.for_model(kind)
    text = default.get_text_config(decoder=True)
    name = next((key for key, value in vars(default).items() if value is text), None)
    if name is None:
        return AutoConfig.for_model(kind, **(_small(default) | OWN.get(kind, {})))
    tokens = {field: WORDS - 1 for field, value in default.to_dict().items() if field.endswith("_token_id") and isinstance(value, int)}
    parts = {key: {"model_type": value.model_type, **_small(value)} for key, value in vars(default).items() if _is_config(value)}
    parts[name] |= OWN.get(text.model_type, {})
    return AutoConfig.for_model(kind, **tokens, **parts)


def _is_config(value: Any) -> bool:
    return isinstance(value, PreTrainedConfig)


def _small(config: Any) -> dict[str, Any]:
    fields = config.to_dict()
    sizes = {name: size for name, size in SIZES.items() if fields.get(name) is not None and not isinstance(fields[name], bool)}
    if fields.get("kv_lora_rank") is not None and "num_key_value_heads" in sizes:
        sizes["num_key_value_heads"] = 4  # latent attention has as many as heads
    if fields.get("is_decoder") is False and not fields.get("is_encoder_decoder"):
        sizes["is_decoder"] = True  # else such a class looks ahead
    return sizes


def tiny_model(config: Any) -> Any:
    """Seeded random weights in fp32; `ValueError` for a class that the table doesn't make small."""
    with torch.device("meta"):
        size = sum(held.numel() for held in AutoModelForCausalLM.from_config(config).state_dict().values())
    if size > MOST:
        raise ValueError(f"{size / 1e6:.0f} M parameters aren't tiny")
    torch.manual_seed(7)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


def kinds() -> list[str]:
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
