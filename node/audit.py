"""Audits what others say they hold of the models known here: picks what is due, asks, judges, notes.

What it finds stands in the swarm's books: a shard counts towards a model's durability only while `swarm.audits` says so. Wrong bytes are
told to the swarm as a fault; the rest only counts or doesn't.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from random import Random

from erasure.audit import HeldShard, Verdict, together
from node.audit_exchange import AuditExchange, Evidence, Finding, Subject
from node.locate import Located, Locator
from node.network.interface import Network
from node.swarm.budget import TokenBucket
from node.swarm.interface import Swarm
from node.swarm.reputation import shard_text
from node.transfer.remote import Transfer
from protocol.errors import MfError
from protocol.ids import EncodingId, ModelId, PeerId, model_text

log = logging.getLogger(__name__)
EVERY = 2.5
"""Seconds between two looks at what is due."""
RATE, BURST = 0.5, 32.0
"""Audits a second, in the long run and at once. Each moves at most some MiB, mostly leaf lists."""
AT_ONCE = 4
LOOK_AGAIN = 60.0
_MOST_CARDS = 4_096
"""Seconds before a model that wasn't here is looked for in the store again."""
REFRESH = 10.0
"""Seconds before encodings that nobody gave out are asked for again."""
EVIDENCE_KEPT = 16
_MAX_ABSENT = 4_096
_AT_A_TIME = 64


class Auditor:
    """`told` is called with each verdict."""

    def __init__(
        self,
        network: Network,
        swarm: Swarm,
        transfer: Transfer,
        locator: Locator,
        told: Callable[[Verdict], None] = lambda verdict: None,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._me = network.peer_id
        self._swarm = swarm
        self._transfer = transfer
        self._locator = locator
        self._told = told
        self._rng = rng or Random(secrets.token_bytes(16))
        self._clock = clock
        self._exchange = AuditExchange(network, swarm.audits.speeds, secrets.SystemRandom() if rng is None else rng, clock)
        self._budget = TokenBucket(RATE, BURST, clock())
        self._absent: dict[ModelId, float] = {}
        self._refreshed: dict[ModelId, float] = {}
        self.evidence: deque[Evidence] = deque(maxlen=EVIDENCE_KEPT)
        """Of the last faults."""

    async def run(self) -> None:
        """Ends when cancelled. A fault of one round is logged, the next tries again."""
        while True:
            await asyncio.sleep(EVERY * self._rng.uniform(0.75, 1.25))
            try:
                await self.round()
            except MfError as error:
                log.info("an audit round ended early: %s", error)

    async def round(self) -> list[Finding]:
        """Audits what is due, several peers at a time and each peer's shards one audit after another, within the budget."""
        subjects, holders = await self._subjects()
        audits = list(together(self._swarm.audits.due(subjects, self._clock(), self._rng)).values())
        self._rng.shuffle(audits)
        turn = asyncio.Semaphore(AT_ONCE)
        found: list[Finding] = []

        async def one_peer(of_peer: Sequence[Sequence[HeldShard]]) -> None:
            async with turn:
                for asked in of_peer:
                    if not self._budget.take(1, self._clock()):
                        return
                    findings = await self._audit([subjects[held] for held in asked])
                    for finding in findings:
                        self._note(finding, holders[finding.held.encoding])
                    found.extend(findings)
                    if all(finding.verdict is Verdict.UNKNOWN for finding in findings):
                        return  # it doesn't answer: the next questions would wait in vain too

        await asyncio.gather(*map(one_peer, audits))
        return found

    async def _audit(self, subjects: Sequence[Subject]) -> list[Finding]:
        peer = subjects[0].held.peer
        empty = [Finding(subject.held, Verdict.PASSED, "an empty shard") for subject in subjects if not subject.length]
        view = self._swarm.peer(peer)
        asked = [subject for subject in subjects if subject.length]
        return empty + (await self._exchange.audit(peer, asked, view.rtt if view else None) if asked else [])

    def _note(self, finding: Finding, holders: int) -> None:
        held, verdict = finding.held, finding.verdict
        self._swarm.audits.note(held, verdict, self._clock(), self._rng, holders)
        self._told(verdict)
        shard = shard_text(held.encoding, held.shard)
        if verdict is Verdict.WRONG:
            self._swarm.blame(held.peer, shard, finding.reason)
            if finding.evidence is not None:
                self.evidence.append(finding.evidence)
        if verdict is not Verdict.PASSED:
            fields = {"peer": held.peer, "shard": shard, "verdict": verdict.value, "reason": finding.reason[:256]}
            log.info("an audit wasn't passed", extra={"event": "audit_not_passed", "fields": fields})

    async def _subjects(self) -> tuple[dict[HeldShard, Subject], dict[bytes, int]]:
        """What others announce of the models known here, and how many hold something of each encoding."""
        subjects: dict[HeldShard, Subject] = {}
        holders: dict[bytes, int] = {}
        for model, kept in (await self._models()).items():
            try:
                located = await self._located(model, kept)
            except MfError as error:
                log.info("%s isn't audited now: %s", model_text(model), error)
                continue
            if located is None:
                continue
            for number, known in enumerate([known for entries in located.encodings.values() for known in entries]):
                if number % _AT_A_TIME == 0:
                    await asyncio.sleep(0)  # many groups: others may use the loop between some of them
                lying = self._swarm.holders(known.id)
                holders[known.id] = len({peer for peers in lying.values() for peer in peers})
                for held in self._of_others(lying, known.id, len(known.record.roots)):
                    subjects[held] = Subject(held, known.record)
        return subjects, holders

    def _of_others(self, lying: dict[int, list[PeerId]], encoding: EncodingId, roots: int) -> list[HeldShard]:
        """A shard without a root can't be checked: it never counts."""
        pairs = [(peer, shard) for shard, peers in lying.items() if shard < roots for peer in peers]
        return [HeldShard(peer, encoding, shard) for peer, shard in pairs if peer != self._me]

    async def _models(self) -> dict[ModelId, bool]:
        """Models with a card, with readers or with shards here; the last True. Of very many cards some, drawn, beside this node's own."""
        cards = self._swarm.cards()
        if len(cards) > _MOST_CARDS:
            cards = [*self._swarm.cards_of(self._me), *self._rng.sample(cards, _MOST_CARDS)]
        named = {ModelId(view.card.model): False for view in cards}
        named |= {ModelId(view.record.model): False for view in self._swarm.readers()}
        return named | {info.model: True for info in await self._transfer.list_shards()}

    async def _located(self, model: ModelId, kept: bool) -> Located | None:
        """The model with the encodings announced, if its manifest lies here; most models with a card don't."""
        now = self._clock()
        located = self._locator.recall(model)
        if located is None and (kept or now >= self._absent.get(model, 0.0)):
            located = await self._locator.located_here(model)
        if located is None:
            if len(self._absent) >= _MAX_ABSENT:
                self._absent.clear()
                self._refreshed.clear()
            if now >= self._absent.get(model, 0.0):
                self._absent[model] = now + LOOK_AGAIN
            return None
        if now >= self._refreshed.get(model, 0.0) + REFRESH:
            self._refreshed[model] = now
            await self._locator.refresh(located)
        return located
