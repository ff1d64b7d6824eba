"""A group from its shards: right bytes or a named reason, and no descriptor left open on any path."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import node.assemble
from node.assemble import mismatch
from node.locate import Located
from node.model_folder import scan
from node.model_manifest import build_manifest
from node.swarm.interface import HoldingView
from node.transfer.fetch import in_order
from node.transfer.jobs import Fetched, FetchGroup
from protocol.errors import MfError, PeerFault, Unavailable
from protocol.grouping import group_id
from protocol.ids import ModelId, digest, encoding_text, model_from
from protocol.manifest import Cut, GroupEntry, Manifest, Summary, TensorEntry
from tests.node.verb_fakes import VerbNode, VerbSwarm, small_model, verb_swarm


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few shards aren't waited for."""
    monkeypatch.setattr(node.assemble, "PATIENCE", 0.0)


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[tuple[VerbSwarm, VerbNode, ModelId]]:
    async with verb_swarm(4, tmp_path) as swarm:
        done = await swarm.nodes[0].publish(small_model(tmp_path / "m"), k=2, n=4)
        await swarm.tell()
        yield swarm, await swarm.add(tmp_path), model_from(done["model_id"])


Stored = tuple[VerbSwarm, VerbNode, ModelId]


BEFORE: set[str] = set()
"""Descriptors of groups that other tests left to this process."""


@pytest.fixture(autouse=True)
def before() -> None:
    BEFORE.clear()
    BEFORE.update(_groups())


def descriptors() -> int:
    return len(_groups() - BEFORE)


def _groups() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if "memfd:group" in _target(name) or "assemble-" in _target(name)}


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""


async def each_group(asker: VerbNode, located: Located) -> list[bytes]:
    found = []
    for number in range(len(located.manifest.groups)):
        group = await asker.assembler.group(located, number)
        found.append(group.read())
        group.close()
        group.close()
    return found


async def test_every_group_comes_back_from_any_two_of_four(stored: Stored) -> None:
    swarm, asker, model = stored
    located = await asker.locator.locate(model)
    whole = await each_group(asker, located)
    for gone in swarm.nodes[:2]:
        swarm.leave(gone)
    assert await each_group(asker, located) == whole
    assert [len(data) for data in whole] == [entry.length for entry in located.manifest.groups]
    assert descriptors() == 0


