"""Steps that workers send to each other's nodes by themselves: the same replies, whatever becomes of a lane."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import lanes as node_lanes
from node.lanes import Lanes
from node.network.memory import MemoryHub, MemoryNetwork
from node.pipeline import Pipeline, PipelineRequest, Sampled
from node.step_links import LinkServer
from node.step_log import CUT
from protocol.errors import Unavailable
from protocol.ids import ModelId, PeerId
from protocol.messages import DIRECT_PROTOCOL, Sampling
from runtime import interface as api
from runtime import lanes as worker_lanes
from tests.node.pipeline_fakes import Member, SumWorker, expected, route
from tests.support.wait import until

PROMPT = [3, 14, 15, 92]
TOKENS = 48


class Local(MemoryNetwork):
    """Its connections lead to this machine."""

    def host_of(self, peer: PeerId) -> str | None:
        return "127.0.0.1"


class LaneWorker(SumWorker):
    """Sends as a worker does, with a worker's own lanes."""

    def __init__(self) -> None:
        super().__init__()
        self.generation, self.running = 1, True
        self.lanes = worker_lanes.Lanes()
        self.given: list[tuple[int, int]] = []
        """(position, count) of steps that might go on by themselves."""

    async def take_lane(self, params: api.TakeLane, fd: int) -> None:
        self.lanes.take(params, [fd])

    async def drop_lane(self, params: api.DropLane) -> None:
        self.lanes.drop(params)

    def compute(self, step: api.Step) -> api.Stepped:
        done = super().compute(step)
        if step.onward is not None:
            self.given.append((step.position, step.count))
            done.sent = self.lanes.send(step.onward, done)
        return done

    def restart(self) -> None:
        self.generation += 1
        self.cut()
        self.lanes = worker_lanes.Lanes()

    def cut(self) -> None:
        for number in list(self.lanes._lanes):
            self.lanes.drop(api.DropLane(lane=number))


@dataclass
class World:
    nodes: list[Member]
    doors: list[LinkServer]

    def worker(self, at: int) -> LaneWorker:
        worker = self.nodes[at].worker
        assert isinstance(worker, LaneWorker)
        return worker

    @property
    def sent(self) -> list[int]:
        return [self.worker(at).lanes.sent for at in range(len(self.nodes))]


async def member(hub: MemoryHub) -> Member:
    network, worker = Local(hub, Ed25519PrivateKey.generate()), LaneWorker()
    lanes: Any = Lanes(network, worker)  # type: ignore[arg-type]
    await network.start()
    return Member(network, worker, lanes)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    hub = MemoryHub(5, delay=(0.0005, 0.001), stall=0.0)
    nodes = [await member(hub) for _ in range(4)]
    doors = [LinkServer(one.steps.take) for one in nodes]
    for one, door in zip(nodes, doors, strict=True):
        one.network.serve(DIRECT_PROTOCOL, door.handle)
        await door.start("127.0.0.1", 0)
        for other in nodes:
            if other is not one:
                await one.network.dial(other.peer, other.network.addresses())
    made = World(nodes, doors)
    yield made
    for at, (one, door) in enumerate(zip(nodes, doors, strict=True)):
        made.worker(at).cut()
        await one.steps.close()
        await door.stop()
        await one.network.stop()


def request(world: World, places: list[int], **changes: Any) -> PipelineRequest:
    stages = route(*(world.nodes[at].peer for at in places))
    return replace(PipelineRequest(ModelId(bytes(32)), stages, PROMPT, TOKENS, [], Sampling(), "bf16", drafts=False), **changes)


@contextlib.asynccontextmanager
async def begun(world: World, wanted: PipelineRequest) -> AsyncIterator[Pipeline]:
    entry = world.nodes[0]
    async with Pipeline(entry.network, entry.steps, entry.server, wanted) as pipeline:
        yield pipeline


async def run(world: World, wanted: PipelineRequest) -> list[Sampled]:
    async with begun(world, wanted) as pipeline:
        return [sampled async for sampled in pipeline.run()]


