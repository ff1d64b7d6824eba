"""`python -m bench.paced_node …`: a node as `python -m node` runs it, whose engine answers by the clock for models named in `PACES`.

All before the engine is the honest node: HTTP, access, metering, streams. `instant` makes its tokens at once, `paced` one every 50 ms,
`idle` begins and then says nothing until its client leaves. Any other model is asked of the real engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from node.__main__ import main
from node.gateway import Event, Finished, GenerationRequest, Piece, Planned
from node.generate import Generator

PACES = {"instant": 0.0, "paced": 0.05, "idle": float("inf")}
_ordinary = Generator.generate


def generate(self: Generator, request: GenerationRequest) -> AsyncGenerator[Event, None]:
    pace = PACES.get(request.model)
    return _ordinary(self, request) if pace is None else _by_the_clock(request, pace)


async def _by_the_clock(request: GenerationRequest, pace: float) -> AsyncGenerator[Event, None]:
    count = request.max_tokens or 16
    yield Planned(request.model, "here", [], 8)
    yield Piece("begun ", 1)
    for made in range(2, count + 1):
        if pace == float("inf"):
            await asyncio.Event().wait()
        if pace:
            await asyncio.sleep(pace)
        yield Piece("word ", made)
    yield Finished("length", 8, count, [], {"total": 0.0})


if __name__ == "__main__":
    Generator.generate = generate  # type: ignore[method-assign]
    main()
