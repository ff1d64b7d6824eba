"""The one bridge between asyncio and trio: trio runs as a guest on the asyncio loop, in the same thread.

Problem: libp2p speaks trio, the rest of the node asyncio. A write of libp2p that is cancelled half-way
leaves half a message on the connection, and every stream on it hangs.
Choice: guest mode (1,600 hops a second here; two threads made 930, trio-asyncio 640). What crosses is a
task in trio's nursery and a future in asyncio. A waiter that is cancelled or misses its deadline abandons
the task, which ends by itself; `abandoned` gets a result that came too late, so that it can be closed.
Rejected: cancelling the trio task with its waiter, for the reason above.

One guest run per loop is shared by all networks in it and counted: trio allows one run per thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import trio

T = TypeVar("T")
log = logging.getLogger(__name__)
_STOP_WITHIN = 1.5
_bridges: WeakKeyDictionary[asyncio.AbstractEventLoop, Bridge] = WeakKeyDictionary()


class BridgeStopped(RuntimeError):
    """trio isn't running (any more)."""


def _plain(error: BaseException) -> Exception:
    """The first ordinary error of a group; a cancellation beside it would else slip past `except Exception`."""
    if isinstance(error, BaseExceptionGroup):
        ordinary = error.split(lambda item: isinstance(item, Exception) and not isinstance(item, BaseExceptionGroup))[0]
        leaves = [] if ordinary is None else list(ordinary.exceptions)
        return _plain(leaves[0]) if leaves else BridgeStopped(str(error))
    return error if isinstance(error, Exception) else BridgeStopped("trio was stopped")


class Bridge:
    """Runs trio functions for asyncio. `Bridge.acquire()` gives the loop's own; every `acquire` needs a `release`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._users = 0
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._ready: asyncio.Future[None] = loop.create_future()
        self._done: asyncio.Future[None] = loop.create_future()

    @staticmethod
    async def acquire() -> Bridge:
        loop = asyncio.get_running_loop()
        bridge = _bridges.get(loop)
        if bridge is None or bridge._done.done():
            bridge = _bridges[loop] = Bridge(loop)
            bridge._start()
        bridge._users += 1
        await asyncio.shield(bridge._ready)
        return bridge

    async def release(self) -> None:
        """The last one out stops trio; returns within 1.5 s."""
        self._users -= 1
        if self._users > 0 or self._token is None:
            return
        _bridges.pop(self._loop, None)
        self.call_soon(self._cancel)
        done, _ = await asyncio.wait([self._done], timeout=_STOP_WITHIN)
        if not done:
            log.warning("trio didn't end within %s s", _STOP_WITHIN)

    def _start(self) -> None:
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=self._loop.call_soon,
            done_callback=self._ended,
            host_uses_signal_set_wakeup_fd=True,
            restrict_keyboard_interrupt_to_checkpoints=True,
        )

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery, self._token = nursery, trio.lowlevel.current_trio_token()
            self._ready.set_result(None)
            await trio.sleep_forever()

    def _cancel(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _ended(self, outcome: Any) -> None:
        error = getattr(outcome, "error", None)
        if error is not None:
            log.error("trio ended with %r", error)
        if not self._ready.done():
            self._ready.set_exception(BridgeStopped("trio ended before it began"))
        self._done.set_result(None)

    def call_soon(self, function: Callable[..., object], *args: Any) -> None:
        """Runs a plain function inside trio soon; forgotten when trio has ended."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            log.debug("trio has ended, %s isn't run", function)

    def spawn(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Starts a trio task nobody waits for; its fault is logged."""
        self.submit(function, *args).add_done_callback(_log_fault)

    def submit(
        self, function: Callable[..., Awaitable[T]], *args: Any, abandoned: Callable[[T], object] | None = None
    ) -> asyncio.Future[T]:
        """Starts a trio task; the future may be cancelled, the task goes on and `abandoned(result)` is called."""
        future: asyncio.Future[T] = self._loop.create_future()

        async def body() -> None:
            try:
                result = await function(*args)
            except trio.Cancelled:
                if not future.done():
                    future.set_exception(BridgeStopped("trio was stopped"))
                raise
            except BaseException as error:  # boundary: every fault of a trio task belongs to its waiter
                if not future.done():
                    future.set_exception(_plain(error))
            else:
                if not future.done():
                    future.set_result(result)
                elif abandoned is not None:
                    abandoned(result)

        def start() -> None:
            try:
                assert self._nursery is not None
                self._nursery.start_soon(body)
            except RuntimeError:
                if not future.done():
                    future.set_exception(BridgeStopped("trio was stopped"))

        if self._done.done():
            future.set_exception(BridgeStopped("trio was stopped"))
        else:
            self.call_soon(start)
        return future

    async def run(self, function: Callable[..., Awaitable[T]], *args: Any, abandoned: Callable[[T], object] | None = None) -> T:
        """The result of a trio function. Cancelling the wait never cancels the function."""
        return await self.submit(function, *args, abandoned=abandoned)


def _log_fault(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.debug("a trio task failed: %r", error)