async def warm(world: World, places: list[int]) -> None:
    """As if an earlier reply had gone there."""
    for at, after in zip(places, [*places[1:], places[0]], strict=True):
        lanes = world.nodes[at].lanes
        assert lanes is not None
        await lanes.warm(world.nodes[after].peer)


@pytest.mark.parametrize("places", [[1, 2, 3], [0, 1, 2], [1, 0, 2], [1, 2, 0], [0, 1, 0], [1]])
async def test_all_tokens_but_the_first_and_the_last_go_by_lanes(world: World, places: list[int]) -> None:
    await warm(world, places)
    made = await run(world, request(world, places))
    assert [one.token for one in made] == expected(PROMPT, TOKENS)
    hops = [(at, after) for at, after in zip(places, [*places[1:], places[0]], strict=True) if at != after]
    for at in range(4):
        mine = sum(one == at for one, _ in hops)
        # a prompt's cuts, the first step after it, and the token that ends the reply are the node's to send
        assert mine * (TOKENS - 3) <= world.sent[at] <= mine * (TOKENS - 1)
    assert sum(world.sent) >= len(hops) * (TOKENS - 3)


async def test_a_first_reply_makes_them_on_its_way(world: World) -> None:
    places = [1, 2, 3]
    made = await run(world, request(world, places, new_max=300))
    assert [one.token for one in made] == expected(PROMPT, 300)
    assert all(world.sent[at] > 0 for at in places)


async def test_a_lane_that_breaks_loses_no_token_and_is_made_anew(world: World) -> None:
    places = [1, 2, 3]
    await warm(world, places)
    lanes, made = world.nodes[2].lanes, list[int]()
    assert lanes is not None
    async with begun(world, request(world, places, new_max=1_000)) as pipeline:
        async for sampled in pipeline.run():
            made.append(sampled.token)
            if len(made) in (10, 20):
                before = lanes.lane(world.nodes[3].peer)
                world.worker(2).cut()
                await until(lambda before=before: lanes.lane(world.nodes[3].peer) not in (None, before), 5.0, "another lane")  # type: ignore[misc]
    assert made == expected(PROMPT, 1_000)
    assert pipeline._epoch == 0, "nobody was replaced for it"


async def test_a_stage_is_replaced_and_the_reply_goes_on_by_lanes(world: World) -> None:
    await warm(world, [1, 2, 3])
    made: list[int] = []
    async with begun(world, request(world, [1, 2, 3])) as pipeline:
        async for sampled in pipeline.run():
            made.append(sampled.token)
            if len(made) == 15:
                break
        middle = world.sent
        await pipeline.reroute(route(*(world.nodes[at].peer for at in (1, 0, 3))))
        made += [sampled.token async for sampled in pipeline.run()]
    assert made == expected(PROMPT, TOKENS)
    assert world.sent[3] > middle[3]


@pytest.mark.parametrize("words", [1, 2])
async def test_guesses_go_by_the_nodes(world: World, words: int) -> None:
    await warm(world, [1, 2, 3])
    for at in (1, 2, 3):
        world.worker(at).words = words
    made = await run(world, request(world, [1, 2, 3], drafts=True))
    assert [one.token for one in made] == expected(PROMPT, TOKENS, words)
    assert all(count == 1 for at in (1, 2, 3) for _, count in world.worker(at).given)


async def test_prompts_go_by_the_nodes(world: World) -> None:
    places = [1, 2, 3]
    await warm(world, places)
    prompt = [at % 90 for at in range(2 * CUT + 1)]  # the last cut is one position, and must not overtake the others
    made = await run(world, request(world, places, tokens=prompt))
    assert [one.token for one in made] == expected(prompt, TOKENS)
    assert all(position >= len(prompt) for at in places for position, _ in world.worker(at).given)


