"""The real process: spawned, called, filled over HTTPS, killed and orphaned."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.channel import ChannelClosed
from node.store.interface import ShardInfo
from node.transfer.jobs import EncodeGroup, FetchGroup, KeepShard, PushShard, Source, SourceSpan, TransferConfig
from node.transfer.remote import Transfer, child_environment
from node.transfer.sources import Access, Evidence
from protocol import limits
from protocol.errors import Conflict, MfError, NotFound, Unavailable
from protocol.grants import grant_from_header
from protocol.ids import EncodingId, ModelId, digest
from protocol.signing import peer_of
from tests.node.transfer.plane import MODEL, Coded, certificate, grant, trusting
from tests.support.wait import until, wait_until

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEER = peer_of(SIGNER)
TLS_KEY, TLS_CERTIFICATE, TLS_DIGEST = certificate()


class Node:
    """The node's side of the calls."""

    def __init__(self) -> None:
        self.stored: list[ShardInfo] = []
        self.faults: list[tuple[str, int, str]] = []
        self.progressed: list[tuple[str, int, int]] = []
        self.end: MfError | None = None
        self.port = 0
        self.asked: list[list[int]] = []
        self.gone: list[ModelId] = []

    def access(self, encoding: bytes, shards: list[int], verb: str = "get") -> Access:
        coded = Coded(100)
        header = grant(SIGNER, coded, verb, encoding=encoding, shards=shards)["MF-Grant"]
        return Access(urls=[f"https://127.0.0.1:{self.port}"], tls=TLS_DIGEST, grant=grant_from_header(header))

    async def need_grant(self, peer: str, encoding: EncodingId, shards: list[int]) -> Access:
        self.asked.append(shards)
        if peer != PEER:
            raise Unavailable(f"node {peer} can't be reached")
        return self.access(encoding, shards)

    async def leaf_fault(self, peer: str, encoding: EncodingId, shard: int, reason: str, evidence: Evidence | None) -> None:
        self.faults.append((peer, shard, reason))

    async def progress(self, job: str, done: int, total: int) -> None:
        self.progressed.append((job, done, total))

    async def shards_gone(self, model: ModelId) -> None:
        self.gone.append(model)

    async def shard_stored(self, info: ShardInfo) -> None:
        self.stored.append(info)

    def ended(self, error: MfError) -> None:
        self.end = error


def config(folder: Path, listen: str = "127.0.0.1:0") -> TransferConfig:
    return TransferConfig(
        data_dir=str(folder), listen=listen, peer_id=PEER, signing_key=bytes(range(32)), tls_key=TLS_KEY, tls_cert=TLS_CERTIFICATE,
        quota=100 * limits.MIB,
    )  # fmt: skip


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[tuple[Transfer, Node]]:
    node = Node()
    transfer = Transfer(config(tmp_path), node)
    await transfer.start()
    node.port = transfer.port
    yield transfer, node
    await transfer.stop()
    assert transfer.closed.is_set()


