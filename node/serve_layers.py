"""Which layers this node runs for others: chosen, told, loaded in the background, looked at again now and then.

`runtime/stage_choice.py` decides, this is its hands and eyes. What others serve stands in their Holdings; that this node is about to load
a span is told before it loads, so that of many who come at once each sees what the others take. One span of one model at a time: a model
of which shards lie here (its bytes are half-way here already), else one by a publisher whom the owner trusts; the one whose least served
layer has the fewest servers. Its own sessions need the memory first: a stage that was let go for them is no longer told of, and is
loaded again when there is room. A stage's speed is measured on a few tokens when it is loaded, then on all steps it runs, and on a few
again where it ran none for a while.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from node.figures import StageFigures
from node.keep_holdings import HoldingKeeper
from node.locate import Located, Locator
from node.model_cost import StageCost
from node.served import announced, cell_choices
from node.stage_room import StageRoom, stage_key
from node.swarm.interface import Swarm
from node.worker import Worker
from protocol.errors import BadInput, MfError
from protocol.ids import ModelId, PeerId, model_text
from protocol.layout import check_runnable, layer_count
from protocol.messages import Sampling
from protocol.records import Serving
from runtime.architectures import whole_only
from runtime.interface import OpenSequence, Step
from runtime.stage_choice import LOOK_EVERY, Choices, LayerLoads, Span, join, next_look, rate_of, reconsider

log = logging.getLogger(__name__)
PRECISION = "bf16"
ROOM = 2_048
"""Positions for which a stage must leave room beside its weights."""
MEASURED = 6
"""Tokens a stage's speed is measured on when it is loaded."""
UNMEASURED = 0.002
"""Seconds a layer is taken to need before anything was measured, here or by those who announce nothing."""
WORDS = {"bf16": 2, "fp32": 4}


@dataclass
class Served:
    """What this node has chosen; `loaded` once it answers."""

    located: Located
    span: Span
    loaded: bool = False


