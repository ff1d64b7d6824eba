"""Where a reply goes on after a loss, and which stages others may share."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from node.losses import Losses
from node.reply_routes import PATIENCE, ReplyRoutes
from node.stage_link import StageLost
from node.stage_patience import StagePatience
from protocol.errors import Busy, Unavailable
from protocol.ids import ModelId, PeerId
from protocol.messages import StageSpec
from runtime.routing import Plan
from tests.support.virtual_time import run_virtual

ME, A, B, C = (PeerId(name) for name in ("me", "a", "b", "c"))
MODEL = ModelId(bytes(32))
ROUTE = [StageSpec(A, 0, 2), StageSpec(B, 2, 4)]


class Router:
    """Notes what it is asked; `refuses` so many times."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.refuses = 0
        self.hope = False
        self.running: list[StageSpec] = []

    def _answer(self, what: str, told: Any, stages: list[StageSpec]) -> Plan:
        self.asked.append((what, told))
        if self.refuses:
            self.refuses -= 1
            raise Unavailable("no route")
        return Plan("pipeline", stages, "")

    def plan(self, located: Any, tokens_max: int, precision: str, avoid: set[PeerId], running: list[StageSpec], *, force: bool) -> Plan:
        return self._answer("plan", running, ROUTE)

    def replace(self, located: Any, plan: Plan, gone: set[PeerId], *rest: Any, force: bool) -> Plan:
        avoid, self.running = rest[2], rest[4]
        taker = next(peer for peer in (ME, C) if peer not in avoid)
        return self._answer("replace", gone, [StageSpec(taker, one.first, one.end) if one.peer in gone else one for one in plan.stages])

    def may_come_back(self) -> bool:
        return self.hope


def reply(made: int = 0, precision: str = "bf16") -> Any:
    return SimpleNamespace(
        located=SimpleNamespace(model=MODEL), tokens_max=9, request=SimpleNamespace(precision=precision, force=False), losses=Losses(ME),
        made=[1] * made, plan=Plan("pipeline", ROUTE, ""), patience=StagePatience(), moved=0.0,
    )  # fmt: skip


def routes() -> tuple[Router, ReplyRoutes]:
    router = Router()
    return router, ReplyRoutes(router)  # type: ignore[arg-type]


@pytest.mark.parametrize("made", [0, 5])
def test_the_stages_that_are_left_stay_before_the_first_token_too(made: int) -> None:
    async def main() -> None:
        router, ways = routes()
        await ways.after(reply(made), StageLost(B, "silent"), {B})
        assert router.asked == [("replace", {B})]

    run_virtual(main())


def test_a_reply_that_hasnt_begun_goes_anywhere_where_a_stage_is_full() -> None:
    async def main() -> None:
        router, ways = routes()
        await ways.after(reply(), StageLost(B, "full", Busy("full")), {B})
        await ways.after(reply(3), StageLost(B, "full", Busy("full")), {B})
        assert [what for what, _told in router.asked] == ["plan", "replace"]

    run_virtual(main())


def test_stages_are_shared_while_they_run_in_the_same_precision() -> None:
    async def main() -> None:
        router, ways = routes()
        with ways.running(reply()):
            await ways.first(reply())
            await ways.first(reply(precision="fp32"))
        await ways.first(reply())
        assert [told for _what, told in router.asked] == [ROUTE, [], []]

    run_virtual(main())


@pytest.mark.parametrize(("made", "hope", "gives_up_after"), [(0, False, 0.0), (0, True, PATIENCE), (4, False, PATIENCE)])
def test_who_waits_for_a_route(made: int, hope: bool, gives_up_after: float) -> None:
    async def main() -> None:
        router, ways = routes()
        router.refuses, router.hope = 10**6, hope
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match="no route; before that, stage at b: silent"):
            await ways.after(reply(made), StageLost(B, "silent"), {B})
        assert asyncio.get_running_loop().time() - began == pytest.approx(gives_up_after, abs=0.5)
        router.refuses = 3
        if gives_up_after:
            assert (await ways.after(reply(made), StageLost(B, "silent"), {B})).stages == [ROUTE[0], StageSpec(ME, 2, 4)]

    run_virtual(main())


@pytest.mark.parametrize(("warm", "taker"), [([StageSpec(C, 0, 2)], C), ([StageSpec(C, 2, 4)], ME), ([], ME)])
def test_a_stage_of_this_nodes_own_goes_where_it_is_warm_while_the_worker_starts(warm: list[StageSpec], taker: PeerId) -> None:
    async def main() -> None:
        standbys = SimpleNamespace(prepared=lambda model, precision: warm, forget=lambda peers: None)
        ways = ReplyRoutes(Router(), standbys)  # type: ignore[arg-type]
        asked, lost = reply(5), StageLost(ME, "the worker ended")
        asked.plan = Plan("pipeline", [StageSpec(ME, 0, 2), ROUTE[1]], "")
        asked.losses.note(lost, asyncio.get_running_loop().time())
        assert (await ways.after(asked, lost, {ME})).stages == [StageSpec(taker, 0, 2), ROUTE[1]]

    run_virtual(main())


def test_what_one_reply_has_chosen_the_others_may_choose_while_it_waits_for_it() -> None:
    async def main() -> None:
        router, ways = routes()
        one, other, lost = reply(5), reply(5), StageLost(B, "silent")
        one.plan = await ways.after(one, lost, {B})
        ways.chose(one)
        assert router.running == []
        await ways.first(other)
        assert router.asked[-1] == ("plan", one.plan.stages)
        other.plan = await ways.after(other, lost, {B})
        ways.chose(other)
        assert router.running == one.plan.stages
        await ways.after(one, lost, {B})
        assert router.running == other.plan.stages, "of the other one, and not its own"
        with ways.running(other):
            await ways.after(one, lost, {B})
            assert router.running == other.plan.stages, "on which it runs now"
        await ways.after(one, lost, {B})
        assert router.running == []

    run_virtual(main())


def test_what_is_made_here_is_none_of_others_routes() -> None:
    async def main() -> None:
        router, ways = routes()
        one = reply()
        one.plan = Plan("here", [StageSpec(ME, 0, 4)], "")
        ways.chose(one)
        await ways.first(reply())
        assert router.asked == [("plan", [])]

    run_virtual(main())


@pytest.mark.parametrize(("cause", "forgotten"), [(None, [{B}]), (Busy("full"), [])])
def test_a_node_where_a_stage_was_lost_isnt_believed_to_stand_by(cause: Busy | None, forgotten: list[set[PeerId]]) -> None:
    async def main() -> None:
        told: list[set[PeerId]] = []
        standbys = SimpleNamespace(prepared=lambda model, precision: [], forget=told.append)
        ways = ReplyRoutes(Router(), standbys)  # type: ignore[arg-type]
        await ways.after(reply(5), StageLost(B, "lost", cause), {B})
        assert told == forgotten

    run_virtual(main())
