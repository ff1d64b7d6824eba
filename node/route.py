"""Gathers what the planner needs: who may run layers of this model, with how much memory, under the asker's privacy."""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterable

from node.figures import PeerFigures
from node.locate import Located
from node.model_cost import StageCost
from node.remedies import remedies
from node.served import roads
from node.stage_room import StageRoom
from node.swarm.interface import PeerView, Swarm
from protocol.errors import BadInput, Unavailable
from protocol.ids import PeerId
from protocol.layout import check_runnable, layer_count
from protocol.messages import StageSpec
from runtime.architectures import whole_only
from runtime.expectation import OverBudget, check_budget
from runtime.layer_path import Road
from runtime.routing import Offer, Plan, Shape, plan_route, whole_at
from runtime.served_route import Fresh, beside, plan_served
from runtime.stand_by import stand_by

ROUND_TRIP_BUDGET = 0.4
"""Seconds per token that a route may spend on the network unless it is forced."""


class Router:
    """`privacy` local|trusted|swarm, `ends` remote|local are the owner's choices for what this node asks of others."""

    def __init__(
        self,
        me: PeerId,
        swarm: Swarm,
        room: StageRoom,
        privacy: str,
        ends: str,
        budget: float = ROUND_TRIP_BUDGET,
        figures: PeerFigures | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._me = me
        self._swarm = swarm
        self._room = room
        self._privacy = privacy
        self._ends_here = ends == "local"
        self.budget = budget
        self._figures = figures or PeerFigures()
        self._rng = rng or random.Random(secrets.randbits(64))

    def plan(
        self,
        located: Located,
        tokens_max: int,
        precision: str,
        avoid: Iterable[PeerId] = (),
        running: Collection[StageSpec] = (),
        *,
        force: bool = False,
        begun: bool = False,
    ) -> Plan:
        """The route for a session of `tokens_max` positions; `Unavailable` when there is none, or none within the round-trip budget.

        Stages that are `running` for other replies come first, and a peer that runs one has only what that leaves for another: it may
        say that it has both loaded, but not beside sessions. A reply that has `begun` doesn't wait for a peer to load where there are
        loaded stages.
        """
        check_runnable(located.manifest)
        layers = layer_count(located.manifest)
        if layers < 1:
            raise BadInput("this model has no layers to run; it can be fetched, not run")
        cost = StageCost(located.manifest, precision)
        shape = Shape(layers, lambda first, end: cost.total(first, end, tokens_max))
        offers = self.offers(located, set(avoid))
        fresh = None if begun else self._fresh(shape, offers, cost.total(0, layers, 0), tokens_max)
        served = beside(self._roads(located, precision), running, shape, offers)
        shared = [*self._taken(running), *(road for road in served if (road.first, road.end) == (0, layers))] if running else []
        return (
            self._over(shared, located, shape, offers, fresh, force)
            or self._over(served, located, shape, offers, fresh, force)
            or self._dealt_near(located, shape, offers, tokens_max, precision, force)
        )

    def again(self, located: Located, stages: list[StageSpec], tokens_max: int, precision: str, *, force: bool = False) -> Plan | None:
        """The route of an earlier session, if all of it may be asked, has the memory and is within the budget; else None."""
        offers = {offer.peer: offer for offer in self.offers(located, set())}
        cost, layers = StageCost(located.manifest, precision), layer_count(located.manifest)
        needed = Counter[str]()
        for stage in stages:
            needed[stage.peer] += cost.total(stage.first, stage.end, tokens_max)
        ends = {stages[0].peer, stages[-1].peer}
        if stages[-1].end != layers or (self._ends_here and ends != {self._me}):
            return None
        if any(peer not in offers or offers[peer].memory < size for peer, size in needed.items()):
            return None
        try:
            check_budget(stages, {offer.peer: offer.rtt for offer in offers.values()}, self.budget, force)
        except Unavailable:
            return None
        kind = "pipeline" if len(stages) > 1 else "here" if stages[0].peer == self._me else "peer"
        return Plan(kind, stages, "the way of an earlier reply that began alike")

    def _dealt_near(self, located: Located, shape: Shape, offers: list[Offer], tokens_max: int, precision: str, force: bool) -> Plan:
        """As `_dealt`; where that spends too much on the network, without the slowest of it, as long as the others have the memory."""
        rtt, over = {offer.peer: offer.rtt for offer in offers}, None
        while True:
            try:
                plan = self._dealt(located, shape, offers, tokens_max, precision)
            except Unavailable as error:
                raise over or error from None
            try:
                check_budget(plan.stages, rtt, self.budget, force)
            except OverBudget as error:
                over = over or error
            else:
                return plan
            slowest = max((stage.peer for stage in plan.stages), key=rtt.__getitem__)
            offers = [offer for offer in offers if offer.peer != slowest]

    def _dealt(self, located: Located, shape: Shape, offers: list[Offer], tokens_max: int, precision: str) -> Plan:
        """By what nodes lend; where that isn't enough, the error says what would be."""
        try:
            plan = plan_route(shape, offers, ends_here=self._ends_here)
        except Unavailable as error:

            def whole(precision: str, tokens: int) -> int:
                return StageCost(located.manifest, precision).total(0, shape.layers, tokens)

            would_do = remedies(whole, precision, tokens_max, self._room.memory)
            raise Unavailable(error.message, hint=f"{would_do}; {error.hint}", details=error.details) from None
        why = whole_only(located.manifest.summary.model_type)
        if len(plan.stages) > 1 and why is not None:
            raise Unavailable(
                f"no route: {located.manifest.summary.model_type} models can't be cut ({why}), "
                "and no node that may run this one has room for all of it",
                hint="raise --max-memory, or let more peers in (--privacy, mf-node trust)",
            )
        return plan

    def replace(
        self,
        located: Located,
        plan: Plan,
        gone: set[PeerId],
        tokens_max: int,
        precision: str,
        avoid: set[PeerId],
        prepared: Collection[StageSpec] = (),
        running: Collection[StageSpec] = (),
        *,
        force: bool = False,
    ) -> Plan:
        """`plan` with stand-bys in place of the stages at `gone`, those `prepared` first; another plan where that can't be."""
        stages = list(plan.stages)
        for at, stage in enumerate(plan.stages):
            if stage.peer in gone:
                now = Plan(plan.kind, stages, plan.why)
                spec = self.stand_by(located, now, stage, tokens_max, precision, avoid, prepared, running)
                if spec is None:
                    return self.plan(located, tokens_max, precision, avoid, running, force=force, begun=True)
                stages[at] = spec
        kind = plan.kind if len(stages) > 1 else "here" if stages[0].peer == self._me else "peer"
        return Plan(kind, stages, f"{plan.why}; a stage that was lost is replaced")

    def stand_by(
        self,
        located: Located,
        plan: Plan,
        stage: StageSpec,
        tokens_max: int,
        precision: str,
        avoid: set[PeerId],
        prepared: Collection[StageSpec] = (),
        running: Collection[StageSpec] = (),
        *,
        ahead: bool = False,
    ) -> StageSpec | None:
        """As `runtime/stand_by.py` chooses, of those who may be asked; `ahead`: of any loss, to get ready for it."""
        cost = StageCost(located.manifest, precision)
        bound = self._ends_here and (stage.first == 0 or stage.end == layer_count(located.manifest))
        offers = [offer for offer in self.offers(located, avoid) if offer.here or not bound]

        def full(first: int, end: int) -> int:
            return cost.total(first, end, tokens_max)

        return stand_by(stage, plan.stages, offers, full, lambda first, end: cost.total(first, end, 0), prepared, running, ahead=ahead)

    def offers(self, located: Located, avoid: set[PeerId]) -> list[Offer]:
        held = {
            view.peer: sum(len(entry.shards) for entry in view.held) + 1_000 * len(view.full)
            for view in self._swarm.holdings(located.model)
        }
        now = time.monotonic()
        mine = Offer(self._me, self._room.memory, 0.0, held.get(self._me, 0), here=True)
        others = [
            Offer(view.peer, view.record.memory or 0, _about(view.rtt), held.get(view.peer, 0), layer=self._figures.layer(view.peer, now))
            for view in self._swarm.peers()
            if view.record is not None and self._may_run(view) and view.peer not in avoid and self._shared_with(located, view.peer)
        ]
        return [mine, *others] if self._me not in avoid else others

    def _over(
        self, found: list[Road], located: Located, shape: Shape, offers: list[Offer], fresh: Fresh | None, force: bool
    ) -> Plan | None:
        """Over stages that are loaded; None where there is no such chain within the budget, or none as quick as `fresh`."""
        if self._ends_here:
            return None
        if whole_only(located.manifest.summary.model_type) is not None:
            found = [road for road in found if (road.first, road.end) == (0, shape.layers)]
        plan = plan_served(shape, offers, found, self._rng, fresh)
        try:
            if plan is not None:
                check_budget(plan.stages, {offer.peer: offer.rtt for offer in offers}, self.budget, force)
        except Unavailable:
            return None
        return plan

    def _fresh(self, shape: Shape, offers: list[Offer], weights: int, tokens_max: int) -> Fresh | None:
        """The peer that would have to load the whole model first; None: there is none with the room."""
        best = whole_at(shape, offers, ends_here=self._ends_here)
        if best is None or best.here:
            return None
        peer, now = PeerId(best.peer), time.monotonic()
        road = Road(peer, 0, shape.layers, best.rtt, self._figures.layer(peer, now), self._figures.queue(peer, now))
        return Fresh(road, weights, tokens_max)

    def fits(self, located: Located, first: int, end: int, tokens_max: int, precision: str, beside: Iterable[StageSpec] = ()) -> set[str]:
        """Who may be asked for these layers and has the memory for a session there, `beside` the stages that it is to run as well."""
        cost, taken = StageCost(located.manifest, precision), Counter[str]()
        for stage in beside:
            taken[stage.peer] += cost.total(stage.first, stage.end, tokens_max)
        needed = cost.total(first, end, tokens_max)
        return {offer.peer for offer in self.offers(located, set()) if offer.memory >= needed + taken[offer.peer]}

    def serving(self, located: Located, first: int, end: int, precision: str) -> set[str]:
        """Who says it has just these layers loaded."""
        found = self._roads(located, precision)
        return {road.peer for road in found if (road.first, road.end) == (first, end)}

    def _roads(self, located: Located, precision: str) -> list[Road]:
        """Loaded stages of others, whoever they are; the plan takes those that made an offer."""
        now, found = time.monotonic(), list[Road]()
        for view in self._swarm.holdings(located.model):
            peer = self._swarm.peer(view.peer) if view.serves and view.peer != self._me else None
            if peer is not None:
                figures = self._figures
                found += roads(view, precision, peer.rtt, figures.layer(view.peer, now), figures.queue(view.peer, now))
        return found

    def _taken(self, stages: Collection[StageSpec]) -> list[Road]:
        """Loaded stages that this node's own replies run on."""
        now, found = time.monotonic(), list[Road]()
        for stage in set(stages):
            peer = PeerId(stage.peer)
            view, figures = self._swarm.peer(peer), self._figures
            rtt = 0.0 if peer == self._me else view.rtt if view is not None else None
            found.append(Road(peer, stage.first, stage.end, rtt, figures.layer(peer, now), figures.queue(peer, now)))
        return found

    def queue(self, peer: PeerId) -> float | None:
        """Seconds that a step waits there for its turn, as the peer told of late."""
        return self._figures.queue(peer, time.monotonic())

    def may_come_back(self) -> bool:
        """Whether a peer that would run layers for this node is known and doesn't answer just now."""
        return self._privacy != "local" and any(
            view.record is not None
            and not view.routable
            and view.record.lend in ("compute", "both")
            and (self._privacy == "swarm" or self._swarm.trusted(view.peer))
            for view in self._swarm.peers()
        )

    def refused(self) -> dict[PeerId, str]:
        """Peers that may not run anything for this node, and why."""
        reasons = {view.peer: self._why_not(view) for view in self._swarm.peers() if view.peer != self._me}
        return {peer: reason for peer, reason in reasons.items() if reason is not None}

    def _may_run(self, view: PeerView) -> bool:
        return view.peer != self._me and self._why_not(view) is None

    def _shared_with(self, located: Located, peer: PeerId) -> bool:
        """A private model goes to nodes that its publisher names and this node trusts, whatever `privacy` says."""
        return located.cover is None or (located.may_run_at(peer) and self._swarm.trusted(peer))

    def _why_not(self, view: PeerView) -> str | None:
        record = view.record
        if record is None:
            return "nothing is known of it yet"
        if record.lend not in ("compute", "both") or not record.memory:
            return "it lends no compute"
        if not view.routable:
            return "it doesn't answer now"
        if self._swarm.banned(view.peer):
            return "it sent wrong bytes and is banned for now"
        if self._privacy == "local":
            return "--privacy local: nothing leaves this node"
        if self._privacy != "swarm" and not self._swarm.trusted(view.peer):
            return "it isn't trusted (--privacy trusted; mf-node trust lets it in)"
        return None


def _about(rtt: float | None) -> float:
    """Round trips in steps of 5 ms: by less than that nothing is chosen, so that replies of one minute take one route, and share stages."""
    return 0.1 if rtt is None else max(1, round(rtt / 0.005)) * 0.005
