"""Stand-bys: for each stage of a running reply a node that could take it over, chosen ahead and told to load the layers.

Problem: when a stage dies the reply waits for another node to start its worker, fetch groups and load them: seconds, most of the pause.
Choice: once a reply has got going, the entry asks the best other node for each stage to prepare it (runtime/stand_by.py says which). That
node does so only in memory that nobody uses and only where the layers are small enough that it costs little; it holds nothing for the
session itself. One that refuses isn't asked again for a while, the next best is. While replies go on the same ones are asked again every
few seconds: it costs a round trip where the layers are loaded still, and where they aren't any more (its worker died, others needed the
room) they are again before they are needed. What a stand-by said once and long ago would be found false in the middle of a loss.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Container

from node.locate import Located
from node.network.interface import Network
from node.pipeline import open_stage
from node.route import Router
from node.serve_stage import StageServer
from node.stage_link import SILENCE
from protocol.errors import MfError
from protocol.framing import unpack
from protocol.ids import ModelId, PeerId
from protocol.messages import OpenSession, Sampling, SessionEvent, StageSpec
from runtime.routing import Plan

log = logging.getLogger(__name__)
AGAIN = 60.0
"""Seconds for which a stand-by that said it is ready is believed to be, and one that refused isn't asked again."""
RENEW = 10.0
"""Seconds after which one is asked again while a reply goes on."""
WITHIN = 120.0
TRIES = 3
"""Nodes asked for one stage at a time, one after the other."""
AT_ONCE = 4
"""Nodes that get ready at once for this one's replies, each for one stage."""
Key = tuple[ModelId, StageSpec, str]
"""A stage at a node, in a precision."""


class StandBys:
    """What it knows lives as long as the node, a few hundred entries at most."""

    def __init__(self, network: Network, router: Router, server: StageServer) -> None:
        self._network = network
        self._router = router
        self._server = server
        self._asked: dict[Key, float] = {}
        self._ready: set[Key] = set()
        self._asking: set[Key] = set()
        self._refused: dict[Key, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(AT_ONCE)

    def prepared(self, model: ModelId, precision: str) -> list[StageSpec]:
        """Stages (at their stand-bys) that said they are loaded."""
        now = asyncio.get_running_loop().time()
        return [key[1] for key in self._ready if (key[0], key[2]) == (model, precision) and now - self._asked[key] < AGAIN]

    def prepare(self, located: Located, plan: Plan, tokens_max: int, precision: str, avoid: set[PeerId]) -> None:
        """Begins to prepare a stand-by for each stage of `plan`; nobody waits for it."""
        for stage in plan.stages:
            if len(self._tasks) < 16:
                task = asyncio.create_task(self._prepare(located, plan, stage, tokens_max, precision, avoid), name="prepare a stand-by")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def forget(self, peers: Container[PeerId]) -> None:
        """Something was lost there: what they got ready is gone too, or will be found when they are asked again, which may be at once."""
        self._ready = {key for key in self._ready if PeerId(key[1].peer) not in peers}
        self._asked = {key: at for key, at in self._asked.items() if PeerId(key[1].peer) not in peers}

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _prepare(self, located: Located, plan: Plan, stage: StageSpec, tokens_max: int, precision: str, avoid: set[PeerId]) -> None:
        async with self._room:
            for _ in range(TRIES):
                spec = self._choose(located, plan, stage, tokens_max, precision, avoid)
                key = (located.model, spec, precision) if spec is not None else None
                if spec is None or key is None or key in self._asking or not self._is_due(key):
                    return
                if await self._get_ready(key, plan, tokens_max):
                    return

    def _choose(
        self, located: Located, plan: Plan, stage: StageSpec, tokens_max: int, precision: str, avoid: set[PeerId]
    ) -> StageSpec | None:
        now, model = asyncio.get_running_loop().time(), located.model
        self._refused = {key: at for key, at in self._refused.items() if now - at < AGAIN}
        wanted = stage.first, stage.end, model, precision
        refused = {PeerId(one.peer) for of, one, runs in self._refused if (one.first, one.end, of, runs) == wanted}
        prepared = {*self.prepared(model, precision), *(one for of, one, runs in self._asking if (of, runs) == (model, precision))}
        avoided = avoid | refused | {PeerId(stage.peer)}
        return self._router.stand_by(located, plan, stage, tokens_max, precision, avoided, prepared, ahead=True)

    def _is_due(self, key: Key) -> bool:
        now = asyncio.get_running_loop().time()
        return now - self._asked.get(key, -AGAIN) >= RENEW

    async def _get_ready(self, key: Key, plan: Plan, tokens_max: int) -> bool:
        model, spec, precision = key
        now, known = asyncio.get_running_loop().time(), key in self._ready
        self._asked = {other: at for other, at in self._asked.items() if now - at < AGAIN}
        self._ready &= self._asked.keys()
        self._asked[key] = now
        self._asking.add(key)
        try:
            async with asyncio.timeout(WITHIN):
                await self._ask(model, spec, plan, tokens_max, precision)
        except (MfError, TimeoutError) as error:
            self._ready.discard(key)
            self._refused[key] = now
            log.info("no stand-by for layers %d to %d at %s: %s", spec.first, spec.end, spec.peer, error)
            return False
        finally:
            self._asking.discard(key)
        self._asked[key] = asyncio.get_running_loop().time()
        self._ready.add(key)
        if not known:
            fields = {"peer": spec.peer, "first": spec.first, "end": spec.end}
            log.info("stand-by ready", extra={"event": "standby_ready", "fields": fields})
        return True

    async def _ask(self, model: ModelId, spec: StageSpec, plan: Plan, tokens_max: int, precision: str) -> None:
        stages = [spec if (one.first, one.end) == (spec.first, spec.end) else one for one in plan.stages]
        opening = OpenSession(
            session=secrets.token_bytes(16), epoch=0, model=model, stages=stages, index=stages.index(spec), entry=self._network.peer_id,
            tokens_max=tokens_max, new_max=1, stop_tokens=[], sampling=Sampling(), precision=precision, prepare=True,
        )  # fmt: skip
        if spec.peer == self._network.peer_id:
            await self._server.prepare_own(opening)
            return
        stream = await open_stage(self._network, opening)
        try:
            while True:
                event = unpack(await stream.receive(SILENCE), SessionEvent, f"session event from {spec.peer}")
                if event.kind == "ready":
                    return
                if event.kind == "failed":
                    raise MfError(str((event.error or {}).get("message", "it failed"))[:200])
        finally:
            stream.reset()
