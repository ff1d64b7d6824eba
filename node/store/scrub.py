"""Reading what lies here again, to find rot before a reader does. Pure but for `verify`, which reads one shard.

Every shard comes round once a week, evenly spread, and never faster than the owner's rate. The order is that of the keys
from a random start, so that a node that is on for an hour a day gets to all of them in the end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from node.store.interface import ShardInfo, ShardKey, ShardStore
from node.store.leaf_check import first_bad_leaf
from node.store.leases import DAY
from protocol.errors import MfError

ROUND = 7 * DAY
DEFAULT_RATE = 1024 * 1024
"""Bytes a second; 0 switches scrubbing off."""


def following(infos: Sequence[ShardInfo], after: ShardKey | None) -> ShardInfo | None:
    """The shard whose turn it is; `infos` sorted by key. From the first again after the last."""
    if not infos:
        return None
    places = [(info.key.encoding, info.key.shard) for info in infos]
    at = 0 if after is None else bisect_right(places, (after.encoding, after.shard))
    return infos[at % len(infos)]


def pause(read: int, total: int, rate: int) -> float:
    """Seconds to wait after `read` bytes of `total` held, so that neither the rate is passed nor a round is shorter than a week."""
    return max(read / rate, ROUND * read / max(total, 1))


def verify(store: ShardStore, key: ShardKey) -> str | None:
    """Reads a shard whole; what is wrong with it in words (it is dropped then), None when every leaf is right."""
    reader = store.open_shard(key)
    if reader is None:
        if not store.has(key):
            return "not held"
        reason = "its file is gone"
    else:
        try:
            bad = first_bad_leaf(reader)
            if bad is None:
                return None
            reason = f"leaf {bad} has wrong bytes on the disk"
        except MfError as error:
            reason = str(error)
        finally:
            reader.close()
    store.drop_shard(key, reason)
    return reason
