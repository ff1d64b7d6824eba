"""Many sessions through the same stages: what a pass gives travels as one frame, and each session stays its own."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.memory import MemoryHub, MemoryNetwork
from node.pipeline import Pipeline, PipelineRequest, StageLost
from node.step_links import LinkServer
from node.turn import Turn
from protocol.bundles import bundle, unbundle
from protocol.errors import MfError
from protocol.ids import ModelId, PeerId
from protocol.messages import DIRECT_PROTOCOL, Sampling, StageSpec, StepHead, step_frame
from runtime.interface import Step, Stepped
from tests.node.pipeline_fakes import Member, SumWorker, expected, route
from tests.support.wait import until

COUNT, NEW = 12, 30


class Local(MemoryNetwork):
    """Peers on the in-memory network whose connections lead to this machine."""

    def host_of(self, peer: PeerId) -> str | None:
        return "127.0.0.1"


class PassWorker(SumWorker):
    """Computes whatever waits at once, as a worker process does, and answers it in one turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = Turn()
        self.passes: list[int] = []
        self._waiting: list[tuple[Step, Callable[[Stepped | MfError], None]]] = []

    def begin_step(self, step: Step, done: Callable[[Stepped | MfError], None]) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_later(0.001, self._pass)
        self._waiting.append((step, done))

    def _pass(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.passes.append(len(waiting))
        with self.turn:
            for step, done in waiting:
                try:
                    answer: Stepped | MfError = self.spoil(step, self.compute(step))
                except MfError as error:
                    answer = error
                done(answer)


class Linked(Member):
    """A member with connections for step frames, and what came over them."""

    def __init__(self, hub: MemoryHub) -> None:
        super().__init__(Local(hub, Ed25519PrivateKey.generate()), PassWorker())
        self.worker: PassWorker
        self.steps._turn = self.worker.turn
        self.came = list[int]()
        self.links = LinkServer(self.take)
        self.network.serve(DIRECT_PROTOCOL, self.links.handle)

    def take(self, peer: PeerId, frame: bytes | memoryview) -> None:
        self.came.append(len(unbundle(frame)))
        self.steps.take(peer, frame)


@pytest.fixture
async def nodes() -> AsyncIterator[list[Linked]]:
    hub = MemoryHub(7, delay=(0.0, 0.001), stall=0.0)
    made = [Linked(hub) for _ in range(3)]
    for node in made:
        await node.network.start()
        await node.links.start("127.0.0.1", 0)
    for node in made:
        for other in made:
            if other is not node:
                await node.network.dial(other.peer, other.network.addresses())
    yield made
    for node in made:
        await node.steps.close()
        await node.links.stop()
        await node.network.stop()


def prompt(number: int) -> list[int]:
    return [3, 14, 15, number]


async def reply(entry: Linked, stages: list[StageSpec], number: int, most: int = NEW) -> list[int]:
    wanted = PipelineRequest(ModelId(bytes(32)), stages, prompt(number), NEW, [], Sampling(), "bf16")
    made = list[int]()
    async with Pipeline(entry.network, entry.steps, entry.server, wanted) as pipeline, aclosing(pipeline.run()) as tokens:
        async for sampled in tokens:
            made.append(sampled.token)
            if len(made) == most:
                break
    return made


@pytest.mark.parametrize("places", [[0, 1], [1, 2]])
async def test_a_crowd_goes_in_bundles_and_each_reply_is_its_own(nodes: list[Linked], places: list[int]) -> None:
    stages = route(*(nodes[place].peer for place in places))
    made = await asyncio.gather(*(reply(nodes[0], stages, number) for number in range(COUNT)))
    assert made == [expected(prompt(number), NEW) for number in range(COUNT)]
    last = nodes[places[-1]]
    assert sum(last.came) >= COUNT * NEW
    assert max(last.came) > COUNT // 2
    assert len(last.came) < sum(last.came) / 2
    assert max(last.worker.passes) > COUNT // 2


async def test_one_that_fails_and_one_that_is_left_dont_touch_the_others(nodes: list[Linked]) -> None:
    stages = route(nodes[1].peer, nodes[2].peer)
    broken = Counter[str]()

    def break_one(step: Step, done: Stepped) -> Stepped:
        """The first session that comes so far."""
        if step.position == 12:
            broken[step.session] += 1
            if len(broken) == 1:
                raise MfError("broken on purpose")
        return done

    nodes[2].worker.spoil = break_one
    work = [reply(nodes[0], stages, number, 7 if number == 4 else NEW) for number in range(COUNT)]
    made = await asyncio.gather(*work, return_exceptions=True)
    lost = [number for number, one in enumerate(made) if isinstance(one, StageLost)]
    assert len(lost) == 1
    for number, one in enumerate(made):
        if number not in lost:
            assert one == expected(prompt(number), 7 if number == 4 else NEW)


async def test_a_peer_that_takes_no_bundles_gets_each_frame_by_itself(nodes: list[Linked]) -> None:
    stages = route(nodes[0].peer, nodes[1].peer)
    await nodes[0].steps.warm(nodes[1].peer)
    nodes[0].steps._links[nodes[1].peer].bundle = 0
    made = await asyncio.gather(*(reply(nodes[0], stages, number) for number in range(COUNT)))
    assert made == [expected(prompt(number), NEW) for number in range(COUNT)]
    assert set(nodes[1].came) == {1}


async def test_a_bundle_from_a_stranger_moves_no_session(nodes: list[Linked]) -> None:
    """What is refused in it is the stranger's own each time, and the sessions that it names go on."""
    stages = route(nodes[0].peer, nodes[1].peer)
    running = asyncio.ensure_future(reply(nodes[0], stages, 1))
    await until(lambda: bool(nodes[1].steps._sinks), 5.0, "the session open")
    for session in [*nodes[1].steps._sinks, secrets.token_bytes(16)]:
        head = StepHead(session=session, epoch=0, position=5, kind="hidden", stage=1, dtype="bf16", shape=[1, 2])
        nodes[1].steps.take(nodes[2].peer, bundle([step_frame(head, bytes(4))] * 3))
    assert await running == expected(prompt(1), NEW)
