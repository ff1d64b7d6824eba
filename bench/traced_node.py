"""`python -m bench.traced_node …`: a node as `python -m node` runs it, that also writes down when its worker computed.

Each step becomes one line of JSON in `BENCH_TRACE`: session, position, count, and when its computing began and ended by the system's
monotonic clock, which the processes of one machine share. How many step frames it sent and took stands beside, in `.frames`.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable
from pathlib import Path

from node.__main__ import main
from node.step_links import Link, LinkServer
from node.worker import Worker
from protocol.errors import MfError
from protocol.ids import PeerId
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

    frames = 0
    sent, taken = Link.write, LinkServer.take

    def write_frame(self: Link, frame: bytes) -> None:
        nonlocal frames
        frames += 1
        sent(self, frame)

    def take_frame(self: LinkServer, peer: PeerId, frame: bytes | memoryview) -> None:
        nonlocal frames
        frames += 1
        taken(self, peer, frame)

    def write() -> None:
        Path(path).with_suffix(".frames").write_text(str(frames))
        with open(path, "a") as lines:
            for session, position, count, began, ended in kept:
                line = {"session": session, "position": position, "count": count, "began": began, "ended": ended}
                lines.write(json.dumps(line) + "\n")

    Link.write, LinkServer.take = write_frame, take_frame  # type: ignore[method-assign]
    Worker.begin_step = begin_step  # type: ignore[method-assign]
    atexit.register(write)


if __name__ == "__main__":
    place = os.environ.get("BENCH_TRACE")
    if place:
        trace(place)
    main()