class LayerServer:
    def __init__(
        self,
        me: PeerId,
        swarm: Swarm,
        locator: Locator,
        room: StageRoom,
        worker: Worker,
        keeper: HoldingKeeper,
        figures: StageFigures,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._me, self._swarm, self._locator = me, swarm, locator
        self._room, self._worker, self._keeper, self._figures = room, worker, keeper, figures
        self._rng = rng or random.Random(secrets.randbits(64))
        self._clock = clock
        self.served: Served | None = None

    async def run(self) -> None:
        """Looks about every two minutes, first after a part of that; ends when cancelled."""
        await asyncio.sleep(LOOK_EVERY * self._rng.uniform(0.25, 0.75))
        while True:
            try:
                await self.look()
            except MfError as error:
                log.info("no layers are served now: %s", error)
            await asyncio.sleep(next_look(self._clock(), self._rng) - self._clock())

    async def look(self) -> None:
        """Chooses, or chooses again, and loads; raises what stood in the way, after taking back what was announced."""
        served = self.served
        if served is None:
            served = await self._choose()
        elif (better := self._better(served)) is not None:
            served = Served(served.located, better)
        if served is None:
            return
        if served is self.served and self._room.holds(served.located, served.span.first, served.span.end, PRECISION):
            if self._figures.stale(self._clock()):
                await self._load(served)
            self._tell(served)  # its speed may have changed
            return
        await self._take(served)

    async def _take(self, served: Served) -> None:
        """Tells, loads and measures; what was served before is over."""
        if self.served is not None and self.served.located.model != served.located.model:
            self._keeper.serving(self.served.located.model, [])
        self.served, served.loaded = served, False
        self._room.lasting = stage_key(served.located, served.span.first, served.span.end, PRECISION)
        self._tell(served)
        try:
            await self._load(served)
        except BaseException:
            self.served = self._room.lasting = None
            self._keeper.serving(served.located.model, [])
            raise
        served.loaded = True
        self._tell(served)
        fields = {"model": model_text(served.located.model), "first": served.span.first, "end": served.span.end}
        log.info("layers are served", extra={"event": "layers_served", "fields": fields | {"layer_us": self._figures.layer_us()}})

    async def _load(self, served: Served) -> None:
        first, end = served.span.first, served.span.end
        session = f"measure-{secrets.token_hex(8)}"
        opening = OpenSequence(stage="", session=session, tokens_max=MEASURED, sampling=Sampling())
        async with self._room.sequence(served.located, first, end, PRECISION, opening):
            try:
                await self._measure(served, session)
            except BadInput as error:
                log.info("a stage is served unmeasured: %s", error)

    async def _measure(self, served: Served, session: str) -> None:
        took = [(await self._worker.step(self._one_token(served, session, position))).seconds for position in range(MEASURED)]
        # The first one warms up.
        self._figures.measured(served.span.end - served.span.first, took[1:], self._clock())

    def _one_token(self, served: Served, session: str, position: int) -> Step:
        """Anything will do: every token takes the same."""
        step = Step(session=session, epoch=0, position=position, count=1)
        if served.span.first == 0:
            step.tokens = [1]
        else:
            step.hidden = bytes((served.located.manifest.summary.hidden or 0) * WORDS[PRECISION])
        return step

    def _tell(self, served: Served) -> None:
        serving = Serving(served.span.first, served.span.end, PRECISION, served.loaded, self._figures.layer_us())
        self._keeper.serving(served.located.model, [serving])

    async def _choose(self) -> Served | None:
        best: tuple[int, int, Served] | None = None
        for number, model in enumerate(self._models()):
            located = await self._runnable(model)
            if located is None:
                continue
            loads, choices = self._loads(located), self._choices(located)
            span = join(loads, choices, self._rate(choices.spans), self._rng)
            if span is not None and (best is None or (int(loads.servers.min()), number) < best[:2]):
                best = int(loads.servers.min()), number, Served(located, span)
        return best[2] if best else None

    def _better(self, served: Served) -> Span | None:
        choices = self._choices(served.located, served.span)
        return reconsider(self._loads(served.located), choices, served.span, self._rate([served.span]), self._rng)

    def _models(self) -> list[ModelId]:
        """Those of which shards lie here first, then those by publishers who are trusted."""
        trusted = [publisher for publisher in self._swarm.publishers() if self._swarm.trusted(publisher)]
        named = [ModelId(view.card.model) for publisher in trusted for view in self._swarm.cards_of(publisher)]
        known = dict.fromkeys([*self._keeper.models(), *named])
        return list(known)

    async def _runnable(self, model: ModelId) -> Located | None:
        try:
            located = await self._locator.locate(model)
            check_runnable(located.manifest)
        except MfError as error:
            log.debug("%s isn't served: %s", model_text(model), error)
            return None
        return located if layer_count(located.manifest) > 0 else None

    def _loads(self, located: Located) -> LayerLoads:
        others = (view for view in self._swarm.holdings(located.model) if view.peer != self._me)
        return announced(layer_count(located.manifest), others, PRECISION, self._figures.layer or UNMEASURED)

    def _choices(self, located: Located, loaded: Span | None = None) -> Choices:
        cost, memory = StageCost(located.manifest, PRECISION), self._room.memory
        whole = whole_only(located.manifest.summary.model_type) is not None
        layers = layer_count(located.manifest)

        def fits(first: int, end: int) -> bool:
            return cost.total(first, end, ROOM) <= memory and (not whole or (first, end) == (0, layers))

        mine = next((view for view in self._swarm.holdings(located.model) if view.peer == self._me), None)
        return cell_choices(located, fits, mine, loaded)

    def _rate(self, spans: list[Span]) -> float:
        return rate_of(spans[0], self._figures.layer or UNMEASURED) if spans else 0.0
