"""The process that makes lost shards again, keeps one and is killed: FOLDER/staging and FOLDER/store, k other shards from SOURCE.

Windows come from SOURCE as they would from holders; all that touches the disk is what repair does.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from node.store.disk import DiskStore
from node.transfer import rebuild
from node.transfer.decoding import Decoding
from node.transfer.desk import Desk
from node.transfer.fetch_board import Shape
from node.transfer.jobs import Fetched, FetchGroup, KeepShard, RebuildShards
from node.transfer.jobs import Source as Holder
from node.transfer.slots import LABEL, Slot
from node.transfer.sources import Callbacks, Connections
from node.transfer.staging import Staging
from protocol import limits
from protocol.encoding import encoding_id, parse_encoding
from protocol.errors import MfError
from tests.crash.child import QUOTA, read_all, say
from tests.node.store.samples import MODEL
from tests.node.verb_fakes import InlineExecutor

MADE = [1, 4]


def main(folder: str, source: str) -> None:
    store = DiskStore(Path(folder) / "store", QUOTA, reserve=0)
    staging = Staging(Path(folder) / "staging")
    try:
        store.open()
        staging.clean()
        for left in staging.list():  # as the daemon does where nothing is being placed
            staging.drop(left)
    except MfError as error:
        say(f"no open {error.code}")
        return
    say("open")
    try:
        steps(store, staging, Staging(Path(source)))
    except MfError as error:
        say(f"no 0 {error.code}")
        say(f"reads 0 {read_all(store)}")


def steps(store: DiskStore, staging: Staging, source: Staging) -> None:
    [encoding] = source.list()
    envelope, others = source.envelope(encoding), [shard for shard in source.shards(encoding) if shard not in MADE]

    async def read(job: FetchGroup, decoding: Decoding, connections: Connections, callbacks: Callbacks) -> Fetched:
        shape = Shape.of(encoding_id(job.envelope), parse_encoding(job.envelope)[1])
        data = {shard: source.open(encoding, shard).path.read_bytes() for shard in others[: shape.k]}
        step = limits.WINDOW_LEAVES * limits.LEAF
        for window in range(shape.windows):
            got = {
                shard: Slot(shard, memoryview(bytearray(whole[window * step : (window + 1) * step])), memoryview(bytearray(LABEL)))
                for shard, whole in data.items()
            }
            await decoding.window(window, got, [])
        return Fetched(bytes=0, seconds=0.0, asked=[], speeds={})

    rebuild.fetch_group = read
    nothing: Callbacks = None  # type: ignore[assignment]
    sources = [Holder(peer=str(shard), shard=shard) for shard in others]
    job = RebuildShards(job="j", envelope=envelope, sources=sources, make=MADE)
    asyncio.run(rebuild.rebuild_shards(job, staging, Connections(), nothing, InlineExecutor()))
    say("ack 0")
    desk = Desk()
    desk._store, desk._staging, desk._peer_id = store, staging, "me"
    desk._keep(KeepShard(encoding=encoding, shard=MADE[0], model=MODEL, group=0))
    say("ack 1")
    staging.drop(encoding)
    say("ack 2")
