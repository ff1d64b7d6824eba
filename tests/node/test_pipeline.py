"""A pipeline over the in-memory network: right tokens over any route, and every way a stage can be lost is named in time."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

import msgspec
import pytest

from node.network.memory import MemoryHub
from node.pipeline import Pipeline, PipelineRequest, Sampled, StageLost
from node.traffic import counting, note_stage
from protocol.errors import BadInput, Busy, MfError, PeerFault
from protocol.framing import pack, unpack
from protocol.ids import ModelId
from protocol.messages import SESSION_PROTOCOL, OpenSession, Sampling, SessionEvent, StageSpec, StepHead, TokenLogprob
from runtime.drafting import Drafter
from runtime.interface import Step, Stepped
from tests.node.pipeline_fakes import LAYERS, Member, expected, expected_scores, members, route
from tests.support.wait import until

PROMPT = [3, 14, 15, 92]


@pytest.fixture
async def swarm() -> AsyncIterator[tuple[MemoryHub, list[Member]]]:
    hub = MemoryHub(7, delay=(0.001, 0.003), stall=0.0)
    made = await members(hub, 4)
    yield hub, made
    for member in made:
        await member.network.stop()


def request(stages: list[StageSpec], new_max: int = 8, stop_tokens: list[int] | None = None) -> PipelineRequest:
    model = ModelId(bytes(32))
    return PipelineRequest(model, stages, PROMPT, new_max, stop_tokens or [], Sampling(), "bf16")


async def run(entry: Member, wanted: PipelineRequest) -> list[Sampled]:
    async with Pipeline(entry.network, entry.steps, entry.server, wanted) as pipeline:
        return [sampled async for sampled in pipeline.run()]


async def drain(pipeline: Pipeline, after_first: Callable[[], None]) -> None:
    """Takes tokens to the end; `after_first` is called at the first."""
    first = True
    async for _sampled in pipeline.run():
        if first:
            first = False
            after_first()


@pytest.mark.parametrize("places", [[0], [1], [0, 1, 2], [1, 2, 3], [1, 0, 2], [1, 2, 0], [0, 1, 0], [1, 0, 1]])
async def test_the_same_tokens_over_any_route(swarm: tuple[MemoryHub, list[Member]], places: list[int]) -> None:
    _hub, nodes = swarm
    made = await run(nodes[0], request(route(*(nodes[place].peer for place in places))))
    assert [sampled.token for sampled in made] == expected(PROMPT, 8)
    assert [sampled.finish for sampled in made] == [None] * 7 + ["length"]


def fewest_trips(reply: list[int]) -> int:
    """Passes that a reply takes with this drafter's guesses, the prompt's own included."""
    drafter, made, trips = Drafter([*PROMPT, reply[0]]), 1, 1
    while made < len(reply):
        guesses = drafter.draft(len(reply) - made - 1)
        wrong = (at for at, guess in enumerate(guesses) if guess != reply[made + at])
        right = next(wrong, len(guesses))
        drafter.learn(len(guesses), right)
        drafter.extend(reply[made : made + right + 1])
        made, trips = made + right + 1, trips + 1
    return trips


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("places", [[1], [0, 1, 2], [1, 2, 3], [1, 2, 0], [0, 1, 0]])
async def test_guesses_change_nothing_but_the_trips(swarm: tuple[MemoryHub, list[Member]], places: list[int], words: int) -> None:
    """One word: all guesses are right. Two: a random reply, some are right in part and the drafter mostly rests."""
    _hub, nodes = swarm
    for node in nodes:
        node.room.goes_back, node.worker.words = True, words
    reply = expected(PROMPT, 60, words=words)
    made = await run(nodes[0], request(route(*(nodes[place].peer for place in places)), new_max=60))
    assert [sampled.token for sampled in made] == reply
    trips = len({position for position, _count in nodes[places[-1]].worker.steps})
    assert trips == fewest_trips(reply) < len(reply)


async def test_stages_in_the_middle_never_see_what_was_guessed(swarm: tuple[MemoryHub, list[Member]]) -> None:
    _hub, nodes = swarm
    seen: list[Step] = []
    for node in nodes:
        node.room.goes_back, node.worker.words = True, 2

    def spy(step: Step, done: Stepped) -> Stepped:
        seen.append(step)
        return done

    nodes[2].worker.spoil = spy
    await run(nodes[0], request(route(nodes[1].peer, nodes[2].peer, nodes[3].peer), new_max=30))
    assert any(step.guessed for step in seen)
    assert all(step.drafted is None and step.tokens is None for step in seen)


@pytest.mark.parametrize("places", [[0], [1], [0, 1, 2], [1, 2, 0], [0, 1, 0]])
@pytest.mark.parametrize("count", [1, 4, 600])
async def test_a_prompts_own_scores_come_with_it(swarm: tuple[MemoryHub, list[Member]], places: list[int], count: int) -> None:
    _hub, nodes = swarm
    prompt = [(31 * at) % 97 for at in range(count)]
    stages = route(*(nodes[place].peer for place in places))
    wanted = replace(request(stages), tokens=prompt, prompt=count, score=True, sampling=Sampling(logprobs=0))
    async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, wanted) as pipeline:
        made = [sampled.token async for sampled in pipeline.run()]
    assert made == expected(prompt, 8)
    assert pipeline.scores == expected_scores(prompt)


async def test_scores_of_another_prompt_are_the_last_stages_fault(swarm: tuple[MemoryHub, list[Member]]) -> None:
    _hub, nodes = swarm

    def spoil(step: Step, done: Stepped) -> Stepped:
        done.scored = [[TokenLogprob(row[0].token + 1, row[0].logprob)] for row in done.scored or []]
        return done

    nodes[2].worker.spoil = spoil
    wanted = replace(request(route(nodes[1].peer, nodes[2].peer)), prompt=4, score=True, sampling=Sampling(logprobs=0))
    with pytest.raises(StageLost, match="other tokens") as caught:
        await run(nodes[0], wanted)
    assert caught.value.peer == nodes[2].peer


async def test_stages_tell_the_entry_their_pace(swarm: tuple[MemoryHub, list[Member]]) -> None:
    """Of a single token and of a prompt's, each by itself: `explain` foretells by it."""
    _hub, nodes = swarm
    for node in nodes:
        node.worker.spoil = lambda step, done: msgspec.structs.replace(done, seconds=0.01 if step.count == 1 else 0.02)
    wanted = request(route(nodes[1].peer, nodes[2].peer, nodes[3].peer), 5_000)
    async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, wanted) as pipeline:
        async for _sampled in pipeline.run():
            if all(link.pace[0] for link in pipeline.links):
                break
        assert [link.pace for link in pipeline.links] == [pytest.approx((0.01, 0.02 / len(PROMPT)))] * 3


