from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from node.data_dir import FORMAT, DataDir, running_pid, write_durably
from node.identity import load_identity
from protocol.errors import BadInput, Conflict
from protocol.signing import peer_of


def test_it_is_made_private_with_its_format(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with DataDir(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert (path / "format").read_text() == f"{FORMAT}\n"
        assert running_pid(path) == os.getpid()
    assert running_pid(path) is None


def test_a_second_one_is_told_who_has_it_and_the_next_gets_it(tmp_path: Path) -> None:
    with DataDir(tmp_path), pytest.raises(Conflict, match=f"process {os.getpid()}"):
        DataDir(tmp_path).open()
    with DataDir(tmp_path):
        pass


def test_the_lock_goes_with_the_process(tmp_path: Path) -> None:
    code = f"import os; from pathlib import Path; from node.data_dir import DataDir; DataDir(Path({str(tmp_path)!r})).open(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    with DataDir(tmp_path):
        pass


def test_a_newer_format_is_refused_and_left_unlocked(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("999\n")
    with pytest.raises(Conflict, match="999"):
        DataDir(tmp_path).open()
    assert running_pid(tmp_path) is None


def test_nonsense_for_a_format_and_a_file_for_a_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("x")
    with pytest.raises(BadInput, match="format"):
        DataDir(tmp_path).open()
    with pytest.raises(BadInput, match="written"):
        DataDir(tmp_path / "format").open()


def test_a_failed_write_leaves_the_old_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_durably(tmp_path / "x", b"old")

    def refuse(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(BadInput, match="Input/output"):
        write_durably(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_the_identity_stays_the_boot_id_does_not(tmp_path: Path) -> None:
    first, second = load_identity(tmp_path), load_identity(tmp_path)
    assert first.peer_id == second.peer_id == peer_of(first.key)
    assert first.boot != second.boot
    assert len(first.boot) == 16
    assert stat.S_IMODE((tmp_path / "identity.key").stat().st_mode) == 0o600
    assert "key" not in repr(first)


def test_a_key_others_can_read_is_refused(tmp_path: Path) -> None:
    load_identity(tmp_path)
    (tmp_path / "identity.key").chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        load_identity(tmp_path)


def test_what_is_no_key_is_refused_and_kept(tmp_path: Path) -> None:
    write_durably(tmp_path / "identity.key", b"nonsense")
    with pytest.raises(BadInput, match="no private key"):
        load_identity(tmp_path)
    assert (tmp_path / "identity.key").read_bytes() == b"nonsense"
