"""What a run is about. Times in seconds, rates per hour or day as named, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from erasure.durability import choose_k_n
from erasure.repair import Settings

HOUR = 3_600.0
DAY = 86_400.0


@dataclass(frozen=True)
class Churn:
    """`leave` share of nodes that go for good per hour, as many join. `reboots` per node and day, 1-5 min each.

    `sessions`: share of nodes that come and go, up for Weibull(0.6) with a mean of `session` seconds, away for 5 min to some hours.
    `nightly`: share of nodes that are off for about 8 h each night of their longitude. `subnets_lost`: moments at which all
    nodes of one /24 go for good. `cuts`: (begin, length, share of nodes on the far side).
    """

    leave: float = 0.0
    reboots: float = 0.0
    sessions: float = 0.0
    session: float = 4 * HOUR
    nightly: float = 0.0
    subnets_lost: tuple[float, ...] = ()
    cuts: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Scenario:
    """k and n None: the durability chooser decides. `cap` bytes a second a node spends on repair. `reads` per hour over the swarm."""

    nodes: int = 100
    groups: int = 50
    group_bytes: int = 100_000_000
    hours: float = 24.0
    seed: int = 0
    k: int | None = None
    n: int | None = None
    cap: float = 1e6
    reads: float = 1_000.0
    churn: Churn = field(default_factory=Churn)
    gone_after: float = 12 * HOUR
    warm: float = 0.0
    """Seconds at the beginning that aren't counted in bytes and reads."""
    everybody_plans: bool = False
    """Call every node's policy for every group each minute, those too where it has nothing to do."""

    def code(self) -> tuple[int, int]:
        if self.k is not None and self.n is not None:
            return self.k, self.n
        choice = choose_k_n(self.nodes)
        return choice.k, choice.n

    def settings(self) -> Settings:
        return Settings(bandwidth=self.cap)

    def subnets(self) -> int:
        return max(4, self.nodes // 4)
