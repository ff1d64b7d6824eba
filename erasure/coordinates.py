"""How far nodes are from each other, without everybody pinging everybody: Vivaldi network coordinates.

F. Dabek, R. Cox, F. Kaashoek, R. Morris: "Vivaldi: A Decentralized Network Coordinate System", SIGCOMM 2004; the names and the
adaptive timestep are those of its sections 3.4 and 5.4. A node is a point in a plane and a height above it, the way over its own
access link; the distance of two is the plane's plus both heights. Each measured round trip is a spring that pulls the node, the
harder the surer the other is of its place.

What a peer says of its own place is hostile: a coordinate is bounded, and a pull is bounded by a share of what we measured
ourselves, so that a liar can lie about itself and drag us a little, no more. All lengths are seconds of round trip.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from protocol import limits
from protocol.errors import BadInput

_SCALE = 1_000_000
FARTHEST = limits.COORDINATE_FARTHEST / _SCALE
"""No coordinate is farther from the middle, no height greater."""
WORST_ERROR = limits.COORDINATE_WORST_ERROR / _SCALE
LEAST_HEIGHT = 1e-5
TIMESTEP = 0.25
"""cc: how far of the way to where the spring rests."""
ERROR_STEP = 0.25
"""ce: how much of an error the newest sample is."""


@dataclass(frozen=True)
class Coordinate:
    """A place, and how wrong its owner's predictions have been lately (relative, 0 is never wrong)."""

    x: float = 0.0
    y: float = 0.0
    height: float = LEAST_HEIGHT
    error: float = WORST_ERROR

    def distance(self, other: Coordinate) -> float:
        """Seconds of round trip to be expected."""
        return math.hypot(self.x - other.x, self.y - other.y) + self.height + other.height

    def to_wire(self) -> list[int]:
        """Microseconds, and the error in millionths."""
        return [round(value * _SCALE) for value in (self.x, self.y, self.height, self.error)]


def coordinate_from(wire: list[int]) -> Coordinate:
    """`BadInput` for what isn't four whole numbers in range."""
    if len(wire) != 4:
        raise BadInput(f"coordinate: {len(wire)} numbers, 4 expected")
    x, y, height, error = (number / _SCALE for number in wire)
    if max(abs(x), abs(y), height) > FARTHEST or height < 0 or not 0 <= error <= WORST_ERROR:
        raise BadInput("coordinate: out of range")
    return Coordinate(x, y, height, error)


def moved(own: Coordinate, other: Coordinate, rtt: float, rng: random.Random) -> Coordinate:
    """This node's coordinate after a round trip of `rtt` seconds to a node that says it is at `other`."""
    if not 0 < rtt <= FARTHEST:
        return own
    expected = max(own.distance(other), 1e-9)
    weight = own.error / max(own.error + other.error, 1e-9)
    error = min(WORST_ERROR, own.error * (1 - ERROR_STEP * weight) + abs(expected - rtt) / rtt * ERROR_STEP * weight)
    force = max(-rtt, min(rtt, rtt - expected)) * TIMESTEP * weight
    across, up = _direction(own, other, rng), (own.height + other.height) / expected
    x, y = own.x + force * across[0], own.y + force * across[1]
    return Coordinate(_bounded(x), _bounded(y), min(FARTHEST, max(LEAST_HEIGHT, own.height + force * up)), error)


def _direction(own: Coordinate, other: Coordinate, rng: random.Random) -> tuple[float, float]:
    """The plane's part of the unit vector from `other` to here; a random one where both lie on one point."""
    away = math.hypot(own.x - other.x, own.y - other.y)
    if away < 1e-9:
        angle = rng.uniform(0, 2 * math.pi)
        return math.cos(angle), math.sin(angle)
    whole = own.distance(other)
    return (own.x - other.x) / whole, (own.y - other.y) / whole


def _bounded(value: float) -> float:
    return max(-FARTHEST, min(FARTHEST, value))
