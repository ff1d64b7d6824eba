"""Which groups this node repairs now. Pure: what it sees goes in, commands come out; `now` and `rng` are arguments.

The problem: many nodes see the same group lose shards, late and each a little differently; exactly one should read k shards, code the
missing ones and push them, and nobody is in charge.

The choice. A group is repaired when fewer than r = k + ceil((n-k)/2) of its shards count (`standing.py`), and then up to n at once, so
that one read of k pays for several columns. Its holders have an order by lot; the first claims the group, each further one waits one
more round, plus jitter, and does it if nobody has. A claim is a short-lived statement: who sees a better-placed one while its own
settles stands back, and a claim ends with its time, when its claimer stops answering, or when one claimer has held the group for
`longest_claim` without its getting better. Work runs under a bandwidth cap, those groups first that survive the fewest further losses;
a node that is busy doesn't claim, so the next in the order does; a group that can't be repaired now is put off by itself.
A shard that returns counts at once. What is then more than n is dropped last: long after, copies first, each by its own holder.

Rejected: a lock in the DHT (it is needed in a partition, and fails in one), and repairing each shard as it goes (k reads for each).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from erasure.durability import enough_durable
from erasure.forecast import chance_below_k, time_to_loss
from erasure.presence import Presence
from erasure.standing import Clocks, GroupView, Standing, comes_before, holds, missing, readable, repairers, spare_shard, standing

SLEPT = 5
"""Rounds without a look at a group after which what was remembered of it is of another time."""


@dataclass(frozen=True)
class Claim:
    """`peer` repairs `group` until `expires` (seconds, the clock of `now`). As a command: tell the swarm so."""

    group: bytes
    peer: str
    expires: float


@dataclass(frozen=True)
class Repair:
    """Read k shards of the group (none with a full holding), code `make`, push them to new holders, call `finished` or `failed`."""

    group: bytes
    make: tuple[int, ...]
    cost: int
    """Bytes it will move."""


@dataclass(frozen=True)
class Drop:
    """This node's copy of the shard is more than the group needs."""

    group: bytes
    shard: int


@dataclass(frozen=True)
class Alarm:
    """The group will probably fall below k before it is repaired. `chance` of that; `seconds` until it does, in the mean."""

    group: bytes
    survives: int
    chance: float
    seconds: float


Command = Claim | Repair | Drop | Alarm


@dataclass(frozen=True)
class Settings:
    """Seconds, and bytes a second. `round` is how often `plan` is called."""

    bandwidth: float = 4e6
    round: float = 60.0
    settle: float = 30.0
    linger: float = 300.0
    """A claim outlives its work by this, until everybody has seen the new holders."""
    longest_claim: float = 2_700.0
    retry: float = 120.0
    surplus_after: float = 12 * 3_600.0
    alarm_chance: float = 1e-3
    alarm_ahead: float = 900.0
    alarm_again: float = 3_600.0
    clocks: Clocks = field(default_factory=Clocks)


@dataclass
class _Episode:
    """From a group's falling below r until it is there again. `claims`: since when each peer was seen to claim it."""

    since: float
    jitter: float
    free_since: float
    """When nobody held it any more: from then on the order counts anew."""
    looked: float
    claimed: float | None = None
    working: float | None = None
    until: float = 0.0
    reserved: float = 0.0
    not_before: float = -math.inf
    tries: int = 0
    alarmed: float = -math.inf
    claims: dict[str, float] = field(default_factory=dict)


@dataclass
class _Look:
    """One group in one round."""

    view: GroupView
    stands: Standing
    presence: Presence
    now: float
    episode: _Episode
    claim: Claim | None = None
    """The claim of another that holds."""


