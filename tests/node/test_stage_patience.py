"""How long a reply bears stages without room, and what it is told in the end; pure."""

from __future__ import annotations

import pytest

from node.stage_link import StageLost
from node.stage_patience import BEGUN, LONGEST_PAUSE, NEVER, TURN, StagePatience, busy
from node.waiting_line import PATIENCE
from protocol.errors import Busy, MfError, Unavailable
from protocol.ids import PeerId

A = PeerId("a")


def full(**details: object) -> StageLost:
    return StageLost(A, "no room", Busy("no room", details=details))


def test_refused_at_first_it_goes_on_at_once_and_asks_nobody_to_wait() -> None:
    patience = StagePatience()
    assert patience.left(0.0) == 0.0
    assert [patience.refused(full(position=3), at) for at in (0.0, 1.0, PATIENCE - 1.0)] == [0.0, 0.0, 0.0]
    with pytest.raises(Busy):
        patience.refused(full(), PATIENCE)


def test_in_line_it_has_what_is_left_and_is_refused_for_good() -> None:
    patience = StagePatience()
    patience.refused(full(), 100.0)
    patience.waits = True
    assert patience.left(110.0) == PATIENCE - 10.0
    with pytest.raises(Busy) as caught:
        patience.refused(full(position=2, retry_after=9), 111.0)
    assert caught.value.details == {"position": 2, "retry_after": 9}
    assert patience.left(100.0 + 2 * PATIENCE) > 0.0, "it is asked to wait, if only for a moment"


def test_a_node_that_keeps_nobody_in_line_is_asked_now_and_then() -> None:
    patience = StagePatience()
    patience.waits = True
    assert [patience.refused(full(), 0.0) for _ in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    patience.moved()
    assert patience.refused(full(), PATIENCE + 1.0) == 0.25


def test_a_reply_that_has_begun_bears_more_and_no_line_is_its_end() -> None:
    patience = StagePatience()
    patience.waits = True
    patience.moved()
    for at in (10.0, 10.0 + PATIENCE, 9.0 + BEGUN):
        assert 0 < patience.refused(full(position=2), at) <= LONGEST_PAUSE
    assert patience.left(10.0 + PATIENCE) == TURN, "others may have got ready meanwhile"
    assert patience.left(9.0 + BEGUN) == 1.0
    with pytest.raises(Busy):
        patience.refused(full(position=2), 10.0 + BEGUN)


def test_where_it_would_never_fit_the_nodes_own_word_comes_through() -> None:
    patience, never = StagePatience(), StageLost(A, "too large", Unavailable("too large", details={"needed": 5}))
    patience.refused(never, 0.0)
    with pytest.raises(Unavailable, match=r"^too large"):
        patience.refused(never, NEVER)


@pytest.mark.parametrize(
    ("details", "told"),
    [
        ({}, {"retry_after": 5}),
        ({"position": "9", "retry_after": "soon"}, {"retry_after": 5}),
        ({"position": 1 << 70, "retry_after": 1 << 70}, {"retry_after": 600, "position": 1 << 16}),
        ({"position": -4, "retry_after": -4}, {"retry_after": 5}),
    ],
)
def test_a_peers_figures_are_bounded(details: dict[str, object], told: dict[str, int]) -> None:
    error: MfError = busy(full(**details))
    assert (error.status, error.details) == (429, told)
