"""The next turn of a conversation computes only what is new, at every stage, and says what a fresh run would have said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from node.ending import Ending
from node.kept_prefixes import Prefix
from node.network.memory import MemoryHub
from node.pipeline import Pipeline, PipelineRequest, StageLost
from node.stage_checks import check_route
from node.step_log import LEFT_SECONDS, LogRoom, StepLog
from protocol.errors import BadInput
from protocol.ids import ModelId
from protocol.messages import Earlier, OpenSession, Sampling, StageSpec
from runtime.interface import Left
from tests.node.pipeline_fakes import Member, expected, members, route
from tests.support.wait import until

HISTORY = [(31 * at) % 97 for at in range(600)]
QUESTION = [5, 6, 7, 8]
PLACES = [[1], [1, 2], [0, 1, 2], [1, 2, 3], [0, 1, 0]]


@pytest.fixture
async def swarm() -> AsyncIterator[list[Member]]:
    hub = MemoryHub(7, delay=(0.001, 0.003), stall=0.0)
    made = await members(hub, 4)
    for node in made:
        node.room.goes_back = True
    yield made
    for node in made:
        await node.network.stop()


def request(stages: list[StageSpec], tokens: list[int], prefix: Prefix | None = None, **changes: Any) -> PipelineRequest:
    asked = PipelineRequest(ModelId(bytes(32)), stages, tokens, 8, [], Sampling(), "bf16", prompt=len(tokens), keep=True, prefix=prefix)
    return replace(asked, **changes)


async def put_away(nodes: list[Member]) -> None:
    await until(lambda: not any(node.room.open for node in nodes), 3.0, "rooms given back")


def forget_steps(nodes: list[Member]) -> None:
    for node in nodes:
        node.worker.steps.clear()


def rows(node: Member) -> int:
    return sum(count for _position, count in node.worker.steps)


async def turn(nodes: list[Member], wanted: PipelineRequest) -> tuple[list[int], Prefix, int]:
    """What came, what was left, and how much of the prompt was there."""
    async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, wanted) as pipeline:
        made = [sampled.token async for sampled in pipeline.run()]
        left, reused = pipeline.left(), pipeline.reused
    assert left is not None
    session, stages, tokens = left
    assert tokens == [*wanted.tokens, *made][:-1]
    return made, Prefix(session, tuple(stages), len(tokens)), reused


async def two_turns(nodes: list[Member], places: list[int], common: int | None = None) -> int:
    """`common` positions of the second prompt are the first's; how much was reused."""
    stages = route(*(nodes[place].peer for place in places))
    made, prefix, _ = await turn(nodes, request(stages, HISTORY))
    history = [*HISTORY, *made][: common if common is not None else None]
    prefix = replace(prefix, positions=min(prefix.positions, len(history)))
    forget_steps(nodes)
    prompt = [*history, *QUESTION]
    again, _, reused = await turn(nodes, request(stages, prompt, prefix))
    assert again == expected(prompt, 8)
    return reused


@pytest.mark.parametrize("places", PLACES)
async def test_only_the_new_part_goes_through_the_stages(swarm: list[Member], places: list[int]) -> None:
    assert await two_turns(swarm, places) == len(HISTORY) + 7
    for place in set(places):
        # the last token of the reply was never computed, then the question, then the tokens made but the last
        steps = [step for step in swarm[place].worker.steps if step[1] > 1 or step[0] < len(HISTORY) + 8]
        assert min(position for position, _count in steps) == len(HISTORY) + 7
    assert rows(swarm[places[0]]) < 40 * places.count(places[0])


@pytest.mark.parametrize("places", [[1], [1, 2, 3]])
async def test_each_stage_computes_so_many_rows(swarm: list[Member], places: list[int]) -> None:
    """Without guesses the count is exact."""
    stages = route(*(swarm[place].peer for place in places))
    made, prefix, _ = await turn(swarm, request(stages, HISTORY, drafts=False))
    assert [rows(swarm[place]) for place in places] == [len(HISTORY) + 7] * len(places)
    forget_steps(swarm)
    prompt = [*HISTORY, *made, *QUESTION]
    for node in swarm:
        node.room.goes_back = True
    again, _, _ = await turn(swarm, request(stages, prompt, prefix, drafts=False))
    assert again == expected(prompt, 8)
    assert [rows(swarm[place]) for place in places] == [1 + len(QUESTION) + 7] * len(places)


@pytest.mark.parametrize("common", [40, 256, 599, 603])
async def test_a_prompt_that_parts_earlier_goes_on_from_there(swarm: list[Member], common: int) -> None:
    assert await two_turns(swarm, [1, 2, 3], common) == common


