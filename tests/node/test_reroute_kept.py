"""What a stage has computed survives its neighbour: it isn't given up for a step that can't be brought, nor for guesses that were right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from node.network.memory import MemoryHub
from node.pipeline import Pipeline, StageLost
from node.steps import Failed
from protocol.errors import PeerFault
from protocol.ids import PeerId
from protocol.messages import SessionEvent, StepHead
from runtime.interface import Step, Stepped
from tests.node.pipeline_fakes import Member, expected, route
from tests.node.test_reroute import LONG, request, swapped, tokens, virtually


def times_begun(member: Member) -> int:
    """How often it computed the prompt's beginning."""
    return [position for position, _count in member.worker.steps].count(0)


@pytest.mark.parametrize("which", [0, 1], ids=["to the middle", "to the last"])
def test_a_step_that_cant_be_brought_costs_the_stage_before_nothing(which: int) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages, losses = route(*(node.peer for node in nodes[1:4])), []
        sender, victim = nodes[1 + which], nodes[2 + which]
        post = sender.steps.post

        def refused(peer: PeerId, head: StepHead, raw: bytes | memoryview, failed: Failed) -> None:
            if peer == victim.peer:
                failed(PeerFault("the connection has ended"))
            else:
                post(peer, head, raw, failed)

        def change(loss: StageLost) -> list[Any]:
            losses.append((loss.peer, loss.accuser))
            return swapped(stages, victim.peer, nodes[4].peer)

        made = await tokens(nodes[0], request(stages, LONG, 30), change, 10, lambda: setattr(sender.steps, "post", refused))
        assert made == expected(LONG, 30)
        assert losses == [(victim.peer, sender.peer)]
        assert [times_begun(node) for node in nodes[1:5]] == [1, 1, 1, 1]

    virtually(test)


def test_who_is_replaced_already_is_blamed_in_vain() -> None:
    """The word that a step can't be brought comes late: the entry has found the loss by itself."""

    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages, made = route(*(node.peer for node in nodes[1:4])), list[int]()
        async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, request(stages, LONG, 30)) as pipeline:
            late = SessionEvent(kind="alive", blames=nodes[2].peer, error=PeerFault("the connection has ended").to_wire())

            async def read(until: int) -> None:
                async for sampled in pipeline.run():
                    made.append(sampled.token)
                    if len(made) == until:
                        hub.kill(nodes[2].peer)

            with pytest.raises(StageLost):
                await read(10)
            await pipeline.reroute(swapped(stages, nodes[2].peer, nodes[4].peer))
            pipeline.links[0]._heard(late)
            await read(0)
        assert made == expected(LONG, 30)
        assert [times_begun(node) for node in (nodes[1], nodes[3], nodes[4])] == [1, 1, 1]

    virtually(test)


def test_one_that_fails_for_who_is_replaced_already_is_lost_itself() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages = route(*(node.peer for node in nodes[1:4]))
        async with Pipeline(nodes[0].network, nodes[0].steps, nodes[0].server, request(stages, LONG, 30)) as pipeline:
            await anext(pipeline.run())
            failed = SessionEvent(kind="failed", blames=nodes[5].peer, error=PeerFault("bytes that aren't a step").to_wire())
            pipeline.links[0]._heard(failed)
            assert pipeline._lost is not None
            assert (pipeline._lost.peer, pipeline._lost.accuser) == (nodes[1].peer, None)

    virtually(test)


@pytest.mark.parametrize("which", [1, 2], ids=["middle", "last"])
def test_guesses_that_were_right_are_positions_of_the_first_stage_while_it_computes_the_next(which: int) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        stages, losses = route(*(node.peer for node in nodes[1:4])), []
        for node in nodes:
            node.room.goes_back, node.worker.words = True, 1
        victim, slow = nodes[1 + which], nodes[1].worker
        begin = slow.begin_step

        def later(step: Step, done: Callable[[Stepped | Any], None]) -> None:
            asyncio.get_running_loop().call_later(0.3, begin, step, done)

        def harm() -> None:
            slow.begin_step = later  # type: ignore[method-assign]
            hub.kill(victim.peer)

        def change(loss: StageLost) -> list[Any]:
            losses.append(loss.peer)
            return swapped(stages, victim.peer, nodes[4].peer)

        made = await tokens(nodes[0], request(stages, [0] * 40, 120), change, 20, harm)
        assert made == [0] * 120
        assert losses == [victim.peer]
        assert [times_begun(node) for node in nodes[1:5] if node is not victim] == [1, 1, 1]

    virtually(test)
