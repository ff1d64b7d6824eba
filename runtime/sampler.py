"""From logits to tokens: pure, so that a replay, another batch or another stage picks the same token from the same logits.

Sampling is by the Gumbel-max rule: each token's score gets a noise that only (seed, position, token) determine, and the greatest sum
wins, which draws from softmax(scores) exactly (Maddison et al., "A* Sampling", 2014). So a reply depends on the order of requests, the
size of a batch or the machine only through the logits themselves, and where those differ in their last bits the token differs only if
the two greatest sums were that close. Drafted tokens are verified by mere equality, whatever the temperature. Rejected: drawing from
the cumulated chances (every token before the drawn one shifts it), generators with a stream (to know one token's noise all before it
have to be drawn; the mixing function of SplitMix64 gives any of them at once).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from protocol.messages import Sampling, TokenLogprob
from runtime.memory import CHOSEN

_Floats = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.int64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

COLD = 1e-4
"""Temperatures below are greedy: scores divided by them would leave fp32's range."""
_FEW = 4_096
"""Candidates whose noise is worked out without asking first who can still win."""


@dataclass(frozen=True)
class Ask:
    """What is wanted of one row of logits. `counts`: how often each token is in the reply; `allowed` bool [vocabulary] by a grammar."""

    sampling: Sampling
    seed: int
    position: int
    counts: Mapping[int, int] = field(default_factory=dict)
    allowed: torch.Tensor | None = None

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < COLD

    @property
    def plain(self) -> bool:
        """Whether the greatest logit is all there is to say."""
        return self.greedy and self.sampling.logprobs is None and not self.shaped

    @property
    def shaped(self) -> bool:
        """Whether the scores differ from the logits."""
        return bool(self.sampling.logit_bias) or self.allowed is not None or (bool(self.counts) and penalised(self.sampling))


@dataclass(frozen=True)
class Chosen:
    """`logprobs`: the chosen token's first, then the likeliest, where they were asked."""

    token: int
    logprobs: list[TokenLogprob] | None = None


def penalised(sampling: Sampling) -> bool:
    return bool(sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1)


def greatest(rows: np.ndarray[Any, Any]) -> list[int] | None:
    """The first of the greatest in each row of logits [rows, vocabulary]; None where one has none, for NaN or infinity.

    Where numbers are compared NaN counts as the greatest, so what was found tells of the whole row, which is read once.
    """
    found: list[int] = rows.argmax(-1).tolist()
    return found if all(math.isfinite(rows[row, token]) for row, token in enumerate(found)) else None


def choose(logits: torch.Tensor | Sequence[torch.Tensor], asks: Sequence[Ask]) -> list[Chosen]:
    """One token for each row of `logits` [rows, vocabulary], or of several such. Of equals the first wins, no row depends on the others.

    A few rows at a time, so that a crowd over a large vocabulary takes no more memory than `memory.choice_bytes` says.
    """
    whole = [logits] if isinstance(logits, torch.Tensor) else logits
    rows = [row for one in whole for row in one.split(1)] if len(whole) > 1 else []
    chosen: list[Chosen] = []
    for at in range(0, len(asks), CHOSEN):
        few = torch.cat(rows[at : at + CHOSEN]) if rows else whole[0][at : at + CHOSEN]
        chosen += _choose(few, asks[at : at + CHOSEN], own=bool(rows))
    return chosen


def _choose(logits: torch.Tensor, asks: Sequence[Ask], *, own: bool) -> list[Chosen]:
    """`own`: the logits are nobody else's and may be changed."""
    if all(ask.plain for ask in asks):
        return [Chosen(token) for token in logits.float().numpy().argmax(-1).tolist()]
    scores = _shape(logits, asks, own=own)
    tokens: list[int] = scores.numpy().argmax(-1).tolist()
    for row, ask in enumerate(asks):
        if not ask.greedy:
            tokens[row] = _draw(scores[row].numpy(), ask)
    return [Chosen(token, _logprobs(scores[row], token, asks[row])) for row, token in enumerate(tokens)]


def _shape(logits: torch.Tensor, asks: Sequence[Ask], *, own: bool = False) -> torch.Tensor:
    """Scores [rows, vocabulary] in fp32: bias, grammar and penalties applied."""
    scores = logits.to(torch.float32, copy=not own)
    for row, ask in zip(scores, asks, strict=True):
        if ask.shaped:
            for one in ask.sampling.logit_bias or ():
                row[one.token] += one.bias
            if ask.allowed is not None:
                row.masked_fill_(~ask.allowed, -math.inf)
            if ask.counts and penalised(ask.sampling):
                _penalise(row, ask.counts, ask.sampling)
    return scores


