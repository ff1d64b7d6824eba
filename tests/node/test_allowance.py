from __future__ import annotations

import pytest

from node.allowance import LAPSES, PUBLISHER_SHARE, STRANGERS_SHARE, Allowance
from node.store.interface import ShardInfo, ShardKey
from protocol.errors import StorageFull
from protocol.ids import EncodingId, ModelId, PeerId

QUOTA = 100_000
ANN, BOB, FRIEND = PeerId("ann"), PeerId("bob"), PeerId("friend")


def key(number: int) -> ShardKey:
    return ShardKey(EncodingId(number.to_bytes(32, "big")), 0)


def shard(number: int, owner: PeerId, size: int) -> ShardInfo:
    return ShardInfo(key(number), ModelId(bytes(32)), 0, size, 0.0, owner)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def allowance(clock: Time | None = None) -> Allowance:
    return Allowance(lambda peer: peer == FRIEND, clock or Time())


def test_one_publisher_gets_a_tenth_and_all_together_a_quarter() -> None:
    tenth, quarter = int(QUOTA * PUBLISHER_SHARE), int(QUOTA * STRANGERS_SHARE)
    lying = [shard(1, ANN, tenth - 10)]
    allowance().check(ANN, 10, QUOTA, lying)
    with pytest.raises(StorageFull, match="one publisher"):
        allowance().check(ANN, 11, QUOTA, lying)
    others = [shard(number, PeerId(f"other {number}"), tenth // 2) for number in range(10, 15)]
    left = quarter - sum(info.bytes for info in others)
    allowance().check(BOB, left, QUOTA, others)
    with pytest.raises(StorageFull, match="strangers"):
        allowance().check(BOB, left + 1, QUOTA, others)


def test_what_trusted_publishers_have_here_doesnt_count() -> None:
    allowance().check(ANN, 1_000, QUOTA, [shard(1, FRIEND, QUOTA // 2)])


def test_grants_not_used_yet_count_until_they_lapse_come_or_are_withdrawn() -> None:
    clock = Time()
    book = allowance(clock)
    size = int(QUOTA * PUBLISHER_SHARE) // 2
    for number in (1, 2):
        book.check(ANN, size, QUOTA, [])
        book.promise(key(number), ANN, size)
    with pytest.raises(StorageFull):
        book.check(ANN, size, QUOTA, [])
    with pytest.raises(StorageFull):
        book.check(ANN, size, QUOTA, [shard(1, ANN, size)])
    book.withdraw(key(2))
    book.check(ANN, size, QUOTA, [shard(1, ANN, size)])
    book.promise(key(2), ANN, size)
    clock.now = LAPSES
    book.check(ANN, size, QUOTA, [shard(1, ANN, size)])