async def test_a_group_is_coded_kept_pushed_fetched_and_forgotten(running: tuple[Transfer, Node], tmp_path: Path) -> None:
    transfer, node = running
    plain = Random(5).randbytes(3_000_001)
    source = tmp_path / "plain"
    source.write_bytes(plain)
    fd = os.open(source, os.O_RDONLY)
    job = EncodeGroup(
        model=MODEL,
        group=4,
        group_id=digest(plain),
        length=len(plain),
        spans=[SourceSpan(0, 0, len(plain))],
        k=2,
        n=3,
        compression="raw",
        element=1,
    )
    coded = await transfer.encode_group(job, [fd])
    os.close(fd)
    encoding = EncodingId(coded.encoding)
    assert await transfer.list_staged() == {encoding: [0, 1, 2]}

    await transfer.put_blob(coded.envelope)
    await transfer.add_model(MODEL, [coded.encoding])
    await transfer.keep_shard(KeepShard(encoding=encoding, shard=0, model=MODEL, group=4))
    await until(lambda: bool(node.stored), 5, "the kept shard is told")
    key = node.stored[0].key
    await transfer.expect_put(type(key)(encoding, 2), MODEL, 4, "a peer")
    access = node.access(encoding, [2], "put")
    await transfer.push_shard(PushShard(encoding=encoding, shard=2, peer=PEER, urls=access.urls, tls=access.tls, grant=access.grant))
    await until(lambda: len(node.stored) == 2, 5, "both shards are told")
    assert [(info.key.shard, info.owner, info.bytes) for info in node.stored] == [
        (0, PEER, coded.shard_bytes),
        (2, "a peer", coded.shard_bytes),
    ]
    await transfer.drop_staged(encoding)
    assert await transfer.list_staged() == {}
    assert [info.key.shard for info in await transfer.list_shards(MODEL)] == [0, 2]
    assert await transfer.has_shard(key)
    assert (await transfer.verify_shard(key)).ok

    walked = await transfer.audit_walk(bytes(32), [key, type(key)(encoding, 1)], 8)
    assert (len(walked.tags), walked.missing, walked.lengths, walked.lost) == (8 * 32, [1], [coded.shard_bytes], [])
    shown = await transfer.audit_show([(key, 0), (key, 1)])
    assert shown.lists == [b"".join(map(digest, shown.leaves)) + shown.lists[0][64:]]

    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    sources = [Source(peer=PEER, shard=0), Source(peer=PEER, shard=2)]
    fetched = await transfer.fetch_group(FetchGroup(job="j", envelope=coded.envelope, offset=7, sources=sources), out)
    assert os.pread(out, len(plain) + 10, 7) == plain
    assert fetched.asked == [PEER]

    path = tmp_path / "shards" / f"{encoding.hex()}.2"
    path.write_bytes(path.read_bytes()[:-1] + b"\0" if path.read_bytes()[-1] else path.read_bytes()[:-1] + b"\1")
    with pytest.raises(Unavailable, match="missing"):
        await transfer.fetch_group(FetchGroup(job="j", envelope=coded.envelope, offset=0, sources=sources), out)
    os.close(out)
    await until(lambda: bool(node.faults), 5, "the fault is told")
    assert node.faults[0][:2] == (PEER, 2)
    bad = await transfer.verify_shard(type(key)(encoding, 2))
    assert not bad.ok
    assert "wrong bytes" in str(bad.reason)
    assert not await transfer.has_shard(type(key)(encoding, 2))

    assert await transfer.forget(MODEL) > coded.shard_bytes
    assert (await transfer.space()).used == 0
    assert await transfer.models() == {}


async def test_blobs_models_and_errors_cross(running: tuple[Transfer, Node]) -> None:
    transfer, _ = running
    blob = await transfer.put_blob(bytes(2_000_000))
    assert await transfer.get_blob(blob) == bytes(2_000_000)
    assert await transfer.has_blob(blob)
    assert await transfer.get_blob(bytes(32)) is None
    await transfer.add_model(MODEL, [blob])
    assert await transfer.models() == {MODEL: [blob]}
    with pytest.raises(NotFound):
        await transfer.keep_shard(KeepShard(encoding=bytes(32), shard=0, model=MODEL, group=0))
    with pytest.raises(MfError, match="32 bytes"):
        await transfer.add_model(ModelId(b"short"), [])
    stat = await transfer.stat()
    assert (stat.shards, stat.requests) == (0, 0)


async def test_it_is_small(running: tuple[Transfer, Node]) -> None:
    assert _proportional_kib(running[0].pid) < 90 * 1024  # asked: 70 MiB idle; measured 41


def _proportional_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def test_it_knows_no_torch_or_libp2p() -> None:
    program = "import sys, node.transfer.process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=child_environment(), check=True)
    assert not {"torch", "libp2p", "trio", "transformers"} & set(done.stdout.split())


