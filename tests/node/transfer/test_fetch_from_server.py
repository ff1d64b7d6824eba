"""Both ends of the data plane against each other: coded, pushed to real servers, fetched from what is left of them."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.store.interface import ShardInfo, ShardKey
from node.store.memory import MemoryStore
from node.transfer.admission import ExpectedPut, ExpectedPuts
from node.transfer.decoding import ThreadDecoding
from node.transfer.encode import encode_group
from node.transfer.fetch import fetch_group
from node.transfer.jobs import EncodeGroup, FetchGroup, PushShard, Source, SourceSpan
from node.transfer.push import push_shard
from node.transfer.server import TransferServer
from node.transfer.sink import Sink
from node.transfer.sources import Access, Callbacks, Connections, Evidence
from node.transfer.staging import Staging
from protocol.grants import Grant, seal_grant
from protocol.ids import EncodingId, ModelId
from protocol.signing import peer_of
from tests.node.transfer.holders import certificate

LENGTH = 5_000_003
K, N = 2, 4


class Keeper:
    """One node's transfer server over a store in memory."""

    def __init__(self, number: int, executor: ThreadPoolExecutor) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32)
        self.peer = peer_of(self.key)
        self.shard = number
        self.store = MemoryStore(1 << 30)
        self.expected = ExpectedPuts(time.monotonic)
        self.server = TransferServer(self.store, self.key, executor, self.expected, self._stored)
        self.urls: list[str] = []
        self.tls = b""

    async def start(self, folder: Path) -> None:
        context, self.tls = certificate(folder)
        self.urls = [f"https://127.0.0.1:{await self.server.start('127.0.0.1', 0, context)}"]

    def grant(self, verb: str, encoding: bytes) -> bytes:
        grant = Grant(
            verb=verb,
            client="asker",
            server=self.peer,
            encoding=encoding,
            shards=[self.shard],
            max_bytes=4 * LENGTH,
            nonce=os.urandom(16),
            issued=int(time.time()),
        )
        return seal_grant(self.key, grant)

    async def _stored(self, info: ShardInfo) -> None:
        assert info.key.shard == self.shard


async def test_pushed_and_fetched_with_n_minus_k_gone(tmp_path: Path) -> None:
    data = random.Random(4).randbytes(LENGTH)
    (tmp_path / "data").write_bytes(data)
    staging, connections = Staging(tmp_path / "staging"), Connections()
    with ThreadPoolExecutor(2, "coding") as executor:
        keepers = {keeper.peer: keeper for keeper in (Keeper(number, executor) for number in range(N))}
        job = EncodeGroup(
            model=bytes(32),
            group=0,
            group_id=bytes(32),
            length=LENGTH,
            spans=[SourceSpan(0, 0, LENGTH)],
            k=K,
            n=N,
            compression="auto",
            element=2,
        )
        fd = os.open(tmp_path / "data", os.O_RDONLY)
        encoded = await encode_group(job, [fd], staging, keepers[next(iter(keepers))].key, executor)
        os.close(fd)
        for keeper in keepers.values():
            await keeper.start(tmp_path)
            keeper.store.put_blob(encoded.envelope)
            keeper.expected.expect(_expected(encoded.encoding, keeper))
            grant = keeper.grant("put", encoded.encoding)
            push = PushShard(encoding=encoded.encoding, shard=keeper.shard, peer=keeper.peer, urls=keeper.urls, tls=keeper.tls, grant=grant)
            await push_shard(push, staging, connections, executor)
            assert keeper.store.has(ShardKey(EncodingId(encoded.encoding), keeper.shard))

        async def need_grant(peer: str, encoding: bytes, shards: list[int]) -> Access:
            keeper = next(keeper for keeper in keepers.values() if keeper.peer == peer)
            assert shards == [keeper.shard]
            return Access(urls=keeper.urls, tls=keeper.tls, grant=keeper.grant("get", encoding))

        async def leaf_fault(peer: str, encoding: bytes, shard: int, reason: str, evidence: Evidence | None) -> None:
            raise AssertionError(f"{peer} blamed for {reason}")

        async def progress(job: str, done: int, total: int) -> None:
            assert 0 <= done <= total == LENGTH

        for keeper in [keeper for keeper in keepers.values() if keeper.shard in (0, 1)]:
            await keeper.server.stop()
        sources = [Source(peer=keeper.peer, shard=keeper.shard) for keeper in keepers.values()]
        out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
        await fetch_group(
            FetchGroup(job="j", envelope=encoded.envelope, offset=0, sources=sources),
            ThreadDecoding(encoded.envelope, Sink.whole(out), executor),
            connections,
            Callbacks(need_grant, leaf_fault, progress),
        )
        os.close(out)
        await connections.close()
        for keeper in keepers.values():
            await keeper.server.stop()
    assert (tmp_path / "out").read_bytes() == data


def _expected(encoding: bytes, keeper: Keeper) -> ExpectedPut:
    return ExpectedPut(key=ShardKey(EncodingId(encoding), keeper.shard), model=ModelId(bytes(32)), group=0, owner="asker")