async def test_ten_turns(swarm: list[Member]) -> None:
    stages = route(swarm[1].peer, swarm[2].peer)
    prompt, prefix = list(HISTORY), None
    for number in range(10):
        made, left, reused = await turn(swarm, request(stages, prompt, prefix))
        assert made == expected(prompt, 8)
        assert reused == (prefix.positions if prefix is not None else 0), number
        prompt, prefix = [*prompt, *made, *QUESTION], left
    await put_away(swarm)
    assert [len(node.room.left) for node in swarm[1:3]] == [1, 1]


async def test_what_one_stage_lacks_is_computed_by_all(swarm: list[Member]) -> None:
    """The middle one has less than the others, then nothing; every stage goes on behind the least."""
    for has in (500, 0):
        stages = route(swarm[1].peer, swarm[2].peer, swarm[3].peer)
        made, prefix, _ = await turn(swarm, request(stages, HISTORY))
        await put_away(swarm)
        for name in swarm[2].room.left:
            swarm[2].room.left[name] = swarm[2].room.left[name][:has]
        prompt = [*HISTORY, *made, *QUESTION]
        forget_steps(swarm)
        again, _, reused = await turn(swarm, request(stages, prompt, prefix))
        assert (again, reused) == (expected(prompt, 8), has)
        assert all(min(node.worker.steps)[0] == has for node in swarm[1:])


async def test_another_node_in_a_stages_place_has_nothing(swarm: list[Member]) -> None:
    made, prefix, _ = await turn(swarm, request(route(swarm[1].peer, swarm[2].peer), HISTORY))
    prompt = [*HISTORY, *made, *QUESTION]
    again, _, reused = await turn(swarm, request(route(swarm[1].peer, swarm[3].peer), prompt, prefix))
    assert (again, reused) == (expected(prompt, 8), 0)


async def test_a_model_that_cannot_go_back_keeps_nothing(swarm: list[Member]) -> None:
    for node in swarm:
        node.room.goes_back = False
    assert await two_turns(swarm, [1, 2]) == 0


async def test_nobody_meets_what_another_entry_left(swarm: list[Member]) -> None:
    """Even one that knows session and tokens."""
    stages = route(swarm[1].peer, swarm[2].peer)
    made, prefix, _ = await turn(swarm, request(stages, HISTORY))
    prompt = [*HISTORY, *made, *QUESTION]
    again, _, reused = await turn([swarm[3], *swarm[:3]], request(stages, prompt, prefix))
    assert (again, reused) == (expected(prompt, 8), 0)
    assert await turn(swarm, request(stages, prompt, prefix)) != (again, reused)


async def test_nothing_is_kept_that_was_not_asked_for(swarm: list[Member]) -> None:
    stages = route(swarm[1].peer, swarm[2].peer)
    async with Pipeline(swarm[0].network, swarm[0].steps, swarm[0].server, request(stages, HISTORY, keep=False)) as pipeline:
        assert len([sampled async for sampled in pipeline.run()]) == 8
        assert pipeline.left() is None
    await put_away(swarm)
    assert not any(node.room.left for node in swarm)


async def test_a_stage_that_says_it_has_more_than_was_asked_is_lost(swarm: list[Member]) -> None:
    stages = route(swarm[1].peer, swarm[2].peer)
    made, prefix, _ = await turn(swarm, request(stages, HISTORY))
    swarm[2].room.boast = 1
    with pytest.raises(StageLost, match="607 were asked for") as lost:
        await turn(swarm, request(stages, [*HISTORY, *made, *QUESTION], prefix))
    assert lost.value.peer == swarm[2].peer


@pytest.mark.parametrize(("kept", "expected_losses"), [(True, 1), (False, 2)])
async def test_a_stage_lost_in_a_second_turn_is_replaced(kept: bool, expected_losses: int, swarm: list[Member]) -> None:
    """Where what was sent to it isn't there any more the route starts over from the tokens; the reply is what it would have been."""
    stages = route(swarm[1].peer, swarm[2].peer)
    made, prefix, _ = await turn(swarm, request(stages, HISTORY))
    prompt = [*HISTORY, *made, *QUESTION]
    swarm[2].worker.break_at = len(prompt) + 2
    if not kept:
        await put_away(swarm)
        swarm[1].server._parts.logs._left.clear()
    got: list[int] = []
    async with Pipeline(swarm[0].network, swarm[0].steps, swarm[0].server, request(stages, prompt, prefix, drafts=False)) as pipeline:
        plan, losses = stages, 0
        while True:
            try:
                await pipeline.reroute(plan)
                async for sampled in pipeline.run():
                    got.append(sampled.token)
                break
            except StageLost as lost:
                losses += 1
                plan = route(swarm[1].peer, swarm[3].peer)
                if lost.peer == swarm[1].peer:
                    pipeline.start_over()
        assert pipeline.left() is not None
    assert got == expected(prompt, 8)
    assert losses == expected_losses


