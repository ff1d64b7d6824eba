"""What the node says of itself and of models: `status`, `holdings`, the lists of the HTTP surface. Measured or null, never a guess."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Sequence
from typing import Any

from erasure.durability import apart, survives_each, survives_losses
from node.gateway import ModelInfo
from node.locate import Located, Locator
from node.model_kinds import category_of, framework_of, tags_of
from node.place import Placer
from node.store.keeping import by_model, spared
from node.swarm.interface import CardView, PeerView, Swarm
from node.swarm.reputation import shard_text
from node.transfer.remote import Transfer
from node.unfinished import Unfinished
from protocol.ids import ModelId, PeerId, encoding_text, model_text
from protocol.layout import layer_count

_HOLDING = ("model_id", "groups", "shards", "bytes", "full_groups")
_IN_STATUS, _LISTED = 1_024, 4_096
_SLICE = 16
"""Publishers whose cards are looked through between two turns of the loop."""
_NAMED = 64
"""Holders of a model that are named; all are counted."""


class Reporter:
    def __init__(
        self, me: PeerId, version: str, swarm: Swarm, transfer: Transfer, locator: Locator, placer: Placer, unfinished: Unfinished
    ) -> None:
        self._me = me
        self._version = version
        self._swarm = swarm
        self._transfer = transfer
        self._locator = locator
        self._placer = placer
        self._unfinished = unfinished

    async def status(self) -> dict[str, Any]:
        """As documented for `mf-node status --json`."""
        space = await self._transfer.space()
        return {
            "peer_id": self._me,
            "version": self._version,
            "peers": [_peer_line(view) for view in self._swarm.peers()],
            "holdings": [{name: line[name] for name in _HOLDING} for line in await self.holdings()],
            "space": {"quota": space.quota, "used": space.used, "free": space.free, "saved": await self._saved()},
            "models": [await self._model_line(card) for card in await self._first(_IN_STATUS)],
            "blamed": self._swarm.blamed(),
            "uncounted": self._uncounted(),
            "publishing": self._unfinished.lines(),
        }

    def _uncounted(self) -> list[dict[str, Any]]:
        """Shards announced that don't count, since their last audit wasn't passed."""
        lines = self._swarm.audits.uncounted(time.monotonic())
        return [{"peer_id": held.peer, "shard": shard_text(held.encoding, held.shard), "verdict": verdict.value} for held, verdict in lines]

    async def _saved(self) -> int:
        return spared(await self._transfer.list_shards(), await self._transfer.models())

    async def holdings(self) -> list[dict[str, Any]]:
        """What lies here, by model; `owners` whose it is. What models share stands under each."""
        pins = await self._transfer.pins()
        found = by_model(await self._transfer.list_shards(), await self._transfer.models())
        return [
            {
                "model_id": model_text(model),
                "groups": len({info.key.encoding for info in infos}),
                "shards": len(infos),
                "bytes": sum(info.bytes for info in infos),
                "full_groups": 0,
                "owners": sorted({info.owner for info in infos}),
                "pinned": model in pins,
            }
            for model, infos in found.items()
        ]

    async def _model_line(self, view: CardView) -> dict[str, Any]:
        model = ModelId(view.card.model)
        storage, held_by = await self.storage(model), sorted(str(view.peer) for view in self._swarm.holdings(model))
        return {
            "model_id": model_text(model),
            "name": view.card.full_name(),
            "survives_losses": storage.get("survives_losses"),
            "weakest_group": storage.get("weakest_group"),
            "holders": len(held_by),
            "held_by": held_by[:_NAMED],
            "coverage": storage.get("group_survives_losses"),
        }

    async def _first(self, most: int, words: Sequence[str] = ()) -> list[CardView]:
        """The first cards by name that hold all these words. A swarm may have a hundred thousand: others get their turn between."""
        found: list[CardView] = []
        for number, publisher in enumerate(self._swarm.publishers(), 1):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            found += [view for view in self._swarm.cards_of(publisher) if not words or all(word in _searched(view) for word in words)]
            if len(found) > 2 * most:
                found = heapq.nsmallest(most, found, key=_by_name)
        return sorted(found, key=_by_name)[:most]

    async def models(self, query: str | None = None) -> list[ModelInfo]:
        """Cards that match every word of `query` in name, label or description, the first 4,096 by name; ModelList has all, in pages."""
        return [await self.info(view) for view in await self._first(_LISTED, (query or "").lower().split())]

    def models_known(self) -> int:
        """Models that have a card, counted without asking anybody about them."""
        return self._swarm.models_known()

    async def model(self, name: str) -> ModelInfo:
        model = self._swarm.resolve(name)
        named = self._swarm.cards_naming(model)
        if named:
            return await self.info(named[0])
        located = await self._locator.locate(model)
        return ModelInfo(
            model_id=model_text(model),
            name=None,
            publisher=None,
            version=None,
            size_bytes=located.manifest.size(),
            parameters=located.manifest.parameters,
            architecture=located.manifest.summary.architecture,
            context=located.manifest.summary.context,
            license=None,
            description=None,
            created_at=None,
            storage=await self.storage(model),
        )

    async def info(self, view: CardView) -> ModelInfo:
        card = view.card
        return ModelInfo(
            model_id=model_text(ModelId(card.model)),
            name=card.full_name(),
            publisher=view.publisher,
            version=card.version,
            size_bytes=card.size,
            parameters=card.parameters,
            architecture=card.summary.architecture,
            context=card.summary.context,
            license=card.license,
            description=card.description,
            created_at=float(card.created),
            storage=await self.storage(ModelId(card.model)),
            category=category_of(card.summary),
            framework=framework_of(card.summary),
            updated_at=float(card.updated or card.created),
            popularity=len(self._swarm.holdings(ModelId(card.model))),
            tags=tuple(tags_of(card.summary)),
        )

    async def storage(self, model: ModelId) -> dict[str, Any]:
        """groups, shards, k, n, holders, redundancy_factor, survives_losses, stored_bytes; null where this node can't know.

        `group_survives_losses` says it for each group by its name, `weakest_group` which of them bears least.
        """
        located = await self._locator.located_here(model)
        holders = self._swarm.holdings(model)
        if located is None:
            return {"groups": None, "shards": None, "k": None, "n": None, "holders": len(holders), "redundancy_factor": None,
                    "survives_losses": None, "weakest_group": None, "group_survives_losses": None, "stored_bytes": None}  # fmt: skip
        await self._locator.refresh(located)
        return self._storage_of(located, len(holders))

    def _storage_of(self, located: Located, holders: int) -> dict[str, Any]:
        domains = self._placer.domains()
        known = {entry.id: entry for entries in located.encodings.values() for entry in entries}
        copies = {name: sum(map(len, self._swarm.holders(name).values())) for name in known}
        safe = {
            name: set(apart({shard: [domains.get(peer, peer) for peer in peers] for shard, peers in self._swarm.counted(name).items()}))
            for name in known
        }
        durable: list[set[int]] = []
        needed: list[int] = []
        for group in range(len(located.manifest.groups)):
            best = max(located.encodings.get(group, []), key=lambda entry: len(safe[entry.id]) - entry.record.k, default=None)
            durable.append(safe[best.id] if best else set())
            needed.append(best.record.k if best else 1)
        stored = sum(known[name].record.shard_length() * count for name, count in copies.items())
        size = located.manifest.size()
        bear = dict(zip((group.name for group in located.manifest.groups), survives_each(durable, needed), strict=True))
        return {
            "groups": len(located.manifest.groups),
            "shards": sum(copies.values()),
            "k": max((entry.record.k for entry in known.values()), default=None),
            "n": max((entry.record.n for entry in known.values()), default=None),
            "holders": holders,
            "redundancy_factor": round(stored / size, 3) if size else None,
            "survives_losses": survives_losses(durable, needed),
            "weakest_group": min(bear, key=lambda name: bear[name], default=None),
            "group_survives_losses": bear,
            "stored_bytes": stored,
        }

    async def holders(self, model: ModelId) -> dict[str, Any]:
        """Who holds which shards of each group, and how many more losses it survives, for people and the demonstration."""
        located = await self._locator.locate(model)
        domains = self._placer.domains()
        groups = []
        for number, group in enumerate(located.manifest.groups):
            for known in located.encodings.get(number, []):
                lying = self._swarm.holders(known.id)
                safe = apart({shard: [domains.get(peer, peer) for peer in peers] for shard, peers in lying.items()})
                groups.append(
                    {
                        "group": group.name,
                        "encoding": encoding_text(known.id),
                        "k": known.record.k,
                        "n": known.record.n,
                        "n_max": len(known.record.roots),
                        "survives_losses": survives_losses([safe], known.record.k),
                        "shards": {str(shard): peers for shard, peers in sorted(lying.items())},
                    }
                )
        return {"model_id": model_text(model), "layers": layer_count(located.manifest), "groups": groups}


def _peer_line(view: PeerView) -> dict[str, Any]:
    return {
        "peer_id": view.peer,
        "alive": view.routable,
        "version": None if view.record is None else view.record.version,
        "addresses": view.addresses,
        "rtt_ms": None if view.rtt is None else round(view.rtt * 1000, 3),
        "last_seen": view.last_seen,
    }


def _by_name(view: CardView) -> tuple[str, PeerId]:
    return view.card.full_name(), view.publisher


def _searched(view: CardView) -> str:
    return f"{view.card.full_name()} {view.card.description or ''} {model_text(ModelId(view.card.model))}".lower()
