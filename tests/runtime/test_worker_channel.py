"""The worker's end of the channel when the node has gone."""

from __future__ import annotations

import socket

from runtime.worker_channel import WorkerChannel


def test_what_is_said_to_a_node_that_has_gone_is_no_fault() -> None:
    mine, theirs = socket.socketpair()
    with mine:
        channel = WorkerChannel(mine)
        theirs.close()
        with channel.together():
            channel.answer(1, None)
            channel.tell("made", [])
        channel.tell("made", [])
        assert channel.waiting()
        assert channel.receive() == []
