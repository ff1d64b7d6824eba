"""Layers that aren't here: they keep their place in the model's list, so that the class's own forward runs unchanged.

The one before the range swaps in the hidden state received, whatever came out of the embedding; the one after it ends the
forward by an exception that carries the hidden state; the others pass through what they get. Each that is passed tells
its slot of the cache how many tokens it would have seen: the class's forward asks slots about positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from protocol.errors import BadInput


class EndReached(Exception):
    """The forward came to the end of the range; `hidden` is what the next stage takes."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Outside(nn.Module):  # type: ignore[misc]
    """Returns what a layer returns. The weightless layer it stands for answers for the attributes that a model's code reads."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._stands_for = (layer,)
        self.tuple_size = 0
        """Length of the tuple that this class's layers return, 0 for a bare tensor."""
        self.swap: torch.Tensor | None = None
        self.slot: Any = None
        self.ends = False

    def forward(self, *args: Any, **named: Any) -> Any:
        hidden = args[0] if args else named["hidden_states"]
        if self.ends:
            raise EndReached(hidden)
        if self.slot is not None:
            self.slot.seen += hidden.shape[1]
        out = hidden if self.swap is None else self.swap
        return (out, *[None] * (self.tuple_size - 1)) if self.tuple_size else out

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stands_for"][0], name)


class NoEmbedding(nn.Module):  # type: ignore[misc]
    """Positions and words were embedded by the first stage; the sum that this takes part in is thrown away."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.dtype = width, dtype

    def forward(self, ids: torch.Tensor, *_args: Any, **_named: Any) -> torch.Tensor:
        return torch.zeros(*ids.shape, self.width, dtype=self.dtype)


def layer_list(model: Any, count: int) -> nn.ModuleList:
    """The decoder's list of `count` layers: the outermost there is. Whether it's the one that runs, the self-test finds out."""
    found = _find_list(model, count)
    if found is None:
        raise BadInput(
            f"architecture {type(model).__name__} keeps no list of {count} layers and can't be run in stages", hint="run it whole"
        )
    return found


def has_layer_list(model: Any, count: int) -> bool:
    return _find_list(model, count) is not None


def _find_list(model: Any, count: int) -> nn.ModuleList | None:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for root in (decoder, model):
        for module in root.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
    return None


def hollow(model: Any, first: int, end: int, count: int) -> dict[int, Outside]:
    """Puts placeholders for all layers outside of [first, end), which it returns by index."""
    made: dict[int, Outside] = {}
    if (first, end) == (0, count):
        return made
    layers = layer_list(model, count)
    for index in range(count):
        if not first <= index < end:
            made[index] = Outside(layers[index])
            made[index].ends = index == end
            layers[index] = made[index]
    return made


def drop_embeddings(model: nn.Module, dtype: torch.dtype) -> None:
    """Lookups whose weights aren't here give zeros: a stage that takes hidden states throws their sum away."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding) and module.weight.is_meta:
            parent, _dot, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, NoEmbedding(module.embedding_dim, dtype))
