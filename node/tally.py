"""The running account of one publish: which shards are durable where, and who refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.ids import EncodingId, PeerId


@dataclass
class Tally:
    """What became durable: `durable[group][shard]` is its holder; `asked` whom this publish gave which shard of which encoding,
    or tried to; `ended` the groups that are as durable as they get now.
    """

    k: int
    n: int
    durable: dict[int, dict[int, PeerId]] = field(default_factory=dict)
    asked: set[tuple[PeerId, EncodingId, int]] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    refusals: dict[str, str] = field(default_factory=dict)
    stored_bytes: int = 0

    @property
    def enough(self) -> int:
        return self.k + -(-(self.n - self.k) // 2)

    def nodes(self, group: int) -> int:
        return len(set(self.durable.get(group, {}).values()))

    def short(self) -> list[int]:
        """Groups for which too few nodes were found."""
        return sorted(group for group in self.ended if self.nodes(group) < self.enough)

    def least(self) -> int:
        return min((len(set(held.values())) for held in self.durable.values()), default=0)

    def shards(self) -> int:
        return sum(len(held) for held in self.durable.values())

    def holders(self) -> set[PeerId]:
        return {peer for held in self.durable.values() for peer in held.values()}
