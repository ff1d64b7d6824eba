"""A matrix as it came."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Plain:
    """The tensor itself, where it lies."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self.bias = weight, bias
        self.nbytes = weight.nbytes

    def move_out(self) -> None:
        """It lies on memory of its own from now on, whatever lay beside it."""
        self._weight = self._weight.clone()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self.bias)

    def one_row(self) -> tuple[str, list[torch.Tensor]] | None:
        return "plain", [self._weight]
