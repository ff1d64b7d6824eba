"""The audit log: what was done to accounts, keys and models, append-only and hash-chained.

Each line is JSON with the BLAKE3 of the line before inside, and its own hash is signed by the node's key in a small head file: a line
that was changed, cut out or put in breaks the chain, and a shortened file ends before the signed head. What this can't show is a
file and head put back together to an older state, or lines made by who has the node's key; keep `head` elsewhere for that.
Names, ids and addresses stand here, no e-mail, credential or anything that was asked or answered.

(Audits of shards are another thing: `node/audit.py`.)
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.data_dir import write_durably, write_error
from protocol.errors import Conflict
from protocol.ids import PeerId, digest
from protocol.signing import peer_of, sign_bytes, verify_bytes

T = TypeVar("T")
FILE, HEAD = "journal.jsonl", "journal.head"
DOMAIN = "mf/journal/1"
START = bytes(32).hex()
_CHUNK = 1 << 16
MAX_LINE = 8_192


@dataclass(frozen=True)
class Verdict:
    """`fault` None: every line holds and the last one is the signed head's."""

    lines: int
    head: str
    fault: str | None = None


def line_of(number: int, at: float, event: str, fields: dict[str, Any], before: str) -> bytes:
    entry = {"number": number, "at": round(at, 3), "event": event, **fields, "before": before}
    return json.dumps(entry, ensure_ascii=True, separators=(",", ":"), sort_keys=True).encode()


class Journal:
    """`open` before anything else. `add` returns once the line is on the disk."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey, now: Callable[[], float] = time.time) -> None:
        self._path, self._head_path = folder / FILE, folder / HEAD
        self._key = key
        self._now = now
        self._thread = ThreadPoolExecutor(1, "journal")
        self._number, self._before = 0, START

    async def open(self) -> None:
        """Checks what is there. `Conflict` where the chain is broken: going on would hide it."""
        await self._run(lambda: _drop_torn(self._path))
        verdict = await self._run(lambda: verify(self._path, self._head_path, peer_of(self._key)))
        if verdict.fault is not None:
            raise Conflict(
                f"the audit log {self._path} doesn't hold: {verdict.fault}", hint="keep it for who looks into it, and move it away"
            )
        self._number, self._before = verdict.lines, verdict.head

    async def add(self, event: str, **fields: Any) -> None:
        await self._run(lambda: self._append(event, fields))

    async def read(self, newest: int, below: int | None = None) -> list[dict[str, Any]]:
        """The newest lines first, those with a number under `below`."""
        return await self._run(lambda: _tail(self._path, newest, below))

    async def check(self) -> Verdict:
        return await self._run(lambda: verify(self._path, self._head_path, peer_of(self._key)))

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _append(self, event: str, fields: dict[str, Any]) -> None:
        line = line_of(self._number, self._now(), event, fields, self._before)
        name = digest(line).hex()
        signature = sign_bytes(self._key, DOMAIN, f"{self._number + 1} {name}".encode()).hex()
        head = json.dumps({"lines": self._number + 1, "head": name, "signature": signature}).encode()
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(file).st_size
            try:
                _write_whole(file, line + b"\n")
                write_durably(self._head_path, head)
            except BaseException:
                if not _is(self._head_path, head):
                    os.ftruncate(file, before)  # else the next line would go on where this one was torn
                raise
        except OSError as error:
            raise write_error(self._path, error) from error
        finally:
            os.close(file)
        self._number, self._before = self._number + 1, name


def _write_whole(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
    os.fdatasync(file)


def _is(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def _drop_torn(path: Path) -> None:
    """Half a last line is a crash in the middle of writing it, before its head was signed: nobody was told that it is there. If a head
    had been signed for it, `verify` finds that the line is gone.
    """
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return
    with file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE))
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            whole = tail.rfind(b"\n") + 1
            if whole or size <= MAX_LINE:
                file.truncate(size - len(tail) + whole)
                os.fdatasync(file.fileno())


def verify(path: Path, head_path: Path, signer: PeerId) -> Verdict:
    """Reads the whole log; memory bounded. One line more than the head is a crash between the two, and holds."""
    number, before, heads = 0, START, [START]
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                fault = _fault_of(line, number, before)
                if fault:
                    return Verdict(number, before, f"line {number}: {fault}")
                number, before = number + 1, digest(line[:-1]).hex()
                heads = [*heads[-1:], before]
    except FileNotFoundError:
        pass
    return Verdict(number, before, _head_fault(head_path, number, heads, signer))


def _fault_of(line: bytes, number: int, before: str) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return "it isn't JSON, or was cut short"
    if not line.endswith(b"\n") or not isinstance(entry, dict):
        return "it was cut short"
    if entry.get("number") != number or entry.get("before") != before:
        return "it doesn't follow on the line before it"
    return None


def _head_fault(path: Path, number: int, heads: list[str], signer: PeerId) -> str | None:
    try:
        head = json.loads(path.read_bytes())
        lines, name, signature = int(head["lines"]), str(head["head"]), bytes.fromhex(head["signature"])
    except FileNotFoundError:
        return None if number <= 1 else "its signed head is gone"
    except (ValueError, KeyError, TypeError):
        return "its signed head can't be read"
    if not verify_bytes(signer, DOMAIN, f"{lines} {name}".encode(), signature):
        return "its head isn't signed by this node"
    if (lines == number and name == heads[-1]) or (lines == number - 1 and name == heads[0]):
        return None
    return f"its head is line {lines}, the file has {number}"


def _tail(path: Path, newest: int, below: int | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in _backwards(path):
        entry = json.loads(line)
        if below is None or entry["number"] < below:
            found.append(entry)
        if len(found) >= newest:
            break
    return found


def _backwards(path: Path) -> Any:
    """Whole lines from the end."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        at, rest = file.seek(0, os.SEEK_END), b""
        while at > 0:
            size = min(_CHUNK, at)
            at -= size
            file.seek(at)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            yield from (line for line in reversed(lines) if line)
        if rest:
            yield rest
