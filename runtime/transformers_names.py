"""Every name of transformers that isn't part of its documented interface, in one place with a test per supported version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

SUPPORTED = ("5.23.0",)


@contextmanager
def gguf_without_accelerate() -> Iterator[None]:
    """transformers asks for `accelerate` before it opens a GGUF file, even where nothing of it is used (no device map)."""
    import transformers.modeling_utils as modeling

    names: Any = modeling
    before = names.is_accelerate_available
    names.is_accelerate_available = lambda *_args, **_named: True
    try:
        yield
    finally:
        names.is_accelerate_available = before


def import_for_gguf() -> None:
    """Imports what reading a GGUF file would import in the middle of it: for a process that shuts itself in before."""
    import gguf  # noqa: F401
    import transformers.integrations.ggml
    import transformers.modeling_gguf_pytorch_utils  # noqa: F401


def fill_computed_buffers(model: Any) -> None:
    """Gives the buffers that no file holds (rotary tables, scales) their values on the CPU, as `from_pretrained` does.

    Weights already in place are marked, so that transformers' own initialisation leaves them alone; modules that
    still miss a weight aren't touched.
    """
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        computed = [
            name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta and name in module._non_persistent_buffers_set
        ]
        for name in computed:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        for tensor in own:
            if not tensor.is_meta:
                tensor._is_hf_initialized = True
        module._is_hf_initialized = not computed or any(parameter.is_meta for parameter in module.parameters(recurse=False))
    model.initialize_weights()


def slot_type(slot: Any) -> tuple[type, bool]:
    """What makes two cache slots alike."""
    return type(slot), bool(getattr(slot, "is_sliding", False))


def make_position_only(slot: Any, position: int) -> None:
    """A cache slot that holds nothing and knows how many tokens were seen."""
    slot.cumulative_length = position
    slot.get_seq_length = lambda: slot.cumulative_length


def crop_slot(slot: Any, tokens: int) -> None:
    """Removes the last `tokens` positions of a slot; raises RuntimeError where the slot can't go back."""
    slot.crop(-tokens)
