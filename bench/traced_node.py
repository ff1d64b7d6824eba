"""`python -m bench.traced_node …`: a node as `python -m node` runs it, that also writes down when its worker computed.

Each step becomes one line of JSON in `BENCH_TRACE`: session, position, count, and when its computing began and ended by the system's
monotonic clock, which the processes of one machine share. How many step frames it sent and took stands beside, in `.frames`.

Further words in the environment: `BENCH_GUESSES=false` keeps replies from being guessed ahead, so that a token is a step wherever it is
made; `BENCH_ENDLESS` has them go on to the length that was asked; `BENCH_STAGES` cuts a model into so many stages whatever would fit,
the first of them here; `BENCH_THREADS` is how many its worker computes with, in place of all the machine has; `BENCH_PROXY` is a port
that is given to peers as this node's own, which is written to the file `BENCH_PORT`.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from node.__main__ import main
from node.generate import Generator
from node.heard import Listening
from node.locate import Located
from node.network.host import LibP2PNetwork
from node.pipeline import PipelineRequest
from node.reply import Reply
from node.route import Router
from node.step_links import Link, LinkServer
from node.worker import Worker
from protocol.errors import MfError, Unavailable
from protocol.ids import PeerId
from protocol.layout import layer_count
from protocol.messages import StageSpec
from runtime.interface import Step, Stepped
from runtime.routing import Plan


def trace(path: str) -> None:
    """Wraps `Worker.begin_step`; lines are kept until the node ends, so that writing them costs no step anything."""
    kept: list[tuple[str, int, int, float, float]] = []
    ordinary = Worker.begin_step

    def begin_step(self: Worker, params: Step, done: Callable[[Stepped | MfError], None]) -> None:
        def noted(answer: Stepped | MfError) -> None:
            nonlocal frames
            done(answer)
            if isinstance(answer, Stepped):
                frames += answer.sent > 0
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


def shape_replies(guesses: bool, endless: bool) -> None:
    ordinary = Generator._request

    def request(self: Generator, reply: Reply, listening: Listening | None = None) -> PipelineRequest:
        made = ordinary(self, reply, listening)
        return replace(made, drafts=made.drafts and guesses, stop_tokens=[] if endless else made.stop_tokens)

    Generator._request = request  # type: ignore[method-assign]


def cut(stages: int) -> None:
    """Every route goes over this node and the next ones by name, with equal numbers of layers."""

    def plan(
        self: Router, located: Located, tokens_max: int, precision: str, avoid: Iterable[PeerId] = (), *_running: object, **_how: bool
    ) -> Plan:
        others = sorted(offer.peer for offer in self.offers(located, set(avoid)) if not offer.here and offer.memory)
        if len(others) < stages - 1:
            raise Unavailable(f"{len(others) + 1} nodes, {stages} are wanted")
        edges = [round(layer_count(located.manifest) * at / stages) for at in range(stages + 1)]
        specs = [StageSpec(peer, edges[at], edges[at + 1]) for at, peer in enumerate([self._me, *others][:stages])]
        return Plan("pipeline" if stages > 1 else "here", specs, "as the bench says")

    Router.plan = plan  # type: ignore[method-assign]


def compute_with(threads: int) -> None:
    ordinary = Worker.__init__

    def made(self: Worker, scratch: Path, **options: Any) -> None:
        ordinary(self, scratch, **options | {"threads": threads})

    Worker.__init__ = made  # type: ignore[method-assign]


def stand_behind(proxy: str, file: Path) -> None:
    ordinary = LibP2PNetwork.addresses

    def addresses(self: LibP2PNetwork) -> list[str]:
        found = ordinary(self)
        if found:
            file.write_text(found[0].rpartition("/")[2])
        return [f"{address.rpartition('/')[0]}/{proxy}" for address in found]

    LibP2PNetwork.addresses = addresses  # type: ignore[method-assign]


def main_of_bench() -> None:
    said = os.environ
    if place := said.get("BENCH_TRACE"):
        trace(place)
    shape_replies(said.get("BENCH_GUESSES") != "false", "BENCH_ENDLESS" in said)
    if proxy := said.get("BENCH_PROXY"):
        stand_behind(proxy, Path(said["BENCH_PORT"]))
    if stages := said.get("BENCH_STAGES"):
        cut(int(stages))
    if threads := said.get("BENCH_THREADS"):
        compute_with(int(threads))
    main()


if __name__ == "__main__":
    main_of_bench()
