"""Waits that end in a sentence: on a condition, or on an event line of a node's JSON log. Never a bare sleep."""

from __future__ import annotations

import asyncio
import inspect
import json
import queue
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

_POLL = 0.02


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout: float, what: str) -> None:
    """Returns when `condition()` is true, polled every 20 ms; AssertionError naming `what` after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return
        if loop.time() >= end:
            raise AssertionError(f"not within {timeout} s: {what}")
        await asyncio.sleep(_POLL)


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """`until` for tests without a loop."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= end:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(_POLL)


def wait_for_event(source: Path | str | queue.Queue[dict[str, Any]], event: str, timeout: float, **fields: Any) -> dict[str, Any]:
    """The first record with this `event` and these fields, at top level or under "fields".

    `source` is a log file of JSON lines (read from its beginning; it may not exist yet) or a queue of
    parsed records. AssertionError with the last lines seen after `timeout` seconds.
    """
    end = time.monotonic() + timeout
    seen: list[str] = []
    records = _from_queue(source) if isinstance(source, queue.Queue) else _from_file(Path(source))
    for record in records:
        if record is not None:
            seen.append(json.dumps(record, default=str)[:300])
            if matches(record, event, fields):
                return record
        elif time.monotonic() >= end:
            break
    raise AssertionError(f"no event {event!r} with {fields} within {timeout} s; last seen:\n" + "\n".join(seen[-20:]))


def matches(record: dict[str, Any], event: str, fields: dict[str, Any]) -> bool:
    nested = record.get("fields")
    flat = {**record, **nested} if isinstance(nested, dict) else record
    return record.get("event") == event and all(flat.get(name) == value for name, value in fields.items())


def _from_queue(source: queue.Queue[dict[str, Any]]) -> Iterator[dict[str, Any] | None]:
    while True:
        try:
            yield source.get(timeout=_POLL)
        except queue.Empty:
            yield None


def _from_file(path: Path) -> Iterator[dict[str, Any] | None]:
    """Records as the file grows; None whenever there is nothing new yet. Lines that aren't JSON are passed over."""
    offset, rest = 0, b""
    while True:
        data = b""
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        offset += len(data)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record
        time.sleep(0 if data else _POLL)
        yield None
