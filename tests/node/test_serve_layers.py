"""A lending node takes layers, says so before it loads them, and others' routes go there."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node.figures import STALE, PeerFigures, StageFigures
from node.locate import Located
from node.model_cost import StageCost
from node.route import Router
from node.serve_layers import MEASURED, PRECISION, ROOM, LayerServer
from node.stage_room import StageRoom
from node.swarm.interface import HoldingView
from protocol.errors import BadInput
from protocol.ids import PeerId
from protocol.records import Serving
from runtime.interface import Step, Stepped
from tests.node.test_stage_room import FakeWorker
from tests.node.verb_fakes import VerbNode, node_record, small_model, verb_swarm
from tests.support.wait import until

LAYERS = 4


class TimedWorker(FakeWorker):
    """Each step takes 8 ms; `hold` keeps a load waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.hold: asyncio.Event | None = None
        self.step_fault: Exception | None = None

    async def load_stage(self, params: Any, fds: list[int]) -> Any:
        if self.hold is not None:
            await self.hold.wait()
        return await super().load_stage(params, fds)

    async def step(self, step: Step) -> Stepped:
        if self.step_fault is not None:
            raise self.step_fault
        self.steps.append(step)
        return Stepped(seconds=0.008)


class Lender:
    """A node of the swarm with a layer server; `memory` for so many middle layers."""

    def __init__(self, node: VerbNode, located: Located, memory: int, seed: int = 1) -> None:
        self.node, self.located = node, located
        self.worker = TimedWorker()
        self.worker.cost = StageCost(located.manifest, PRECISION)
        worker: Any = self.worker
        self.room = StageRoom(worker, node.assembler, memory)
        self.figures = StageFigures()
        self.layers = LayerServer(
            node.peer, node.swarm, node.locator, self.room, worker, node.keeper, self.figures, rng=random.Random(seed)
        )

    async def told(self) -> list[Serving]:
        await self.node.tell()
        view = self.node.swarm.board.holdings.get((self.node.peer, self.located.model))
        return list(view.serves) if view else []

    def router(self, memory: int = 10) -> Router:
        room: Any = type("Room", (), {"memory": memory})()
        return Router(self.node.peer, self.node.swarm, room, "swarm", "remote", 10.0, PeerFigures(), random.Random(1))


@pytest.fixture
async def lenders(tmp_path: Path) -> AsyncIterator[list[Lender]]:
    """Three nodes with shards of one model; each has memory for two of its four layers, an end among them."""
    async with verb_swarm(3, tmp_path) as swarm:
        done = await swarm.nodes[0].publish(small_model(tmp_path / "m", layers=LAYERS))
        await swarm.tell()
        located = await swarm.nodes[0].locator.locate(swarm.nodes[0].swarm.resolve(done["model_id"]))
        cost = StageCost(located.manifest, PRECISION)
        memory = max(cost.total(0, 2, ROOM), cost.total(2, 4, ROOM))
        assert memory < cost.total(0, 4, ROOM)
        for node in swarm.nodes:
            swarm.board.records[node.peer] = node_record(memory=memory)
        yield [Lender(node, located, memory, number) for number, node in enumerate(swarm.nodes)]


async def test_joining_is_told_before_loading_and_a_measured_speed_after(lenders: list[Lender]) -> None:
    one = lenders[0]
    one.worker.hold = asyncio.Event()
    looking = asyncio.create_task(one.layers.look())
    await until(lambda: one.layers.served is not None, 2.0, "chosen")
    [joining] = await one.told()
    assert (joining.loaded, joining.layer_us) == (False, None)
    one.worker.hold.set()
    await looking
    [served] = await one.told()
    assert served == Serving(joining.first, joining.end, PRECISION, True, 4000)
    assert len(one.worker.steps) == MEASURED
    assert not one.worker.open


async def test_three_nodes_cover_all_layers_and_the_third_stands_by(lenders: list[Lender]) -> None:
    for lender in lenders:
        await lender.layers.look()
        await lender.told()
    spans = [(serving.first, serving.end) for lender in lenders for serving in await lender.told()]
    assert set(spans) == {(0, 2), (2, 4)}
    assert len(spans) == 3


