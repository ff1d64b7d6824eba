"""Stand-bys stay ready for as long as replies go on, each stage's at a node of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from node.standby import AGAIN, AT_ONCE, RENEW, StandBys
from protocol.errors import Busy
from protocol.ids import ModelId, PeerId
from protocol.messages import OpenSession, StageSpec
from runtime.routing import Offer, Plan
from runtime.stand_by import stand_by
from tests.support.virtual_time import run_virtual

MODEL, ME = ModelId(bytes(32)), PeerId("me")
ROUTE = [StageSpec("a", 0, 2), StageSpec("b", 2, 4), StageSpec("c", 4, 6)]


class Setting:
    """Three spare nodes, each with memory for one stage; `answer` is what being asked comes to."""

    def __init__(self, answer: Callable[[OpenSession], Awaitable[None]]) -> None:
        self.asked: list[StageSpec] = []
        self.at_once = self.most_at_once = 0
        self._answer = answer
        router: Any = SimpleNamespace(stand_by=self._stand_by)
        network: Any = SimpleNamespace(peer_id=ME)
        self.standbys = StandBys(network, router, SimpleNamespace())  # type: ignore[arg-type]
        self.standbys._ask = self._ask  # type: ignore[method-assign]

    @staticmethod
    def _stand_by(
        _located: Any,
        plan: Plan,
        stage: StageSpec,
        _tokens: int,
        _precision: str,
        avoid: set[PeerId],
        prepared: set[StageSpec],
        *,
        ahead: bool,
    ) -> StageSpec | None:
        offers = [Offer(name, 2) for name in ("x", "y", "z") if PeerId(name) not in avoid]
        return stand_by(stage, plan.stages, offers, _layers, _layers, prepared, ahead=ahead)

    async def _ask(self, model: ModelId, spec: StageSpec, plan: Plan, tokens_max: int, precision: str) -> None:
        self.asked.append(spec)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self._answer(spec)  # type: ignore[arg-type]
        finally:
            self.at_once -= 1

    def prepare(self, stages: list[StageSpec] = ROUTE) -> None:
        located: Any = SimpleNamespace(model=MODEL)
        self.standbys.prepare(located, Plan("pipeline", stages, ""), 9, "bf16", set())

    @property
    def ready(self) -> dict[str, int]:
        """Which stage, by its first layer, each node is ready for."""
        return {spec.peer: spec.first for spec in self.standbys.prepared(MODEL, "bf16")}


def _layers(first: int, end: int) -> int:
    return end - first


def test_each_stage_has_one_and_they_get_ready_side_by_side() -> None:
    async def main() -> None:
        setting = Setting(lambda _spec: asyncio.sleep(3))
        setting.prepare()
        await asyncio.sleep(3.1)
        assert setting.ready == {"x": 0, "y": 2, "z": 4}
        assert 1 < setting.most_at_once <= AT_ONCE
        await setting.standbys.close()

    run_virtual(main())


def test_they_are_renewed_while_replies_go_on_and_forgotten_afterwards() -> None:
    async def main() -> None:
        setting = Setting(lambda _spec: asyncio.sleep(0))
        for second in range(int(4 * AGAIN)):
            setting.prepare(ROUTE[:1])
            await asyncio.sleep(1)
            assert setting.ready == {"x": 0}
            assert len(setting.asked) == second // RENEW + 1
        await asyncio.sleep(AGAIN)
        assert setting.ready == {}
        await setting.standbys.close()

    run_virtual(main())


def test_where_one_refuses_the_next_is_asked_and_it_is_left_alone_for_a_while() -> None:
    refusing = {"x"}

    async def answer(spec: Any) -> None:
        if spec.peer in refusing:
            raise Busy("its memory is in use")

    async def main() -> None:
        setting = Setting(answer)
        setting.prepare(ROUTE[:1])
        await asyncio.sleep(1)
        assert setting.ready == {"y": 0}
        assert [spec.peer for spec in setting.asked] == ["x", "y"]
        refusing.add("y")  # its worker died, and others took the room
        await asyncio.sleep(RENEW)
        setting.prepare(ROUTE[:1])
        await asyncio.sleep(1)
        assert [spec.peer for spec in setting.asked] == ["x", "y", "y", "z"]
        assert setting.ready == {"z": 0}
        await setting.standbys.close()

    run_virtual(main())


def test_one_where_a_stage_was_lost_is_asked_again_at_once() -> None:
    async def main() -> None:
        setting = Setting(lambda _spec: asyncio.sleep(0))
        setting.prepare()
        await asyncio.sleep(0.1)
        assert setting.ready == {"x": 0, "y": 2, "z": 4}
        setting.standbys.forget({PeerId("y")})
        assert setting.ready == {"x": 0, "z": 4}
        setting.prepare()
        await asyncio.sleep(0.1)
        assert setting.ready == {"x": 0, "y": 2, "z": 4}
        assert [spec.peer for spec in setting.asked[3:]] == ["y"]
        await setting.standbys.close()

    run_virtual(main())
