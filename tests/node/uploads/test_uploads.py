"""Uploads received in ranges, over breaks and restarts; what is refused; what stays and what goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from node.uploads import uploads as module
from node.uploads.upload import Upload
from node.uploads.uploads import Uploads
from protocol.errors import BadInput, Busy, Conflict, MfError, NotFound, StorageFull
from tests.node.uploads.fakes import FakeFinisher
from tests.support.wait import until

Make = Callable[..., Awaitable[Uploads]]
BODY = bytes(range(256)) * 16


async def pieces(data: bytes, each: int = 1_000, then: BaseException | None = None) -> AsyncIterator[bytes]:
    for at in range(0, len(data), each):
        yield data[at : at + each]
    if then is not None:
        raise then


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    executor, made = ThreadPoolExecutor(2), list[Uploads]()

    async def begin(finisher: FakeFinisher | None = None, quota: int = 1 << 20, **more: object) -> Uploads:
        uploads = Uploads(tmp_path, quota, finisher or FakeFinisher(), executor, **more)  # type: ignore[arg-type]
        await uploads.open()
        made.append(uploads)
        return uploads

    yield begin
    for uploads in made:
        await uploads.close()
    executor.shutdown()


def over(upload: Upload) -> Callable[[], bool]:
    return lambda: upload.stage in ("finished", "failed")


async def test_what_came_before_a_break_counts_and_the_rest_follows(make: Make) -> None:
    finisher = FakeFinisher()
    uploads = await make(finisher)
    upload = await uploads.begin("ann", "little", [("a/model.bin", len(BODY), None), ("config.json", 2, None)])
    assert (upload.percentage, upload.missing()) == (0.0, ["a/model.bin", "config.json"])
    with pytest.raises(ConnectionResetError):
        await uploads.receive(upload, "a/model.bin", 0, None, pieces(BODY[:3_000], then=ConnectionResetError()))
    assert upload.files["a/model.bin"].received == 3_000
    with pytest.raises(Conflict) as gap:
        await uploads.receive(upload, "a/model.bin", 3_500, None, pieces(b"x"))
    assert gap.value.details == {"received": 3_000}
    await uploads.receive(upload, "a/model.bin", 2_000, len(BODY), pieces(BODY[2_000:]))
    await uploads.receive(upload, "config.json", 0, 2, pieces(b"{}"))
    await until(over(upload), 5, "it is over")
    assert (upload.stage, upload.percentage, upload.failure) == ("finished", 100.0, None)
    assert finisher.seen == {"a/model.bin": BODY, "config.json": b"{}"}


async def test_a_restart_knows_what_was_received_and_goes_on_with_what_was_complete(make: Make, tmp_path: Path) -> None:
    first = await make(FakeFinisher(hold=asyncio.Event()))
    first._finisher.hold.clear()  # type: ignore[attr-defined]
    half = await first.begin("ann", "half", [("w", len(BODY), None)])
    await first.receive(half, "w", 0, None, pieces(BODY[:1_500]))
    whole = await first.begin("ann", "whole")
    await first.receive(whole, "w", 0, None, pieces(BODY))
    first.complete(whole)
    await until(lambda: whole.stage == "storing", 5, "it is at work")
    await first.close()
    finisher = FakeFinisher()
    again = await make(finisher)
    assert again.find("ann", half.id).files["w"].received == 1_500
    await until(over(again.find("ann", whole.id)), 5, "it went on by itself")
    assert finisher.seen == {"w": BODY}
    found = again.find("ann", half.id)
    await again.receive(found, "w", 1_500, None, pieces(BODY[1_500:]))
    await until(over(found), 5, "the other too")
    assert finisher.seen == {"w": BODY}
    await until(lambda: not again._tasks, 5, "their tasks too")
    assert not list((tmp_path / "uploads").rglob("w")), "what is stored in the swarm isn't kept twice"


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", ".hidden", "a//b", "a\\b", "c:d", "x\x00y", "", "n" * 1_025, "a/.git/x"]
)
async def test_a_name_leads_nowhere_else(make: Make, tmp_path: Path, name: str) -> None:
    uploads = await make()
    upload = await uploads.begin("ann", "little")
    with pytest.raises(BadInput):
        await uploads.receive(upload, name, 0, None, pieces(b"x"))
    with pytest.raises(BadInput):
        await uploads.begin("ann", "little", [(name, 1, None)])
    assert [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()] == [tmp_path / "uploads" / upload.id / "upload.json"]


async def test_more_bytes_other_sizes_other_files_and_gaps_are_refused(make: Make) -> None:
    uploads = await make()
    upload = await uploads.begin("ann", "little", [("w", 10, None)])
    with pytest.raises(BadInput):
        await uploads.receive(upload, "w", 0, None, pieces(b"x" * 11))
    assert upload.files["w"].received == 0
    with pytest.raises(Conflict):
        await uploads.receive(upload, "w", 0, 9, pieces(b"x"))
    with pytest.raises(BadInput):
        await uploads.receive(upload, "other", 0, 1, pieces(b"x"))
    with pytest.raises(Conflict) as early:
        uploads.complete(upload)
    assert early.value.details == {"missing": {"w": 0}}
    with pytest.raises(BadInput):
        await uploads.begin("ann", "twice", [("w", 1, None), ("w", 1, None)])
    loose = await uploads.begin("ann", "loose")
    await uploads.receive(loose, "w", 0, None, pieces(b"x"))
    with pytest.raises(BadInput):
        await uploads.receive(loose, "w/below", 0, None, pieces(b"x"))


async def test_one_request_a_file_and_others_uploads_arent_there(make: Make) -> None:
    uploads, go = await make(), asyncio.Event()
    upload = await uploads.begin("ann", "little", [("w", 4, None)])

    async def slow() -> AsyncIterator[bytes]:
        yield b"ab"
        await go.wait()
        yield b"cd"

    first = asyncio.create_task(uploads.receive(upload, "w", 0, None, slow()))
    await until(lambda: bool(uploads._busy), 5, "it receives")
    with pytest.raises(Conflict):
        await uploads.receive(upload, "w", 0, None, pieces(b"abcd"))
    with pytest.raises(NotFound):
        uploads.find("bob", upload.id)
    assert uploads.mine("bob") == []
    go.set()
    assert (await first).complete


async def test_room_and_number_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = await make(quota=10_000)
    with pytest.raises(StorageFull):
        await uploads.begin("ann", "large", [("w", 10_001, None)])
    loose = await uploads.begin("ann", "loose")
    with pytest.raises(StorageFull):
        await uploads.receive(loose, "w", 0, None, pieces(b"x" * 11_000, 5_000))
    assert loose.files["w"].received <= 10_000
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    await uploads.begin("ann", "second")
    with pytest.raises(Busy):
        await uploads.begin("ann", "third")
    await uploads.cancel(loose)
    await uploads.begin("ann", "third")


async def test_a_failure_is_told_and_old_ones_are_forgotten(make: Make, tmp_path: Path) -> None:
    clock, told = [1_000.0], list[str]()

    async def hear(upload: Upload) -> None:
        told.append(upload.stage)

    finisher = FakeFinisher(refuse=BadInput("model.bin: no header"))
    uploads = await make(finisher, told=hear, now=lambda: clock[0])
    bad = await uploads.begin("ann", "bad", [("w", 1, None)])
    await uploads.receive(bad, "w", 0, None, pieces(b"x"))
    await until(lambda: bool(told), 5, "it is told")
    assert (bad.stage, (bad.failure or {})["message"], told) == ("failed", "model.bin: no header", ["failed"])
    await uploads.begin("ann", "left alone", [("w", 9, None)])
    clock[0] += module.KEPT - 1
    await uploads.forget_old()
    assert len(uploads.mine("ann")) == 2
    clock[0] += 2
    await uploads.forget_old()
    assert uploads.mine("ann") == []
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_files_that_are_still_read_stay_until_they_arent(make: Make, tmp_path: Path) -> None:
    finisher = FakeFinisher(reading=True)
    uploads = await make(finisher)
    upload = await uploads.begin("ann", "little", [("w", 1, None)])
    await uploads.receive(upload, "w", 0, None, pieces(b"x"))
    await until(over(upload), 5, "it is over")
    await until(lambda: not uploads._tasks, 5, "and its task")
    assert list((tmp_path / "uploads").rglob("w"))
    finisher.reading = False
    await uploads.forget_old()
    assert not list((tmp_path / "uploads").rglob("w"))


async def test_a_cancelled_one_ends_what_it_does(make: Make) -> None:
    finisher = FakeFinisher()
    finisher.hold.clear()
    uploads = await make(finisher)
    upload = await uploads.begin("ann", "little", [("w", 1, None)])
    await uploads.receive(upload, "w", 0, None, pieces(b"x"))
    await until(lambda: upload.stage == "storing", 5, "it is at work")
    await uploads.cancel(upload)
    with pytest.raises(MfError):
        uploads.find("ann", upload.id)
    assert not uploads._tasks
