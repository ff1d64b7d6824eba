"""Stages of small models of several architectures against transformers' own forward."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import BadInput
from protocol.messages import Sampling
from runtime import interface as api
from runtime.model_config import read_config
from runtime.self_test import self_test
from runtime.stage import Stage, build_stage
from runtime.weights import build_tensors, check_stored, let_go, map_groups
from tests.runtime.alone import Alone
from tests.runtime.support import config_bytes, cuts, for_stage, lay_out, read_tensors, stored_tensors, tiny_config, tiny_model

PROMPT = [5, 9, 30, 77, 101, 3, 3, 64]

ARCHITECTURES = {
    "llama": ({}, "model.layers."),
    "llama tied": ({"tie_word_embeddings": True}, "model.layers."),
    "qwen2": ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "model.layers."),
    "qwen3": ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "model.layers."),
    "gemma2": (
        {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "sliding_window": 4, "tie_word_embeddings": True},
        "model.layers.",
    ),
    "gpt_neox": ({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}, "gpt_neox.layers."),
    "gpt2": (
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 6, "n_embd": 64, "n_head": 4, "tie_word_embeddings": True},
        "transformer.h.",
    ),
}


def build(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], first: int, end: int, precision: str = "bf16") -> Stage:
    (folder / "config.json").write_bytes(config_bytes(config))
    fd, places, length = lay_out(tensors)
    try:
        mapped = build_tensors(map_groups([fd], [length]), places)
    finally:
        os.close(fd)
    return build_stage(folder, mapped, first, end, 6, precision)


def run(stages: list[Stage], count: int, sampling: Sampling | None = None) -> list[int]:
    sequences = [Alone(stage, 64, sampling or Sampling()) for stage in stages]
    position, tokens, made = 0, PROMPT, []
    for _ in range(count):
        answer = api.Stepped()
        for index, sequence in enumerate(sequences):
            given = tokens if index == 0 else None
            answer = sequence.step(api.Step(session="s", epoch=0, position=position, tokens=given, hidden=answer.hidden, count=len(tokens)))
        assert answer.token is not None
        position += len(tokens)
        tokens = [answer.token]
        made.append(answer.token)
    return made


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("stages", [1, 3])
def test_same_tokens_as_transformers(name: str, stages: int, tmp_path: Path) -> None:
    changes, list_name = ARCHITECTURES[name]
    config = tiny_config(**changes)
    model = tiny_model(config)
    wanted = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    tensors = stored_tensors(model)
    built = []
    for first, end in cuts(6, stages):
        stage = build(tmp_path, config, for_stage(tensors, list_name, first, end, 6), first, end)
        self_test(stage)
        built.append(stage)
    assert run(built, 12) == wanted[0, len(PROMPT) :].tolist()


def test_weights_are_mapped_not_copied(tmp_path: Path) -> None:
    config = tiny_config()
    model = tiny_model(config)
    (tmp_path / "config.json").write_bytes(config_bytes(config))
    fd, places, length = lay_out(stored_tensors(model))
    mapped = build_tensors(map_groups([fd], [length]), places)
    os.close(fd)
    stage = build_stage(tmp_path, mapped, 0, 6, 6, "bf16")
    held = stage.model.model.layers[3].mlp.up_proj.weight
    assert held.data_ptr() == mapped["model.layers.3.mlp.up_proj.weight"].data_ptr()


def test_layers_outside_take_no_memory(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = for_stage(stored_tensors(tiny_model(config)), "model.layers.", 2, 4, 6)
    stage = build(tmp_path, config, tensors, 2, 4)
    self_test(stage)
    real = {name for name, parameter in stage.model.named_parameters() if not parameter.is_meta}
    assert real == set(tensors)


def test_wrong_shape_names_the_tensor(tmp_path: Path) -> None:
    tensors = stored_tensors(tiny_model(tiny_config()))
    with pytest.raises(BadInput, match=r"tensor 'model\.layers\.0\.mlp.down_proj.*has shape \[64, 96\], config.json asks for \[64, 80\]"):
        build(tmp_path, tiny_config(intermediate_size=80), tensors, 0, 6)


def test_missing_layer_tensor_is_named(tmp_path: Path) -> None:
    tensors = stored_tensors(tiny_model(tiny_config()))
    del tensors["model.layers.4.input_layernorm.weight"]
    with pytest.raises(BadInput, match=r"layer 4 misses 1 tensors, the first is 'input_layernorm\.weight'"):
        build(tmp_path, tiny_config(), tensors, 0, 6)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"])
def test_missing_outer_tensor_is_named_by_the_self_test(name: str, tmp_path: Path) -> None:
    tensors = stored_tensors(tiny_model(tiny_config()))
    del tensors[name]
    stage = build(tmp_path, tiny_config(), tensors, 0, 6)
    with pytest.raises(BadInput, match=f"tensor '{name}' is needed here"):
        self_test(stage)


def test_broken_numbers_fail_the_self_test(tmp_path: Path) -> None:
    tensors = stored_tensors(tiny_model(tiny_config()))
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].clone().fill_(float("nan"))
    with pytest.raises(BadInput, match="not numbers"):
        self_test(build(tmp_path, tiny_config(), tensors, 0, 6))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "no-such-thing"}, "config.json can't be used"),
        ({"num_hidden_layers": 1_000_000}, "out of range"),
        ({"num_hidden_layers": "many"}, "config.json can't be used"),
        ({"vocab_size": -1}, "out of range"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
        ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "config.json can't be used"),
    ],
)
def test_hostile_configs_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(config_bytes(tiny_config(**changes)))
    with pytest.raises(BadInput, match=said):
        read_config(tmp_path)


def test_architecture_without_a_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"architecture 't5' can't be built|config\.json"):
        build(tmp_path, tiny_config(model_type="t5", architectures=["T5Model"], num_layers=6), {}, 0, 6)


def test_a_config_of_other_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.json says 5"):
        build(tmp_path, tiny_config(num_hidden_layers=5), {}, 0, 6)


def test_reference_precision_casts_up(tmp_path: Path) -> None:
    config = tiny_config()
    model = tiny_model(config)
    stages = [
        build(tmp_path, config, for_stage(stored_tensors(model), "model.layers.", first, end, 6), first, end, "fp32")
        for first, end in cuts(6, 3)
    ]
    for stage in stages:
        self_test(stage)
    wanted = model.float().generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert run(stages, 12) == wanted[0, len(PROMPT) :].tolist()


def test_a_config_may_not_ask_for_endless_tables(tmp_path: Path) -> None:
    """gpt_neo computes a mask of positions × positions: a terabyte here."""
    changes = {"model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"], "num_layers": 6, "hidden_size": 64, "num_heads": 4}
    config = changes | {"attention_types": [[["global", "local"], 3]], "max_position_embeddings": 1 << 20, "vocab_size": 128}
    with pytest.raises(BadInput, match="MB of computed tables, 537 MB are allowed"):
        build(tmp_path, config, {}, 0, 6)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 1 << 19},
        {"intermediate_size": 1 << 40},
        {"vocab_size": 4_000_000},
        {"num_attention_heads": 1 << 30},
        {"num_key_value_heads": 3},
        {"head_dim": 1 << 20},
        {"rope_scaling": {"rope_type": "yarn", "factor": "much"}},
        {"num_attention_heads": 0},
        {"rms_norm_eps": "small"},
        {"hidden_act": "__import__"},
    ],
)
def test_a_config_that_lies_is_refused_and_takes_no_memory(changes: dict[str, Any], tmp_path: Path) -> None:
    tensors = stored_tensors(tiny_model(tiny_config()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInput, match=r"config\.json|can't be built|can't run layers|misses"):
        self_test(build(tmp_path, tiny_config(**changes), tensors, 0, 6))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        {"_attn_implementation": "evil/kernel"},
        {"attn_implementation": "evil/kernel"},
        {"fusion_config": {"mlp": True}},
        {"custom_generate": "evil/generate"},
        {"transformers_weights": "pytorch_model.bin"},
    ],
)
def test_a_config_names_no_code(changes: dict[str, Any], tmp_path: Path) -> None:
    """What it names beside the class is ignored or refused; nothing is looked for."""
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a model was run')")
    model = tiny_model(tiny_config())
    try:
        stage = build(tmp_path, tiny_config(**changes), stored_tensors(model), 0, 6)
    except BadInput:
        return
    self_test(stage)
    assert type(stage.model).__module__.startswith("transformers.")


def test_eight_bit_floats_without_their_scales_are_refused() -> None:
    with pytest.raises(BadInput, match="'w' is stored in 8-bit floats"):
        check_stored({"v": torch.ones(2), "w": torch.ones(2).to(torch.float8_e4m3fn)})


def test_a_fused_layer_lies_in_memory_once(tmp_path: Path) -> None:
    """Experts are fused into new memory: what is left of their group is copied and the group let go."""
    config = tiny_config(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_experts=4, moe_intermediate_size=32)
    model = tiny_model(config)
    model.save_pretrained(tmp_path / "published")
    (tmp_path / "config.json").write_bytes(config_bytes(config))
    fd, places, length = lay_out(read_tensors(tmp_path / "published" / "model.safetensors"))
    groups = map_groups([fd], [length])
    os.close(fd)
    tensors = build_tensors(groups, places)
    assert any(".experts.3." in name for name in tensors)
    stage = build_stage(tmp_path, tensors, 0, 6, 6, "bf16")
    start = next(iter(tensors.values())).data_ptr()
    inside = [name for name, held in stage.model.named_parameters() if start <= held.data_ptr() < start + length]
    assert inside
    let_go(stage.model, [*groups, groups[0]])
    before = {name: held.clone() for name, held in stage.model.named_parameters()}
    used = sum(dict(stage.model.named_parameters())[name].nbytes for name in inside)
    left = [name for name, held in stage.model.named_parameters() if start <= held.data_ptr() < start + length]
    assert left == ([] if used * 2 < length else inside)
    assert all(torch.equal(held, before[name]) for name, held in stage.model.named_parameters())
