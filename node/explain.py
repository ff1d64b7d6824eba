"""Says where a model would run and why, without running it: the route, who was considered and refused, what to expect of it."""

from __future__ import annotations

from typing import Any

from node.locate import Located, Locator
from node.model_cost import StageCost
from node.route import Router
from node.stage_room import StageRoom
from node.swarm.interface import Swarm
from protocol.errors import BadInput, Unavailable
from protocol.ids import PeerId, model_text
from protocol.layout import check_runnable, layer_count
from runtime.expectation import OverBudget, Paces, expect, network_seconds
from runtime.routing import Offer, Plan

PLAN_TOKENS = 2_048
PROMPT_TOKENS = 128
"""A question of this many tokens is what the time to the first token is told for."""


class Explainer:
    def __init__(self, me: PeerId, swarm: Swarm, locator: Locator, router: Router, paces: Paces, room: StageRoom) -> None:
        self._me = me
        self._swarm = swarm
        self._locator = locator
        self._router = router
        self._paces = paces
        self._room = room

    async def explain(self, model: str, tokens: int | None = None, precision: str = "bf16", force: bool = False) -> dict[str, Any]:
        """The document of `mf-node explain`; `kind` "none" where there is no route, with the reason in `why`."""
        tokens = PLAN_TOKENS if tokens is None else tokens
        if not 1 <= tokens <= 1 << 22:
            raise BadInput(f"tokens is {tokens}, 1 to {1 << 22} can be planned for")
        located = await self._locator.locate(self._swarm.resolve(model))
        check_runnable(located.manifest)
        offers = self._router.offers(located, set())
        made: dict[str, Any] = {"model_id": model_text(located.model), "tokens": tokens, "precision": precision}
        try:
            plan, hint = self._plan(located, tokens, precision, force)
        except Unavailable as error:
            none: dict[str, Any] = {
                "kind": "none",
                "why": error.message,
                "hint": error.hint,
                "stages": [],
                "expected": None,
                "budget": None,
                "engine": None,
            }
            return made | none | {"considered": self._considered(located, offers, None, tokens, precision)}
        made |= {"kind": plan.kind, "why": plan.why, "hint": hint, **self._figures(located, plan, offers, tokens, precision, force)}
        made |= {"engine": self._engine(located, plan, tokens, precision)}
        return made | {"considered": self._considered(located, offers, plan, tokens, precision)}

    def _plan(self, located: Located, tokens: int, precision: str, force: bool) -> tuple[Plan, str | None]:
        """What a request gets; where that is a refusal for the budget, what `force` would run, and the hint that comes with the refusal."""
        try:
            return self._router.plan(located, tokens, precision, force=force), None
        except OverBudget as error:
            return self._router.plan(located, tokens, precision, force=True), error.hint

    def _engine(self, located: Located, plan: Plan, tokens: int, precision: str) -> dict[str, str] | None:
        """What this node's own part would run on; None: it has none. Others choose for themselves."""
        mine = next((stage for stage in plan.stages if stage.peer == self._me), None)
        if mine is None:
            return None
        choice = self._room.engine(located, mine.first, mine.end, precision, tokens)
        return {"name": choice.engine, "why": choice.why}

    def _figures(self, located: Located, plan: Plan, offers: list[Offer], tokens: int, precision: str, force: bool) -> dict[str, Any]:
        cost, rtt = StageCost(located.manifest, precision), {offer.peer: offer.rtt for offer in offers}
        prompt = min(PROMPT_TOKENS, tokens)
        expected = expect(plan.stages, lambda first, end: cost.total(first, end, 0), rtt, self._paces, prompt)
        stages = [
            {
                "peer": stage.peer,
                "first": stage.first,
                "end": stage.end,
                "here": stage.peer == self._me,
                "bytes": cost.total(stage.first, stage.end, tokens),
                "rtt_ms": round(1e3 * rtt.get(stage.peer, 0.0), 1),
                "ms_per_token": round(1e3 * part.seconds_per_token, 2),
                "basis": part.basis,
                "queue_ms": self._queue_ms(stage.peer),
            }
            for stage, part in zip(plan.stages, expected.stages, strict=True)
        ]
        needed, budget = network_seconds(plan.stages, rtt), self._router.budget
        return {
            "stages": stages,
            "expected": {
                "tokens_per_second": round(1 / expected.per_token, 2),
                "first_token_seconds": round(expected.first_token, 3),
                "prompt_tokens": prompt,
                "loading": "not counted",
            },
            "budget": {
                "needed_ms": round(1e3 * needed, 1),
                "budget_ms": round(1e3 * budget, 1),
                "within": needed <= budget,
                "refused": needed > budget and not force,
            },
        }

    def _queue_ms(self, peer: str) -> float | None:
        """What a step waits there for its turn now, as that node measured it; None where it didn't tell of late."""
        seconds = self._router.queue(PeerId(peer))
        return None if seconds is None else round(1e3 * seconds, 2)

    def _considered(self, located: Located, offers: list[Offer], plan: Plan | None, tokens: int, precision: str) -> list[dict[str, Any]]:
        """Every node known: taken, not needed, or refused with the reason."""
        used = {stage.peer for stage in plan.stages} if plan is not None else set()
        whole = StageCost(located.manifest, precision).total(0, layer_count(located.manifest), tokens)
        lines = []
        for offer in offers:
            fits = "has room for the whole model" if offer.memory >= whole else "has room for a part of the model"
            verdict = "taken" if offer.peer in used else f"{fits}, isn't needed"
            lines.append(_line(offer.peer, offer.memory, offer.rtt, offer.held, verdict, refused=False))
        asked = {offer.peer for offer in offers}
        for peer, reason in self._router.refused().items():
            if peer not in asked:
                lines.append(_line(peer, None, None, None, reason, refused=True))
        return lines


def _line(peer: str, memory: int | None, rtt: float | None, held: int | None, verdict: str, *, refused: bool) -> dict[str, Any]:
    rtt_ms = None if rtt is None else round(1e3 * rtt, 1)
    return {"peer": peer, "memory": memory, "rtt_ms": rtt_ms, "shards_held": held, "refused": refused, "verdict": verdict}
