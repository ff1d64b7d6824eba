"""A swarm's cards by the hundred thousand, as a node has them: signed by hundreds of publishers, checked and kept in an archive.

`Kept` is the part of a node that lists them (archive, list, index), without network and shards; it says what its memory grew by.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.model_list import ModelList
from node.report import Reporter
from node.swarm.archive import Archive
from node.swarm.catalog import MAX_CARDS_PER_PUBLISHER
from node.swarm.interface import CardView, HoldingView
from protocol.ids import ModelId, PeerId, digest
from protocol.manifest import Summary
from protocol.records import Card, seal_record

_KINDS = (("llama", "LlamaForCausalLM"), ("qwen3", "Qwen3ForCausalLM"), ("phi3", "Phi3ForCausalLM"), ("bert", "BertModel"))


def envelopes(count: int) -> list[bytes]:
    """Cards like real ones: about 550 bytes each, with a sentence to search in."""
    now, made = int(time.time()), list[bytes]()
    for number in range(count):
        seed, place = divmod(number, MAX_CARDS_PER_PUBLISHER)
        if place == 0:
            key = Ed25519PrivateKey.from_private_bytes(digest(b"publisher %d" % seed))
        kind, architecture = _KINDS[number % len(_KINDS)]
        record = Card(
            sequence=number + 1,
            expires=now + 86_400,
            label=f"publisher-{seed}",
            name=f"model-{number:06d}-instruct",
            version="1",
            model=digest(b"model %d" % number),
            size=number * 20_000,
            parameters=number * 10_000,
            created=now - number,
            summary=Summary(model_type=kind, architecture=architecture, layers=32, hidden=4_096, vocabulary=128_256, context=131_072),
            license="apache-2.0",
            description=f"An assistant of kind{number % 7} for chat and code, trained on reviewed pages and tools, number {number}.",
        )
        made.append(seal_record(key, record))
    return made


class _Swarm:
    """As much of a swarm as a list asks of it; nobody holds anything but every 97th model."""

    def __init__(self, archive: Archive) -> None:
        self._catalog = archive.catalog

    def publishers(self) -> list[PeerId]:
        return self._catalog.publishers()

    def cards_of(self, publisher: PeerId) -> list[CardView]:
        return [CardView(publisher, kept.record) for kept in self._catalog.of(publisher)]

    def card(self, publisher: PeerId, name: str, version: str) -> CardView | None:
        kept = self._catalog.get(publisher, name, version)
        return None if kept is None else CardView(publisher, kept.record)

    def holdings(self, model: ModelId) -> list[HoldingView]:
        return [HoldingView(PeerId("p"), model, [], [0])] * (model[0] % 8)

    def models_of(self, peer: PeerId) -> list[ModelId]:
        return []


class _Nowhere:
    async def located_here(self, model: ModelId) -> None:
        return None


class Kept:
    """`figures` has milliseconds and bytes: what keeping a card took, what the archive and the index grew this process by."""

    def __init__(self) -> None:
        self.archive = Archive()
        nothing: Any = SimpleNamespace()
        swarm: Any = _Swarm(self.archive)
        located: Any = _Nowhere()
        self.list = ModelList(swarm, Reporter(PeerId("me"), "0", swarm, nothing, located, nothing, nothing))
        self.figures: dict[str, float] = {}

    def take(self, signed: list[bytes]) -> None:
        """Takes the cards out of the list as it goes, so that what is kept is counted once."""
        before, began, now, count = resident(), time.perf_counter(), time.time(), len(signed)
        bytes_of = sum(map(len, signed))
        while signed:
            taken = self.archive.take(signed.pop(), now, lambda _peer: False)
            assert taken is not None
            assert taken.outcome.value == "new"
        self.figures["take_ms"] = (time.perf_counter() - began) * 1000 / count
        self.figures["archive_bytes"] = resident() - before + bytes_of

    async def fill(self) -> None:
        """The first question, which makes the index."""
        from node.model_index import ModelQuery

        before, began = resident(), time.perf_counter()
        await self.list.page(ModelQuery())
        self.figures["index_s"] = time.perf_counter() - began
        self.figures["index_bytes"] = resident() - before

    def compare(self) -> None:
        """What one side of a comparison with a peer costs: the sums, and the marks of a bucket."""
        began = time.perf_counter()
        for bucket in range(20):
            self.archive.sums(lambda _kept: True)
            self.archive.listed([bucket], lambda _kept: True, 32_768)
        self.figures["compare_ms"] = (time.perf_counter() - began) * 1000 / 20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
