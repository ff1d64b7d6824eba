"""Notices when something holds the node's loop, and says what: the stack of the loop's thread, file and line, no values.

A thread asks the loop for a sign of life a few times a second. Only one that fails to come while this thread itself woke in
time counts: on an overloaded machine everybody is late, and that is nobody's fault here. Rejected: asyncio's debug mode, which
makes every callback slower and names the callback only after it has ended.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback

log = logging.getLogger(__name__)
EVERY = 0.25
HELD = 0.05
"""Seconds. The rule is 10 ms; below this a look from a thread mistakes the scheduler's doing for ours."""


class Watchdog:
    def __init__(self, every: float = EVERY, held: float = HELD) -> None:
        self._every = every
        self._held = held
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Call on the loop's thread."""
        loop, watched = asyncio.get_running_loop(), threading.get_ident()
        self._thread = threading.Thread(target=self._watch, args=(loop, watched), name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, watched: int) -> None:
        while not self._stop.wait(self._every):
            sign = threading.Event()
            asked = time.monotonic()
            try:
                loop.call_soon_threadsafe(sign.set)
            except RuntimeError:
                return  # the loop is closed
            if not sign.wait(self._held) and time.monotonic() - asked < 2 * self._held:
                stack = _stack(watched)
                sign.wait(60.0)
                self._tell(time.monotonic() - asked, stack)

    def _tell(self, seconds: float, stack: str) -> None:
        fields = {"ms": round(seconds * 1000), "stack": stack}
        log.warning("the loop was held for %d ms", seconds * 1000, extra={"event": "loop_held", "fields": fields})


def _stack(thread: int) -> str:
    """`file:line function` from the outermost of the last eight frames inwards."""
    frame = sys._current_frames().get(thread)
    lines = traceback.extract_stack(frame)[-8:] if frame else []
    return " > ".join(f"{line.filename.rpartition('/')[2]}:{line.lineno} {line.name}" for line in lines)
