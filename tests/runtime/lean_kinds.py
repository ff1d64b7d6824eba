"""Small models of each kind that the lean step knows, random weights in fp32, and passes through stages of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from runtime.lean import LeanRunner
from runtime.lean_shape import decoder_of
from runtime.model_runner import Row
from runtime.self_test import self_test
from runtime.stage import Stage
from tests.runtime.support import cuts, for_stage, stored_tensors, tiny_config, tiny_model
from tests.runtime.test_stage import build

LAYERS = 6
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA: dict[str, Any] = {"tie_word_embeddings": True, "sliding_window": 5}

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied, biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama, rotary scaled as in llama3": {"rope_parameters": _LLAMA3},
    "llama, rotary scaled by yarn": {"rope_parameters": _YARN},
    "mistral, window": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 7},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen2, half with a window": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 3,
    },
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "gemma": {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], **_GEMMA},
    "gemma3": {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], **_GEMMA},
    "phi3, rotary in part": {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
}


def reference(name: str) -> tuple[dict[str, Any], Any]:
    config = tiny_config(**KINDS[name])
    return config, tiny_model(config).float()


def stages_of(folder: Path, config: dict[str, Any], model: Any, count: int, precision: str = "fp32") -> list[Stage]:
    """Tested stages of the model, cut into `count`."""
    tensors = stored_tensors(model)
    made = []
    for first, end in cuts(LAYERS, count):
        stage = build(folder, config, for_stage(tensors, "model.layers.", first, end, LAYERS), first, end, precision)
        self_test(stage)
        made.append(stage)
    return made


def lean_of(folder: Path, config: dict[str, Any], model: Any, count: int = 1, precision: str = "fp32") -> list[LeanRunner]:
    return [LeanRunner(stage, decoder_of(stage), precision) for stage in stages_of(folder, config, model, count, precision)]


def through(runners: list[Any], rows: list[Row]) -> torch.Tensor:
    """Logits of a pass through all stages."""
    out = None
    for number, runner in enumerate(runners):
        given = rows if number == 0 else [Row(row.slot, row.position, row.count, None, row.logits) for row in rows]
        assert isinstance(runner.first, int)
        out = runner.run(given, out)
    assert out is not None
    return out


def words(seed: int, count: int) -> list[int]:
    return torch.randint(3, 128, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def wanted(model: Any, tokens: list[int]) -> torch.Tensor:
    """Transformers' logits at every position."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return found
