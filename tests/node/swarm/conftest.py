"""Time is virtual here: a wait of ten seconds takes as long as the work in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.support.virtual_time import VirtualTimeLoop


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualTimeLoop}