async def test_large_groups_lie_in_an_unlinked_file(stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _swarm, asker, model = stored
    monkeypatch.setattr(node.assemble, "MEMFD_MOST", 0)
    located = await asker.locator.locate(model)
    group = await asker.assembler.group(located, 1)
    assert "assemble-" in os.readlink(f"/proc/self/fd/{group.fd}")
    assert not [name for name in os.listdir(tmp_path) if name.startswith("assemble-")]
    group.close()
    assert descriptors() == 0


async def test_too_few_shards_say_which_group_how_many_and_who(stored: Stored) -> None:
    swarm, asker, model = stored
    located = await asker.locator.locate(model)
    for gone in swarm.nodes[1:]:
        if gone is not asker:
            swarm.leave(gone)
    with pytest.raises(Unavailable, match="1 of the 2 shards needed can be reached, 1 missing") as caught:
        await asker.assembler.group(located, 1)
    details = caught.value.details
    assert (details["group"], details["missing"], details["needed"]) == (located.manifest.groups[1].name, 1, 2)
    assert details["asked"] == [swarm.nodes[0].peer]
    assert descriptors() == 0


async def test_no_encoding_known_is_said(stored: Stored) -> None:
    _swarm, asker, model = stored
    located = await asker.locator.locate(model)
    located.encodings.clear()
    with pytest.raises(Unavailable, match="no encoding is known"):
        await asker.assembler.group(located, 0)
    assert descriptors() == 0


async def test_shards_that_went_missing_on_the_way_name_the_group(stored: Stored) -> None:
    swarm, asker, model = stored
    located = await asker.locator.locate(model)
    for holder in swarm.nodes[1:4]:
        for info in holder.transfer.store.list_shards():
            holder.transfer.store.drop_shard(info.key, "lost")
    with pytest.raises(Unavailable, match=r"group layer\.|group embed|group files") as caught:
        await asker.assembler.group(located, 1)
    assert caught.value.details["group"] == located.manifest.groups[1].name
    assert caught.value.details["missing"] == 1
    assert descriptors() == 0


async def test_banned_and_set_aside_holders_arent_asked(stored: Stored) -> None:
    swarm, asker, model = stored
    located = await asker.locator.locate(model)
    asker.swarm.bans.add(swarm.nodes[0].peer)
    known = located.encodings[1][0]
    asker.swarm.blame(swarm.nodes[1].peer, f"{encoding_text(known.id)}/0", "noise")
    asked = {source.peer for source in asker.assembler._sources(known)}
    assert asked == {swarm.nodes[2].peer, swarm.nodes[3].peer}


async def test_data_shards_of_quick_peers_come_first(stored: Stored) -> None:
    _swarm, asker, model = stored
    located = await asker.locator.locate(model)
    known = located.encodings[1][0]
    sources = asker.assembler._sources(known)
    assert [source.shard for source in sources] == [0, 1, 2, 3]
    asker.assembler._speeds[sources[1].peer] = 5e6
    assert [source.shard for source in asker.assembler._sources(known)] == [1, 0, 2, 3]


async def test_who_gave_nothing_is_asked_last_for_a_while(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    _swarm, asker, model = stored
    located = await asker.locator.locate(model)
    known = located.encodings[1][0]
    first, *others = (source.peer for source in asker.assembler._sources(known))

    def order() -> list[str]:
        return [source.peer for source in in_order(asker.assembler._sources(known), known.record.k, len(known.record.roots))]

    assert order()[0] == first
    asker.assembler._learn(Fetched(bytes=1, seconds=0.1, asked=[first, *others], speeds=dict.fromkeys(others, 1e6)))
    assert (order()[0] in others, order()[-1]) == (True, first)
    asker.assembler._learn(Fetched(bytes=1, seconds=0.1, asked=[first], speeds={first: 1e6}))
    assert order()[0] == first
    asker.assembler._learn(Fetched(bytes=1, seconds=0.1, asked=[first], speeds={}))
    assert order()[-1] == first
    monkeypatch.setattr(node.assemble, "SILENT_FOR", 0.0)
    assert order()[0] == first


async def test_a_lying_encoding_blames_its_signer_and_another_one_is_used(stored: Stored, tmp_path: Path) -> None:
    swarm, asker, model = stored
    liar = swarm.nodes[1]
    honest = await each_group(asker, await asker.locator.locate(model))
    liar.transfer.lie = True
    await liar.publish(tmp_path / "m", k=1, n=4)
    await swarm.tell()
    located = await asker.locator.locate(model)
    assert all(len(entries) == 2 for entries in located.encodings.values())
    assert await each_group(asker, located) == honest
    assert {blame["peer_id"] for blame in asker.swarm.blames} == {liar.peer}
    assert "decodes to other bytes" in asker.swarm.blames[0]["reason"]
    assert descriptors() == 0


@pytest.mark.parametrize("fault", [PeerFault("it doesn't decode as its signer declared"), Unavailable("its holders are gone")])
async def test_an_encoding_that_cant_be_read_hides_no_other(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Unavailable
) -> None:
    swarm, asker, model = stored
    other = swarm.nodes[1]
    await other.publish(tmp_path / "m", k=1, n=4)
    await swarm.tell()
    located = await asker.locator.locate(model)
    fetch, broken = asker.transfer.fetch_group, asker.assembler._usable(located, 1)[0]

    async def fetch_group(job: FetchGroup, *fds: int) -> Fetched:
        if job.envelope == broken.envelope:
            raise fault
        return await fetch(job, *fds)

    monkeypatch.setattr(asker.transfer, "fetch_group", fetch_group)
    (await asker.assembler.group(located, 1)).close()
    blamed = {blame["peer_id"] for blame in asker.swarm.blames}
    assert blamed == ({broken.signer} if isinstance(fault, PeerFault) else set())
    assert descriptors() == 0


async def test_only_lies_are_a_fault_of_peers(stored: Stored, tmp_path: Path) -> None:
    swarm, asker, model = stored
    liar = swarm.nodes[1]
    liar.transfer.lie = True
    for code in ((1, 4), (1, 3), (2, 3)):
        await liar.publish(tmp_path / "m", k=code[0], n=code[1])
    await swarm.tell()
    located = await asker.locator.locate(model)
    for entries in located.encodings.values():
        entries[:] = [known for known in entries if known.signer == liar.peer]
    with pytest.raises(PeerFault, match="decodes to other bytes"):
        await asker.assembler.group(located, 1)
    assert descriptors() == 0


async def test_a_cancelled_or_failing_fetch_leaves_no_descriptor(stored: Stored) -> None:
    _swarm, asker, model = stored
    located = await asker.locator.locate(model)
    begun = asyncio.Event()

    async def stuck(job: object, *fds: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    asker.transfer.fetch_group = stuck  # type: ignore[assignment,method-assign]
    task = asyncio.create_task(asker.assembler.group(located, 1))
    await begun.wait()
    assert descriptors() == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert descriptors() == 0

    async def broken(job: object, *fds: int) -> None:
        raise MfError("the transfer process is gone")

    asker.transfer.fetch_group = broken  # type: ignore[assignment,method-assign]
    with pytest.raises(MfError, match="gone"):
        await asker.assembler.group(located, 1)
    assert descriptors() == 0


async def test_a_group_that_is_still_compared_stays_open_though_its_asker_left(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    _, asker, model = stored
    began, go_on, seen = threading.Event(), threading.Event(), list[int]()

    def slow(_manifest: Manifest, _group: int, fd: int) -> None:
        began.set()
        assert go_on.wait(20)
        seen.append(os.fstat(fd).st_size)

    monkeypatch.setattr(node.assemble, "mismatch", slow)
    monkeypatch.setattr(asker.assembler, "_executor", None)  # the loop's own threads
    located = await asker.locator.locate(model)
    asked = asyncio.create_task(asker.assembler.group(located, 0))
    assert await asyncio.to_thread(began.wait, 20)
    asked.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert seen == [located.manifest.groups[0].length]
    assert descriptors() == 0


async def test_a_holding_that_lists_a_shard_twice_counts_once(stored: Stored) -> None:
    swarm, asker, model = stored
    located = await asker.locator.locate(model)
    for node_ in swarm.nodes[1:4]:
        swarm.leave(node_)
    view = swarm.board.holdings[swarm.nodes[0].peer, model]
    swarm.board.holdings[asker.peer, model] = HoldingView(asker.peer, model, view.held, [])
    with pytest.raises(Unavailable, match="1 of the 2 shards"):
        await asker.assembler.group(located, 1)


# What a group's bytes are compared with.


def memfd(data: bytes) -> int:
    fd = os.memfd_create("test")
    os.pwrite(fd, data, 0)
    return fd


def test_every_flipped_byte_of_a_real_model_is_noticed(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "m")
    manifest, _data = build_manifest(scan(folder), lambda done, total: None)
    weights = (folder / "model.safetensors").read_bytes()
    tensor = next(tensor for tensor in manifest.tensors if "layers.1.mlp.up" in tensor.name)
    cut = tensor.cuts[0]
    group = bytearray(manifest.groups[cut.group].length)
    for other in manifest.tensors:
        if other.cuts[0].group == cut.group:
            at = other.cuts[0].at
            group[at : at + other.length] = weights[other.offset : other.offset + other.length]
    fd = memfd(bytes(group))
    assert mismatch(manifest, cut.group, fd) is None
    os.pwrite(fd, bytes([group[cut.at + 5] ^ 1]), cut.at + 5)
    assert mismatch(manifest, cut.group, fd) == tensor.name
    os.close(fd)


def test_a_files_group_is_held_to_its_id(tmp_path: Path) -> None:
    manifest, _data = build_manifest(scan(small_model(tmp_path / "m")), lambda done, total: None)
    number = next(number for number, entry in enumerate(manifest.groups) if entry.spans is not None)
    entry, folder = manifest.groups[number], tmp_path / "m"
    data = b"".join(
        (folder / manifest.files[span.file].name).read_bytes()[span.offset : span.offset + span.length] for span in entry.spans or ()
    )
    fd = memfd(data)
    assert mismatch(manifest, number, fd) is None
    os.pwrite(fd, b"!", 3)
    assert mismatch(manifest, number, fd) == entry.name
    os.close(fd)


def test_rows_of_a_cut_tensor_are_held_to_their_groups_id() -> None:
    rows = [bytes([number]) * 128 for number in range(4)]
    parts = [b"".join(rows[:3]), rows[3]]
    groups = [
        GroupEntry(name=f"embed/{number}", id=group_id([("U8", [len(part) // 128, 128], digest(part))]), length=len(part))
        for number, part in enumerate(parts)
    ]
    tensor = TensorEntry(
        name="table", dtype="U8", shape=[4, 128], file=0, offset=0, length=512, digest=digest(b"".join(rows)),
        cuts=[Cut(0, 0, 384), Cut(1, 0, 128)],
    )  # fmt: skip
    manifest = Manifest(rule="g1", files=[], tensors=[tensor], groups=groups, summary=Summary(model_type="x"), parameters=512)
    for number, part in enumerate(parts):
        fd = memfd(part)
        assert mismatch(manifest, number, fd) is None
        os.pwrite(fd, b"\xff", 100)
        assert mismatch(manifest, number, fd) == "table"
        os.close(fd)


def test_an_empty_group_agrees() -> None:
    manifest = Manifest(
        rule="g1", files=[], tensors=[], groups=[GroupEntry(name="head", id=bytes(32), length=0)], summary=Summary(model_type="x"),
        parameters=0,
    )  # fmt: skip
    fd = memfd(b"")
    assert mismatch(manifest, 0, fd) is None
    os.close(fd)
