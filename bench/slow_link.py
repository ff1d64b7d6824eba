"""Links that hold every byte back for a while: a proxy in userspace before each node, whose address the node gives as its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path


class SlowLinks:
    """`with SlowLinks(0.05) as links: port = links.open(file)`: TCP to `port` goes on, 50 ms late either way, to the port that stands in
    `file` by then."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> SlowLinks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open(self, target: Path) -> int:
        async def listen() -> int:
            server = await asyncio.start_server(lambda reader, writer: self._join(reader, writer, target), "127.0.0.1", 0)
            port: int = server.sockets[0].getsockname()[1]
            return port

        return asyncio.run_coroutine_threadsafe(listen(), self._loop).result()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Path) -> None:
        with contextlib.closing(writer):
            there, back = await asyncio.open_connection("127.0.0.1", port_in(target))
            with contextlib.closing(back):
                try:
                    await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
                except* ConnectionError:
                    pass  # either side has gone, as connections do

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(4_096)

        async def arrive() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - self._loop.time())
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        async with asyncio.TaskGroup() as both:
            both.create_task(arrive())
            data = b"-"
            while data:
                data = await reader.read(65_536)
                await under_way.put((self._loop.time() + self._delay, data))


def port_in(file: Path) -> int:
    return int(file.read_text())


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
