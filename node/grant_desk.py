"""Gives leave for transfers (`/mf/grant/1`): who may read here, who may store here and how much.

Reading is open to whoever found us: shards are public and sealed where the model isn't. Putting needs the owner's leave: trusted peers
may fill the quota, strangers together a quarter of it; `--lend none` and `--lend compute` take nothing from others. A put is
admitted only when its encoding, its model's manifest and its group agree, so that nothing lands here that couldn't be read back.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.blobs import fetch_blobs_from_any
from node.network.interface import Network, Stream, StreamClosed
from node.store.interface import ShardKey
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from protocol import limits
from protocol.encoding import Encoding, encoding_id, leaf_count, parse_encoding
from protocol.errors import BadInput, Conflict, Forbidden, MfError, NotFound, StorageFull
from protocol.framing import unpack
from protocol.grants import Grant, seal_grant
from protocol.ids import EncodingId, ModelId, PeerId
from protocol.manifest import parse_manifest
from protocol.messages import GRANT_PROTOCOL, GrantReply, GrantRequest, refusal_frame, reply_frame

log = logging.getLogger(__name__)
STRANGERS_SHARE = 0.25
_SLACK = 4 * limits.MIB
"""Bytes a grant allows beyond the shard itself: leaf lists, signatures, one repeated window."""


@dataclass(frozen=True)
class DeskConfig:
    """`urls` where the own data plane is reached, `tls` its certificate's SHA-256, `lend` the owner's choice."""

    urls: list[str]
    tls: bytes
    lend: str


class GrantDesk:
    """`dropped` is told of a model of which a shard was given back."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        network: Network,
        swarm: Swarm,
        transfer: Transfer,
        config: DeskConfig,
        dropped: Callable[[ModelId], None],
    ) -> None:
        self._key = key
        self._network = network
        self._swarm = swarm
        self._transfer = transfer
        self._config = config
        self.dropped = dropped

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
        if len(request.encoding) != 32 or not request.shards or len(set(request.shards)) != len(request.shards):
            raise BadInput("grant request: encoding has 32 bytes, shards 1 to 256 distinct numbers")
        if any(not 0 <= shard < limits.MAX_SHARDS for shard in request.shards):
            raise BadInput("grant request: shard numbers are below 256")
        if request.verb == "get":
            return await self._get(request, client)
        if request.verb == "put":
            return await self._put(request, client)
        if request.verb == "drop":
            return await self._drop(request, client)
        raise BadInput(f"grant request: verb {request.verb[:16]!r}, get, put and drop are known")

    async def _get(self, request: GrantRequest, client: PeerId) -> GrantReply:
        held = [shard for shard in request.shards if await self._transfer.has_shard(ShardKey(EncodingId(request.encoding), shard))]
        if not held:
            raise NotFound("none of these shards lies here (any more)")
        envelope = await self._transfer.get_blob(request.encoding)
        size = parse_encoding(envelope)[1].shard_length() if envelope else 0
        return self._reply("get", client, request.encoding, held, (size + _SLACK) * 2 * len(held))

    async def _put(self, request: GrantRequest, client: PeerId) -> GrantReply:
        if self._config.lend not in ("storage", "both"):
            raise Forbidden("this node lends no storage")
        if request.envelope is None or request.model is None or len(request.model) != 32:
            raise BadInput("grant request: a put carries the encoding's envelope and the model's id")
        if encoding_id(request.envelope) != request.encoding:
            raise BadInput("grant request: the envelope isn't the encoding it claims to be")
        _signer, encoding = parse_encoding(request.envelope)
        await self._admit(request, encoding, client)
        group = await self._group_of(ModelId(request.model), encoding, client)
        await self._transfer.put_blob(request.envelope)
        for shard in request.shards:
            await self._transfer.expect_put(ShardKey(EncodingId(request.encoding), shard), ModelId(request.model), group, client)
        return self._reply("put", client, request.encoding, request.shards, (encoding.shard_length() + _SLACK) * len(request.shards))

    async def _drop(self, request: GrantRequest, client: PeerId) -> GrantReply:
        """Who put a shard here may take it back; `held` lists what went."""
        lying = {shard.key.shard: shard for shard in await self._transfer.list_shards() if shard.key.encoding == request.encoding}
        mine = [lying[shard] for shard in request.shards if shard in lying and lying[shard].owner == client]
        for info in mine:
            await self._transfer.drop_shard(info.key, f"taken back by {client}")
            self.dropped(info.model)
        return GrantReply(grant=b"", urls=[], tls=b"", held=[info.key.shard for info in mine])

    async def _group_of(self, model: ModelId, encoding: Encoding, client: PeerId) -> int:
        """Number of the encoding's group in the model, whose manifest is pulled from the asker when it isn't here."""
        data = await self._transfer.get_blob(model)
        pulled = data is None
        if data is None:
            data = (await fetch_blobs_from_any(self._network, [client], [model]))[model]
        for index, group in enumerate(parse_manifest(data).groups):
            if group.id == encoding.group and group.length == encoding.length:
                if pulled:
                    await self._transfer.put_blob(data)
                return index
        raise BadInput("grant request: the encoding codes a group the model doesn't have")

    async def _admit(self, request: GrantRequest, encoding: Encoding, client: PeerId) -> None:
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
        if space.used + size > space.quota or size > space.free:
            raise StorageFull(f"{size} bytes don't fit: {max(0, space.quota - space.used)} of {space.quota} bytes lent are left")
        if not self._swarm.trusted(client):
            taken = sum(shard.bytes for shard in shards if not self._swarm.trusted(PeerId(shard.owner)))
            if taken + size > space.quota * STRANGERS_SHARE:
                raise StorageFull("what this node lends to strangers is full", hint="ask its owner for trust (mf-node trust)")

    def _reply(self, verb: str, client: PeerId, encoding: bytes, shards: list[int], most: int) -> GrantReply:
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
        return GrantReply(grant=seal_grant(self._key, grant), urls=self._config.urls, tls=self._config.tls, held=shards)
