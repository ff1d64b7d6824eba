"""The secrets of private models, as far as they are here: of those this node publishes, and of those shared with it or with an account
whose home it is.

A `Readers` record is tried with the node's own key as it is needed, and with an account's key when that account asks: nothing is
opened for anybody else. What was opened holds for that very record; the next one of the same model is tried anew, so that who was
left out of it is out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from node.swarm.interface import ReadersView, Swarm
from protocol.errors import BadInput
from protocol.ids import ModelId, PeerId, model_text
from protocol.private import Said, exchange_seed, open_said, unwrap

log = logging.getLogger(__name__)
MOST_TRIED = 65_536

Record = tuple[PeerId, ModelId, int]
"""One `Readers` record: publisher, model, sequence."""


@dataclass(frozen=True)
class Opened:
    """A private model as its publisher tells it to readers."""

    publisher: PeerId
    model: ModelId
    secret: bytes
    said: Said
    key: X25519PrivateKey | None = field(default=None, repr=False, compare=False)
    """What opened it, to open the next record of the same model with."""


class Vault:
    """Implements `node.locate.Opener`. `seed` is the node's Ed25519 seed."""

    def __init__(self, me: PeerId, seed: bytes, swarm: Swarm, executor: Executor) -> None:
        self._me = me
        self._key = exchange_seed(seed)
        self._swarm = swarm
        self._executor = executor
        self._own: dict[ModelId, Opened] = {}
        self._opened: dict[Record, Opened] = {}
        self._tried: set[tuple[Record, str]] = set()
        self._following: set[asyncio.Task[None]] = set()
        self._listeners: list[Callable[[ModelId], None]] = []

    def on_lost(self, listener: Callable[[ModelId], None]) -> None:
        """Told of each model that isn't shared with anybody here any more."""
        self._listeners.append(listener)

    def own(self, opened: Opened) -> None:
        """A model of this node's, as it tells it."""
        self._own[opened.model] = opened

    def disown(self, model: ModelId) -> None:
        self._own.pop(model, None)

    def owned(self, model: ModelId) -> Opened | None:
        return self._own.get(model)

    def changed(self, kind: str, whose: PeerId) -> None:
        """As the swarm tells: what was opened of records that others took the place of is forgotten."""
        if kind != "readers":
            return
        current = {_name(view) for view in self._swarm.readers()}
        for record in [record for record in self._opened if record not in current]:
            task = asyncio.get_running_loop().create_task(self._again(self._opened.pop(record)), name="a private model's readers changed")
            self._following.add(task)
            task.add_done_callback(self._following.discard)

    async def _again(self, lost: Opened) -> None:
        """The record that took its place, with the same key; where that opens none, the model isn't here any more."""
        for view in self._swarm.readers():
            if (view.publisher, view.record.model) == (lost.publisher, lost.model) and lost.key is not None:
                await self._open(view, "the same", lost.key)
        if not self._of(lost.model):
            for listener in self._listeners:
                listener(lost.model)

    # As `Opener`.

    async def secret(self, model: ModelId) -> bytes | None:
        if model in self._own:
            return self._own[model].secret
        views = [view for view in self._swarm.readers() if view.record.model == model]
        found = [opened for view in views if (opened := await self._open(view, "", self._key)) is not None]
        return found[0].secret if found else None

    def confirms(self, model: ModelId, publisher: PeerId) -> bool:
        if model in self._own:
            return publisher == self._me
        return any(opened.publisher == publisher for opened in self._of(model))

    def nodes(self, model: ModelId) -> frozenset[str]:
        return frozenset(node for opened in self._of(model) for node in opened.said.nodes)

    def _of(self, model: ModelId) -> list[Opened]:
        own = self._own.get(model)
        return [own] if own is not None else [opened for opened in self._opened.values() if opened.model == model]

    # For callers.

    def known(self, model: ModelId) -> bool:
        """Whether the model is private, as far as anybody says: true also of those that aren't shared with anybody here."""
        return model in self._own or any(view.record.model == model for view in self._swarm.readers())

    async def opened(self, account: str = "", seed: bytes | None = None) -> list[Opened]:
        """All that open under the node's own key, or that of the account named, whose `seed` is here. Whom they are for, `said` tells."""
        key = None if seed is None else exchange_seed(seed)
        found = list(self._own.values())
        for view in self._swarm.readers():
            if view.publisher == self._me:
                continue
            opened = await self._open(view, "", self._key)
            if opened is None and key is not None:
                opened = await self._open(view, account, key)
            if opened is not None:
                found.append(opened)
        return found

    async def _open(self, view: ReadersView, whose: str, key: X25519PrivateKey) -> Opened | None:
        name = _name(view)
        if name in self._opened:
            return self._opened[name]
        if (name, whose) in self._tried:
            return None
        if len(self._tried) >= MOST_TRIED:
            self._tried.clear()
        self._tried.add((name, whose))
        try:
            opened = await asyncio.get_running_loop().run_in_executor(self._executor, _opened, view, key)
        except BadInput as error:
            log.info("what %s says of a private model %s doesn't hold: %s", view.publisher, model_text(name[1]), error)
            return None
        if opened is not None:
            self._opened[name] = opened
        return opened


def _name(view: ReadersView) -> Record:
    return view.publisher, ModelId(view.record.model), view.record.sequence


def _opened(view: ReadersView, key: X25519PrivateKey) -> Opened | None:
    model, record = ModelId(view.record.model), view.record
    secret = unwrap(record.wraps, key, model, view.publisher)
    return None if secret is None else Opened(view.publisher, model, secret, open_said(secret, record.sealed), key)


def those_of(found: Sequence[Opened], identity: bytes | None) -> list[Opened]:
    """Those that this identity may read."""
    return [opened for opened in found if opened.said.role_of(identity) is not None]
