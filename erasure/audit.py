"""Which announced shards are audited when, how long the peer may take, and what its answers come to. Pure.

A shard counts towards a group's durability only after its holder has shown that the bytes lie there: for each audit it walks over
scattered leaves, each chosen by the bytes of the one before (`protocol/audits.py`), and answers with a few hundred bytes. So its
line's speed doesn't matter, only how fast it reads. Who keeps nothing and fetches the leaves from other nodes when asked pays
their round trip at every step, 32 times over; a disk pays a seek. The deadline lies between the two:

    deadline = 1.5 round trips + 100 ms + units x step
    units    = shards (to open each) + min(steps, shards + leaves / 32)
    step     = twice the 0.9 quantile of the peer's own recent audits, at least 6 ms, at most (and at first) 20 ms

The round trip is measured on the same stream just before, and counted up to 300 ms. `leaves / 32`: a shard of up to some MiB is read
whole in one go by an honest disk (100 MB/s is 2 MiB in 20 ms), so its holder gets no more time than that; fetching it whole from
others is what a faker would do. Only audits passed teach the step, so that nobody teaches this node to wait. What can't be told
apart: a slow disk from a faker with an accomplice nearer than 20 ms (10 ms where the peer has shown a faster disk), and shards of
few leaves, which are cheaper to keep than to fetch at every audit.

Wrong bytes alone are a fault. Late and missing shards don't count, and nobody is accused; no answer says nothing at all.
A lucky faker (or an unlucky honest peer: a stall, a busy machine) isn't judged by one audit: among the last five there must be more
in time than late; a tie leaves it at what it was.

Rejected: a share of recent latencies over all peers (it punishes far ones), accusing after so many late answers (a disk that
fails slowly is no liar), auditing only a peer and not each shard (it would keep one and announce all).
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from protocol import limits
from protocol.ids import EncodingId, PeerId

STEPS = 32
SHOWN = 3
"""Leaves shown at least; one of each shard in any case."""

RTT_FACTOR = 1.5
RTT_MOST = 0.3
OWN_TIME = 0.1
"""Seconds a busy machine may take to get to it."""
STEP_LEAST = 0.006
STEP_MOST = 0.020
LEAVES_A_UNIT = 32
_SAMPLES = 16
_QUANTILE = 0.9
_FACTOR = 2.0

FIRST_WITHIN = 2.0
PERIOD = 86_400.0
SECOND_AFTER = 600.0
GROWTH = 6.0
RETRY = 5.0
RETRY_MOST = 3_600.0
AUDITORS = 8
"""Audits a period that a shard needs; more members of a group share them."""
FRESH = 3.0
"""Periods for which a pass is good."""
WINDOW = 5
MAX_STANDINGS = 65_536
MAX_PEERS = 4_096
MAX_SHOWN = 256


class Verdict(enum.Enum):
    PASSED = "passed"
    WRONG = "wrong"
    """Wrong bytes: a fault."""
    MISSING = "missing"
    """It says that it doesn't hold what it announces."""
    LATE = "late"
    UNKNOWN = "unknown"
    """No answer in time, no way there, busy: nothing is known of the shard."""


@dataclass(frozen=True)
class HeldShard:
    """A shard that a peer announces."""

    peer: PeerId
    encoding: EncodingId
    shard: int


def units(leaf_counts: Sequence[int], steps: int = STEPS) -> float:
    """The work of a walk over shards of so many leaves, in reads of a disk."""
    return len(leaf_counts) + min(steps, len(leaf_counts) + sum(leaf_counts) / LEAVES_A_UNIT)


def steps_to_show(shards: int, rng: Random, steps: int = STEPS) -> list[int]:
    """Steps of a walk over so many shards: one at random of each, and at least SHOWN."""
    chosen = [rng.randrange(number, steps, shards) for number in range(min(shards, steps))]
    others = [step for step in range(steps) if step not in chosen]
    return sorted(chosen + rng.sample(others, max(0, min(SHOWN, steps) - len(chosen))))


class Speeds:
    """How long peers took for a unit of work in audits they passed lately; seconds."""

    def __init__(self) -> None:
        self._samples: dict[PeerId, deque[float]] = {}

    def note(self, peer: PeerId, seconds: float, rtt: float, work: float) -> None:
        """An audit passed: `seconds` from question to tags."""
        kept = self._samples.pop(peer, None) or deque(maxlen=_SAMPLES)
        kept.append(max(0.0, seconds - rtt) / work)
        self._samples[peer] = kept
        while len(self._samples) > MAX_PEERS:
            self._samples.pop(next(iter(self._samples)))

    def step(self, peer: PeerId) -> float:
        """Seconds allowed for a unit: the longest for who isn't known by three audits."""
        kept = self._samples.get(peer, ())
        if len(kept) < 3:
            return STEP_MOST
        usual = sorted(kept)[min(len(kept) - 1, math.ceil(_QUANTILE * len(kept)) - 1)]
        return min(STEP_MOST, max(STEP_LEAST, _FACTOR * usual))

    def deadline(self, peer: PeerId, rtt: float, work: float) -> float:
        """Seconds from question to tags."""
        return RTT_FACTOR * min(rtt, RTT_MOST) + OWN_TIME + work * self.step(peer)


