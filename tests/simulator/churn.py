"""When each node goes, comes back, and goes for good."""

from __future__ import annotations

import math
import random
from typing import Protocol

from tests.simulator.events import Events
from tests.simulator.nodes import SimNode
from tests.simulator.scenario import DAY, HOUR, Churn

WEIBULL = 0.6
NIGHT = 8 * HOUR


class World(Protocol):
    """What churn does to the swarm."""

    events: Events

    def go_away(self, node: SimNode) -> None: ...

    def come_back(self, node: SimNode) -> None: ...

    def leave(self, node: SimNode) -> None: ...


class Lives:
    def __init__(self, churn: Churn, world: World, rng: random.Random) -> None:
        self._churn = churn
        self._world = world
        self._rng = rng

    def begin(self, node: SimNode) -> None:
        """Draws the habits of a node that has just come."""
        churn, rng, events = self._churn, self._rng, self._world.events
        if churn.leave > 0:
            events.after(rng.expovariate(-math.log(1 - churn.leave) / HOUR), lambda: self._world.leave(node))
        if churn.reboots > 0:
            self._reboot_later(node)
        habit = rng.random()
        if habit < churn.sessions:
            self._session(node)
        elif habit < churn.sessions + churn.nightly:
            self._night(node)

    def _away(self, node: SimNode, seconds: float) -> None:
        if node.up and not node.left:
            self._world.go_away(node)
            self._world.events.after(seconds, lambda: self._world.come_back(node))

    def _reboot_later(self, node: SimNode) -> None:
        def reboot() -> None:
            if not node.left:
                self._away(node, self._rng.uniform(60, 300))
                self._reboot_later(node)

        self._world.events.after(self._rng.expovariate(self._churn.reboots / DAY), reboot)

    def _session(self, node: SimNode) -> None:
        """Up for a Weibull time (many short sessions, some very long), then away for a log-normal one, about an hour."""

        def end() -> None:
            if not node.left:
                away = min(10 * HOUR, max(300.0, HOUR * math.exp(self._rng.gauss(0, 1))))
                self._away(node, away)
                self._world.events.after(away, lambda: self._session(node))

        length = self._weibull()
        if self._world.events.now == 0.0:  # met in the middle of a session, a long one rather than a short one
            several = [self._weibull() for _ in range(8)]
            length = self._rng.random() * self._rng.choices(several, several)[0]
        self._world.events.after(length, end)

    def _weibull(self) -> float:
        return self._rng.weibullvariate(self._churn.session / math.gamma(1 + 1 / WEIBULL), WEIBULL)

    def _night(self, node: SimNode) -> None:
        """Off at about 23 h by its longitude, for about eight hours, every day."""

        def off() -> None:
            if not node.left:
                self._away(node, max(HOUR, self._rng.gauss(NIGHT, HOUR)))
                self._night(node)

        now = self._world.events.now
        local = (now + node.longitude / 360 * DAY) % DAY
        self._world.events.after((23 * HOUR - local - 1) % DAY + max(1.0, self._rng.gauss(HOUR / 2, HOUR / 6)), off)
