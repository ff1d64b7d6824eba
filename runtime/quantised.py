"""A stage's matrices in 8 or 4 bits under transformers' own forward: the reference for the lean step at that precision, and
what runs a class the lean step doesn't know.

Every `nn.Linear` of the layers, and the head, gives way to a module that multiplies by the stored form; all else (norms,
embedding, biases) stays. A layer whose large tensors lie elsewhere (experts as one tensor, convolutions) would stay as it
is and take more memory than the precision promises: refused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from protocol.errors import BadInput
from runtime.linear import Linear, make_head, make_linear
from runtime.stage import Stage

_LARGE = 1 << 16
"""Numbers from which a tensor of a layer counts as one that the precision must reach."""


class Quantised(nn.Module):  # type: ignore[misc]
    """In the place of an `nn.Linear`: any number of leading dimensions."""

    def __init__(self, linear: Linear, like: nn.Linear) -> None:
        super().__init__()
        self._linear = linear
        self.in_features, self.out_features = like.in_features, like.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self._linear(x.reshape(-1, self.in_features))
        return rows.view(*x.shape[:-1], self.out_features)


def quantise(stage: Stage, precision: str) -> int:
    """Replaces the stage's matrices; bytes that they take now. `BadInput` for a class that keeps them in another way."""
    layers = stage.own_layers()
    if not layers:
        raise _cannot(stage, precision, "it keeps no list of layers")
    total = sum(_replace(stage, layer, precision) for layer in layers)
    head = stage.model.get_output_embeddings() if stage.last else None
    if isinstance(head, nn.Linear):
        made = make_head(head.weight.detach(), head.bias, precision)
        stage.model.set_output_embeddings(Quantised(made, head))
        total += made.nbytes
    return total


def _replace(stage: Stage, layer: nn.Module, precision: str) -> int:
    def leaf(parent: nn.Module, name: str, found: nn.Linear) -> int:
        made = make_linear(found.weight.detach(), found.bias, precision)
        setattr(parent, name, Quantised(made, found))
        return made.nbytes

    total = _each_linear(layer, leaf)
    for name, held in layer.named_parameters():
        if held.numel() >= _LARGE:
            raise _cannot(stage, precision, f"its layers keep {name[:64]!r} outside of plain matrices")
        total += held.nbytes
    return total


def _each_linear(root: nn.Module, act: Callable[[nn.Module, str, nn.Linear], int]) -> int:
    places = [(parent, name, child) for parent in root.modules() for name, child in parent.named_children() if type(child) is nn.Linear]
    return sum(act(parent, name, child) for parent, name, child in places)


def _cannot(stage: Stage, precision: str, why: str) -> BadInput:
    return BadInput(f"{type(stage.model).__name__} can't run at {precision}: {why}", hint="run it at bf16")
