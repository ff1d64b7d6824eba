"""The private names of transformers we stand on, for the versions we say we support."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
import transformers.modeling_utils as modeling
from torch import nn
from transformers import DynamicCache, Gemma3Config, LlamaConfig, LlamaForCausalLM, T5Config
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, DynamicSlidingWindowLayer, LinearAttentionLayer

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


def small(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16}
    return LlamaConfig(**(sizes | changes))


def test_from_pretrained_takes_tensors_as_they_lie_and_leaves_the_rest_on_the_meta_device() -> None:
    """Its one private step that is left out, and the computed buffers that the same step fills."""
    config = small()
    ordinary = LlamaForCausalLM(config)
    given = {"model.embed_tokens.weight": torch.full((16, 32), 5.0)}
    seen: list[bool] = []
    model, info = names.load_class(LlamaForCausalLM, config, given, torch.float32, lambda made: seen.append(made.lm_head.weight.is_meta))
    assert seen == [True]
    assert model.model.embed_tokens.weight.data_ptr() == given["model.embed_tokens.weight"].data_ptr()
    assert bool((model.model.embed_tokens.weight == 5).all())
    assert model.model.layers[0].mlp.up_proj.weight.is_meta
    assert "model.layers.0.mlp.up_proj.weight" in info["missing_keys"]
    assert torch.equal(model.model.rotary_emb.inv_freq, ordinary.model.rotary_emb.inv_freq)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not model.training


def test_the_steps_left_out_and_kept_are_there() -> None:
    source = inspect.getsource(modeling.PreTrainedModel._finalize_model_loading)
    assert "_move_missing_keys_from_meta_to_device" in source
    assert "missing_keys" in inspect.signature(modeling.PreTrainedModel._move_missing_keys_from_meta_to_device).parameters
    assert callable(modeling.PreTrainedModel.named_non_persistent_buffers)


def test_mismatched_weights_are_told() -> None:
    given = {"model.norm.weight": torch.ones(31)}
    _model, info = names.load_class(LlamaForCausalLM, small(), given, torch.float32, lambda made: None)
    assert [(name, list(found), list(wanted)) for name, found, wanted in info["mismatched_keys"]] == [("model.norm.weight", [31], [32])]


def test_the_class_is_the_one_that_auto_takes() -> None:
    assert names.model_class(small())[0] is LlamaForCausalLM
    kind, config = names.model_class(Gemma3Config(architectures=["Gemma3ForConditionalGeneration"]))
    assert kind.__name__ == "Gemma3ForConditionalGeneration"
    assert isinstance(config, Gemma3Config)
    with pytest.raises(KeyError):
        names.model_class(T5Config())


def test_a_slot_elsewhere_knows_the_position_alone() -> None:
    cache = DynamicCache(config=small(layer_types=["full_attention", "full_attention"]))
    slot = names.elsewhere(cache.layers[0])
    slot.seen = 9
    assert isinstance(slot, type(cache.layers[0]))
    assert (slot.get_seq_length(), slot.get_mask_sizes(3)) == (9, (12, 0))
    rows = torch.zeros(1, 1, 1, 1)
    for touch in (lambda: slot.keys, lambda: slot.values, lambda: slot.update(rows, rows)):
        with pytest.raises(RuntimeError, match="of the memory of a layer that is elsewhere"):
            touch()
    with pytest.raises(AttributeError):
        _ = slot.never_there


def test_a_sliding_slot_elsewhere_answers_as_one_that_is_here() -> None:
    here = DynamicSlidingWindowLayer(sliding_window=4)
    away = names.elsewhere(here)
    rows = torch.zeros(1, 1, 1, 1)
    for seen in range(8):
        away.seen = seen
        assert away.get_mask_sizes(1) == here.get_mask_sizes(1)
        assert away.is_sliding
        assert away.get_seq_length() == here.get_seq_length()
        here.update(rows, rows)


def test_a_recurrent_slot_elsewhere_knows_whether_it_has_a_past() -> None:
    away = names.elsewhere(LinearAttentionLayer(number_of_states=2))
    assert not any(away.has_previous_state.values())
    away.seen = 1
    assert away.has_previous_state == {0: True, 1: True}
    with pytest.raises(RuntimeError, match="'conv_states'"):
        _ = away.conv_states


def test_slots_elsewhere_arent_registered_as_kinds_of_cache() -> None:
    before = dict(DYNAMIC_LAYER_TYPE_MAPPING)
    for kind in set(before.values()):
        names.elsewhere(object.__new__(kind))
    assert before == DYNAMIC_LAYER_TYPE_MAPPING


def test_a_slots_bytes_are_those_of_its_tensors() -> None:
    cache = DynamicCache(config=small())
    rows = torch.zeros(1, 2, 5, 8)
    cache.update(rows, rows, 0)
    assert names.slot_bytes(cache.layers[0]) == 2 * 2 * 5 * 8 * 4
    assert names.slot_bytes(cache.layers[1]) == 0


def test_a_slot_is_cropped_from_its_end() -> None:
    cache = DynamicCache(config=LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    rows = torch.arange(5.0).view(1, 1, 5, 1)
    cache.update(rows, rows, 0)
    names.crop_slot(cache.layers[0], 2)
    assert cache.layers[0].keys.flatten().tolist() == [0, 1, 2]
