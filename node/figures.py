"""What has been measured of stages: seconds a token takes in a layer, seconds a step waits for its turn. Nothing measured is None.

A figure names who measured it: `StageFigures` are this node's own, of the steps it ran for anyone; `PeerFigures` what other nodes said of
theirs in sessions that this node had with them. Means that forget: half of what counts is of the last few dozen steps. A stage that nobody
asks would keep a bad first figure for ever, and so never be asked: it is measured again, and what was said of it counts for ten minutes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from protocol.ids import PeerId

WEIGHT = 0.1
WAIT_FORGOTTEN = 30.0
"""Seconds after which a wait says nothing of now."""
STALE = 60.0
"""Seconds without a step after which a stage's own speed is worth measuring again."""
LAYER_FORGOTTEN = 600.0
MAX_PEERS = 1_024
MOST = 60.0


class StageFigures:
    """This node's own. Only steps of one token tell what a token takes: longer ones share the reading of the weights."""

    def __init__(self) -> None:
        self.layer: float | None = None
        self._wait: float | None = None
        self._waited_at = 0.0
        self._stepped_at: float | None = None

    def measured(self, layers: int, computed: Sequence[float], now: float) -> None:
        """Steps of one token each that were made to be measured: the middle one, since any of them may have met other work."""
        self.layer = median(computed) / max(1, layers) or None
        self._stepped_at = now

    def stale(self, now: float) -> bool:
        return self._stepped_at is None or now - self._stepped_at > STALE

    def step(self, count: int, layers: int, computed: float, took: float, now: float) -> None:
        """A step of `count` tokens through `layers`: seconds of arithmetic, and from its asking to its answer."""
        if count == 1 and layers > 0 and computed > 0:
            self.layer = _mean(self.layer, computed / layers)
            self._stepped_at = now
        self._wait = _mean(self.queue(now), max(0.0, took - computed))
        self._waited_at = now

    def queue(self, now: float) -> float | None:
        return self._wait if self._wait is not None and now - self._waited_at <= WAIT_FORGOTTEN else None

    def layer_us(self) -> int | None:
        return None if self.layer is None else max(1, int(self.layer * 1e6))

    def told(self, now: float) -> dict[str, float]:
        """For the entry of a session."""
        figures = {"layer": self.layer, "queue": self.queue(now)}
        return {name: figure for name, figure in figures.items() if figure is not None}


@dataclass
class _Peer:
    layer: float | None = None
    queue: float | None = None
    at: float = 0.0


class PeerFigures:
    """What peers said of their stages while this node's sessions ran there."""

    def __init__(self) -> None:
        self._peers: OrderedDict[PeerId, _Peer] = OrderedDict()

    def said(self, peer: PeerId, figures: dict[str, float], now: float) -> None:
        """Figures of others are bounded, never believed further: who lies is asked more or less often, that is all."""
        known = self._peers.pop(peer, None) or _Peer()
        layer, queue = (_sound(figures.get(name)) for name in ("layer", "queue"))
        known.layer, known.queue, known.at = layer or known.layer, queue, now
        self._peers[peer] = known
        while len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)

    def layer(self, peer: PeerId, now: float) -> float | None:
        known = self._peers.get(peer)
        return known.layer if known and now - known.at <= LAYER_FORGOTTEN else None

    def queue(self, peer: PeerId, now: float) -> float | None:
        known = self._peers.get(peer)
        return known.queue if known and now - known.at <= WAIT_FORGOTTEN else None


class Figures:
    """Both, as the parts of a node share them. `observe(where, part, seconds)` is told of each step: of this node's `own` stages compute
    and wait; of the `route` of a reply asked here also network, a hop's share of what no stage accounts for.
    """

    def __init__(self) -> None:
        self.own = StageFigures()
        self.peers = PeerFigures()
        self.observe: Callable[[str, str, float], None] = lambda _where, _part, _seconds: None


def _mean(before: float | None, new: float) -> float:
    return new if before is None else (1 - WEIGHT) * before + WEIGHT * new


def _sound(figure: float | None) -> float | None:
    return figure if figure is not None and 0 <= figure <= MOST else None
