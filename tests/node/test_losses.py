"""Whom a reply avoids after a loss, and for how long."""

from __future__ import annotations

import pytest

from node.losses import FULL, GONE, Losses
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
