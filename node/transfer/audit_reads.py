"""What an audit makes a holder read: the walk over its leaves, then the leaves shown. Blocks; runs where files are read.

A holder checks what it reads against its own leaf lists. A shard gone bad on its disk is dropped on the spot and said to be missing,
which it is: no node accuses itself. Audits don't renew leases: nobody wanted the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from node.store.interface import ShardKey, ShardReader, ShardStore
from node.store.scrub import verify
from protocol import limits
from protocol.audits import Walk
from protocol.encoding import leaf_count
from protocol.errors import NotFound
from protocol.framing import Record
from protocol.ids import digest

READ_AHEAD_LEAVES = 512
"""Up to so many leaves in all a disk reads the shards whole sooner than leaf by leaf."""


class Walked(Record):
    """`missing` numbers the shards asked for that aren't held; `tags` of the others, whose bytes are `lengths`. `lost`: models of
    those that were held until this walk."""

    tags: bytes
    missing: list[int]
    lengths: list[int]
    lost: list[bytes]


class Shown(Record):
    """Leaf lists of the shards, each once in the order of their first leaf asked; and the leaves."""

    lists: list[bytes]
    leaves: list[bytes]


class _Rotten(Exception):
    def __init__(self, shard: int) -> None:
        super().__init__(shard)
        self.shard = shard


def walk(store: ShardStore, nonce: bytes, keys: Sequence[ShardKey], steps: int) -> Walked:
    """Walks over those of the shards that are held and good."""
    missing: set[int] = set()
    lost: list[bytes] = []
    while True:
        try:
            left = [(number, key) for number, key in enumerate(keys) if number not in missing]
            tags, lengths = _walk_once(store, nonce, left, steps)
            absent = [number for number in range(len(keys)) if number not in lengths]
            return Walked(tags=tags, missing=absent, lengths=[lengths[number] for number in sorted(lengths)], lost=lost)
        except _Rotten as bad:
            lost += [info.model for info in store.list_shards() if info.key == keys[bad.shard]]
            verify(store, keys[bad.shard])
            missing.add(bad.shard)


def _walk_once(store: ShardStore, nonce: bytes, keys: Sequence[tuple[int, ShardKey]], steps: int) -> tuple[bytes, dict[int, int]]:
    """The tags, and the lengths of the shards held by their numbers."""
    with ExitStack() as stack:
        held: list[tuple[int, ShardReader, bytes]] = []
        for number, key in keys:
            reader = store.open_shard(key)
            if reader is not None:
                stack.callback(reader.close)
                if reader.length:
                    held.append((number, reader, reader.leaves()))
        _read_ahead([reader for _number, reader, _list in held])

        def read(target: int, leaf: int) -> bytes:
            number, reader, listed = held[target]
            data = reader.read(leaf * limits.LEAF, limits.LEAF)
            if digest(data) != listed[32 * leaf : 32 * leaf + 32]:
                raise _Rotten(number)
            return data

        tags = Walk(nonce, [reader.length for _number, reader, _list in held], steps).go(read)
        return tags, {number: reader.length for number, reader, _list in held}


def _read_ahead(readers: Sequence[ShardReader]) -> None:
    if sum(leaf_count(reader.length) for reader in readers) <= READ_AHEAD_LEAVES:
        for reader in readers:
            reader.will_read(0, reader.length)


def show(store: ShardStore, places: Sequence[tuple[ShardKey, int]]) -> Shown:
    """The leaves at (shard, leaf number); `NotFound` when a shard isn't held any more, or has gone bad since the walk."""
    lists: dict[ShardKey, bytes] = {}
    leaves: list[bytes] = []
    for key, leaf in places:
        reader = store.open_shard(key)
        if reader is None:
            raise NotFound("the shard walked over isn't held any more")
        try:
            lists[key] = lists.get(key) or reader.leaves()
            data = reader.read(leaf * limits.LEAF, limits.LEAF)
            if digest(data) != lists[key][32 * leaf : 32 * leaf + 32]:
                raise NotFound("the shard walked over has gone bad")
            leaves.append(data)
        finally:
            reader.close()
    return Shown(lists=list(lists.values()), leaves=leaves)