class Repairer:
    """The policy of node `me`, with what it must remember between rounds."""

    def __init__(self, me: str, settings: Settings | None = None) -> None:
        self.me = me
        self.settings = settings or Settings()
        self._episodes: dict[bytes, _Episode] = {}
        self._surplus: dict[bytes, float] = {}
        self._free_at = -math.inf

    def plan(
        self, groups: Iterable[GroupView], presence: Presence, claims: Mapping[bytes, Sequence[Claim]], now: float, rng: random.Random
    ) -> list[Command]:
        """What to do now. `claims` are those of others (own ones are passed over), by group."""
        commands: list[Command] = []
        waiting: list[_Look] = []
        for view in groups:
            stands = standing(view, presence, now, self.settings.bandwidth, self.settings.clocks)
            if len(stands.counted) >= enough_durable(view.k, view.n):
                commands += self._spare(view, stands, presence, now)
                continue
            look = _Look(view, stands, presence, now, self._episode(view.group, now, rng))
            look.claim = self._claim_of_another(look, claims.get(view.group, ()))
            if look.claim is not None:
                look.episode.free_since = now
            commands += [*self._alarm(look), *self._go_on(look)]
            if self._my_turn(look):
                waiting.append(look)
        for look in sorted(waiting, key=lambda look: (len(look.stands.present) - look.view.k, look.episode.since, look.view.group)):
            commands += self._claim(look)
        return commands

    def finished(self, group: bytes, now: float) -> Claim:
        """The shards lie where they should. The claim to tell: it lingers until everybody can have seen them."""
        episode = self._episodes.get(group)
        if episode is not None:
            episode.claimed = episode.working = None
            episode.not_before = now + self.settings.linger
        return Claim(group, self.me, now + self.settings.linger)

    def failed(self, group: bytes, now: float, rng: random.Random) -> Claim:
        """Some or all shards couldn't be made. The claim to tell: it is over, the next may try. This node waits, longer each time."""
        episode = self._episodes.get(group)
        if episode is not None:
            episode.claimed = episode.working = None
            episode.tries += 1
            episode.not_before = now + self.settings.retry * 2 ** min(episode.tries - 1, 6) * (0.5 + rng.random())
        return Claim(group, self.me, now)

    def working(self) -> list[bytes]:
        """Groups whose `Repair` has neither finished nor failed."""
        return [group for group, episode in self._episodes.items() if episode.working is not None]

    def _episode(self, group: bytes, now: float, rng: random.Random) -> _Episode:
        self._surplus.pop(group, None)
        episode = self._episodes.get(group)
        slept = episode is not None and episode.working is None and now - episode.looked > SLEPT * self.settings.round
        if episode is None or slept:
            episode = self._episodes[group] = _Episode(now, rng.random() * self.settings.round / 2, now, now)
        episode.looked = now
        return episode

    def _spare(self, view: GroupView, stands: Standing, presence: Presence, now: float) -> list[Command]:
        """A healthy group: nothing to do, but for a surplus of long standing."""
        episode = self._episodes.get(view.group)
        if episode is not None and episode.working is None:
            del self._episodes[view.group]
        mine = spare_shard(self.me, view, presence, now) if len(stands.present) >= view.n else None
        if mine is None:
            self._surplus.pop(view.group, None)
            return []
        lasted = now - self._surplus.setdefault(view.group, now)
        return [Drop(view.group, mine)] if lasted >= self.settings.surplus_after else []

    def _claim_of_another(self, look: _Look, claims: Sequence[Claim]) -> Claim | None:
        """The best-placed claim that holds: not run out, by a holder that answers and hasn't had its time."""
        best: Claim | None = None
        for claim in claims:
            over = claim.peer == self.me or claim.expires <= look.now
            if over or look.presence.away(claim.peer, look.now) != 0.0 or not holds(claim.peer, look.view):
                continue
            first = look.episode.claims.setdefault(claim.peer, look.now)
            in_time = look.now - first <= self._longest(look.view)
            if in_time and (best is None or comes_before(look.view, claim.peer, best.peer, look.now)):
                best = claim
        return best

    def _go_on(self, look: _Look) -> list[Command]:
        """An own claim moves on: it is renewed while the work lasts, given up for a better one, or turned into work once it has settled."""
        episode, now = look.episode, look.now
        if episode.working is not None:
            if episode.until - now >= 2 * self.settings.round or now - episode.working >= self._longest(look.view):
                return []
            episode.until = now + 4 * self.settings.round
            return [Claim(look.view.group, self.me, episode.until)]
        if episode.claimed is None:
            return []
        if look.claim is not None and comes_before(look.view, look.claim.peer, self.me, now):
            episode.claimed = None
            self._free_at -= episode.reserved
        elif now - episode.claimed >= self.settings.settle:
            episode.working = now
            make = missing(look.view, look.stands)
            return [Repair(look.view.group, make, self._cost(look.view, len(make)))]
        return []

    def _my_turn(self, look: _Look) -> bool:
        """Nobody is at it, those before this node in the order have had their time, and the group can be read."""
        episode = look.episode
        if look.claim is not None or episode.claimed is not None or look.now < episode.not_before:
            return False
        if not readable(look.view, look.stands, look.presence, look.now):
            return False
        here = repairers(look.view, look.presence, look.now)
        before = sum(comes_before(look.view, peer, self.me, look.now) for peer in here if peer != self.me)
        waits = before * self.settings.round + (episode.jitter if before else 0.0)
        return self.me in here and look.now >= episode.free_since + waits

    def _claim(self, look: _Look) -> list[Command]:
        """Claims the group if this node's repair bandwidth isn't spoken for."""
        if self._free_at > look.now + self.settings.round / 2:
            return []
        episode, now = look.episode, look.now
        episode.claimed = now
        episode.reserved = self._cost(look.view, len(missing(look.view, look.stands))) / self.settings.bandwidth
        self._free_at = max(self._free_at, now) + episode.reserved
        episode.until = now + self.settings.settle + 2 * episode.reserved + 3 * self.settings.round
        return [Claim(look.view.group, self.me, episode.until)]

    def _longest(self, view: GroupView) -> float:
        """Seconds one claimer may hold the group: several times what a repair takes at this node's own bandwidth."""
        return max(self.settings.longest_claim, 3 * view.n * view.shard_bytes / self.settings.bandwidth)

    def _cost(self, view: GroupView, columns: int) -> int:
        reads = 0 if self.me in view.full else view.k - any(self.me in peers for peers in view.holders.values())
        return view.shard_bytes * (columns + reads)

    def _alarm(self, look: _Look) -> list[Command]:
        """Where the group will probably be lost first. One that nobody has taken on so far is expected to wait as long again."""
        episode, view = look.episode, look.view
        if look.now - episode.alarmed < self.settings.alarm_again:
            return []
        taken = look.claim is not None or episode.claimed is not None
        waits = 0.0 if taken else max(3 * self.settings.round, look.now - episode.since)
        seconds = self.settings.alarm_ahead + waits + self._cost(view, view.n - view.k) / self.settings.bandwidth
        rate = look.presence.leaving_rate(look.now)
        chance = chance_below_k(view.k, look.stands.safe, rate, seconds)
        if chance <= self.settings.alarm_chance:
            return []
        episode.alarmed = look.now
        return [Alarm(view.group, len(look.stands.present) - view.k, chance, time_to_loss(view.k, look.stands.safe, rate))]
