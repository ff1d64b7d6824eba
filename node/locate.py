"""From a model's id to all one needs to read it: its manifest, the encodings of its groups, who holds what."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

from node.blobs import fetch_blobs_from_any, gather_blobs
from node.network.interface import Network
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from protocol.encoding import PRIVATE_SCHEME, Encoding, encoding_id, parse_encoding
from protocol.errors import BadInput, NotFound
from protocol.ids import EncodingId, ModelId, PeerId, model_text
from protocol.manifest import GroupEntry, Manifest, model_id, parse_manifest
from protocol.private import open_cover

log = logging.getLogger(__name__)
FIND_TIMEOUT = 3.0
SETTLE_WITHIN = 4.0
"""Seconds that groups of a fresh publish are waited for."""
_LOOK_AGAIN = 0.2
_KEPT = 64
"""Located models remembered: manifests are small beside the models."""


@dataclass(frozen=True)
class KnownEncoding:
    """One encoding of one group: its id, the signed bytes, who signed, the record."""

    id: EncodingId
    envelope: bytes
    signer: PeerId
    record: Encoding


@dataclass
class Located:
    """A model found: `encodings[group]` lists what is known of each group; `blamed` encodings decoded to other bytes.

    `also` names, for encodings that came from other models with an equal group, those models. Of a private model `cover` is what all may
    see; `manifest` is the true one where this node has the `secret`, else the cover again; `nodes` are the only ones that may run it.
    """

    model: ModelId
    manifest: Manifest
    manifest_bytes: bytes
    encodings: dict[int, list[KnownEncoding]] = field(default_factory=dict)
    blamed: set[EncodingId] = field(default_factory=set)
    also: dict[EncodingId, set[ModelId]] = field(default_factory=dict)
    cover: Manifest | None = None
    secret: bytes | None = None
    nodes: frozenset[str] = frozenset()
    publisher: PeerId | None = None
    """Of a private model that is open: whose word on its readers counts."""

    @property
    def coded(self) -> list[GroupEntry]:
        """The groups as encodings name them."""
        return (self.cover or self.manifest).groups

    def uncover(self, manifest: Manifest, secret: bytes, publisher: PeerId) -> None:
        """From now on with its true manifest."""
        self.manifest, self.secret, self.publisher = manifest, secret, publisher

    def may_run_at(self, peer: PeerId) -> bool:
        return self.cover is None or peer in self.nodes

    def known_ids(self) -> set[EncodingId]:
        return {known.id for entries in self.encodings.values() for known in entries}

    def add(self, envelope: bytes) -> KnownEncoding:
        """Checks the record against the manifest and remembers it; `BadInput` when it codes no group of the model.

        A model may have equal groups (layers merged in twice): one encoding then serves them all.
        """
        signer, record = parse_encoding(envelope)
        known = KnownEncoding(encoding_id(envelope), envelope, signer, record)
        coded = [index for index, group in enumerate(self.coded) if (group.id, group.length) == (record.group, record.length)]
        if not coded:
            raise BadInput("the encoding codes a group the model doesn't have")
        if (record.scheme == PRIVATE_SCHEME) != (self.cover is not None):
            raise BadInput(f"the encoding's scheme {record.scheme} isn't for this model")
        if known.id not in self.known_ids():
            for index in coded:
                self.encodings.setdefault(index, []).append(known)
        return known


def check_open(located: Located) -> None:
    """`NotFound` for a private model whose secret isn't here."""
    if located.cover is not None and located.secret is None:
        raise NotFound(f"{model_text(located.model)} is private, and not shared with this node")


class Opener(Protocol):
    """Knows the secrets of private models that were shared with this node, or with accounts at home here."""

    async def secret(self, model: ModelId) -> bytes | None: ...

    def confirms(self, model: ModelId, publisher: PeerId) -> bool:
        """Whether the secret came from the publisher that the opened manifest names."""

    def nodes(self, model: ModelId) -> frozenset[str]:
        """Where the model may run, by its publisher's word."""


