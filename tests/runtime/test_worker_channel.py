"""The worker's end of the channel: messages however they come, and when the node has gone."""

from __future__ import annotations

import os
import random
import socket
import threading

import msgspec

from runtime.worker_channel import Request, WorkerChannel


def framed(message: dict[str, object]) -> bytes:
    payload = msgspec.msgpack.encode(message)
    return len(payload).to_bytes(4, "big") + payload


def test_messages_arrive_whole_however_they_are_cut() -> None:
    chance = random.Random(7)
    sizes = [0, 1, 300, 70_000, 5, 400_000, 2]
    messages = [framed({"id": number, "method": "m", "params": chance.randbytes(size)}) for number, size in enumerate(sizes, 1)]
    messages.append(framed({"several": [{"id": 8, "method": "m"}, {"id": 9, "cancel": True}]}))
    sent = b"".join(messages)
    mine, theirs = socket.socketpair()

    def send() -> None:
        at = 0
        while at < len(sent):
            end = at + chance.choice([1, 3, 4, 7, 1_000, 65_536, 200_000])
            theirs.sendall(sent[at:end])
            at = end

    with mine, theirs:
        channel, sender = WorkerChannel(mine), threading.Thread(target=send)
        sender.start()
        got: list[Request] = []
        while len(got) < 9:
            got += channel.receive()
        sender.join()
        assert not channel.waiting()
    assert [one.number for one in got] == list(range(1, 10))
    assert [len(msgspec.msgpack.decode(one.params)) for one in got[:7]] == sizes
    assert [one.cancel for one in got[7:]] == [False, True]


def test_descriptors_stay_with_their_message() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        channel = WorkerChannel(mine)
        for number in (1, 2):
            read, write = os.pipe()
            os.write(write, bytes([number]))
            message = framed({"id": number, "method": "m", "fds": 1})
            socket.send_fds(theirs, [message[:5]], [read])
            theirs.sendall(message[5:])
            os.close(read)
            os.close(write)
        for number in (1, 2):
            (request,) = channel.receive()
            assert request.number == number
            assert os.read(request.fds[0], 1) == bytes([number])
            os.close(request.fds[0])


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
