"""Who goes first: by the tier of whoever asks here, and by what this node thinks of the peer that asks from elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from node.accounts.allowance import TIERS
from node.accounts.caller import Caller
from node.gateway import GenerationRequest
from node.http.metering import LOCAL, METER, Meter, MeteredGateway
from node.network.memory import MemoryHub
from node.pipeline import Pipeline, PipelineRequest
from protocol.ids import ModelId
from protocol.messages import Sampling
from runtime.scheduler import Scheduler
from tests.node.pipeline_fakes import members, route


class Inner:
    """A gateway that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Any]:
        self.asked.append(request)
        return
        yield


async def asked_as(caller: Caller) -> GenerationRequest:
    inner: Any = Inner()
    token = METER.set(Meter(caller))
    try:
        async for _event in MeteredGateway(inner).generate(GenerationRequest("m", Sampling(), weight=900.0, priority=16)):
            pass
    finally:
        METER.reset(token)
    asked: GenerationRequest = inner.asked[0]
    return asked


@pytest.mark.parametrize("tier", TIERS)
async def test_a_tier_says_what_a_request_is_worth_and_nothing_else_does(tier: str) -> None:
    asked = await asked_as(replace(LOCAL, tier=tier))
    assert (asked.weight, asked.priority) == (TIERS[tier].weight, TIERS[tier].priority)


async def test_contributors_and_the_owners_own_programs_go_before_the_free_tier() -> None:
    scheduler = Scheduler()
    for tier in ("free", "contributor", "unlimited"):
        asked = await asked_as(replace(LOCAL, tier=tier))
        scheduler.put(tier, "s", 256, token=False, account=tier, priority=asked.priority)
    assert [scheduler.next_pass()[0].session for _ in range(3)] == ["unlimited", "contributor", "free"]


async def test_a_session_from_elsewhere_is_worth_what_this_node_thinks_of_its_entry() -> None:
    entry, other, stage = await members(MemoryHub(1), 3)
    stage.server.prefer(lambda peer: peer == entry.peer)
    for asker in (entry, other):
        wanted = PipelineRequest(ModelId(bytes(32)), route(stage.peer), [1, 2], 2, [], Sampling(), "bf16", weight=900.0, priority=16)
        async with Pipeline(asker.network, asker.steps, asker.server, wanted) as pipeline:
            assert len([sampled async for sampled in pipeline.run()]) == 2
    worth = {opening.account: (opening.weight, opening.priority) for opening in stage.room.openings}
    assert worth == {entry.peer: (4.0, 1), other.peer: (1.0, 0)}
    for member in (entry, other, stage):
        await member.network.stop()
