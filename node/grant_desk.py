"""Gives leave for transfers (`/mf/grant/1`): who may read here, who may store here and how much.

Reading is open to whoever found us: shards are public and sealed where the model isn't. What takes space here, and who may say that
it is still wanted, is node/put_desk.py's.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.interface import Network, Stream, StreamClosed
from node.put_desk import PutDesk
from node.store.interface import ShardInfo, ShardKey
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from protocol import limits
from protocol.errors import BadInput, MfError, NotFound
from protocol.framing import unpack
from protocol.grants import Grant, seal_grant
from protocol.ids import EncodingId, ModelId, PeerId
from protocol.messages import GRANT_PROTOCOL, GrantAsk, GrantReply, GrantRequest, refusal_frame, reply_frame

log = logging.getLogger(__name__)
_SLACK = 4 * limits.MIB
"""Bytes a grant allows beyond the shard itself: leaf lists, signatures, one repeated window."""


@dataclass(frozen=True)
class DeskConfig:
    """`urls` where the own data plane is reached, `tls` its certificate's SHA-256."""

    urls: list[str]
    tls: bytes


class GrantDesk:
    def __init__(
        self, key: Ed25519PrivateKey, network: Network, swarm: Swarm, transfer: Transfer, config: DeskConfig, puts: PutDesk
    ) -> None:
        self._key = key
        self._network = network
        self._swarm = swarm
        self._transfer = transfer
        self._config = config
        self._puts = puts

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
            encoding = await self._puts.put(request, client)
            return self._reply("put", client, request.encoding, request.shards, encoding.shard_length() + _SLACK)
        if request.verb == "drop":
            dropped = await self._puts.drop(request, client)
            return self._reply("get", client, request.encoding, dropped or request.shards, 0)
        if request.verb == "renew":
            return await self._renew(asks, client)
        if request.verb == "share":
            await self._puts.share(request, asks, client)
            return self._reply("get", client, request.encoding, request.shards, 0)
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
        """Encodings kept here for models that have a card of this peer's, or readers."""
        cards = {ModelId(view.card.model) for view in self._swarm.cards_of(client)}
        cards |= {ModelId(view.record.model) for view in self._swarm.readers() if view.publisher == client}
        return {blob for model, blobs in (await self._transfer.models()).items() if model in cards for blob in blobs} if cards else set()

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
