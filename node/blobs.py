"""Manifests and encodings between peers: asked for by id, hashed before they are parsed (`/mf/blob/1`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from node.network.interface import Network, Stream, StreamClosed
from node.transfer.remote import Transfer
from protocol import limits
from protocol.errors import BadInput, DeadlineExceeded, MfError, PeerFault, Unavailable
from protocol.framing import pack, unpack
from protocol.ids import PeerId, digest
from protocol.messages import BLOB_PROTOCOL, BlobHead, BlobRequest, parse_reply, refusal_frame, reply_frame

log = logging.getLogger(__name__)
MAX_IDS = 1_024
_FRAME = 512 * limits.KIB
_TIMEOUT = 2.0
_SLOWEST = 256 * limits.KIB
"""Bytes a second: who sends a blob slower, or in drops, is given up."""


class BlobServer:
    """Answers one request after another on a stream, until the asker ends it."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    async def handle(self, stream: Stream) -> None:
        while True:
            try:
                request = unpack(await stream.receive(60.0), BlobRequest, "blob request")
            except StreamClosed:
                return
            if len(request.ids) > MAX_IDS:
                await stream.send(refusal_frame(BadInput(f"blob request: {len(request.ids)} ids, at most {MAX_IDS}")))
                return
            for blob in request.ids:
                await self._send(stream, blob)

    async def _send(self, stream: Stream, blob: bytes) -> None:
        data = await self._transfer.get_blob(blob)
        await stream.send(reply_frame(BlobHead(id=blob, length=None if data is None else len(data))))
        view = memoryview(data or b"")
        for at in range(0, len(view), _FRAME):
            await stream.send(bytes(view[at : at + _FRAME]))


async def fetch_blobs(network: Network, peer: PeerId, ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """Those of `ids` that `peer` has, each checked against its id; `PeerFault` names a peer that sends others."""
    found: dict[bytes, bytes] = {}
    stream = await network.open(peer, BLOB_PROTOCOL, _TIMEOUT)
    try:
        for at in range(0, len(ids), MAX_IDS):
            wanted = list(ids[at : at + MAX_IDS])
            await stream.send(_request(wanted), _TIMEOUT)
            for blob in wanted:
                data = await _receive(stream, blob)
                if data is not None:
                    found[blob] = data
    finally:
        await stream.close()
    return found


def _request(ids: list[bytes]) -> bytes:
    return pack(BlobRequest(ids=ids))


async def _receive(stream: Stream, blob: bytes) -> bytes | None:
    head = parse_reply(await stream.receive(_TIMEOUT), BlobHead, "blob reply")
    if head.id != blob:
        raise PeerFault(f"{stream.peer} answered with another blob than the one asked for")
    if head.length is None:
        return None
    if not 0 <= head.length <= limits.MAX_BLOB:
        raise PeerFault(f"{stream.peer} announces a blob of {head.length} bytes, at most {limits.MAX_BLOB} allowed")
    within = _TIMEOUT + head.length / _SLOWEST
    try:
        async with asyncio.timeout(within):
            data = await _body(stream, head.length)
    except TimeoutError:
        raise DeadlineExceeded(f"{stream.peer} didn't send a blob of {head.length} bytes within {within:.0f} s") from None
    if digest(data) != blob:
        raise PeerFault(f"{stream.peer} sent bytes that don't hash to the blob asked for")
    return bytes(data)


async def _body(stream: Stream, length: int) -> bytearray:
    data = bytearray()
    while len(data) < length:
        data += await stream.receive(_TIMEOUT)
        if len(data) > length:
            raise PeerFault(f"{stream.peer} sent more bytes of a blob than announced")
    return data


async def gather_blobs(network: Network, peers: Sequence[PeerId], ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """Those of `ids` that any of the peers gives out, asked in turn; a liar's blobs are left out."""
    found: dict[bytes, bytes] = {}
    for peer in peers:
        missing = [blob for blob in ids if blob not in found]
        if not missing:
            break
        try:
            found |= await fetch_blobs(network, peer, missing)
        except MfError as error:
            log.info("no blobs from %s: %s", peer, error)
    return found


async def fetch_blobs_from_any(network: Network, peers: Sequence[PeerId], ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """All of `ids`, from the peers in turn; `Unavailable` says how many are missing and who was asked."""
    found = await gather_blobs(network, peers, ids)
    missing = [blob for blob in ids if blob not in found]
    if missing:
        raise Unavailable(
            f"{len(missing)} of {len(ids)} records (manifest or encodings) could not be had from {len(peers)} peers",
            details={"asked": list(peers), "missing": [blob.hex() for blob in missing[:16]]},
        )
    return found
