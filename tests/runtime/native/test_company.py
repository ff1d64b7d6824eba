"""When helpers' company is left, and when it is wanted again."""

from __future__ import annotations

import random

from runtime.native.company import MOST, Company

KIND, OTHER = (1, 1), (1, 6)


def until_wanted(company: Company, seconds: float = 1.0) -> int:
    """Passes made alone, which take so long."""
    made = 0
    while not company.wanted(KIND):
        company.alone(KIND, seconds)
        made += 1
    return made


def test_it_is_left_for_longer_each_time_where_alone_is_faster() -> None:
    company, alone = Company(), []
    for _ in range(9):
        company.together(KIND, 5.0, 1.0)
        alone.append(until_wanted(company))
    assert alone == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert max(alone) == MOST


def test_it_stays_where_it_is_faster_though_one_waits_now_and_then() -> None:
    company, rng = Company(), random.Random(4)
    company.together(KIND, 4.0, 1.0)
    assert until_wanted(company, 3.0) == 1
    for _ in range(40):
        company.together(KIND, 2.0, 1.9)
    for _ in range(200):
        late = rng.random() < 0.2
        company.together(KIND, 3.5 if late else 1.9, 1.8)
        assert company.wanted(KIND)


def test_it_is_tried_again_and_kept_once_it_pays() -> None:
    company = Company()
    for _ in range(5):
        company.together(KIND, 9.0, 1.0)
        until_wanted(company)
    for _ in range(60):
        company.together(KIND, 0.5, 0.5)
    company.together(KIND, 0.7, 0.3)
    assert company.wanted(KIND)


def test_what_takes_otherwise_long_is_known_by_itself() -> None:
    company = Company()
    company.together(KIND, 5.0, 1.0)
    assert company.wanted(OTHER)
    assert not company.wanted(KIND)
    for number in range(1_000):
        company.together((number, 1), 1.0, 1.0)
    assert len(company._known) == 64
