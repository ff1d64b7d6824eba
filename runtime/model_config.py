"""A model's config.json, read as data: which class it asks for, how large that is, and what of it this build can't run.

The file is a stranger's. transformers parses it into a class of its own; nothing that it names is ever fetched or
imported (`auto_map`, kernels, fusions), and its figures are measured before a model is built after them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from protocol import limits
from protocol.errors import BadInput
from runtime.labels import check_count

_IGNORED = ("auto_map", "fusion_config", "distributed_config", "kernel_config", "custom_generate", "transformers_weights")
"""Fields by which a config asks for other code or files than the class and the tensors."""


def read_config(folder: Path) -> Any:
    """The config with the whole; `BadInput` for what this build can't run."""
    _look_through(folder)
    try:
        whole = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        text = whole.get_text_config(decoder=True)
        layers, hidden, words = int(text.num_hidden_layers), int(text.hidden_size), int(text.vocab_size)
    except Exception as error:  # boundary: a hostile config may raise anything
        raise BadInput(f"config.json can't be used: {type(error).__name__}: {str(error)[:300]}") from error
    if not (1 <= layers <= limits.MAX_LAYERS and 1 <= hidden <= limits.MAX_HIDDEN and 1 <= words <= limits.MAX_VOCABULARY):
        raise BadInput(f"config.json: {layers} layers, hidden size {hidden}, vocabulary {words} are out of range")
    for config in (whole, text):
        for field in _IGNORED:
            if getattr(config, field, None) is not None:
                setattr(config, field, None)
    return whole


def context_of(config: Any) -> int | None:
    """Positions that the model was made for; None where its config names no bound."""
    found = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _look_through(folder: Path) -> None:
    """What transformers would make a worse error of, or much memory."""
    try:
        given = json.loads((folder / "config.json").read_bytes())
        inner = [given, *(value for value in given.values() if isinstance(value, dict))]
        quantised = next((one["quantization_config"] for one in inner if one.get("quantization_config")), None)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise BadInput(f"config.json can't be used: {type(error).__name__}: {str(error)[:300]}") from error
    for one in inner:
        check_count(one.get("num_labels"), one.get("id2label"))
    if quantised is not None:
        way = str(quantised.get("quant_method", "unknown"))[:32] if isinstance(quantised, dict) else "unknown"
        raise BadInput(f"config.json: checkpoints quantised by {way!r} can't be run", hint="publish the model in bf16, fp16 or fp32")
