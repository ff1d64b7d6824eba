"""What the stages of one session said of what they computed, as its entry hears it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from protocol.messages import StageSpec
from protocol.prints import PRINT_BYTES, open_prints
from runtime.trial import StageRows

log = logging.getLogger(__name__)
MAX_ROWS = 4_096
"""Rows of a session that are looked at, the first ones."""


class Heard:
    """What the stages of one run said under `key`, checked for signer and session; `envelopes` are what they signed."""

    def __init__(self, stages: list[StageSpec], key: bytes, chosen: bool = True) -> None:
        self.stages, self.key, self.chosen = stages, key, chosen
        self.rows = [StageRows() for _ in stages]
        self.envelopes: list[list[bytes]] = [[] for _ in stages]
        self.more = asyncio.Event()

    def take(self, index: int, session: bytes, envelopes: Iterable[bytes]) -> None:
        """`BadInput` for what is no statement; one of another stage or session is left out."""
        spec, rows = self.stages[index], self.rows[index]
        for envelope in envelopes:
            signer, prints = open_prints(envelope)
            if (signer, prints.session, prints.first, prints.end) != (spec.peer, session, spec.first, spec.end):
                log.warning("a statement from %s is of another stage or session", spec.peer)
                continue
            if len(rows.inputs) >= MAX_ROWS:
                continue
            self.envelopes[index].append(envelope)
            for at in range(prints.count):
                row, part = prints.position + at, slice(at * PRINT_BYTES, (at + 1) * PRINT_BYTES)
                rows.inputs[row] = prints.inputs[part]
                if prints.outputs is not None:
                    rows.outputs[row] = prints.outputs[part]
                if prints.gaps is not None and prints.gaps[at] >= 0:
                    rows.gaps[row] = prints.gaps[at]
        self.more.set()

    async def until(self, rows: int, seconds: float) -> None:
        """Until every stage has spoken of so many rows."""
        try:
            async with asyncio.timeout(seconds):
                while any(len(stage.inputs) < rows for stage in self.rows):
                    self.more.clear()
                    await self.more.wait()
        except TimeoutError:
            return
