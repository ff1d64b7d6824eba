"""How far a token lies behind the one that these logits, this seed and this position give.

Sampling is a race (runtime/sampler.py): each token's score gets a noise that seed, position and token decide, and the greatest sum wins.
So a token that another machine sampled can be checked though its logits differ in the last bits: an honest one lies as far behind
the winner as the logits are apart, a hundredth or a tenth; one that was chosen otherwise lies anywhere. For greedy sampling the gap is
that of the logits. A token outside of top-k, top-p or min-p lies behind by what it lacks to get in, too.
"""

from __future__ import annotations

import torch

from protocol.messages import Sampling
from runtime.sampler import Ask, sums_of


def token_gap(logits: torch.Tensor, sampling: Sampling, seed: int, position: int, token: int) -> float:
    """Logits [vocabulary] by which `token` lies behind at `position`; 0 for the token that is chosen there."""
    ask = Ask(sampling, seed, position)
    scores, sums, kept = sums_of(logits, ask)
    behind = max(0.0, float(sums[kept].max() - sums[token]))
    if not kept[token]:
        behind = max(behind, float(scores[kept].min() - scores[token]))
    return behind * (1.0 if ask.greedy else sampling.temperature)
