"""Grants asked for ahead: one question for many groups, each given out once, and no second wait for who is silent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from node.grant_book import GrantBook
from node.transfer import jobs
from protocol import limits
from protocol.errors import DeadlineExceeded, MfError, NotFound
from protocol.framing import unpack
from protocol.ids import EncodingId, PeerId
from protocol.messages import GrantAsk, GrantReply, GrantRequest, refusal_frame, reply_frame

PEER = PeerId("12D3KooWPeer")
IDS = [EncodingId(bytes([number]) * 32) for number in range(4)]
TLS = bytes(32)


class Pool:
    """A peer that holds the encodings of `held`; `error` instead of an answer."""

    def __init__(self) -> None:
        self.requests: list[GrantRequest] = []
        self.held = set(IDS[:3])
        self.error: MfError | None = None

    async def ask(self, peer: PeerId, frame: bytes, timeout: float) -> bytes:
        request = unpack(frame, GrantRequest, "request")
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        if request.encoding not in self.held:
            return refusal_frame(NotFound("not here"))
        also = [ask.encoding if ask.encoding in self.held else None for ask in request.also or []]
        return reply_frame(GrantReply(grant=request.encoding, urls=["https://h:1"], tls=TLS, also=also or None))

    async def close(self) -> None:
        """Nothing is open."""


class Swarm:
    def __init__(self) -> None:
        self.suspected: list[PeerId] = []

    def suspect(self, peer: PeerId, reason: str) -> None:
        self.suspected.append(peer)


class Network:
    peer_id = PeerId("me")


def book_with(pool: Pool, swarm: Swarm) -> GrantBook:
    network: Any = Network()
    state: Any = swarm
    desk: Any = None
    book = GrantBook(network, state, desk)
    book._gets = book._puts = pool  # type: ignore[assignment]
    return book


async def test_one_question_for_many_groups_and_each_answer_given_once() -> None:
    pool = Pool()
    book = book_with(pool, Swarm())
    book.expect(PEER, [GrantAsk(name, [1]) for name in IDS])
    book.expect(PEER, [GrantAsk(IDS[1], [1])])
    first = await book.to_get(PEER, IDS[0], [1])
    assert (first.grant, first.tls, len(pool.requests)) == (IDS[0], TLS, 1)
    taken = book.in_store(PEER, IDS[1])
    assert taken is not None
    assert (taken.grant, taken.urls) == (IDS[1], ["https://h:1"])
    assert book.in_store(PEER, IDS[1]) is None
    assert not book.expected(PEER, IDS[1])
    assert (await book.to_get(PEER, IDS[1], [1])).grant == IDS[1]
    assert len(pool.requests) == 2
    with pytest.raises(NotFound):
        await book.to_get(PEER, IDS[3], [1])
    await book.close()


async def test_a_grant_too_old_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    book = book_with(pool, Swarm())
    book.expect(PEER, [GrantAsk(IDS[0], [1])])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    now = book._now()
    monkeypatch.setattr(GrantBook, "_now", staticmethod(lambda: now + jobs.GRANT_KEPT + 1))
    assert book.in_store(PEER, IDS[0]) is None
    assert (await book.to_get(PEER, IDS[0], [1])).grant == IDS[0]
    assert len(pool.requests) == 2
    assert jobs.GRANT_KEPT < limits.GRANT_OPEN_WITHIN / 2


async def test_who_is_silent_is_waited_for_once() -> None:
    pool, swarm = Pool(), Swarm()
    book = book_with(pool, swarm)
    pool.error = DeadlineExceeded("no answer")
    book.expect(PEER, [GrantAsk(name, [1]) for name in IDS])
    with pytest.raises(DeadlineExceeded):
        await book.to_get(PEER, IDS[0], [1])
    assert (len(pool.requests), swarm.suspected) == (1, [PEER])
    pool.error = None
    assert (await book.to_get(PEER, IDS[0], [1])).grant == IDS[0]
