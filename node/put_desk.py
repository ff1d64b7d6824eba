"""Who may store here, how much, and what becomes of it: the verbs of `/mf/grant/1` that take space or give it back.

Putting needs the owner's leave: trusted peers may fill the quota, strangers a part of it (node/allowance.py); `--lend none` and
`--lend compute` take nothing from others, and what the owner has blocked comes from nobody. A put is admitted only when its
encoding, its model's manifest and its group agree, so that nothing lands here that couldn't be read back. Whose a shard is, says its
encoding's signature: who published it may take it back, also when another node brought it. For a while so may who brought it.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Protocol

from node.allowance import Allowance
from node.blobs import fetch_blobs_from_any
from node.network.interface import Network
from node.store.interface import ShardInfo, ShardKey
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from protocol.encoding import Encoding, encoding_id, leaf_count, parse_encoding
from protocol.errors import BadInput, Conflict, Forbidden, NotFound, StorageFull
from protocol.ids import EncodingId, ModelId, PeerId
from protocol.manifest import parse_manifest
from protocol.messages import GrantAsk, GrantRequest

MAX_SHARED = 64
"""Models that one shard here may belong to."""
_MODELS_KEPT = 16
_BROUGHT_KEPT = 65_536


class Blocks(Protocol):
    def why(self, model: ModelId, publisher: PeerId) -> str | None:
        """Why nothing of this may lie here; None when it may."""


class PutDesk:
    """`lends_storage` is the owner's choice."""

    def __init__(self, network: Network, swarm: Swarm, transfer: Transfer, lends_storage: bool, blocks: Blocks) -> None:
        self._network = network
        self._swarm = swarm
        self._transfer = transfer
        self.lends_storage = lends_storage
        self._blocks = blocks
        self._allowance = Allowance(swarm.trusted, time.monotonic)
        self._groups: dict[ModelId, dict[tuple[bytes, int], int]] = {}
        self._brought: dict[ShardKey, tuple[PeerId, PeerId]] = {}
        """Who brought a shard of somebody else's encoding, and whose it is."""
        self.leaving = False
        """While this node hands over what it holds, it takes nothing more."""

    @property
    def takes(self) -> bool:
        """Whether anybody may put anything here now."""
        return self.lends_storage and not self.leaving

    async def put(self, request: GrantRequest, client: PeerId) -> Encoding:
        """The encoding of which the shard is awaited from now on."""
        self._check_lends()
        if request.envelope is None or request.model is None or len(request.model) != 32:
            raise BadInput("grant request: a put carries the encoding's envelope and the model's id")
        if encoding_id(request.envelope) != request.encoding:
            raise BadInput("grant request: the envelope isn't the encoding it claims to be")
        publisher, encoding = parse_encoding(request.envelope)
        model = ModelId(request.model)
        if why := self._blocks.why(model, publisher) or self._blocks.why(model, client):
            raise Forbidden(why)
        key = await self._admit(request, encoding, client, publisher)
        try:
            group = await self._group_of(model, encoding, client)
            await self._transfer.put_blob(request.envelope)
            await self._transfer.expect_put(key, model, group, publisher)
        except BaseException:
            self._allowance.withdraw(key)
            raise
        self._bring(key, client, publisher)
        return encoding

    async def drop(self, request: GrantRequest, client: PeerId) -> list[int]:
        """Takes back what is the client's, or was brought by it; the shards that are gone."""
        dropped = []
        for shard in request.shards:
            key = ShardKey(EncodingId(request.encoding), shard)
            bringer, owner = self._brought.get(key, (client, client))
            if await self._transfer.take_back(key, owner if client == bringer else client):
                dropped.append(shard)
                self._allowance.withdraw(key)
                self._brought.pop(key, None)
        return dropped

    async def share(self, request: GrantRequest, asks: list[GrantAsk], client: PeerId) -> None:
        """Shards that lie here for one model belong to another too, which has an equal group: listed for both, kept for both."""
        self._check_lends()
        if request.model is None or len(request.model) != 32:
            raise BadInput("grant request: a share carries the model's id")
        model = ModelId(request.model)
        if why := self._blocks.why(model, client):
            raise Forbidden(why)
        encodings = [EncodingId(ask.encoding) for ask in asks]
        shards = await self._transfer.list_shards()
        lying = {(info.key.encoding, info.key.shard) for info in shards}
        if missing := [ask for ask in asks if not any((ask.encoding, shard) in lying for shard in ask.shards)]:
            raise NotFound(f"{len(missing)} of these {len(asks)} encodings have no such shard here (any more)")
        await self._admit_share(model, encodings, shards, client)
        for encoding in encodings:
            envelope = await self._transfer.get_blob(encoding)
            if envelope is None:
                raise NotFound("an encoding's envelope isn't here any more")
            await self._group_of(model, parse_encoding(envelope)[1], client)
        await self._transfer.share(model, encodings)

    def _check_lends(self) -> None:
        if not self.lends_storage:
            raise Forbidden("this node lends no storage")
        if self.leaving:
            raise Forbidden("this node is leaving and takes nothing more")

    def _bring(self, key: ShardKey, client: PeerId, publisher: PeerId) -> None:
        self._brought.pop(key, None)
        if client != publisher:
            if len(self._brought) >= _BROUGHT_KEPT:
                self._brought.pop(next(iter(self._brought)))
            self._brought[key] = client, publisher

    async def _admit(self, request: GrantRequest, encoding: Encoding, client: PeerId, publisher: PeerId) -> ShardKey:
        shards = await self._transfer.list_shards()
        lying = {shard.key.shard for shard in shards if shard.key.encoding == request.encoding}
        if len(lying.union(request.shards)) > 1:
            raise Conflict("at most one shard of a group lies on one node")
        if any(shard.key.encoding == request.encoding and shard.owner != client for shard in shards):
            raise Conflict("another node put this shard here already")
        if max(request.shards) >= len(encoding.roots):
            raise BadInput(f"grant request: the encoding commits to {len(encoding.roots)} shards")
        size = encoding.shard_length() + 32 * leaf_count(encoding.shard_length())
        space = await self._transfer.space()
        if space.used + size > space.quota:
            raise StorageFull(f"{size} bytes don't fit: {max(0, space.quota - space.used)} of {space.quota} bytes lent are left")
        if size > space.free:
            raise StorageFull(f"{size} bytes don't fit on its disk: {space.free} are free")
        key = ShardKey(EncodingId(request.encoding), request.shards[0])
        self._allowance.withdraw(key)
        if not self._swarm.trusted(client) and not self._swarm.trusted(publisher):
            self._allowance.check(publisher, size, space.quota, shards)
        self._allowance.promise(key, publisher, size)
        return key

    async def _admit_share(self, model: ModelId, encodings: list[EncodingId], shards: list[ShardInfo], client: PeerId) -> None:
        """What a share costs is a manifest and a line in a list: both bounded."""
        users = Counter(blob for name, blobs in (await self._transfer.models()).items() if name != model for blob in blobs)
        if any(users[encoding] >= MAX_SHARED for encoding in encodings):
            raise Conflict(f"a shard here belongs to {MAX_SHARED} models already")
        if not self._swarm.trusted(client):
            self._allowance.check(client, 0, (await self._transfer.space()).quota, shards)

    async def _group_of(self, model: ModelId, encoding: Encoding, client: PeerId) -> int:
        """Number of the encoding's group in the model, whose manifest is pulled from the asker when it isn't here."""
        groups = self._groups.get(model)
        if groups is None or not await self._transfer.has_blob(model):
            groups = await self._read_groups(model, encoding, client)
        index = groups.get((encoding.group, encoding.length))
        if index is None:
            raise BadInput("grant request: the encoding codes a group the model doesn't have")
        return index

    async def _read_groups(self, model: ModelId, encoding: Encoding, client: PeerId) -> dict[tuple[bytes, int], int]:
        """Numbers by (group id, length). Kept where the encoding fits, since a publish asks for each group and manifests are long."""
        data = await self._transfer.get_blob(model)
        pulled = data is None
        if data is None:
            data = (await fetch_blobs_from_any(self._network, [client], [model]))[model]
        groups: dict[tuple[bytes, int], int] = {}
        for index, group in enumerate(parse_manifest(data).groups):
            groups.setdefault((group.id, group.length), index)
        if (encoding.group, encoding.length) not in groups:
            return groups
        if pulled:
            await self._transfer.put_blob(data)
        if len(self._groups) >= _MODELS_KEPT:
            self._groups.pop(next(iter(self._groups)))
        self._groups[model] = groups
        return groups
