"""`python -m bench.traced_node …`: a node as `python -m node` runs it, that also writes down when its worker computed.

Each step becomes one line of JSON in `BENCH_TRACE`: session, position, count, and when its computing began and ended by the system's
monotonic clock, which the processes of one machine share.
"""

from __future__ import annotations

import atexit
import json
import os

from node.__main__ import main
from node.worker import Worker
from runtime.interface import Step, Stepped


def trace(path: str) -> None:
    """Wraps `Worker.step`; lines are kept until the node ends, so that writing them costs no step anything."""
    kept: list[tuple[str, int, int, float, float]] = []
    ordinary = Worker.step

    async def step(self: Worker, params: Step) -> Stepped:
        done = await ordinary(self, params)
        kept.append((params.session, params.position, params.count, done.began, done.began + done.seconds))
        return done

    def write() -> None:
        with open(path, "a") as lines:
            for session, position, count, began, ended in kept:
                line = {"session": session, "position": position, "count": count, "began": began, "ended": ended}
                lines.write(json.dumps(line) + "\n")

    Worker.step = step  # type: ignore[method-assign]
    atexit.register(write)


if __name__ == "__main__":
    place = os.environ.get("BENCH_TRACE")
    if place:
        trace(place)
    main()
