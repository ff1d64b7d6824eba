"""A node that lies in audits, for tests: `LIE=noise` shows made-up bytes, `LIE=missing` announces shards and says that it holds none.

It runs as `python -m tests.swarm.liar` and is an honest node in all else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from node.__main__ import main
from node.store.interface import ShardKey
from node.transfer.audit_reads import Shown, Walked
from node.transfer.remote import Transfer
from protocol import limits
from protocol.audits import Walk

_honest_show = Transfer.audit_show


async def walk(self: Transfer, nonce: bytes, keys: Sequence[ShardKey], steps: int) -> Walked:
    if os.environ["LIE"] == "missing":
        return Walked(tags=b"", missing=list(range(len(keys))), lengths=[], lost=[])
    lengths = [length or 1 for length in await self.shard_lengths(keys)]
    return Walked(tags=Walk(nonce, lengths, steps).go(lambda target, leaf: b"noise"), missing=[], lengths=lengths, lost=[])


async def show(self: Transfer, places: Sequence[tuple[ShardKey, int]]) -> Shown:
    true = await _honest_show(self, places)
    return Shown(lists=true.lists, leaves=[bytes(limits.LEAF) for _ in places])


Transfer.audit_walk = walk  # type: ignore[method-assign]
Transfer.audit_show = show  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
