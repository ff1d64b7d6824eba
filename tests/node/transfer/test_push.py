from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.store.interface import ShardInfo, ShardKey
from node.store.memory import MemoryStore
from node.transfer.encode import encode_group
from node.transfer.jobs import EncodeGroup, PushShard, SourceSpan
from node.transfer.push import push_shard
from node.transfer.sources import Connections
from node.transfer.staging import Staging
from protocol.errors import DeadlineExceeded, NotFound, Unavailable
from protocol.ids import EncodingId, ModelId
from tests.node.transfer.holders import Holder, certificate

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)


class Pusher:
    def __init__(self, folder: Path, executor: ThreadPoolExecutor) -> None:
        self.staging = Staging(folder / "staging")
        self.folder = folder
        self.executor = executor
        self.connections = Connections()
        self.holders: list[Holder] = []
        self.encoding = b""

    async def prepare(self, manner: str) -> Holder:
        length = 9_000_000
        job = EncodeGroup(
            model=bytes(32),
            group=0,
            group_id=bytes(32),
            length=length,
            spans=[SourceSpan(-1, 0, length)],
            k=2,
            n=3,
            compression="raw",
            element=1,
        )
        self.encoding = (await encode_group(job, [], self.staging, KEY, self.executor)).encoding
        holder = Holder(self.encoding, 2, b"", manner)
        await holder.start(*certificate(self.folder))
        self.holders.append(holder)
        return holder

    def job(self, holder: Holder, shard: int = 2, held: bool = False) -> PushShard:
        return PushShard(encoding=self.encoding, shard=shard, peer=holder.peer, urls=[holder.url], tls=holder.tls, grant=b"g", held=held)

    async def push(self, holder: Holder, shard: int = 2, **options: float) -> None:
        await push_shard(self.job(holder, shard), self.staging, self.connections, self.executor, **options)


@pytest.fixture
async def pusher(tmp_path: Path) -> AsyncIterator[Pusher]:
    with ThreadPoolExecutor(2) as executor:
        made = Pusher(tmp_path, executor)
        yield made
        await made.connections.close()
        for holder in made.holders:
            await holder.stop()


async def test_the_leaf_list_and_the_bytes_arrive(pusher: Pusher) -> None:
    holder = await pusher.prepare("honest")
    await pusher.push(holder)
    staged = pusher.staging.open(pusher.encoding, 2)
    assert holder.put == staged.leaves + staged.path.read_bytes()


async def test_a_shard_that_lies_in_the_store_is_sent_as_well(pusher: Pusher) -> None:
    holder = await pusher.prepare("honest")
    staged, record = pusher.staging.open(pusher.encoding, 2), pusher.staging.record(pusher.encoding)
    store = MemoryStore(100_000_000)
    key = ShardKey(EncodingId(pusher.encoding), 2)
    job = pusher.job(holder, held=True)
    with pytest.raises(NotFound, match="isn't held here"):
        await push_shard(job, pusher.staging, pusher.connections, pusher.executor, store=store)
    store.put_blob(pusher.staging.envelope(pusher.encoding))
    writer = store.put_shard(ShardInfo(key, ModelId(bytes(32)), 0, staged.length, 0.0, "me"), staged.leaves, record.roots[2])
    writer.write(staged.path.read_bytes())
    writer.commit()
    await push_shard(job, pusher.staging, pusher.connections, pusher.executor, store=store)
    assert holder.put == staged.leaves + staged.path.read_bytes()
    assert store.has(key)


async def test_a_refusal_keeps_its_words_and_names_the_peer(pusher: Pusher) -> None:
    holder = await pusher.prepare("refuses")
    with pytest.raises(Unavailable, match=f"{holder.peer} refused shard 2: no room for strangers"):
        await pusher.push(holder)


async def test_a_stall_ends_at_its_deadline(pusher: Pusher) -> None:
    holder = await pusher.prepare("stalls")
    with pytest.raises(DeadlineExceeded, match=f"{holder.peer} took nothing"):
        await pusher.push(holder, stalled_after=0.3)


async def test_nobody_there(pusher: Pusher) -> None:
    holder = await pusher.prepare("honest")
    await holder.stop()
    with pytest.raises(Unavailable, match=f"{holder.peer} can't be reached"):
        await pusher.push(holder)


async def test_what_isnt_staged_isnt_pushed(pusher: Pusher) -> None:
    holder = await pusher.prepare("honest")
    pusher.staging.drop_shard(pusher.encoding, 2)
    with pytest.raises(NotFound):
        await pusher.push(holder)
