"""Requests: somewhere in the swarm a node reads a group from k of its holders, the fastest it knows."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.simulator.nodes import SimNode, round_trip
from tests.simulator.scenario import HOUR

if TYPE_CHECKING:
    from tests.simulator.swarm import SimSwarm

UNAWARE = 10.0
"""Seconds for which readers still ask a holder that went away."""

HEDGE = 0.5
"""Seconds until a reader asks another holder in place of one that is silent."""

DEADLINE = 60.0


class Requests:
    def __init__(self, swarm: SimSwarm, rng: random.Random) -> None:
        self._swarm = swarm
        self._rng = rng

    def begin(self) -> None:
        if self._swarm.scenario.reads > 0:
            self._swarm.events.after(self._rng.expovariate(self._swarm.scenario.reads / HOUR), self._one)

    def _one(self) -> None:
        swarm, reads = self._swarm, self._swarm.result.reads
        self.begin()
        seconds = self._read(self._rng.choice(swarm.up), self._rng.randrange(len(swarm.groups)))
        reads.asked += 1
        if seconds is not None and seconds <= DEADLINE:
            reads.served += 1
            reads.seconds.append(seconds)

    def _read(self, reader: SimNode, number: int) -> float | None:
        """Seconds until k shards are there; None where fewer can be reached. What isn't heard of yet isn't read from."""
        swarm, group = self._swarm, self._swarm.groups[number]
        now = swarm.events.now
        view = group.seen_by(reader, now)
        share = reader.down_rate / group.k
        arrive, silent = [], 0
        for shard, peers in view.holders.items():
            nodes = [swarm.by_name[peer] for peer in peers]
            usable = [node for node in nodes if node.up and not (swarm.cut and node.side != reader.side)]
            if usable:
                arrive.append(min(round_trip(reader, node) + group.shard_bytes / min(node.up_rate, share) for node in usable))
            elif shard < group.k and any(now - node.changed < UNAWARE for node in nodes):
                silent += 1
        if len(arrive) < group.k:
            return None
        return sorted(arrive)[group.k - 1] + HEDGE * bool(silent)
