"""Step frames: a stale stream is replaced once, a session that ends never harms the frames of others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from node.network.interface import Stream, StreamClosed
from node.network.memory import MemoryHub
from node.steps import Steps, bundles
from protocol import limits
from protocol.bundles import bundle, unbundle
from protocol.errors import MfError, PeerFault
from protocol.ids import PeerId
from protocol.messages import STEP_PROTOCOL, StepHead, step_frame
from tests.node.pipeline_fakes import Member, members
from tests.support.virtual_time import run_virtual
from tests.support.wait import until

ONE, OTHER = bytes(16), b"\x01" * 16


class Inbox:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[tuple[PeerId, int, bytes]] = []

    def __call__(self, sender: PeerId, head: StepHead, raw: memoryview) -> None:
        self.got.append((sender, head.position, bytes(raw)))


def head(position: int, session: bytes = ONE) -> StepHead:
    return StepHead(session=session, epoch=0, position=position, kind="tokens")


async def two() -> tuple[MemoryHub, Member, Member, Inbox]:
    hub = MemoryHub(5, delay=(0.001, 0.002), stall=0.0)
    mine, other = await members(hub, 2)
    inbox = Inbox()
    other.steps.listen(ONE, inbox)
    return hub, mine, other, inbox


def test_frames_arrive_in_order_over_one_stream() -> None:
    async def main() -> None:
        _hub, mine, other, inbox = await two()
        for position in range(20):
            await mine.steps.send(other.peer, head(position), position.to_bytes(4, "little"))
        await until(lambda: len(inbox.got) == 20, 2.0, "all frames")
        assert inbox.got == [(mine.peer, position, position.to_bytes(4, "little")) for position in range(20)]
        assert len(mine.steps._streams) == 1

    run_virtual(main())


def test_a_frame_to_itself_takes_no_network() -> None:
    async def main() -> None:
        _hub, mine, _other, _inbox = await two()
        own = Inbox()
        mine.steps.listen(ONE, own)
        await mine.steps.send(mine.peer, head(7), b"\x00" * 4)
        assert own.got == [(mine.peer, 7, b"\x00" * 4)]
        assert not mine.steps._streams

    run_virtual(main())


def test_a_stale_stream_is_replaced_once() -> None:
    async def main() -> None:
        _hub, mine, other, inbox = await two()
        await mine.steps.send(other.peer, head(0))
        await until(lambda: len(inbox.got) == 1, 2.0, "the first frame")
        mine.steps._streams[other.peer].reset()
        await mine.steps.send(other.peer, head(1))
        await until(lambda: len(inbox.got) == 2, 2.0, "the second frame")

        async def rude(stream: Stream) -> None:
            stream.reset()

        other.network.serve(STEP_PROTOCOL, rude)
        opened = 0
        ordinary = mine.network.open

        async def closed(peer: PeerId, protocol: str, timeout: float = 3.0) -> Any:
            nonlocal opened
            opened += 1
            stream = await ordinary(peer, protocol, timeout)
            stream.reset()
            return stream

        mine.network.open = closed  # type: ignore[method-assign,assignment]
        mine.steps._streams[other.peer].reset()
        with pytest.raises(StreamClosed):
            await mine.steps.send(other.peer, head(2))
        assert opened == 1
        assert not mine.steps._streams

    run_virtual(main())


def test_a_session_cancelled_in_its_write_leaves_the_stream_to_others() -> None:
    async def main() -> None:
        _hub, mine, other, inbox = await two()
        await mine.steps.send(other.peer, head(0))
        stream = mine.steps._streams[other.peer]
        big = bytes(4 * 1024 * 1024)
        leaving = asyncio.create_task(mine.steps.send(other.peer, head(1, OTHER), big))
        staying = asyncio.create_task(mine.steps.send(other.peer, head(2)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await staying
        await until(lambda: len(inbox.got) == 2, 2.0, "the other session's frame")
        assert mine.steps._streams[other.peer] is stream
        assert not mine.steps._sending

    run_virtual(main())


def test_forgotten_sessions_get_nothing_and_sinks_go_one_by_one() -> None:
    async def main() -> None:
        _hub, mine, _other, _inbox = await two()
        first, second = Inbox(), Inbox()
        mine.steps.listen(ONE, first)
        mine.steps.listen(ONE, second)
        mine.steps.forget(ONE, first)
        mine.steps.forget(ONE, first)
        await mine.steps.send(mine.peer, head(0))
        assert (len(first.got), len(second.got)) == (0, 1)
        mine.steps.forget(ONE, second)
        await mine.steps.send(mine.peer, head(1))
        assert len(second.got) == 1
        assert not mine.steps._sinks

    run_virtual(main())


def test_a_refused_frame_is_told_in_the_log_and_the_stream_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        _hub, mine, other, inbox = await two()

        def refuse(sender: PeerId, head: StepHead, raw: memoryview) -> None:
            raise PeerFault(f"{sender} may not")

        other.steps.listen(OTHER, refuse)
        await mine.steps.send(other.peer, head(0, OTHER))
        await mine.steps.send(other.peer, head(1))
        await until(lambda: len(inbox.got) == 1, 2.0, "the frame after it")

    run_virtual(main())
    assert any(getattr(record, "event", None) == "step_refused" for record in caplog.records)


def test_nonsense_ends_its_own_stream_alone() -> None:
    async def main() -> None:
        _hub, mine, other, inbox = await two()
        stream = await mine.network.open(other.peer, STEP_PROTOCOL)
        await stream.send(b"\xff\xffnonsense")
        with pytest.raises(MfError):
            await stream.receive(2.0)
        await mine.steps.send(other.peer, head(0))
        await until(lambda: len(inbox.got) == 1, 2.0, "a good frame")

    run_virtual(main())


def test_a_peer_that_cant_be_reached_is_an_error_at_once() -> None:
    async def main() -> None:
        hub, mine, other, _inbox = await two()
        hub.kill(other.peer)
        with pytest.raises(MfError):
            await Steps(mine.network).send(other.peer, head(0))

    run_virtual(main())


class Takes:
    """In a connection's place: keeps what is written."""

    closed = False

    def __init__(self, bundle: int) -> None:
        self.bundle, self.written = bundle, list[bytes]()
        self.broken = False

    def write(self, frame: bytes) -> None:
        if self.broken:
            raise StreamClosed("it has ended")
        self.written.append(frame)


