"""The process that codes a group, keeps a shard of it in its own store, and is killed: FOLDER/staging and FOLDER/store, from SOURCE.

The same write keeps a publisher's own shard and one that was made again.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.store.disk import DiskStore
from node.transfer.desk import Desk
from node.transfer.encode import encode_group
from node.transfer.jobs import EncodeGroup, KeepShard, SourceSpan
from node.transfer.staging import Staging
from protocol.errors import MfError
from tests.crash.child import QUOTA, read_all, say
from tests.node.store.samples import MODEL
from tests.node.verb_fakes import InlineExecutor

LENGTH, K, N = 300_000, 2, 3
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)


def main(folder: str, source: str) -> None:
    store = DiskStore(Path(folder) / "store", QUOTA, reserve=0)
    staging = Staging(Path(folder) / "staging")
    try:
        store.open()
        staging.clean()
    except MfError as error:
        say(f"no open {error.code}")
        return
    say("open")
    try:
        steps(store, staging, source)
    except MfError as error:
        say(f"no 0 {error.code}")
        say(f"reads 0 {read_all(store)}")


def steps(store: DiskStore, staging: Staging, source: str) -> None:
    spans = [SourceSpan(0, 0, LENGTH)]
    job = EncodeGroup(model=MODEL, group=0, group_id=bytes(32), length=LENGTH, spans=spans, k=K, n=N, compression="raw", element=2)
    fd = os.open(source, os.O_RDONLY)
    encoded = asyncio.run(encode_group(job, [fd], staging, KEY, InlineExecutor()))
    say("ack 0")
    desk = Desk()
    desk._store, desk._staging, desk._peer_id = store, staging, "me"
    desk._keep(KeepShard(encoding=encoded.encoding, shard=1, model=MODEL, group=0))
    say("ack 1")
    for shard in range(N):
        staging.drop_shard(encoded.encoding, shard)
    say("ack 2")