class Locator:
    opener: Opener | None = None

    def __init__(self, network: Network, swarm: Swarm, transfer: Transfer, executor: Executor) -> None:
        self._network = network
        self._swarm = swarm
        self._transfer = transfer
        self._executor = executor
        self._located: OrderedDict[ModelId, Located] = OrderedDict()
        self._on_forget: list[Callable[[ModelId], None]] = []

    async def locate(self, model: ModelId, keep: bool = True) -> Located:
        """The model with every encoding its holders announce; `NotFound` when nobody has heard of it.

        A manifest that comes from others is kept in the store, unless `keep` is False.
        """
        located = self._located.get(model)
        if located is None:
            located = self.remember(model, *await self._manifest(model, keep))
        await self._uncover(located)
        await self.refresh(located)
        await self._settle(located)
        return located

    async def _settle(self, located: Located) -> None:
        """A model just published is announced group by group: what some groups still lack comes in a moment."""
        until = time.monotonic() + SETTLE_WITHIN
        while len(located.encodings) < len(located.manifest.groups) and time.monotonic() < until:
            await asyncio.sleep(_LOOK_AGAIN)
            await self.refresh(located)

    def recall(self, model: ModelId) -> Located | None:
        """The model if it was located lately; looks nowhere."""
        return self._located.get(model)

    async def located_here(self, model: ModelId) -> Located | None:
        """The model if its manifest already lies here; asks nobody."""
        if model not in self._located:
            data = await self._transfer.get_blob(model)
            if data is None:
                return None
            self.remember(model, await self._parse(data), data)
        await self._uncover(self._located[model])
        return self._located[model]

    async def _uncover(self, located: Located) -> None:
        """A private model's true manifest, where its secret is here by now."""
        if located.cover is None or self.opener is None:
            return
        secret = await self.opener.secret(located.model)
        located.nodes = self.opener.nodes(located.model)
        if secret is None or located.secret is not None:
            return
        loop = asyncio.get_running_loop()
        manifest, publisher = await loop.run_in_executor(self._executor, open_cover, secret, located.cover)
        if not self.opener.confirms(located.model, publisher):
            raise BadInput(f"{model_text(located.model)}: who shares it isn't who published it")
        located.uncover(manifest, secret, publisher)

    def remember(self, model: ModelId, manifest: Manifest, data: bytes) -> Located:
        cover = manifest if manifest.covers else None
        located = self._located.setdefault(model, Located(model, manifest, data, cover=cover))
        self._located.move_to_end(model)
        while len(self._located) > _KEPT:
            self._located.popitem(last=False)
        return located

    def forget(self, model: ModelId) -> None:
        self._located.pop(model, None)
        for listener in self._on_forget:
            listener(model)

    def on_forget(self, listener: Callable[[ModelId], None]) -> None:
        """Told of each model of which nothing shall stay here."""
        self._on_forget.append(listener)

    async def _manifest(self, model: ModelId, keep: bool) -> tuple[Manifest, bytes]:
        data = await self._transfer.get_blob(model)
        if data is None:
            data = await self._fetch_manifest(model)
            if keep:
                await self._transfer.put_blob(data)
        if model_id(data) != model:
            raise BadInput(f"the manifest kept for {model_text(model)} doesn't hash to it")
        return await self._parse(data), data

    async def _parse(self, data: bytes) -> Manifest:
        return await asyncio.get_running_loop().run_in_executor(self._executor, parse_manifest, data)

    async def _fetch_manifest(self, model: ModelId) -> bytes:
        holders = self._holders(model)
        if not holders:
            await self._swarm.find_model(model, FIND_TIMEOUT)
            holders = self._holders(model)
        if not holders:
            raise NotFound(f"no reachable peer holds {model_text(model)}", hint="its holders may be away; try again later")
        return (await fetch_blobs_from_any(self._network, holders, [model]))[model]

    def _holders(self, model: ModelId) -> list[PeerId]:
        return [view.peer for view in self._swarm.holdings(model) if view.peer != self._network.peer_id]

    async def refresh(self, located: Located) -> None:
        """Fetches the encodings announced that aren't known yet; peers that lack some are no obstacle."""
        known = located.known_ids()
        views = self._swarm.holdings(located.model)
        wanted = {EncodingId(held.encoding) for view in views for held in view.held} - known - located.blamed
        found: dict[bytes, bytes] = {}
        for encoding in wanted:
            envelope = await self._transfer.get_blob(encoding)
            if envelope is not None:
                found[encoding] = envelope
        missing = sorted(wanted - found.keys())
        if missing:
            found |= await gather_blobs(self._network, self._holders(located.model), missing)
            if lacking := wanted - found.keys():
                log.warning("%d encodings announced of %s are given out by nobody", len(lacking), model_text(located.model))
        for envelope in found.values():
            self._take(located, envelope)

    def _take(self, located: Located, envelope: bytes) -> None:
        try:
            located.add(envelope)
        except BadInput as error:
            located.blamed.add(encoding_id(envelope))
            log.warning("an encoding announced for %s is left out: %s", model_text(located.model), error)
