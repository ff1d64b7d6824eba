"""The liveness policy by calls with `now`: when a peer is routable, missed, asked about, given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.swarm.liveness import MAX_PULSES, Deadlines, Liveness, Verdict
from protocol.ids import PeerId

A, B = PeerId("A"), PeerId("B")


@pytest.fixture
def live() -> Liveness:
    made = Liveness(Deadlines())
    for peer in (A, B):
        made.connected(peer, 0.0)
        made.answered(peer, 0.0, 0.1)
    return made


def test_a_connection_alone_is_not_routable_its_first_answer_is() -> None:
    live = Liveness(Deadlines())
    live.connected(A, 0.0)
    assert live.due(0.0) == [A]
    assert not live.routable(A)
    assert live.answered(A, 0.0, 0.03)
    assert live.routable(A)
    assert not live.answered(A, 1.0, 1.01)
    assert live.due(1.0) == []
    assert live.due(3.1) == [A]


def test_one_late_answer_is_no_long_way(live: Liveness) -> None:
    for asked in range(1, 6):
        live.answered(A, asked, asked + 0.02)
    live.answered(A, 10.0, 13.0)
    live.answered(A, 14.0, 14.03)
    pulse = live.pulse(A)
    assert pulse is not None
    assert pulse.rtt == pytest.approx(0.02)
    for asked in range(20, 23):
        live.answered(A, asked, asked + 0.5)
    assert pulse.rtt == pytest.approx(0.5), "it is farther now"


def test_who_asks_us_need_not_be_asked_for_a_while(live: Liveness) -> None:
    live.asked(A, 2.0)
    assert live.due(2.2) == [B]
    live.asked(A, 3.9)
    assert A not in live.due(5.8)
    assert A in live.due(6.0)


def test_questions_of_a_peer_do_not_hide_that_it_never_answers(live: Liveness) -> None:
    for second in range(1, 9):
        live.asked(A, float(second))
    assert A in live.due(0.1 + live.deadlines.own)
    live.missed(A, 8.1, 9.6)
    due = live.due(20.0)
    live.asked(A, 20.0)
    assert A in due
    assert A in live.due(20.0)


def test_two_misses_then_others_then_the_verdict(live: Liveness) -> None:
    assert live.missed(A, 2.1, 3.6) is Verdict.AGAIN
    assert live.deadline(A) == 0.75
    assert live.missed(A, 3.6, 4.35) is Verdict.ASK_OTHERS
    assert list(live.helpers(A)) == [B]
    assert live.routable(A)
    assert live.others_said(A, False, 4.35) is Verdict.UNROUTABLE
    assert live.give_up(A)
    assert not live.routable(A)
    assert not live.give_up(A)


def test_a_peer_others_reach_gets_two_more_misses_and_no_more(live: Liveness) -> None:
    live.missed(A, 2.0, 3.5)
    live.missed(A, 3.5, 4.25)
    assert live.others_said(A, True, 4.25) is Verdict.AGAIN
    assert live.missed(A, 4.3, 5.0) is Verdict.AGAIN
    assert live.missed(A, 5.0, 5.75) is Verdict.UNROUTABLE


def test_a_late_answer_ends_the_doubt(live: Liveness) -> None:
    live.missed(A, 2.0, 3.5)
    live.answered(A, 2.0, 3.6)
    assert live.missed(A, 3.5, 4.25) is Verdict.NOTHING
    assert live.others_said(A, False, 3.5) is Verdict.NOTHING
    assert live.routable(A)


def test_misses_do_not_count_when_our_own_timer_woke_late(live: Liveness) -> None:
    for turn in range(20):
        asked = 2.0 + turn * 2
        live.woke(0.3, asked + 1)
        assert live.missed(A, asked, asked + 1.5) is Verdict.AGAIN
    assert live.routable(A)
    live.woke(0.1, 50.0)
    assert live.missed(A, 49.9, 51.0) is Verdict.AGAIN
    assert live.missed(A, 51.0, 51.7) is Verdict.ASK_OTHERS


def test_a_suspect_is_out_until_it_answers_what_was_asked_since(live: Liveness) -> None:
    assert live.suspect(A, 5.0)
    assert not live.routable(A)
    assert live.deadline(A) == 0.5
    assert not live.answered(A, 4.9, 5.1)
    assert not live.routable(A)
    assert live.answered(A, 5.0, 5.2)
    assert live.routable(A)


def test_a_lost_peer_is_out_at_once_and_back_by_its_first_answer(live: Liveness) -> None:
    assert live.lost(A)
    assert not live.routable(A)
    assert not live.lost(A)
    assert not live.answered(A, 1.0, 1.1)
    live.connected(A, 9.0)
    assert live.answered(A, 9.0, 9.1)


def test_peers_that_are_gone_are_forgotten_when_there_are_many(live: Liveness) -> None:
    for number in range(MAX_PULSES + 10):
        live.connected(PeerId(str(number)), 1.0)
        live.lost(PeerId(str(number)))
    assert live.pulse(PeerId("0")) is None
    assert live.routable(A)


def test_unknown_peers_are_no_error() -> None:
    live = Liveness(Deadlines())
    assert live.missed(A, 0, 1) is Verdict.NOTHING
    assert not live.suspect(A, 0)
    assert not live.lost(A)
    assert live.silence(A, 1.0) is None


@given(st.integers(1, 200), st.floats(0.0, 1.0))
def test_silence_is_noticed_within_ten_seconds_in_a_mesh_of_any_size(peers: int, phase: float) -> None:
    live = Liveness(Deadlines())
    names = [PeerId(str(number)) for number in range(peers)]
    for name in names:
        live.connected(name, 0.0)
        live.answered(name, 0.0, phase)
    pulse = live.pulse(names[0])
    assert pulse is not None
    now, verdict = pulse.next_ping + 0.25, Verdict.AGAIN
    while verdict is Verdict.AGAIN:
        asked, now = now, now + live.deadline(names[0])
        verdict = live.missed(names[0], asked, now)
    assert verdict is Verdict.ASK_OTHERS
    assert now + live.deadlines.indirect - phase <= 10
