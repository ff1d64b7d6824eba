"""How far a token lies behind the one that these logits, this seed and this position give.

Sampling is a race: torch draws one exponential number for each token, the same for the same seed and position, and the token with the
greatest chance over its number wins. So a token that another machine sampled can be checked though its logits differ in the last bits: an
honest one lies as far behind the winner as the logits are apart, a hundredth or a tenth; one that was chosen otherwise lies anywhere.
For greedy sampling the gap is that of the logits. A token outside of top-k or top-p lies behind by what it lacks to get in, too.
"""

from __future__ import annotations

import torch

from protocol.messages import Sampling
from runtime.sampler import _keep_top_k, _keep_top_p, _mix


def token_gap(logits: torch.Tensor, sampling: Sampling, seed: int, position: int, token: int) -> float:
    """Logits [vocabulary] by which `token` lies behind at `position`; 0 for the token that `sample` gives."""
    logits = logits.float()
    if sampling.temperature <= 0:
        return float(logits.max() - logits[token])
    scaled = logits / sampling.temperature
    kept = _keep_top_p(torch.softmax(_keep_top_k(scaled, sampling.top_k), dim=-1), sampling.top_p)
    numbers = torch.empty_like(kept).exponential_(1, generator=torch.Generator().manual_seed(_mix(seed, position))).log_()
    allowed = kept > 0
    race = torch.where(allowed, scaled, -torch.inf) - numbers
    behind = max(0.0, float(race.max() - (scaled[token] - numbers[token])))
    if not allowed[token]:
        behind = max(behind, float(scaled[allowed].min() - scaled[token]))
    return behind * sampling.temperature
