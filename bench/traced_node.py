"""`python -m bench.traced_node …`: a node as `python -m node` runs it, that also writes down when its worker computed.

Each step becomes one line of JSON in `BENCH_TRACE`: session, position, count, and when its computing began and ended by the system's
monotonic clock, which the processes of one machine share.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable

from node.__main__ import main
from node.worker import Worker
from protocol.errors import MfError
from runtime.interface import Step, Stepped


def trace(path: str) -> None:
    """Wraps `Worker.begin_step`; lines are kept until the node ends, so that writing them costs no step anything."""
    kept: list[tuple[str, int, int, float, float]] = []
    ordinary = Worker.begin_step

    def begin_step(self: Worker, params: Step, done: Callable[[Stepped | MfError], None]) -> None:
        def noted(answer: Stepped | MfError) -> None:
            done(answer)
            if isinstance(answer, Stepped):
                kept.append((params.session, params.position, params.count, answer.began, answer.began + answer.seconds))

        ordinary(self, params, noted)

    def write() -> None:
        with open(path, "a") as lines:
            for session, position, count, began, ended in kept:
                line = {"session": session, "position": position, "count": count, "began": began, "ended": ended}
                lines.write(json.dumps(line) + "\n")

    Worker.begin_step = begin_step  # type: ignore[method-assign]
    atexit.register(write)


if __name__ == "__main__":
    place = os.environ.get("BENCH_TRACE")
    if place:
        trace(place)
    main()