@pytest.mark.parametrize(("most", "sizes"), [(256, [5]), (2, [2, 2, 1]), (0, [1] * 5)])
def test_what_a_turn_gives_for_a_peer_goes_as_it_takes_it(most: int, sizes: list[int]) -> None:
    async def main() -> None:
        _hub, mine, other, inbox = await two()
        link: Any = Takes(most)
        mine.steps._links[other.peer] = link
        with mine.steps._turn:
            for position in range(5):
                mine.steps.post(other.peer, head(position), position.to_bytes(4, "little"), lambda error: None)
            assert link.written == []
        assert [len(unbundle(frame)) for frame in link.written] == sizes
        for frame in link.written:
            other.steps.take(mine.peer, frame)
        assert inbox.got == [(mine.peer, position, position.to_bytes(4, "little")) for position in range(5)]

    run_virtual(main())


def test_a_bundle_that_cant_be_sent_is_told_to_each_session() -> None:
    async def main() -> None:
        _hub, mine, other, _inbox = await two()
        link: Any = Takes(256)
        link.broken = True
        mine.steps._links[other.peer] = link
        told = list[int]()
        with mine.steps._turn:
            for number in range(3):
                mine.steps.post(other.peer, head(number), bytes(4), lambda error, number=number: told.append(number))  # type: ignore[misc]
        assert told == [0, 1, 2]

    run_virtual(main())


def test_one_sessions_refusal_leaves_the_others_of_its_bundle() -> None:
    async def main() -> None:
        _hub, mine, other, inbox = await two()

        def refuse(sender: PeerId, head: StepHead, raw: memoryview) -> None:
            raise PeerFault("not this one")

        other.steps.listen(OTHER, refuse)
        other.steps.take(mine.peer, bundle([step_frame(head(at, OTHER if at == 1 else ONE), bytes(4)) for at in range(3)]))
        assert [position for _peer, position, _raw in inbox.got] == [0, 2]
        with pytest.raises(MfError):
            other.steps.take(mine.peer, bundle([step_frame(head(3), bytes(4)), b"\xff\xffnonsense"]))

    run_virtual(main())


def test_bundles_keep_order_count_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ACTIVATION_FRAME", 100)

    def failed(error: MfError) -> None: ...

    frames = [(bytes([number]) * size, failed) for number, size in enumerate((40, 40, 90, 120, 1, 1, 1, 1))]
    found = [[frame for frame, _failed in some] for some in bundles(frames, 3)]
    assert [frame for some in found for frame in some] == [frame for frame, _failed in frames]
    assert [len(some) for some in found] == [2, 1, 1, 3, 1]
    assert all(len(some) == 1 or len(bundle(some)) <= 100 for some in found)
