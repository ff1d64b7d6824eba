"""Allowance, guessing, codes, the journal: each by itself."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.accounts.allowance import HOUR, AllowanceSpent, Windows
from node.accounts.guessing import LONGEST_WAIT, Guessing
from node.accounts.journal import FILE, HEAD, Journal, verify
from node.accounts.replays import Replays
from node.accounts.totp import code_at, matching, recovery_hash
from protocol.errors import BadInput, Busy, Conflict, StorageFull, Unauthorized
from protocol.signing import peer_of
from tests.node.accounts.world import home_key

NOW = 1_790_000_000.0


@given(st.lists(st.tuples(st.floats(0, 900), st.booleans()), max_size=300))
def test_no_hour_has_more_than_twice_an_allowance_and_no_day_more_than_its_hours(steps: list[tuple[float, bool]]) -> None:
    windows, now, taken = Windows(), NOW, []
    for wait, ends in steps:
        now += wait / 30
        try:
            windows.begin("a", "free", now)
            taken.append(now)
        except AllowanceSpent:
            continue
        if ends:
            windows.spend("a", 10, now)
            windows.end("a", now)
    assert len(taken) <= 100 + (now - NOW) * 100 / HOUR + 1


def test_the_wait_that_is_told_is_enough() -> None:
    windows = Windows()
    for _ in range(100):
        windows.begin("a", "free", NOW)
        windows.end("a", NOW)
    with pytest.raises(AllowanceSpent) as caught:
        windows.begin("a", "free", NOW)
    windows.begin("a", "free", NOW + caught.value.details["retry_after"])
    windows.begin("b", "free", NOW)


def test_five_at_once_and_a_months_tokens() -> None:
    windows = Windows()
    for _ in range(5):
        windows.begin("a", "free", NOW)
    with pytest.raises(AllowanceSpent, match="at once"):
        windows.begin("a", "free", NOW)
    windows.end("a", NOW)
    windows.spend("a", 100_000, NOW)
    with pytest.raises(AllowanceSpent, match="month"):
        windows.begin("a", "free", NOW)
    windows.begin("a", "contributor", NOW)
    windows.begin("a", "unlimited", NOW)
    assert windows.month("a", NOW) == 100_000
    assert windows.month("a", NOW + 40 * 86_400) == 0


def test_subjects_are_bounded_and_running_ones_stay() -> None:
    windows = Windows()
    windows.MOST = 10
    windows.begin("busy", "free", NOW)
    for number in range(50):
        windows.standing(f"s{number}", "free", NOW)
    assert len(windows._uses) == 10
    assert windows.standing("busy", "free", NOW).remaining == 99


def test_each_wrong_guess_waits_twice_as_long() -> None:
    guessing, waits = Guessing(), []
    for _ in range(30):
        guessing.missed(NOW, "a")
        try:
            guessing.check(NOW, "a", "b")
        except Busy as busy:
            waits.append(busy.details["retry_after"])
    assert waits[:4] == [3, 5, 9, 17]
    assert max(waits) == LONGEST_WAIT + 1
    guessing.check(NOW + LONGEST_WAIT, "a")
    guessing.right("a")
    guessing.check(NOW, "a")


def test_a_code_is_good_once_and_a_step_either_way() -> None:
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    assert code_at(secret, 1) == "287082", "RFC 6238, appendix B, six digits"
    counter = matching(secret, "287082", 59, -1)
    assert counter == 1
    assert matching(secret, "287082", 59, counter) is None
    assert matching(secret, "287082", 59 + 30, -1) == 1
    assert matching(secret, "287082", 59 + 31, -1) is None
    assert recovery_hash(" ABCDEFGH-ijklmnop ") == recovery_hash("abcdefghijklmnop")


def test_a_nonce_is_good_once_and_forgotten_after_its_time() -> None:
    replays = Replays()
    replays.enter(b"k", b"n", int(NOW), NOW)
    for later in (NOW, NOW + 300, NOW + 599):
        with pytest.raises(Unauthorized):
            replays.enter(b"k", b"n", int(NOW), later)
    replays.enter(b"other", b"n", int(NOW), NOW)
    replays.enter(b"k", b"m", int(NOW), NOW + 700)
    assert list(replays._seen[b"k"]) == [b"m"]
    assert list(replays._seen) == [b"k"], "nothing of the other can be replayed any more"


KEY = home_key(1)


@pytest.fixture
async def written(tmp_path: Path) -> Path:
    journal = Journal(tmp_path, KEY)
    await journal.open()
    for number in range(5):
        await journal.add("login", user=f"user{number}")
    assert [entry["user"] for entry in await journal.read(2, below=4)] == ["user3", "user2"]
    journal.close()
    return tmp_path


def fault(folder: Path) -> str | None:
    return verify(folder / FILE, folder / HEAD, peer_of(KEY)).fault


async def test_the_journal_goes_on_after_a_restart(written: Path) -> None:
    journal = Journal(written, KEY)
    await journal.open()
    await journal.add("logout", user="user0")
    assert (await journal.check()).lines == 6
    journal.close()
    assert fault(written) is None


@pytest.mark.parametrize("harm", ["change", "cut a line", "cut the end", "put in", "swap", "remove", "new head", "no head"])
async def test_a_journal_that_was_touched_is_found_out(written: Path, harm: str) -> None:
    path, head = written / FILE, written / HEAD
    lines = path.read_bytes().splitlines(keepends=True)
    if harm == "change":
        lines[2] = lines[2].replace(b"user2", b"user9")
    elif harm == "cut a line":
        del lines[2]
    elif harm == "cut the end":
        del lines[3:]
    elif harm == "put in":
        lines.insert(2, lines[2])
    elif harm == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif harm == "remove":
        lines = []
    elif harm == "new head":
        told = json.loads(head.read_text())
        del lines[4:]
        head.write_text(json.dumps({**told, "lines": 4}))
    elif harm == "no head":
        head.unlink()
    path.write_bytes(b"".join(lines))
    assert fault(written)
    with pytest.raises(Conflict):
        await Journal(written, KEY).open()


async def test_a_crash_between_line_and_head_holds(written: Path) -> None:
    before = (written / HEAD).read_bytes()
    journal = Journal(written, KEY)
    await journal.open()
    await journal.add("logout", user="x")
    journal.close()
    (written / HEAD).write_bytes(before)
    assert fault(written) is None


@pytest.mark.parametrize("torn", [1, 40])
async def test_a_crash_in_the_middle_of_a_line_holds(written: Path, torn: int) -> None:
    with (written / FILE).open("ab") as file:
        file.write(b'{"a line that was never acknowledged'[:torn])
    journal = Journal(written, KEY)
    await journal.open()
    await journal.add("logout", user="x")
    assert (await journal.check()).lines == 6
    journal.close()


async def test_half_an_acknowledged_line_is_found_out(written: Path) -> None:
    with (written / FILE).open("r+b") as file:
        file.truncate(file.seek(0, 2) - 5)
    with pytest.raises(Conflict):
        await Journal(written, KEY).open()


async def test_a_short_write_keeps_the_journal(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of a line: told so, nothing torn, and it goes on later."""
    whole, calls = os.write, iter([True, False])

    def write(file: int, data: bytes) -> int:
        if not next(calls):
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(file, data[:7])

    journal = Journal(written, KEY)
    await journal.open()
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with pytest.raises(StorageFull):
            await journal.add("login", user="unlucky")
    await journal.add("login", user="lucky")
    assert (await journal.check()).fault is None
    assert [entry["user"] for entry in await journal.read(2)] == ["lucky", "user4"]
    journal.close()


async def test_a_head_that_is_there_keeps_its_line(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder can't be synced after the new head is in it: told so, and both are still of one mind."""

    def sync(_folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal(written, KEY)
    await journal.open()
    with monkeypatch.context() as patched:
        patched.setattr("node.data_dir.sync_folder", sync)
        with pytest.raises(BadInput):
            await journal.add("login", user="unlucky")
    journal.close()
    assert fault(written) is None
