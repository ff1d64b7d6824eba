"""Lanes: a stage's rows go to the next stage's node straight from here, without this node's own process between.

Problem: between two workers lie two nodes. The first one does with a token's row what it could do as well afterwards: it reads the answer,
keeps it for a replacement, makes the frame, seals and sends it; a third of a millisecond of the one that a boundary costs. Choice: the node
makes a connection to the next one's place for step frames, greets there, shuts its reading half, and gives the descriptor and the key
to this process: a lane. A step that may go straight on says so and brings the frame's head (`interface.Onward`); what it came to is
sealed and sent here, and the node hears that it is on its way. Nothing changes for the one who receives it.

A lane leads to one node, which gets from it what this process gave it anyway through its own: hidden states and tokens. The sandbox
lets nobody make, take or turn a connection (runtime/sandbox.py). Not sent here are: what isn't a number, a reply's last token, and what
a pass gave for several sequences, which goes as a bundle. A lane that takes no frame whole has ended: the node sends that one itself.

Rejected: to receive here too (what is checked of a step, and who is blamed for it, would be in two places), a pipe to the node's process
(the wake-up is what costs).
"""

from __future__ import annotations

import os
import socket
import struct

from protocol.errors import BadInput
from protocol.messages import StepHead, step_frame
from protocol.sealing import KEY, Sealer
from protocol.step_times import with_own
from runtime import interface as api
from runtime.finite import all_finite

MOST = 64
"""Lanes at once."""
BROKEN = -1


class Lane:
    """One connection; it takes whole frames or none any more."""

    def __init__(self, sock: socket.socket, key: bytes) -> None:
        sock.setblocking(False)
        self._sock, self._sealer = sock, Sealer(key)

    def send(self, frame: bytes) -> bool:
        sealed = self._sealer.seal(frame)
        try:
            return self._sock.send(sealed) == len(sealed)
        except OSError:
            return False

    def close(self) -> None:
        self._sock.close()


class Lanes:
    """By the node's number for each."""

    def __init__(self) -> None:
        self._lanes: dict[int, Lane] = {}
        self.sent = 0
        """Frames so far."""

    def take(self, params: api.TakeLane, fds: list[int]) -> None:
        """`fds`: the connection, greeted already."""
        if len(fds) != 1 or len(params.key) != KEY or params.lane in self._lanes or len(self._lanes) >= MOST:
            raise BadInput(f"take_lane: one descriptor, a key of {KEY} bytes, a new number and at most {MOST} lanes are right")
        self._lanes[params.lane] = Lane(socket.socket(fileno=os.dup(fds[0])), params.key)

    def drop(self, params: api.DropLane) -> None:
        if (lane := self._lanes.pop(params.lane, None)) is not None:
            lane.close()

    def send(self, onward: api.Onward, answer: api.Stepped, *, finite: bool = False) -> int:
        """Bytes that are on their way; nought where the node is to send it, BROKEN where the lane is gone besides.

        `finite`: its hidden states were seen to be numbers; numpy would take 0.1 ms to look, among caches full of weights.
        """
        raw = _raw(onward, answer, finite)
        if raw is None:
            return 0
        lane = self._lanes.get(onward.lane)
        if lane is None:
            return BROKEN
        frame = step_frame(_head(onward, answer), raw)
        if lane.send(frame):
            self.sent += 1
            return len(frame)
        self.drop(api.DropLane(lane=onward.lane))
        return BROKEN


def _raw(onward: api.Onward, answer: api.Stepped, finite: bool) -> bytes | None:
    """What goes behind the head; None where it isn't for a lane."""
    head = onward.head
    if head.kind == "hidden":
        one = answer.hidden is not None and answer.shape is not None and answer.shape[0] == 1
        return answer.hidden if one and (finite or all_finite(answer.hidden or b"", answer.dtype or "")) else None
    ends = answer.token is None or answer.more or answer.token in onward.stop or head.position + 1 >= onward.end
    return None if ends else struct.pack("<i", answer.token)


def _head(onward: api.Onward, answer: api.Stepped) -> StepHead:
    head = onward.head
    if head.kind == "hidden":
        head.dtype, head.shape = answer.dtype, answer.shape
    if onward.tells:
        head.logprobs = answer.logprobs
        head.spent = with_own(head.spent, onward.index, answer.seconds, max(0.0, answer.began - onward.asked))
    return head
