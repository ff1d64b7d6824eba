"""What planning needs to know of a model, out of its config.json: hostile JSON, so measured before it is parsed.

Architectures spell the same figure in different ways; the first spelling found wins. A model of several towers keeps its
language model's figures under `text_config` (or `llm_config`, `language_config`), which are looked at after the top level.
"""

from __future__ import annotations

import json
import re
from typing import Any

from protocol import limits
from protocol.errors import BadInput
from protocol.manifest import Summary

_FIGURES: dict[str, tuple[int, tuple[str, ...]]] = {
    "layers": (limits.MAX_LAYERS, ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")),
    "hidden": (limits.MAX_HIDDEN, ("hidden_size", "n_embd", "d_model", "dim", "model_dim")),
    "heads": (limits.MAX_HEADS, ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")),
    "kv_heads": (limits.MAX_HEADS, ("num_key_value_heads", "n_kv_heads", "num_kv_heads")),
    "head_dim": (limits.MAX_HIDDEN, ("head_dim",)),
    "vocabulary": (limits.MAX_VOCABULARY, ("vocab_size",)),
    "context": (limits.MAX_CONTEXT, ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")),
}
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}\Z")
_INNER = ("text_config", "llm_config", "language_config")


def parse_config(data: bytes) -> Summary:
    """The summary; `BadInput` names the field that is missing, of the wrong type, or beyond its limit."""
    config = _parse_json(data)
    inner = [config] + [config[key] for key in _INNER if isinstance(config.get(key), dict)]
    figures = {field: _figure(inner, names, most) for field, (most, names) in _FIGURES.items()}
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    summary = Summary(
        model_type=_word(config.get("model_type") or "unknown", "model_type"),
        architecture=_word(architecture, "architectures[0]") if architecture is not None else None,
        dtype=_dtype(inner),
        tied=_tied(inner),
        **figures,
    )
    check_summary(summary)
    return summary


def check_summary(summary: Summary) -> None:
    """Every figure within its limit, every word a word: for configs, manifests and cards alike."""
    for field in ("model_type", "architecture", "dtype"):
        value = getattr(summary, field)
        if value is not None:
            _word(value, field)
    for field, (most, _) in _FIGURES.items():
        value = getattr(summary, field)
        if value is not None and not 0 < value <= most:
            raise BadInput(f"config: {field} is {value}, 1 to {most} allowed")


def _parse_json(data: bytes) -> dict[str, Any]:
    if len(data) > limits.MAX_CONFIG:
        raise BadInput(f"config.json: {len(data)} bytes, at most {limits.MAX_CONFIG}")
    try:
        config = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"config.json is not valid JSON: {str(error)[:120] or 'nested too deep'}") from error
    if not isinstance(config, dict):
        raise BadInput("config.json is not a JSON object")
    _check_depth(config, limits.MAX_DEPTH)
    return config


def _check_depth(value: Any, depth: int) -> None:
    if depth == 0:
        raise BadInput(f"config.json: nested deeper than {limits.MAX_DEPTH}")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        if isinstance(item, dict | list):
            _check_depth(item, depth - 1)


def _figure(configs: list[dict[str, Any]], names: tuple[str, ...], most: int) -> int | None:
    for config in configs:
        for name in names:
            value = config.get(name)
            if value is None:
                continue
            if type(value) is not int or not 0 < value <= most:
                raise BadInput(f"config.json: {name} is {str(value)[:24]}, a whole number from 1 to {most} is allowed")
            return value
    return None


def _word(value: Any, field: str) -> str:
    if not isinstance(value, str) or not _WORD.match(value):
        raise BadInput(f"config.json: {field} is not a word: {str(value)[:64]!r}")
    return value


def _dtype(configs: list[dict[str, Any]]) -> str | None:
    for config in configs:
        value = config.get("dtype") or config.get("torch_dtype")
        if value is not None:
            return _word(value, "dtype").removeprefix("torch.")
    return None


def _tied(configs: list[dict[str, Any]]) -> bool | None:
    for config in configs:
        value = config.get("tie_word_embeddings")
        if isinstance(value, bool):
            return value
    return None
