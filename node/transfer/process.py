"""The transfer process: `python -m node.transfer.process FD [text|json]`: its end of a socketpair with the node, and how it logs.

It lives as long as that channel. Ctrl-C reaches the whole terminal, so SIGINT is ignored here: the node decides. When the
node is killed, the channel's end (and the parent's death signal, should the loop hang) ends this process too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys

from node.channel import Channel
from node.logs import configure_logs
from node.transfer.desk import Desk
from node.transfer.dying import die_with_parent
from node.transfer.give_way import Pace, RestingSelector

STOP_WITHIN = 0.8
NICE = 10
"""A person waits for each step of a reply, for a shard as a whole: where cores are short the network of replies comes first."""
log = logging.getLogger(__name__)


async def serve(sock: socket.socket, log_form: str, pace: Pace) -> None:
    desk = Desk(log_form, pace)
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
    faulthandler.enable(2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    os.nice(NICE)
    log_form = sys.argv[2] if len(sys.argv) > 2 else "text"
    configure_logs(log_form)
    sock = socket.socket(fileno=int(sys.argv[1]))
    pace = Pace()
    runner = asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(RestingSelector(pace)))
    runner.run(serve(sock, log_form, pace))
    sys.stderr.flush()
    # Threads may still hash or write for nobody: what they do isn't acknowledged, and the next start clears it away.
    os._exit(0)


if __name__ == "__main__":
    main()
