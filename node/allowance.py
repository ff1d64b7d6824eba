"""How much strangers may store here. Pure: what lies here and what was promised in, an error or none out.

All strangers together get a quarter of what is lent, and the models of one publisher a tenth, so that the first comer doesn't take it
all. Whose a shard is says the signature on its encoding, not who brought it: somebody else may have repaired it. A fresh key is a
fresh publisher, so the quarter is what bounds an attacker; the tenth keeps honest strangers from each other's way.

A grant that is given out but not used yet counts as used until it would lapse: else a thousand grants asked at once would each fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from node.store.interface import ShardInfo, ShardKey
from protocol.errors import StorageFull
from protocol.ids import PeerId

STRANGERS_SHARE = 0.25
PUBLISHER_SHARE = 0.10
LAPSES = 600.0
"""Seconds for which the transfer process expects a put that was granted."""
MAX_PROMISED = 65_536


@dataclass(frozen=True)
class Promised:
    owner: PeerId
    bytes: int
    until: float


class Allowance:
    """`clock` is monotonic seconds; `trusted` whose shards aren't a stranger's."""

    def __init__(self, trusted: Callable[[PeerId], bool], clock: Callable[[], float]) -> None:
        self._trusted = trusted
        self._clock = clock
        self._promised: dict[ShardKey, Promised] = {}

    def check(self, owner: PeerId, size: int, quota: int, shards: Iterable[ShardInfo]) -> None:
        """`StorageFull` when `size` bytes more of this stranger's are more than strangers, or one publisher, may have."""
        of_strangers = self._of_strangers(shards)
        if sum(of_strangers.values()) + size > quota * STRANGERS_SHARE:
            raise StorageFull("what this node lends to strangers is full", hint="ask its owner for trust (mf-node trust)")
        if of_strangers.get(owner, 0) + size > quota * PUBLISHER_SHARE:
            raise StorageFull(
                "what this node lends to one publisher it doesn't know is full", hint="let more nodes join, or ask its owner for trust"
            )

    def promise(self, key: ShardKey, owner: PeerId, size: int) -> None:
        now = self._clock()
        if len(self._promised) >= MAX_PROMISED:
            self._promised = {key: promised for key, promised in self._promised.items() if promised.until > now}
        self._promised[key] = Promised(owner, size, now + LAPSES)

    def withdraw(self, key: ShardKey) -> None:
        """It came, or won't."""
        self._promised.pop(key, None)

    def _of_strangers(self, shards: Iterable[ShardInfo]) -> dict[PeerId, int]:
        """Bytes by publisher: what lies here, and what was promised and hasn't come."""
        taken: dict[PeerId, int] = {}
        now, here = self._clock(), set()
        for info in shards:
            here.add(info.key)
            taken[PeerId(info.owner)] = taken.get(PeerId(info.owner), 0) + info.bytes
        for key, promised in self._promised.items():
            if key not in here and promised.until > now:
                taken[promised.owner] = taken.get(promised.owner, 0) + promised.bytes
        return {owner: size for owner, size in taken.items() if not self._trusted(owner)}
