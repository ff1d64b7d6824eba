"""Three seeded traces of requests for models, to try caches on. Made before any cache that is tried on them.

    daily      popularity by Zipf(0.9); each model has hours of the day at which it is asked for rather, and the day has a peak
    shuffled   the same requests, their times dealt out anew: popularity stays, hours and neighbourhoods mean nothing
    scan       the shuffled requests of a fifth of the models, among them three long runs through models that are asked for once

Sizes are log-normal around 1 GB. Times are seconds from midnight of the first day.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import accumulate

DAY = 86_400.0
MODELS = 500
DAYS = 30
A_DAY = 1_000
"""Requests of a day, on average."""
ZIPF = 0.9
HOURS = 1.5
"""How much a model's hours matter: e^(2 x this) is its busiest hour over its quietest."""
PEAK, SWING = 15.0, 0.6
"""The hour at which most is asked, and by how much more than on average."""


@dataclass(frozen=True)
class Request:
    at: float
    model: str
    size: int


def daily(seed: int = 1) -> list[Request]:
    rng = random.Random(f"daily {seed}")
    sizes = [_size(rng) for _ in range(MODELS)]
    hours = [_hours(rng.uniform(0, 24)) for _ in range(MODELS)]
    popular = list(accumulate(rank**-ZIPF for rank in range(1, MODELS + 1)))
    found = []
    for model in rng.choices(range(MODELS), cum_weights=popular, k=DAYS * A_DAY):
        hour = rng.choices(range(24), cum_weights=hours[model])[0]
        at = DAY * rng.randrange(DAYS) + 3_600 * (hour + rng.random())
        found.append(Request(at, f"model {model}", sizes[model]))
    return sorted(found, key=lambda request: request.at)


def shuffled(seed: int = 1) -> list[Request]:
    requests, rng = daily(seed), random.Random(f"shuffled {seed}")
    others = list(requests)
    rng.shuffle(others)
    return [Request(request.at, other.model, other.size) for request, other in zip(requests, others, strict=True)]


def scan(seed: int = 1) -> list[Request]:
    rng = random.Random(f"scan {seed}")
    few = [request for request in shuffled(seed) if int(request.model.split()[1]) % 5 == 0]
    runs = [Request((5 + 8 * run) * DAY + 90.0 * step, f"once {run} {step}", _size(rng)) for run in range(3) for step in range(1_500)]
    return sorted([*few, *runs], key=lambda request: request.at)


def total_bytes(requests: list[Request]) -> int:
    """Of all the models asked for, each once."""
    return sum({request.model: request.size for request in requests}.values())


def _hours(own: float) -> list[float]:
    """How much is asked for at each hour, added up: the day's shape times the model's, whose own hour is `own`."""
    shape = [1 + SWING * math.cos(_angle(hour + 0.5 - PEAK)) for hour in range(24)]
    return list(accumulate(day * math.exp(HOURS * math.cos(_angle(hour + 0.5 - own))) for hour, day in enumerate(shape)))


def _size(rng: random.Random) -> int:
    return int(1e9 * rng.lognormvariate(0.0, 0.8))


def _angle(hours: float) -> float:
    return 2 * math.pi * hours / 24
