"""Gives leave for transfers (`/mf/grant/1`): who may read here, who may store here and how much.

Reading is open to whoever found us: shards are public and sealed where the model isn't. Putting needs the owner's leave: trusted peers
may fill the quota, strangers a part of it (node/allowance.py); `--lend none` and `--lend compute` take nothing from others, and what
the owner has blocked comes from nobody. A put is admitted only when its encoding, its model's manifest and its group agree, so that
nothing lands here that couldn't be read back. Whose a shard is, says its encoding's signature: who published it may renew its lease
and take it back, also when another node brought it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.allowance import Allowance
from node.blobs import fetch_blobs_from_any
from node.network.interface import Network, Stream, StreamClosed
from node.store.interface import ShardInfo, ShardKey
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from protocol import limits
from protocol.encoding import Encoding, encoding_id, leaf_count, parse_encoding
from protocol.errors import BadInput, Conflict, Forbidden, MfError, NotFound, StorageFull
from protocol.framing import unpack
from protocol.grants import Grant, seal_grant
from protocol.ids import EncodingId, ModelId, PeerId
from protocol.manifest import parse_manifest
from protocol.messages import GRANT_PROTOCOL, GrantAsk, GrantReply, GrantRequest, refusal_frame, reply_frame

log = logging.getLogger(__name__)
MAX_SHARED = 64
"""Models that one shard here may belong to."""
_MODELS_KEPT = 16
_SLACK = 4 * limits.MIB
"""Bytes a grant allows beyond the shard itself: leaf lists, signatures, one repeated window."""


@dataclass(frozen=True)
class DeskConfig:
    """`urls` where the own data plane is reached, `tls` its certificate's SHA-256, `lend` the owner's choice."""

    urls: list[str]
    tls: bytes
    lend: str


class Blocks(Protocol):
    def why(self, model: ModelId, publisher: PeerId) -> str | None:
        """Why nothing of this may lie here; None when it may."""


class GrantDesk:
    def __init__(
        self, key: Ed25519PrivateKey, network: Network, swarm: Swarm, transfer: Transfer, config: DeskConfig, blocks: Blocks
    ) -> None:
        self._key = key
        self._network = network
        self._swarm = swarm
        self._transfer = transfer
        self._config = config
        self._blocks = blocks
        self._allowance = Allowance(swarm.trusted, time.monotonic)
        self.leaving = False
        """While this node hands over what it holds, it takes nothing more."""
        self._groups: dict[ModelId, dict[tuple[bytes, int], int]] = {}

    async def handle(self, stream: Stream) -> None:
        """Serves one peer's requests, one after another."""
        while True:
            try:
                frame = await stream.receive(300.0)
            except StreamClosed:
                return
            try:
                request = unpack(frame, GrantRequest, f"{GRANT_PROTOCOL} from {stream.peer}")
                reply = reply_frame(await self.decide(request, stream.peer))
            except MfError as error:
                reply = refusal_frame(error)
            await stream.send(reply)

    async def decide(self, request: GrantRequest, client: PeerId) -> GrantReply:
        """The grant, or the refusal as an error of the tree."""
        also = request.also or []
        if len(also) > limits.MAX_GRANTS_ASKED:
            raise BadInput(f"grant request: {len(also)} more encodings, at most {limits.MAX_GRANTS_ASKED} allowed")
        asks = [GrantAsk(request.encoding, request.shards), *also]
        for ask in asks:
            _check_ask(ask)
        if sum(len(ask.shards) for ask in asks) > limits.MAX_SHARDS_ASKED:
            raise BadInput(f"grant request: at most {limits.MAX_SHARDS_ASKED} shards may be asked for at once")
        if request.verb == "get":
            return await self._get(request, client)
        if request.verb == "put":
            return await self._put(request, client)
        if request.verb == "drop":
            return await self._drop(request, client)
        if request.verb == "renew":
            return await self._renew(asks, client)
        if request.verb == "share":
            return await self._share(request, asks, client)
        raise BadInput(f"grant request: verb {request.verb[:16]!r}, get, put, drop, renew and share are known")

    async def _get(self, request: GrantRequest, client: PeerId) -> GrantReply:
        also = request.also or []
        asks = [GrantAsk(request.encoding, request.shards), *also]
        keys = [ShardKey(EncodingId(ask.encoding), shard) for ask in asks for shard in ask.shards]
        lengths = dict(zip(keys, await self._transfer.shard_lengths(keys), strict=True))
        held = [
            {shard: length for shard in ask.shards if (length := lengths[ShardKey(EncodingId(ask.encoding), shard)]) is not None}
            for ask in asks
        ]
        if not held[0]:
            raise NotFound("none of these shards lies here (any more)")
        grants = [self._get_grant(client, ask.encoding, found) if found else None for ask, found in zip(asks, held, strict=True)]
        return GrantReply(
            grant=grants[0] or b"",
            urls=self._config.urls,
            tls=self._config.tls,
            held=sorted(held[0]),
            also=grants[1:] if also else None,
        )

    def _get_grant(self, client: PeerId, encoding: bytes, held: dict[int, int]) -> bytes:
        return self._grant("get", client, encoding, sorted(held), 2 * sum(length + _SLACK for length in held.values()))

    async def _put(self, request: GrantRequest, client: PeerId) -> GrantReply:
        if self._config.lend not in ("storage", "both"):
            raise Forbidden("this node lends no storage")
        if self.leaving:
            raise Forbidden("this node is leaving and takes nothing more")
        if request.envelope is None or request.model is None or len(request.model) != 32:
            raise BadInput("grant request: a put carries the encoding's envelope and the model's id")
        if encoding_id(request.envelope) != request.encoding:
            raise BadInput("grant request: the envelope isn't the encoding it claims to be")
        publisher, encoding = parse_encoding(request.envelope)
        if why := self._blocks.why(ModelId(request.model), publisher) or self._blocks.why(ModelId(request.model), client):
            raise Forbidden(why)
        keys = [ShardKey(EncodingId(request.encoding), shard) for shard in request.shards]
        await self._admit(request, encoding, client, publisher)
        try:
            group = await self._group_of(ModelId(request.model), encoding, client)
            await self._transfer.put_blob(request.envelope)
            for key in keys:
                await self._transfer.expect_put(key, ModelId(request.model), group, publisher)
        except BaseException:
            for key in keys:
                self._allowance.withdraw(key)
            raise
        return self._reply("put", client, request.encoding, request.shards, (encoding.shard_length() + _SLACK) * len(request.shards))

    async def _drop(self, request: GrantRequest, client: PeerId) -> GrantReply:
        """Who put a shard here may take it back."""
        encoding = EncodingId(request.encoding)
        dropped = [shard for shard in request.shards if await self._transfer.take_back(ShardKey(encoding, shard), client)]
        for shard in dropped:
            self._allowance.withdraw(ShardKey(encoding, shard))
        return self._reply("get", client, request.encoding, dropped or request.shards, 0)

    async def _renew(self, asks: list[GrantAsk], client: PeerId) -> GrantReply:
        """Who put shards here, or published a model they belong to, says that they are still wanted: their leases run again."""
        keys = {ShardKey(EncodingId(ask.encoding), shard) for ask in asks for shard in ask.shards}
        published = await self._published_by(client)
        renewed = 0
        for owner, own in _by_owner(await self._transfer.list_shards(), keys, client, published).items():
            renewed += await self._transfer.renew(own, owner)
        if not renewed:
            raise NotFound("none of these shards was put here by you, or belongs to a model of yours")
        return self._reply("get", client, asks[0].encoding, asks[0].shards, 0)

    async def _published_by(self, client: PeerId) -> set[bytes]:
        """Encodings kept here for models that have a card of this peer's."""
        cards = {ModelId(view.card.model) for view in self._swarm.cards() if view.publisher == client}
        return {blob for model, blobs in (await self._transfer.models()).items() if model in cards for blob in blobs} if cards else set()

    async def _share(self, request: GrantRequest, asks: list[GrantAsk], client: PeerId) -> GrantReply:
        """Shards that lie here for one model belong to another too, which has an equal group: listed for both, kept for both."""
        if self._config.lend not in ("storage", "both"):
            raise Forbidden("this node lends no storage")
        if request.model is None or len(request.model) != 32:
            raise BadInput("grant request: a share carries the model's id")
        model = ModelId(request.model)
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
        return self._reply("get", client, request.encoding, request.shards, 0)

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

    async def _admit(self, request: GrantRequest, encoding: Encoding, client: PeerId, publisher: PeerId) -> None:
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

    def _reply(self, verb: str, client: PeerId, encoding: bytes, shards: list[int], most: int) -> GrantReply:
        grant = self._grant(verb, client, encoding, shards, most)
        return GrantReply(grant=grant, urls=self._config.urls, tls=self._config.tls, held=shards)

    def _grant(self, verb: str, client: PeerId, encoding: bytes, shards: list[int], most: int) -> bytes:
        grant = Grant(
            verb=verb,
            client=client,
            server=self._network.peer_id,
            encoding=encoding,
            shards=shards,
            max_bytes=most,
            nonce=secrets.token_bytes(16),
            issued=int(time.time()),
        )
        return seal_grant(self._key, grant)


def _by_owner(infos: list[ShardInfo], keys: set[ShardKey], client: PeerId, published: set[bytes]) -> dict[str, list[ShardKey]]:
    """Those of `keys` that the client may renew, by who put them."""
    found: dict[str, list[ShardKey]] = {}
    for info in infos:
        if info.key in keys and (info.owner == client or info.key.encoding in published):
            found.setdefault(info.owner, []).append(info.key)
    return found


def _check_ask(ask: GrantAsk) -> None:
    if len(ask.encoding) != 32 or not ask.shards or len(set(ask.shards)) != len(ask.shards):
        raise BadInput("grant request: encoding has 32 bytes, shards 1 to 256 distinct numbers")
    if any(not 0 <= shard < limits.MAX_SHARDS for shard in ask.shards):
        raise BadInput("grant request: shard numbers are below 256")
