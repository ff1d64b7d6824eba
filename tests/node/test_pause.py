"""Where the seconds of a loss went."""

from __future__ import annotations

import pytest

from node.pause import NOTICED, OPENED, PLANNED, REPLAYED, Pause


def test_phases_add_up_from_the_last_token_to_the_next() -> None:
    pause = Pause(0.0)
    pause.opened(2.0)
    assert pause.end(3.0) is None, "nothing was lost before its first token"
    pause.lost(4.0)
    pause.planned(4.5)
    pause.opened(6.0)
    assert pause.end(8.0) == pytest.approx({NOTICED: 1.0, PLANNED: 0.5, OPENED: 1.5, REPLAYED: 2.0})
    assert pause.end(8.1) is None


def test_a_loss_within_a_pause_adds_to_the_phase_in_which_it_came() -> None:
    pause = Pause(0.0)
    pause.lost(1.0)
    pause.planned(1.5)
    pause.lost(3.5)  # one of the new stages, while it was opened
    pause.planned(3.75)
    pause.opened(4.0)
    pause.lost(7.0)  # while the prompt went through again
    pause.planned(7.25)
    pause.opened(8.0)
    assert pause.end(9.0) == pytest.approx({NOTICED: 1.0, PLANNED: 1.0, OPENED: 3.0, REPLAYED: 4.0})
