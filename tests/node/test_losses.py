"""Whom a reply avoids after a loss, and for how long."""

from __future__ import annotations

import pytest

from node.losses import FULL, GONE, OWN, Losses
from node.stage_link import StageLost
from protocol.errors import BadInput, Busy, Conflict, MfError, Unavailable
from protocol.ids import PeerId

ME, A, B = PeerId("me"), PeerId("a"), PeerId("b")


@pytest.mark.parametrize(
    ("lost", "seconds"),
    [
        (StageLost(A, "silent"), GONE),
        (StageLost(A, "ended", Unavailable("the worker ended")), GONE),
        (StageLost(A, "full", Busy("full")), FULL),
        (StageLost(A, "full", Unavailable("no room", details={"needed": 5, "free": 1})), FULL),
        (StageLost(A, "bad", BadInput("bad")), 1e9),
        (StageLost(A, "stopping", leaving=True), 1e9),
        (StageLost(A, "nonsense", accuser=B), 1e9),
    ],
)
def test_how_long(lost: StageLost, seconds: float) -> None:
    losses = Losses(ME)
    assert losses.note(lost, 100.0) == A
    assert losses.avoided(100.0 + seconds - 0.1) == {A}
    if seconds < 1e9:
        assert losses.avoided(100.0 + seconds + 0.1) == set()


def test_a_stage_that_cant_go_back_is_nobodys_fault() -> None:
    losses = Losses(ME)
    assert losses.note(StageLost(A, "conflict", Conflict("recurrent")), 0.0) is None
    assert not losses.avoided(0.0)


def test_who_accuses_twice_is_avoided_itself() -> None:
    losses = Losses(ME)
    assert losses.note(StageLost(A, "nonsense", accuser=B), 0.0) == A
    assert losses.note(StageLost(PeerId("c"), "nonsense", accuser=B), 0.0) == B
    assert losses.avoided(1.0) == {A, B}


def test_nobody_turns_a_reply_away_from_its_own_node() -> None:
    losses = Losses(ME)
    assert losses.note(StageLost(ME, "nonsense", accuser=B), 0.0) == B
    assert losses.note(StageLost(ME, "the worker ended", MfError("ended")), 0.0) == ME
    assert losses.avoided(0.0) == {B}


def test_this_node_is_left_alone_while_its_worker_starts_and_never_avoided_for_it() -> None:
    losses = Losses(ME)
    assert losses.starting(5.0) == set()
    losses.note(StageLost(ME, "the worker ended", MfError("ended")), 5.0)
    assert losses.starting(5.0 + OWN - 0.1) == {ME}
    assert losses.avoided(5.0) == losses.starting(5.0 + OWN) == set()


def test_a_second_conflict_counts_unless_another_stage_was_lost_between() -> None:
    losses, conflict = Losses(ME), StageLost(A, "conflict", Conflict("always"))
    assert losses.note(conflict, 0.0) is None
    assert losses.note(StageLost(B, "silent"), 0.0) == B
    assert losses.note(conflict, 0.0) is None
    assert losses.note(conflict, 0.0) == A
    assert losses.avoided(0.0) == {A, B}


def test_what_this_node_finds_itself_is_never_held_against_it() -> None:
    losses = Losses(ME)
    for peer in (A, B, PeerId("c")):
        assert losses.note(StageLost(peer, "nonsense", accuser=ME), 0.0) == peer
    assert losses.note(StageLost(ME, "nonsense of its own worker", accuser=ME), 0.0) == ME
    assert losses.avoided(0.0) == {A, B, PeerId("c")}