def _penalise(row: torch.Tensor, counts: Mapping[int, int], sampling: Sampling) -> None:
    tokens = torch.tensor(list(counts), dtype=torch.long)
    times = torch.tensor(list(counts.values()), dtype=torch.float32)
    said = row[tokens]
    said = torch.where(said > 0, said / sampling.repetition_penalty, said * sampling.repetition_penalty)
    row[tokens] = said - sampling.presence_penalty - sampling.frequency_penalty * times


def _draw(scores: _Floats, ask: Ask) -> int:
    """A token from scores [vocabulary] by chance."""
    scaled = scores / np.float32(ask.sampling.temperature)
    weights = np.exp(scaled - scaled.max())
    floor = _floor(weights, ask.sampling)
    tokens = np.flatnonzero(weights >= floor) if floor > 0 else np.arange(len(weights))
    chance = _uniform(ask.seed, ask.position, tokens)
    if len(tokens) > _FEW:
        # Whose noise can't lift it over the likeliest one's sum is out: -log(u) is never less than the noise.
        leader = int(weights.argmax())
        lead = _gumbel(chance[np.searchsorted(tokens, leader)])
        able = np.flatnonzero(chance <= weights[tokens] * np.exp(-lead) * 1.001)
        tokens, chance = np.append(tokens[able], leader), np.append(chance[able], chance[np.searchsorted(tokens, leader)])
    sums = scaled[tokens].astype(np.float64) + _gumbel(chance)
    return int(tokens[sums == sums.max()].min())


def sums_of(logits: torch.Tensor, ask: Ask) -> tuple[_Floats, Any, Any]:
    """Of all tokens of logits [vocabulary]: scores over temperature, what the greatest of wins, and whether cuts leave it in."""
    scores = _shape(logits[None], [ask])[0].numpy()
    if ask.greedy:
        return scores, scores, np.ones(len(scores), dtype=bool)
    scaled = scores / np.float32(ask.sampling.temperature)
    weights = np.exp(scaled - scaled.max())
    noise = _gumbel(_uniform(ask.seed, ask.position, np.arange(len(scores))))
    return scaled, scaled.astype(np.float64) + noise, weights >= _floor(weights, ask.sampling)


def _gumbel(chance: Any) -> Any:
    return -np.log(-np.log1p(-chance))


def _uniform(seed: int, position: int, tokens: _Indices) -> Any:
    """float64 in (0, 1) that seed, position and token determine on any machine."""
    key = _mix(np.array([_mix(np.array([seed % (1 << 64)], np.uint64))[0] ^ np.uint64(position)]))
    return ((_mix(key + tokens.astype(np.uint64) * _GOLDEN) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mix(numbers: Any) -> Any:
    """SplitMix64's output function (Steele, Lea and Flood, 2014)."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)


def _floor(weights: _Floats, sampling: Sampling) -> float:
    """The least weight that top_k, top_p and min_p leave in, 0 for all; the likeliest has 1 and always stays."""
    floor = min(sampling.min_p, 1.0)
    if 0 < sampling.top_k < len(weights):
        floor = max(floor, float(np.partition(weights, -sampling.top_k)[-sampling.top_k]))
    if sampling.top_p < 1:
        floor = max(floor, _least_kept(weights[weights >= floor] if floor > 0 else weights, sampling.top_p))
    return floor


def _least_kept(weights: _Floats, top_p: float) -> float:
    """The lowest weight among the fewest tokens whose chances reach `top_p`."""
    whole = float(weights.sum(dtype=np.float64))
    # All that are lighter than this weigh less than 1 - top_p together, so the bound lies above.
    heavy = np.sort(weights[weights >= (1 - top_p) * whole / len(weights)])[::-1]
    reached = int(np.searchsorted(heavy.cumsum(dtype=np.float64), top_p * whole))
    return float(heavy[min(reached, len(heavy) - 1)])


def _logprobs(scores: torch.Tensor, token: int, ask: Ask) -> list[TokenLogprob] | None:
    """Natural logarithms before temperature and cuts; what a grammar forbids has none."""
    if ask.sampling.logprobs is None:
        return None
    logs = torch.log_softmax(scores, 0)
    top = torch.topk(logs, min(ask.sampling.logprobs, logs.numel()))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [TokenLogprob(token, float(logs[token])), *(TokenLogprob(one, value) for one, value in pairs if value > -math.inf)]