async def test_its_death_fails_what_waits_and_is_told(running: tuple[Transfer, Node]) -> None:
    transfer, node = running
    waiting = [asyncio.create_task(transfer.put_blob(bytes([number]) * 5_000_000)) for number in range(5)]
    os.kill(transfer.pid, signal.SIGKILL)
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert any(isinstance(answer, ChannelClosed) for answer in answers)
    await until(lambda: node.end is not None, 5, "the end is told")
    with pytest.raises(Unavailable, match="isn't back yet"):
        await transfer.space()
    port = transfer.port
    await transfer.restart()
    assert transfer.port == port
    assert not transfer.closed.is_set()
    for answer in answers:
        assert not isinstance(answer, bytes) or await transfer.get_blob(answer) is not None


async def test_a_call_after_its_death_waits_for_the_next_life(running: tuple[Transfer, Node]) -> None:
    transfer, node = running
    blob = await transfer.put_blob(b"kept")
    os.kill(transfer.pid, signal.SIGKILL)
    await until(lambda: node.end is not None, 5, "the end is told")
    asked = asyncio.create_task(transfer.get_blob(blob))
    await asyncio.sleep(0)
    assert not asked.done()
    await transfer.restart()
    assert await asked == b"kept"


async def test_signals(running: tuple[Transfer, Node]) -> None:
    transfer, node = running
    os.kill(transfer.pid, signal.SIGINT)
    await transfer.space()
    start = time.monotonic()
    os.kill(transfer.pid, signal.SIGTERM)
    async with asyncio.timeout(5):
        await transfer.closed.wait()
    assert time.monotonic() - start < 3  # asked: 1 s
    assert node.end is not None
    assert "status 0" in str(node.end)


async def test_stop_is_quick_and_not_a_fault(tmp_path: Path) -> None:
    node = Node()
    transfer = Transfer(config(tmp_path), node)
    await transfer.start()
    start = time.monotonic()
    await transfer.stop()
    assert time.monotonic() - start < 3
    assert node.end is None
    assert transfer.closed.is_set()


async def test_a_fetch_given_up_by_its_caller_ends_in_the_process(running: tuple[Transfer, Node], tmp_path: Path) -> None:
    transfer, node = running
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slow(peer: str, encoding: EncodingId, shards: list[int]) -> Access:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            answered.set()
        raise AssertionError("unreachable")

    node.need_grant = slow  # type: ignore[method-assign]
    with (tmp_path / "out").open("w+b") as out:
        job = FetchGroup(job="j", envelope=Coded().envelope, offset=0, sources=[Source(peer=PEER, shard=0)])
        call = asyncio.create_task(transfer.fetch_group(job, out.fileno()))
        await asked.wait()
        call.cancel()
        async with asyncio.timeout(5):
            await answered.wait()


async def test_what_stands_in_the_way_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        transfer = Transfer(config(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}"), Node())
        with pytest.raises(Conflict, match="can't listen"):
            await transfer.start()
    (tmp_path / "format").write_text("9\n")
    with pytest.raises(Conflict, match="format 9"):
        await Transfer(config(tmp_path), Node()).start()


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.node.transfer.test_process import Node, config
from node.transfer.remote import Transfer

async def main():
    transfer = Transfer(config(Path(sys.argv[1])), Node())
    await transfer.start()
    print(transfer.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_no_orphan_when_the_node_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not _alive(child), 5, "the transfer process is gone")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def test_a_put_over_https_reaches_the_disk(running: tuple[Transfer, Node], tmp_path: Path) -> None:
    transfer, node = running
    coded = Coded()
    await transfer.put_blob(coded.envelope)
    await transfer.expect_put(coded.key(1), MODEL, 2, "a peer")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting())) as session:
        url = f"https://127.0.0.1:{transfer.port}{coded.path(1)}"
        async with session.put(url, headers=grant(SIGNER, coded, "put"), data=coded.body(1)) as response:
            assert response.status == 201
    await until(lambda: bool(node.stored), 5, "the put is told")
    assert (tmp_path / "shards" / f"{coded.id.hex()}.1").read_bytes().endswith(coded.shards[1])
