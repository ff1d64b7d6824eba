"""The transfer process: `python -m node.transfer.process FD`, FD being its end of a socketpair with the node.

It lives as long as that channel. Ctrl-C reaches the whole terminal, so SIGINT is ignored here: the node decides. When the
node is killed, the channel's end (and the parent's death signal, should the loop hang) ends this process too.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys

from node.channel import Channel
from node.transfer.desk import Desk

STOP_WITHIN = 0.8
_PR_SET_PDEATHSIG = 1
log = logging.getLogger(__name__)


def die_with_parent() -> None:
    """Where the kernel can, it kills this process when the node's thread that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def serve(sock: socket.socket) -> None:
    desk = Desk()
    channel = Channel(sock, desk.methods(), "node")
    desk.attach(channel)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, channel.closed.set)
    channel.start()
    await channel.closed.wait()
    try:
        async with asyncio.timeout(STOP_WITHIN):
            await desk.stop()
    except TimeoutError:
        log.info("transfers were cut off at the end")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sock = socket.socket(fileno=int(sys.argv[1]))
    runner = asyncio.Runner()
    runner.run(serve(sock))
    sys.stderr.flush()
    # Threads may still hash or write for nobody: what they do isn't acknowledged, and the next start clears it away.
    os._exit(0)


if __name__ == "__main__":
    main()
