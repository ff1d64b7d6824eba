from __future__ import annotations

from node.swarm.history import DAY, MAX_KNOWN, SURE_AFTER, History, Known
from protocol.ids import PeerId

A, B = PeerId("A"), PeerId("B")
START = 1_800_000_000.0


def watch(history: History, minutes: int, start: float, up: list[PeerId]) -> float:
    for minute in range(minutes):
        history.look(up, start + 60 * minute)
    return start + 60 * minutes


def test_a_peer_is_new_for_a_day_once_this_node_is_older_itself() -> None:
    history = History.restored(None, (), START)
    history.look([A], START)
    assert not history.new(A, START + 10)
    assert not history.new(B, START + DAY - 1)
    assert not history.new(A, START + DAY)
    history.look([A, B], START + DAY)
    assert history.new(B, START + DAY + 10)
    assert history.new(PeerId("never met"), START + DAY)
    assert not history.new(B, START + 2 * DAY)


def test_availability_is_unknown_for_a_week_and_then_the_share_of_time_watched() -> None:
    history = History.restored(START, [Known("A", START, SURE_AFTER / 2, SURE_AFTER - 7_200.0)], START + 8 * DAY)
    now = watch(history, 60, START + 8 * DAY, [A, B])
    assert history.availability(A) is None
    watch(history, 62, now, [B])
    known = history.availability(A)
    assert known is not None
    assert 0.5 < known < 0.51
    assert history.availability(B) is None


def test_our_own_sleep_is_nobodys_absence() -> None:
    history = History.restored(None, (), START)
    history.look([A], START)
    history.look([], START + 10 * DAY)
    [entry] = history.entries()
    assert entry.watched <= 300


def test_what_is_kept_comes_back_and_nonsense_doesnt() -> None:
    history = History.restored(START - 5, [Known("A", START + 1e9, 1.0, 2.0), Known("B", START, 3.0, 2.0)], START)
    assert history.began == START - 5
    assert [(entry.peer, entry.since) for entry in history.entries()] == [("A", START)]
    assert History.restored(START + 99, (), START).began == START


def test_the_longest_unseen_are_forgotten() -> None:
    history = History.restored(None, (), START)
    history.look([PeerId(f"old {number}") for number in range(100)], START)
    history.look([PeerId(f"new {number}") for number in range(MAX_KNOWN)], START + 60)
    assert len(history.entries()) == MAX_KNOWN
    assert all(entry.peer.startswith("new") for entry in history.entries())