@pytest.mark.parametrize("places", [[1, 2, 3], [0, 1, 2]])
async def test_what_a_reply_moves_is_counted_here_and_told_by_the_others(swarm: tuple[MemoryHub, list[Member]], places: list[int]) -> None:
    _hub, nodes = swarm
    for node in nodes:
        node.worker.spoil = lambda step, done: msgspec.structs.replace(done, seconds=0.01)
    stages = route(*(nodes[place].peer for place in places))
    others = {(stage.peer, stage.first, stage.end) for stage in stages if stage.peer != nodes[0].peer}
    with counting() as traffic:
        async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, request(stages, 5_000)) as pipeline:
            async for _sampled in pipeline.run():
                if traffic.stages.keys() == others and all(min(told) > 0 for told in traffic.stages.values()):
                    break
    assert min(traffic.sent, traffic.received) > 0
    assert not nodes[0].steps._traffic, "nothing is counted for a session that is over"


@pytest.mark.parametrize("moved", [[], [1], [1, 2, 3], [-1, 0], [0, 1 << 63]])
def test_bytes_moved_that_cant_be_are_the_stages_fault(moved: list[int]) -> None:
    with pytest.raises(PeerFault, match="bytes moved"):
        note_stage(("a", 0, 1), moved)


async def test_a_stop_token_ends_the_reply(swarm: tuple[MemoryHub, list[Member]]) -> None:
    _hub, nodes = swarm
    stop = expected(PROMPT, 3)[2]
    made = await run(nodes[0], request(route(nodes[1].peer, nodes[2].peer), stop_tokens=[stop]))
    assert (len(made), made[-1].finish) == (3, "stop")


async def test_several_sessions_at_once_dont_mix(swarm: tuple[MemoryHub, list[Member]]) -> None:
    _hub, nodes = swarm
    wanted = request(route(nodes[1].peer, nodes[2].peer, nodes[3].peer))
    replies = await asyncio.gather(*(run(nodes[0], wanted) for _ in range(6)))
    assert all([sampled.token for sampled in reply] == expected(PROMPT, 8) for reply in replies)


async def test_the_prompt_leaves_once_and_each_token_comes_back_once(swarm: tuple[MemoryHub, list[Member]]) -> None:
    _hub, nodes = swarm
    await run(nodes[0], request(route(nodes[1].peer, nodes[2].peer)))
    assert nodes[1].worker.steps == [(0, 4), *((4 + at, 1) for at in range(7))]


async def test_a_killed_stage_is_lost_and_named(swarm: tuple[MemoryHub, list[Member]]) -> None:
    hub, nodes = swarm
    async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, request(route(nodes[1].peer, nodes[2].peer), 500)) as pipeline:
        with pytest.raises(StageLost) as caught:
            await drain(pipeline, lambda: hub.kill(nodes[2].peer))
    assert caught.value.peer in (nodes[1].peer, nodes[2].peer)


async def test_a_frozen_stage_is_lost_within_two_seconds(swarm: tuple[MemoryHub, list[Member]]) -> None:
    hub, nodes = swarm
    loop = asyncio.get_running_loop()
    async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, request(route(nodes[1].peer, nodes[2].peer), 500)) as pipeline:
        frozen_at = loop.time()
        with pytest.raises(StageLost) as caught:
            await drain(pipeline, lambda: hub.freeze(nodes[2].peer))
    assert caught.value.peer == nodes[2].peer
    assert loop.time() - frozen_at < 3 * 2


