"""However a reply ends, what was drawn of it is run again as far as it was heard, counted as what it was, and kept where it parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.evidence_store import EvidenceStore
from node.heard import Listening
from node.network.memory import MemoryHub
from protocol.messages import StageSpec
from protocol.prints import open_prints
from tests.node.audit_of_stages_world import GREEDY, PROMPT, World, world
from tests.node.pipeline_fakes import LAYERS
from tests.node.test_stage_audit import over, virtually
from tests.support.virtual_time import run_virtual

T = TypeVar("T")


class AtOnce(EvidenceStore):
    """Without a thread: time is virtual."""

    async def _run(self, work: Callable[[], T]) -> T:
        return work()


def steps(made: World) -> dict[str, int]:
    told: dict[str, int] = made.tally.told()["steps"]
    assert told["drawn"] == told["audited"] + told["dropped"], "nothing waits any more"
    return told


def slowly(made: World, seconds: float = 0.02) -> None:
    """Each stage takes so long for a step, so that statements come while the reply is made."""
    for node in made.nodes:
        worker = node.worker

        def begin(step: object, done: object, worker: object = worker) -> None:
            loop = asyncio.get_running_loop()
            loop.call_later(seconds, lambda: done(worker.compute(step)))  # type: ignore[attr-defined, operator]

        worker.begin_step = begin  # type: ignore[assignment, method-assign]


def test_a_reply_that_its_caller_left_is_looked_at_as_far_as_it_was_heard() -> None:
    async def test(made: World) -> None:
        slowly(made)
        made.worker(2).skips = {3}
        await made.reply([over(made, 1, 2, 3)], new=200, stop_after=80, over=False)
        await asyncio.sleep(20)
        told = steps(made)
        assert told["run"] == told["drawn"] == len(PROMPT) + 79
        assert 60 < told["audited"] < told["drawn"]
        assert made.told == ["wrong"]
        assert [peer for peer, _, _ in made.blames] == [made.nodes[2].peer]

    virtually(test)


def test_one_that_ended_by_a_stop_string_is_held_for_the_last_words() -> None:
    async def test(made: World) -> None:
        slowly(made)
        await made.reply([over(made, 1, 2, 3)], new=200, stop_after=50, over=True)
        await asyncio.sleep(20)
        assert steps(made) == {"run": 79, "drawn": 79, "audited": 79, "dropped": 0}
        assert made.told == ["agreed"]

    virtually(test)


def test_behind_what_stages_kept_of_an_earlier_session_nobody_but_the_first_is_blamed() -> None:
    for liar, word in ((1, "wrong"), (2, "undecided"), (3, "undecided")):

        async def test(made: World, liar: int = liar, word: str = word) -> None:
            made.worker(liar).skips = {2 * liar - 2}
            listening, tokens = await made.reply([over(made, 1, 2, 3)], new=60)
            for rows in listening.heard.rows:
                for side in (rows.inputs, rows.outputs):
                    for row in range(20):
                        side.pop(row, None)
            await made.auditor.over(listening, made.located, "bf16", GREEDY, tokens, whole=True, behind=20)
            await asyncio.sleep(20)
            assert made.told == [word]
            assert steps(made) == {"run": 69, "drawn": 69, "audited": 69, "dropped": 0}
            assert [peer for peer, _, _ in made.blames] == ([made.nodes[1].peer] if liar == 1 else [])

        virtually(test)


def test_what_was_hardly_heard_is_dropped_and_counted_so() -> None:
    async def test(made: World) -> None:
        await made.reply([over(made, 1, 2)], new=200, prompt=[5, 6, 7], stop_after=4, over=False)
        await asyncio.sleep(20)
        assert made.told == ["short"]
        assert steps(made) == {"run": 6, "drawn": 6, "audited": 0, "dropped": 6}
        assert made.tally.told()["sessions"] == {"run": 1, "drawn": 1, "done": 0, "dropped": 1, "convictions": 0, "unknown": 0}

    virtually(test)


def test_over_each_of_its_routes_where_stages_were_replaced() -> None:
    async def test(made: World) -> None:
        slowly(made)
        made.pause = 1.0
        routes = [over(made, 1, 2, 3), over(made, 1, 4, 3), over(made, 5, 4, 3)]
        await made.reply(routes, new=90, change_after=30, over=True)
        await asyncio.sleep(30)
        assert made.told == ["agreed"] * 3
        told = steps(made)
        assert told["run"] == told["drawn"] == len(PROMPT) + 89
        assert told["audited"] >= told["drawn"] - 20, "half a second of each route wasn't heard any more"
        assert made.blames == []

    virtually(test)


def test_a_stage_that_lied_before_it_went_is_named_and_who_came_after_isnt() -> None:
    for cheat in (1, 2, 3):

        async def test(made: World, cheat: int = cheat) -> None:
            slowly(made)
            made.pause = 1.0
            made.worker(cheat).skips = {2 * cheat - 2}
            made.worker(cheat).wrong_token = cheat == 3
            rest = [4 if number == cheat else number for number in (1, 2, 3)]
            await made.reply([over(made, 1, 2, 3), over(made, *rest)], new=90, change_after=40, over=True)
            await asyncio.sleep(30)
            assert made.told == ["wrong", "agreed"]
            assert [peer for peer, _, _ in made.blames] == [made.nodes[cheat].peer]

        virtually(test)


def test_so_is_one_that_came_later() -> None:
    async def test(made: World) -> None:
        slowly(made)
        made.pause = 1.0
        made.worker(4).skips = {2}
        await made.reply([over(made, 1, 2, 3), over(made, 1, 4, 3)], new=90, change_after=40, over=True)
        await asyncio.sleep(30)
        assert made.told == ["agreed", "wrong"]
        assert [peer for peer, _, _ in made.blames] == [made.nodes[4].peer]

    virtually(test)


def test_a_last_stage_answers_for_its_own_tokens_alone() -> None:
    async def test(made: World) -> None:
        slowly(made)
        made.pause = 1.0
        made.worker(3).wrong_token = True
        await made.reply([over(made, 1, 2, 3), over(made, 1, 2, 4)], new=90, change_after=40, over=True)
        await asyncio.sleep(30)
        assert made.told == ["wrong", "agreed"]
        assert [peer for peer, _, _ in made.blames] == [made.nodes[3].peer]

    virtually(test)


def test_rows_of_guesses_that_were_wrong_are_left_out_where_their_correction_wasnt_heard() -> None:
    async def test(made: World) -> None:
        listening, tokens = await made.reply([over(made, 1, 2)], new=60)
        heard, last = listening.heard, len(tokens) - 2
        heard.settle(tokens)
        assert [max(rows.inputs) for rows in heard.rows] == [last, last]
        heard.rows[1].inputs[last - 4] = bytes(32)
        heard.settle(tokens)
        assert [max(rows.inputs) for rows in heard.rows] == [last, last - 5]
        heard.rows[0].inputs[last - 10] = bytes(32)
        heard.settle(tokens)
        assert [max(rows.inputs) for rows in heard.rows] == [last - 11, last - 11]
        heard.rows[0].inputs[3] = heard.rows[1].inputs[4] = bytes(32)
        heard.settle(tokens)
        assert [max(rows.inputs) for rows in heard.rows] == [last - 11, last - 11], "what was said long ago isn't a guess"

    virtually(test)


def test_what_was_said_before_stages_went_back_is_forgotten_once_they_did() -> None:
    async def test(made: World) -> None:
        listening, tokens = await made.reply([over(made, 1, 2)], new=60)
        first, second = listening.heard.stages
        listening.rerouted([first, StageSpec(made.nodes[3].peer, second.first, second.end)], tokens, [first])
        kept, new = listening.heard.rows
        assert (max(kept.inputs), new.inputs) == (len(tokens) - 2, {})
        listening.resumed(40)
        assert sorted(kept.inputs) == sorted(kept.outputs) == list(range(40))
        assert all(open_prints(one)[1].position < 40 for one in listening.heard.envelopes[0])
        listening.heard.settle([*tokens[:40], *[token + 1 for token in tokens[40:]]])
        assert max(kept.inputs) == 39

    virtually(test)


def test_of_a_session_that_wasnt_drawn_nothing_is_kept() -> None:
    async def test(made: World) -> None:
        made.allow([node.peer for node in made.nodes], part=0.0)
        listening, _tokens = await made.reply([over(made, 1, 2)])
        assert [len(rows.inputs) for rows in listening.heard.rows] == [0, 0]
        assert listening.heard.envelopes == [[], []]

    virtually(test)


def test_routes_of_one_session_are_bounded_and_none_of_its_steps_counted_twice() -> None:
    peers = ["a", "b", "c"]
    stages = [StageSpec(peer, 0, 2) for peer in peers]
    listening, tokens = Listening(stages[:1], bytes(16), True, 4), [1, 2, 3, 4]
    for number in range(1, 9):
        tokens = [*tokens, number]
        listening.rerouted(stages[number % 3 : number % 3 + 1], tokens, ())
    parts = listening.parts([*tokens, 9])
    assert len(parts) == 5
    assert sum(len(part.tokens) - 1 - part.since for part in parts) == len(tokens)
    assert [part.given for part in parts] == [4, 5, 6, 7, 12]


@pytest.mark.parametrize("parting", ["outputs", "tokens"])
def test_a_conviction_is_on_the_disk_says_nothing_of_the_text_and_holds_after_a_restart(tmp_path: Path, parting: str) -> None:
    """The whole way: a stage lies, is found, named and blamed; another process reads the evidence offline and comes to the same."""
    key = Ed25519PrivateKey.generate()

    async def main() -> tuple[str, list[int], bytes]:
        made = await world(MemoryHub(5, delay=(0.001, 0.003), stall=0.0), 6)
        made.store = AtOnce(tmp_path, key)
        await made.store.open()
        made.allow([node.peer for node in made.nodes])
        liar = 2 if parting == "outputs" else 3
        made.worker(liar).skips = {2} if parting == "outputs" else set()
        made.worker(liar).wrong_token = parting == "tokens"
        listening, tokens = await made.reply([over(made, 1, 2, 3)], new=40, over=True)
        await asyncio.sleep(20)
        assert made.told == ["wrong"]
        await made.auditor.close()
        made.store.close()
        for node in made.nodes:
            await node.network.stop()
        return made.nodes[liar].peer, tokens, listening.key

    liar, tokens, session_key = run_virtual(main())
    store = EvidenceStore(tmp_path, key)

    async def again() -> None:
        assert await store.open() == []
        [kept] = (await store.read(10, verify=True)).kept
        evidence = kept.evidence
        assert (kept.fault, evidence.wrong, evidence.parting, evidence.precision) == (None, liar, parting, "bf16")
        assert (evidence.first, evidence.end, [said.role for said in evidence.said]) == (
            *((2, 4) if parting == "outputs" else (4, 6)),
            ["session", "again", "third"],
        )
        assert {open_prints(one)[0] for one in evidence.said[0].statements} == {liar}

    asyncio.run(again())
    store.close()
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert liar.encode() in raw
    assert session_key not in raw
    assert session_key.hex().encode() not in raw
    for at in range(len(tokens) - 4):
        gram = tokens[at : at + 4]
        assert b"".join(token.to_bytes(4, "little") for token in gram) not in raw
        assert str(gram)[1:-1].encode() not in raw
    assert LAYERS == 6
