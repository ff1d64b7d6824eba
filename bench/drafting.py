"""Prompt-lookup drafting over slow links: a reply that copies from its prompt, three stages, with guesses and without.

`python -m bench.drafting [DELAY_MS] [TOKENS] [ROUNDS]`: the demonstration model in fp32 (so that both replies have to be equal to the
token), three worker processes, the product's own pipeline over links that hold each message back for DELAY_MS (default 50). Medians.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bootstrap.demo_model import demo_model
from node.network.memory import MemoryHub, MemoryNetwork
from node.pipeline import Pipeline, PipelineRequest
from node.serve_stage import StageServer
from node.stage_room import LoadedStage
from node.steps import Steps
from node.worker import Worker
from protocol.ids import ModelId
from protocol.messages import SESSION_PROTOCOL, STEP_PROTOCOL, Sampling, StageSpec
from runtime import interface as api
from tests.runtime.support import for_stage, lay_out, load_message, model_files, read_tensors

LAYERS, STAGES, PRECISION = 30, 3, "fp32"
TEXT = (
    "Repeat this text word for word, and nothing else:\n\nThe lighthouse keeper climbed the ninety-one steps every evening at dusk. "
    "He trimmed the wick, filled the lamp with oil, polished the brass, and wrote the hour into a green notebook. On clear nights he "
    "could see three other lights along the coast; on foggy nights he rang the bell once a minute until the morning came."
)


class Room:
    """The one stage of a node, in its worker already."""

    def __init__(self, worker: Worker, stage: LoadedStage) -> None:
        self._worker, self._stage = worker, stage

    @asynccontextmanager
    async def sequence(
        self, _located: Any, _first: int, _end: int, _precision: str, opening: api.OpenSequence
    ) -> AsyncIterator[LoadedStage]:
        await self._worker.open_sequence(msgspec.structs.replace(opening, stage=self._stage.key))
        try:
            yield self._stage
        finally:
            await self._worker.close_sequence(opening.session)


async def load(worker: Worker, folder: Path, first: int, end: int) -> LoadedStage:
    await worker.load_text(api.LoadText(model="m", files=model_files(folder)))
    fd, places, length = lay_out(for_stage(read_tensors(folder / "model.safetensors"), "model.layers.", first, end, LAYERS))
    message = load_message(places, length, first, end, LAYERS, PRECISION)
    try:
        loaded = await worker.load_stage(message, [fd])
    finally:
        os.close(fd)
    return LoadedStage(message.stage, loaded.bytes, loaded.goes_back)


async def member(hub: MemoryHub, worker: Worker, stage: LoadedStage) -> tuple[MemoryNetwork, Steps, StageServer]:
    network = MemoryNetwork(hub, Ed25519PrivateKey.generate())
    await network.start()
    steps = Steps(network)

    async def locate(model: bytes) -> Any:
        return SimpleNamespace(model=model, manifest=None)

    parts: Any = (SimpleNamespace(locate=locate), Room(worker, stage))
    server = StageServer(network, steps, *parts, worker, lends_compute=True)
    network.serve(SESSION_PROTOCOL, server.handle)
    network.serve(STEP_PROTOCOL, steps.handle)
    return network, steps, server


async def measure(delay: float, tokens: int, rounds: int, scratch: Path) -> dict[str, Any]:
    folder, size = demo_model(), LAYERS // STAGES
    async with AsyncExitStack() as stack:
        workers = [Worker(scratch / str(number), threads=1, memory=3_000_000_000) for number in range(STAGES)]
        for worker in workers:
            stack.push_async_callback(worker.stop)
        loaded = [await load(worker, folder, at * size, (at + 1) * size) for at, worker in enumerate(workers)]
        hub = MemoryHub(1, delay=(delay, delay), stall=0.0)
        nodes = [await member(hub, worker, stage) for worker, stage in zip(workers, loaded, strict=True)]
        for network, _steps, _server in nodes:
            for other, _s, _v in nodes:
                if other is not network:
                    await network.dial(other.peer_id, other.addresses())
        route = [StageSpec(network.peer_id, at * size, (at + 1) * size) for at, (network, _steps, _server) in enumerate(nodes)]
        prompt = await workers[0].encode_chat("m", [{"role": "user", "content": TEXT}])
        seconds: dict[bool, list[float]] = {True: [], False: []}
        replies: set[tuple[int, ...]] = set()
        for _ in range(rounds):
            for drafts in (False, True):
                request = PipelineRequest(
                    ModelId(bytes(32)), route, prompt, tokens, [2], Sampling(), PRECISION, prompt=len(prompt), drafts=drafts
                )
                made, took = await reply(nodes[0], request)
                seconds[drafts].append(took / len(made))
                replies.add(made)
    on, off = statistics.median(seconds[True]), statistics.median(seconds[False])
    return {
        "delay_ms": delay * 1_000,
        "prompt_tokens": len(prompt),
        "tokens": len(next(iter(replies))),
        "equal": len(replies) == 1,
        "ms_per_token": {"on": round(on * 1_000, 1), "off": round(off * 1_000, 1)},
        "ratio": round(off / on, 2),
        "rounds": rounds,
    }


async def reply(entry: tuple[MemoryNetwork, Steps, StageServer], request: PipelineRequest) -> tuple[tuple[int, ...], float]:
    """The tokens, and the seconds from the first one to the last."""
    made: list[int] = []
    began = 0.0
    async with Pipeline(*entry, request) as pipeline:
        async for sampled in pipeline.run():
            began = began or time.perf_counter()
            made.append(sampled.token)
    return tuple(made), time.perf_counter() - began


def run(delay_ms: float = 50.0, tokens: int = 96, rounds: int = 3) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        return asyncio.run(measure(delay_ms / 1_000, tokens, rounds, Path(scratch)))


if __name__ == "__main__":
    print(json.dumps(run(*(kind(given) for kind, given in zip((float, int, int), sys.argv[1:], strict=False)))), flush=True)
