"""Measured, or None; others' figures bounded and forgotten."""

from __future__ import annotations

import pytest

from node.figures import LAYER_FORGOTTEN, MAX_PEERS, MOST, STALE, WAIT_FORGOTTEN, PeerFigures, StageFigures
from protocol.ids import PeerId

PEER = PeerId("p")


def test_nothing_measured_is_none() -> None:
    figures = StageFigures()
    assert (figures.layer, figures.layer_us(), figures.queue(0.0), figures.told(0.0)) == (None, None, None, {})
    assert (PeerFigures().layer(PEER, 0.0), PeerFigures().queue(PEER, 0.0)) == (None, None)


def test_single_tokens_tell_a_layers_time_prefills_only_the_wait() -> None:
    figures = StageFigures()
    figures.step(256, 10, 5.0, 5.5, 1.0)
    assert figures.layer is None
    assert figures.queue(1.0) == pytest.approx(0.5)
    figures.step(1, 10, 0.01, 0.01, 2.0)
    assert figures.layer_us() == 1000
    assert figures.queue(2.0) == pytest.approx(0.45)
    for at in range(100):
        figures.step(1, 10, 0.02, 0.02, 2.0 + at)
    assert figures.layer_us() == pytest.approx(2000, rel=0.01)
    assert figures.told(101.0) == {"layer": figures.layer, "queue": figures.queue(101.0)}


def test_a_wait_of_long_ago_says_nothing() -> None:
    figures = StageFigures()
    figures.step(1, 1, 0.1, 0.9, 0.0)
    assert figures.queue(WAIT_FORGOTTEN + 1) is None
    assert figures.layer is not None


@pytest.mark.parametrize("lie", [{"layer": -1.0}, {"layer": MOST + 1}, {"layer": float("nan")}, {}])
def test_what_peers_say_is_bounded(lie: dict[str, float]) -> None:
    figures = PeerFigures()
    figures.said(PEER, {"layer": 0.002, "queue": 0.1}, 1.0)
    figures.said(PEER, lie, 2.0)
    assert figures.layer(PEER, 2.0) == 0.002
    assert figures.queue(PEER, 2.0) is None


def test_the_middle_of_what_was_measured_counts_until_a_step_and_grows_stale() -> None:
    figures = StageFigures()
    assert figures.stale(0.0)
    figures.measured(2, [0.9, 0.004, 0.002], 10.0)
    assert figures.layer_us() == 2000
    assert not figures.stale(10.0 + STALE)
    assert figures.stale(11.0 + STALE)
    figures.step(1, 2, 0.004, 0.004, 11.0 + STALE)
    assert not figures.stale(12.0 + STALE)


def test_what_a_peer_said_of_its_layers_is_forgotten() -> None:
    figures = PeerFigures()
    figures.said(PEER, {"layer": 0.002}, 1.0)
    assert figures.layer(PEER, 1.0 + LAYER_FORGOTTEN) == 0.002
    assert figures.layer(PEER, 2.0 + LAYER_FORGOTTEN) is None


def test_so_many_peers_are_remembered_the_latest() -> None:
    figures = PeerFigures()
    for number in range(MAX_PEERS + 1):
        figures.said(PeerId(str(number)), {"layer": 0.1}, float(number))
    assert figures.layer(PeerId("0"), 0.0) is None
    assert figures.layer(PeerId(str(MAX_PEERS)), 1_100.0) == 0.1
