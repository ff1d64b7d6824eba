"""What transformers imports when the first model of a process comes: 900 modules, two seconds of processor time."""

from __future__ import annotations

import importlib

_NAMES = ("AutoTokenizer", "PreTrainedTokenizerFast", "LlamaForCausalLM", "LlamaConfig")
"""Of the commonest kind; the others share nearly all of it."""


def import_ahead() -> None:
    transformers = importlib.import_module("transformers")
    for name in _NAMES:
        getattr(transformers, name)  # brought in when it is named
    transformers.LlamaConfig()
