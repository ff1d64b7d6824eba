"""What the rules of `stage.py` can't know of an architecture: the only place where one is named. Every entry has its reason."""

from __future__ import annotations

from typing import Any

STREAMS = {"deepseek_v4": "hc_mult", "hy_v4": "hc_mult", "qwen4_exp_text": "hc_count"}
"""These keep several hidden states side by side between layers (hyper-connections): the config's field that says how many."""


def boundary_shape(config: Any) -> tuple[int, ...]:
    """Shape of what passes between two layers for one position."""
    field = STREAMS.get(config.model_type)
    hidden = int(config.hidden_size)
    return (int(getattr(config, field)), hidden) if field else (hidden,)
