"""What this node's sessions left at stages of others: which tokens, in digests, so that the next turn of a conversation goes on there.

The whole history of a conversation comes with each of its turns. What its stages computed for it they may keep for a while; who knows
which tokens that was is the entry alone. It keeps no tokens after a reply, only a chain of digests under a key of this process, one
for each position (beyond DENSE for each STRIDE-th): digest p is of the first p tokens, so that what a new prompt has in common with them
ends exactly where the chains part. Scopes never meet: another model, precision or reader (node/gateway.py) has nothing in common, and a
session that went on from another takes its place. Rejected: digests that stages compare (they would learn whose prompts begin
alike, and who knows a prompt could ask whether it was there), and tokens kept here (nothing needs them).

Pure but for the key: `now` is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import msgspec
from blake3 import blake3

from protocol import limits
from protocol.messages import StageSpec

KEPT = 64
"""Sessions remembered."""
KEPT_SECONDS = 600.0
"""As long as stages keep what they computed (runtime/kv_pool.py)."""
WORTH = 32
"""Positions from which it is worth asking for."""
DENSE, STRIDE = 4_096, 64
DIGEST = 16
Scope = tuple[bytes, str, str]
"""(model, precision, reader)"""


@dataclass(frozen=True)
class Prefix:
    """The first `positions` of a prompt were computed by `session` over `stages`."""

    session: bytes
    stages: tuple[StageSpec, ...]
    positions: int


@dataclass(frozen=True)
class _Kept:
    scope: Scope
    stages: tuple[StageSpec, ...]
    digests: list[bytes]
    until: float


class KeptPrefixes:
    """`key` 32 random bytes of this process."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, scope: Scope, session: bytes, stages: Sequence[StageSpec], tokens: Sequence[int], now: float) -> None:
        """A session is over, all `tokens` went through all `stages`."""
        self._expire(now)
        if len(tokens) < WORTH:
            return
        self._kept[session] = _Kept(scope, tuple(stages), self._digests(scope, tokens), now + KEPT_SECONDS)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def find(self, scope: Scope, tokens: Sequence[int], now: float) -> Prefix | None:
        """The session with the most in common; the last token is always computed anew, for what follows it."""
        self._expire(now)
        mine = [(session, kept) for session, kept in self._kept.items() if kept.scope == scope]
        if not mine:
            return None
        digests = self._digests(scope, tokens[: min(len(tokens) - 1, limits.MAX_ARRAY)])
        common = {session: _common(kept.digests, digests) for session, kept in mine}
        session = max(reversed(common), key=lambda one: common[one])  # the latest of equals
        positions = _position(common[session])
        return Prefix(session, self._kept[session].stages, positions) if positions >= WORTH else None

    def forget(self, session: bytes) -> None:
        """It was gone on from: there is another in its place."""
        self._kept.pop(session, None)

    def _expire(self, now: float) -> None:
        for session in [session for session, kept in self._kept.items() if kept.until <= now]:
            del self._kept[session]

    def _digests(self, scope: Scope, tokens: Sequence[int]) -> list[bytes]:
        """Of the beginnings that end at each edge."""
        hasher, digests, at = blake3(msgspec.msgpack.encode(scope), key=self._key), list[bytes](), 0
        for edge in _edges(len(tokens)):
            hasher.update(b"".join(token.to_bytes(4, "little") for token in tokens[at:edge]))
            digests.append(hasher.digest(length=DIGEST))
            at = edge
        return digests


def _edges(count: int) -> chain[int]:
    return chain(range(1, min(count, DENSE) + 1), range(DENSE + STRIDE, count + 1, STRIDE))


def _position(edges: int) -> int:
    """Where the edge of that number lies, counted from 1."""
    return edges if edges <= DENSE else DENSE + (edges - DENSE) * STRIDE


def _common(one: Sequence[bytes], two: Sequence[bytes]) -> int:
    """How many digests are equal from the beginning; each stands for all before it."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[middle - 1] == two[middle - 1] else (low, middle - 1)
    return low
