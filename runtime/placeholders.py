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
        self.beside: list[torch.Tensor] | None = None
        """What is returned beside the hidden state: nothing, but marks in a self-test that looks for who takes it."""
        self.swap: torch.Tensor | None = None
        self.passed = False
        """Whether this pass has come by."""
        self.slot: Any = None
        self.ends = False

    def forward(self, *args: Any, **named: Any) -> Any:
        hidden = args[0] if args else named["hidden_states"]
        if self.ends:
            raise EndReached(hidden)
        self.passed = True
        if self.slot is not None:
            self.slot.seen += hidden.shape[1]
        out = hidden if self.swap is None else self.swap
        return (out, *(self.beside or [None] * (self.tuple_size - 1))) if self.tuple_size else out

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stands_for"][0], name)


class Absent(nn.Module):  # type: ignore[misc]
    """A module outside of the layers whose weights aren't here. Before the hidden state received is swapped in its result is
    thrown away, so anything will do; after that it is a fault that names the tensor."""

    def __init__(self, module: nn.Module, tensor: str, entry: Outside, dtype: torch.dtype) -> None:
        super().__init__()
        self._stands_for = (module, entry)
        self.tensor, self.dtype = tensor, dtype
        self.fill = 0.0
        """What its results are made of: the self-test changes it, to see that they are thrown away."""

    def forward(self, *args: Any, **_named: Any) -> torch.Tensor:
        module, entry = self._stands_for
        if entry.passed:
            raise BadInput(f"tensor {self.tensor!r} is needed here and wasn't given")
        given = next((one for one in args if isinstance(one, torch.Tensor)), None)
        if given is not None and given.is_floating_point() and not isinstance(module, nn.Embedding):
            return given + self.fill
        shape = (1, 1) if given is None or given.is_floating_point() else given.shape
        where = None if given is None else given.device
        return torch.full((*shape, getattr(module, "embedding_dim", 1)), self.fill, dtype=self.dtype, device=where)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stands_for"][0], name)


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


def stand_in(model: nn.Module, entry: Outside, dtype: torch.dtype) -> list[Absent]:
    """Replaces what lies outside of the layers and has no weights here: a stage that takes hidden states embeds nothing."""
    made = []
    for path, module in list(model.named_modules()):
        missing = next((leaf for leaf, held in module.named_parameters(recurse=False) if held.is_meta), None)
        if missing is not None and path:
            parent, _dot, leaf = path.rpartition(".")
            made.append(Absent(module, f"{path}.{missing}", entry, dtype))
            setattr(model.get_submodule(parent), leaf, made[-1])
    return made