@dataclass
class _Standing:
    """`in_time` of the last audits that showed the right bytes, newest last. Times by the clock given to the book."""

    due: float
    kept: bool = False
    in_time: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    passed_at: float | None = None
    good_for: float = PERIOD * FRESH
    passes: int = 0
    failures: int = 0
    last: Verdict | None = None
    at: float = 0.0

    def shown(self, in_time: bool) -> None:
        """The right bytes, in time or late. A tie changes nothing: one late answer doesn't undo a pass, nor one pass a late answer."""
        self.in_time.append(in_time)
        ahead = 2 * sum(self.in_time) - len(self.in_time)
        self.kept = ahead > 0 or (self.kept and ahead == 0)

    def counts(self, now: float) -> bool:
        return self.kept and self.passed_at is not None and now - self.passed_at <= self.good_for


class AuditBook:
    """What audits by this node have shown of the shards that others announce."""

    def __init__(self) -> None:
        self.speeds = Speeds()
        self._standings: dict[HeldShard, _Standing] = {}

    def counts(self, held: HeldShard, now: float) -> bool:
        """Whether the shard counts as kept."""
        standing = self._standings.get(held)
        return standing is not None and standing.counts(now)

    def uncounted(self, now: float) -> list[tuple[HeldShard, Verdict]]:
        """What was audited in the last period and doesn't count, with the verdict; the newest last, at most MAX_SHOWN."""
        recent = [(held, one) for held, one in self._standings.items() if one.last is not None and now - one.at <= PERIOD]
        return [(held, one.last) for held, one in recent if one.last is not None and not one.counts(now)][-MAX_SHOWN:]

    def vouch(self, held: HeldShard, now: float, rng: Random) -> None:
        """The holder has just acknowledged to this node that the shard is durable there: it counts at once, and is audited soon."""
        standing = self._standing(held, now)
        standing.in_time.clear()
        standing.shown(True)
        standing.passed_at, standing.good_for, standing.failures = now, PERIOD * FRESH, 0
        standing.due = now + _jittered(SECOND_AFTER, rng)

    def note(self, held: HeldShard, verdict: Verdict, now: float, rng: Random, holders: int = 1) -> None:
        """An audit's verdict; `holders` of the group, each an auditor of all the others, share the work."""
        standing = self._standing(held, now)
        standing.last, standing.at = verdict, now
        period = PERIOD * max(1.0, min(4.0, holders / AUDITORS))
        if verdict is Verdict.PASSED:
            standing.shown(True)
            standing.passed_at, standing.good_for = now, period * FRESH
            standing.passes, standing.failures = standing.passes + 1, 0
            wait = min(period, SECOND_AFTER * GROWTH ** min(standing.passes - 1, 8))
            if not standing.kept:  # in time now, late before: the next one decides
                wait = RETRY
        else:
            if verdict is Verdict.LATE:
                standing.shown(False)
            elif verdict is not Verdict.UNKNOWN:
                standing.in_time.clear()
                standing.kept, standing.passes = False, 0
            standing.failures += 1
            wait = min(RETRY_MOST, RETRY * 2 ** min(standing.failures - 1, 16))
        standing.due = now + _jittered(wait, rng)

    def due(self, announced: Iterable[HeldShard], now: float, rng: Random) -> list[HeldShard]:
        """Those of the shards announced whose time has come, longest due first. One not heard of before comes within FIRST_WITHIN."""
        late: list[tuple[float, HeldShard]] = []
        for held in islice(announced, MAX_STANDINGS):
            standing = self._standings.get(held)
            if standing is None:
                standing = self._standing(held, now + rng.uniform(0.0, FIRST_WITHIN))
            if standing.due <= now:
                late.append((standing.due, held))
        return [held for _due, held in sorted(late, key=lambda entry: entry[0])]

    def _standing(self, held: HeldShard, due: float) -> _Standing:
        """The standing, now the newest; the one longest unheard of goes from a full book. One that left and comes back is remembered."""
        standing = self._standings.pop(held, None) or _Standing(due)
        self._standings[held] = standing
        while len(self._standings) > MAX_STANDINGS:
            self._standings.pop(next(iter(self._standings)))
        return standing


def together(due: Sequence[HeldShard]) -> dict[PeerId, list[list[HeldShard]]]:
    """The audits of each peer, to be made one after another: as many shards in one as it takes."""
    of_peer: dict[PeerId, list[HeldShard]] = {}
    for held in due:
        of_peer.setdefault(held.peer, []).append(held)
    most = limits.MAX_AUDIT_TARGETS
    return {peer: [shards[at : at + most] for at in range(0, len(shards), most)] for peer, shards in of_peer.items()}


def _jittered(seconds: float, rng: Random) -> float:
    return seconds * rng.uniform(0.75, 1.25)
