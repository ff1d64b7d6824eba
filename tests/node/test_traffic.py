"""Bytes of one request: its own streams and steps, whatever else the node does beside it."""

from __future__ import annotations

import asyncio

from node.network.interface import Stream
from node.network.memory import MemoryHub
from node.traffic import CountedNetwork, counting, current, note
from protocol.ids import PeerId
from protocol.messages import StepHead, step_frame
from tests.node.pipeline_fakes import members
from tests.support.virtual_time import run_virtual
from tests.support.wait import until

MINE, OTHERS = bytes(16), b"\x01" * 16


def head(session: bytes) -> StepHead:
    return StepHead(session=session, epoch=0, position=0, kind="tokens")


def take(sender: PeerId, got: StepHead, raw: memoryview) -> None:
    assert got.kind == "tokens"


def test_steps_of_a_counted_session_count_both_ways_and_no_others() -> None:
    async def main() -> None:
        hub = MemoryHub(5, delay=(0.001, 0.002), stall=0.0)
        one, two = await members(hub, 2)
        with counting() as traffic:
            one.steps.listen(MINE, take)
        one.steps.listen(OTHERS, take)
        two.steps.listen(MINE, take)
        two.steps.listen(OTHERS, take)
        size = len(step_frame(head(MINE), bytes(40)))
        await one.steps.send(two.peer, head(MINE), bytes(40))
        one.steps.post(two.peer, head(MINE), bytes(40), lambda error: None)
        await one.steps.send(two.peer, head(OTHERS), bytes(40))
        await one.steps.send(one.peer, head(MINE), bytes(40))  # takes no network
        await two.steps.send(one.peer, head(MINE), bytes(8))
        await two.steps.send(one.peer, head(OTHERS), bytes(8))
        await until(lambda: traffic.received > 0, 2.0, "what comes back")
        assert (traffic.sent, traffic.received) == (2 * size, size - 32)
        one.steps.forget(MINE, take)
        await one.steps.send(two.peer, head(MINE), bytes(40))
        assert traffic.sent == 2 * size

    run_virtual(main())


def test_streams_count_for_who_opened_them() -> None:
    async def main() -> None:
        hub = MemoryHub(5, delay=(0.001, 0.002), stall=0.0)
        one, two = await members(hub, 2)

        async def echo(stream: Stream) -> None:
            await stream.send(await stream.receive(1.0) * 2)

        two.network.serve("/test/1", echo)
        counted = CountedNetwork(one.network)

        async def ask() -> None:
            stream = await counted.open(two.peer, "/test/1")
            await stream.send(b"12345")
            assert len(await stream.receive(1.0)) == 10
            assert (stream.peer, stream.protocol) == (two.peer, "/test/1")
            await stream.close()

        with counting() as traffic:
            await asyncio.create_task(ask())
            note(sent=1, received=2)
        await ask()
        note(1, 1)
        assert (traffic.sent, traffic.received, current()) == (6, 12, None)
        assert counted.peer_id == one.peer

    run_virtual(main())
