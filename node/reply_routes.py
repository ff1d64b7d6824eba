"""The routes of this node's replies: where one begins, where it goes on after a loss, and who stands by meanwhile.

A reply that has begun waits for a route as long as somebody may come back. Over whole nodes' stages that run other replies just now it
begins too, where those make a chain: they are loaded and warm, and a node that has just died is none of them. After a loss the stages
that are left stay, whether a token has come or not: whoever has their layers would have to load them anew. Replies that begin together,
or lose the same stage together, go over the same nodes: what one has chosen and waits for, the others choose too, instead of each having
another node load the layers, and then having to wait until one of them has room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

from node.losses import is_full
from node.reply import Reply
from node.route import Router
from node.stage_link import StageLost
from node.standby import StandBys
from protocol.errors import Unavailable
from protocol.ids import ModelId, PeerId
from protocol.messages import StageSpec
from runtime.routing import Plan

PATIENCE = 20.0
"""Seconds that a reply waits for a route when there is none for the moment."""
PAUSE = 0.25


class ReplyRoutes:
    def __init__(self, router: Router, standbys: StandBys | None = None) -> None:
        self._router = router
        self._standbys = standbys
        self._running: list[tuple[ModelId, str, StageSpec]] = []
        self._chosen: dict[int, list[tuple[ModelId, str, StageSpec]]] = {}

    async def first(self, reply: Reply) -> Plan:
        """At once, or when peers that lend compute don't answer just now, once they do."""
        end = asyncio.get_running_loop().time() + PATIENCE / 2
        while True:
            try:
                return self._anew(reply, set())
            except Unavailable:
                if asyncio.get_running_loop().time() > end or not self._router.may_come_back():
                    raise
            await asyncio.sleep(PAUSE)

    async def after(self, reply: Reply, lost: StageLost, gone: set[PeerId]) -> Plan:
        """Without whom the reply avoids; where only full nodes are left, over them, to wait there. Waits for a route while somebody may
        come back, then asks whoever there is."""
        self.over(reply)
        if self._standbys is not None and not is_full(lost):
            self._standbys.forget(gone)
        end = asyncio.get_running_loop().time() + PATIENCE
        while True:
            now = asyncio.get_running_loop().time()
            avoid, hopeless = reply.losses.avoided(now), reply.losses.avoided(now, full=False)
            try:
                return self._without(reply, lost, gone, avoid, hopeless)
            except Unavailable as error:
                if now > end or (not reply.made and not self._router.may_come_back() and not avoid):
                    raise Unavailable(f"{error.message}; before that, {lost.message}", hint=error.hint, details=error.details) from lost
            await asyncio.sleep(PAUSE)

    def chose(self, reply: Reply) -> None:
        """Others may choose what its plan is too while it waits for that."""
        if reply.plan is not None and reply.plan.kind != "here":
            self._chosen[id(reply)] = _named(reply, reply.plan)

    def over(self, reply: Reply) -> None:
        """It waits for no route any more."""
        self._chosen.pop(id(reply), None)

    @contextmanager
    def running(self, reply: Reply) -> Iterator[None]:
        """Its route is one that others may share while this lasts."""
        self.over(reply)
        mine = _named(reply, reply.plan)
        self._running += mine
        try:
            yield
        finally:
            for stage in mine:
                self._running.remove(stage)

    def prepare(self, reply: Reply) -> None:
        """Has its stages' stand-bys ready, as far as there are any."""
        if self._standbys is not None and reply.plan is not None:
            avoid = reply.losses.avoided(reply.moved)
            self._standbys.prepare(reply.located, reply.plan, reply.tokens_max, reply.request.precision, avoid)

    def _without(self, reply: Reply, lost: StageLost, gone: set[PeerId], avoid: set[PeerId], hopeless: set[PeerId]) -> Plan:
        """Over nodes that aren't full, where there is such a route; else over any that aren't `hopeless`."""
        if starting := reply.losses.starting(asyncio.get_running_loop().time()):
            plan = self._warm(reply, lost, gone, avoid | starting)
            if plan is not None:
                reply.patience.waits = False
                return plan
        try:
            plan, reply.patience.waits = self._avoiding(reply, lost, gone, avoid), False
        except Unavailable:
            if avoid == hopeless:
                raise
            plan, reply.patience.waits = self._avoiding(reply, lost, gone, hopeless), True
        return plan

    def _warm(self, reply: Reply, lost: StageLost, gone: set[PeerId], avoid: set[PeerId]) -> Plan | None:
        """A route all of whose new stages are loaded; None where there is none."""
        assert reply.plan is not None
        try:
            plan = self._avoiding(reply, lost, gone, avoid)
        except Unavailable:
            return None
        loaded = [*reply.plan.stages, *self._prepared(reply), *self._others(reply)]
        return plan if all(stage in loaded and stage.peer not in avoid for stage in plan.stages) else None

    def _avoiding(self, reply: Reply, lost: StageLost, gone: set[PeerId], avoid: set[PeerId]) -> Plan:
        assert reply.plan is not None
        if not reply.made and is_full(lost):
            return self._anew(reply, avoid)
        precision, ready = reply.request.precision, self._prepared(reply)
        force, others = reply.request.force, self._shared(reply)
        return self._router.replace(reply.located, reply.plan, gone, reply.tokens_max, precision, avoid, ready, others, force=force)

    def _anew(self, reply: Reply, avoid: set[PeerId]) -> Plan:
        others, force = self._shared(reply), reply.request.force
        return self._router.plan(reply.located, reply.tokens_max, reply.request.precision, avoid, others, force=force)

    def _prepared(self, reply: Reply) -> list[StageSpec]:
        """Stages at nodes that got ready for them."""
        return self._standbys.prepared(reply.located.model, reply.request.precision) if self._standbys is not None else []

    def _others(self, reply: Reply) -> list[StageSpec]:
        """Stages of this model that other replies of this node run on."""
        return _of(reply, self._running)

    def _shared(self, reply: Reply) -> list[StageSpec]:
        """Those, and the stages that other replies have chosen and wait for."""
        return self._others(reply) + _of(reply, chain.from_iterable(self._chosen.values()))


def _named(reply: Reply, plan: Plan | None) -> list[tuple[ModelId, str, StageSpec]]:
    return [(reply.located.model, reply.request.precision, stage) for stage in plan.stages] if plan is not None else []


def _of(reply: Reply, stages: Iterable[tuple[ModelId, str, StageSpec]]) -> list[StageSpec]:
    wanted = reply.located.model, reply.request.precision
    return [stage for model, precision, stage in stages if (model, precision) == wanted]
