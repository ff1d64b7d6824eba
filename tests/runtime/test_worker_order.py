"""What a worker does first: a pass before it spells, where that is soon over."""

from __future__ import annotations

import socket
from typing import Any

import msgspec
import pytest

from protocol.errors import NotFound
from runtime.worker import Server
from runtime.worker_channel import Request, WorkerChannel

NOTHING = msgspec.Raw(msgspec.msgpack.encode(None))


class Engine:
    """`log` of what was done."""

    def __init__(self, brief: bool) -> None:
        self.brief, self.crowded, self.working = brief, False, False
        self.log: list[str] = []

    def step(self) -> None:
        self.log.append("pass")
        self.working = False


@pytest.fixture
def channel() -> Any:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        yield WorkerChannel(mine)


def served(channel: WorkerChannel, brief: bool) -> tuple[Server, Engine]:
    server, engine = Server(channel), Engine(brief)

    def spell(_params: object) -> None:
        engine.log.append("spelled")

    def lost(_params: object) -> None:
        raise NotFound("gone")

    server._engine = engine
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Any)
    server._kinds = {"decode_text": (decoder, spell), "encode_chat": (decoder, lost)}
    return server, engine


@pytest.mark.parametrize(("brief", "order"), [(True, ["pass", "spelled", "spelled"]), (False, ["spelled", "spelled", "pass"])])
def test_a_token_is_spelled_after_a_brief_pass(channel: WorkerChannel, brief: bool, order: list[str]) -> None:
    server, engine = served(channel, brief)
    engine.working = True
    for number in (1, 2):
        server.serve(Request(number, "decode_text", NOTHING, []))
    server.step()
    assert engine.log == order
    server.catch_up()
    assert engine.log == order, "each is answered once"


def test_nothing_waits_where_nothing_is_computed(channel: WorkerChannel) -> None:
    server, engine = served(channel, brief=True)
    server.serve(Request(1, "decode_text", NOTHING, []))
    assert engine.log == ["spelled"]


def test_what_was_put_aside_is_answered_though_the_pass_is_given_up(channel: WorkerChannel) -> None:
    server, engine = served(channel, brief=True)
    engine.working = True
    server.serve(Request(1, "decode_text", NOTHING, []))
    engine.working = False
    server.catch_up()
    assert engine.log == ["spelled"]


def test_others_are_answered_at_once(channel: WorkerChannel) -> None:
    server, engine = served(channel, brief=True)
    engine.working = True
    server.serve(Request(1, "encode_chat", NOTHING, []))
    assert engine.log == []
    assert not server._aside
