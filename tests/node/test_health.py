"""What a node says of its health, by its figures: each word, each reason, and the edge between two."""

from __future__ import annotations

import pytest

from node.health import DEGRADED, HEALTHY, UNHEALTHY, Probed, Verdict, compute, gateway, registry, storage, worst

GOOD = Probed(1_000.0, True)


@pytest.mark.parametrize(
    ("probe", "now", "free", "known", "alive", "status", "said"),
    [
        (None, 1_000.0, 5, 0, 0, DEGRADED, "no end-to-end probe"),
        (GOOD, 1_059.9, 5, 0, 0, HEALTHY, None),
        (GOOD, 1_060.0, 5, 0, 0, DEGRADED, "was 60 s ago"),
        (Probed(1_000.0, False, "the store didn't answer"), 1_000.0, 5, 2, 2, UNHEALTHY, "the store didn't answer"),
        (GOOD, 1_000.0, 5, 3, 0, DEGRADED, "none of the 3 peers"),
        (GOOD, 1_000.0, 5, 3, 1, HEALTHY, None),
        (GOOD, 1_000.0, 0, 3, 1, DEGRADED, "no room"),
    ],
)
def test_storage(probe: Probed | None, now: float, free: int, known: int, alive: int, status: str, said: str | None) -> None:
    found = storage(probe, free, 10, known, alive, now)
    assert found.status == status
    assert (found.reason is None) if said is None else said in str(found.reason)


def test_a_node_that_lends_no_room_is_healthy_without_any() -> None:
    assert storage(GOOD, 0, 0, 0, 0, 1_000.0) == Verdict()


def test_compute() -> None:
    ended = "the worker ended (signal 9, SIGKILL)"
    assert compute(False, 0, "it isn't running", 0.0, False) == Verdict(), "it starts with the first request"
    assert compute(True, 2, ended, 0.0, False) == Verdict(), "it is back"
    assert compute(False, 1, ended, 0.0, False).status == DEGRADED
    held = compute(False, 3, ended, 4.0, False)
    assert (held.status, held.reason) == (UNHEALTHY, f"{ended}; it starts again in 4 s")
    assert compute(True, 0, "", 0.0, True).status == DEGRADED


@pytest.mark.parametrize(
    ("answered", "failed", "status"),
    [(0, 0, HEALTHY), (2, 2, HEALTHY), (3, 3, DEGRADED), (9, 9, DEGRADED), (10, 5, UNHEALTHY), (10, 4, DEGRADED), (30, 3, DEGRADED),
     (31, 3, HEALTHY)],
)  # fmt: skip
def test_gateway(answered: int, failed: int, status: str) -> None:
    assert gateway(answered, failed).status == status


def test_the_worst_part_is_the_nodes() -> None:
    bad, worse = registry(2), Verdict(UNHEALTHY, "b")
    assert bad.status == DEGRADED
    assert worst([Verdict(), bad, worse, Verdict(UNHEALTHY, "later")]) == worse
    assert worst([registry(0), Verdict()]) == Verdict()
