"""What a route may be expected to do, before it is run: time on the network per token, tokens a second, time to the first. Pure.

A step's computing is taken as proportional to the bytes of weights it reads, per token for decoding and per token of a prompt, which
holds for one session on one machine; each peer's figure is what it told of its own steps. The asker knows the round trips to its
peers, not those between them: a hop between two peers counts as the way through the asker, which it is at most where
the network is sane. A figure nobody has measured is another node's (this one's first), else an assumption, and says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from protocol.errors import Unavailable
from protocol.messages import StageSpec

ASSUMED = 5e9
"""Bytes of weights a second, where nothing at all was measured: an old desktop's memory."""
ASSUMED_PROMPT = 20e9
_MEMORY = 0.8


class OverBudget(Unavailable):
    """The route would spend more time on the network per token than the owner wants; it can be forced."""

    code = "over_budget"


@dataclass(frozen=True)
class Pace:
    """Bytes of weights a second in decoding, and (bytes of weights x tokens) a second in prompts."""

    decode: float
    prompt: float


@dataclass(frozen=True)
class StageExpected:
    """`basis`: measured there | measured here | assumed."""

    seconds_per_token: float
    prompt_seconds: float
    basis: str


@dataclass(frozen=True)
class Expected:
    """Seconds; `network` per token."""

    network: float
    per_token: float
    first_token: float
    stages: list[StageExpected]


class Paces:
    """What peers told of their own steps, smoothed. `me` is this node."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._known: dict[str, Pace] = {}

    def note(self, peer: str, size: int, decode_seconds: float, prompt_seconds: float) -> None:
        """`size` bytes of the stage; seconds for one token, and per token of a prompt (0: not measured)."""
        if not (0 < decode_seconds < 3_600 and 0 <= prompt_seconds < 3_600 and size > 0):
            return
        prompt = size / prompt_seconds if prompt_seconds else ASSUMED_PROMPT
        old = self._known.get(peer, Pace(size / decode_seconds, prompt))
        self._known[peer] = Pace(
            _MEMORY * old.decode + (1 - _MEMORY) * size / decode_seconds, _MEMORY * old.prompt + (1 - _MEMORY) * prompt
        )

    def of(self, peer: str) -> tuple[Pace, str]:
        if peer in self._known:
            return self._known[peer], "measured there" if peer != self._me else "measured here"
        if self._me in self._known:
            return self._known[self._me], "measured here"
        return Pace(ASSUMED, ASSUMED_PROMPT), "assumed"


def network_seconds(stages: Sequence[StageSpec], rtt: Mapping[str, float]) -> float:
    """Per token: from each stage to the next, and from the last back to the first. `rtt` seconds, 0 for the asker."""

    def way(one: str, other: str) -> float:
        return 0.0 if one == other else (rtt.get(one, 0.0) + rtt.get(other, 0.0)) / 2

    hops = sum(way(before.peer, after.peer) for before, after in pairwise(stages))
    return hops + way(stages[-1].peer, stages[0].peer)


def expect(stages: Sequence[StageSpec], size: Callable[[int, int], int], rtt: Mapping[str, float], paces: Paces, prompt: int) -> Expected:
    """`size(first, end)` bytes of weights; `prompt` tokens of the question."""
    parts = []
    for stage in stages:
        pace, basis = paces.of(stage.peer)
        weights = size(stage.first, stage.end)
        parts.append(StageExpected(weights / pace.decode, prompt * weights / pace.prompt, basis))
    network = network_seconds(stages, rtt)
    per_token = network + sum(part.seconds_per_token for part in parts)
    there = rtt.get(stages[0].peer, 0.0) / 2 + rtt.get(stages[-1].peer, 0.0) / 2
    return Expected(network, per_token, there + network + sum(part.prompt_seconds for part in parts), parts)


def check_budget(stages: Sequence[StageSpec], rtt: Mapping[str, float], budget: float, forced: bool) -> None:
    """`OverBudget` for a route of several nodes whose network time per token is over `budget` seconds, unless `forced`."""
    needed = network_seconds(stages, rtt)
    if needed > budget and not forced:
        raise OverBudget(
            f"the route spends {1e3 * needed:.0f} ms per token on the network, {1e3 * budget:.0f} ms is this node's budget",
            hint="--force runs it anyway; --round-trip-budget is the bound; nearer peers or more memory here help more",
            details={"needed_ms": round(1e3 * needed, 1), "budget_ms": round(1e3 * budget, 1)},
        )
