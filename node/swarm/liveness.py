"""The short clock: which peers answer now (design §4, two clocks). Pure policy; `pulse.py` drives it.

A frozen peer keeps its connection, so only silence shows it: a ping every 2 s with 1.5 s to answer, after a miss at once
another with 0.75 s, and after two the peer is asked about through others (0.75 s) before the verdict: about 5 s at
worst. A peer that others can reach gets two more misses: it may be our stream that is stuck. Who asked us something lives too, so of two
peers one pings most of the time: that is half of what a quiet node does. A miss during
which our own timer woke late says nothing of the peer: an overloaded machine looks just like dead peers.

Rejected: phi-accrual (its advantage is unknown delay distributions; here one number is asked: 10 s), and judging by
TCP (a frozen process acknowledges for hours).
"""

from __future__ import annotations

import enum
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.ids import PeerId

MAX_PULSES = 4_096
SAMPLES = 5
"""Of the last answers one is believed for how far a peer is, the one in the middle."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds."""

    every: float = 2.0
    answer: float = 1.5
    again: float = 0.75
    indirect: float = 0.75
    helper: float = 0.5
    suspect: float = 0.5
    late: float = 0.25
    own: float = 8.0
    """At least so often a question of our own must be answered: the peer's questions don't show that ours get through."""

    def interval(self, peers: int) -> float:
        """Between pings; up to twice as long in a large mesh, so that it costs a bounded part of a core."""
        return self.every * min(2.0, max(1.0, peers / 16))


class Verdict(enum.Enum):
    NOTHING = "nothing"
    AGAIN = "ping again at once"
    ASK_OTHERS = "ask others about it"
    UNROUTABLE = "unroutable"


@dataclass
class Pulse:
    """One peer. Times by the monotonic clock. `rtt` is the median of the last ones: a late answer of a busy peer is no long way."""

    connected: bool = False
    routable: bool = False
    suspected_at: float | None = None
    misses: int = 0
    spared: bool = False
    last_answer: float | None = None
    next_ping: float = 0.0
    samples: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))

    @property
    def rtt(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None


class Liveness:
    """All peers this node has been connected to lately, at most 4,096 of those that are gone."""

    def __init__(self, deadlines: Deadlines) -> None:
        self.deadlines = deadlines
        self._pulses: dict[PeerId, Pulse] = {}
        self._woke_late: float | None = None

    def pulse(self, peer: PeerId) -> Pulse | None:
        return self._pulses.get(peer)

    def routable(self, peer: PeerId) -> bool:
        pulse = self._pulses.get(peer)
        return pulse is not None and pulse.routable

    def connected(self, peer: PeerId, now: float) -> None:
        """A connection stands; the first answer makes the peer routable."""
        pulse = self._pulses.setdefault(peer, Pulse())
        if len(self._pulses) > MAX_PULSES:
            self._pulses = {name: other for name, other in self._pulses.items() if other.connected or name == peer}
        pulse.connected = True
        pulse.misses = 0
        pulse.next_ping = now

    def lost(self, peer: PeerId) -> bool:
        """The last connection is gone; True when the peer was routable until now."""
        pulse = self._pulses.get(peer)
        if pulse is None:
            return False
        was, pulse.routable, pulse.connected, pulse.suspected_at = pulse.routable, False, False, None
        return was

    def answered(self, peer: PeerId, asked: float, now: float) -> bool:
        """An answer to a question asked at `asked`; True when this makes the peer routable."""
        pulse = self._pulses.get(peer)
        if pulse is None or not pulse.connected:
            return False
        if pulse.suspected_at is not None and asked < pulse.suspected_at:
            return False
        pulse.samples.append(now - asked)
        pulse.last_answer, pulse.misses, pulse.spared, pulse.suspected_at = now, 0, False, None
        pulse.next_ping = now + self.deadlines.interval(self._count())
        was, pulse.routable = pulse.routable, True
        return not was

    def asked(self, peer: PeerId, now: float) -> None:
        """The peer asked us something: as good as an answer for a while."""
        pulse = self._pulses.get(peer)
        if pulse is None or not pulse.routable or pulse.misses or pulse.last_answer is None:
            return
        pulse.next_ping = max(pulse.next_ping, min(now + self.deadlines.interval(self._count()), pulse.last_answer + self.deadlines.own))

    def woke(self, late: float, now: float) -> None:
        """Our own timer woke `late` seconds after its time."""
        if late > self.deadlines.late:
            self._woke_late = now

    def missed(self, peer: PeerId, asked: float, now: float) -> Verdict:
        """A ping asked at `asked` went without an answer."""
        pulse = self._pulses.get(peer)
        if pulse is None or not pulse.connected:
            return Verdict.NOTHING
        if pulse.last_answer is not None and pulse.last_answer >= asked and pulse.suspected_at is None:
            return Verdict.NOTHING
        if self._woke_late is not None and self._woke_late >= asked:
            pulse.next_ping = now
            return Verdict.AGAIN
        pulse.misses += 1
        pulse.next_ping = now + self.deadlines.interval(self._count())
        if not pulse.routable:
            return Verdict.NOTHING
        if pulse.misses == 1 or (pulse.spared and pulse.misses == 3):
            return Verdict.AGAIN
        return Verdict.UNROUTABLE if pulse.spared else Verdict.ASK_OTHERS

    def others_said(self, peer: PeerId, alive: bool, asked: float) -> Verdict:
        """The answers of the peers asked about it, asked at `asked`."""
        pulse = self._pulses.get(peer)
        if pulse is None or not pulse.routable or (pulse.last_answer is not None and pulse.last_answer >= asked):
            return Verdict.NOTHING
        if alive and not pulse.spared:
            pulse.spared = True
            return Verdict.AGAIN
        return Verdict.UNROUTABLE

    def give_up(self, peer: PeerId) -> bool:
        """The verdict; True when the peer was routable until now."""
        pulse = self._pulses.get(peer)
        if pulse is None:
            return False
        was, pulse.routable = pulse.routable, False
        return was

    def suspect(self, peer: PeerId, now: float) -> bool:
        """Not routable until it answers a question asked from now on; True when it was routable."""
        pulse = self._pulses.get(peer)
        if pulse is None:
            return False
        pulse.suspected_at = now
        return self.give_up(peer)

    def due(self, now: float) -> list[PeerId]:
        """Connected peers whose next ping is due."""
        return [peer for peer, pulse in self._pulses.items() if pulse.connected and pulse.next_ping <= now]

    def deadline(self, peer: PeerId) -> float:
        """Seconds the next ping of this peer may take."""
        pulse = self._pulses.get(peer)
        if pulse is not None and pulse.suspected_at is not None:
            return self.deadlines.suspect
        return self.deadlines.again if pulse is not None and pulse.misses and pulse.routable else self.deadlines.answer

    def helpers(self, about: PeerId) -> Sequence[PeerId]:
        """Peers that answer without a miss: whom to ask about another."""
        return [peer for peer, pulse in self._pulses.items() if peer != about and pulse.routable and not pulse.misses]

    def silence(self, peer: PeerId, now: float) -> float | None:
        """Seconds since its last answer."""
        pulse = self._pulses.get(peer)
        return None if pulse is None or pulse.last_answer is None else now - pulse.last_answer

    def _count(self) -> int:
        return sum(pulse.connected for pulse in self._pulses.values())
