"""How fast models answered here: sums of finished replies, in memory, for lists that show measured figures or none."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from aiohttp import web

from node.gateway import Finished

MOST = 4_096


@dataclass
class Seen:
    """`milliseconds` from the plan to the last token, loading left out; `at` Unix seconds of the last reply. `memory` bytes that the model
    took here when that was measured last, at `memory_at`; None: it never was.
    """

    samples: int = 0
    milliseconds: float = 0.0
    tokens: int = 0
    at: float = 0.0
    memory: int | None = None
    memory_at: float | None = None


class Figures:
    """`measurer`: the PeerID of the node that saw them."""

    def __init__(self, measurer: str | None = None) -> None:
        self.measurer = measurer
        self._seen: OrderedDict[str, Seen] = OrderedDict()

    def add(self, model_id: str, end: Finished) -> None:
        spent = end.timings.get("total")
        if spent is None or not end.completion_tokens:
            return
        seen = self._seen.setdefault(model_id, Seen())
        self._seen.move_to_end(model_id)
        seen.samples += 1
        seen.milliseconds += max(0.0, spent - sum(end.timings.get(part, 0.0) for part in ("plan", "assemble", "load"))) * 1000
        seen.tokens += end.completion_tokens
        seen.at = time.time()
        if end.memory is not None:
            seen.memory, seen.memory_at = end.memory, seen.at
        while len(self._seen) > MOST:
            self._seen.popitem(last=False)

    def of(self, model_id: str) -> Seen | None:
        return self._seen.get(model_id)


FIGURES: web.AppKey[Figures] = web.AppKey("figures", Figures)
