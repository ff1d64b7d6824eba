from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.presence import GRACE, HERE, HOUR, LONGEST, Presence


def swarm(count: int, started: float = 0.0) -> Presence:
    presence = Presence(started)
    for number in range(count):
        presence.see(f"p{number}", True, started)
    return presence


def test_a_node_counts_for_twelve_hours_by_default() -> None:
    presence = swarm(2)
    presence.see("p0", False, 100.0)
    absence = presence.absence("p0", 100.0 + 11 * HOUR)
    assert absence is not None
    assert (absence.seconds, absence.gone_after, absence.back) == (11 * HOUR, 12 * HOUR, False)
    assert presence.absence("p1", 100.0) is HERE
    assert presence.absence("nobody", 0.0) is None


def test_a_node_that_is_off_every_night_is_gone_half_as_long_again() -> None:
    presence = swarm(1)
    for day in range(3):
        presence.see("p0", False, day * 24 * HOUR)
        presence.see("p0", True, (day * 24 + 9) * HOUR)
    presence.see("p0", False, 72 * HOUR)
    during = presence.absence("p0", 82 * HOUR)
    after = presence.absence("p0", 86 * HOUR)
    assert during is not None
    assert after is not None
    assert during.back
    assert during.gone_after == 13.5 * HOUR
    assert not after.back


def test_one_absence_is_no_history_and_a_reboot_no_reason_for_haste() -> None:
    presence = swarm(1)
    presence.see("p0", False, 0.0)
    presence.see("p0", True, 60.0)
    presence.see("p0", False, HOUR)
    found = presence.absence("p0", HOUR + 60)
    assert found is not None
    assert found.gone_after == 12 * HOUR
    presence.see("p0", True, HOUR + 60)
    presence.see("p0", False, 2 * HOUR)
    found = presence.absence("p0", 2 * HOUR + 60)
    assert found is not None
    assert found.gone_after == GRACE


def test_a_shorter_gone_after_shortens_the_grace() -> None:
    presence = Presence(0.0, gone_after=30.0)
    presence.see("p", True, 0.0)
    presence.see("p", False, 1.0)
    found = presence.absence("p", 20.0)
    assert found is not None
    assert (found.gone_after, presence.grace) == (30.0, 30.0)


def test_what_vanishes_together_is_expected_back_for_its_grace() -> None:
    presence = swarm(40)
    presence.see("p0", False, HOUR)
    for number in range(10, 20):
        presence.see(f"p{number}", False, 2 * HOUR + number)
    lone, first, last = (presence.absence(peer, 2 * HOUR + 100) for peer in ("p0", "p10", "p19"))
    assert lone is not None
    assert first is not None
    assert last is not None
    assert (lone.back, first.back, last.back) == (False, True, True)
    later = presence.absence("p19", 2 * HOUR + GRACE + 60)
    assert later is not None
    assert not later.back
    presence.see("p19", True, 3 * HOUR)
    presence.see("p19", False, 4 * HOUR)
    alone = presence.absence("p19", 4 * HOUR + 1)
    assert alone is not None
    assert not alone.back


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_leaving_rate_is_measured_within_the_hour(share: float) -> None:
    presence = swarm(400)
    for number in range(int(400 * share * 1.5)):
        at = number * HOUR / (400 * share)
        presence.see(f"p{number}", False, at)
        presence.see(f"new{number}", True, at)
    assert presence.leaving_rate(1.5 * HOUR) * HOUR == pytest.approx(share, rel=0.2)


def test_a_cut_and_what_began_before_we_looked_teach_nothing_of_a_peer() -> None:
    presence = swarm(20)
    presence.see("old", False, 0.0, since=-5 * HOUR)
    presence.see("old", True, HOUR)
    for again in range(3):
        for number in range(10):
            presence.see(f"p{number}", False, (2 + 2 * again) * HOUR)
        for number in range(10):
            presence.see(f"p{number}", True, (3 + 2 * again) * HOUR)
    presence.see("old", False, 9 * HOUR)
    presence.see("p0", False, 9 * HOUR + 300)
    for peer in ("old", "p0"):
        found = presence.absence(peer, 9 * HOUR + 600)
        assert found is not None
        assert (found.gone_after, found.back) == (12 * HOUR, False)


def test_who_comes_back_has_not_left() -> None:
    presence = swarm(50)
    for number in range(10):
        presence.see(f"p{number}", False, number * 300.0)
        presence.see(f"p{number}", True, number * 300.0 + 120.0)
    assert presence.leaving_rate(2 * HOUR) * HOUR < 0.01


def test_up_and_seen() -> None:
    presence = swarm(1)
    presence.see("p0", False, 100.0)
    presence.see("p0", True, 150.0)
    assert presence.up_and_seen("p0", 200.0) == (150.0, 200.0)
    assert presence.up_and_seen("nobody", 200.0) == (0.0, 0.0)
    presence.forget("p0")
    assert presence.absence("p0", 200.0) is None


def test_the_last_answer_counts_not_when_it_was_noticed() -> None:
    presence = swarm(1)
    presence.see("p0", False, 100.0, since=40.0)
    absence = presence.absence("p0", 100.0)
    assert absence is not None
    assert absence.seconds == 60.0


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.floats(0, 4 * HOUR)), max_size=60))
def test_whatever_is_seen_the_books_agree(seen: list[tuple[str, bool, float]]) -> None:
    presence, now = Presence(0.0), 0.0
    last: dict[str, bool] = {}
    for peer, routable, wait in seen:
        now += wait
        presence.see(peer, routable, now)
        last[peer] = routable
    for peer, routable in last.items():
        absence = presence.absence(peer, now)
        assert absence is not None
        assert (absence is HERE) == routable
        assert GRACE <= absence.gone_after <= LONGEST or absence is HERE
        up, known = presence.up_and_seen(peer, now)
        assert 0 <= up <= known + 1e-6
    assert presence.leaving_rate(now) > 0
