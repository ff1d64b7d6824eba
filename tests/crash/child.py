"""The process that stores and is killed: STEPS of `script`, in FOLDER, WITHOUT one act.

Tells each step's end with `writev`, a call that the sweeps leave alone: `ack N`, or `no N CODE` when the store refused it; after a
refusal everything listed is read: `reads N SHARDS`. WITHOUT takes one act out of the durable order, to show that the checker sees it
missing.
"""

from __future__ import annotations

import os
from pathlib import Path

from node.store import disk, durable
from node.store.disk import DiskStore
from node.store.index import ShardIndex
from node.store.leaf_check import first_bad_leaf
from protocol import limits
from protocol.errors import MfError
from tests.crash import script

QUOTA = 10 * limits.MIB


def say(words: str) -> None:
    os.writev(1, [words.encode() + b"\n"])


def leave_out(act: str) -> None:
    """Breaks the store on purpose."""
    match act:
        case "fdatasync" | "fsync":
            setattr(os, act, lambda fd: None)
        case "rename":
            os.rename = lambda temp, final: Path(final).write_bytes(Path(temp).read_bytes())  # type: ignore[assignment]
        case "commit":
            ShardIndex.add = lambda self, infos: None  # type: ignore[method-assign]
        case "wait":  # acknowledged before it is durable
            real = durable.settle
            disk.settle = lambda fd, temp, final: (say("ack 2"), real(fd, temp, final))[1]  # type: ignore[attr-defined]
        case _:
            raise AssertionError(act)


def read_all(store: DiskStore) -> int:
    """Shards listed, each read whole and right."""
    listed = store.list_shards()
    for info in listed:
        reader = store.open_shard(info.key)
        assert reader is not None
        assert first_bad_leaf(reader) is None
        reader.close()
    return len(listed)


def main(folder: str, steps: str, *without: str) -> None:
    for act in without:
        leave_out(act)
    store = DiskStore(Path(folder), QUOTA, reserve=0)
    try:
        store.open()
    except MfError as error:
        say(f"no open {error.code}")
        return
    say("open")
    for number, step in enumerate(getattr(script, steps) if steps != "-" else []):
        try:
            script.perform(store, step)
            say(f"ack {number}")
        except MfError as error:
            say(f"no {number} {error.code}")
            say(f"reads {number} {read_all(store)}")
    say(f"held {len(store.list_shards())} {store.space().used}")
