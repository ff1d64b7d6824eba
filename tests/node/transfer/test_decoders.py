"""Decoding processes: they write what a thread would, survive bad jobs, and are replaced where they die."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.channel import ChannelClosed
from node.transfer.decoders import Decoders
from node.transfer.decoding import Decoding, ThreadDecoding
from node.transfer.encode import encode_group
from node.transfer.fetch_board import Shape
from node.transfer.jobs import Encoded, EncodeGroup, FetchGroup, SourceSpan, TargetSpan
from node.transfer.remote import child_environment
from node.transfer.sink import Sink
from node.transfer.slots import Slot, Slots
from node.transfer.staging import Staging
from node.transfer.windows import WINDOW
from protocol.encoding import parse_encoding
from protocol.errors import BadInput, StorageFull

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
K, N = 2, 4
DATA = random.Random(5).randbytes(5_000_003)


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory, executor: ThreadPoolExecutor) -> tuple[Encoded, list[bytes]]:
    folder = tmp_path_factory.mktemp("coded")
    (folder / "data").write_bytes(DATA)
    staging = Staging(folder / "staging")
    job = EncodeGroup(
        model=bytes(32),
        group=0,
        group_id=bytes(32),
        length=len(DATA),
        spans=[SourceSpan(0, 0, len(DATA))],
        k=K,
        n=N,
        compression="raw",
        element=2,
    )
    with (folder / "data").open("rb") as file:
        encoded = asyncio.run(encode_group(job, [file.fileno()], staging, KEY, executor))
    return encoded, [staging.open(encoded.encoding, shard).path.read_bytes() for shard in range(N)]


@pytest.fixture
async def decoders() -> AsyncIterator[tuple[Decoders, Slots]]:
    slots = Slots()
    made = Decoders(slots, child_environment, "text")
    yield made, slots
    await made.stop()


def job_of(encoded: Encoded, spans: list[TargetSpan] | None = None) -> FetchGroup:
    return FetchGroup(job="j", envelope=encoded.envelope, offset=0, sources=[], spans=spans)


def window_of(shards: list[bytes], chosen: tuple[int, ...], window: int, slots: Slots) -> tuple[dict[int, Slot], list[Slot]]:
    got = {}
    for shard in chosen:
        got[shard] = slots.take()
        data = shards[shard][window * WINDOW : (window + 1) * WINDOW]
        got[shard].view[: len(data)] = data
    return got, [slots.take() for shard in range(K) if shard not in chosen]


async def decode(decoding: Decoding, coded: tuple[Encoded, list[bytes]], chosen: tuple[int, ...], slots: Slots) -> None:
    encoded, shards = coded
    windows = Shape.of(encoded.encoding, parse_encoding(encoded.envelope)[1]).windows
    calls = []
    for window in range(windows):
        got, spare = window_of(shards, chosen, window, slots)
        calls.append(asyncio.ensure_future(decoding.window(window, got, spare)))
        await asyncio.sleep(0)
    free = [slot for slots_free in await asyncio.gather(*calls) for slot in slots_free]
    free += await decoding.end()
    assert len({slot.number for slot in free}) == len(free) == windows * (K + sum(shard not in chosen for shard in range(K)))
    for slot in free:
        slots.give_back(slot)
    assert await decoding.end() == []


@pytest.mark.parametrize("chosen", [(0, 1), (3, 1), (2, 3)])
async def test_a_process_and_a_thread_write_the_same(
    decoders: tuple[Decoders, Slots],
    executor: ThreadPoolExecutor,
    coded: tuple[Encoded, list[bytes]],
    chosen: tuple[int, ...],
    tmp_path: Path,
) -> None:
    made, slots = decoders
    with (tmp_path / "process").open("w+b") as file:
        await decode(await made.begin(job_of(coded[0]), [file.fileno()]), coded, chosen, slots)
        assert (tmp_path / "process").read_bytes() == DATA
    with (tmp_path / "thread").open("w+b") as file:
        await decode(ThreadDecoding(coded[0].envelope, Sink.whole(file.fileno()), executor), coded, chosen, slots)
        assert (tmp_path / "thread").read_bytes() == DATA


async def test_other_bytes_are_refused_and_the_next_job_is_served(
    decoders: tuple[Decoders, Slots], coded: tuple[Encoded, list[bytes]], tmp_path: Path
) -> None:
    made, slots = decoders
    noise = [random.Random(shard).randbytes(len(data)) for shard, data in enumerate(coded[1])]
    with (tmp_path / "out").open("w+b") as file:
        decoding = await made.begin(job_of(coded[0]), [file.fileno()])
        with pytest.raises(BadInput, match="doesn't open"):
            await decoding.window(0, *window_of(noise, (0, 1), 0, slots))
        assert len(await decoding.end()) == K
        await decode(await made.begin(job_of(coded[0]), [file.fileno()]), coded, (0, 1), slots)
    assert (tmp_path / "out").read_bytes() == DATA


async def test_a_full_disk_is_said(decoders: tuple[Decoders, Slots], coded: tuple[Encoded, list[bytes]]) -> None:
    made, slots = decoders
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: ASYNC230
        decoding = await made.begin(job_of(coded[0]), [full.fileno()])
        with pytest.raises(StorageFull):
            await decoding.window(0, *window_of(coded[1], (0, 1), 0, slots))
        await decoding.end()


async def test_a_span_outside_the_files_is_refused(decoders: tuple[Decoders, Slots], coded: tuple[Encoded, list[bytes]]) -> None:
    made, _ = decoders
    with pytest.raises(BadInput, match="wasn't passed"):
        await made.begin(job_of(coded[0], [TargetSpan(1, 0, 0, 5)]), [])


async def test_one_that_is_killed_fails_its_jobs_and_another_takes_its_place(
    decoders: tuple[Decoders, Slots], coded: tuple[Encoded, list[bytes]], tmp_path: Path
) -> None:
    made, slots = decoders
    with (tmp_path / "out").open("w+b") as file:
        decoding = await made.begin(job_of(coded[0]), [file.fileno()])
        process = made._processes[0].process
        os.kill(process.pid, signal.SIGSTOP)
        call = asyncio.ensure_future(decoding.window(0, *window_of(coded[1], (0, 1), 0, slots)))
        await asyncio.sleep(0)
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            with pytest.raises(ChannelClosed):
                await call
            assert len(await decoding.end()) == K
        await decode(await made.begin(job_of(coded[0]), [file.fileno()]), coded, (1, 2), slots)
    assert (tmp_path / "out").read_bytes() == DATA


async def test_being_cancelled_waits_for_the_window_under_way(
    decoders: tuple[Decoders, Slots], coded: tuple[Encoded, list[bytes]], tmp_path: Path
) -> None:
    made, slots = decoders
    with (tmp_path / "out").open("w+b") as file:
        decoding = await made.begin(job_of(coded[0]), [file.fileno()])
        process = made._processes[0].process
        os.kill(process.pid, signal.SIGSTOP)
        call = asyncio.ensure_future(decoding.window(0, *window_of(coded[1], (0, 1), 0, slots)))
        await asyncio.sleep(0)
        call.cancel()
        done, _ = await asyncio.wait([call], timeout=0.1)
        assert not done
        os.kill(process.pid, signal.SIGCONT)
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                await call
        await decoding.end()
