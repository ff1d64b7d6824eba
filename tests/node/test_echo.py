"""A prompt is told back before its reply, with the logarithms of its own tokens where they are asked, whatever becomes of the route."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from node.echo import known_tokens
from node.gateway import Event, Finished, Piece
from node.network.memory import MemoryHub
from protocol import limits
from protocol.errors import BadInput, Unavailable
from protocol.messages import Sampling
from runtime.interface import Step, Stepped
from tests.node.pipeline_fakes import Member, expected, expected_scores, route
from tests.node.test_generate import PROMPT, Setting, said, shown, virtually

SCORED = {"echo": True, "sampling": Sampling(logprobs=0)}
TEXT = " ".join(map(str, PROMPT))


def logprobs(events: list[Event]) -> list[Any]:
    return [(one.raw, one.logprob) for event in events if isinstance(event, Piece) for one in event.logprobs]


def wanted(prompt: list[int]) -> list[Any]:
    scores = expected_scores(prompt)
    return [(b"%d" % prompt[0], None), *((b"%d" % prompt[at], scores[at][0].logprob) for at in range(1, len(prompt)))]


@pytest.mark.parametrize(("given", "told"), [({"text": TEXT}, TEXT), ({"text": None, "tokens": PROMPT}, shown(PROMPT))])
@pytest.mark.parametrize("scored", [False, True])
def test_the_prompt_comes_first(given: dict[str, Any], told: str, scored: bool) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[0].peer, nodes[1].peer))
        events = await setting.events(**given, **(SCORED if scored else {"echo": True}))
        assert isinstance(events[1], Piece)
        assert (events[1].text, events[1].tokens) == (told, 0)
        assert said(events[2:]) == shown(expected(PROMPT, 8))
        assert logprobs(events[:2]) == (wanted(PROMPT) if scored else [])
        assert not setting.text.open

    virtually(test)


def test_a_prompt_of_one_token_has_no_logarithm() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        events = await Setting(nodes, route(nodes[1].peer)).events(text="5", **SCORED)
        assert logprobs(events[:2]) == [(b"5", None)]

    virtually(test)


def test_a_long_one_comes_whole() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        prompt = [(31 * at) % 97 for at in range(1500)]
        events = await Setting(nodes, route(nodes[1].peer, nodes[2].peer)).events(text=None, tokens=prompt, **SCORED)
        assert logprobs(events[:2]) == wanted(prompt)

    virtually(test)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_stage_that_is_lost_within_the_prompt_changes_nothing(lost: int) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        prompt, steps = [(31 * at) % 97 for at in range(1500)], count()

        def kill(step: Step, done: Stepped) -> Stepped:
            if next(steps) == 2:
                hub.kill(nodes[lost].peer)
            return done

        nodes[lost].worker.spoil = kill
        setting = Setting(nodes, route(nodes[1].peer, nodes[2].peer), route(nodes[0].peer, nodes[3].peer))
        events = await setting.events(text=None, tokens=prompt, **SCORED)
        assert logprobs(events[:2]) == wanted(prompt)
        assert said(events[2:]) == shown(expected(prompt, 8))
        assert isinstance(events[-1], Finished)
        assert events[-1].replaced >= 1

    virtually(test)


def test_a_stage_that_knows_no_scores_is_said_so() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        def forget(step: Step, done: Stepped) -> Stepped:
            done.scored = None
            return done

        nodes[1].worker.spoil = forget
        with pytest.raises(Unavailable, match="of 4 tokens of the prompt 0 came back"):
            await Setting(nodes, route(nodes[1].peer)).events(**SCORED)

    virtually(test)


def test_too_long_a_prompt_is_refused_before_any_plan() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer))
        with pytest.raises(BadInput, match="echo"):
            await setting.events(text=None, tokens=[1] * (limits.MAX_ARRAY + 1), **SCORED)
        assert not setting.routes.asked

    virtually(test)


def test_tokens_are_the_models() -> None:
    assert known_tokens([0, 96], 97) == [0, 96]
    for strange in (97, -1):
        with pytest.raises(BadInput, match=f"token {strange} isn't") as caught:
            known_tokens([1, strange], 97)
        assert caught.value.details == {"param": "prompt"}
