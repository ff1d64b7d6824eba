"""The running account of one publish: which shards are durable where, and who refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.ids import PeerId


@dataclass
class Tally:
    """What became durable: `durable[group][shard]` is its holder."""

    k: int
    n: int
    durable: dict[int, dict[int, PeerId]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    stored_bytes: int = 0

    @property
    def enough(self) -> int:
        return self.k + -(-(self.n - self.k) // 2)

    def least(self) -> int:
        return min((len(set(held.values())) for held in self.durable.values()), default=0)

    def shards(self) -> int:
        return sum(len(held) for held in self.durable.values())

    def holders(self) -> set[PeerId]:
        return {peer for held in self.durable.values() for peer in held.values()}
