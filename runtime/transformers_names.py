"""Every name of transformers that isn't part of its documented interface, in one place with a test per supported version."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from protocol import limits
from protocol.errors import BadInput

SUPPORTED = ("5.23.0",)
MAX_COMPUTED = 512 * limits.MIB
"""Bytes of buffers that a class computes for itself (rotary tables, masks): what a config may make of them."""


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


def model_class(config: Any, auto: Any = AutoModelForCausalLM) -> tuple[type, Any]:
    """The class of transformers itself that `auto` takes for this config, and the part of the config that it is built by;
    KeyError when there is none."""
    found = auto._model_mapping[type(config)]
    if isinstance(found, list | tuple):
        named = {one.__name__: one for one in found}
        found = next((named[name] for name in config.architectures or () if name in named), found[0])
    if getattr(found, "config_class", None) is config.sub_configs.get("text_config", object):
        config = config.get_text_config()
    return found, config


def load_class(
    kind: type, config: Any, tensors: dict[str, torch.Tensor], dtype: torch.dtype, prepare: Callable[[Any], None]
) -> tuple[Any, dict[str, Any]]:
    """A model of class `kind` by its own `from_pretrained`, and what that says of missing and mismatched weights.

    `prepare` is called with the model while it is still on the meta device. What isn't given stays there: the one step
    of loading that would give missing weights memory and random values is left out, that for computed buffers is kept.
    """

    class Partial(kind):  # type: ignore[misc]
        def __init__(self, config: Any, *args: Any, **named: Any) -> None:
            super().__init__(config, *args, **named)
            prepare(self)

        def _move_missing_keys_from_meta_to_device(self, missing_keys: Any, *rest: Any, **named: Any) -> None:
            size = sum(buffer.nbytes for _name, buffer in self.named_non_persistent_buffers())
            if size > MAX_COMPUTED:
                raise BadInput(f"config.json asks for {size / 1e6:.0f} MB of computed tables, {MAX_COMPUTED / 1e6:.0f} MB are allowed")
            super()._move_missing_keys_from_meta_to_device(set(), *rest, **named)

    Partial.__name__, Partial.__qualname__, Partial.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    loaded = Partial.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
    )
    model, info = loaded
    return model.requires_grad_(False), info


def cache_argument(model: Any) -> str:
    """What this class's forward calls its cache."""
    taken = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in taken and "past_key_values" not in taken else "past_key_values"


def new_cache(config: Any) -> Any:
    return DynamicCache(config=config)


def elsewhere(slot: Any) -> Any:
    """A slot of the same class for a layer that isn't here: it knows the position and holds nothing."""
    kind = type(slot)
    own = _ELSEWHERE.get(kind)
    if own is None:
        own = _ELSEWHERE[kind] = type(f"Elsewhere{kind.__name__}", (_Elsewhere, kind), {"_layer_type": None})
    made: Any = object.__new__(own)
    made.seen, made.held = 0, frozenset(vars(slot))
    for name, value in vars(slot).items():
        if isinstance(value, int | float | str) and name not in ("is_initialized", "cumulative_length", "has_previous_state"):
            setattr(made, name, value)
    return made


class _Elsewhere:
    """Answers questions about positions; whatever else is asked of it raises, which refuses the cut at load."""

    seen: int

    def get_seq_length(self, *_args: Any) -> int:
        return self.seen

    @property
    def cumulative_length(self) -> int:
        return self.seen

    @property
    def is_initialized(self) -> bool:
        return self.seen > 0

    @property
    def has_previous_state(self) -> dict[int, bool]:
        return dict.fromkeys(range(getattr(self, "number_of_states", 1)), self.seen > 0)

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__.get("held", ()):
            raise AttributeError(name)
        raise RuntimeError(f"a layer here reads {name!r} of the memory of a layer that is elsewhere")


_ELSEWHERE: dict[type, type] = {}


def crop_slot(slot: Any, tokens: int) -> None:
    """Removes the last `tokens` positions of a slot; raises RuntimeError where the slot can't go back."""
    slot.crop(-tokens)


def forgets(slot: Any) -> bool:
    """Whether a slot keeps less than all positions, so that it may be unable to go back."""
    return type(slot) is not DynamicLayer


def slot_bytes(slot: Any) -> int:
    """What a slot holds."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(vars(slot)))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in inner for tensor in _tensors(item)]
