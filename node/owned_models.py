"""Models that this node publishes, and whose they are: who may change what is said of one, and who may take it back.

Cards carry the node's name; which account a model belongs to is kept here, by name and version. What the command line published is the
owner's. A model that another node publishes isn't anybody's here: that node is the one to ask.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from node.accounts.database import Database
from node.swarm.interface import CardView, Swarm
from protocol.errors import Conflict, Forbidden, Misdirected, NotFound
from protocol.ids import ModelId, PeerId, model_text
from protocol.records import Card

OWNER = "owner"
"""The node's own owner, as `Caller.who` spells him."""


@dataclass(frozen=True)
class Owned:
    name: str
    version: str
    model: ModelId
    owner: str
    created: float


TakeBack = Callable[[ModelId], Awaitable[None]]


class OwnedModels:
    """`load` before anything else. `take_back` has every holder drop what this node put there of a model."""

    def __init__(self, me: PeerId, database: Database, swarm: Swarm, take_back: TakeBack, now: Callable[[], float] = time.time) -> None:
        self._me = me
        self._database = database
        self._swarm = swarm
        self._take_back = take_back
        self._now = now
        self._owned: dict[tuple[str, str], Owned] = {}

    async def load(self) -> None:
        for row in await self._database.rows("select name, version, model, owner, created from models"):
            self._keep(Owned(row["name"], row["version"], ModelId(bytes(row["model"])), row["owner"], row["created"]))

    def check_name(self, who: str, name: str, version: str) -> None:
        """`Conflict` where the name is another's here."""
        owner = self._owner(name, version)
        if owner not in (None, who):
            raise Conflict(f"{name}@{version} is somebody else's here", hint="choose another name or version", details={"param": "name"})

    async def add(self, who: str, name: str, version: str, model: ModelId) -> None:
        made = Owned(name, version, model, who, time.time())
        row = (made.name, made.version, made.model, made.owner, made.created)
        query = "insert or replace into models (name, version, model, owner, created) values (?, ?, ?, ?, ?)"
        await self._database.run(lambda db: db.execute(query, row))
        self._keep(made)

    def of(self, who: str) -> list[Owned]:
        """By name and version."""
        return sorted((one for one in self._owned.values() if one.owner == who), key=lambda one: (one.name, one.version))

    async def change(self, who: str, asked: str, said: dict[str, str | None]) -> Card:
        """The card with description or license as said (None takes it away), signed anew and spread."""
        cards = self._mine(who, self._swarm.resolve(asked))
        changed = [msgspec.structs.replace(view.card, updated=int(self._now()), **said) for view in cards]
        for card in changed:
            await self._swarm.put_card(card)
        return changed[0]

    async def withdraw(self, who: str, asked: str) -> dict[str, Any]:
        """Its names of this caller's mean nothing any more; with the last of them go the shards that this node put anywhere."""
        model = self._swarm.resolve(asked)
        cards = self._mine(who, model)
        for view in cards:
            await self._swarm.put_card(msgspec.structs.replace(view.card, withdrawn=True, description=None))
            await self._drop(view.card.name, view.card.version)
        last = not self._here(model)
        if last:
            await self._take_back(model)
        return {"model_id": model_text(model), "names": [view.card.full_name() for view in cards], "shards_dropped": last}

    def _mine(self, who: str, model: ModelId) -> list[CardView]:
        """The caller's cards of the model: `Misdirected` where another node publishes it, `Forbidden` where it is another's here."""
        here = self._here(model)
        if not here:
            others = [view.publisher for view in self._swarm.cards_naming(model)]
            if not others:
                raise NotFound(f"nobody publishes {model_text(model)}")
            raise Misdirected("another node publishes this model", hint="ask it there", details={"publisher": others[0]})
        mine = [view for view in here if who == OWNER or self._owner(view.card.name, view.card.version) == who]
        if not mine:
            raise Forbidden("this model is somebody else's")
        return mine

    def _here(self, model: ModelId) -> list[CardView]:
        return [view for view in self._swarm.cards_of(self._me) if view.card.model == model]

    def _owner(self, name: str, version: str) -> str | None:
        """Whose a name is; None for one that is free."""
        found = self._owned.get((name, version))
        if found is not None:
            return found.owner
        own = (view.card for view in self._swarm.cards_of(self._me))
        return OWNER if any((card.name, card.version) == (name, version) for card in own) else None

    def _keep(self, owned: Owned) -> None:
        self._owned[owned.name, owned.version] = owned

    async def _drop(self, name: str, version: str) -> None:
        self._owned.pop((name, version), None)
        await self._database.run(lambda db: db.execute("delete from models where name = ? and version = ?", (name, version)))
