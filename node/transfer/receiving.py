"""A shard put by a peer, from its grant to its acknowledgement: what is the same whoever reads the line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

from node.store.interface import ShardInfo, ShardKey, ShardStore
from node.transfer.admission import ExpectedPuts, Grants
from node.transfer.intake import Body, Rooms, Shapes, take_in
from protocol.errors import BadInput, TooLarge
from protocol.grants import grant_from_header

Stored = Callable[[ShardInfo], Awaitable[None]]


class Receiving:
    """`stored` is awaited after a put is durable, before it is acknowledged."""

    def __init__(self, store: ShardStore, executor: Executor, grants: Grants, expected: ExpectedPuts, stored: Stored) -> None:
        self._store, self._executor, self._grants, self._expected, self._stored = store, executor, grants, expected, stored
        self._shapes = Shapes(store, executor)
        self._rooms = Rooms()

    async def take(self, key: ShardKey, grant: str, length: int | None, body: Body) -> ShardInfo:
        """The shard, durable once this returns; `length` is what the request says of its body. On any error nothing stays behind."""
        opened = self._grants.admit(grant_from_header(grant), "put", key)
        put = self._expected.find(key)
        shape = await self._shapes.of(key.encoding)
        _check_length(length, shape.body_bytes)
        self._grants.charge(opened, shape.shard_bytes)
        try:
            info = await take_in(self._store, self._executor, self._rooms, put, shape, body)
        except BaseException:
            self._grants.refund(opened, shape.shard_bytes)
            raise
        self._expected.done(key)
        await self._stored(info)
        return info


def _check_length(length: int | None, expected: int) -> None:
    if length is None:
        raise BadInput("a put needs a Content-Length")
    if length > expected:
        raise TooLarge(f"the body has {length} bytes, leaf list and shard have {expected}")
    if length != expected:
        raise BadInput(f"the body has {length} bytes, leaf list and shard have {expected}")
