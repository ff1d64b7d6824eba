"""When a pass is shared, and when not."""

from __future__ import annotations

from runtime.native.crew import Company


def test_company_is_left_for_longer_each_time_it_keeps_one_waiting() -> None:
    company = Company()
    alone = []
    for _ in range(9):
        company.was(1.0, 0.5)
        alone.append(sum(1 for _ in iter(company.wanted, True)))
    assert alone == [1, 2, 4, 8, 16, 32, 64, 64, 64]


def test_company_that_was_good_is_forgiven() -> None:
    company = Company()
    for _ in range(3):
        company.was(1.0, 0.1)
        while not company.wanted():
            pass
    company.was(1.0, 0.9)
    assert company.wanted()
    company.was(1.0, 0.1)
    assert [company.wanted() for _ in range(3)] == [False, True, True]
