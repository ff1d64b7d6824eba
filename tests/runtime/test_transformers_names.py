"""The private names of transformers we stand on, for the versions we say we support."""

from __future__ import annotations

import inspect

import torch
import transformers
import transformers.modeling_utils as modeling
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from runtime import transformers_names as names


def test_this_version_is_supported() -> None:
    assert transformers.__version__ in names.SUPPORTED


def test_the_names_are_there() -> None:
    assert callable(modeling.is_accelerate_available)
    assert "_is_hf_initialized" in inspect.getsource(modeling.PreTrainedModel._initialize_weights)
    assert hasattr(nn.Module(), "_non_persistent_buffers_set")


def test_accelerate_is_asked_for_again_afterwards() -> None:
    before = modeling.is_accelerate_available
    with names.gguf_without_accelerate():
        assert modeling.is_accelerate_available()
    assert modeling.is_accelerate_available is before


def test_computed_buffers_are_those_of_an_ordinary_load_and_weights_stay() -> None:
    config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    ordinary = LlamaForCausalLM(config)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weight = nn.Parameter(torch.full((16, 32), 5.0), requires_grad=False)
    model.model.embed_tokens.weight = weight
    names.fill_computed_buffers(model)
    assert torch.equal(model.model.rotary_emb.inv_freq, ordinary.model.rotary_emb.inv_freq)
    assert bool((model.model.embed_tokens.weight == 5).all())
    assert model.model.layers[0].mlp.up_proj.weight.is_meta


def test_a_slot_can_know_the_position_alone() -> None:
    config = LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    cache = DynamicCache(config=config)
    names.make_position_only(cache.layers[0], 9)
    assert cache.get_seq_length() == 9
    assert cache.layers[0].get_mask_sizes(3) == (12, 0)


def test_a_slot_is_cropped_from_its_end() -> None:
    cache = DynamicCache(config=LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    rows = torch.arange(5.0).view(1, 1, 5, 1)
    cache.update(rows, rows, 0)
    names.crop_slot(cache.layers[0], 2)
    assert cache.layers[0].keys.flatten().tolist() == [0, 1, 2]
