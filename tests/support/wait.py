"""Waiting for a condition, with a deadline, instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_EVERY = 0.02


async def until(condition: Callable[[], bool], timeout: float) -> None:
    """Returns when `condition` holds; fails after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not so within {timeout} s"
        await asyncio.sleep(_EVERY)


def wait_until(condition: Callable[[], bool], timeout: float) -> None:
    """The same without a loop."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not so within {timeout} s"
        time.sleep(_EVERY)
