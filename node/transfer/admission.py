"""Who may move which bytes: opened grants, and puts that the node said to expect. No I/O.

A grant is opened once, within 60 s of its issue, and then admits Ranges until its bytes are moved or it lay idle for
10 minutes. Forgetting an idle one is safe against replay, because by then it can't be opened any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.store.interface import ShardKey
from protocol.errors import Busy, Forbidden
from protocol.grants import Grant, open_grant
from protocol.ids import ModelId, PeerId, digest, encoding_text

IDLE = 600.0
MAX_OPEN = 16_384
MAX_EXPECTED = 65_536


@dataclass
class OpenGrant:
    """`moved` counts shard bytes (not leaf lists and signatures) against `max_bytes`."""

    grant: Grant
    used_at: float
    moved: int = 0


class Grants:
    """`clock` is monotonic seconds, `wall` Unix seconds."""

    def __init__(self, server: PeerId, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._server, self._clock, self._wall = server, clock, wall
        self._open: dict[bytes, OpenGrant] = {}
        self._nonces: set[bytes] = set()

    def admit(self, data: bytes, verb: str, key: ShardKey) -> OpenGrant:
        """The grant, opened or already open; `Forbidden` when it doesn't cover this; `Busy` when too many are open."""
        grant = self._find(data) or self._first(data)
        listed = grant.grant
        if listed.verb != verb or listed.encoding != key.encoding or key.shard not in listed.shards:
            raise Forbidden(
                f"the grant doesn't cover {verb} of shard {key.shard} of {encoding_text(key.encoding)}", hint="ask for one that does"
            )
        grant.used_at = self._clock()
        return grant

    def _find(self, data: bytes) -> OpenGrant | None:
        grant = self._open.get(digest(data))
        if grant is not None and self._clock() - grant.used_at > IDLE:
            raise Forbidden("the grant lay idle for over 10 min", hint="ask for a new one")
        return grant

    def _first(self, data: bytes) -> OpenGrant:
        grant = open_grant(data, self._server, self._wall())
        if grant.nonce in self._nonces:
            raise Forbidden("the grant's nonce was used before")
        if len(self._open) >= MAX_OPEN:
            self._forget_idle()
        opened = self._open[digest(data)] = OpenGrant(grant, self._clock())
        self._nonces.add(grant.nonce)
        return opened

    def _forget_idle(self) -> None:
        end = self._clock() - IDLE
        self._open = {name: grant for name, grant in self._open.items() if grant.used_at > end}
        self._nonces = {grant.grant.nonce for grant in self._open.values()}
        if len(self._open) >= MAX_OPEN:
            raise Busy(f"{MAX_OPEN} grants are open at this node", hint="try again in a minute")

    @staticmethod
    def charge(grant: OpenGrant, size: int) -> None:
        """Counts bytes about to move; give back what didn't move by `refund`."""
        if grant.moved + size > grant.grant.max_bytes:
            raise Forbidden(
                f"the grant is for {grant.grant.max_bytes} bytes, {grant.moved} are moved and {size} asked", hint="ask for a new one"
            )
        grant.moved += size

    @staticmethod
    def refund(grant: OpenGrant, size: int) -> None:
        grant.moved -= size


@dataclass(frozen=True)
class ExpectedPut:
    key: ShardKey
    model: ModelId
    group: int
    owner: str


class ExpectedPuts:
    """What the node gave put grants for, for 10 minutes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._puts: dict[ShardKey, tuple[float, ExpectedPut]] = {}

    def expect(self, put: ExpectedPut) -> None:
        now = self._clock()
        if len(self._puts) >= MAX_EXPECTED:
            self._puts = {key: kept for key, kept in self._puts.items() if kept[0] > now}
        if len(self._puts) >= MAX_EXPECTED:
            raise Busy(f"{MAX_EXPECTED} puts are awaited at this node", hint="try again later")
        self._puts[put.key] = (now + IDLE, put)

    def find(self, key: ShardKey) -> ExpectedPut:
        until, put = self._puts.get(key, (0.0, None))
        if put is None or until <= self._clock():
            raise Forbidden(f"no put of shard {key.shard} of {encoding_text(key.encoding)} is expected here", hint="ask for a new grant")
        return put

    def withdraw(self, key: ShardKey, owner: str) -> ModelId | None:
        """The model of a put that `owner` won't make after all; None when it was to make none."""
        _, put = self._puts.get(key, (0.0, None))
        if put is None or put.owner != owner:
            return None
        self.done(key)
        return put.model

    def models(self) -> set[ModelId]:
        """Those of which shards are still awaited."""
        now = self._clock()
        return {put.model for until, put in self._puts.values() if until > now}

    def done(self, key: ShardKey) -> None:
        self._puts.pop(key, None)
