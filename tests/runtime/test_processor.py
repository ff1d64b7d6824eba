"""What a processor multiplies quickly is found the same whatever else it does: a reply shouldn't change with the weather."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from runtime import processor

TRIED = (processor.multiplies_bf16, processor.multiplies_fp16, processor.multiplies_whole_numbers)
BURN = "while True: pass"


@pytest.fixture
def others() -> Iterator[None]:
    """More of them than there are processors."""
    made = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(5)]
    yield
    for one in made:
        one.kill()
        one.wait()


def test_the_same_is_found_beside_others(others: None) -> None:
    for tried in TRIED:
        assert {tried.__wrapped__() for _ in range(5)} == {tried()}, tried.__name__


def test_threads_are_as_many_afterwards_as_before_and_one_meanwhile() -> None:
    before, meanwhile = torch.get_num_threads(), set[int]()
    try:
        torch.set_num_threads(2)
        processor._least(lambda: meanwhile.add(torch.get_num_threads()))
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            processor._least(lambda: 1 / 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert meanwhile == {1}