async def test_a_turn_waits_for_the_end_of_the_one_before() -> None:
    ending, left, seen = Ending(), Left(owner="entry a", name="s"), list[str]()

    async def before() -> None:
        async with ending.running(left):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen.append("over")

    first = asyncio.create_task(before())
    await asyncio.sleep(0)
    await ending.over(left)
    seen.append("next")
    await first
    assert seen == ["over", "next"]
    await ending.over(left, patience=0.0)
    async with ending.running(left):
        await ending.over(left, patience=0.0)  # one that doesn't end isn't waited for


def opening(**changes: Any) -> OpenSession:
    fields: dict[str, Any] = {
        "session": bytes(16), "epoch": 0, "model": bytes(32), "stages": [StageSpec("me", 0, 6)], "index": 0, "entry": "e", "tokens_max": 64,
        "new_max": 8, "stop_tokens": [], "sampling": Sampling(),
    }  # fmt: skip
    return OpenSession(**(fields | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"after": Earlier(bytes(15), 3)},
        {"after": Earlier(bytes(16), 0)},
        {"after": Earlier(bytes(16), 64)},
        {"after": Earlier(bytes(16), -1)},
        {"known": [1]},
        {"after": Earlier(bytes(16), 2), "known": [1]},
        {"after": Earlier(bytes(16), 1), "known": [-1]},
        {"after": Earlier(bytes(16), 1), "known": [1 << 31]},
    ],
)
def test_nonsense_about_earlier_sessions_is_refused(changes: dict[str, Any]) -> None:
    me: Any = "me"
    check_route(opening(after=Earlier(bytes(16), 2), known=[1, 2]), me)
    with pytest.raises(BadInput, match="session:"):
        check_route(opening(**changes), me)


async def test_a_stage_lost_in_the_second_turn_is_rebuilt_from_what_was_sent_in_the_first(swarm: list[Member]) -> None:
    stages = route(swarm[1].peer, swarm[2].peer)
    made, prefix, _ = await turn(swarm, request(stages, HISTORY, drafts=False))
    forget_steps(swarm)
    prompt, came = [*HISTORY, *made, *QUESTION], list[int]()
    entry = swarm[0]
    async with Pipeline(entry.network, entry.steps, entry.server, request(stages, prompt, prefix, drafts=False)) as pipeline:
        async with aclosing(pipeline.run()) as tokens:
            async for sampled in tokens:
                came.append(sampled.token)
                if len(came) == 3:
                    break
        await pipeline.reroute(route(swarm[1].peer, swarm[3].peer))
        came += [sampled.token async for sampled in pipeline.run()]
    assert came == expected(prompt, 8)
    assert rows(swarm[1]) < 40, "the stage that stays computes nothing again"
    assert rows(swarm[3]) > len(prompt)


def test_logs_that_were_left_go_before_any_other_and_after_a_while() -> None:
    room = LogRoom(100)
    for number in range(3):
        log = StepLog(room)
        log.add(0, 3, bytes(30))
        room.leave(Left(owner="e", name=str(number)), log, float(number))
    assert (room.resume(Left(owner="e", name="2"), 2).end, room.resume(Left(owner="e", name="2"), 2).end) == (2, 0)
    running = StepLog(room)
    running.add(0, 4, bytes(40))
    assert running.complete, "the first one went for it"
    assert [room.resume(Left(owner="e", name=name), 3).end for name in "01"] == [0, 3]
    room.expire(LEFT_SECONDS - 1)
    old = StepLog(room)
    old.add(0, 1, bytes(10))
    room.leave(Left(owner="e", name="old"), old, 0.0)
    room.expire(LEFT_SECONDS)
    assert room.resume(Left(owner="e", name="old"), 1).end == 0, "ten minutes at most, though nobody leaves another"
    first, second = StepLog(room), StepLog(room)
    room.leave(Left(owner="e", name="a"), first, 0.0)
    room.leave(Left(owner="e", name="b"), second, LEFT_SECONDS)
    assert room.resume(Left(owner="e", name="a"), 0) is not first
    assert room.resume(Left(owner="e", name="b"), 0) is second


@pytest.mark.parametrize(("reuse", "goes_back"), [(False, True), (True, False)])
async def test_where_nothing_of_a_session_stays_neither_does_what_it_sent(reuse: bool, goes_back: bool, swarm: list[Member]) -> None:
    swarm[1].worker.reuse, swarm[1].room.goes_back = reuse, goes_back
    await turn(swarm, request(route(swarm[1].peer, swarm[2].peer), HISTORY))
    await put_away(swarm)
    assert not swarm[1].server._parts.logs._left
    assert swarm[2].server._parts.logs._left
