"""Simulated nodes: place on the map, bandwidth, address range, and the policy object of each."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from erasure.placement import Candidate
from erasure.repair import Repairer

CITIES = {
    "europe": (50.0, 9.0), "america east": (40.0, -75.0), "america west": (37.0, -122.0), "brazil": (-23.0, -46.0),
    "india": (19.0, 73.0), "japan": (35.0, 139.0), "australia": (-33.0, 151.0), "africa": (6.0, 3.0),
}  # fmt: skip
SHARES = (0.34, 0.2, 0.12, 0.06, 0.09, 0.1, 0.05, 0.04)
KM_PER_SECOND = 100_000.0
"""Of a round trip: two thirds of light, there and back, on cables half as long again as the way."""


@dataclass(slots=True, eq=False)
class SimNode:
    """`up_rate`, `down_rate` bytes a second; `shards`: group number -> shard; `side` of a cut."""

    name: str
    number: int
    region: str
    latitude: float
    longitude: float
    up_rate: float
    down_rate: float
    subnet: int
    phase: float
    up: bool = True
    left: bool = False
    side: int = 0
    came: float = 0.0
    changed: float = 0.0
    shards: dict[int, int] = field(default_factory=dict)
    repairer: Repairer | None = None
    round_at: float = -math.inf

    def candidate(self) -> Candidate:
        return Candidate(self.name, f"10.{self.subnet >> 8}.{self.subnet & 255}.0/24")


def make_node(number: int, subnets: int, rng: random.Random) -> SimNode:
    """Regions by share; upload 4-40 MB/s, download four times that."""
    region = rng.choices(list(CITIES), SHARES)[0]
    latitude, longitude = CITIES[region]
    up_rate = 4e6 * 10 ** rng.random()
    return SimNode(
        name=f"n{number}",
        number=number,
        region=region,
        latitude=latitude + rng.gauss(0, 5),
        longitude=longitude + rng.gauss(0, 8),
        up_rate=up_rate,
        down_rate=4 * up_rate,
        subnet=rng.randrange(subnets),
        phase=rng.random() * 60,
    )


def round_trip(one: SimNode, other: SimNode) -> float:
    """Seconds: great-circle distance, and 8 ms at both ends."""
    a, b = math.radians(one.latitude), math.radians(other.latitude)
    turn = math.radians(one.longitude - other.longitude)
    cosine = math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(turn)
    return 0.016 + 6371.0 * math.acos(max(-1.0, min(1.0, cosine))) / KM_PER_SECOND
