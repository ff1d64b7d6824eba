"""A repair under way: read k shards, code, push each missing one to a new holder. Any node of it may go meanwhile.

Rates are constant: the repairer moves at most its cap, each source at most half of its upload. What was moved counts, whatever comes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from erasure.placement import Placement
from erasure.repair import Repair
from tests.simulator.groups import SimGroup
from tests.simulator.nodes import SimNode, round_trip

if TYPE_CHECKING:
    from tests.simulator.swarm import SimSwarm

CANDIDATES = 48
TRIES = 4


class Job:
    def __init__(self, swarm: SimSwarm, node: SimNode, group: SimGroup, order: Repair) -> None:
        self._swarm, self._node, self._group, self._order = swarm, node, group, order
        self._rate = min(swarm.scenario.cap, node.up_rate)
        self._left = list(order.make)
        self._tries = 0
        self._refused: set[str] = set()

    def start(self) -> None:
        swarm, group = self._swarm, self._group
        swarm.result.repairs += 1
        swarm.result.doubled += any(node.up for node in group.at_work)
        group.at_work.append(self._node)
        self._read(group.k - (group.number in self._node.shards))

    def _reachable(self, other: SimNode) -> bool:
        return other.up and not (self._swarm.cut and other.side != self._node.side)

    def _sources(self) -> list[SimNode]:
        """A holder that can be read from of each shard, the nearest."""
        nearest = []
        for nodes in self._group.holders.values():
            usable = [node for node in nodes if node is not self._node and self._reachable(node)]
            if usable:
                nearest.append(min(usable, key=lambda node: round_trip(self._node, node)))
        return sorted(nearest, key=lambda node: round_trip(self._node, node) + self._group.shard_bytes / node.up_rate)

    def _read(self, wanted: int) -> None:
        sources = self._sources()[:wanted]
        if len(sources) < wanted:
            self._end(False)
            return
        size = self._group.shard_bytes
        slowest = max((round_trip(self._node, source) + 2 * size / source.up_rate for source in sources), default=0.0)

        def done() -> None:
            self._swarm.moved(read=wanted * size, wasted=0 if self._node.up else wanted * size)
            lost = sum(not self._reachable(source) for source in sources)
            if not self._node.up:
                self._end(False)
            elif lost and self._tries < TRIES:
                self._tries += 1
                self._read(lost)
            else:
                self._push_all()

        self._swarm.events.after(max(slowest, wanted * size / self._rate), done)

    def _push_all(self) -> None:
        """Homes for the shards that are left, one after another."""
        swarm, group = self._swarm, self._group
        if not self._left or self._tries > TRIES:
            self._end(not self._left)
            return
        holding = {name for peers in group.seen_by(self._node, swarm.events.now).holders.values() for name in peers} | {self._node.name}
        known = [*swarm.some_up(CANDIDATES, self._node), *(swarm.by_name[name] for name in holding)]
        placement = Placement(node.candidate() for node in known)
        homes = placement.choose(group.name, group.n, k=group.k, beside=holding, without=self._refused, shards=self._left)
        pairs = [(shard, swarm.by_name[peer]) for shard, peer in homes]
        self._tries += 1
        self._push(pairs)

    def _push(self, pairs: list[tuple[int, SimNode]]) -> None:
        if not pairs:
            self._push_all()
            return
        (shard, target), rest = pairs[0], pairs[1:]
        if self._group.number in target.shards or not self._reachable(target):
            self._refused.add(target.name)  # before a byte is sent
            self._push(rest)
            return
        size = self._group.shard_bytes

        def done() -> None:
            arrived = self._node.up and self._reachable(target) and self._group.number not in target.shards
            self._swarm.moved(written=size, wasted=0 if arrived else size)
            if not self._node.up:
                self._end(False)
                return
            if arrived:
                self._left.remove(shard)
                self._swarm.put(self._group, shard, target)
            self._push(rest)

        self._swarm.events.after(round_trip(self._node, target) + size / self._rate, done)

    def _end(self, well: bool) -> None:
        swarm, now = self._swarm, self._swarm.events.now
        self._group.at_work.remove(self._node)
        swarm.result.failed += not well
        policy = swarm.policy(self._node)
        claim = policy.finished(self._order.group, now) if well else policy.failed(self._order.group, now, swarm.rng)
        if self._node.up:
            swarm.tell_claim(self._group, claim, self._node)
