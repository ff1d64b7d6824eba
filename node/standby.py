"""Stand-bys: for each stage of a running reply a node that could take it over, chosen ahead and told to load the layers.

Problem: when a stage dies the reply waits for another node to start its worker, fetch groups and load them: seconds, most of the pause.
Choice: once a reply has got going, the entry asks the best other node for each stage to prepare it. That node does so only in memory that
is free and only where the layers are small enough that it costs little; it holds nothing for the session itself. A node that was
asked lately isn't asked again, and one is asked at a time, so that replies don't pay for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

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
AGAIN = 120.0
"""Seconds after which a stand-by is asked to prepare the same stage anew."""
WITHIN = 120.0


class StandBys:
    """`prepared` lives as long as the node, a few hundred entries at most."""

    def __init__(self, network: Network, router: Router, server: StageServer) -> None:
        self._network = network
        self._router = router
        self._server = server
        self._asked: dict[tuple[ModelId, StageSpec, str], float] = {}
        self._ready: set[tuple[ModelId, StageSpec, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def prepared(self, model: ModelId, precision: str) -> list[StageSpec]:
        """Stages (at their stand-bys) that said they are loaded."""
        now = asyncio.get_running_loop().time()
        return [
            spec for key in self._ready if (spec := key[1]) and key[0] == model and key[2] == precision and now - self._asked[key] < AGAIN
        ]

    def prepare(self, located: Located, plan: Plan, tokens_max: int, precision: str, avoid: set[PeerId]) -> None:
        """Begins to prepare a stand-by for each stage of `plan`; nobody waits for it."""
        for stage in plan.stages:
            if len(self._tasks) < 16:
                task = asyncio.create_task(self._prepare(located, plan, stage, tokens_max, precision, avoid), name="prepare a stand-by")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _prepare(self, located: Located, plan: Plan, stage: StageSpec, tokens_max: int, precision: str, avoid: set[PeerId]) -> None:
        async with self._turn:
            spec = self._router.stand_by(located, plan, stage, tokens_max, precision, avoid | {PeerId(stage.peer)})
            if spec is None:
                return
            key, now = (located.model, spec, precision), asyncio.get_running_loop().time()
            if now - self._asked.get(key, -AGAIN) < AGAIN:
                return
            self._asked = {other: at for other, at in self._asked.items() if now - at < AGAIN}
            self._ready &= self._asked.keys()
            self._asked[key] = now
            try:
                async with asyncio.timeout(WITHIN):
                    await self._ask(located.model, spec, plan, tokens_max, precision)
            except (MfError, TimeoutError) as error:
                log.info("no stand-by for layers %d to %d at %s: %s", spec.first, spec.end, spec.peer, error)
                return
            self._ready.add(key)
            fields = {"peer": spec.peer, "first": spec.first, "end": spec.end}
            log.info("stand-by ready", extra={"event": "standby_ready", "fields": fields})

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
