"""Gathers what the planner needs: who may run layers of this model, with how much memory, under the asker's privacy."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterable

from node.figures import PeerFigures
from node.locate import Located
from node.model_cost import StageCost
from node.served import roads
from node.stage_room import StageRoom
from node.swarm.interface import PeerView, Swarm
from protocol.errors import BadInput, Unavailable
from protocol.ids import PeerId
from protocol.layout import check_runnable, layer_count
from runtime.architectures import whole_only
from runtime.layer_path import Road
from runtime.routing import Offer, Plan, Shape, plan_route
from runtime.served_route import plan_served


class Router:
    """`privacy` local|trusted|swarm, `ends` remote|local are the owner's choices for what this node asks of others."""

    def __init__(
        self, me: PeerId, swarm: Swarm, room: StageRoom, privacy: str, ends: str, figures: PeerFigures, rng: random.Random | None = None
    ) -> None:
        self._me = me
        self._swarm = swarm
        self._room = room
        self._privacy = privacy
        self._ends_here = ends == "local"
        self._figures = figures
        self._rng = rng or random.Random(secrets.randbits(64))

    def plan(self, located: Located, tokens_max: int, precision: str, avoid: Iterable[PeerId] = ()) -> Plan:
        """The route for a session of `tokens_max` positions; `Unavailable` when there is none."""
        check_runnable(located.manifest)
        layers = layer_count(located.manifest)
        if layers < 1:
            raise BadInput("this model has no layers to run; it can be fetched, not run")
        cost = StageCost(located.manifest, precision)
        shape = Shape(layers, lambda first, end: cost.total(first, end, tokens_max))
        offers = self.offers(located, set(avoid))
        served = None if self._ends_here else plan_served(shape, offers, self._roads(located, precision), self._rng)
        plan = served or plan_route(shape, offers, ends_here=self._ends_here)
        why = whole_only(located.manifest.summary.model_type)
        if len(plan.stages) > 1 and why is not None:
            raise Unavailable(
                f"no route: {located.manifest.summary.model_type} models can't be cut ({why}), "
                "and no node that may run this one has room for all of it",
                hint="raise --max-memory, or let more peers in (--privacy, mf-node trust)",
            )
        return plan

    def offers(self, located: Located, avoid: set[PeerId]) -> list[Offer]:
        held = {
            view.peer: sum(len(entry.shards) for entry in view.held) + 1_000 * len(view.full)
            for view in self._swarm.holdings(located.model)
        }
        mine = Offer(self._me, self._room.memory, 0.0, held.get(self._me, 0), here=True)
        others = [
            Offer(view.peer, view.record.memory or 0, view.rtt or 0.1, held.get(view.peer, 0))
            for view in self._swarm.peers()
            if view.record is not None and self._may_run(view) and view.peer not in avoid
        ]
        return [mine, *others] if self._me not in avoid else others

    def fits(self, located: Located, first: int, end: int, tokens_max: int, precision: str) -> set[str]:
        """Who may be asked for these layers and has the memory for a session there."""
        needed = StageCost(located.manifest, precision).total(first, end, tokens_max)
        return {offer.peer for offer in self.offers(located, set()) if offer.memory >= needed}

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
                found += roads(view, precision, peer.rtt, figures.layer(view.peer), figures.queue(view.peer, now))
        return found

    def _may_run(self, view: PeerView) -> bool:
        record = view.record
        if record is None or not view.routable or record.lend not in ("compute", "both") or not record.memory:
            return False
        if view.peer == self._me or self._swarm.banned(view.peer) or self._privacy == "local":
            return False
        return self._privacy == "swarm" or self._swarm.trusted(view.peer)
