"""Who served wrong bytes: what is set aside, who is banned and for how long. Pure.

One bad shard is a bad disk: that shard is set aside and its holder told. Three different bad shards, or the
same one again after that, are a fault of the peer: a ban of an hour, doubled each time, and the count of
bans halves with each quiet day. Only wrong bytes count here, never a timeout.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from protocol.ids import EncodingId, PeerId, encoding_text

BAN = 3_600.0
LONGEST_BAN = 7 * 86_400.0
DECAY = 86_400.0
SHARDS_TO_BAN = 3
REPEAT_AFTER = 60.0
"""Seconds after which the same bad shard is a repeat and not a request that was already under way."""
SET_ASIDE = 86_400.0
MAX_SHOWN = 256
MAX_PEERS = 4_096


@dataclass
class _Account:
    shards: dict[str, float] = field(default_factory=dict)
    bans: int = 0
    until: float = 0.0
    last: float = 0.0


class Reputation:
    def __init__(self) -> None:
        self._accounts: dict[PeerId, _Account] = {}
        self._shown: deque[dict[str, Any]] = deque(maxlen=MAX_SHOWN)

    def blame(self, peer: PeerId, shard: str, reason: str, now: float) -> bool:
        """Notes wrong bytes of `shard` (`shard_text`); True when this begins a ban."""
        self._shown.append({"peer_id": peer, "shard": shard, "reason": reason[:256], "at": now})
        account = self._account(peer)
        account.bans >>= min(32, int((now - account.last) / DECAY)) if account.last else 0
        before = account.shards.get(shard)
        account.shards = {name: at for name, at in account.shards.items() if now - at < SET_ASIDE}
        account.last = now
        repeated = before is not None and now - before >= REPEAT_AFTER
        account.shards[shard] = now
        if now < account.until or not (repeated or len(account.shards) >= SHARDS_TO_BAN):
            return False
        account.until = now + min(LONGEST_BAN, BAN * 2 ** min(account.bans, 16))
        account.bans += 1
        return True

    def banned(self, peer: PeerId, now: float) -> bool:
        account = self._accounts.get(peer)
        return account is not None and now < account.until

    def set_aside(self, encoding: EncodingId, shard: int, peer: PeerId, now: float) -> bool:
        """Whether this peer's copy of the shard has proved bad lately."""
        account = self._accounts.get(peer)
        at = account.shards.get(shard_text(encoding, shard)) if account else None
        return at is not None and now - at < SET_ASIDE

    def blamed(self) -> list[dict[str, Any]]:
        """The last 256 findings: peer_id, shard, reason, at (Unix seconds)."""
        return [dict(entry) for entry in self._shown]

    def _account(self, peer: PeerId) -> _Account:
        account = self._accounts.pop(peer, None) or _Account()
        self._accounts[peer] = account
        while len(self._accounts) > MAX_PEERS:
            self._accounts.pop(next(iter(self._accounts)))
        return account


def shard_text(encoding: EncodingId, shard: int) -> str:
    """How a shard is named to people: `mfe1…/3`."""
    return f"{encoding_text(encoding)}/{shard}"