async def test_logarithms_and_times_reach_the_entry(world: World) -> None:
    for places in ([0, 1, 2], [1, 2, 3]):
        await warm(world, places)
        wanted = request(world, places, sampling=Sampling(logprobs=2))
        async with begun(world, wanted) as pipeline:
            made = [sampled async for sampled in pipeline.run()]
            assert all(one.logprobs is not None and len(one.logprobs) == 3 for one in made)
            assert all(one.decode is not None for one in pipeline.times.stages(wanted.stages))


async def test_a_stop_token_ends_the_reply(world: World) -> None:
    await warm(world, [1, 2, 3])
    right = expected(PROMPT, TOKENS)
    stop = next(token for token in right if right.index(token) >= 5)
    made = await run(world, request(world, [1, 2, 3], stop_tokens=[stop]))
    assert [one.token for one in made] == right[: right.index(stop) + 1]
    assert made[-1].finish == "stop"


async def test_a_new_worker_has_none_until_it_is_given_some(world: World) -> None:
    lanes, peer = world.nodes[1].lanes, world.nodes[2].peer
    assert lanes is not None
    await lanes.warm(peer)
    first = lanes.lane(peer)
    assert first is not None
    world.worker(1).restart()
    assert lanes.lane(peer) is None
    await lanes.warm(peer)
    assert lanes.lane(peer) not in (None, first)
    world.worker(1).running = False
    assert lanes.lane(peer) is None
    await lanes.warm(peer)
    assert await lanes.warm(world.nodes[1].peer) is None
    assert lanes.lane(world.nodes[1].peer) is None


async def test_one_that_ended_while_a_lane_was_made_has_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes, worker, peer = world.nodes[1].lanes, world.worker(1), world.nodes[2].peer
    assert lanes is not None

    async def take_lane(params: api.TakeLane, fd: int) -> None:
        worker.restart()

    monkeypatch.setattr(worker, "take_lane", take_lane)
    await lanes.warm(peer)
    assert lanes.lane(peer) is None


async def test_whom_none_can_be_made_to_isnt_asked_again_soon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes, peer = world.nodes[1].lanes, world.nodes[2].peer
    assert lanes is not None
    asked = 0

    async def place(*_: object) -> Any:
        nonlocal asked
        asked += 1
        raise Unavailable("no way there")

    monkeypatch.setattr(node_lanes, "place_at", place)
    for _ in range(3):
        await lanes.warm(peer)
    assert (asked, lanes.lane(peer)) == (1, None)


async def test_word_of_a_lane_that_ended_doesnt_end_the_one_made_since(world: World) -> None:
    lanes, peer = world.nodes[1].lanes, world.nodes[2].peer
    assert lanes is not None
    await lanes.warm(peer)
    before = lanes.lane(peer)
    assert before is not None
    lanes.ended(peer, before)
    assert lanes.lane(peer) is None
    await lanes.warm(peer)
    after = lanes.lane(peer)
    lanes.ended(peer, before)  # another session's step was on its way by the first one
    assert lanes.lane(peer) == after != before


async def test_the_oldest_makes_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_lanes, "MOST", 2)
    lanes, others = world.nodes[0].lanes, [one.peer for one in world.nodes[1:]]
    assert lanes is not None
    await asyncio.gather(*(lanes.warm(peer) for peer in [others[0], others[0]]))
    for peer in others[1:]:
        await lanes.warm(peer)
    assert [lanes.lane(peer) is not None for peer in others] == [False, True, True]
    assert len(world.worker(0).lanes._lanes) == 2


async def test_nothing_can_be_read_from_a_lane(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes, worker = world.nodes[1].lanes, world.worker(1)
    assert lanes is not None
    read: list[bytes] = []

    async def take_lane(params: api.TakeLane, fd: int) -> None:
        with socket.socket(fileno=fd) as given:
            read.append(given.recv(1))
            given.detach()

    monkeypatch.setattr(worker, "take_lane", take_lane)
    await lanes.warm(world.nodes[2].peer)
    assert read == [b""]
