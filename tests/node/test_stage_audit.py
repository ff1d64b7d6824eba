"""Who computes something else is found, by the stage and not by what follows from it; the honest never; and nobody is asked
that the owner's privacy doesn't allow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from node.network.memory import MemoryHub
from node.stage_audit import WAITING, Ended, checkable, seeded
from protocol.framing import pack, unpack
from protocol.ids import PeerId
from protocol.messages import SESSION_PROTOCOL, STEP_PROTOCOL, Grammar, LogitBias, OpenSession, Sampling, StageSpec, parse_step
from protocol.prints import open_prints
from runtime.trial import Parting
from tests.node.audit_of_stages_world import PROMPT, World, world
from tests.node.pipeline_fakes import LAYERS, route
from tests.support.virtual_time import run_virtual

Test = Callable[[World], Awaitable[None]]


def virtually(test: Test, count: int = 6, experts: bool = False) -> None:
    async def main() -> None:
        made = await world(MemoryHub(5, delay=(0.001, 0.003), stall=0.0), count, experts)
        try:
            await test(made)
        finally:
            await made.auditor.close()
            for node in made.nodes:
                await node.network.stop()

    run_virtual(main())


def over(made: World, *numbers: int) -> list[StageSpec]:
    return route(*(made.nodes[number].peer for number in numbers))


async def run_audit(made: World, session: Ended) -> Any:
    verdict = await made.auditor.audit(session)
    await made.auditor.note(session, verdict)
    return verdict


def test_honest_stages_agree() -> None:
    async def test(made: World) -> None:
        session = await made.session(over(made, 1, 2, 3))
        verdict = await run_audit(made, session)
        assert (verdict.difference, verdict.wrong, made.blames, made.told) == (None, None, [], ["agreed"])
        assert verdict.why == "the two agree"
        assert verdict.audited == len(session.tokens) - 1

    virtually(test)


@pytest.mark.parametrize("cheat", [0, 1, 2])
def test_a_layer_skipped_is_found_at_its_stage(cheat: int) -> None:
    async def test(made: World) -> None:
        made.worker(1 + cheat).skips = {2 * cheat}
        verdict = await run_audit(made, await made.session(over(made, 1, 2, 3)))
        assert verdict.difference is not None
        assert (verdict.difference.index, verdict.difference.parting) == (cheat, Parting.OUTPUTS)
        assert verdict.wrong == made.nodes[1 + cheat].peer
        [(peer, layers, _why)] = made.blames
        assert peer == verdict.wrong
        assert f"layers {2 * cheat}..{2 * cheat + 2} " in layers
        assert [(role, len(signed) > 0) for role, (_, signed) in verdict.sides.items()] == [
            ("session", True),
            ("again", True),
            ("third", True),
        ]

    virtually(test)


def test_where_memory_is_short_a_part_of_the_stages_is_run_again_each_time_another() -> None:
    async def test(made: World) -> None:
        made.allow([made.nodes[0].peer], stages=1)
        stages = over(made, 1, 2, 3)
        session, again = await made.session(stages), set()
        for _ in range(12):
            verdict = await made.auditor.audit(session)
            assert verdict.why == "the two agree"
            again |= {index for index, peer in enumerate(verdict.asked) if peer == made.nodes[0].peer}
            assert len([peer for peer in verdict.asked if peer == made.nodes[0].peer]) == 1
            assert all(peer in (made.nodes[0].peer, stage.peer) for peer, stage in zip(verdict.asked, stages, strict=True))
        assert again == {0, 1, 2}

    virtually(test)


def test_other_tokens_are_the_last_stages() -> None:
    async def test(made: World) -> None:
        made.worker(3).wrong_token = True
        verdict = await run_audit(made, await made.session(over(made, 1, 2, 3)))
        assert verdict.difference is not None
        assert (verdict.difference.index, verdict.difference.parting) == (2, Parting.TOKENS)
        assert verdict.wrong == made.nodes[3].peer

    virtually(test)


def test_a_whole_model_at_one_peer_is_looked_at_too() -> None:
    async def test(made: World) -> None:
        made.worker(2).skips = {4}
        verdict = await run_audit(made, await made.session(over(made, 2)))
        assert verdict.wrong == made.nodes[2].peer

    virtually(test)


@pytest.mark.parametrize("lie", ["skips", "lies"])
def test_a_false_witness_is_the_one_blamed(lie: str) -> None:
    async def test(made: World) -> None:
        made.allow([made.nodes[number].peer for number in (1, 2, 3, 4, 5)])  # the entry itself may not help out
        session = await made.session(over(made, 1, 2))
        for number in (3, 4, 5):
            made.worker(number).skips = {1} if lie == "skips" and number == 3 else set()
            made.worker(number).lies = lie == "lies" and number == 3
        wrongs = set()
        for _ in range(6):
            wrongs.add((await made.auditor.audit(session)).wrong)
        assert wrongs <= {None, made.nodes[3].peer}
        assert made.nodes[3].peer in wrongs

    virtually(test)


def test_without_a_third_nobody_is_blamed() -> None:
    async def test(made: World) -> None:
        made.worker(1).skips = {0}
        session = await made.session(over(made, 1, 2))
        made.allow([made.nodes[number].peer for number in (1, 3)])
        verdict = await run_audit(made, session)
        assert verdict.difference is not None
        assert (verdict.wrong, made.blames) == (None, [])
        assert "no third" in verdict.why
        assert made.told == ["undecided"]

    virtually(test, 4)


def test_where_nobody_else_is_left_who_ran_other_layers_decides() -> None:
    async def test(made: World) -> None:
        made.worker(1).skips = {0}
        session = await made.session(over(made, 1, 2))
        made.allow([made.nodes[number].peer for number in (1, 2, 3)])
        verdict = await run_audit(made, session)
        assert verdict.sides["third"][0] == made.nodes[2].peer
        assert verdict.wrong == made.nodes[1].peer

    virtually(test, 4)


def test_nor_for_a_model_with_experts() -> None:
    async def test(made: World) -> None:
        made.worker(1).skips = {0}
        verdict = await run_audit(made, await made.session(over(made, 1, 2)))
        assert verdict.difference is not None
        assert (verdict.wrong, made.blames) == (None, [])
        assert "experts" in verdict.why

    virtually(test, experts=True)


def test_tokens_that_the_last_stage_slips_to_the_first_are_nobodys_proof() -> None:
    async def test(made: World) -> None:
        session = await made.session(over(made, 1, 2), new=60)
        row = len(PROMPT) + 3
        session.heard.rows[0].inputs[row] = bytes(32)
        verdict = await run_audit(made, session)
        assert (verdict.wrong, made.blames) == (None, [])
        assert "other tokens" in verdict.why

    virtually(test)


def test_nobody_else_allowed_nobody_asked() -> None:
    async def test(made: World) -> None:
        made.allow([made.nodes[1].peer, made.nodes[2].peer])
        session = await made.session(over(made, 1, 2))
        ran = [made.worker(number).ran for number in range(6)]
        verdict = await run_audit(made, session)
        assert verdict.why == "nobody else may be asked"
        assert [made.worker(number).ran for number in range(6)] == ran

    virtually(test)


def test_only_who_is_allowed_sees_a_session_again() -> None:
    async def test(made: World) -> None:
        made.worker(1).skips = {0}
        session = await made.session(over(made, 1, 2))
        made.allow([made.nodes[number].peer for number in (0, 1, 2, 3)])
        assert (await run_audit(made, session)).wrong == made.nodes[1].peer
        assert made.worker(3).ran > 0
        assert made.worker(4).ran == made.worker(5).ran == 0

    virtually(test)


def test_a_stage_that_says_nothing_is_told_of_and_not_blamed() -> None:
    async def test(made: World) -> None:
        made.worker(1).skips = {0}
        made.nodes[1].server.seal = None
        verdict = await run_audit(made, await made.session(over(made, 1, 2, 3)))
        assert (verdict.wrong, made.blames, made.told) == (None, [], ["silent"])
        assert verdict.silent == (made.nodes[1].peer,)

    virtually(test)


def test_one_in_so_many_sessions_is_run_again_in_the_background() -> None:
    async def test(made: World) -> None:
        peers = [node.peer for node in made.nodes]
        made.allow(peers, part=0.0)
        await made.reply([over(made, 1, 2)], over=True)
        assert made.tally.told()["steps"] == {"run": 59, "drawn": 0, "audited": 0, "dropped": 0}
        made.allow(peers, part=1.0)
        await made.reply([over(made, 1, 2)], over=True)
        await asyncio.sleep(5)
        assert made.told == ["agreed"]
        await made.reply([over(made, 0)], over=True)
        assert made.tally.told()["steps"] == {"run": 59, "drawn": 59, "audited": 59, "dropped": 0}, "own stages need no witness"

    virtually(test)


def test_drawn_sessions_wait_for_the_audit_before_them_within_bounds() -> None:
    async def test(made: World) -> None:
        session = await made.session(over(made, 1, 2))
        for _ in range(WAITING + 2):
            made.auditor.take(session)
        await asyncio.sleep(50)
        assert sorted(made.told) == ["agreed"] * WAITING + ["skipped"] * 2

    virtually(test)


def test_drawn_about_as_often_as_said() -> None:
    async def test(made: World) -> None:
        made.allow([], part=0.015)
        drawn = sum(made.auditor.listen(over(made, 1), 1).chosen for _ in range(4_000))
        assert 30 <= drawn <= 95

    virtually(test, 2)


def test_a_statement_of_another_stage_or_session_is_left_out() -> None:
    async def test(made: World) -> None:
        session = await made.session(over(made, 1, 2))
        fresh, [one, two] = made.auditor.listen(over(made, 1, 2), 1).heard, session.heard.stages
        [first, second] = [envelopes[0] for envelopes in session.heard.envelopes]
        fresh.take(one, bytes(16), [first])
        fresh.take(two, bytes(16), [first, second])
        fresh.take(StageSpec(one.peer, 1, 2), open_prints(first)[1].session, [first])
        assert [len(rows.inputs) for rows in fresh.rows] == [0, 0]

    virtually(test)


def test_what_a_stage_says_again_and_again_isnt_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(made: World) -> None:
        session = await made.session(over(made, 1, 2))
        heard, envelope = session.heard, session.heard.envelopes[0][0]
        _signer, prints = open_prints(envelope)
        monkeypatch.setattr("node.heard.MAX_SAID", 20_000)
        heard.take(heard.stages[0], prints.session, [envelope] * 100)
        assert 0 < sum(map(len, heard.envelopes[0])) <= 20_000

    virtually(test)


CANARY = [1_234 % 97, 41, 17, 93, 29, 71, 53, 11, 67, 5, 88, 23, 46, 3, 59, 31, 76, 14, 95, 38]


def test_with_both_ends_here_no_other_node_gets_a_token_in_session_or_audit() -> None:
    async def test(made: World) -> None:
        me, sent = made.nodes[0], list[tuple[PeerId, str, bytes]]()
        _record(made, sent)
        stages = [
            StageSpec(me.peer, 0, 1),
            StageSpec(made.nodes[1].peer, 1, 3),
            StageSpec(made.nodes[2].peer, 3, LAYERS - 1),
            StageSpec(me.peer, LAYERS - 1, LAYERS),
        ]
        made.worker(1).skips = {1}
        session = await made.session(stages, prompt=CANARY, sampling=Sampling(seed=41))
        assert (await run_audit(made, session)).wrong == made.nodes[1].peer
        frames = [frame for peer, _protocol, frame in sent if peer != me.peer]
        assert len(frames) > 60
        kinds = {parse_step(frame)[0].kind for peer, protocol, frame in sent if protocol == STEP_PROTOCOL and peer != me.peer}
        assert kinds == {"hidden"}
        for _peer, protocol, frame in sent:
            if protocol == SESSION_PROTOCOL:
                opening = unpack(frame, OpenSession, "session")
                assert (opening.check, opening.reply, opening.sampling) == (None, None, Sampling())
        grams = [session.tokens[at : at + 4] for at in range(len(session.tokens) - 4)]
        for gram in grams:
            for form in (b"".join(token.to_bytes(4, "little") for token in gram), b"".join(pack(token) for token in gram)):
                assert not any(form in frame for frame in frames)

    virtually(test)


def _record(made: World, sent: list[tuple[PeerId, str, bytes]]) -> None:
    """All frames that any node sends on a stream it opened."""
    for node in made.nodes:
        network: Any = node.network

        def listening(network: Any = network, opened: Any = network.open) -> Any:
            async def open_(peer: PeerId, protocol: str, timeout: float = 5.0) -> Any:
                stream = await opened(peer, protocol, timeout)
                send = stream.send

                async def sending(frame: bytes, *more: Any) -> None:
                    sent.append((peer, protocol, bytes(frame)))
                    await send(frame, *more)

                stream.send = sending
                return stream

            return open_

        network.open = listening()


def test_draws_can_be_made_again_and_bent_ones_arent_checked() -> None:
    assert seeded(Sampling()).seed is None
    assert seeded(Sampling(temperature=0.7, seed=4)).seed == 4
    drawn = seeded(Sampling(temperature=0.7, top_k=5))
    assert drawn.seed is not None
    assert drawn.top_k == 5
    assert drawn.seed != seeded(Sampling(temperature=0.7)).seed
    assert checkable(drawn)
    for bent in (
        Sampling(presence_penalty=0.1),
        Sampling(logit_bias=[LogitBias(1, 2.0)]),
        Sampling(grammar=Grammar("json")),
        Sampling(min_p=0.1),
    ):
        assert not checkable(bent)
