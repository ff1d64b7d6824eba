"""What the rules of `stage.py` can't know of an architecture: the only place where one is named. Every entry has its reason."""

from __future__ import annotations

from typing import Any

STREAMS = {"deepseek_v4": "hc_mult", "hy_v4": "hc_mult", "qwen4_exp_text": "hc_count"}
"""These keep several hidden states side by side between layers (hyper-connections): the config's field that says how many."""


WHOLE = {
    "gemma3n_text": "several predictions of the hidden state run side by side, with embeddings for each layer",
    "glm_moe_dsa": "a layer picks the positions that the next one looks at",
    "hrm_text": "its layers run several times in turn",
    "hy_v4": "a layer picks the positions that the next one looks at",
    "inkling2_text": "every layer is given the words' embeddings",
    "longcat_flash": "each layer keeps two memories",
    "mllama": "layers for pictures are left out where there are none",
    "zaya": "a layer hands the next what it added",
}
"""Model types of which no cut passed the self-test, and why. Planners ask before they cut; the self-test knows by itself."""


def whole_only(model_type: str) -> str | None:
    """Why a model of this type runs whole, None where it may be cut."""
    return WHOLE.get(model_type) or WHOLE.get(f"{model_type}_text")


def boundary_shape(config: Any) -> tuple[int, ...]:
    """Shape of what passes between two layers for one position."""
    field = STREAMS.get(config.model_type)
    hidden = int(config.hidden_size)
    return (int(getattr(config, field)), hidden) if field else (hidden,)