@pytest.mark.parametrize("fault", [Busy("full"), BadInput("NaN weights")])
async def test_a_refusal_at_opening_reaches_the_entry_with_its_reason(swarm: tuple[MemoryHub, list[Member]], fault: MfError) -> None:
    _hub, nodes = swarm
    nodes[2].room.fault = fault
    with pytest.raises(StageLost, match=fault.message) as caught:
        await run(nodes[0], request(route(nodes[1].peer, nodes[2].peer)))
    assert isinstance(caught.value.cause, type(fault))


async def test_a_fault_in_the_middle_names_the_stage_and_frees_all_rooms(swarm: tuple[MemoryHub, list[Member]]) -> None:
    _hub, nodes = swarm
    nodes[1].worker.break_at = 6
    with pytest.raises(StageLost) as caught:
        await run(nodes[0], request(route(nodes[1].peer, nodes[2].peer)))
    assert caught.value.peer == nodes[1].peer
    await until(lambda: not any(node.room.open for node in nodes), 3.0, "rooms given back")


async def test_leaving_early_frees_every_stage(swarm: tuple[MemoryHub, list[Member]]) -> None:
    _hub, nodes = swarm
    async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, request(route(nodes[1].peer, nodes[2].peer), 500)) as pipeline:
        async for _sampled in pipeline.run():
            break
    await until(lambda: not any(node.room.open for node in nodes), 3.0, "rooms given back")


async def test_a_stranger_cannot_slip_in_a_step(swarm: tuple[MemoryHub, list[Member]], caplog: pytest.LogCaptureFixture) -> None:
    _hub, nodes = swarm
    wanted = request(route(nodes[1].peer, nodes[2].peer), 30)
    async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, wanted) as pipeline:
        head = StepHead(session=pipeline._session, epoch=0, position=4, kind="hidden", dtype="bf16", shape=[1, 2], stage=1)
        made = []
        async for sampled in pipeline.run():
            made.append(sampled.token)
            await nodes[3].steps.send(nodes[2].peer, head, bytes(4))
    assert made == expected(PROMPT, 30)
    assert any(getattr(record, "event", None) == "step_refused" for record in caplog.records)


def _opening(nodes: list[Member], **changes: object) -> OpenSession:
    fields: dict[str, object] = {
        "session": secrets.token_bytes(16),
        "epoch": 0,
        "model": bytes(32),
        "stages": route(nodes[1].peer, nodes[2].peer),
        "index": 0,
        "entry": nodes[0].peer,
        "tokens_max": 16,
        "new_max": 8,
        "stop_tokens": [],
        "sampling": Sampling(),
    }
    return OpenSession(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"index": 1},
        {"index": 7},
        {"stages": []},
        {"session": b"short"},
        {"tokens_max": 0},
        {"new_max": 17},
        {"precision": "int1"},
        {"entry": "someone else"},
        {"stages": [StageSpec("x", 0, 3), StageSpec("y", 4, LAYERS)]},
    ],
)
async def test_a_session_that_makes_no_sense_is_refused(swarm: tuple[MemoryHub, list[Member]], changes: dict[str, object]) -> None:
    _hub, nodes = swarm
    stream = await nodes[0].network.open(nodes[1].peer, SESSION_PROTOCOL)
    await stream.send(pack(_opening(nodes, **changes)))
    kinds = []
    while not kinds or kinds[-1] != "failed":
        event = unpack(await stream.receive(3.0), SessionEvent, "event")
        kinds.append(event.kind)
    assert "ready" not in kinds
    assert nodes[1].room.open == 0


@pytest.mark.parametrize("places", [[1], [0, 1, 2], [1, 2, 3], [0, 1, 0]])
async def test_every_stage_tells_its_own_time(swarm: tuple[MemoryHub, list[Member]], places: list[int]) -> None:
    """A prompt of three cuts; each place computes a different time for each step."""
    _hub, nodes = swarm
    seen: list[str] = []
    for place, node in enumerate(nodes):
        node.worker.spoil = partial(_took, 0.0001 * (place + 1))
    nodes[0].server.figures.observe = lambda where, part, seconds: seen.append(f"{where} {part}")
    wanted = replace(request(route(*(nodes[place].peer for place in places))), tokens=[7] * 600, drafts=False)
    async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, wanted) as pipeline:
        assert len([sampled async for sampled in pipeline.run()]) == 8
    assert pipeline.times.timings().keys() == {"queue", "prefill", "decode", "network"}
    for place, spec, told in zip(places, wanted.stages, pipeline.times.stages(wanted.stages), strict=True):
        assert (told.peer, told.first, told.end) == (nodes[place].peer, spec.first, spec.end)
        assert (told.prefill, told.decode) == pytest.approx((0.0003 * (place + 1), 0.0007 * (place + 1)))
        assert told.wait is not None
    own = 10 * places.count(0)
    assert (seen.count("own compute"), seen.count("own wait")) == (own, own)
    assert seen.count("route compute") == 10 * len(places)
    assert seen.count("route network") == 7


def _took(seconds: float, step: Step, done: Stepped) -> Stepped:
    done.seconds = seconds
    return done
