"""A lost stage is replaced alone: stages that live keep their positions, the sender's log rebuilds the new one, and nonsense is named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from node.network.memory import MemoryHub
from node.pipeline import Pipeline, PipelineRequest, StageLost, cuts
from node.stage_link import SILENCE
from node.step_log import CUT, LogRoom, StepLog
from protocol.errors import Conflict
from protocol.ids import ModelId, PeerId
from protocol.messages import Sampling, StageSpec, StepHead, TokenLogprob
from runtime.interface import Step, Stepped
from tests.node.pipeline_fakes import LAYERS, Member, expected, members, route
from tests.support.virtual_time import run_virtual
from tests.support.wait import until

SHORT = [3, 14, 15, 92]
LONG = [(7 * at) % 97 for at in range(700)]


def request(stages: list[StageSpec], prompt: list[int], new_max: int) -> PipelineRequest:
    return PipelineRequest(ModelId(bytes(32)), stages, prompt, new_max, [], Sampling(), "bf16", vocabulary=97, prompt=len(prompt))


def virtually(test: Callable[[list[Member], MemoryHub], Awaitable[None]], count: int = 6) -> None:
    async def main() -> None:
        hub = MemoryHub(11, delay=(0.001, 0.003), stall=0.0)
        nodes = await members(hub, count)
        try:
            await test(nodes, hub)
            await until(lambda: not any(node.room.open for node in nodes), 3.0, "rooms given back")
        finally:
            for node in nodes:
                await node.network.stop()

    run_virtual(main())


async def tokens(
    entry: Member, wanted: PipelineRequest, change: Callable[[StageLost], list[StageSpec]], at: int, harm: Callable[[], None]
) -> list[int]:
    """The reply, `harm` done after `at` tokens; `change` gives the route after each loss."""
    made: list[int] = []
    stages = wanted.stages
    async with Pipeline(entry.network, entry.steps, entry.server, wanted) as pipeline:
        while len(made) < wanted.new_max:
            try:
                await pipeline.reroute(stages)
                async for sampled in pipeline.run():
                    made.append(sampled.token)
                    if len(made) == at:
                        harm()
            except StageLost as lost:
                if isinstance(lost.cause, Conflict):
                    pipeline.start_over()
                stages = change(lost)
    return made


def swapped(stages: list[StageSpec], gone: PeerId, new: PeerId) -> list[StageSpec]:
    return [replace_peer(stage, new) if stage.peer == gone else stage for stage in stages]


def replace_peer(stage: StageSpec, peer: PeerId) -> StageSpec:
    return StageSpec(peer, stage.first, stage.end)


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("harm", ["kill", "freeze", "worker", "leave"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_stage_is_replaced_alone(which: int, harm: str, prompt: list[int]) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages = route(*(node.peer for node in nodes[1:4]))
        victim, other, lost = nodes[1 + which], nodes[4], []

        def do() -> None:
            if harm == "worker":
                victim.worker.break_at = 0
            elif harm == "leave":
                leaving.append(victim.server.leave())
            else:
                getattr(hub, harm)(victim.peer)

        def change(loss: StageLost) -> list[StageSpec]:
            lost.append(loss)
            return swapped(stages, victim.peer, other.peer)

        leaving: list[Awaitable[None]] = []
        wanted = request(stages, prompt, 40)
        task = asyncio.ensure_future(tokens(nodes[0], wanted, change, 20, do))
        while not task.done():
            await asyncio.sleep(0.05)
            while leaving:
                await leaving.pop()
        assert await task == expected(prompt, 40)
        assert [loss.peer for loss in lost] == [victim.peer]
        hub.thaw(victim.peer)
        # The others saw each position once, and the last one again: nobody ran the prompt a second time.
        for kept in [node for node in nodes[1:4] if node is not victim]:
            assert sum(count for _position, count in kept.worker.steps) <= len(prompt) + 40 + 2
        rebuilt = [position for position, _count in other.worker.steps]
        assert rebuilt[0] == 0
        assert max(count for _position, count in other.worker.steps) <= CUT

    virtually(test)


@pytest.mark.parametrize("new_max", [12, 30])
def test_a_token_that_comes_between_the_loss_and_the_next_route_is_kept(new_max: int) -> None:
    """The others finish the step they are in; where it gives the last token there is nothing left to do."""

    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages, made = route(*(node.peer for node in nodes[1:4])), list[int]()
        async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, request(stages, SHORT, new_max)) as pipeline:

            async def read() -> None:
                async for sampled in pipeline.run():
                    made.append(sampled.token)
                    if len(made) == 11:
                        pipeline._lose(StageLost(nodes[1].peer, "its worker ended"))

            with pytest.raises(StageLost):
                await read()
            await until(lambda: bool(pipeline._inbox), 3.0, "the step under way gives a token")
            await pipeline.reroute(swapped(stages, nodes[1].peer, nodes[4].peer))
            made += [sampled.token async for sampled in pipeline.run()]
        assert made == expected(SHORT, new_max)
        assert bool(nodes[4].worker.steps) == (new_max > 12)

    virtually(test)


def test_two_neighbours_lost_at_once_are_both_rebuilt() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages = route(*(node.peer for node in nodes[1:4]))

        def do() -> None:
            hub.kill(nodes[2].peer)
            hub.kill(nodes[3].peer)

        def change(loss: StageLost) -> list[StageSpec]:
            return [stages[0], replace_peer(stages[1], nodes[4].peer), replace_peer(stages[2], nodes[5].peer)]

        assert await tokens(nodes[0], request(stages, LONG, 30), change, 10, do) == expected(LONG, 30)

    virtually(test)


def test_a_second_loss_while_the_first_is_being_replaced() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages = route(*(node.peer for node in nodes[1:4]))

        def change(loss: StageLost) -> list[StageSpec]:
            if loss.peer == nodes[2].peer:
                hub.kill(nodes[4].peer)
                return swapped(stages, nodes[2].peer, nodes[4].peer)
            return swapped(stages, nodes[2].peer, nodes[5].peer)

        assert await tokens(nodes[0], request(stages, LONG, 30), change, 10, lambda: hub.kill(nodes[2].peer)) == expected(LONG, 30)

    virtually(test)


def test_another_cut_of_the_layers_starts_over_where_it_must() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages = route(*(node.peer for node in nodes[1:4]))
        other = [stages[0], StageSpec(nodes[4].peer, stages[0].end, LAYERS)]
        made = await tokens(nodes[0], request(stages, SHORT, 30), lambda loss: other, 10, lambda: hub.kill(nodes[2].peer))
        assert made == expected(SHORT, 30)

    virtually(test)


@pytest.mark.parametrize("why", ["recurrent", "log"])
def test_stages_that_cant_go_back_start_over_from_the_tokens(why: str) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages = route(*(node.peer for node in nodes[1:4]))
        conflicts = []
        if why == "recurrent":
            for node in nodes:
                node.worker.recurrent = True
        else:
            for node in nodes:
                node.server._parts = replace(node.server._parts, logs=LogRoom(16))

        def change(loss: StageLost) -> list[StageSpec]:
            conflicts.append(isinstance(loss.cause, Conflict))
            return swapped(stages, nodes[2].peer, nodes[4].peer)

        made = await tokens(nodes[0], request(stages, LONG, 30), change, 10, lambda: hub.kill(nodes[2].peer))
        assert made == expected(LONG, 30)
        assert conflicts == [False, True]

    virtually(test)


NAN = (0x7FC0).to_bytes(2, "little")
SPOILT: dict[str, Callable[[Step, Stepped], Stepped]] = {
    "NaN": lambda step, done: Stepped(hidden=NAN + (done.hidden or b"")[2:], dtype="bf16", shape=done.shape),
    "infinity": lambda step, done: Stepped(hidden=(done.hidden or b"")[:-2] + b"\x80\xff", dtype="bf16", shape=done.shape),
    "a row too many": lambda step, done: Stepped(hidden=(done.hidden or b"") * 2, dtype="bf16", shape=[2, 2]),
    "rows too wide": lambda step, done: Stepped(hidden=(done.hidden or b"") + bytes(4), dtype="bf16", shape=[1, 4]),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_stage_that_answers_nonsense_is_named_and_replaced(what: str) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages, losses = route(*(node.peer for node in nodes[1:4])), []

        def do() -> None:
            nodes[2].worker.spoil = SPOILT[what]

        def change(loss: StageLost) -> list[StageSpec]:
            losses.append((loss.peer, loss.accuser))
            return swapped(stages, nodes[2].peer, nodes[4].peer)

        assert await tokens(nodes[0], request(stages, SHORT, 30), change, 10, do) == expected(SHORT, 30)
        assert losses == [(nodes[2].peer, nodes[3].peer)]

    virtually(test)


@pytest.mark.parametrize("token", [97, -1])
def test_a_token_that_isnt_one_is_named_and_replaced(token: int) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages, losses = route(*(node.peer for node in nodes[1:4])), []

        def do() -> None:
            nodes[3].worker.spoil = lambda step, done: Stepped(token=token)

        def change(loss: StageLost) -> list[StageSpec]:
            losses.append(loss.peer)
            return swapped(stages, nodes[3].peer, nodes[4].peer)

        assert await tokens(nodes[0], request(stages, SHORT, 30), change, 10, do) == expected(SHORT, 30)
        assert losses == [nodes[3].peer]

    virtually(test)


ROW = [TokenLogprob(0, -1.0), TokenLogprob(5, -0.5), TokenLogprob(6, -1.5)]
CANT_BE: dict[str, Callable[[StepHead], None]] = {
    "an end that is none": lambda head: setattr(head, "finish", "stop"),
    "a word that is none": lambda head: setattr(head, "finish", "x" * 99),
    "none": lambda head: setattr(head, "logprobs", None),
    "too few": lambda head: head.logprobs.pop(),  # type: ignore[union-attr]
    "too many": lambda head: head.logprobs.append(TokenLogprob(7, -2.0)),  # type: ignore[union-attr]
    "another token": lambda head: head.logprobs.__setitem__(0, TokenLogprob(96, -1.0)),  # type: ignore[union-attr]
    "no token": lambda head: head.logprobs.__setitem__(2, TokenLogprob(97, -1.5)),  # type: ignore[union-attr]
    "twice": lambda head: head.logprobs.__setitem__(2, TokenLogprob(5, -0.5)),  # type: ignore[union-attr]
    "NaN": lambda head: head.logprobs.__setitem__(1, TokenLogprob(5, float("nan"))),  # type: ignore[union-attr]
    "infinity": lambda head: head.logprobs.__setitem__(2, TokenLogprob(6, float("-inf"))),  # type: ignore[union-attr]
    "above certainty": lambda head: head.logprobs.__setitem__(1, TokenLogprob(5, 0.5)),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("what", CANT_BE)
def test_a_finish_or_logprobs_that_cant_be_is_named(what: str) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages, losses, spoil = route(*(node.peer for node in nodes[1:4])), [], [False]
        for node in nodes:
            node.worker.spoil = lambda step, done: (
                Stepped(token=done.token, logprobs=[TokenLogprob(done.token, -1.0), *ROW[1:]]) if done.token is not None else done
            )
        ordinary = nodes[3].steps.post

        def post(peer: PeerId, head: StepHead, raw: bytes, failed: object) -> None:
            if spoil[0] and head.kind == "token" and peer == nodes[0].peer:
                CANT_BE[what](head)
            ordinary(peer, head, raw, failed)  # type: ignore[arg-type]

        nodes[3].steps.post = post  # type: ignore[method-assign,assignment]

        def change(loss: StageLost) -> list[StageSpec]:
            losses.append((loss.peer, loss.accuser))
            return swapped(stages, nodes[3].peer, nodes[4].peer)

        wanted = replace(request(stages, SHORT, 30), sampling=Sampling(logprobs=2))
        assert await tokens(nodes[0], wanted, change, 10, lambda: spoil.__setitem__(0, True)) == expected(SHORT, 30)
        assert losses == [(nodes[3].peer, nodes[0].peer)]

    virtually(test)


def test_an_end_that_isnt_told_is_named() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages, ordinary = route(nodes[1].peer, nodes[2].peer), nodes[2].steps.post

        def post(peer: PeerId, head: StepHead, raw: bytes, failed: object) -> None:
            head.finish = None
            ordinary(peer, head, raw, failed)  # type: ignore[arg-type]

        nodes[2].steps.post = post  # type: ignore[method-assign,assignment]
        wanted = replace(request(stages, SHORT, 30), stop_tokens=[expected(SHORT, 5)[4]])
        async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, wanted) as pipeline:
            with pytest.raises(StageLost, match="ends by") as caught:
                _ = [sampled async for sampled in pipeline.run()]
        assert (caught.value.peer, caught.value.accuser) == (nodes[2].peer, nodes[0].peer)

    virtually(test)


@pytest.mark.parametrize("wrong", ["session", "epoch", "dtype", "position", "nothing"])
def test_frames_that_dont_fit_are_noticed_and_their_sender_replaced(wrong: str) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages, losses = route(*(node.peer for node in nodes[1:4])), []
        steps = nodes[2].steps
        ordinary = steps.post

        def spoilt(peer: PeerId, head: object, raw: bytes, failed: object) -> None:
            if wrong == "session":
                head.session = bytes(16)  # type: ignore[attr-defined]
            elif wrong == "epoch":
                head.epoch += 1  # type: ignore[attr-defined]
            elif wrong == "dtype":
                head.dtype = "fp16"  # type: ignore[attr-defined]
            elif wrong == "position":
                head.position += 1  # type: ignore[attr-defined]
            else:
                return
            ordinary(peer, head, raw, failed)  # type: ignore[arg-type]

        def do() -> None:
            steps.post = spoilt  # type: ignore[method-assign,assignment]

        def change(loss: StageLost) -> list[StageSpec]:
            losses.append(loss.peer)
            return swapped(stages, nodes[2].peer, nodes[4].peer)

        assert await tokens(nodes[0], request(stages, SHORT, 30), change, 10, do) == expected(SHORT, 30)
        assert losses == [nodes[2].peer]

    virtually(test)


def test_a_frozen_stage_pauses_the_reply_no_longer_than_its_silence() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        loop = asyncio.get_running_loop()
        stages, at = route(*(node.peer for node in nodes[1:4])), []

        def change(loss: StageLost) -> list[StageSpec]:
            at.append(loop.time())
            return swapped(stages, nodes[2].peer, nodes[4].peer)

        def freeze() -> None:
            at.append(loop.time())
            hub.freeze(nodes[2].peer)

        assert await tokens(nodes[0], request(stages, SHORT, 30), change, 10, freeze) == expected(SHORT, 30)
        assert at[1] - at[0] <= SILENCE + 0.6
        hub.thaw(nodes[2].peer)

    virtually(test)


def test_a_long_prompt_overlaps_in_cuts() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        prompt = [at % 97 for at in range(2_000)]
        wanted = request(route(nodes[1].peer, nodes[2].peer), prompt, 4)
        assert await tokens(nodes[0], wanted, lambda loss: wanted.stages, 0, lambda: None) == expected(prompt, 4)
        assert [count for _at, count in nodes[2].worker.steps[:8]] == [CUT] * 7 + [2_000 - 7 * CUT]

    virtually(test)


def test_cuts_end_where_they_must() -> None:
    assert list(cuts(0, 0, 600)) == [range(0, 256), range(256, 512), range(512, 600)]
    assert list(cuts(0, 599, 600)) == [range(0, 256), range(256, 512), range(512, 599), range(599, 600)]
    assert list(cuts(599, 599, 600)) == [range(599, 600)]
    assert list(cuts(0, 0, 1)) == [range(0, 1)]


def test_the_log_gives_back_rows_in_cuts_and_forgets_what_was_taken_back() -> None:
    room = LogRoom(10_000)
    log = StepLog(room)
    log.add(0, 300, bytes(range(250)) + bytes(50))
    for at in range(300, 320):
        log.add(at, 1, bytes([at % 256]))
    log.truncate(310)
    log.add(310, 2, b"ab")
    whole = b"".join(sent.raw for sent in log.since(0))
    assert (len(whole), whole[-2:], log.end) == (312, b"ab", 312)
    assert [(sent.position, sent.count) for sent in log.since(0)] == [(0, 256), (256, 56)]
    assert [(sent.position, sent.count, sent.raw) for sent in log.since(311)] == [(311, 1, b"b")]
    log.truncate(100)
    assert [(sent.position, sent.count) for sent in log.since(0)] == [(0, 100)]
    log.drop()
    assert not log.complete
    assert room.take(10_000)


def test_a_log_beyond_the_bound_is_given_up_and_gives_its_memory_back() -> None:
    room = LogRoom(100)
    one, other = StepLog(room), StepLog(room)
    one.add(0, 1, bytes(80))
    other.add(0, 1, bytes(80))
    assert one.complete
    assert not other.complete
    one.drop()
    assert room.take(100)