async def test_routes_go_over_what_is_loaded(lenders: list[Lender]) -> None:
    for lender in lenders[:2]:
        await lender.layers.look()
        await lender.told()
    plan = lenders[2].router().plan(lenders[2].located, 16, PRECISION)
    assert plan.kind == "pipeline"
    assert "loaded" in plan.why
    told = {lender.node.peer: (await lender.told())[0] for lender in lenders[:2]}
    assert [(stage.first, stage.end) for stage in plan.stages] == [(0, 2), (2, 4)]
    assert all((told[PeerId(stage.peer)].first, told[PeerId(stage.peer)].end) == (stage.first, stage.end) for stage in plan.stages)


async def test_but_not_over_what_still_loads_nor_over_who_may_not_be_asked(lenders: list[Lender]) -> None:
    board, model = lenders[0].node.swarm.board, lenders[0].located.model
    peers = [lender.node.peer for lender in lenders]
    for peer, first in ((peers[1], 0), (peers[2], 2)):
        board.holdings[peer, model] = HoldingView(peer, model, [], [], (), (Serving(first, first + 2, PRECISION, first == 0, 900),))
    assert "loaded" not in lenders[0].router().plan(lenders[0].located, 16, PRECISION).why
    board.holdings[peers[2], model] = HoldingView(peers[2], model, [], [], (), (Serving(2, 4, PRECISION, True, 900),))
    assert "loaded" in lenders[0].router().plan(lenders[0].located, 16, PRECISION).why
    assert "loaded" not in lenders[0].router(1 << 30).plan(lenders[0].located, 16, PRECISION).why, "what fits here runs here"
    lenders[0].node.swarm.bans.add(peers[2])
    assert peers[2] not in {stage.peer for stage in lenders[0].router().plan(lenders[0].located, 16, PRECISION).stages}


async def test_a_second_look_stays_and_tells_a_changed_speed(lenders: list[Lender]) -> None:
    one = lenders[0]
    await one.layers.look()
    before = await one.told()
    for _ in range(200):
        one.figures.step(1, 2, 0.02, 0.02, time.monotonic())
    await one.layers.look()
    [after] = await one.told()
    assert (after.first, after.end, after.loaded) == (before[0].first, before[0].end, True)
    assert after.layer_us == pytest.approx(10_000, rel=0.01)
    assert len(one.worker.loads) == 1


async def test_a_stage_that_nobody_asked_is_measured_again(lenders: list[Lender]) -> None:
    one, now = lenders[0], 0.0
    one.layers._clock = lambda: now
    await one.layers.look()
    assert len(one.worker.steps) == MEASURED
    one.figures.layer, now = 9.0, STALE
    await one.layers.look()
    assert (await one.told())[0].layer_us == 9_000_000
    now = STALE + 1
    await one.layers.look()
    assert (await one.told())[0].layer_us == 4000
    assert (len(one.worker.steps), len(one.worker.loads)) == (2 * MEASURED, 1)


async def test_a_stage_let_go_for_other_work_is_loaded_again(lenders: list[Lender]) -> None:
    one = lenders[0]
    await one.layers.look()
    one.room._stages.clear()
    await one.layers.look()
    assert len(one.worker.loads) == 2
    assert (await one.told())[0].loaded


async def test_a_load_that_fails_takes_the_word_back(lenders: list[Lender]) -> None:
    one = lenders[0]
    one.worker.fault = BadInput("tensors are missing")
    with pytest.raises(BadInput):
        await one.layers.look()
    assert await one.told() == []
    one.worker.fault = None
    await one.layers.look()
    assert (await one.told())[0].loaded


async def test_a_stage_that_cant_be_measured_is_served_with_its_time_unknown(lenders: list[Lender]) -> None:
    one = lenders[0]
    one.worker.step_fault = BadInput("another width")
    await one.layers.look()
    assert (await one.told())[0] == Serving((await one.told())[0].first, (await one.told())[0].end, PRECISION, True, None)


async def test_no_room_for_a_layer_nothing_is_told(lenders: list[Lender]) -> None:
    poor = Lender(lenders[0].node, lenders[0].located, 10)
    await poor.layers.look()
    assert poor.layers.served is None
    assert await poor.told() == []


async def test_ranges_beyond_the_model_are_passed_over(lenders: list[Lender]) -> None:
    one, liar, model = lenders[0], lenders[1].node.peer, lenders[0].located.model
    one.node.swarm.board.holdings[liar, model] = HoldingView(liar, model, [], [], (), (Serving(2, 400, PRECISION, True, 1),))
    await one.layers.look()
    assert one.layers.served is not None
    plan = one.router(1 << 30).plan(one.located, 16, PRECISION)
    assert plan.kind == "here"
