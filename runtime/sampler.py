"""From logits to a token: pure, so that a replay with the same seed and position picks the same token."""

from __future__ import annotations

import torch

from protocol.messages import Sampling


def sample(logits: torch.Tensor, sampling: Sampling, seed: int, position: int) -> int:
    """A token id from logits [vocabulary]; temperature 0 takes the greatest (the first of equals)."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    scaled = _keep_top_k(logits.float() / sampling.temperature, sampling.top_k)
    probabilities = _keep_top_p(torch.softmax(scaled, dim=-1), sampling.top_p)
    generator = torch.Generator().manual_seed(_mix(seed, position))
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    if not 0 < top_k < logits.numel():
        return logits
    least = torch.topk(logits, top_k).values[-1]
    return logits.masked_fill(logits < least, float("-inf"))


def _keep_top_p(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The fewest tokens whose chances reach `top_p`; the likeliest always stays."""
    if top_p >= 1:
        return probabilities
    ordered, index = probabilities.sort(descending=True)
    beyond = ordered.cumsum(0) - ordered >= max(top_p, 0.0)
    beyond[0] = False
    return torch.zeros_like(probabilities).scatter(0, index, ordered.masked_fill(beyond, 0.0))


def _mix(seed: int, position: int) -> int:
    """Spreads (seed, position) over 63 bits, so that neighbouring positions draw unrelated numbers."""
    mixed = (seed * 0x9E3779B97F4A7C15 + position + 1) & (1 << 64) - 1
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return (mixed ^ mixed >> 31) >> 1
