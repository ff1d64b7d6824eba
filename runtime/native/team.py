"""Threads that share a pass, and none of which is waited for before it has begun something.

A pass is a row of phases, each a number of pieces. Every thread goes through all of them: it takes pieces of its own share of a phase, then
of the others', and goes on once all pieces are done. So whoever comes late, or isn't given a processor at all (three stages on two
cores), costs nothing but its help. A share is taken from its beginning to its end, so that a thread reads a matrix as it lies.
The last piece's thread opens the next phase: counts carry the number of their phase, what is left of an older one is seen as such.

Threads wait for a phase by looking (some hundred microseconds at most), then give way. Between passes a helper looks a little longer and
sleeps at a descriptor of its own. Passes lie in a ring: a helper that is still leaving an old one isn't waited for either.
"""

from __future__ import annotations

from runtime.native import fields as f
from runtime.native.compiled import kernel
from runtime.native.machine import add_shared, call, field, pause, set_shared, shared, take_shared

_COUNT = 1 << 32
_LOOKS = 2_000
"""Of some 15 to 30 nanoseconds each."""
NONE = -1


@kernel
def _from_share(common, owner, threads, phase, pieces):
    begin, end = pieces * owner // threads, pieces * (owner + 1) // threads
    place = f.LINE * (f.TAKEN + owner)
    while True:
        seen = shared(common, place)
        if seen // _COUNT != phase:
            return NONE
        at = begin + seen % _COUNT
        if at >= end:
            return NONE
        if take_shared(common, place, seen, seen + 1):
            return at


@kernel
def take(given, thread, phase, pieces):
    """The next piece of `phase`; NONE: all are taken."""
    me, threads = field(thread, f.NUMBER), field(thread, f.THREADS)
    for step in range(threads):
        piece = _from_share(field(given, f.COMMON), (me + step) % threads, threads, phase, pieces)
        if piece != NONE:
            return piece
    return NONE


@kernel
def open_phase(common, threads, phase):
    set_shared(common, f.LINE * f.DONE, 0)
    for owner in range(threads):
        set_shared(common, f.LINE * (f.TAKEN + owner), phase * _COUNT)
    set_shared(common, f.LINE * f.PHASE, phase)


@kernel
def over(given, thread, phase, pieces, count):
    """`count` pieces more are done; the last opens the next phase, for which everybody waits. The next phase."""
    common = field(given, f.COMMON)
    if count and add_shared(common, f.LINE * f.DONE, count) + count == pieces:
        open_phase(common, field(thread, f.THREADS), phase + 1)
    looks = 0
    while shared(common, f.LINE * f.PHASE) <= phase:
        looks += 1
        if looks < _LOOKS:
            pause()
        else:
            call(field(thread, f.GIVE_WAY), 0, 0, 0)
    return phase + 1


@kernel
def _enter(common):
    """Whether there is a pass to help with; whoever is told so leaves later."""
    add_shared(common, f.LINE * f.INSIDE, 1)
    if shared(common, f.LINE * f.OPEN):
        return True
    leave(common)
    return False


@kernel
def leave(common):
    add_shared(common, f.LINE * f.INSIDE, -1)


@kernel
def entered(thread):
    """A pass that was entered; nought: there is none."""
    for number in range(f.RING):
        given = field(field(thread, f.RING_OF), number)
        common = field(given, f.COMMON)
        if shared(common, f.LINE * f.OPEN) and _enter(common):
            return given
    return 0


@kernel
def sleep(thread):
    """Until somebody knocks, unless there is a pass."""
    set_shared(thread, f.SLEEPS, 1)
    for number in range(f.RING):
        if shared(field(field(field(thread, f.RING_OF), number), f.COMMON), f.LINE * f.OPEN):
            take_shared(thread, f.SLEEPS, 1, 0)
            return
    if not shared(thread, f.STOP):
        call(field(thread, f.READ), field(thread, f.DOOR), field(thread, f.BUFFER), 8)


@kernel
def begin(thread, given):
    """Opens a pass and wakes who sleeps."""
    common, threads = field(given, f.COMMON), field(thread, f.THREADS)
    open_phase(common, threads, 0)
    set_shared(common, f.LINE * f.OPEN, 1)
    for number in range(threads - 1):
        other = field(field(thread, f.OTHERS), number)
        if take_shared(other, f.SLEEPS, 1, 0):
            call(field(thread, f.WRITE), field(other, f.DOOR), field(thread, f.BUFFER), 8)


@kernel
def end(given):
    set_shared(field(given, f.COMMON), f.LINE * f.OPEN, 0)
