"""The running account of one publish: which shards are durable where, and who refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from erasure.durability import apart, enough_durable, survives_losses
from protocol.ids import EncodingId, PeerId


@dataclass
class Tally:
    """`durable[group][shard]` is its holder, found there or put there; `shard_bytes[group]` of one shard; `asked` whom this publish
    gave which shard of which encoding, or tried to; `n_max` for how many shards a fresh encoding has roots, n at least; `ended` the
    groups that are as durable as they get now; `reused[group]` the encoding that lay there for another model, `saved[group]` the bytes
    of its shards found there.

    Equal groups of a model are one group to the swarm: the second shares its dict with the first and has no bytes of its own.
    """

    k: int
    n: int
    n_max: int = 0
    durable: dict[int, dict[int, PeerId]] = field(default_factory=dict)
    shard_bytes: dict[int, int] = field(default_factory=dict)
    asked: set[tuple[PeerId, EncodingId, int]] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    refusals: dict[str, str] = field(default_factory=dict)
    reused: dict[int, EncodingId] = field(default_factory=dict)
    saved: dict[int, int] = field(default_factory=dict)

    @property
    def enough(self) -> int:
        return enough_durable(self.k, self.n)

    def nodes(self, group: int) -> int:
        """Nodes that hold a shard of the group."""
        return len(set(self.durable.get(group, {}).values()))

    def short(self) -> list[int]:
        """Groups for which too few nodes were found."""
        return sorted(group for group in self.ended if self.nodes(group) < self.enough)

    def least(self) -> int:
        return min(map(self.nodes, self.durable), default=0)

    def shards(self) -> int:
        return sum(len(held) for held in self.durable.values())

    def stored_bytes(self) -> int:
        return sum(size * len(self.durable[group]) for group, size in self.shard_bytes.items())

    def holders(self) -> set[PeerId]:
        return {peer for held in self.durable.values() for peer in held.values()}

    def survives_losses(self, domains: Mapping[str, str]) -> int:
        """As status tells it, from what is durable: never below 0."""
        lying = ({shard: [domains.get(peer, peer)] for shard, peer in held.items()} for held in self.durable.values())
        return max(0, survives_losses((apart(shards) for shards in lying), self.k))
